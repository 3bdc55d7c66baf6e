//! What whoever drives the engine is to do with it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use mcpscope_chaos::Controller;
use tokio::sync::Notify;

type Command = Box<dyn FnOnce(&Controller) + Send>;

/// Commands that wait for whoever drives the engine, in order: from those who must not wait for it. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Later(Arc<Inner>);

#[derive(Default)]
struct Inner {
    commands: Mutex<VecDeque<Command>>,
    wake: Notify,
}

impl Later {
    pub(super) fn post(&self, command: Command) {
        self.0.commands.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        self.wake();
    }

    /// The engine wants to be driven.
    pub(super) fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Waits for a command, or a call of [`Later::wake`].
    pub(super) async fn woken(&self) {
        self.0.wake.notified().await;
    }

    /// Does all that is to be done.
    pub(super) fn work(&self, controller: &Controller) {
        loop {
            let next = self.0.commands.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(command) => command(controller),
                None => return,
            }
        }
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Later")
    }
}
