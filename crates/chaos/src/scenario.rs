//! The scenarios: their names, what they are for, and where they mean something.

use std::fmt;
use std::time::Duration;

use mcpscope_core::{Direction, Era, Transport};

use crate::message::MessageKind;
use crate::parameter::ParameterError;

/// What can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scenario {
    /// Messages arrive later.
    LatencyInjection,
    /// Connections carry nothing.
    NetworkPartition,
    /// Messages never arrive.
    PacketLoss,
    /// A process is killed.
    ProcessCrash,
    /// Memory is taken.
    MemoryPressure,
    /// Processors are kept busy.
    CpuOverload,
    /// An answer is withheld until the end of the fault.
    Hang,
    /// The server never sees a request.
    LostRequest,
    /// The server does what was asked, and the client never learns of it.
    LostResponse,
    /// An answer has an id that nobody waits for.
    WrongId,
    /// An answer arrives twice.
    DuplicateResponse,
    /// An answer arrives only after its call was cancelled.
    LateResponseAfterCancel,
    /// A JSON-RPC error in place of the server's answer.
    RpcError,
    /// A tool result with `isError: true` in place of the server's answer.
    ToolError,
    /// A tool's structured result does not follow its schema.
    SchemaViolation,
    /// An answer that is no JSON.
    MalformedJson,
    /// An answer that is cut.
    Truncated,
    /// A line on the server's standard output that is no message.
    StdoutNoise,
    /// An answer that is larger than anybody expects.
    Oversize,
    /// An answer that takes its time byte by byte.
    SlowStream,
    /// A stream ends in the middle.
    StreamBreak,
    /// A session that the server does not know any more.
    StaleSession,
    /// The list of tools is not the one of before.
    ToolsListFlap,
    /// The server asks for input again and again.
    InputRequiredLoop,
    /// HTTP headers contradict the body.
    HeaderMismatch,
    /// The protocol revision is refused.
    VersionReject,
    /// An HTTP status in place of an answer.
    HttpStatus,
}

/// How much an experiment can hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Impact {
    /// Hardly.
    Low,
    /// Noticeably.
    Medium,
    /// Calls fail.
    High,
}

impl Impact {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::High];

    /// `low`, `medium` or `high`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Where and how often a scenario is chosen unless the plan says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// The chance to be started when the scheduler has chosen it.
    pub probability: f64,
    /// How much it can hurt.
    pub impact: Impact,
    /// Within which time everything is to be well again after its end.
    pub recovery_time: Duration,
    /// Whether the scheduler may choose it.
    pub enabled: bool,
    /// How long it lasts.
    pub duration: Duration,
}

/// Where a fault means something, and which messages it is decided on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    pub(crate) places: &'static [Place],
    /// None: any.
    pub(crate) direction: Option<Direction>,
    pub(crate) kinds: &'static [MessageKind],
    /// Of the request or of the one that is answered; empty: any.
    pub(crate) methods: &'static [&'static str],
}

pub(crate) type Place = (Transport, Era);

const STDIO_LEGACY: Place = (Transport::Stdio, Era::Legacy);
const STDIO_MODERN: Place = (Transport::Stdio, Era::Modern);
const HTTP_LEGACY: Place = (Transport::Http, Era::Legacy);
const HTTP_MODERN: Place = (Transport::Http, Era::Modern);
pub(crate) const ANYWHERE: &[Place] = &[STDIO_LEGACY, STDIO_MODERN, HTTP_LEGACY, HTTP_MODERN];
const STDIO: &[Place] = &[STDIO_LEGACY, STDIO_MODERN];
const HTTP: &[Place] = &[HTTP_LEGACY, HTTP_MODERN];
const MODERN: &[Place] = &[STDIO_MODERN, HTTP_MODERN];
/// Over HTTP since 2026-07-28 a cancelled call has no stream left on which an answer could arrive late.
const LATE: &[Place] = &[STDIO_LEGACY, STDIO_MODERN, HTTP_LEGACY];

