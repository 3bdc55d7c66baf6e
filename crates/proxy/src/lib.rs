#![doc = include_str!("../README.md")]

mod clients;
mod conversation;
mod framing;
#[cfg(feature = "_fuzz")]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
mod scan;
pub mod stdio;

use std::time::Duration;

pub use scan::{InvalidMessage, Message, Params, scan};

/// How often calls, sessions and clients are looked over for those whose time is up.
const SWEEP: Duration = Duration::from_secs(1);

/// What bounds the observation of traffic; the traffic itself is bounded by backpressure alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A larger message is relayed without being looked at, in bytes. Default: [`Limits::DEFAULT_MAX_MESSAGE`].
    pub max_message: usize,
    /// A call without an answer for this long counts as timed out. Default: [`Limits::DEFAULT_CALL_TIMEOUT`].
    pub call_timeout: Duration,
}

impl Limits {
    /// 16 MiB.
    pub const DEFAULT_MAX_MESSAGE: usize = 16 << 20;
    /// 300 s.
    pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(300);
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_message: Self::DEFAULT_MAX_MESSAGE, call_timeout: Self::DEFAULT_CALL_TIMEOUT }
    }
}
