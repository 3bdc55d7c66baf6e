//! What there is to see.

use std::time::Instant;

use super::State;
use crate::plan::Mode;
use crate::report::Report;
use crate::run::{Run, test_of, wall_ms};
use crate::status::{ChaosStatus, Event, Status, Test, names};
use crate::{Impact, Scenario};

const RECENT_FAILURES: usize = 10;

impl State {
    fn test(&self, run: &Run) -> Test {
        run.test(self.plan.impact(run.scenario()), &self.clock)
    }

    fn ended_test(&self, report: &Report) -> Test {
        let impact = report.scenario.parse().map_or(Impact::Medium, |scenario| self.plan.impact(scenario));
        test_of(report.clone(), impact)
    }

    pub(crate) fn status(&self, now: Instant) -> ChaosStatus {
        let active: Vec<_> = self.unfinished().map(|run| self.test(run)).collect();
        let is_failure = |status: Status| status == Status::Failed;
        let closing = self.closing().filter(|run| is_failure(run.status)).map(|run| self.test(run));
        let closed = self.journal.reports().filter(|report| is_failure(report.status));
        let failures = closing.chain(closed.map(|report| self.ended_test(report)));
        let available = Scenario::ALL.into_iter().filter(|scenario| {
            !scenario.is_out_of_process() || self.targets.iter().any(|target| target.carries(*scenario))
        });
        let stopped = self.stopped.as_ref();
        ChaosStatus {
            timestamp: wall_ms(&self.clock, now),
            mode: self.plan.mode,
            off: (self.plan.mode == Mode::Off).then(|| self.plan.why_off()),
            active_tests: active.len(),
            emergency_stop: stopped.is_some(),
            stopped_by: stopped.map(|stopped| stopped.cause.to_string()),
            rearm_at: stopped.filter(|stopped| stopped.until > now).map(|stopped| wall_ms(&self.clock, stopped.until)),
            total_history: self.closing().count() + self.journal.ended(),
            available_scenarios: names(available),
            active_tests_details: active,
            recent_failures: failures.take(RECENT_FAILURES).collect(),
            journal_errors: self.journal.errors(),
        }
    }

    pub(crate) fn history(&self, most: usize) -> Vec<Test> {
        let closing = self.closing().map(|run| self.test(run));
        let closed = self.journal.history(most).into_iter().map(|report| self.ended_test(&report));
        closing.chain(closed).take(most).collect()
    }

    /// Those that have ended and of which it is not decided yet what they have left over, so that there is no report; the
    /// newest first.
    fn closing(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().rev().filter(|run| run.status.is_final())
    }

    pub(crate) fn experiment(&self, id: u64) -> Option<Test> {
        let running = self.runs.iter().find(|run| run.id == id).map(|run| self.test(run));
        running.or_else(|| self.journal.report(id).map(|report| self.ended_test(&report)))
    }

    pub(crate) fn report(&self, id: u64) -> Option<Report> {
        self.journal.report(id)
    }

    pub(crate) fn journal_text(&self, id: u64) -> Option<String> {
        self.journal.text(id)
    }

    pub(crate) fn events_since(&self, sequence: u64) -> Vec<Event> {
        self.events.iter().filter(|event| event.sequence > sequence).cloned().collect()
    }
}
