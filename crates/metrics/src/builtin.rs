//! The families that are always there, each with its labels.

use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{Component, Direction, Protocol, Transport};

use crate::handle::{Counter, Gauge, Histogram};
use crate::metrics::Metrics;
use crate::schema::{Desc, desc};

/// What the OpenTelemetry MCP conventions tell apart of an operation. A text that does not apply is empty, which to
/// Prometheus is the same as no label.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// The MCP server's name.
    pub server: &'a str,
    /// The method of the request or notification.
    pub method: &'a str,
    /// The tool that is called.
    pub tool: Option<&'a str>,
    /// The prompt that is asked for.
    pub prompt: Option<&'a str>,
    /// What went wrong, as the side that the family stands for sees it.
    pub error_type: &'a str,
    /// The code of a JSON-RPC error, whoever's mistake it was.
    pub status_code: &'a str,
    /// The revision, where known.
    pub protocol: Option<Protocol>,
    /// How it travels.
    pub transport: Transport,
    /// Whether a fault had its hand in.
    pub injected: bool,
}

/// What a process takes of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Processor time since its start, of all threads.
    pub cpu: Duration,
    /// Memory that it has, in bytes.
    pub resident_bytes: u64,
    /// Addresses that it has, in bytes.
    pub virtual_bytes: u64,
    /// When it was started.
    pub started: SystemTime,
    /// Open file descriptors, where known.
    pub open_fds: Option<u64>,
    /// How many it may have, where known and limited.
    pub max_fds: Option<u64>,
    /// Threads, where known.
    pub threads: Option<u64>,
}

impl Metrics {
    /// Registry operations of a server; `operation` is one of [`mcpscope_core::Method::REGISTRY_OPERATIONS`].
    #[must_use]
    pub fn registry_operations(&self, server: &str, operation: &str) -> Counter {
        self.built_in_counter(&desc::REGISTRY_OPERATIONS, [("server", server), ("operation", operation)])
    }

    /// Durations of session creation.
    #[must_use]
    pub fn session_creation(&self, server: &str, protocol: Protocol) -> Histogram {
        self.built_in_histogram(&desc::SESSION_CREATION, [("server", server), ("protocol", protocol.as_str())])
    }

    /// Open connections and streams.
    #[must_use]
    pub fn transport_connections(&self, server: &str, transport: Transport) -> Gauge {
        self.built_in_gauge(&desc::TRANSPORT_CONNECTIONS, [("server", server), ("transport", transport.as_str())])
    }

    /// Durations of calls of one tool that had this outcome ([`mcpscope_core::Outcome::as_label`]).
    #[must_use]
    pub fn tool_calls(&self, server: &str, tool: &str, outcome: &str, injected: bool) -> Histogram {
        let labels = [("server", server), ("tool", tool), ("outcome", outcome), ("injected", flag(injected))];
        self.built_in_histogram(&desc::TOOL_CALLS, labels)
    }

    /// Operations of a component. Not among the raw records: there are several for every message.
    #[must_use]
    pub fn component_operations(&self, component: Component, injected: bool) -> Counter {
        let labels = [("component", component.as_str()), ("injected", flag(injected))];
        self.built_in_counter(&desc::COMPONENT_OPERATIONS, labels)
    }

    /// Errors of a component; `error_type` as of [`mcpscope_core::ErrorType::as_label`].
    #[must_use]
    pub fn component_errors(&self, component: Component, error_type: &str, injected: bool) -> Counter {
        let labels = [("component", component.as_str()), ("error_type", error_type), ("injected", flag(injected))];
        self.built_in_counter(&desc::COMPONENT_ERRORS, labels)
    }

    /// Sessions that are open.
    #[must_use]
    pub fn active_sessions(&self, server: &str, protocol: Protocol) -> Gauge {
        self.built_in_gauge(&desc::ACTIVE_SESSIONS, [("server", server), ("protocol", protocol.as_str())])
    }

    /// Messages accepted and not yet written on. Not among the raw records: it changes twice with every message.
    #[must_use]
    pub fn queue_depth(&self, server: &str, direction: Direction) -> Gauge {
        self.built_in_gauge(&desc::QUEUE_DEPTH, [("server", server), ("direction", direction.as_str())])
    }

    /// Durations of requests of the client, and its notifications, as the server's side sees them.
    #[must_use]
    pub fn server_operations(&self, operation: &Operation<'_>) -> Histogram {
        self.operations(&desc::SERVER_OPERATIONS, operation)
    }

    /// Durations of requests of the server to its client, and its notifications, as the sender sees them.
    #[must_use]
    pub fn client_operations(&self, operation: &Operation<'_>) -> Histogram {
        self.operations(&desc::CLIENT_OPERATIONS, operation)
    }

