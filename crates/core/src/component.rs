//! The parts of an MCP server whose operations and errors are counted.

use std::fmt;

/// A part of an MCP server.
///
/// The six variants are the components that are instrumented from the start (behaviour H1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Handling of JSON-RPC requests, whatever their method.
    JsonRpc,
    /// Creation and end of sessions.
    SessionManager,
    /// What the server offers: lists, reads, subscriptions, discovery.
    Registry,
    /// Start and stop of the server process.
    Server,
    /// Messages sent and received.
    Transport,
    /// Tool calls.
    Tools,
}

impl Component {
    /// All components, in the order in which they are documented.
    pub const ALL: [Self; 6] =
        [Self::JsonRpc, Self::SessionManager, Self::Registry, Self::Server, Self::Transport, Self::Tools];

    /// The name used in labels, APIs and configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::JsonRpc => "json_rpc",
            Self::SessionManager => "session_manager",
            Self::Registry => "registry",
            Self::Server => "server",
            Self::Transport => "transport",
            Self::Tools => "tools",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
