//! HTTP sessions by the name that their requests carry, and the exchanges that belong to none.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::conversation::{Conversation, Ending};

/// Sessions followed at one time; a bound against servers that open one for every request.
const MAX_SESSIONS: usize = 10_000;

/// Open sessions by `Mcp-Session-Id`, or, for HTTP+SSE (2024-11-05), by the endpoint that the stream announced.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    named: Mutex<HashMap<Box<str>, Arc<Conversation>>>,
    /// Exchanges under way outside of sessions, whose calls can time out, too.
    nameless: Mutex<HashMap<u64, Weak<Conversation>>>,
    next: AtomicU64,
}

impl Sessions {
    pub(super) fn get(&self, name: &str) -> Option<Arc<Conversation>> {
        lock(&self.named).get(name).cloned()
    }

    /// Follows a session; false if too many are followed already.
    pub(super) fn open(&self, name: &str, conversation: &Arc<Conversation>) -> bool {
        let mut named = lock(&self.named);
        if named.len() >= MAX_SESSIONS && !named.contains_key(name) {
            return false;
        }
        let replaced = named.insert(name.into(), Arc::clone(conversation));
        drop(named);
        // Outside of the lock: it may be the last owner, whose end is recorded.
        drop(replaced);
        true
    }

    /// Ends a session, even if a stream of it is still open.
    pub(super) fn close(&self, name: &str, ending: Ending, at: Instant) {
        let closed = lock(&self.named).remove(name);
        if let Some(conversation) = closed {
            conversation.close(ending, at);
        }
    }

    /// Takes note of an exchange outside of sessions, until [`Sessions::done`].
    pub(super) fn under_way(&self, conversation: &Arc<Conversation>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.nameless).insert(number, Arc::downgrade(conversation));
        number
    }

    pub(super) fn done(&self, number: u64) {
        lock(&self.nameless).remove(&number);
    }

    /// Ends what has waited too long.
    pub(super) fn sweep(&self, idle: Duration, call_timeout: Duration, now: Instant) {
        let idle_ones: Vec<_> = match now.checked_sub(idle) {
            Some(since) => lock(&self.named).extract_if(|_, conversation| conversation.idle_since(since)).collect(),
            None => Vec::new(),
        };
        for (_, conversation) in &idle_ones {
            conversation.close(Ending::Left, now);
        }
        let mut all: Vec<_> = lock(&self.named).values().cloned().collect();
        all.extend(lock(&self.nameless).values().filter_map(Weak::upgrade));
        all.iter().for_each(|conversation| conversation.expire(call_timeout, now));
    }
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}
