//! What metrics there are: names, units, labels, bounds. The one place that knows them.

use std::borrow::Cow;

use mcpscope_core::{Component, Direction, Method, Outcome, Protocol, Transport};

use crate::storage::scale::Bounds;

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

/// What the numbers of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things, or a ratio.
    None,
    /// Seconds where they are shown; nanoseconds in counters and histograms, which hold integers.
    Seconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// The name in OpenMetrics' `# UNIT` line, with which the family's name ends.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Seconds => Some("seconds"),
            Self::Bytes => Some("bytes"),
        }
    }
}

/// Describes one family. Two with the same Prometheus name are the same.
#[derive(Clone, Debug)]
pub struct Desc {
    /// What it is called where it is recorded: the critical metric's name, if it measures one.
    pub name: Cow<'static, str>,
    /// The name in Prometheus, in base units.
    pub prometheus: Cow<'static, str>,
    /// The critical metric it measures, or nothing for others.
    pub critical: Option<Cow<'static, str>>,
    /// What it means; names the critical metric.
    pub help: Cow<'static, str>,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// What its numbers are.
    pub unit: Unit,
    /// The names of its labels, in order; none if each series brings its own.
    pub labels: Option<&'static [&'static str]>,
    pub(crate) bounds: &'static Bounds,
    /// Whether its records are among the raw ones.
    pub(crate) logged: bool,
}

impl PartialEq for Desc {
    fn eq(&self, other: &Self) -> bool {
        self.prometheus == other.prometheus
    }
}

impl Eq for Desc {}

impl Desc {
    /// Whether a record by this name is one of it.
    pub(crate) fn is_recorded_as(&self, name: &str) -> bool {
        // Of operations and errors, errors stand for both. Of ours, others are nobody else's business.
        self.name == name && (self.critical.is_some() || self.labels.is_none()) && *self != desc::COMPONENT_OPERATIONS
    }

    /// The exposed upper bounds of its histograms, in nanoseconds, ascending.
    #[must_use]
    pub const fn bounds_ns(&self) -> &'static [u64] {
        self.bounds.as_ns()
    }

    const fn new(prometheus: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Self {
        Self::named(prometheus, None, prometheus, kind, labels, help)
    }

    /// Measures a critical metric.
    const fn critical(
        critical: &'static str,
        prometheus: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self::named(critical, Some(Cow::Borrowed(critical)), prometheus, kind, labels, help)
    }

    const fn named(
        name: &'static str,
        critical: Option<Cow<'static, str>>,
        prometheus: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            name: Cow::Borrowed(name),
            prometheus: Cow::Borrowed(prometheus),
            logged: critical.is_some(),
            critical,
            help: Cow::Borrowed(help),
            kind,
            unit: if matches!(kind, Kind::Histogram) { Unit::Seconds } else { Unit::None },
            labels: Some(labels),
            bounds: &DURATIONS,
        }
    }

    /// A family that is shown nowhere.
    pub(crate) const fn nowhere(kind: Kind) -> Self {
        Self::new("", kind, &[], "")
    }

    /// Not among the raw records: it changes with every message, and would crowd out all others.
    const fn unlogged(mut self) -> Self {
        self.logged = false;
        self
    }

    const fn unit(mut self, unit: Unit) -> Self {
        self.unit = unit;
        self
    }

    const fn bounds(mut self, bounds: &'static Bounds) -> Self {
        self.bounds = bounds;
        self
    }
}

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;

/// Those of the OpenTelemetry MCP conventions (10 ms to 300 s), with 1, 2 and 5 ms before them: local tools answer faster.
static DURATIONS: Bounds = Bounds::new(&[
    MS,
    2 * MS,
    5 * MS,
    10 * MS,
    20 * MS,
    50 * MS,
    100 * MS,
    200 * MS,
    500 * MS,
    S,
    2 * S,
    5 * S,
    10 * S,
    30 * S,
    60 * S,
    120 * S,
    300 * S,
]);

/// Those of the OpenTelemetry MCP conventions (semantic-conventions-genai, `docs/gen-ai/mcp.md`).
static CONVENTIONS: Bounds = Bounds::new(&[
    10 * MS,
    20 * MS,
    50 * MS,
    100 * MS,
    200 * MS,
    500 * MS,
    S,
    2 * S,
    5 * S,
    10 * S,
    30 * S,
    60 * S,
    120 * S,
    300 * S,
]);

/// What a proxy adds: 1 us to 1 s.
static OVERHEADS: Bounds = Bounds::new(&[
    US,
    2 * US,
    5 * US,
    10 * US,
    20 * US,
    50 * US,
    100 * US,
    200 * US,
    500 * US,
    MS,
    2 * MS,
    5 * MS,
    10 * MS,
    20 * MS,
    50 * MS,
    100 * MS,
    200 * MS,
    500 * MS,
    S,
]);

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

