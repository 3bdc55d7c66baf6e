//! `chaos.proto`.

mod report;

use mcpscope_hub::chaos::{
    Cause, ChaosStatus, Details, Divergence, Event, ExpectedHits, Happened, HitRecord, Mode, Outlook, Parameters,
    Request, StartedBy, Status, Test,
};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::Invalid;
use crate::proto::chaos_event::What;
use crate::proto::{self, ChaosCauseKind, ChaosMode, ChaosStartedBy, ChaosTestStatus};

/// Most experiments that can be asked for at once.
const MAX_TESTS: usize = 1000;
/// Up to this, a double holds every whole number.
const WHOLE: u64 = 1 << 53;

/// What is asked for. Its values are checked where it is carried out.
pub(crate) fn request(scenario: String, parameters: Option<Struct>) -> Request {
    let parameters = parameters.unwrap_or_default().fields;
    let parameters = parameters.into_iter().map(|(name, value)| (name, from_value(value)));
    Request { scenario, parameters: Parameters(parameters.collect()) }
}

/// How many experiments are asked for.
///
/// # Errors
/// None, or too many.
pub(crate) fn tests(limit: Option<u32>, default: usize) -> Result<usize, Invalid> {
    match limit.map(|limit| limit as usize) {
        None => Ok(default),
        Some(limit @ 1..=MAX_TESTS) => Ok(limit),
        Some(wrong) => Err(Invalid::new("limit", format!("1 to {MAX_TESTS}"), wrong.to_string())),
    }
}

/// A value from the wire. No parameter is a list or an object, so that what is in them does not matter.
fn from_value(value: Value) -> serde_json::Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() <= WHOLE as f64 => (value as i64).into(),
        Some(Kind::NumberValue(value)) if value.is_finite() => value.into(),
        Some(Kind::NumberValue(value)) => value.to_string().into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::ListValue(_)) => serde_json::Value::Array(Vec::new()),
        Some(Kind::StructValue(_)) => serde_json::Value::Object(serde_json::Map::new()),
    }
}

fn to_value(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(number) => {
            let is_held = |whole: i64| whole.unsigned_abs() <= WHOLE;
            match number.as_f64().filter(|_| number.is_f64() || number.as_i64().is_some_and(is_held)) {
                Some(value) => Kind::NumberValue(value),
                None => Kind::StringValue(number.to_string()),
            }
        }
        serde_json::Value::String(value) => Kind::StringValue(value.clone()),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(to_value).collect() })
        }
        serde_json::Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), to_value(value)));
            Kind::StructValue(Struct { fields: fields.collect() })
        }
    };
    Value { kind: Some(kind) }
}

fn parameters(parameters: &Parameters) -> Option<Struct> {
    let fields = parameters.0.iter().map(|(name, value)| (name.clone(), to_value(value)));
    Some(Struct { fields: fields.collect() })
}

/// A time of the engine, which is never before the epoch.
fn time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl From<Mode> for ChaosMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Off => Self::Off,
            Mode::Manual => Self::Manual,
            Mode::Scheduled => Self::Scheduled,
        }
    }
}

impl From<Status> for ChaosTestStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Planned => Self::Planned,
            Status::Running => Self::Running,
            Status::Recovering => Self::Recovering,
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Aborted => Self::Aborted,
            Status::NotStarted => Self::NotStarted,
        }
    }
}

impl From<StartedBy> for ChaosStartedBy {
    fn from(by: StartedBy) -> Self {
        match by {
            StartedBy::Person => Self::Person,
            StartedBy::Scheduler => Self::Scheduler,
            StartedBy::Demo => Self::Demo,
        }
    }
}

impl From<&Cause> for proto::ChaosCause {
    fn from(cause: &Cause) -> Self {
        let (kind, about) = match cause {
            Cause::Person => (ChaosCauseKind::Person, ""),
            Cause::Alert(name) => (ChaosCauseKind::Alert, name.as_str()),
            Cause::Threshold => (ChaosCauseKind::Threshold, ""),
            Cause::Leak(what) => (ChaosCauseKind::Leak, what.as_str()),
            Cause::Coordinator => (ChaosCauseKind::Coordinator, ""),
        };
        Self { kind: kind.into(), about: about.to_owned() }
    }
}