const fn reach(
    places: &'static [Place],
    direction: Option<Direction>,
    kinds: &'static [MessageKind],
    methods: &'static [&'static str],
) -> Reach {
    Reach { places, direction, kinds, methods }
}

const ANY_KIND: &[MessageKind] = &MessageKind::ALL;
const REQUESTS: &[MessageKind] = &[MessageKind::Request];
const RESPONSES: &[MessageKind] = &[MessageKind::Response];
const TO_SERVER: Option<Direction> = Some(Direction::ToServer);
const TO_CLIENT: Option<Direction> = Some(Direction::ToClient);
const TOOL_CALLS: &[&str] = &["tools/call"];

impl Scenario {
    /// All of them: first those of the scheduler, then the faults of the protocol.
    pub const ALL: [Self; 27] = [
        Self::LatencyInjection,
        Self::NetworkPartition,
        Self::PacketLoss,
        Self::ProcessCrash,
        Self::MemoryPressure,
        Self::CpuOverload,
        Self::Hang,
        Self::LostRequest,
        Self::LostResponse,
        Self::WrongId,
        Self::DuplicateResponse,
        Self::LateResponseAfterCancel,
        Self::RpcError,
        Self::ToolError,
        Self::SchemaViolation,
        Self::MalformedJson,
        Self::Truncated,
        Self::StdoutNoise,
        Self::Oversize,
        Self::SlowStream,
        Self::StreamBreak,
        Self::StaleSession,
        Self::ToolsListFlap,
        Self::InputRequiredLoop,
        Self::HeaderMismatch,
        Self::VersionReject,
        Self::HttpStatus,
    ];

    /// Those that a plan has from the start, in the order in which the scheduler numbers them.
    pub const SCHEDULED: [Self; 6] = [
        Self::NetworkPartition,
        Self::ProcessCrash,
        Self::MemoryPressure,
        Self::CpuOverload,
        Self::LatencyInjection,
        Self::PacketLoss,
    ];

