//! Which parameters each scenario has.

use std::borrow::Cow;

use crate::parameter::{Kind, Parameter};
use crate::plan::Plan;
use crate::{MessageKind, Scenario};

const HOUR_MS: u64 = 60 * 60 * 1000;
/// No experiment may last longer, whatever a plan says.
pub(crate) const LONGEST_MS: u64 = 10 * 60 * 1000;
const DELAY: Kind = Kind::Duration { least_ms: 0, most_ms: LONGEST_MS };
const COUNT: Kind = Kind::Whole { least: 1, most: 1_000_000_000 };
const DIRECTION: Kind = Kind::Choice(&["to_server", "to_client", "both"]);

const fn parameter(name: &'static str, kind: Kind, default: Option<&'static str>, about: &'static str) -> Parameter {
    Parameter { name, kind, default, about }
}

/// Those that every experiment has.
const COMMON: &[Parameter] = &[
    parameter("duration", Kind::Duration { least_ms: 1, most_ms: LONGEST_MS }, None, "How long the fault lasts"),
    parameter(
        "recovery_time",
        Kind::Duration { least_ms: 1, most_ms: HOUR_MS },
        None,
        "Within which time after the end everything is to be well",
    ),
    parameter(
        "steady_state",
        Kind::Text,
        None,
        "What is to hold before and after, such as error_rate < 0.05, p95 < 500",
    ),
    parameter("abort_when", Kind::Text, None, "What ends the fault early, such as error_rate > 0.5"),
    parameter("seed", Kind::Whole { least: 0, most: i64::MAX }, None, "What the decisions are drawn from"),
];

/// Where the faults of connections and messages apply.
const PLACE: &[Parameter] = &[
    parameter("server", Kind::Text, None, "Only servers of this name; * stands for anything"),
    parameter("transport", Kind::Choice(&["stdio", "http"]), None, "Only over this transport"),
    parameter("direction", DIRECTION, None, "Only messages that travel this way"),
    parameter("session", Kind::Text, None, "Only this session; * stands for anything"),
    parameter("control", Kind::Share, Some("0"), "Share of the connections that is left untouched"),
];

/// Which messages.
const MESSAGES: &[Parameter] = &[
    parameter("method", Kind::Text, None, "Only this method, or answers to it; * stands for anything"),
    parameter("tool", Kind::Text, None, "Only calls of this tool, or answers to them; * stands for anything"),
    parameter("nth", COUNT, None, "Only the so-many-th that matches"),
    parameter("every", COUNT, None, "Only every so-many-th that matches"),
    parameter("after", COUNT, None, "Only after so many that match"),
    parameter("max_hits", COUNT, None, "At most so many"),
];

const HEAL: Parameter =
    parameter("heal", Kind::Choice(&["deliver", "drop"]), Some("deliver"), "What becomes of held messages at the end");
const KIND: Parameter = parameter(
    "kind",
    Kind::Choice(&["request", "response", "notification", "any"]),
    Some("any"),
    "Only messages of this kind",
);
const PROBABILITY: Parameter =
    parameter("probability", Kind::Share, Some("1"), "The chance that a message that matches is hit");

/// The faults whose messages are chosen by kind, method and chance.
const CHOSEN: &[Parameter] = &[PROBABILITY];

/// Who does it.
const BACKEND: Parameter = parameter(
    "backend",
    Kind::Choice(&["message", "netem"]),
    Some("message"),
    "To what it is done: to whole messages, or by the kernel to packets of connections to HTTP servers",
);

const LATENCY: &[Parameter] = &[
    KIND,
    parameter("intensity", Kind::Share, Some("1"), "Share of the messages"),
    parameter(
        "distribution",
        Kind::Choice(&["uniform", "constant", "normal", "lognormal", "pareto", "exponential"]),
        Some("uniform"),
        "How the delays are distributed",
    ),
    parameter("min", DELAY, Some("0ms"), "The shortest delay (uniform)"),
    parameter("max", DELAY, Some("1s"), "The longest delay (uniform)"),
    parameter("delay", DELAY, Some("100ms"), "The delay (constant)"),
    parameter("mean", DELAY, Some("100ms"), "The mean delay (normal, lognormal, exponential)"),
    parameter("stddev", DELAY, Some("20ms"), "The standard deviation (normal, lognormal)"),
    parameter("scale", DELAY, Some("50ms"), "The shortest delay (pareto)"),
    parameter(
        "shape",
        Kind::Number { least: 0.1, most: 100.0 },
        Some("2"),
        "The larger, the rarer long delays are (pareto)",
    ),
    parameter(
        "order",
        Kind::Choice(&["preserve", "independent"]),
        Some("preserve"),
        "Whether what follows a delayed message stays behind it",
    ),
    HEAL,
    BACKEND,
];

