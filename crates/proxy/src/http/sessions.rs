//! HTTP sessions by the name that their requests carry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::conversation::Conversation;

/// Sessions followed at one time; a bound against servers that open one for every request.
const MAX_SESSIONS: usize = 10_000;

/// Open sessions by `Mcp-Session-Id`, or, for HTTP+SSE (2024-11-05), by the endpoint that the stream announced.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Box<str>, Arc<Conversation>>>);

impl Sessions {
    pub(super) fn get(&self, name: &str) -> Option<Arc<Conversation>> {
        self.lock().get(name).cloned()
    }

    /// Follows a session; false if too many are followed already.
    pub(super) fn open(&self, name: &str, conversation: &Arc<Conversation>) -> bool {
        let mut sessions = self.lock();
        if sessions.len() >= MAX_SESSIONS && !sessions.contains_key(name) {
            return false;
        }
        let replaced = sessions.insert(name.into(), Arc::clone(conversation));
        drop(sessions);
        // Outside of the lock: it may be the last owner, whose end is recorded.
        drop(replaced);
        true
    }

    pub(super) fn close(&self, name: &str) {
        let closed = self.lock().remove(name);
        drop(closed);
    }

    /// Ends what has waited too long.
    pub(super) fn sweep(&self, idle: Duration, call_timeout: Duration, now: Instant) {
        let (mut all, mut idle_ones) = (Vec::new(), Vec::new());
        {
            let mut sessions = self.lock();
            if let Some(since) = now.checked_sub(idle) {
                idle_ones.extend(sessions.extract_if(|_, conversation| conversation.idle_since(since)));
            }
            all.extend(sessions.values().cloned());
        }
        all.iter().for_each(|conversation| conversation.expire(call_timeout, now));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Conversation>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
