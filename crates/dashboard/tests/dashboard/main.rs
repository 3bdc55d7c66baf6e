//! The dashboard over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod chaos;
mod endpoints;
mod frame;
mod guard;
mod limits;
mod page;
mod probe;
mod support;
mod traces;
mod websocket;