const PARTITION: &[Parameter] = &[
    parameter("intensity", Kind::Share, Some("0.5"), "Share of the connections, rounded up"),
    parameter(
        "mode",
        Kind::Choice(&["silent", "refuse_new", "reset", "half_open"]),
        Some("silent"),
        "What becomes of the connections",
    ),
    HEAL,
];

const LOSS: &[Parameter] = &[
    parameter("intensity", Kind::Share, Some("0.3"), "Share of the messages, or of the packets"),
    parameter(
        "model",
        Kind::Choice(&["bernoulli", "gilbert_elliott"]),
        Some("bernoulli"),
        "Whether losses come in bursts",
    ),
    parameter(
        "burst",
        Kind::Number { least: 1.0, most: 1000.0 },
        Some("5"),
        "Mean length of a burst, in messages or packets (gilbert_elliott)",
    ),
    parameter("what", Kind::Choice(&["request", "response", "notification", "any"]), Some("any"), "Which messages"),
    BACKEND,
];

const CRASH: &[Parameter] = &[
    parameter(
        "signal",
        Kind::Choice(&["kill", "term", "stop", "close_stdin"]),
        Some("kill"),
        "How the process is ended",
    ),
    parameter("target_processes", Kind::Text, None, "Only the process of this server or component"),
    parameter("crash_rate", Kind::Share, None, "The chance of each target to be killed, every second"),
];

/// In whose control group resources are taken.
const CGROUP: Parameter = parameter(
    "cgroup",
    Kind::Choice(&["own", "target"]),
    Some("own"),
    "Whose control group it counts against: mcpscope's, or that of a server that mcpscope starts",
);
const VICTIM: Parameter =
    parameter("target_processes", Kind::Text, None, "The control group of this server or component (cgroup=target)");

const MEMORY: &[Parameter] = &[
    parameter("size", Kind::Size { least: 1, most: 1 << 40 }, Some("100MiB"), "How much memory is taken"),
    parameter("share", Kind::Share, None, "How much memory is taken, as a share of the limit"),
    CGROUP,
    VICTIM,
];

const CPU: &[Parameter] = &[
    parameter("intensity", Kind::Share, Some("0.8"), "Share of the time that each core is busy"),
    parameter("cores", Kind::Whole { least: 1, most: 4096 }, None, "How many cores; all unless given"),
    CGROUP,
    VICTIM,
];

const RPC_ERROR: &[Parameter] = &[
    parameter(
        "code",
        Kind::Whole { least: -999_999_999, most: 999_999_999 },
        Some("-31000"),
        "The error's code, outside the reserved ones unless chosen",
    ),
    parameter("message", Kind::Text, Some("injected by mcpscope"), "The error's message"),
];
const TOOL_ERROR: &[Parameter] = &[parameter("message", Kind::Text, Some("injected by mcpscope"), "The result's text")];
const TRUNCATED: &[Parameter] =
    &[parameter("keep", Kind::Share, Some("0.5"), "Share of the bytes that is left, less than 1")];
const OVERSIZE: &[Parameter] =
    &[parameter("bytes", Kind::Size { least: 1, most: 64 << 20 }, Some("8MiB"), "Size of the whole message")];
const SLOW: &[Parameter] = &[parameter(
    "bytes_per_second",
    Kind::Whole { least: 1, most: 1 << 30 },
    Some("1024"),
    "How much of the message arrives each second",
)];
const TOOLS_LIST: &[Parameter] =
    &[parameter("change", Kind::Choice(&["drop", "rename", "reorder"]), Some("drop"), "What is different in the list")];
const STATUS: &[Parameter] = &[
    parameter("status", Kind::Whole { least: 400, most: 599 }, Some("503"), "The status"),
    parameter("retry_after", Kind::Duration { least_ms: 0, most_ms: HOUR_MS }, None, "The field Retry-After"),
];

