#![doc = include_str!("../README.md")]

mod alarm;
mod answer;
mod bell;
mod child;
mod clients;
mod conversation;
mod crashes;
mod framing;
#[cfg(feature = "_fuzz")]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
mod inject;
mod item;
mod json;
mod mailbox;
mod members;
mod pending;
mod queue;
mod relay;
mod restarts;
mod scan;
mod standstill;
pub mod stdio;
mod target;
mod traffic;

use std::time::Duration;

pub use child::Program;
pub use inject::Slot;
pub use restarts::{RestartPolicy, ServerState};
pub use scan::{Message, Params, Progress, ScanError, scan};
pub use target::ChildTarget;
pub use traffic::{Paths, Traffic};

/// How often calls, sessions and clients are looked over for those whose time is up.
const SWEEP: Duration = Duration::from_secs(1);

/// JSON-RPC's internal error.
const INTERNAL_ERROR: i64 = -32603;

/// How long what trace context is to be put into is waited for, until it is complete; longer, and it goes on as it is.
const MAX_HOLD: Duration = Duration::from_secs(1);

/// What bounds the memory of one relay. Traffic that finds none is held back where it comes from, and is never lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A larger message is relayed without being looked at, in bytes. Default: [`Limits::DEFAULT_MAX_MESSAGE`].
    pub max_message: usize,
    /// So many messages of all connections together may wait to be written on; while they do, each connection takes no more
    /// than 1 KiB before it has written that on. Default: [`Limits::DEFAULT_QUEUE_MESSAGES`].
    pub queue_messages: usize,
    /// The same in bytes. As much again is for the copies of messages that do not arrive in one piece, and for what of them is
    /// held until they are complete; while it is used up, such messages are relayed without being looked at. Default:
    /// [`Limits::DEFAULT_QUEUE_BYTES`].
    pub queue_bytes: usize,
    /// A call without an answer for this long counts as timed out. Default: [`Limits::DEFAULT_CALL_TIMEOUT`].
    pub call_timeout: Duration,
}

impl Limits {
    /// 16 MiB.
    pub const DEFAULT_MAX_MESSAGE: usize = 16 << 20;
    /// 1024.
    pub const DEFAULT_QUEUE_MESSAGES: usize = 1024;
    /// 64 MiB.
    pub const DEFAULT_QUEUE_BYTES: usize = 64 << 20;
    /// 300 s.
    pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(300);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: Self::DEFAULT_MAX_MESSAGE,
            queue_messages: Self::DEFAULT_QUEUE_MESSAGES,
            queue_bytes: Self::DEFAULT_QUEUE_BYTES,
            call_timeout: Self::DEFAULT_CALL_TIMEOUT,
        }
    }
}
