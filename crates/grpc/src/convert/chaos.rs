//! `chaos.proto`.

mod report;

use mcpscope_hub::chaos::{
    Cause, ChaosStatus, CrashOutlook, Details, Divergence, Event, ExpectedHits, Happened, HitRecord, Mode, Outlook,
    Parameters, ProcessOutlook, Request, ResourceOutlook, StartedBy, Status, Test,
};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::Invalid;
use crate::proto::chaos_event::What;
use crate::proto::{self, ChaosCauseKind, ChaosMode, ChaosStartedBy, ChaosTestStatus, ChaosUnit};

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
            packets: outlook.packets.then_some(true),
            expected_hits: outlook.expected_hits,
            hits: outlook.hits.iter().map(Into::into).collect(),
            recovery_time: outlook.recovery_time,
            steady_state: outlook.steady_state.clone(),
            crash: outlook.crash.as_ref().map(Into::into),
            resource: outlook.resource.as_ref().map(Into::into),
        }
    }
}

impl From<&CrashOutlook> for proto::ChaosCrashOutlook {
    fn from(crash: &CrashOutlook) -> Self {
        let processes = crash.processes.iter().map(Into::into).collect();
        Self { signal: crash.signal.clone(), rate: crash.rate, most: crash.most, processes }
    }
}

impl From<&ProcessOutlook> for proto::ChaosProcessOutlook {
    fn from(process: &ProcessOutlook) -> Self {
        let ProcessOutlook { target, components, pid, program, group, restarted_after } = process.clone();
        Self { target, components, pid, program, group, restarted_after }
    }
}

impl From<&ResourceOutlook> for proto::ChaosResourceOutlook {
    fn from(resource: &ResourceOutlook) -> Self {
        let ResourceOutlook { requested, expected, unit, cores, limit, cgroup } = resource.clone();
        Self { requested, expected, unit: ChaosUnit::from(unit).into(), cores, limit, cgroup }
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
mod tests;
