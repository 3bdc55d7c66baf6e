//! What readers hold.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_core::TraceId;
use mcpscope_health::{Overall, Readiness, Report, State, Usage};
use mcpscope_metrics::{Format, MetricView, RawRecord, Snapshot, Summary};
use mcpscope_tracing::{Cursor, Filter, Trace, Tracer};
use tokio::sync::{broadcast, watch};

use crate::frame::Frame;
use crate::turn::{Place, Turn, place};
use crate::vitals::Event;
use crate::{Core, now};

/// How often a follower looks for new traces.
const FOLLOW: Duration = Duration::from_millis(250);

/// Something is switched off, and so there is nothing to read or to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Off {
    /// `metrics.enabled` is false.
    #[error("metrics are switched off")]
    Metrics,
    /// `tracing.enabled` is false.
    #[error("tracing is switched off")]
    Tracing,
    /// There is no instrumentation registry.
    #[error("instrumentation is switched off")]
    Instrumentation,
    /// Nothing is observed, and so nothing disturbed.
    #[error("chaos is switched off")]
    Chaos,
}

/// Reads what the hub publishes, and asks it for what must be newer than that. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    core: Arc<Core>,
    frames: watch::Receiver<Arc<Frame>>,
    health: watch::Receiver<Arc<Report>>,
    events: broadcast::WeakSender<Arc<Event>>,
    at_work: Place,
}

impl Reader {
    pub(crate) fn new(
        core: Arc<Core>,
        frames: watch::Receiver<Arc<Frame>>,
        health: watch::Receiver<Arc<Report>>,
        events: broadcast::WeakSender<Arc<Event>>,
    ) -> Self {
        Self { core, frames, health, events, at_work: place() }
    }

    /// A queue for one listener's work: what asks for all metrics or many traces, or encodes them. All listeners together
    /// work on one piece at a time.
    #[must_use]
    pub fn turn(&self) -> Turn {
        Turn::new(Arc::clone(&self.at_work))
    }

    /// The newest frame.
    #[must_use]
    pub fn frame(&self) -> Arc<Frame> {
        Arc::clone(&self.frames.borrow())
    }

    /// The newest frame at once, then each new one. Who is slow skips frames.
    #[must_use]
    pub fn subscribe(&self) -> Frames {
        let mut frames = self.frames.clone();
        frames.mark_changed();
        Frames(frames)
    }

