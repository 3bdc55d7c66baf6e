//! The atomics and locks of the storage: those of the standard library, or loom's where it tries every interleaving.

#[cfg(mcpscope_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(mcpscope_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(mcpscope_loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(mcpscope_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard};

use std::sync::{PoisonError, TryLockError};

/// A panic under one of our locks can at worst have left out one entry.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks unless others are in the way for longer than it takes them to push to a vector. Recording never waits.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    #[cfg(not(mcpscope_loom))]
    const TRIES: usize = 200;
    #[cfg(mcpscope_loom)]
    const TRIES: usize = 1;
    (0..TRIES).find_map(|_| match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => {
            std::hint::spin_loop();
            None
        }
    })
}
