#![doc = include_str!("../README.md")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "used in tests only, where what goes wrong is to fail the test"
)]

pub mod bench;
mod echo;
pub mod http;
mod listener;
mod stdio;
mod wire;

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

pub use echo::EchoServer;
pub use http::{Head, Message};
pub use listener::Listener;
pub use stdio::{StdioClient, read_to_end};
pub use wire::{BodyReader, Wire, WireReader, WireWriter};

/// How long anything may take before its test fails: far longer than the slowest machine needs, so that only what never
/// happens runs into it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often [`eventually`] looks.
const LOOK: Duration = Duration::from_millis(2);

/// Awaits `future`.
///
/// # Panics
/// It takes longer than [`PATIENCE`].
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

/// Waits until `look` finds what it looks for, where nothing tells when it is there; `Err` says what is there instead.
///
/// # Panics
/// It is not there within [`PATIENCE`].
pub async fn eventually<T, E: Debug>(mut look: impl FnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => assert!(Instant::now() < end, "still not there: {instead:?}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}