/// The parameters of this scenario, in the order in which they are listed.
pub(crate) fn of(scenario: Scenario) -> impl Iterator<Item = &'static Parameter> {
    let own = match scenario {
        Scenario::LatencyInjection => LATENCY,
        Scenario::NetworkPartition => PARTITION,
        Scenario::PacketLoss => LOSS,
        Scenario::ProcessCrash => CRASH,
        Scenario::MemoryPressure => MEMORY,
        Scenario::CpuOverload => CPU,
        Scenario::RpcError => RPC_ERROR,
        Scenario::ToolError => TOOL_ERROR,
        Scenario::Truncated => TRUNCATED,
        Scenario::Oversize => OVERSIZE,
        Scenario::SlowStream => SLOW,
        Scenario::ToolsListFlap => TOOLS_LIST,
        Scenario::HttpStatus => STATUS,
        _ => &[],
    };
    let (place, messages, chosen) = match scenario {
        scenario if scenario.is_out_of_process() => (&[][..], &[][..], &[][..]),
        Scenario::NetworkPartition => (PLACE, &[][..], &[][..]),
        Scenario::LatencyInjection | Scenario::PacketLoss => (PLACE, MESSAGES, &[][..]),
        _ => (PLACE, MESSAGES, CHOSEN),
    };
    [own, COMMON, place, messages, chosen].into_iter().flatten()
}

impl Scenario {
    /// The parameters that it has.
    pub fn parameters(self) -> impl Iterator<Item = &'static Parameter> {
        of(self)
    }

    /// What one of its parameters is unless an experiment or the plan says otherwise; none: it is left out.
    #[must_use]
    pub fn default_of(self, parameter: &Parameter) -> Option<Cow<'static, str>> {
        let time = |time| Some(humantime::format_duration(time).to_string().into());
        let own = match parameter.name {
            "duration" => time(self.defaults().duration),
            "recovery_time" => time(self.defaults().recovery_time),
            "steady_state" => {
                let checks = Plan::default().steady_state;
                Some(checks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ").into())
            }
            "direction" => Some(self.reach().direction.map_or("both", |direction| direction.as_str()).into()),
            "method" => match self.reach().methods {
                [only] => Some((*only).into()),
                _ => None,
            },
            _ => None,
        };
        parameter.default.map(Cow::from).or(own)
    }
}

/// The kind of this name; none for `any`.
pub(crate) fn message_kind(name: &str) -> Option<MessageKind> {
    MessageKind::ALL.into_iter().find(|kind| kind.as_str() == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mcpscope_core::Direction;

    use super::*;
    use crate::Request;

    #[test]
    fn a_scenario_has_each_parameter_once() {
        for scenario in Scenario::ALL {
            let names: Vec<_> = scenario.parameters().map(|parameter| parameter.name).collect();
            let once: BTreeSet<_> = names.iter().collect();
            assert_eq!(names.len(), once.len(), "{scenario}: {names:?}");
        }
    }

    #[test]
    fn the_defaults_that_are_told_are_those_that_hold() {
        let told = |scenario: Scenario, name: &str| {
            let parameter = scenario.parameters().find(|parameter| parameter.name == name)?;
            scenario.default_of(parameter).map(Cow::into_owned)
        };
        for (scenario, name, expected) in [
            (Scenario::LatencyInjection, "duration", Some("10s")),
            (Scenario::NetworkPartition, "recovery_time", Some("30s")),
            (Scenario::ProcessCrash, "steady_state", Some("error_rate < 0.05")),
            (Scenario::Hang, "direction", Some("to_client")),
            (Scenario::LatencyInjection, "direction", Some("both")),
            (Scenario::ToolError, "method", Some("tools/call")),
            (Scenario::Hang, "method", None),
            (Scenario::Hang, "seed", None),
        ] {
            assert_eq!(told(scenario, name).as_deref(), expected, "{scenario} {name}");
        }
        // Who gives them gets what who gives none has.
        for scenario in Scenario::ALL {
            let given = scenario.parameters().filter_map(|one| Some((one.name, scenario.default_of(one)?)));
            let common = ["duration", "recovery_time", "steady_state", "direction", "method"];
            let request = given
                .filter(|(name, _)| common.contains(name))
                .fold(Request::new(scenario.as_str()), |request, (name, value)| request.with(name, value.into_owned()));
            let [given, none] =
                [request, Request::new(scenario.as_str())].map(|request| Plan::default().experiment(&request).unwrap());
            assert_eq!((given.duration, given.recovery_time), (none.duration, none.recovery_time), "{scenario}");
            assert_eq!(given.steady_state.as_deref(), Some(&*Plan::default().steady_state), "{scenario}");
            for direction in [Direction::ToServer, Direction::ToClient] {
                let [given, none] = [&given, &none].map(|one| one.matcher.takes_direction(direction));
                assert_eq!(given, none, "{scenario} {direction:?}");
            }
        }
    }
}
