//! Clients of the stateless revisions, which have no sessions to count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mcpscope_core::Protocol;
use mcpscope_hooks::{Loss, Probe, Session};

/// How long a client counts as active after its last answered request (interface definition of `active_sessions_count`).
const ACTIVE: Duration = Duration::from_secs(5 * 60);

/// Clients that are told apart at one time.
const MAX_CLIENTS: usize = 10_000;

/// Distinct clients seen of late.
#[derive(Debug)]
pub(crate) struct Clients {
    start: Instant,
    table: Mutex<HashMap<(Box<str>, Protocol), Client>>,
}

#[derive(Debug)]
struct Client {
    /// When each conversation saw it last.
    seen: Vec<Arc<LastSeen>>,
    _session: Session,
}

/// When one conversation saw a client last, in nanoseconds from the start: it is written for each answer, and by nobody else, until
/// that is [`FORGOTTEN`].
#[derive(Debug)]
struct LastSeen(AtomicI64);

/// Later than any time: what was seen after this counts for nothing.
const FORGOTTEN: i64 = i64::MAX;

/// The client that a conversation saw last: it is mostly the next one, too.
#[derive(Debug)]
pub(crate) struct Known {
    name: Box<str>,
    protocol: Protocol,
    last_seen: Arc<LastSeen>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { start: Instant::now(), table: Mutex::default() }
    }
}

impl Clients {
    /// Takes note of a client whose request was answered: of its name, and the address that it comes from. `known` is the one
    /// that its conversation saw last.
    pub(crate) fn seen(
        &self,
        probe: &Probe,
        (peer, name): (&str, Box<str>),
        protocol: Protocol,
        known: &mut Option<Known>,
        at: Instant,
    ) {
        let at_ns = self.since_start(at);
        let is_known = |known: &&Known| known.name == name && known.protocol == protocol;
        if known.as_ref().filter(is_known).is_some_and(|known| known.last_seen.is_at(at_ns)) {
            return;
        }
        // The one before is seen by this conversation no more.
        *known = None;
        let key = (format!("{peer} {name}").into(), protocol);
        let mut table = self.lock();
        if table.len() >= MAX_CLIENTS && !table.contains_key(&key) {
            return probe.lost(Loss::UntrackedSession, at);
        }
        // It has no session, and so none that lasts.
        let new = || Client { seen: Vec::new(), _session: probe.session(protocol, None, at) };
        let client = table.entry(key).or_insert_with(new);
        let last_seen = client.see(at_ns);
        *known = Some(Known { name, protocol, last_seen });
    }

    /// Forgets the clients that were not seen of late.
    pub(crate) fn expire(&self, now: Instant) {
        let since = self.since_start(now).saturating_sub(ns(ACTIVE));
        self.lock().retain(|_, client| {
            client.gather();
            client.seen.retain(|seen| !seen.forget(since));
            !client.seen.is_empty()
        });
    }

