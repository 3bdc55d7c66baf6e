//! What keeps the metrics that are not ours.

use std::fmt;
use std::time::Instant;

use ::metrics::{Key, Unit};

use crate::metrics::Metrics;

/// What a value is counted as in `mcpscope_dropped_total` that is no number that the metric can take.
pub(crate) const BAD_VALUE: &str = "bad_value";
/// What a record is counted as that would make a series too many.
const GENERAL_SERIES: &str = "general_series";

/// Keeps the metrics that are not critical, and shows them: those of libraries, and samples of what is recorded by name.
///
/// `is_taken` says of the name of a family, a counter's without `_total`, whether one of ours has it.
pub trait General: fmt::Debug + Send + Sync {
    /// Takes a value, which is finite, that was recorded by name. It was chosen by the sampling rate already.
    ///
    /// # Errors
    /// [`Refusal`]: it was not kept.
    fn record(
        &self,
        name: &str,
        value: f64,
        labels: &[(&str, &str)],
        is_taken: &dyn Fn(&str) -> bool,
    ) -> Result<(), Refusal>;

    /// A counter of a library.
    ///
    /// # Errors
    /// [`Refusal`]: it is not kept.
    fn counter(&self, key: &Key, is_taken: &dyn Fn(&str) -> bool) -> Result<::metrics::Counter, Refusal>;

    /// A gauge of a library.
    ///
    /// # Errors
    /// As [`General::counter`].
    fn gauge(&self, key: &Key, is_taken: &dyn Fn(&str) -> bool) -> Result<::metrics::Gauge, Refusal>;

    /// A histogram of a library.
    ///
    /// # Errors
    /// As [`General::counter`].
    fn histogram(&self, key: &Key, is_taken: &dyn Fn(&str) -> bool) -> Result<::metrics::Histogram, Refusal>;

    /// What a library says of its metric.
    fn describe(&self, _name: &str, _unit: Option<Unit>, _help: &str) {}

    /// Whether it keeps a metric of this name, a counter's without `_total`: nobody else may show one then.
    fn has(&self, _base: &str) -> bool {
        false
    }

    /// All that is kept, as Prometheus text 0.0.4 with `# HELP` and `# TYPE` for each family.
    fn to_prometheus(&self) -> String;

    /// Tidies up; to be called every second or so.
    fn upkeep(&self) {}

    /// How many records by name were taken since the last reset.
    fn records(&self) -> u64;

    /// Forgets how many records there were. What is shown stays: a scraper needs it to grow.
    fn reset(&self) {}

    /// What was dropped by handles since the last call.
    fn take_dropped(&self) -> Dropped {
        Dropped::default()
    }
}

/// What handles had to drop, which cannot say so themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Values that are no numbers, or infinite.
    pub bad_values: u64,
    /// Values of series that were idle, and whose place others have by now.
    pub series: u64,
}

/// Why a metric that is not critical is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It would be taken for one of ours.
    #[error("the names that begin with mcpscope_, mcp_ or process_ are mcpscope's own")]
    ReservedName,
    /// Beside the others, it would make the page one that cannot be read.
    #[error("it cannot be shown: {0}")]
    Conflict(&'static str),
    /// There are as many series as are kept.
    #[error("there are too many series that are not critical")]
    TooManySeries,
}

impl Refusal {
    /// What it is counted as in `mcpscope_dropped_total`.
    #[must_use]
    pub const fn what(&self) -> &'static str {
        match self {
            Self::ReservedName => "reserved_name",
            Self::Conflict(_) => METRIC_CONFLICT,
            Self::TooManySeries => GENERAL_SERIES,
        }
    }
}

/// What a metric is counted as that cannot be beside the others.
pub(crate) const METRIC_CONFLICT: &str = "metric_conflict";

impl Metrics {
    /// Lets [`Config::general`](crate::Config::general) tidy up. The owner calls it every second, which is `at`.
    pub fn upkeep(&self, at: Instant) {
        if let Some(general) = &self.inner().general {
            general.upkeep();
        }
        self.count_dropped(at);
    }

    /// What handles of others dropped could not be counted where it was dropped.
    pub(crate) fn count_dropped(&self, at: Instant) {
        let Some(general) = &self.inner().general else { return };
        let Dropped { bad_values, series } = general.take_dropped();
        for (what, dropped) in [(BAD_VALUE, bad_values), (GENERAL_SERIES, series)] {
            if dropped > 0 {
                self.dropped(what).add(dropped, at);
            }
        }
    }

    /// Whether a family of ours has this name, a counter's without `_total`.
    pub(crate) fn is_taken(&self, name: &str) -> bool {
        let base = |name: &str| name.strip_suffix("_total").unwrap_or(name).len();
        self.family(|desc| desc.prometheus.get(..base(&desc.prometheus)) == Some(name)).is_some()
    }
}
