//! The passage of time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::State;
use crate::audit::Others;
use crate::experiment::Request;
use crate::journal::{Record, micros};
use crate::lease::Shared;
use crate::plan::{Mode, Rearm};
use crate::run::Run;
use crate::status::{Cause, Happened, StartedBy, Status};

/// How often hits are written down while there may be some.
const DRAIN: Duration = Duration::from_millis(100);
/// How long nothing can happen that the caller does not cause.
const IDLE: Duration = Duration::from_secs(1);

impl State {
    /// Goes on, and says until when; and what is to be started by itself that takes long to start.
    pub(crate) fn drive(&mut self, shared: &Shared, now: Instant) -> (Instant, Option<Request>) {
        self.write_hits();
        let steady = self.steady.clone();
        let leases = |state: &Self| state.runs.iter().filter(|run| run.status == Status::Running).count();
        let before = leases(self);
        self.runs.iter_mut().for_each(|run| run.advance(steady.as_deref(), now));
        let _ = self.spare_critical(shared, now);
        self.crash_all(shared, now);
        if leases(self) != before || (shared.is_active() || shared.leads()) != (leases(self) > 0) {
            self.publish(shared);
        }
        self.tell_changes();
        self.finish(shared, now);
        shared.keep_following(!self.runs.is_empty(), self.runs.iter().flat_map(|run| &run.outages));
        if let Some(stopped) = &self.stopped
            && self.plan.rearm == Rearm::Auto
            && !stopped.by_person
            && now >= stopped.until
        {
            self.arm(true, now);
        }
        let is_scheduled = self.plan.mode == Mode::Scheduled;
        let wanted = if is_scheduled { self.scheduler.due(&self.plan.scenarios, now) } else { None };
        let may_start = self.stopped.is_none() && !self.is_stopping;
        let mut wanted = wanted.filter(|_| may_start).map(|scenario| Request::new(scenario.as_str()));
        let by = StartedBy::Scheduler;
        if let Some(request) = wanted.take_if(|request| self.prober(shared, request, by, now).is_none()) {
            // A refusal is in the journal, and the next tick comes.
            drop(self.start(shared, &request, by, Ok(()), now));
        }
        self.tell();
        self.journal.flush();
        (self.next(now), wanted)
    }

    fn write_hits(&mut self) {
        while let Ok(hit) = self.hits.try_recv() {
            let id = hit.experiment.0;
            if !self.journal.write(id, &Record::Hit(hit.into()))
                && let Some(lease) = self.runs.iter().find(|run| run.id == id).and_then(|run| run.lease.as_ref())
            {
                lease.counters.unjournalled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Tells journal and listeners where experiments have been.
    pub(super) fn tell_changes(&mut self) {
        let mut all = Vec::new();
        for run in &mut self.runs {
            let (id, scenario, started) = (run.id, run.scenario(), run.started());
            for (at, status, reason) in run.changes.drain(..) {
                let t_us = micros(at.saturating_duration_since(started));
                let record = Record::State { t_us, status, reason: reason.clone() };
                self.journal.write(id, &record);
                if status == Status::Recovering || status.is_final() {
                    for target in &run.carriers {
                        let target = target.name().to_owned();
                        self.journal.write(id, &Record::Undone { t_us, target });
                    }
                }
                all.push((at, Happened::Changed { id, scenario: scenario.to_string(), status, reason }));
            }
        }
        all.into_iter().for_each(|(at, what)| self.happened(what, at));
    }

    /// Closes the journals of experiments that have ended and from which nothing more can come.
    pub(super) fn finish(&mut self, shared: &Shared, now: Instant) {
        let is_over = |run: &Run| run.status.is_final() && run.lease.as_ref().is_none_or(|lease| lease.is_quiet());
        let over: Vec<_> = self.runs.iter().filter(|run| is_over(run)).map(|run| run.id).collect();
        // Whatever was decided until they were quiet is waiting.
        self.write_hits();
        let observer = self.leak_audit.clone();
        for id in over {
            let acts = |run: &Run| run.status == Status::Running && run.scenario().is_out_of_process();
            let others = Others { count: self.runs.len().saturating_sub(1) as u64, act: self.runs.iter().any(acts) };
            let Some(at) = self.runs.iter().position(|run| run.id == id) else { continue };
            if !self.runs[at].look_for_leaks(shared, observer.as_deref(), others, now) {
                continue;
            }
            let mut run = self.runs.remove(at);
            if let Some(before) = run.audit.before.as_ref().filter(|_| others.act) {
                // Whoever acts on processes still answers for what could not be judged: it sees what was there before both.
                for later in self.runs.iter_mut().filter(|later| acts(later) && later.id > id) {
                    if let Some(later) = &mut later.audit.before {
                        later.children.clone_from(&before.children);
                    }
                }
            }
            self.close(&mut run);
            match run.status {
                Status::Completed => self.failures = 0,
                Status::Failed => self.failures = self.failures.saturating_add(1),
                _ => {}
            }
            if let Some(leak) = run.leak {
                self.stop_by_itself(shared, Cause::Leak(leak), now);
            }
            if self.failures >= self.plan.emergency_threshold && self.stopped.is_none() {
                self.stop_by_itself(shared, Cause::Threshold, now);
            }
        }
    }

    fn close(&mut self, run: &mut Run) {
        run.look_back(self.steady.as_deref());
        self.journal.end(run.report(&self.clock));
    }

    /// Ends everything for good, with what is known.
    pub(crate) fn shut_down(&mut self, shared: &Shared, now: Instant) {
        self.is_stopping = true;
        let steady = self.steady.clone();
        for run in &mut self.runs {
            // What was over before is not ended by this.
            run.advance(steady.as_deref(), now);
            run.shut_down(steady.as_deref(), now);
        }
        self.publish(shared);
        self.write_hits();
        self.tell_changes();
        for mut run in std::mem::take(&mut self.runs) {
            self.close(&mut run);
        }
        self.tell();
        self.journal.flush();
    }

    fn next(&self, now: Instant) -> Instant {
        let mut next = now + IDLE;
        let mut at = |time: Instant| next = next.min(time);
        for run in &self.runs {
            match (&run.lease, run.status) {
                (Some(lease), Status::Running) => {
                    at(lease.expires_at);
                    at(now + DRAIN);
                    at(run.next_sample);
                    run.crashes.iter().for_each(|crashes| at(crashes.next()));
                }
                (_, status) if status.is_final() => at(now + DRAIN),
                _ => at(run.next_sample),
            }
        }
        if self.plan.mode == Mode::Scheduled {
            at(self.scheduler.next());
        }
        if let Some(stopped) = &self.stopped
            && self.plan.rearm == Rearm::Auto
            && !stopped.by_person
        {
            at(stopped.until);
        }
        next
    }
}
