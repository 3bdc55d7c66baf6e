#![doc = include_str!("../README.md")]

mod admin;
mod experiments;
mod frame;
mod reader;
mod ticker;
mod token;
mod turn;
mod vitals;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_core::ClockAnchor;
use mcpscope_health::rules::Thresholds;
use mcpscope_health::{Reporter, View};
use mcpscope_hooks::Instrumentation;
use mcpscope_metrics::Metrics;
use mcpscope_tracing::Tracer;
use tokio::sync::{broadcast, watch};

pub use mcpscope_chaos as chaos;
pub use mcpscope_health as health;
pub use mcpscope_hooks as hooks;
pub use mcpscope_metrics as metrics;
pub use mcpscope_tracing as tracing;

pub use admin::{Admin, AdminError};
pub use experiments::{Calls, Chaos, ChaosSource};
pub use frame::{Frame, MetricsFrame};
pub use reader::{Events, Frames, InstrumentationStatus, InstrumentedComponent, Off, Reader, TraceFollower};
pub use ticker::Hub;
pub use token::ChaosToken;
pub use turn::Turn;
pub use vitals::{Change, Event};

/// What is observed. What is left out is off.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The metrics, where they are on.
    pub metrics: Option<Metrics>,
    /// The traces, where tracing is on.
    pub tracer: Option<Tracer>,
    /// Where the hub reports what it works out from the metrics.
    pub reporter: Reporter,
    /// Health, readiness and usage; the other end of `reporter`.
    pub health: View,
    /// What is instrumented.
    pub instrumentation: Option<Instrumentation>,
    /// The chaos engine, where there is one; [`Admin::chaos`] is then to be run.
    pub chaos: Option<ChaosSource>,
    /// The instance's start on both clocks.
    pub anchor: ClockAnchor,
}

/// How often, and how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// From one frame to the next. Default: [`Config::DEFAULT_UPDATE_INTERVAL`].
    pub update_interval: Duration,
    /// Length of a window. Default: [`Config::DEFAULT_AGGREGATION_INTERVAL`].
    pub aggregation_interval: Duration,
    /// Most traces in a frame. Default: [`Config::DEFAULT_MAX_TRACES`].
    pub max_traces: usize,
    /// Most series in [`MetricsFrame::shown`]. Default: [`Config::DEFAULT_MAX_SERIES`].
    pub max_series: usize,
    /// From which share of errors on a component is not healthy.
    pub thresholds: Thresholds,
}

impl Config {
    /// 5 s (behaviour D1).
    pub const DEFAULT_UPDATE_INTERVAL: Duration = Duration::from_secs(5);
    /// 10 s (behaviour M3).
    pub const DEFAULT_AGGREGATION_INTERVAL: Duration = Duration::from_secs(10);
    /// 100 (behaviour D1).
    pub const DEFAULT_MAX_TRACES: usize = 100;
    /// 50 (behaviour D1).
    pub const DEFAULT_MAX_SERIES: usize = 50;
}

impl Default for Config {
    fn default() -> Self {
        Self {
            update_interval: Self::DEFAULT_UPDATE_INTERVAL,
            aggregation_interval: Self::DEFAULT_AGGREGATION_INTERVAL,
            max_traces: Self::DEFAULT_MAX_TRACES,
            max_series: Self::DEFAULT_MAX_SERIES,
            thresholds: Thresholds::default(),
        }
    }
}

/// Events that a reader may be behind before it misses some.
const EVENTS: usize = 256;

/// Makes a hub over `sources`: the future to run, the handle of readers, and the handle of those who change something.
///
/// Until the hub runs there is one frame, number 0: no metrics, no traces, healthy, no components (behaviour D2).
pub fn hub(sources: Sources, config: Config) -> (Hub, Reader, Admin) {
    let first = Frame::empty(&sources.anchor);
    let (health, health_seen) = watch::channel(Arc::clone(&first.health));
    let (frames, frames_seen) = watch::channel(Arc::new(first));
    let (events, _) = broadcast::channel(EVENTS);
    let core = Arc::new(Core { sources, config });
    let reader = Reader::new(Arc::clone(&core), frames_seen, health_seen, events.downgrade());
    let chaos = core.sources.chaos.clone().map(|source| Chaos::new(Arc::clone(&core), source, events.downgrade()));
    let admin = Admin::new(Arc::clone(&core), chaos);
    (Hub::new(core, frames, health, events), reader, admin)
}

/// What the three handles share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) sources: Sources,
    pub(crate) config: Config,
}

/// Now, on the clock of the runtime, which tests can stop.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
