//! What became of the experiments of a file.

use std::path::Path;

use mcpscope_config::{Expected, Experiment};
use mcpscope_grpc::proto::{ChaosTestStatus, GetReportResponse};
use serde::Serialize;

use super::super::super::number;
use super::super::super::text::{BAD, Cell, Column, DIM, GOOD, Table, UNKNOWN, WARNING};
use super::super::shown;

/// What became of an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It ended as expected.
    Passed,
    /// It did not.
    Failed,
    /// It was refused, or nobody knows how it ended.
    Error,
    /// It was not run.
    Skipped,
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

/// An experiment of the file and what became of it.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) scenario: String,
    pub(super) expect: &'static str,
    pub(super) outcome: Outcome,
    /// Why.
    pub(super) why: String,
    /// Its id in the instance, if it was started.
    pub(super) id: Option<u64>,
    /// What its decisions were drawn from.
    pub(super) seed: Option<u64>,
    /// How it ended.
    pub(super) status: Option<String>,
    /// Whether the watched system withstood the fault; none if that was not seen.
    pub(super) held: Option<bool>,
    /// What was left over.
    pub(super) leak: Option<String>,
    /// How many messages and connections were hit.
    pub(super) injected: Option<u64>,
    /// The page of its report.
    pub(super) report: Option<String>,
    /// From its start until it was decided how it ended.
    pub(super) seconds: f64,
}

impl Case {
    fn new(experiment: &Experiment) -> Self {
        Self {
            name: experiment.name.clone(),
            scenario: experiment.scenario.clone(),
            expect: word(experiment.expect),
            outcome: Outcome::Skipped,
            why: "it was not run".to_owned(),
            id: None,
            seed: None,
            status: None,
            held: None,
            leak: None,
            injected: None,
            report: None,
            seconds: 0.0,
        }
    }

    pub(super) fn end(&mut self, outcome: Outcome, why: &str) {
        self.outcome = outcome;
        why.clone_into(&mut self.why);
    }

    /// Decides by what its report says.
    pub(super) fn judge(&mut self, expected: Expected, answer: GetReportResponse) {
        let GetReportResponse { report, verdict, held, .. } = answer;
        let report = report.unwrap_or_default();
        let status = report.status();
        let was = match expected {
            Expected::Completed => status == ChaosTestStatus::Completed,
            Expected::Held => held == Some(true),
            Expected::Failed => status == ChaosTestStatus::Failed,
            // A person who ended it has not shown that its guard does.
            Expected::Aborted => status == ChaosTestStatus::Aborted && report.guard.is_some(),
        };
        self.status = Some(shown::word(status).to_owned());
        self.held = held;
        self.injected = report.injection.as_ref().map(|injection| injection.injected);
        self.seed = Some(report.seed);
        match &report.leak {
            Some(leak) => self.end(Outcome::Failed, &format!("{verdict} It left something over: {leak}")),
            None if was => self.end(Outcome::Passed, &verdict),
            None if expected == Expected::Completed => self.end(Outcome::Failed, &verdict),
            None => self.end(Outcome::Failed, &format!("Expected {}: {verdict}", described(expected))),
        }
        self.leak = report.leak;
    }
}

fn word(expected: Expected) -> &'static str {
    match expected {
        Expected::Completed => "completed",
        Expected::Held => "held",
        Expected::Failed => "failed",
        Expected::Aborted => "aborted",
    }
}

fn described(expected: Expected) -> &'static str {
    match expected {
        Expected::Completed => "it to be completed",
        Expected::Held => "calls to show that it held",
        Expected::Failed => "it to fail",
        Expected::Aborted => "its guard to end it",
    }
}

/// What became of all of them.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) file: String,
    pub(super) experiments: Vec<Case>,
}

impl Summary {
    pub(super) fn new(file: &Path, experiments: &[Experiment]) -> Self {
        Self { file: file.display().to_string(), experiments: experiments.iter().map(Case::new).collect() }
    }

    pub(super) fn count(&self, outcome: Outcome) -> usize {
        self.experiments.iter().filter(|case| case.outcome == outcome).count()
    }

    /// Whether all were run and ended as expected.
    pub(super) fn is_well(&self) -> bool {
        self.count(Outcome::Passed) == self.experiments.len()
    }

    /// How long all took, without the pauses between them.
    pub(super) fn seconds(&self) -> f64 {
        self.experiments.iter().map(|case| case.seconds).sum()
    }

    /// Those that were not run will not be.
    pub(super) fn skip_rest(&mut self, why: &str) {
        for case in self.experiments.iter_mut().filter(|case| case.outcome == Outcome::Skipped) {
            why.clone_into(&mut case.why);
        }
    }

