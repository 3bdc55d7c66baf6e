//! What is open or under way, and counts as long as it is.

use std::time::Instant;

use mcpscope_core::{Component, Direction, ErrorType, Protocol};
use mcpscope_metrics::Gauge;

use crate::{Departure, Probe};

/// A gauge that is higher while this lives.
#[derive(Debug)]
struct Raised(Option<Gauge>);

impl Raised {
    fn new(gauge: Option<Gauge>, at: Instant) -> Self {
        if let Some(gauge) = &gauge {
            gauge.add(1.0, at);
        }
        Self(gauge)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(gauge) = &self.0 {
            gauge.add(-1.0, Instant::now());
        }
    }
}

/// An open connection or stream.
#[derive(Debug)]
#[must_use = "dropping it closes the connection"]
pub struct Connection(#[expect(dead_code, reason = "counts as long as it lives")] Raised);

impl Connection {
    pub(crate) fn new(gauge: Option<Gauge>, at: Instant) -> Self {
        Self(Raised::new(gauge, at))
    }
}

/// An open session. Dropping it ends it, well and now.
#[derive(Debug)]
#[must_use = "dropping it ends the session"]
pub struct Session {
    _open: Raised,
    probe: Probe,
    protocol: Protocol,
    /// None if that is not known.
    started: Option<Instant>,
    has_ended: bool,
}

impl Session {
    pub(crate) fn new(
        probe: &Probe,
        protocol: Protocol,
        gauge: Option<Gauge>,
        started: Option<Instant>,
        at: Instant,
    ) -> Self {
        Self { _open: Raised::new(gauge, at), probe: probe.clone(), protocol, started, has_ended: false }
    }

    /// Ends the session, which has lasted until `at` and ended in `error`, if it did.
    pub fn end(mut self, error: Option<ErrorType>, at: Instant) {
        self.count(error, at);
    }

    fn count(&mut self, error: Option<ErrorType>, at: Instant) {
        if !std::mem::replace(&mut self.has_ended, true) {
            let lasted = self.started.map(|started| at.saturating_duration_since(started));
            self.probe.guarded(|| self.probe.count_session(self.protocol, lasted, error, at));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.count(None, Instant::now());
    }
}

/// Messages on their way through. Drop it when they are handed on, which is when they have left the proxy.
#[derive(Debug)]
#[must_use = "dropping it takes the messages out of the queue"]
pub struct Queued {
    probe: Probe,
    direction: Direction,
    messages: usize,
    since: Instant,
    /// When all of them were written, if that is known.
    written: Option<Instant>,
}

impl Queued {
    pub(crate) fn new(probe: &Probe, direction: Direction, messages: usize, at: Instant) -> Self {
        let queued = Self { probe: probe.clone(), direction, messages, since: at, written: None };
        queued.change(messages as f64, at);
        queued
    }

    /// A fault held them until then: that is no time that the proxy took.
    pub fn held_until(&mut self, due: Instant) {
        self.since = self.since.max(due);
    }

    /// They are lost: they take no time, and are not counted.
    pub fn lost(mut self) {
        self.change(-(self.messages as f64), Instant::now());
        self.messages = 0;
    }

    /// All that had to be done with them was done, with these calls among them.
    pub fn wait<'a>(&self, calls: impl IntoIterator<Item = &'a Departure>) {
        let mut now = None;
        calls.into_iter().for_each(|departure| departure.queued(*now.get_or_insert_with(Instant::now)));
    }

    /// Some more of them were just written, with these calls among them.
    pub fn wrote<'a>(&mut self, calls: impl IntoIterator<Item = &'a Departure>) {
        self.written = None;
        calls.into_iter().for_each(|departure| departure.sent(*self.written.get_or_insert_with(Instant::now)));
    }

    /// All of them were written at `at`; [`Queued::tell`] is for the calls among them that are found only then.
    pub fn all_wrote(&mut self, at: Instant) {
        self.written = Some(at);
    }

    /// These calls were among what was written.
    pub fn tell(&self, calls: &Departure) {
        self.written.iter().for_each(|at| calls.sent(*at));
    }

    fn change(&self, by: f64, at: Instant) {
        if let Some(handles) = self.probe.0.metrics.as_ref().filter(|_| self.messages > 0) {
            handles.queues[self.direction as usize].add(by, at);
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if self.messages == 0 {
            return;
        }
        let now = self.written.unwrap_or_else(Instant::now);
        self.change(-(self.messages as f64), now);
        if let Some(handles) = self.probe.0.metrics.as_ref().filter(|_| self.probe.counts(Component::Transport)) {
            let overhead = now.saturating_duration_since(self.since);
            (0..self.messages).for_each(|_| handles.overheads[self.direction as usize].record(overhead, now));
        }
    }
}