/// The values that a label of the seven can have; none for one that has any.
pub(crate) fn values_of(label: &str) -> Option<Vec<&'static str>> {
    Some(match label {
        "operation" => Method::REGISTRY_OPERATIONS.to_vec(),
        "protocol" => Protocol::KNOWN.into_iter().chain([Protocol::Other]).map(Protocol::as_str).collect(),
        "transport" => Transport::ALL.map(Transport::as_str).to_vec(),
        "direction" => Direction::ALL.map(Direction::as_str).to_vec(),
        "outcome" => Outcome::LABELS.to_vec(),
        "injected" => vec!["true", "false"],
        _ => return None,
    })
}

/// The attributes of an operation in the OpenTelemetry MCP conventions, as Prometheus names them, and two of ours.
const OPERATION: &[&str] = &[
    "server",
    "mcp_method_name",
    "gen_ai_operation_name",
    "gen_ai_tool_name",
    "gen_ai_prompt_name",
    "error_type",
    "rpc_response_status_code",
    "mcp_protocol_version",
    "network_transport",
    "injected",
];

/// The families.
pub mod desc {
    use super::Kind::{Counter, Gauge, Histogram};
    use super::{CONVENTIONS, Desc, OPERATION, OVERHEADS, Unit};

    /// Registry operations.
    pub static REGISTRY_OPERATIONS: Desc = Desc::critical(
        "registry_operations_per_second",
        "mcpscope_registry_operations_total",
        Counter,
        &["server", "operation"],
        "Registry operations: list, read, subscribe, listen, discover, list_changed, register, unregister \
         (critical metric registry_operations_per_second).",
    );

    /// Session creation.
    pub static SESSION_CREATION: Desc = Desc::critical(
        "session_creation_latency_ms",
        "mcpscope_session_creation_seconds",
        Histogram,
        &["server", "protocol"],
        "Time from initialize, or server/discover since 2026-07-28, to its result \
         (critical metric session_creation_latency_ms).",
    );

    /// Open connections.
    pub static TRANSPORT_CONNECTIONS: Desc = Desc::critical(
        "transport_connection_count",
        "mcpscope_transport_connections",
        Gauge,
        &["server", "transport"],
        "Open stdio pairs, TCP connections and SSE streams (critical metric transport_connection_count).",
    );

    /// Tool calls.
    pub static TOOL_CALLS: Desc = Desc::critical(
        "tool_call_duration_ms",
        "mcpscope_tool_call_duration_seconds",
        Histogram,
        &["server", "tool", "outcome", "injected"],
        "Time from tools/call to its final result (critical metric tool_call_duration_ms).",
    );

    /// Operations of each component.
    pub static COMPONENT_OPERATIONS: Desc = Desc::critical(
        "error_rates_by_component",
        "mcpscope_component_operations_total",
        Counter,
        &["component", "injected"],
        "Operations by component, the denominator of the critical metric error_rates_by_component.",
    )
    .unlogged();

    /// Errors of each component.
    pub static COMPONENT_ERRORS: Desc = Desc::critical(
        "error_rates_by_component",
        "mcpscope_component_errors_total",
        Counter,
        &["component", "error_type", "injected"],
        "Errors by component, the numerator of the critical metric error_rates_by_component. \
         The caller's own errors (-32700, -32600, -32601, -32602, -32002) do not count.",
    );

    /// Active sessions.
    pub static ACTIVE_SESSIONS: Desc = Desc::critical(
        "active_sessions_count",
        "mcpscope_active_sessions",
        Gauge,
        &["server", "protocol"],
        "Sessions from initialize to their end; since 2026-07-28 distinct clients seen in the last 5 minutes \
         (critical metric active_sessions_count).",
    );

    /// Queued messages.
    pub static QUEUE_DEPTH: Desc = Desc::critical(
        "message_queue_depth",
        "mcpscope_message_queue_depth",
        Gauge,
        &["server", "direction"],
        "Messages accepted and not yet written on (critical metric message_queue_depth).",
    )
    .unlogged();

    /// Operations, as the OpenTelemetry conventions count them where they are received.
    pub static SERVER_OPERATIONS: Desc = Desc::new(
        "mcp_server_operation_duration_seconds",
        Histogram,
        OPERATION,
        "Requests of the client and notifications, as the server's side sees them \
         (OpenTelemetry: mcp.server.operation.duration).",
    )
    .bounds(&CONVENTIONS);