    /// The name in configuration, commands and APIs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LatencyInjection => "latency_injection",
            Self::NetworkPartition => "network_partition",
            Self::PacketLoss => "packet_loss",
            Self::ProcessCrash => "process_crash",
            Self::MemoryPressure => "memory_pressure",
            Self::CpuOverload => "cpu_overload",
            Self::Hang => "hang",
            Self::LostRequest => "lost_request",
            Self::LostResponse => "lost_response",
            Self::WrongId => "wrong_id",
            Self::DuplicateResponse => "duplicate_response",
            Self::LateResponseAfterCancel => "late_response_after_cancel",
            Self::RpcError => "rpc_error",
            Self::ToolError => "tool_error",
            Self::SchemaViolation => "schema_violation",
            Self::MalformedJson => "malformed_json",
            Self::Truncated => "truncated",
            Self::StdoutNoise => "stdout_noise",
            Self::Oversize => "oversize",
            Self::SlowStream => "slow_stream",
            Self::StreamBreak => "stream_break",
            Self::StaleSession => "stale_session",
            Self::ToolsListFlap => "tools_list_flap",
            Self::InputRequiredLoop => "input_required_loop",
            Self::HeaderMismatch => "header_mismatch",
            Self::VersionReject => "version_reject",
            Self::HttpStatus => "http_status",
        }
    }

    /// What it does, in one sentence without a full stop.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::LatencyInjection => "Inject random network latency",
            Self::NetworkPartition => "Simulate network partition between nodes",
            Self::PacketLoss => "Simulate network packet loss",
            Self::ProcessCrash => "Inject random non-critical process crashes",
            Self::MemoryPressure => "Simulate memory pressure scenarios",
            Self::CpuOverload => "Simulate CPU overload conditions",
            Self::Hang => "Forward requests and withhold their answers",
            Self::LostRequest => "Lose requests before the server sees them",
            Self::LostResponse => "Lose answers after the server has done its work",
            Self::WrongId => "Give answers an id that nobody waits for",
            Self::DuplicateResponse => "Deliver answers twice",
            Self::LateResponseAfterCancel => "Deliver answers only after their call was cancelled",
            Self::RpcError => "Answer requests with a JSON-RPC error",
            Self::ToolError => "Answer tool calls with a failed result",
            Self::SchemaViolation => "Make structured results break their schema",
            Self::MalformedJson => "Make answers invalid JSON",
            Self::Truncated => "Cut answers short",
            Self::StdoutNoise => "Write a line that is no message before answers",
            Self::Oversize => "Make answers very large",
            Self::SlowStream => "Deliver answers slowly, byte by byte",
            Self::StreamBreak => "End the stream that an answer is on",
            Self::StaleSession => "Answer with 404 as if the session were unknown",
            Self::ToolsListFlap => "Change the list of tools",
            Self::InputRequiredLoop => "Ask for input instead of answering",
            Self::HeaderMismatch => "Make HTTP headers contradict the body",
            Self::VersionReject => "Refuse the protocol revision",
            Self::HttpStatus => "Answer requests with an HTTP status",
        }
    }

    /// What applies unless a plan or an experiment says otherwise.
    #[must_use]
    pub const fn defaults(self) -> Defaults {
        let (probability, impact, recovery, enabled, duration) = match self {
            Self::NetworkPartition => (0.10, Impact::High, 30, true, 30),
            Self::ProcessCrash => (0.05, Impact::High, 5, true, 10),
            Self::MemoryPressure => (0.02, Impact::Medium, 15, true, 15),
            Self::CpuOverload => (0.01, Impact::Medium, 10, true, 10),
            Self::LatencyInjection => (0.15, Impact::Low, 1, true, 10),
            Self::PacketLoss => (0.0, Impact::Medium, 2, false, 10),
            Self::DuplicateResponse | Self::StdoutNoise | Self::SlowStream | Self::ToolsListFlap => {
                (0.0, Impact::Low, 1, false, 10)
            }
            Self::Hang | Self::StreamBreak | Self::StaleSession => (0.0, Impact::High, 5, false, 10),
            _ => (0.0, Impact::Medium, 2, false, 10),
        };
        let (recovery_time, duration) = (Duration::from_secs(recovery), Duration::from_secs(duration));
        Defaults { probability, impact, recovery_time, enabled, duration }
    }

    /// Whether it is done by a [`ChaosTarget`](crate::ChaosTarget) and not to messages.
    #[must_use]
    pub const fn is_out_of_process(self) -> bool {
        matches!(self, Self::ProcessCrash | Self::MemoryPressure | Self::CpuOverload)
    }

    /// Whether the kernel can do it to packets, where it is asked for so (`backend=netem`).
    pub(crate) const fn has_netem(self) -> bool {
        matches!(self, Self::LatencyInjection | Self::PacketLoss)
    }

    /// Where it means something, as people read it: `stdio`, `HTTP up to 2025-11-25` and so on.
    #[must_use]
    pub fn meaningful(self) -> String {
        places(self.reach().places)
    }

    /// Whether it means something over this transport in a revision of this era.
    #[must_use]
    pub fn means_something(self, transport: Transport, era: Era) -> bool {
        self.reach().places.contains(&(transport, era))
    }

    /// Whether it can be done only in the direction that it is about.
    pub(crate) const fn is_one_way(self) -> bool {
        matches!(
            self,
            Self::ToolError
                | Self::SchemaViolation
                | Self::StdoutNoise
                | Self::StreamBreak
                | Self::StaleSession
                | Self::ToolsListFlap
                | Self::InputRequiredLoop
                | Self::HeaderMismatch
                | Self::VersionReject
                | Self::HttpStatus
        )
    }

    /// The same over HTTP, where what a client posts comes once, and what a server asks has no place for an answer of ours.
    pub(crate) const fn is_one_way_over_http(self) -> bool {
        self.is_one_way() || matches!(self, Self::RpcError | Self::DuplicateResponse)
    }

    pub(crate) const fn reach(self) -> Reach {
        match self {
            Self::LatencyInjection
            | Self::NetworkPartition
            | Self::PacketLoss
            | Self::ProcessCrash
            | Self::MemoryPressure
            | Self::CpuOverload => reach(ANYWHERE, None, ANY_KIND, &[]),
            Self::LostRequest | Self::RpcError => reach(ANYWHERE, TO_SERVER, REQUESTS, &[]),
            Self::ToolError => reach(ANYWHERE, TO_SERVER, REQUESTS, TOOL_CALLS),
            Self::Hang
            | Self::LostResponse
            | Self::WrongId
            | Self::DuplicateResponse
            | Self::MalformedJson
            | Self::Truncated
            | Self::Oversize
            | Self::SlowStream => reach(ANYWHERE, TO_CLIENT, RESPONSES, &[]),
            Self::LateResponseAfterCancel => reach(LATE, TO_CLIENT, RESPONSES, &[]),
            Self::SchemaViolation => reach(ANYWHERE, TO_CLIENT, RESPONSES, TOOL_CALLS),
            Self::StdoutNoise => reach(STDIO, TO_CLIENT, ANY_KIND, &[]),
            Self::StreamBreak => reach(HTTP, TO_CLIENT, ANY_KIND, &[]),
            Self::StaleSession => reach(&[HTTP_LEGACY], TO_SERVER, ANY_KIND, &[]),
            Self::ToolsListFlap => reach(ANYWHERE, TO_CLIENT, RESPONSES, &["tools/list"]),
            Self::InputRequiredLoop => {
                reach(MODERN, TO_SERVER, REQUESTS, &["tools/call", "prompts/get", "resources/read"])
            }
            Self::HeaderMismatch => reach(&[HTTP_MODERN], TO_SERVER, REQUESTS, &[]),
            Self::VersionReject => reach(ANYWHERE, TO_SERVER, REQUESTS, &[]),
            Self::HttpStatus => reach(HTTP, TO_SERVER, REQUESTS, &[]),
        }
    }
}