    pub(super) fn render(&self, width: Option<usize>) -> String {
        let mut table = Table::new([
            Column::text("outcome"),
            Column::long("experiment"),
            Column::number("id"),
            Column::text("status"),
            Column::number("hits"),
            Column::number("took"),
        ]);
        let number = |number: Option<u64>| number.map_or_else(|| UNKNOWN.to_owned(), |number| number.to_string());
        for case in &self.experiments {
            let style = match case.outcome {
                Outcome::Passed => GOOD,
                Outcome::Failed | Outcome::Error => BAD,
                Outcome::Skipped => WARNING,
            };
            table.row(vec![
                Cell::new(case.outcome.as_str(), style),
                case.name.as_str().into(),
                number(case.id).into(),
                case.status.as_deref().unwrap_or(UNKNOWN).into(),
                number(case.injected).into(),
                Cell::new(&number::duration(case.seconds * 1000.0), DIM),
            ]);
        }
        let counts = [Outcome::Passed, Outcome::Failed, Outcome::Error, Outcome::Skipped];
        let counts = counts.map(|outcome| (self.count(outcome), outcome.as_str()));
        let counts = counts.into_iter().filter(|(count, _)| *count > 0);
        let counts: Vec<_> = counts.map(|(count, outcome)| format!("{count} {outcome}")).collect();
        format!("{}\n{} of {}\n", table.take(width), counts.join(", "), self.experiments.len())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use expect_test::expect;
    use mcpscope_grpc::proto::{ChaosInjection, ChaosReport};

    use super::super::super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    pub(in super::super) fn experiment(name: &str, expect: Expected) -> Experiment {
        Experiment {
            name: name.into(),
            scenario: "hang".into(),
            parameters: [].into(),
            matching: [].into(),
            expect,
            pause: std::time::Duration::ZERO,
        }
    }

    /// An answer about an experiment that ended so.
    pub(in super::super) fn answer(status: ChaosTestStatus, held: Option<bool>, verdict: &str) -> GetReportResponse {
        let injection = Some(ChaosInjection { injected: 31, ..ChaosInjection::default() });
        let report = ChaosReport { id: 7, seed: 42, status: status.into(), injection, ..ChaosReport::default() };
        GetReportResponse { report: Some(report), verdict: verdict.into(), held, html: None }
    }

    #[test]
    fn an_experiment_passes_where_it_ended_as_expected_and_left_nothing() {
        use ChaosTestStatus::{Aborted, Completed, Failed, NotStarted};
        let outcome = |expected, status, held, guard: bool, leak: bool| {
            let mut case = Case::new(&experiment("x", expected));
            let mut answer = answer(status, held, "Told.");
            let report = answer.report.as_mut().unwrap();
            report.guard = guard.then(|| "p95 > 5".to_owned());
            report.leak = leak.then(|| "a child".to_owned());
            case.judge(expected, answer);
            case.outcome == Outcome::Passed
        };
        let ends = [
            (Completed, Some(true), false),
            (Completed, None, false),
            (Failed, Some(false), false),
            (Aborted, Some(false), true),
            (Aborted, None, false),
            (NotStarted, None, false),
        ];
        for (expected, passing) in [
            (Expected::Completed, [true, true, false, false, false, false]),
            (Expected::Held, [true, false, false, false, false, false]),
            (Expected::Failed, [false, false, true, false, false, false]),
            (Expected::Aborted, [false, false, false, true, false, false]),
        ] {
            assert_eq!(ends.map(|(status, held, guard)| outcome(expected, status, held, guard, false)), passing);
            assert!(ends.iter().all(|(status, held, guard)| !outcome(expected, *status, *held, *guard, true)));
        }
    }

    #[test]
    fn what_was_not_run_is_not_well() {
        let mut summary = Summary::new(Path::new("suite.yaml"), &[]);
        assert!(summary.is_well());
        for name in ["one", "two", "three"] {
            summary.experiments.push(Case::new(&experiment(name, Expected::Completed)));
        }
        let told = "It held: all was well from the end of the fault on (limit 1s).";
        summary.experiments[0].judge(Expected::Completed, answer(ChaosTestStatus::Completed, Some(true), told));
        summary.experiments[0].seconds = 11.5;
        summary.experiments[1].judge(Expected::Held, answer(ChaosTestStatus::Completed, None, "Not known."));
        assert_eq!(summary.experiments[1].why, "Expected calls to show that it held: Not known.");
        summary.skip_rest("everything was stopped");
        assert!(!summary.is_well());
        assert_eq!(summary.experiments[2].why, "everything was stopped");
        let shown = summary.render(None);
        expect![[r#"
            outcome  experiment  id  status     hits    took
            passed   one          –  completed    31  11.5 s
            failed   two          –  completed    31    0 ms
            skipped  three        –  –             –    0 ms

            1 passed, 1 failed, 1 skipped of 3
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&shown).to_string());
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let mut summary = Summary::new(Path::new(HOSTILE), &[experiment(HOSTILE, Expected::Held)]);
        summary.experiments[0].end(Outcome::Error, HOSTILE);
        summary.experiments[0].status = Some(HOSTILE.into());
        assert_harmless(&summary.render(None));
    }
}