    /// In nanoseconds; negative before it.
    fn since_start(&self, at: Instant) -> i64 {
        match at.checked_duration_since(self.start) {
            Some(after) => ns(after),
            None => -ns(self.start.duration_since(at)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Box<str>, Protocol), Client>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Another conversation sees it.
    fn see(&mut self, at_ns: i64) -> Arc<LastSeen> {
        if self.seen.len() == self.seen.capacity() {
            self.gather();
        }
        let new = Arc::new(LastSeen(AtomicI64::new(at_ns)));
        self.seen.push(Arc::clone(&new));
        new
    }

    /// Of the conversations that see it no more, one is enough: that which saw it last.
    fn gather(&mut self) {
        let mut last: Option<Arc<LastSeen>> = None;
        self.seen.retain_mut(|seen| {
            // Asked once of each, because it may end meanwhile; what it saw until its end is known then.
            let is_left = Arc::get_mut(seen).is_some();
            if is_left && last.as_ref().is_none_or(|last| last.when() < seen.when()) {
                last = Some(Arc::clone(seen));
            }
            !is_left
        });
        self.seen.extend(last);
    }
}

impl LastSeen {
    /// The client is seen then; false if it was forgotten before.
    fn is_at(&self, at_ns: i64) -> bool {
        self.0.fetch_max(at_ns, Ordering::Relaxed) != FORGOTTEN
    }

    /// Forgets what was seen by `since`. Whether that was all: if it is seen at the same time, either this knows or whoever sees it.
    fn forget(&self, since: i64) -> bool {
        let forgotten = |when| (when <= since).then_some(FORGOTTEN);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, forgotten).is_ok()
    }

    fn when(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn ns(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use mcpscope_core::Transport;
    use mcpscope_hooks::Parts;

    use super::*;

    #[test]
    fn whoever_saw_a_client_last_says_how_long_it_counts() {
        let (clients, probe) = (Clients::default(), Probe::new(Parts::new("s", Transport::Http)));
        let at = |seconds| clients.start + Duration::from_secs(seconds);
        let mut known = [None, None];
        let see = |known: &mut Option<Known>, name: &str, seconds| {
            clients.seen(&probe, ("::1", name.into()), Protocol::V2026_07_28, known, at(seconds));
        };
        let count = |seconds| {
            clients.expire(at(seconds));
            clients.lock().len()
        };
        let [one, other] = &mut known;
        see(one, "a", 0);
        see(other, "a", 100);
        assert_eq!((count(299), count(300), count(399)), (1, 1, 1), "they see the same one");
        see(one, "a", 200);
        see(other, "b", 250);
        assert_eq!((count(400), count(499)), (2, 2));
        *one = None;
        assert_eq!((count(499), count(500)), (2, 1), "as long after the conversation has ended");
        assert_eq!(count(550), 0);
        see(other, "b", 600);
        assert_eq!((count(899), count(900)), (1, 0), "it was forgotten, and is seen again");
    }

    #[test]
    fn a_client_that_is_seen_while_it_is_forgotten_is_not() {
        let (clients, probe) = (Clients::default(), Probe::new(Parts::new("s", Transport::Http)));
        let mut known = None;
        for round in 0..20_000 {
            // It was last seen long enough ago to be forgotten, and is seen again at the same time.
            let now = clients.start + ACTIVE * round;
            let together = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    together.wait();
                    clients.expire(now);
                });
                together.wait();
                clients.seen(&probe, ("::1", "a".into()), Protocol::V2026_07_28, &mut known, now);
            });
            clients.expire(now);
            assert_eq!(clients.lock().len(), 1, "round {round}");
        }
    }

    #[test]
    fn a_conversation_that_ends_while_others_are_forgotten_is_not() {
        let probe = Probe::new(Parts::new("s", Transport::Http));
        for _ in 0..200 {
            let session = probe.session(Protocol::V2026_07_28, None, Instant::now());
            let mut client = Client { seen: Vec::new(), _session: session };
            let conversations: Vec<_> = (0..64).map(|at_ns| client.see(at_ns)).collect();
            std::thread::scope(|scope| {
                let ends = scope.spawn(|| drop(conversations));
                while !ends.is_finished() {
                    client.gather();
                }
            });
            client.gather();
            assert_eq!(client.seen.iter().map(|seen| seen.when()).collect::<Vec<_>>(), [63], "the newest");
        }
    }

    #[test]
    fn conversations_that_have_ended_leave_nothing_behind() {
        let (clients, probe) = (Clients::default(), Probe::new(Parts::new("s", Transport::Http)));
        for _ in 0..1000 {
            clients.seen(&probe, ("::1", "a".into()), Protocol::V2026_07_28, &mut None, clients.start);
        }
        let kept: Vec<_> = clients.lock().values().map(|client| client.seen.capacity()).collect();
        assert!(kept.len() == 1 && kept.iter().all(|kept| *kept < 8), "{kept:?}");
    }
}