impl From<&ChaosStatus> for proto::ChaosStatus {
    fn from(status: &ChaosStatus) -> Self {
        Self {
            timestamp: time(status.timestamp),
            active_tests: status.active_tests as u64,
            emergency_stop: status.emergency_stop,
            stopped_by: status.stopped_by.clone(),
            rearm_at: status.rearm_at.map(time),
            total_history: status.total_history as u64,
            available_scenarios: status.available_scenarios.clone(),
            active_tests_details: status.active_tests_details.iter().map(Into::into).collect(),
            recent_failures: status.recent_failures.iter().map(Into::into).collect(),
            journal_errors: status.journal_errors,
            mode: ChaosMode::from(status.mode).into(),
            off: status.off.clone(),
        }
    }
}

impl From<&Test> for proto::ChaosTest {
    fn from(test: &Test) -> Self {
        Self {
            id: test.id,
            name: test.name.clone(),
            start_time: time(test.start_time),
            end_time: time(test.end_time),
            status: ChaosTestStatus::from(test.status).into(),
            impact: test.impact.clone(),
            recovery_time: test.recovery_time,
            details: Some((&test.details).into()),
        }
    }
}

impl From<&Details> for proto::ChaosTestDetails {
    fn from(details: &Details) -> Self {
        Self {
            parameters: parameters(&details.parameters),
            targets: details.targets.clone(),
            seed: details.seed,
            injected: details.injected,
            error: details.error.clone(),
            report: details.report.as_ref().map(Into::into),
        }
    }
}

impl From<&Outlook> for proto::ChaosOutlook {
    fn from(outlook: &Outlook) -> Self {
        Self {
            scenario: outlook.scenario.clone(),
            duration: outlook.duration,
            targets: outlook.targets.clone(),
            connections: outlook.connections as u64,
            connection_share: outlook.connection_share,
            expected_hits: outlook.expected_hits,
            hits: outlook.hits.iter().map(Into::into).collect(),
        }
    }
}

impl From<&ExpectedHits> for proto::ChaosExpectedHits {
    fn from(expected: &ExpectedHits) -> Self {
        let ExpectedHits { server, direction, kind, method, tool, hits } = expected.clone();
        Self { server, direction, kind, method, tool, hits }
    }
}

impl From<&Divergence> for proto::ChaosDivergence {
    fn from(divergence: &Divergence) -> Self {
        Self {
            at: divergence.at as u64,
            expected: divergence.expected.as_ref().map(Into::into),
            found: divergence.found.as_ref().map(Into::into),
            text: divergence.to_string(),
        }
    }
}

impl From<&HitRecord> for proto::ChaosHit {
    fn from(hit: &HitRecord) -> Self {
        Self {
            t_us: hit.t_us,
            rule: hit.rule.clone(),
            connection: hit.connection,
            direction: hit.direction.clone(),
            ordinal: hit.ordinal,
            number: hit.number,
            kind: hit.kind.clone(),
            method: hit.method.clone(),
            tool: hit.tool.clone(),
            draw: hit.draw,
            effect: hit.effect.clone(),
            amount: hit.amount,
        }
    }
}

impl From<&Event> for proto::ChaosEvent {
    fn from(event: &Event) -> Self {
        Self { sequence: event.sequence, time: time(event.time), what: Some((&event.what).into()) }
    }
}

