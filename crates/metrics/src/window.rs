//! Windows: what happened between two snapshots.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_core::{ClockAnchor, Labels};

use crate::schema::{Desc, Unit};
use crate::snapshot::{HistogramSnapshot, SeriesSnapshot, Snapshot, Value};

/// A closed window.
#[derive(Clone, Debug)]
pub struct Window {
    /// When it began.
    pub start: SystemTime,
    /// When it was closed.
    pub end: SystemTime,
    /// The series with something to say: gauges always, the others if something was recorded.
    pub series: Vec<WindowSeries>,
}

/// One series in a window.
#[derive(Clone, Debug)]
pub struct WindowSeries {
    /// The family.
    pub desc: Arc<Desc>,
    /// The labels.
    pub labels: Labels,
    /// The numbers.
    pub stats: Stats,
}

/// The numbers of one series in one window: milliseconds for durations, else the metric's own unit.
///
/// `count` and `sum` are exact. A gauge is sampled once, when the window closes, with its lowest and highest value since
/// the last; for a counter every event is a record of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Lowest value.
    pub min: f64,
    /// Highest value.
    pub max: f64,
    /// Mean.
    pub avg: f64,
    /// Number of records.
    pub count: u64,
    /// Sum of the records.
    pub sum: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Records per second.
    pub rate: f64,
}

impl Stats {
    fn events(count: u64, unit: Unit, seconds: f64) -> Self {
        // A counter of seconds holds nanoseconds, each of which is an event.
        let each = if unit == Unit::Seconds { 1e-9 } else { 1.0 };
        let one = if count > 0 { each } else { 0.0 };
        Self { count, sum: count as f64 * each, rate: per_second(count, seconds) * each, ..Self::all(one) }
    }

    /// A single sample.
    fn sample(value: f64, (min, max): (f64, f64)) -> Self {
        Self { min, max, count: 1, sum: value, ..Self::all(value) }
    }

    fn all(value: f64) -> Self {
        Self { min: value, max: value, avg: value, p50: value, p90: value, p95: value, p99: value, ..Self::default() }
    }

    pub(crate) fn durations(values: &HistogramSnapshot, extremes: Option<(f64, f64)>, seconds: f64) -> Self {
        if values.count == 0 {
            return Self::default();
        }
        let ends = (values.quantile_ns(0.0) as f64 / 1e6, values.quantile_ns(1.0) as f64 / 1e6);
        let (lowest, highest) = values.ends_ns();
        // A record made while the window closes can have left its extremes in the neighbouring window: only if they cannot
        // be those of the values that were counted, what the scale says takes their place.
        let (min, max) = extremes.map_or(ends, |(min, max)| {
            (
                if min > lowest as f64 / 1e6 { ends.0 } else { min },
                if max < highest as f64 / 1e6 { ends.1 } else { max },
            )
        });
        let quantile = |q| (values.quantile_ns(q) as f64 / 1e6).clamp(min, max);
        let sum = values.sum_ns as f64 / 1e6;
        Self {
            min,
            max,
            // Also of a record made meanwhile, the sum may be in this window and the count in the next.
            avg: (sum / values.count as f64).clamp(min, max),
            count: values.count,
            sum,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p95: quantile(0.95),
            p99: quantile(0.99),
            rate: per_second(values.count, seconds),
        }
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// Lowest and highest value by series.
pub(crate) type Extremes = HashMap<u64, (f64, f64)>;

#[derive(Debug)]
pub(crate) struct Windows {
    anchor: ClockAnchor,
    retention: Duration,
    /// The cumulative values at the end of the last window.
    last: Cumulative,
    /// The cumulative values at the last reset.
    pub(crate) baseline: Cumulative,
    closed: VecDeque<Arc<Window>>,
}

/// What series had counted at some time. Those that are not shown any more stay: they may come back.
#[derive(Debug)]
pub(crate) struct Cumulative {
    at: SystemTime,
    values: HashMap<u64, Value>,
}

impl Cumulative {
    fn nothing(at: SystemTime) -> Self {
        Self { at, values: HashMap::new() }
    }

    fn reset(&mut self, at: SystemTime, now: &Snapshot) {
        self.at = at;
        let series = now.families.iter().flat_map(|family| family.series.iter().chain(&family.hidden));
        self.values.extend(series.map(|series| (series.number, series.value.clone())));
    }

    pub(crate) const fn at(&self) -> SystemTime {
        self.at
    }

    /// Events since then; 0 for a gauge.
    pub(crate) fn events_since(&self, now: &SeriesSnapshot) -> u64 {
        match (&now.value, self.values.get(&now.number)) {
            (Value::Counter(now), Some(Value::Counter(then))) => now.saturating_sub(*then),
            (Value::Histogram(now), Some(Value::Histogram(then))) => now.count.saturating_sub(then.count),
            (Value::Counter(now), _) => *now,
            (Value::Histogram(now), _) => now.count,
            (Value::Gauge(_), _) => 0,
        }
    }
}

impl Windows {
    pub(crate) fn new(anchor: ClockAnchor, retention: Duration) -> Self {
        let (last, baseline) = (Cumulative::nothing(anchor.wall), Cumulative::nothing(anchor.wall));
        Self { anchor, retention, last, baseline, closed: VecDeque::new() }
    }

    pub(crate) fn close(&mut self, now: Snapshot, extremes: &Extremes) -> Arc<Window> {
        let (start, end) = (self.last.at, self.anchor.wall_at(now.at));
        let seconds = end.duration_since(start).unwrap_or_default().as_secs_f64();
        self.last.at = end;
        let mut series = Vec::new();
        for family in now.families {
            for s in family.series {
                let extremes = extremes.get(&s.number).copied();
                let stats = match (&s.value, self.last.values.get(&s.number)) {
                    (Value::Counter(_), _) => Stats::events(self.last.events_since(&s), family.desc.unit, seconds),
                    (Value::Gauge(value), _) => Stats::sample(*value, extremes.unwrap_or((*value, *value))),
                    (Value::Histogram(now), Some(Value::Histogram(then))) => {
                        Stats::durations(&now.since(then), extremes, seconds)
                    }
                    (Value::Histogram(now), _) => Stats::durations(now, extremes, seconds),
                };
                // A record under way may have added to the sum and not yet to the count: both go to the next window.
                if stats.count > 0 {
                    self.last.values.insert(s.number, s.value);
                    series.push(WindowSeries { desc: Arc::clone(&family.desc), labels: s.labels, stats });
                }
            }
        }
        // Kept for long, and many of them.
        series.shrink_to_fit();
        let window = Arc::new(Window { start, end, series });
        self.closed.push_back(Arc::clone(&window));
        while self.closed.front().is_some_and(|w| w.end + self.retention < end) {
            self.closed.pop_front();
        }
        window
    }

    pub(crate) fn closed(&self) -> Vec<Arc<Window>> {
        self.closed.iter().cloned().collect()
    }

    pub(crate) fn newest(&self) -> Option<Arc<Window>> {
        self.closed.back().cloned()
    }

    pub(crate) fn reset(&mut self, now: &Snapshot) {
        self.closed.clear();
        let at = self.anchor.wall_at(now.at);
        self.last.reset(at, now);
        self.baseline.reset(at, now);
    }

    /// Only these series can come again.
    pub(crate) fn keep(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.last.values.retain(|number, _| is_kept(*number));
        self.baseline.values.retain(|number, _| is_kept(*number));
    }
}
