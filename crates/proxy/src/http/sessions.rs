//! HTTP sessions by the name that their requests carry, and the conversations outside of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Shared;
use crate::conversation::{Conversation, Ending};

/// Sessions followed at one time; a bound against servers that open one for every request.
const MAX_SESSIONS: usize = 10_000;

/// Open sessions by `Mcp-Session-Id`, or, for HTTP+SSE (2024-11-05), by the endpoint that the stream announced.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    named: Mutex<HashMap<Box<str>, Arc<Conversation>>>,
    /// How many there are: where there is none, which is read for every request, nobody need wait for the lock.
    open: AtomicUsize,
    /// Those of connections, whose calls can time out, too.
    outside: Mutex<HashMap<u64, Weak<Conversation>>>,
    next: AtomicU64,
}

impl Sessions {
    pub(super) fn get(&self, name: &str) -> Option<Arc<Conversation>> {
        if self.open.load(Ordering::Acquire) == 0 {
            return None;
        }
        lock(&self.named).get(name).cloned()
    }

    /// Follows a session; false if too many are followed already.
    pub(super) fn open(&self, name: &str, conversation: &Arc<Conversation>) -> bool {
        let mut named = lock(&self.named);
        if named.len() >= MAX_SESSIONS && !named.contains_key(name) {
            return false;
        }
        let replaced = named.insert(name.into(), Arc::clone(conversation));
        self.open.store(named.len(), Ordering::Release);
        drop(named);
        // Outside of the lock: it may be the last owner, whose end is recorded.
        drop(replaced);
        true
    }

    /// Ends a session, even if a stream of it is still open.
    pub(super) fn close(&self, name: &str, ending: Ending, at: Instant) {
        let closed = {
            let mut named = lock(&self.named);
            let closed = named.remove(name);
            self.open.store(named.len(), Ordering::Release);
            closed
        };
        if let Some(conversation) = closed {
            conversation.close(ending, at);
        }
    }

    /// Ends what has waited too long.
    pub(super) fn sweep(&self, idle: Duration, call_timeout: Duration, now: Instant) {
        let idle_ones: Vec<_> = match now.checked_sub(idle) {
            Some(since) => {
                let mut named = lock(&self.named);
                let idle = named.extract_if(|_, conversation| conversation.idle_since(since)).collect();
                self.open.store(named.len(), Ordering::Release);
                idle
            }
            None => Vec::new(),
        };
        for (_, conversation) in &idle_ones {
            conversation.close(Ending::Left, now);
        }
        let mut all: Vec<_> = lock(&self.named).values().cloned().collect();
        all.extend(lock(&self.outside).values().filter_map(Weak::upgrade));
        all.iter().for_each(|conversation| conversation.expire(call_timeout, now));
    }
}

/// The conversation that the exchanges of one client connection are which belong to no session. They come one after the
/// other, so that the conversation is used again, unless it turned out to be a session.
#[derive(Debug)]
pub(super) struct Outside {
    peer: IpAddr,
    sessions: Arc<Sessions>,
    current: Option<(u64, Arc<Conversation>)>,
}

impl Outside {
    pub(super) fn new(sessions: &Arc<Sessions>, peer: IpAddr) -> Self {
        Self { peer, sessions: Arc::clone(sessions), current: None }
    }

    pub(super) fn conversation(&mut self, shared: &Shared) -> Arc<Conversation> {
        if let Some((_, current)) = self.current.as_ref().filter(|(_, current)| !current.is_named()) {
            return Arc::clone(current);
        }
        self.forget();
        let peer = self.peer.to_string();
        let new = Arc::new(Conversation::new(Arc::clone(&shared.relay), &peer, false, Instant::now()));
        let number = self.sessions.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.sessions.outside).insert(number, Arc::downgrade(&new));
        self.current = Some((number, Arc::clone(&new)));
        new
    }

    fn forget(&mut self) {
        if let Some((number, _)) = self.current.take() {
            lock(&self.sessions.outside).remove(&number);
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.forget();
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}
