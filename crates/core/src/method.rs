//! MCP method names and what they mean to the metrics.

use std::borrow::Cow;
use std::fmt;

use crate::{Component, bounded};

/// An MCP method name, bounded to [`Method::MAX_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Method(Cow<'static, str>);

/// The methods of all revisions, the most frequent first: taking one of these allocates nothing.
const KNOWN: [&str; 33] = [
    "tools/call",
    "notifications/progress",
    "notifications/message",
    "resources/read",
    "prompts/get",
    "tools/list",
    "ping",
    "initialize",
    "notifications/initialized",
    "server/discover",
    "subscriptions/listen",
    "notifications/cancelled",
    "resources/list",
    "resources/templates/list",
    "resources/subscribe",
    "resources/unsubscribe",
    "prompts/list",
    "completion/complete",
    "logging/setLevel",
    "roots/list",
    "sampling/createMessage",
    "elicitation/create",
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
    "notifications/resources/updated",
    "notifications/roots/list_changed",
    "notifications/elicitation/complete",
    "notifications/tasks/status",
    "tasks/get",
    "tasks/result",
    "tasks/list",
    "tasks/cancel",
];

impl Method {
    /// Longest method name kept; what is longer comes from a broken or hostile peer and is cut.
    pub const MAX_BYTES: usize = 128;

    /// The values of the label `operation` of the registry metric.
    pub const REGISTRY_OPERATIONS: [&'static str; 8] =
        ["list", "read", "subscribe", "listen", "discover", "list_changed", "register", "unregister"];

    /// Takes a method name as it came over the wire.
    #[must_use]
    pub fn new(name: &str) -> Self {
        match KNOWN.iter().find(|known| **known == name) {
            Some(known) => Self((*known).into()),
            None => Self(bounded(name, Self::MAX_BYTES).to_owned().into()),
        }
    }

    /// The name as in the protocol, such as `tools/call`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The component that a request of this method exercises besides [`Component::JsonRpc`], if any.
    #[must_use]
    pub fn component(&self) -> Option<Component> {
        match self.as_str() {
            "tools/call" => Some(Component::Tools),
            "initialize" => Some(Component::SessionManager),
            _ => self.registry_operation().map(|_| Component::Registry),
        }
    }

    /// The registry operation that this method is, one of [`Method::REGISTRY_OPERATIONS`].
    #[must_use]
    pub fn registry_operation(&self) -> Option<&'static str> {
        match self.as_str() {
            "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" => Some("list"),
            "resources/read" => Some("read"),
            "resources/subscribe" => Some("subscribe"),
            "subscriptions/listen" => Some("listen"),
            "server/discover" => Some("discover"),
            "notifications/tools/list_changed"
            | "notifications/prompts/list_changed"
            | "notifications/resources/list_changed" => Some("list_changed"),
            _ => None,
        }
    }

    /// Whether this method opens a session: `initialize`, or `server/discover` since 2026-07-28.
    #[must_use]
    pub fn opens_session(&self) -> bool {
        matches!(self.as_str(), "initialize" | "server/discover")
    }

    /// Whether its answer is a stream that stays open, so that its duration is no latency.
    #[must_use]
    pub fn is_long_lived(&self) -> bool {
        self.as_str() == "subscriptions/listen"
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_came() {
        for name in KNOWN.into_iter().chain(["", "tools/call ", "tools/cal", "x"]) {
            assert_eq!(Method::new(name).as_str(), name);
        }
        assert_eq!(Method::new(&"x".repeat(1000)).as_str().len(), Method::MAX_BYTES);
    }

    #[test]
    fn registry_operations_are_all_known_labels() {
        for name in ["tools/list", "resources/read", "resources/subscribe", "subscriptions/listen", "server/discover"] {
            let method = Method::new(name);
            let operation = method.registry_operation().unwrap();
            assert!(Method::REGISTRY_OPERATIONS.contains(&operation), "{name}: {operation}");
            assert_eq!(method.component(), Some(Component::Registry));
        }
        // The client's own list is no operation of the server's registry.
        assert_eq!(Method::new("notifications/roots/list_changed").registry_operation(), None);
        assert_eq!(Method::new("roots/list").component(), None);
    }
}
