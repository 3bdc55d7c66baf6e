//! The tick.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use mcpscope_health::{Report, State};
use mcpscope_metrics::Counter;
use mcpscope_tracing::Tracer;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinError;
use tokio::time::{Interval, MissedTickBehavior};

use crate::frame::Frame;
use crate::vitals::{Event, Vitals};
use crate::{Core, now};

/// How often health is worked out: state changes are told this soon.
const BEAT: Duration = Duration::from_secs(1);

/// The future that closes windows, works out health and makes frames. Dropping it ends every subscription.
#[derive(Debug)]
#[must_use = "nothing is published unless it runs"]
pub struct Hub {
    core: Arc<Core>,
    frames: watch::Sender<Arc<Frame>>,
    health: watch::Sender<Arc<Report>>,
    events: broadcast::Sender<Arc<Event>>,
}

impl Hub {
    pub(crate) fn new(
        core: Arc<Core>,
        frames: watch::Sender<Arc<Frame>>,
        health: watch::Sender<Arc<Report>>,
        events: broadcast::Sender<Arc<Event>>,
    ) -> Self {
        Self { core, frames, health, events }
    }

    /// Runs for ever; to end it, drop it.
    ///
    /// The work is done on the runtime's blocking threads, one piece at a time: it copies every series, and whoever answers
    /// requests on this runtime must not wait for it. So that it waits for no reader either, give it a runtime of its own, or
    /// two of these threads and nothing but [`Turn`](crate::Turn) that takes the other. What panics there is logged and shown as health, and tried
    /// again at the next tick.
    pub async fn run(self) {
        let Self { core, frames, health, events } = self;
        let config = &core.config;
        let mut window = every(config.aggregation_interval);
        window.reset();
        let (mut beat, mut tick) = (every(BEAT), every(config.update_interval));
        let mut vitals = Some(Vitals::new(Arc::clone(&core), Arc::clone(&health.borrow())));
        let mut works = Works::new(&core);
        let mut lost = LostSpans::new(&core);
        loop {
            // All that is due, so that what is late keeps nothing else from its turn, and in this order: a frame has the
            // window that ends with it, and the health of its own second.
            let [window, beat, tick] = due([&mut window, &mut beat, &mut tick]).await;
            if window && let Some(metrics) = core.sources.metrics.clone() {
                works.saw("a window", blocking(move || metrics.close_window(now())).await);
            }
            if beat {
                let (at, taken) = (now(), vitals.take());
                let mut looking = taken.unwrap_or_else(|| Vitals::new(Arc::clone(&core), Arc::clone(&health.borrow())));
                let looked = blocking(move || {
                    let look = looking.look(at);
                    (looking, look)
                })
                .await;
                if let Some((after, look)) = works.saw("health", looked) {
                    vitals = Some(after);
                    // Without a change the next frame brings it.
                    if look.news {
                        health.send_replace(look.report);
                    }
                    look.events.into_iter().for_each(|event| drop(events.send(Arc::new(event))));
                }
                if let Some(lost) = &mut lost {
                    lost.count(at);
                }
                if let Some(metrics) = core.sources.metrics.clone() {
                    works.saw("upkeep", blocking(move || metrics.upkeep(at)).await);
                }
            }
            if tick {
                let (core, last, at) = (Arc::clone(&core), Arc::clone(&frames.borrow()), now());
                let report = Arc::new(core.sources.health.report(at, core.sources.anchor.wall_at(at)));
                let current = Arc::clone(&report);
                let made = blocking(move || Frame::next(&core, &last, current, at)).await;
                if let Some(frame) = works.saw("a frame", made) {
                    health.send_replace(report);
                    frames.send_replace(Arc::new(frame));
                }
            }
        }
    }
}

/// Waits until one of these is due at least, and tells which are.
async fn due<const N: usize>(mut intervals: [&mut Interval; N]) -> [bool; N] {
    poll_fn(|cx| {
        let due = intervals.each_mut().map(|interval| interval.poll_tick(cx).is_ready());
        if due.contains(&true) { Poll::Ready(due) } else { Poll::Pending }
    })
    .await
}

fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// Counts what the tracer had no place for: it knows no metrics.
struct LostSpans {
    tracer: Tracer,
    dropped: Counter,
    counted: u64,
}

impl LostSpans {
    /// What they are dropped as.
    const WHAT: &'static str = "span";

    fn new(core: &Core) -> Option<Self> {
        let (tracer, metrics) = core.sources.tracer.clone().zip(core.sources.metrics.as_ref())?;
        Some(Self { tracer, dropped: metrics.dropped(Self::WHAT), counted: 0 })
    }

    fn count(&mut self, at: Instant) {
        let lost = self.tracer.lost();
        let new = lost - std::mem::replace(&mut self.counted, lost);
        if new > 0 {
            self.dropped.add(new, at);
        }
    }
}

/// Tells health whether the observing itself works.
struct Works<'a> {
    core: &'a Core,
    /// The kinds of work whose last attempt failed.
    failing: BTreeSet<&'static str>,
}

impl<'a> Works<'a> {
    /// The component that the hub reports itself as.
    const COMPONENT: &'static str = "observability";

    fn new(core: &'a Core) -> Self {
        let works = Self { core, failing: BTreeSet::new() };
        works.tell();
        works
    }

    /// What was worked out, if it was; `what` names the kind of work.
    fn saw<T>(&mut self, what: &'static str, worked: Result<T, JoinError>) -> Option<T> {
        let changed = match &worked {
            Ok(_) => self.failing.remove(what),
            Err(error) => {
                tracing::error!(%error, "{what} failed; it is tried again");
                self.failing.insert(what)
            }
        };
        if changed {
            self.tell();
        }
        worked.ok()
    }

    fn tell(&self) {
        let sources = &self.core.sources;
        let (state, message) = match self.failing.first() {
            None => (State::Healthy, "Observability running".to_owned()),
            Some(_) => {
                let all: Vec<_> = self.failing.iter().copied().collect();
                (State::Warning, format!("Observability failing: {}", all.join(", ")))
            }
        };
        sources.reporter.set(Self::COMPONENT, state, message, sources.anchor.wall_at(now()));
    }
}

#[cfg(test)]
mod tests {
    use mcpscope_core::ClockAnchor;
    use mcpscope_health::channel;

    use super::*;
    use crate::{Config, Sources};

    #[tokio::test(start_paused = true)]
    async fn one_kind_of_work_that_fails_is_not_hidden_by_another_that_works() {
        let anchor = ClockAnchor { mono: now(), wall: std::time::SystemTime::UNIX_EPOCH };
        let (reporter, health) = channel(anchor.mono);
        let sources =
            Sources { metrics: None, tracer: None, reporter, health, instrumentation: None, chaos: None, anchor };
        let core = Core { sources, config: Config::default() };
        let mut works = Works::new(&core);
        let state = || {
            let report = core.sources.health.report(anchor.mono, anchor.wall);
            let component = &report.components[Works::COMPONENT];
            (component.state, component.message.clone())
        };
        assert_eq!(state(), (State::Healthy, "Observability running".to_owned()));
        let panicked = async || blocking::<()>(|| panic!("provoked")).await;
        assert_eq!(works.saw("a frame", panicked().await), None);
        assert_eq!(works.saw("health", Ok(())), Some(()));
        assert_eq!(state(), (State::Warning, "Observability failing: a frame".to_owned()));
        works.saw("a frame", Ok(()));
        assert_eq!(state().0, State::Healthy);
    }
}
