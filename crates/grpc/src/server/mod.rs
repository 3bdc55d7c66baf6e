//! The server as a whole.

mod accept;
mod answer;
mod connection;
mod gate;
mod share;
mod stall;

use std::net::SocketAddr;
use std::time::Duration;

use mcpscope_hub::{Admin, ChaosToken, Reader};
use tokio::net::TcpListener;

use self::gate::Gate;
use crate::services;

/// What is dropped, as `mcpscope_dropped_total` counts it: calls and connections of clients that took nothing.
const SLOW: &str = "grpc_slow";
/// Streaming calls for which there was no room.
const STREAMS: &str = "grpc_streams";
/// Answers for which there was no room.
const HELD: &str = "grpc_held";
/// Requests that are no gRPC, or of a host or origin that is not answered to.
const REFUSED: &str = "grpc_refused";
/// Connections that had to make room for newer ones.
const EVICTED: &str = "grpc_evicted";
/// Calls that panicked.
const PANIC: &str = "grpc_panic";

/// Who is answered, and how much at a time.
#[derive(Clone, Debug)]
pub struct Config {
    /// Host names answered to besides loopback, without port. Default: none.
    pub allowed_hosts: Vec<String>,
    /// Connections served at a time, at least 1; for a further one, that is ended which misses its place least
    /// ([`OpenDoor`](mcpscope_accept::OpenDoor)). Default: [`Config::DEFAULT_MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// Streaming calls open at a time, on all connections together; each may have an eighth of them (at least one). A further
    /// one is answered RESOURCE_EXHAUSTED. `Watch` of `grpc.health.v1.Health` is not counted. Default:
    /// [`Config::DEFAULT_MAX_STREAMS`].
    pub max_streams: usize,
    /// Bytes of answers that are made and not taken yet, on all connections together; each may hold an eighth of them. A
    /// further answer ends with RESOURCE_EXHAUSTED, unless it has at most 1 KiB. Default:
    /// [`Config::DEFAULT_MAX_HELD_BYTES`].
    pub max_held_bytes: usize,
    /// How long a client may take to begin to speak HTTP/2 before its connection is closed. Default:
    /// [`Config::DEFAULT_HANDSHAKE_TIMEOUT`].
    pub handshake_timeout: Duration,
    /// How long a client may leave an answer lying without taking any of it before the call is reset, or the connection
    /// closed where it takes nothing at all. Default: [`Config::DEFAULT_SUBSCRIBER_TIMEOUT`].
    pub subscriber_timeout: Duration,
    /// What a caller has to show to start chaos experiments. Default: nobody may.
    pub chaos_token: ChaosToken,
}

impl Config {
    /// 256 connections.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 256;
    /// 256 streaming calls.
    pub const DEFAULT_MAX_STREAMS: usize = 256;
    /// 64 MiB.
    pub const DEFAULT_MAX_HELD_BYTES: usize = 64 << 20;
    /// 10 seconds.
    pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
    /// 30 seconds (behaviour D2).
    pub const DEFAULT_SUBSCRIBER_TIMEOUT: Duration = Duration::from_secs(30);
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            max_streams: Self::DEFAULT_MAX_STREAMS,
            max_held_bytes: Self::DEFAULT_MAX_HELD_BYTES,
            handshake_timeout: Self::DEFAULT_HANDSHAKE_TIMEOUT,
            subscriber_timeout: Self::DEFAULT_SUBSCRIBER_TIMEOUT,
            chaos_token: ChaosToken::new(""),
        }
    }
}

/// Why gRPC cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrpcError {
    /// The address can be reached from elsewhere.
    #[error(
        "{0} is no loopback address: gRPC listens on loopback only; for a pod address, --probe has a read-only listener \
         with gRPC health"
    )]
    NotLoopback(SocketAddr),
    /// There is nothing to listen on.
    #[error("gRPC was given no listener")]
    NoListener,
    /// The descriptors that are built in cannot be read.
    #[error("the protobuf descriptors cannot be served")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// Checks that an address can be reached from this machine only.
///
/// # Errors
/// [`GrpcError::NotLoopback`].
pub fn check_loopback(addr: SocketAddr) -> Result<(), GrpcError> {
    if addr.ip().to_canonical().is_loopback() { Ok(()) } else { Err(GrpcError::NotLoopback(addr)) }
}

/// Serves on all `listeners` until `stop` ends. Then the ports are free at once, streams end with UNAVAILABLE, and calls in
/// flight may finish for at most 2 seconds.
///
/// Neither a failure to accept nor a panic in a call ends it. Dropping the future closes every connection at once.
///
/// # Errors
/// [`GrpcError::NoListener`], [`GrpcError::Descriptors`].
pub async fn serve(
    listeners: Vec<TcpListener>,
    reader: Reader,
    admin: Admin,
    config: Config,
    stop: impl Future<Output = ()>,
) -> Result<(), GrpcError> {
    if listeners.is_empty() {
        return Err(GrpcError::NoListener);
    }
    let routes = services::routes(&reader, admin, config.chaos_token.clone())?;
    [SLOW, STREAMS, HELD, REFUSED, EVICTED, PANIC].into_iter().for_each(|what| reader.may_drop(what));
    accept::run(listeners, routes, &reader, config, stop).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        for fine in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(check_loopback(fine.parse().unwrap()).is_ok(), "{fine}");
        }
        for elsewhere in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let error = check_loopback(elsewhere.parse().unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{elsewhere} is no loopback address")), "{error}");
        }
    }
}