pub(crate) fn places(places: &[Place]) -> String {
    let named = [(Transport::Stdio, "stdio"), (Transport::Http, "HTTP")].into_iter().filter_map(|(transport, name)| {
        let has = |era| places.contains(&(transport, era));
        match (has(Era::Legacy), has(Era::Modern)) {
            (true, true) => Some(name.to_owned()),
            (true, false) => Some(format!("{name} up to 2025-11-25")),
            (false, true) => Some(format!("{name} since 2026-07-28")),
            (false, false) => None,
        }
    });
    named.collect::<Vec<_>>().join(" and ")
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Scenario {
    type Err = ParameterError;

    fn from_str(name: &str) -> Result<Self, ParameterError> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.as_str() == name)
            .ok_or_else(|| ParameterError::UnknownScenario { name: crate::parameter::excerpt(name) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_found_by_its_name_and_means_something_somewhere() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.as_str().parse(), Ok(scenario));
            assert!(!scenario.meaningful().is_empty() && !scenario.description().ends_with('.'));
            assert!(scenario.defaults().duration >= Duration::from_secs(1));
        }
    }

    #[test]
    fn a_fault_of_one_era_says_so() {
        assert_eq!(Scenario::StaleSession.meaningful(), "HTTP up to 2025-11-25");
        assert_eq!(Scenario::LateResponseAfterCancel.meaningful(), "stdio and HTTP up to 2025-11-25");
        assert_eq!(Scenario::InputRequiredLoop.meaningful(), "stdio since 2026-07-28 and HTTP since 2026-07-28");
        assert!(!Scenario::HttpStatus.means_something(Transport::Stdio, Era::Legacy));
    }

    #[test]
    fn an_unknown_one_is_told_which_there_are() {
        let message = "latency".parse::<Scenario>().unwrap_err().to_string();
        assert!(message.contains("latency_injection") && message.contains("http_status"), "{message}");
    }
}
