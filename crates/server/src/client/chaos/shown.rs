//! What experiments have in common wherever they are shown.

use mcpscope_grpc::prost_types::value::Kind;
use mcpscope_grpc::prost_types::{Struct, Value};
use mcpscope_grpc::proto::{ChaosStartedBy, ChaosTest, ChaosTestStatus};

use super::super::text::{BAD, Cell, DIM, GOOD, PLAIN, UNKNOWN, WARNING};
use super::quoted;

/// Where an experiment is in its life, and how it looks.
pub(super) fn status(status: ChaosTestStatus) -> Cell {
    let style = match status {
        ChaosTestStatus::Planned => PLAIN,
        ChaosTestStatus::Completed => GOOD,
        ChaosTestStatus::Failed => BAD,
        ChaosTestStatus::Unspecified => DIM,
        _ => WARNING,
    };
    Cell::new(word(status), style)
}

/// Where an experiment is in its life, in a word.
pub(super) fn word(status: ChaosTestStatus) -> &'static str {
    match status {
        ChaosTestStatus::Planned => "planned",
        ChaosTestStatus::Running => "running",
        ChaosTestStatus::Recovering => "recovering",
        ChaosTestStatus::Completed => "completed",
        ChaosTestStatus::Failed => "failed",
        ChaosTestStatus::Aborted => "aborted",
        ChaosTestStatus::NotStarted => "not started",
        ChaosTestStatus::Unspecified => UNKNOWN,
    }
}

/// Whether nothing follows.
pub(super) fn is_final(status: ChaosTestStatus) -> bool {
    !matches!(status, ChaosTestStatus::Planned | ChaosTestStatus::Running | ChaosTestStatus::Recovering)
}

pub(super) fn started_by(by: ChaosStartedBy) -> &'static str {
    match by {
        ChaosStartedBy::Person => "a person",
        ChaosStartedBy::Scheduler => "the scheduler",
        ChaosStartedBy::Demo => "the demo",
        ChaosStartedBy::Unspecified => UNKNOWN,
    }
}

/// As they are given on the command line.
pub(super) fn parameters(parameters: Option<&Struct>) -> String {
    let fields = parameters.iter().flat_map(|parameters| &parameters.fields);
    fields.map(|(name, value)| quoted(&format!("{name}={}", text(value)))).collect::<Vec<_>>().join(" ")
}

fn text(value: &Value) -> String {
    match &value.kind {
        Some(Kind::StringValue(text)) => text.clone(),
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::BoolValue(value)) => value.to_string(),
        // No parameter is anything else.
        Some(Kind::NullValue(_) | Kind::ListValue(_) | Kind::StructValue(_)) | None => String::new(),
    }
}

/// The servers or targets that an experiment is about.
pub(super) fn targets(targets: &[String]) -> String {
    if targets.is_empty() { UNKNOWN.to_owned() } else { targets.join(", ") }
}

/// The servers or targets of an experiment, and its parameters.
pub(super) fn details(test: &ChaosTest) -> (String, String) {
    let details = test.details.as_ref();
    (
        targets(details.map_or(&[], |details| &details.targets)),
        parameters(details.and_then(|details| details.parameters.as_ref())),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use mcpscope_grpc::proto::ChaosTestDetails;

    use super::super::super::text::tests::HOSTILE;
    use super::*;

    /// An experiment of the year 2025 that has as much to show as there can be.
    pub(in super::super) fn example(id: u64, status: ChaosTestStatus) -> ChaosTest {
        let value = Value { kind: Some(Kind::StringValue("300ms".into())) };
        let parameters = Some(Struct { fields: [("delay".to_owned(), value)].into() });
        let details = ChaosTestDetails {
            parameters,
            targets: vec!["weather".into(), "files".into()],
            seed: 5,
            injected: 31,
            error: is_final(status).then(|| "stopped by a person".to_owned()),
            report: None,
        };
        ChaosTest {
            id,
            name: "latency_injection".into(),
            start_time: 1_764_000_000_123,
            end_time: 1_764_000_008_123,
            status: status.into(),
            impact: "low".into(),
            recovery_time: 1000,
            details: Some(details),
        }
    }

    /// The same with everything that a wire may bring in its texts.
    pub(in super::super) fn hostile() -> ChaosTest {
        let mut test = example(1, ChaosTestStatus::Aborted);
        test.name = HOSTILE.into();
        if let Some(details) = &mut test.details {
            let value = Value { kind: Some(Kind::StringValue(HOSTILE.into())) };
            details.parameters = Some(Struct { fields: [(HOSTILE.to_owned(), value)].into() });
            details.targets = vec![HOSTILE.into()];
            details.error = Some(HOSTILE.into());
        }
        test
    }

    #[test]
    fn parameters_are_shown_as_they_are_typed() {
        let value = |kind| Value { kind: Some(kind) };
        let fields = [
            ("delay", Kind::StringValue("300ms".into())),
            ("every", Kind::NumberValue(2.0)),
            ("intensity", Kind::NumberValue(0.25)),
            ("steady_state", Kind::StringValue("p95 < 500".into())),
        ];
        let given = Struct { fields: fields.map(|(name, kind)| (name.to_owned(), value(kind))).into() };
        assert_eq!(parameters(Some(&given)), "delay=300ms every=2 intensity=0.25 'steady_state=p95 < 500'");
        assert_eq!(parameters(None), "");
    }
}
