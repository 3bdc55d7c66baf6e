//! Answers that faults make up for a client which looks for them on the event stream of its session, and not in what its
//! requests are answered with (HTTP+SSE, 2024-11-05).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::Notify;

/// How many wait for the stream at most. Each is of a few hundred bytes.
const MAX_WAITING: usize = 1024;

/// Answers on their way to the stream of one session.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Whether there is a stream.
    is_open: AtomicBool,
    waiting: Mutex<VecDeque<String>>,
    came: Notify,
}

impl Mailbox {
    /// From now on a stream takes what comes.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// The stream has ended; what it has not taken is lost.
    pub(crate) fn close(&self) {
        self.is_open.store(false, Ordering::Release);
        self.lock().clear();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Puts a message in; false if no stream would take it, or too many wait.
    pub(crate) fn post(&self, message: &Value) -> bool {
        if !self.is_open() {
            return false;
        }
        let has_room = {
            let mut waiting = self.lock();
            let has_room = waiting.len() < MAX_WAITING;
            if has_room {
                waiting.push_back(format!("event: message\ndata: {message}\n\n"));
            }
            has_room
        };
        self.came.notify_one();
        has_room
    }

    /// All that wait, as events of the stream.
    pub(crate) fn take(&self) -> String {
        self.lock().drain(..).collect()
    }

    /// Waits until there is something. For the stream alone.
    pub(crate) async fn filled(&self) {
        while self.lock().is_empty() {
            self.came.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        // Whatever a panic has left is a list of whole events.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
