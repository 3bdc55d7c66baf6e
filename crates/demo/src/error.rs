//! How serving and driving the demo can fail.

use rmcp::{
    ServiceError,
    service::{ClientInitializeError, ServerInitializeError},
};

/// Why a part of the demo ended before it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The listener kept failing to accept connections.
    #[error("the demo server cannot accept connections any more")]
    Accept(#[source] std::io::Error),
    /// The client of the stdio server did not begin the conversation as MCP asks.
    #[error("the client's handshake with the demo server failed")]
    Handshake(#[source] Box<ServerInitializeError>),
    /// The task that serves a connection ended abnormally.
    #[error("the task that serves the demo connection failed")]
    Task(#[source] tokio::task::JoinError),
    /// The URL given for the traffic is not one.
    #[error("the URL of the MCP server is not valid")]
    Url(#[source] url::ParseError),
    /// The traffic speaks plain HTTP only.
    #[error("the demo traffic speaks http only, not {0}")]
    Scheme(String),
    /// The HTTP client of the traffic could not be built.
    #[error("the HTTP client of the demo traffic could not be built")]
    HttpClient(#[source] reqwest::Error),
    /// The server behind the given streams did not answer the handshake, or not as MCP asks.
    #[error("the demo client's handshake with the server failed")]
    Connect(#[source] Box<ClientInitializeError>),
    /// The server behind the given streams did not answer the handshake in time.
    #[error("the server did not answer the demo client's handshake within {} s", .0.as_secs())]
    ConnectTimeout(std::time::Duration),
    /// The server behind the given streams went away.
    #[error("the demo client lost its connection")]
    Lost(#[source] Box<ServiceError>),
}
