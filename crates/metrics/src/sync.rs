//! The atomics of the storage: those of the standard library, or loom's where it tries every interleaving.

#[cfg(mcpscope_loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(mcpscope_loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