    /// Operations, as the OpenTelemetry conventions count them where they are sent.
    pub static CLIENT_OPERATIONS: Desc = Desc::new(
        "mcp_client_operation_duration_seconds",
        Histogram,
        OPERATION,
        "Requests of the server to its client, as the sender sees them \
         (OpenTelemetry: mcp.client.operation.duration).",
    )
    .bounds(&CONVENTIONS);

    /// Whole sessions.
    pub static SERVER_SESSIONS: Desc = Desc::new(
        "mcp_server_session_duration_seconds",
        Histogram,
        &["server", "mcp_protocol_version", "network_transport", "error_type"],
        "Sessions that have ended, from their initialize on (OpenTelemetry: mcp.server.session.duration).",
    )
    .bounds(&CONVENTIONS);

    /// What the proxy adds.
    pub static PROXY_OVERHEAD: Desc = Desc::new(
        "mcpscope_proxy_overhead_seconds",
        Histogram,
        &["server", "direction"],
        "Time that a message spends inside the proxy.",
    )
    .bounds(&OVERHEADS);

    /// Servers that were started again.
    pub static RESTARTS: Desc = Desc::new(
        "mcpscope_restarts_total",
        Counter,
        &["server"],
        "Times that a server was started again after a crash.",
    );

    /// Health by component.
    pub static HEALTH_STATE: Desc = Desc::new(
        "mcpscope_health_state",
        Gauge,
        &["component", "state"],
        "1 for the state that a component, or `overall`, is in, 0 for the others.",
    );

    /// Faults that are active.
    pub static CHAOS_ACTIVE: Desc = Desc::new(
        "mcpscope_chaos_experiments_active",
        Gauge,
        &["scenario"],
        "Chaos experiments whose fault is active now.",
    );

    /// Faults that began.
    pub static CHAOS_STARTED: Desc = Desc::new(
        "mcpscope_chaos_experiments_started_total",
        Counter,
        &["scenario"],
        "Chaos experiments whose fault began.",
    );

    /// Experiments that went well.
    pub static CHAOS_COMPLETED: Desc = Desc::new(
        "mcpscope_chaos_experiments_completed_total",
        Counter,
        &["scenario"],
        "Chaos experiments after whose fault the steady state returned in time.",
    );

    /// Experiments that did not.
    pub static CHAOS_FAILED: Desc = Desc::new(
        "mcpscope_chaos_experiments_failed_total",
        Counter,
        &["scenario"],
        "Chaos experiments after whose fault the steady state did not return in time, or whose fault could not be applied or removed.",
    );

    /// What faults did.
    pub static CHAOS_INJECTED: Desc = Desc::new(
        "mcpscope_chaos_faults_injected_total",
        Counter,
        &["scenario"],
        "Messages and connections that a fault was injected into.",
    );

    /// What was lost.
    pub static DROPPED: Desc = Desc::new(
        "mcpscope_dropped_total",
        Counter,
        &["what"],
        "What mcpscope itself had to drop or leave unobserved; the traffic was relayed all the same.",
    );

    /// How much of what is recorded by other names is kept.
    pub static SAMPLING_RATE: Desc = Desc::new(
        "mcpscope_sampling_rate",
        Gauge,
        &[],
        "Share of the records by names that are not critical which are kept: divide their counts and sums by it.",
    );

    /// The running version.
    pub static BUILD_INFO: Desc =
        Desc::new("mcpscope_build_info", Gauge, &["version"], "The version of mcpscope that is running; always 1.");

    /// Processor time of this process.
    pub static PROCESS_CPU: Desc =
        Desc::new("process_cpu_seconds_total", Counter, &[], "Total user and system CPU time spent in seconds.")
            .unit(Unit::Seconds);

    /// Resident memory of this process.
    pub static PROCESS_RESIDENT: Desc =
        Desc::new("process_resident_memory_bytes", Gauge, &[], "Resident memory size in bytes.").unit(Unit::Bytes);

    /// Virtual memory of this process.
    pub static PROCESS_VIRTUAL: Desc =
        Desc::new("process_virtual_memory_bytes", Gauge, &[], "Virtual memory size in bytes.").unit(Unit::Bytes);

    /// The start of this process.
    pub static PROCESS_START: Desc =
        Desc::new("process_start_time_seconds", Gauge, &[], "Start time of the process since unix epoch in seconds.")
            .unit(Unit::Seconds);

    /// Open files of this process.
    pub static PROCESS_OPEN_FDS: Desc = Desc::new("process_open_fds", Gauge, &[], "Number of open file descriptors.");

    /// How many files this process may open.
    pub static PROCESS_MAX_FDS: Desc =
        Desc::new("process_max_fds", Gauge, &[], "Maximum number of open file descriptors.");

    /// Threads of this process.
    pub static PROCESS_THREADS: Desc = Desc::new("process_threads", Gauge, &[], "Number of OS threads in the process.");
}
