//! Clients of the stateless revisions, which have no sessions to count.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mcpscope_core::Protocol;
use mcpscope_hooks::{Loss, Probe, Session};

/// How long a client counts as active after its last answered request (interface definition of `active_sessions_count`).
const ACTIVE: Duration = Duration::from_secs(5 * 60);

/// Clients that are told apart at one time.
const MAX_CLIENTS: usize = 10_000;

/// Distinct clients seen of late.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<(Box<str>, Protocol), Client>>);

#[derive(Debug)]
struct Client {
    last_seen: Instant,
    _session: Session,
}

impl Clients {
    /// Takes note of a client whose request was answered.
    pub(crate) fn seen(&self, probe: &Probe, client: Box<str>, protocol: Protocol, at: Instant) {
        let mut clients = self.lock();
        let full = clients.len() >= MAX_CLIENTS;
        match clients.get_mut(&(client.clone(), protocol)) {
            Some(known) => known.last_seen = known.last_seen.max(at),
            None if full => probe.lost(Loss::UntrackedSession, at),
            None => {
                // It has no session, and so none that lasts.
                let session = probe.session(protocol, None, at);
                clients.insert((client, protocol), Client { last_seen: at, _session: session });
            }
        }
    }

    /// Forgets the clients that were not seen of late.
    pub(crate) fn expire(&self, now: Instant) {
        self.lock().retain(|_, client| now.saturating_duration_since(client.last_seen) < ACTIVE);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Box<str>, Protocol), Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
