//! What metrics there are: names, units, labels, bounds. The one place that knows them.

use mcpscope_core::Component;

/// What kind of number a family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution of durations.
    Histogram,
}

impl Kind {
    /// The name in Prometheus' `# TYPE` line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Describes one family.
#[derive(Debug, PartialEq, Eq)]
pub struct Desc {
    /// The name in Prometheus, in base units.
    pub prometheus: &'static str,
    /// The critical metric it measures, or nothing for mcpscope's own bookkeeping.
    pub critical: Option<&'static str>,
    /// What it means; names the critical metric.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
}

/// The exposed upper bounds of the duration histograms, in nanoseconds.
///
/// Those of the OpenTelemetry MCP conventions (10 ms to 300 s), with 1, 2 and 5 ms before them: local tools answer faster.
pub(crate) const BOUNDS_NS: [u64; 17] = {
    const MS: u64 = 1_000_000;
    [
        MS,
        2 * MS,
        5 * MS,
        10 * MS,
        20 * MS,
        50 * MS,
        100 * MS,
        200 * MS,
        500 * MS,
        1_000 * MS,
        2_000 * MS,
        5_000 * MS,
        10_000 * MS,
        30_000 * MS,
        60_000 * MS,
        120_000 * MS,
        300_000 * MS,
    ]
};

/// The errors that every component can have: their series are there as zero from the start, because a rate over a series
/// that is born with its first error misses that error.
pub(crate) const KNOWN_ERRORS: [(Component, &[&str]); 6] = [
    (Component::JsonRpc, &["-32603", "timeout", "upstream_unreachable", "connection_lost"]),
    (Component::SessionManager, &["-32603", "timeout", "upstream_unreachable", "connection_lost"]),
    (Component::Registry, &["-32603", "timeout", "upstream_unreachable", "connection_lost"]),
    (Component::Server, &["crash"]),
    (Component::Transport, &["invalid_message", "upstream_unreachable", "connection_lost"]),
    (Component::Tools, &["tool_error", "-32603", "timeout", "upstream_unreachable", "connection_lost"]),
];

/// The families.
pub mod desc {
    use super::{Desc, Kind};

    /// Registry operations.
    pub static REGISTRY_OPERATIONS: Desc = Desc {
        prometheus: "mcpscope_registry_operations_total",
        critical: Some("registry_operations_per_second"),
        help: "Registry operations: list, read, subscribe, listen, discover, list_changed, register, unregister \
               (critical metric registry_operations_per_second).",
        kind: Kind::Counter,
    };

    /// Session creation.
    pub static SESSION_CREATION: Desc = Desc {
        prometheus: "mcpscope_session_creation_seconds",
        critical: Some("session_creation_latency_ms"),
        help: "Time from initialize, or server/discover since 2026-07-28, to its result \
               (critical metric session_creation_latency_ms).",
        kind: Kind::Histogram,
    };

    /// Open connections.
    pub static TRANSPORT_CONNECTIONS: Desc = Desc {
        prometheus: "mcpscope_transport_connections",
        critical: Some("transport_connection_count"),
        help: "Open stdio pairs, TCP connections and SSE streams (critical metric transport_connection_count).",
        kind: Kind::Gauge,
    };

    /// Tool calls.
    pub static TOOL_CALLS: Desc = Desc {
        prometheus: "mcpscope_tool_call_duration_seconds",
        critical: Some("tool_call_duration_ms"),
        help: "Time from tools/call to its final result (critical metric tool_call_duration_ms).",
        kind: Kind::Histogram,
    };

    /// Operations of each component.
    pub static COMPONENT_OPERATIONS: Desc = Desc {
        prometheus: "mcpscope_component_operations_total",
        critical: Some("error_rates_by_component"),
        help: "Operations by component, the denominator of the critical metric error_rates_by_component.",
        kind: Kind::Counter,
    };

    /// Errors of each component.
    pub static COMPONENT_ERRORS: Desc = Desc {
        prometheus: "mcpscope_component_errors_total",
        critical: Some("error_rates_by_component"),
        help: "Errors by component, the numerator of the critical metric error_rates_by_component. \
               The caller's own errors (-32700, -32600, -32601, -32602, -32002) do not count.",
        kind: Kind::Counter,
    };

    /// Active sessions.
    pub static ACTIVE_SESSIONS: Desc = Desc {
        prometheus: "mcpscope_active_sessions",
        critical: Some("active_sessions_count"),
        help: "Sessions from initialize to their end; since 2026-07-28 distinct clients seen in the last 5 minutes \
               (critical metric active_sessions_count).",
        kind: Kind::Gauge,
    };

    /// Queued messages.
    pub static QUEUE_DEPTH: Desc = Desc {
        prometheus: "mcpscope_message_queue_depth",
        critical: Some("message_queue_depth"),
        help: "Messages accepted and not yet written on (critical metric message_queue_depth).",
        kind: Kind::Gauge,
    };

    /// Health by component.
    pub static HEALTH_STATE: Desc = Desc {
        prometheus: "mcpscope_health_state",
        critical: None,
        help: "1 for the state that a component, or `overall`, is in, 0 for the others.",
        kind: Kind::Gauge,
    };

    /// What was lost.
    pub static DROPPED: Desc = Desc {
        prometheus: "mcpscope_dropped_total",
        critical: None,
        help: "What mcpscope itself had to drop or leave unobserved; the traffic was relayed all the same.",
        kind: Kind::Counter,
    };

    /// The running version.
    pub static BUILD_INFO: Desc = Desc {
        prometheus: "mcpscope_build_info",
        critical: None,
        help: "The version of mcpscope that is running; always 1.",
        kind: Kind::Gauge,
    };
}
