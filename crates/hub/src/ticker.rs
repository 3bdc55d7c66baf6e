//! The tick.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_health::{Report, State};
use tokio::sync::{broadcast, watch};
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
    /// The work is done on the runtime's blocking threads: it copies every series, and whoever answers requests on this
    /// runtime must not wait for it. What panics there is logged and shown as health, and tried again at the next tick.
    pub async fn run(self) {
        let Self { core, frames, health, events } = self;
        let config = &core.config;
        let mut window = every(config.aggregation_interval);
        window.reset();
        let (mut beat, mut tick) = (every(BEAT), every(config.update_interval));
        let mut vitals = Some(Vitals::new(Arc::clone(&core), Arc::clone(&health.borrow())));
        let works = Works::new(&core);
        loop {
            tokio::select! {
                // In this order: a frame has the window that ends with it, and the health of its own second.
                biased;
                _ = window.tick() => {
                    if let Some(metrics) = core.sources.metrics.clone() {
                        works.saw(blocking(move || metrics.close_window(now())).await.map(drop));
                    }
                }
                _ = beat.tick() => {
                    let (at, taken) = (now(), vitals.take());
                    let mut looking = taken.unwrap_or_else(|| Vitals::new(Arc::clone(&core), Arc::clone(&health.borrow())));
                    let looked = blocking(move || { let look = looking.look(at); (looking, look) }).await;
                    if let Some((after, look)) = works.saw(looked) {
                        vitals = Some(after);
                        // Without a change the next frame brings it.
                        if look.news {
                            health.send_replace(look.report);
                        }
                        look.events.into_iter().for_each(|event| drop(events.send(Arc::new(event))));
                    }
                }
                _ = tick.tick() => {
                    let (core, last, at) = (Arc::clone(&core), Arc::clone(&frames.borrow()), now());
                    let report = Arc::new(core.sources.health.report(at, core.sources.anchor.wall_at(at)));
                    let current = Arc::clone(&report);
                    if let Some(frame) = works.saw(blocking(move || Frame::next(&core, &last, current, at)).await) {
                        health.send_replace(report);
                        frames.send_replace(Arc::new(frame));
                    }
                }
            }
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, tokio::task::JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// Tells health whether the observing itself works.
struct Works<'a>(&'a Core);

impl<'a> Works<'a> {
    /// The component that the hub reports itself as.
    const COMPONENT: &'static str = "observability";

    fn new(core: &'a Core) -> Self {
        core.sources.reporter.set(Self::COMPONENT, State::Healthy, "Observability running", SystemTime::now());
        Self(core)
    }

    fn saw<T>(&self, worked: Result<T, tokio::task::JoinError>) -> Option<T> {
        let reporter = &self.0.sources.reporter;
        match worked {
            Ok(done) => {
                reporter.set(Self::COMPONENT, State::Healthy, "Observability running", SystemTime::now());
                Some(done)
            }
            Err(error) => {
                tracing::error!(%error, "a tick failed; it is tried again");
                reporter.set(Self::COMPONENT, State::Warning, "Observability failing", SystemTime::now());
                None
            }
        }
    }
}