impl From<&Happened> for What {
    fn from(happened: &Happened) -> Self {
        match happened {
            Happened::Changed { id, scenario, status, reason } => Self::Changed(proto::ChaosChanged {
                id: *id,
                scenario: scenario.clone(),
                status: ChaosTestStatus::from(*status).into(),
                reason: reason.clone(),
            }),
            Happened::Refused { scenario, parameters: given, by, reason } => Self::Refused(proto::ChaosRefused {
                scenario: scenario.clone(),
                parameters: parameters(given),
                by: ChaosStartedBy::from(*by).into(),
                reason: reason.clone(),
            }),
            Happened::EmergencyStop { cause } => Self::EmergencyStop(proto::ChaosStopped { cause: Some(cause.into()) }),
            Happened::Rearmed { automatically } => Self::Rearmed(proto::ChaosRearmed { automatically: *automatically }),
            Happened::PlanReplaced { mode, off, ended } => Self::PlanReplaced(proto::ChaosPlanReplaced {
                mode: ChaosMode::from(*mode).into(),
                off: off.clone(),
                ended: ended.clone(),
            }),
            Happened::Swept { ids } => Self::Swept(proto::ChaosSwept { ids: ids.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_as_they_were_given() {
        let max = i64::MAX;
        for (given, expected) in [
            (serde_json::json!("300ms"), serde_json::json!("300ms")),
            (serde_json::json!(8000), serde_json::json!(8000)),
            (serde_json::json!(-1), serde_json::json!(-1)),
            (serde_json::json!(0.3), serde_json::json!(0.3)),
            (serde_json::json!(1.0), serde_json::json!(1)),
            (serde_json::json!(true), serde_json::json!(true)),
            (serde_json::json!(null), serde_json::json!(null)),
            // As a number it would be another one, and as text it is read as well.
            (serde_json::json!(max), serde_json::json!(max.to_string())),
            (serde_json::json!(u64::MAX), serde_json::json!(u64::MAX.to_string())),
        ] {
            assert_eq!(from_value(to_value(&given)), expected, "{given}");
        }
    }

    #[cfg(feature = "serde")]
    mod json {
        use mcpscope_hub::chaos::{
            Achieved, Audit, Child, ChildRole, Footprint, Injected, Point, RecoveryReport, Report, Sample, Slot,
            Touched, Unit,
        };
        use serde::Serialize;
        use serde_json::{Value, json};

        use super::super::*;

        /// The shape of the message is the engine's own.
        fn same<'a, T: Serialize, M: From<&'a T> + Serialize>(value: &'a T) -> Value {
            let shape = serde_json::to_value(M::from(value)).unwrap();
            assert_eq!(shape, serde_json::to_value(value).unwrap());
            shape
        }

        fn sample(touched: Option<Touched>) -> Sample {
            Sample {
                calls: 3,
                errors: 1,
                p50_ms: Some(0.5),
                p95_ms: None,
                p99_ms: Some(9.5),
                healthy: Some(0.75),
                repeated: touched.map(|_| 4),
                duplicates: touched.map(|_| 5),
                touched,
            }
        }

        fn audit() -> Audit {
            let child = |role| Child { pid: 7, role, stopped: true };
            let children = [ChildRole::Supervised, ChildRole::Helper(3), ChildRole::Other].map(child).to_vec();
            Audit {
                looked_at: vec!["children".into(), "memory".into()],
                before: Some(Footprint { children: Some(Vec::new()), ..Footprint::default() }),
                after: Some(Footprint { children: Some(children), descriptors: Some(4), memory_bytes: Some(5) }),
            }
        }

        fn report(full: bool) -> Report {
            let parameters = Parameters::new().with("delay", "300ms").with("intensity", 0.5).with("every", 2);
            let touched = Touched { calls: 1, errors: 1, p50_ms: Some(1.5), p95_ms: None, p99_ms: None };
            let sample = sample(full.then_some(touched));
            let slot = Slot { duration: 10_000, error_rate: full.then_some(0.25), sample };
            let text = |text: &str| full.then(|| text.to_owned());
            Report {
                id: 3,
                scenario: "latency_injection".into(),
                status: if full { Status::Aborted } else { Status::NotStarted },
                error: text("stopped"),
                started_by: if full { StartedBy::Demo } else { StartedBy::Scheduler },
                parameters,
                seed: 1 << 60,
                targets: vec!["weather".into()],
                start_time: 5,
                end_time: 7,
                steady_state: vec!["error_rate < 0.05".into()],
                guard: text("p95 > 1"),
                before: full.then_some(slot),
                during: full.then_some(slot),
                after: Some(slot),
                injection: Injected {
                    achieved_intensity: full.then_some(0.125),
                    injected: 8,
                    resource: full.then_some(Achieved { requested: 0.8, achieved: 0.75, unit: Unit::Share }),
                    ..Injected::default()
                },
                time_to_detect: full.then_some(4),
                recovery: RecoveryReport { limit: 1000, time: full.then_some(9), observed: full },
                leak: text("a child"),
                audit: if full { audit() } else { Audit::default() },
                replay: text("mcpscope chaos replay 3"),
                samples: if full { vec![Point { at: -1000, duration: 1000, sample }] } else { Vec::new() },
            }
        }

        fn test(full: bool) -> Test {
            let details = Details {
                parameters: report(full).parameters,
                targets: vec!["weather".into()],
                seed: 9,
                injected: 8,
                error: full.then(|| "stopped".to_owned()),
                report: full.then(|| report(full)),
            };
            Test {
                id: 3,
                name: "latency_injection".into(),
                start_time: 5,
                end_time: 8,
                status: Status::Running,
                impact: "low".into(),
                recovery_time: 1000,
                details,
            }
        }

        #[test]
        fn states_and_reports_have_the_shapes_of_the_other_interfaces() {
            for full in [true, false] {
                same::<_, proto::ChaosReport>(&report(full));
                same::<_, proto::ChaosTest>(&test(full));
                let status = ChaosStatus {
                    timestamp: 1_764_000_000_123,
                    mode: if full { Mode::Scheduled } else { Mode::Off },
                    off: (!full).then(|| "chaos.enabled".to_owned()),
                    active_tests: 1,
                    emergency_stop: full,
                    stopped_by: full.then(|| "a person".to_owned()),
                    rearm_at: full.then_some(7),
                    total_history: 2,
                    available_scenarios: vec!["hang".into()],
                    active_tests_details: vec![test(full)],
                    recent_failures: vec![test(!full)],
                    journal_errors: 4,
                };
                same::<_, proto::ChaosStatus>(&status);
            }
            for status in [
                Status::Planned,
                Status::Running,
                Status::Recovering,
                Status::Completed,
                Status::Failed,
                Status::Aborted,
                Status::NotStarted,
            ] {
                let shape = same::<_, proto::ChaosTest>(&Test { status, ..test(false) });
                assert_eq!(shape["status"], json!(status.as_str()));
            }
        }

        #[test]
        fn outlooks_and_events_too() {
            let hits = vec![ExpectedHits {
                server: "s".into(),
                direction: "to_server".into(),
                kind: "request".into(),
                method: Some("tools/call".into()),
                tool: None,
                hits: 2.5,
            }];
            let outlook = Outlook {
                scenario: "hang".into(),
                duration: 8000,
                targets: vec!["s".into()],
                connections: 2,
                connection_share: 0.5,
                expected_hits: 2.5,
                hits,
            };
            same::<_, proto::ChaosOutlook>(&outlook);
            let causes = [
                Cause::Person,
                Cause::Alert("memory".into()),
                Cause::Threshold,
                Cause::Leak("a child".into()),
                Cause::Coordinator,
            ];
            let stops = causes.map(|cause| Happened::EmergencyStop { cause });
            let scenario = || "hang".to_owned();
            let others = [
                Happened::Changed { id: 3, scenario: scenario(), status: Status::Failed, reason: Some("late".into()) },
                Happened::Changed { id: 3, scenario: scenario(), status: Status::Completed, reason: None },
                Happened::Refused {
                    scenario: scenario(),
                    parameters: Parameters::new().with("a", 1),
                    by: StartedBy::Scheduler,
                    reason: "x".into(),
                },
                Happened::Rearmed { automatically: true },
                Happened::PlanReplaced { mode: Mode::Manual, off: Some("x".into()), ended: vec![1, 2] },
                Happened::PlanReplaced { mode: Mode::Off, off: None, ended: Vec::new() },
                Happened::Swept { ids: vec![4] },
            ];
            for what in stops.into_iter().chain(others) {
                same::<_, proto::ChaosEvent>(&Event { sequence: 7, time: 8, what });
            }
        }

        #[test]
        fn a_divergence_shows_both_hits() {
            let hit = HitRecord {
                t_us: 1,
                rule: "hang".into(),
                connection: 2,
                direction: Some("to_server".into()),
                ordinal: 3,
                number: 4,
                kind: Some("request".into()),
                method: Some("tools/call".into()),
                tool: None,
                draw: 0.5,
                effect: "hold".into(),
                amount: Some(-5),
            };
            same::<_, proto::ChaosHit>(&hit);
            let divergence = Divergence { at: 9, expected: Some(hit), found: None };
            let shown = proto::ChaosDivergence::from(&divergence);
            assert_eq!((shown.at, shown.found, shown.text), (9, None, divergence.to_string()));
        }
    }
}
