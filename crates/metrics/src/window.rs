//! Windows: what happened between two snapshots.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_core::{ClockAnchor, Labels};

use crate::schema::Desc;
use crate::snapshot::{HistogramSnapshot, Snapshot, Value};

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
    pub desc: &'static Desc,
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
    fn events(count: u64, seconds: f64) -> Self {
        let one = if count > 0 { 1.0 } else { 0.0 };
        Self { count, sum: count as f64, rate: per_second(count, seconds), ..Self::all(one) }
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
        // A record made while the window closes can have left its extremes in the neighbouring window.
        let ends = (values.quantile_ns(0.0) as f64 / 1e6, values.quantile_ns(1.0) as f64 / 1e6);
        let (min, max) = extremes.unwrap_or(ends);
        let quantile = |q| (values.quantile_ns(q) as f64 / 1e6).clamp(min, max);
        let sum = values.sum_ns as f64 / 1e6;
        Self {
            min,
            max,
            avg: sum / values.count as f64,
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

/// Lowest and highest value by family and labels.
pub(crate) type Extremes = HashMap<(&'static str, Labels), (f64, f64)>;

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

#[derive(Debug)]
pub(crate) struct Cumulative {
    at: SystemTime,
    values: HashMap<(&'static str, Labels), Value>,
}

impl Cumulative {
    fn new(at: SystemTime, snapshot: &Snapshot) -> Self {
        let series = snapshot.families.iter().flat_map(|f| f.series.iter().map(|s| (f.desc.prometheus, s)));
        let values = series.map(|(name, s)| ((name, s.labels.clone()), s.value.clone())).collect();
        Self { at, values }
    }

    fn get(&self, desc: &Desc, labels: &Labels) -> Option<&Value> {
        self.values.get(&(desc.prometheus, labels.clone()))
    }

    /// Events since then; 0 for a gauge.
    pub(crate) fn events_since(&self, desc: &Desc, labels: &Labels, now: &Value) -> u64 {
        match (now, self.get(desc, labels)) {
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
        let nothing = || Cumulative { at: anchor.wall, values: HashMap::new() };
        Self { anchor, retention, last: nothing(), baseline: nothing(), closed: VecDeque::new() }
    }

    pub(crate) fn close(&mut self, now: &Snapshot, extremes: &Extremes) -> Arc<Window> {
        let (start, end) = (self.last.at, self.anchor.wall_at(now.at));
        let seconds = end.duration_since(start).unwrap_or_default().as_secs_f64();
        let mut series = Vec::new();
        let mut next = Cumulative::new(end, now);
        for family in &now.families {
            for s in &family.series {
                let before = self.last.get(family.desc, &s.labels);
                let extremes = extremes.get(&(family.desc.prometheus, s.labels.clone())).copied();
                let stats = match (&s.value, before) {
                    (Value::Counter(_), _) => {
                        Stats::events(self.last.events_since(family.desc, &s.labels, &s.value), seconds)
                    }
                    (Value::Gauge(value), _) => {
                        let value = *value as f64;
                        Stats::sample(value, extremes.unwrap_or((value, value)))
                    }
                    (Value::Histogram(now), Some(Value::Histogram(then))) => {
                        Stats::durations(&now.since(then), extremes, seconds)
                    }
                    (Value::Histogram(now), _) => Stats::durations(now, extremes, seconds),
                };
                if stats.count > 0 {
                    series.push(WindowSeries { desc: family.desc, labels: s.labels.clone(), stats });
                } else {
                    // A record under way may have added to the sum and not yet to the count: both go to the next window.
                    let key = (family.desc.prometheus, s.labels.clone());
                    match before {
                        Some(before) => next.values.insert(key, before.clone()),
                        None => next.values.remove(&key),
                    };
                }
            }
        }
        let window = Arc::new(Window { start, end, series });
        self.last = next;
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
        self.last = Cumulative::new(self.anchor.wall_at(now.at), now);
        self.baseline = Cumulative::new(self.anchor.wall_at(now.at), now);
    }
}
