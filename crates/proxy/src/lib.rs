#![doc = include_str!("../README.md")]

mod answer;
mod child;
mod clients;
mod conversation;
mod framing;
#[cfg(feature = "_fuzz")]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
mod inject;
mod json;
mod members;
mod pending;
mod relay;
mod restarts;
mod scan;
pub mod stdio;
mod traffic;

use std::time::Duration;

pub use inject::Slot;
pub use restarts::{RestartPolicy, ServerState};
pub use scan::{Message, Params, Progress, ScanError, scan};
pub use traffic::{Paths, Traffic};

/// How often calls, sessions and clients are looked over for those whose time is up.
const SWEEP: Duration = Duration::from_secs(1);

/// JSON-RPC's internal error.
const INTERNAL_ERROR: i64 = -32603;

/// How long what trace context is to be put into is waited for, until it is complete; longer, and it goes on as it is.
const MAX_HOLD: Duration = Duration::from_secs(1);

/// What bounds the observation of traffic; the traffic itself is bounded by backpressure alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A larger message is relayed without being looked at, in bytes. Default: [`Limits::DEFAULT_MAX_MESSAGE`].
    pub max_message: usize,
    /// Memory for the copies of all messages under way in one relay, and for what of them is held, in bytes; while it is used
    /// up, messages that do not arrive in one piece are relayed without being looked at. Default: [`Limits::DEFAULT_MAX_COPIES`].
    pub max_copies: usize,
    /// A call without an answer for this long counts as timed out. Default: [`Limits::DEFAULT_CALL_TIMEOUT`].
    pub call_timeout: Duration,
}

impl Limits {
    /// 16 MiB.
    pub const DEFAULT_MAX_MESSAGE: usize = 16 << 20;
    /// 64 MiB.
    pub const DEFAULT_MAX_COPIES: usize = 64 << 20;
    /// 300 s.
    pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(300);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: Self::DEFAULT_MAX_MESSAGE,
            max_copies: Self::DEFAULT_MAX_COPIES,
            call_timeout: Self::DEFAULT_CALL_TIMEOUT,
        }
    }
}
