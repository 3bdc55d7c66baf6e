//! HTTP sessions by the name that their requests carry, and the conversations outside of them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use mcpscope_core::ErrorType;
use mcpscope_hooks::Probe;

use super::{Config, Shared};
use crate::ServerState;
use crate::conversation::{Conversation, Ending};

/// Sessions followed at one time; a bound against servers that open one for every request.
const MAX_SESSIONS: usize = 10_000;

/// Open sessions by `Mcp-Session-Id`, or, for HTTP+SSE (2024-11-05), by the endpoint that the stream announced.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    named: Mutex<HashMap<Box<str>, Open>>,
    /// How many there are: where there is none, which is read for every request, nobody need wait for the lock.
    open: AtomicUsize,
    /// Those of connections, whose calls can time out, too.
    outside: Mutex<HashMap<u64, Weak<Conversation>>>,
    next: AtomicU64,
}

/// A session that is followed.
#[derive(Debug)]
struct Open {
    since: Instant,
    conversation: Arc<Conversation>,
}

impl Sessions {
    pub(super) fn get(&self, name: &str) -> Option<Arc<Conversation>> {
        if self.open.load(Ordering::Acquire) == 0 {
            return None;
        }
        lock(&self.named).get(name).map(|open| Arc::clone(&open.conversation))
    }

    /// Follows a session; false if too many are followed already.
    pub(super) fn open(&self, name: &str, conversation: &Arc<Conversation>) -> bool {
        let mut named = lock(&self.named);
        if named.len() >= MAX_SESSIONS && !named.contains_key(name) {
            return false;
        }
        let opened = Open { since: Instant::now(), conversation: Arc::clone(conversation) };
        let replaced = named.insert(name.into(), opened);
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
        if let Some(Open { conversation, .. }) = closed {
            conversation.close(ending, at);
        }
    }

    /// Ends the sessions of a server's processes when those have ended, for as long as this is polled.
    pub(super) async fn follow(&self, config: &Config, probe: &Probe) -> Infallible {
        let (Some(server), Some(child)) = (&config.server, &config.child) else { return pending().await };
        let mut server = server.clone();
        while server.changed().await.is_ok() {
            let ending = match *server.borrow_and_update() {
                ServerState::Starting => continue,
                ServerState::Ended { status: Some(status) } if status.success() => Ending::Well,
                // Of one that serves, too: another may have crashed before it.
                _ => Ending::Failed(ErrorType::Crash),
            };
            let now = Instant::now();
            // After that: if none runs now, the next one is still to be started.
            let is_over_before = child.started().unwrap_or(now);
            probe.guarded(|| self.end_before(is_over_before, ending, now));
        }
        pending().await
    }

    /// Ends the sessions that were opened before `since`. Their calls are left to their exchanges.
    fn end_before(&self, since: Instant, ending: Ending, at: Instant) {
        let over: Vec<_> = {
            let mut named = lock(&self.named);
            // A session that is a stream (HTTP+SSE) ends with that.
            let is_over = |open: &Open| open.since < since && !open.conversation.mailbox.is_open();
            let over = named.extract_if(|_, open| is_over(open)).collect();
            self.open.store(named.len(), Ordering::Release);
            over
        };
        over.iter().for_each(|(_, open)| open.conversation.end_session(ending, at));
    }

    /// Ends what has waited too long.
    pub(super) fn sweep(&self, idle: Duration, call_timeout: Duration, now: Instant) {
        let idle_ones: Vec<_> = match now.checked_sub(idle) {
            Some(since) => {
                let mut named = lock(&self.named);
                let idle = named.extract_if(|_, open| open.conversation.idle_since(since)).collect();
                self.open.store(named.len(), Ordering::Release);
                idle
            }
            None => Vec::new(),
        };
        for (_, Open { conversation, .. }) in &idle_ones {
            conversation.close(Ending::Left, now);
        }
        let mut all: Vec<_> = lock(&self.named).values().map(|open| Arc::clone(&open.conversation)).collect();
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

#[cfg(test)]
mod tests {
    use mcpscope_core::Transport;
    use mcpscope_hooks::Parts;

    use super::*;
    use crate::Limits;
    use crate::relay::Relay;

    #[test]
    fn what_the_next_process_has_opened_is_not_over_with_the_one_before() {
        let relay = Relay::new(Probe::new(Parts::new("s", Transport::Http)), Limits::default(), None);
        let sessions = Sessions::default();
        let open = |name| {
            let conversation = Arc::new(Conversation::new(Arc::clone(&relay), "::1", false, Instant::now()));
            assert!(sessions.open(name, &conversation));
            conversation
        };
        open("before");
        open("stream").mailbox.open();
        let started = Instant::now();
        open("after");
        sessions.end_before(started, Ending::Failed(ErrorType::Crash), started);
        let is_open = |name| sessions.get(name).is_some();
        assert_eq!((is_open("before"), is_open("stream"), is_open("after")), (false, true, true));
        sessions.end_before(Instant::now(), Ending::Well, Instant::now());
        assert_eq!((is_open("stream"), is_open("after")), (true, false), "a stream ends when it does");
    }
}