    /// The report of the last second, and a notice whenever a component's state or message changes, and at every frame.
    #[must_use]
    pub fn watch_health(&self) -> watch::Receiver<Arc<Report>> {
        let mut health = self.health.clone();
        health.mark_changed();
        health
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.events.upgrade().map(|events| events.subscribe()))
    }

    /// Health now, on the states as last worked out.
    #[must_use]
    pub fn health(&self) -> Report {
        let at = now();
        self.core.sources.health.report(at, self.core.sources.anchor.wall_at(at))
    }

    /// How one component is now; none if there is no such component. Cheaper than a report.
    #[must_use]
    pub fn component_state(&self, component: &str) -> Option<State> {
        self.core.sources.health.state(component)
    }

    /// How the whole is now. Cheaper than a report.
    #[must_use]
    pub fn overall(&self) -> Overall {
        self.core.sources.health.overall()
    }

    /// Whether the instance can serve. Cheaper than [`Reader::readiness`], which says what is missing.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.core.sources.health.is_ready()
    }

    /// Whether the instance can serve, and if not, what is missing.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.core.sources.health.readiness()
    }

    /// How long the instance has been running.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.core.sources.health.uptime(now())
    }

    /// What this process takes of the machine now.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.core.sources.health.usage(now())
    }

    /// The wall time now, by the instance's own clock.
    #[must_use]
    pub fn timestamp(&self) -> SystemTime {
        self.core.sources.anchor.wall_at(now())
    }

    /// All metrics now as text: for a scrape, which must not be a frame old.
    ///
    /// # Errors
    /// [`Off::Metrics`].
    pub fn exposition(&self, format: Format) -> Result<String, Off> {
        Ok(self.metrics()?.exposition(format, now()))
    }

    /// All metrics now.
    ///
    /// # Errors
    /// [`Off::Metrics`].
    pub fn snapshot(&self) -> Result<Snapshot, Off> {
        Ok(self.metrics()?.snapshot(now()))
    }

    /// The critical metrics now.
    ///
    /// # Errors
    /// [`Off::Metrics`].
    pub fn views(&self) -> Result<Vec<MetricView>, Off> {
        Ok(self.metrics()?.views(now()))
    }

    /// One critical metric now; none if there is none of that name.
    ///
    /// # Errors
    /// [`Off::Metrics`].
    pub fn metric(&self, name: &str) -> Result<Option<MetricView>, Off> {
        Ok(self.metrics()?.metrics(name, now()))
    }

    /// The names of all critical metrics: the seven, then the declared ones.
    ///
    /// # Errors
    /// [`Off::Metrics`].
    pub fn metric_names(&self) -> Result<Vec<Cow<'static, str>>, Off> {
        Ok(self.metrics()?.critical_names())
    }

    /// The numbers at a glance (behaviour M5).
    ///
    /// # Errors
    /// [`Off::Metrics`].
    pub fn summary(&self) -> Result<Summary, Off> {
        Ok(self.metrics()?.summary(now()))
    }

    /// The newest raw records, newest first.
    ///
    /// # Errors
    /// [`Off::Metrics`].
    pub fn raw_records(&self) -> Result<Vec<RawRecord>, Off> {
        Ok(self.metrics()?.critical_metrics())
    }

    /// The traces that `filter` wants, newest first.
    ///
    /// # Errors
    /// [`Off::Tracing`].
    pub fn traces(&self, filter: &Filter) -> Result<Vec<Arc<Trace>>, Off> {
        Ok(self.tracer()?.traces(filter))
    }

    /// One trace, with the spans of all calls that belong to it.
    ///
    /// # Errors
    /// [`Off::Tracing`].
    pub fn trace(&self, id: TraceId) -> Result<Option<Trace>, Off> {
        Ok(self.tracer()?.trace(id))
    }

    /// The traces that come from now on.
    ///
    /// # Errors
    /// [`Off::Tracing`].
    pub fn follow_traces(&self) -> Result<TraceFollower, Off> {
        let tracer = self.tracer()?.clone();
        let cursor = tracer.cursor();
        let mut tick = tokio::time::interval(FOLLOW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(TraceFollower { tracer, cursor, tick, hub: self.frames.clone() })
    }

    /// What is instrumented, and what it did (behaviour H2).
    ///
    /// # Errors
    /// [`Off::Instrumentation`].
    pub fn instrumentation(&self) -> Result<InstrumentationStatus, Off> {
        let sources = &self.core.sources;
        let instrumentation = sources.instrumentation.as_ref().ok_or(Off::Instrumentation)?;
        let totals = sources.metrics.as_ref().map(mcpscope_metrics::Metrics::totals).unwrap_or_default();
        let components = instrumentation.components().into_iter().map(|(component, functions)| {
            let did = totals.components.get(component.as_str()).copied().unwrap_or_default();
            InstrumentedComponent { component, functions, calls: did.operations, errors: did.errors }
        });
        Ok(InstrumentationStatus { auto_instrument: instrumentation.is_auto(), components: components.collect() })
    }

    /// Shows `mcpscope_dropped_total{what}` as 0 until the first drop.
    pub fn may_drop(&self, what: &str) {
        if let Some(metrics) = &self.core.sources.metrics {
            let _zero = metrics.dropped(what);
        }
    }

    /// Counts something that a reader had to drop, as `mcpscope_dropped_total{what}`.
    pub fn dropped(&self, what: &str) {
        if let Some(metrics) = &self.core.sources.metrics {
            metrics.dropped(what).increment(now());
        }
    }

    /// Counts several of them at once.
    pub fn dropped_many(&self, what: &str, number: u64) {
        if let Some(metrics) = self.core.sources.metrics.as_ref().filter(|_| number > 0) {
            metrics.dropped(what).add(number, now());
        }
    }

    fn metrics(&self) -> Result<&mcpscope_metrics::Metrics, Off> {
        self.core.sources.metrics.as_ref().ok_or(Off::Metrics)
    }

    fn tracer(&self) -> Result<&Tracer, Off> {
        self.core.sources.tracer.as_ref().ok_or(Off::Tracing)
    }
}

/// Frames as they are made.
#[derive(Debug)]
pub struct Frames(watch::Receiver<Arc<Frame>>);

impl Frames {
    /// The next frame, at first the one of the moment; none once the hub has ended. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Arc<Frame>> {
        self.0.changed().await.ok()?;
        Some(Arc::clone(&self.0.borrow_and_update()))
    }
}

/// Events as they happen.
#[derive(Debug)]
pub struct Events(Option<broadcast::Receiver<Arc<Event>>>);

impl Events {
    /// The next event, with how many were missed before it; none once the hub has ended. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<(Arc<Event>, u64)> {
        let events = self.0.as_mut()?;
        let mut missed = 0;
        loop {
            match events.recv().await {
                Ok(event) => return Some((event, missed)),
                Err(broadcast::error::RecvError::Lagged(n)) => missed += n,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Traces as they come.
#[derive(Debug)]
pub struct TraceFollower {
    tracer: Tracer,
    cursor: Cursor,
    tick: tokio::time::Interval,
    hub: watch::Receiver<Arc<Frame>>,
}

impl TraceFollower {
    /// The next traces, oldest first, and how many came and went unseen; none once the hub has ended. Cancelling it loses
    /// nothing.
    pub async fn next(&mut self) -> Option<(Vec<Arc<Trace>>, u64)> {
        loop {
            tokio::select! {
                changed = self.hub.changed() => changed.ok()?,
                _ = self.tick.tick() => {
                    let (traces, missed) = self.tracer.newer(&mut self.cursor);
                    if !traces.is_empty() || missed > 0 {
                        return Some((traces, missed));
                    }
                }
            }
        }
    }
}

/// What is instrumented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstrumentationStatus {
    /// Whether the default components were instrumented on start.
    pub auto_instrument: bool,
    /// The components, by name.
    pub components: Vec<InstrumentedComponent>,
}

/// One instrumented component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstrumentedComponent {
    /// Its name.
    pub component: String,
    /// Its functions.
    pub functions: Vec<String>,
    /// Operations since the start, without those that were injected.
    pub calls: u64,
    /// Those that failed.
    pub errors: u64,
}