    fn operations(&self, desc: &Desc, operation: &Operation<'_>) -> Histogram {
        let Operation { server, method, tool, prompt, error_type, status_code, protocol, transport, injected } =
            operation;
        let labels = [
            ("server", *server),
            ("mcp_method_name", *method),
            ("gen_ai_operation_name", if *method == "tools/call" { "execute_tool" } else { "" }),
            ("gen_ai_tool_name", tool.unwrap_or_default()),
            ("gen_ai_prompt_name", prompt.unwrap_or_default()),
            ("error_type", *error_type),
            ("rpc_response_status_code", *status_code),
            ("mcp_protocol_version", protocol.map_or("", Protocol::as_str)),
            ("network_transport", transport.network()),
            ("injected", flag(*injected)),
        ];
        self.built_in_histogram(desc, labels)
    }

    /// Durations of sessions that have ended; `error_type` is empty for those that ended well.
    #[must_use]
    pub fn server_sessions(
        &self,
        server: &str,
        protocol: Protocol,
        transport: Transport,
        error_type: &str,
    ) -> Histogram {
        let labels = [
            ("server", server),
            ("mcp_protocol_version", protocol.as_str()),
            ("network_transport", transport.network()),
            ("error_type", error_type),
        ];
        self.built_in_histogram(&desc::SERVER_SESSIONS, labels)
    }

    /// Time that messages of a server spend inside the proxy.
    #[must_use]
    pub fn proxy_overhead(&self, server: &str, direction: Direction) -> Histogram {
        self.built_in_histogram(&desc::PROXY_OVERHEAD, [("server", server), ("direction", direction.as_str())])
    }

    /// Times that a server was started again after a crash.
    #[must_use]
    pub fn restarts(&self, server: &str) -> Counter {
        self.built_in_counter(&desc::RESTARTS, [("server", server)])
    }

    /// Whether a component is in a state: 1 or 0.
    #[must_use]
    pub fn health_state(&self, component: &str, state: &str) -> Gauge {
        self.built_in_gauge(&desc::HEALTH_STATE, [("component", component), ("state", state)])
    }

    /// Experiments with this scenario whose fault is active.
    #[must_use]
    pub fn chaos_active(&self, scenario: &str) -> Gauge {
        self.built_in_gauge(&desc::CHAOS_ACTIVE, [("scenario", scenario)])
    }

    /// Experiments with this scenario whose fault began.
    #[must_use]
    pub fn chaos_started(&self, scenario: &str) -> Counter {
        self.built_in_counter(&desc::CHAOS_STARTED, [("scenario", scenario)])
    }

    /// Experiments with this scenario after which the steady state returned in time.
    #[must_use]
    pub fn chaos_completed(&self, scenario: &str) -> Counter {
        self.built_in_counter(&desc::CHAOS_COMPLETED, [("scenario", scenario)])
    }

    /// Experiments with this scenario after which it did not, or whose fault could not be applied or removed.
    #[must_use]
    pub fn chaos_failed(&self, scenario: &str) -> Counter {
        self.built_in_counter(&desc::CHAOS_FAILED, [("scenario", scenario)])
    }

    /// Messages and connections that this scenario did something to.
    #[must_use]
    pub fn chaos_injected(&self, scenario: &str) -> Counter {
        self.built_in_counter(&desc::CHAOS_INJECTED, [("scenario", scenario)])
    }

    /// What was dropped or left unobserved.
    #[must_use]
    pub fn dropped(&self, what: &str) -> Counter {
        self.built_in_counter(&desc::DROPPED, [("what", what)])
    }

    /// Shows what this process takes, by the names that Prometheus' own client libraries use. The one who reads it calls
    /// this now and then; what is not known is not shown.
    pub fn set_process(&self, process: &Process, at: Instant) {
        let cpu = self.built_in_counter(&desc::PROCESS_CPU, []);
        let cpu_ns = u64::try_from(process.cpu.as_nanos()).unwrap_or(u64::MAX);
        cpu.add(cpu_ns.saturating_sub(cpu.total()), at);
        let started = process.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let levels = [
            (&desc::PROCESS_RESIDENT, Some(process.resident_bytes as f64)),
            (&desc::PROCESS_VIRTUAL, Some(process.virtual_bytes as f64)),
            (&desc::PROCESS_START, Some(started.as_secs_f64())),
            (&desc::PROCESS_OPEN_FDS, process.open_fds.map(|n| n as f64)),
            (&desc::PROCESS_MAX_FDS, process.max_fds.map(|n| n as f64)),
            (&desc::PROCESS_THREADS, process.threads.map(|n| n as f64)),
        ];
        for (desc, level) in levels {
            if let Some(level) = level {
                self.built_in_gauge(desc, []).set(level, at);
            }
        }
    }
}

const fn flag(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}
