//! The critical metrics as the APIs show them: by their critical names, in their units, with the last window.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{Instant, SystemTime};

use mcpscope_core::{Component, Labels};

use crate::Metrics;
use crate::metrics::saturating;
use crate::schema::{Desc, Kind, desc};
use crate::snapshot::{FamilySnapshot, SeriesSnapshot, Snapshot, Value};
use crate::window::{Cumulative, Stats, Window, WindowSeries};

/// One critical metric.
#[derive(Clone, Debug)]
pub struct MetricView {
    /// The critical name.
    pub name: Cow<'static, str>,
    /// `1/s`, `ms`, `1` (a number) or `ratio`.
    pub unit: &'static str,
    /// `rate`, `histogram`, `gauge` or `ratio`.
    pub kind: &'static str,
    /// Its series.
    pub series: Vec<MetricSeries>,
}

/// One series of a critical metric.
#[derive(Clone, Debug)]
pub struct MetricSeries {
    /// The labels. In `error_rates_by_component`, `error_type` is empty for a component without errors.
    pub labels: Labels,
    /// The newest value: the rate or ratio of the last window (before the first one: since the start), the gauge's value
    /// now, or the last duration in ms.
    pub value: f64,
    /// The last window; none before the first is closed or if nothing was recorded in it.
    pub window: Option<Stats>,
}

/// The numbers at a glance (behaviour M5).
#[derive(Clone, Debug)]
pub struct Summary {
    /// When it was made.
    pub timestamp: SystemTime,
    /// Number of raw records of critical metrics held.
    pub critical_metrics: usize,
    /// The same, and the records by other names that were kept since the last reset.
    pub total_metrics: usize,
    /// The last window by critical name, over all series.
    pub aggregates: BTreeMap<Cow<'static, str>, Stats>,
    /// Events since the last reset by critical name; gauges have none.
    pub counters: BTreeMap<Cow<'static, str>, u64>,
}

impl Metrics {
    /// All critical metrics at `now`.
    #[must_use]
    pub fn views(&self, now: Instant) -> Vec<MetricView> {
        self.views_of(&self.snapshot(now))
    }

    /// All critical metrics as they were in a snapshot of this instance, with the last window.
    #[must_use]
    pub fn views_of(&self, snapshot: &Snapshot) -> Vec<MetricView> {
        let windows = self.windows();
        let newest = windows.newest();
        let window = newest.as_deref().map(by_family);
        let since = Since { baseline: &windows.baseline, end: self.anchor().wall_at(snapshot.at) };
        let critical = self.critical_families();
        critical.iter().filter_map(|desc| view(desc, snapshot, window.as_ref(), &since)).collect()
    }

    /// One critical metric by name; none of that name if the answer is none.
    #[must_use]
    pub fn metrics(&self, name: &str, now: Instant) -> Option<MetricView> {
        self.views(now).into_iter().find(|view| view.name == name)
    }

    /// The names of all critical metrics: the seven, then the declared ones.
    #[must_use]
    pub fn critical_names(&self) -> Vec<Cow<'static, str>> {
        self.critical_families().iter().filter_map(|desc| desc.critical.clone()).collect()
    }

    /// The numbers at a glance.
    #[must_use]
    pub fn summary(&self, now: Instant) -> Summary {
        let snapshot = self.snapshot(now);
        let windows = self.windows();
        let newest = windows.newest();
        let newest = newest.as_deref().map(by_family);
        let mut aggregates = BTreeMap::new();
        let mut counters = BTreeMap::new();
        for family in self.critical_families().iter().filter_map(|desc| family(&snapshot, desc)) {
            let Some(name) = family.desc.critical.clone() else { continue };
            if family.desc.kind != Kind::Gauge {
                let events = family.series.iter().map(|series| windows.baseline.events_since(series));
                counters.insert(name.clone(), saturating(events));
            }
            let stats: Vec<Stats> = if *family.desc == desc::COMPONENT_ERRORS {
                // Of a ratio, the ratios are what is aggregated, not the errors that it is made of.
                let rates =
                    newest.as_ref().map(|window| error_rates(&snapshot, Some(window), &windows.baseline).series);
                rates.into_iter().flatten().filter_map(|s| s.window).filter(|stats| stats.count > 0).collect()
            } else {
                newest.iter().flat_map(|w| of(w, &family.desc)).map(|s| s.stats).collect()
            };
            if let Some(mut total) = aggregate(&stats) {
                if *family.desc == desc::COMPONENT_ERRORS {
                    // A component is in there once for each type of error; its operations count once.
                    let is_shown = |s: &&WindowSeries| {
                        Component::ALL.iter().any(|component| s.labels.get("component") == Some(component.as_str()))
                    };
                    let operations = newest.iter().flat_map(|w| of(w, &desc::COMPONENT_OPERATIONS)).filter(is_shown);
                    total.count = saturating(operations.map(|s| s.stats.count));
                    total.avg = if total.count > 0 { total.sum / total.count as f64 } else { 0.0 };
                }
                aggregates.insert(name, total);
            }
        }
        let critical_metrics = self.raw_len();
        let others = self.inner().general.as_ref().map_or(0, |general| general.records());
        let total_metrics = critical_metrics.saturating_add(usize::try_from(others).unwrap_or(usize::MAX));
        Summary { timestamp: self.anchor().wall_at(now), critical_metrics, total_metrics, aggregates, counters }
    }
}

fn family<'a>(snapshot: &'a Snapshot, desc: &Desc) -> Option<&'a FamilySnapshot> {
    snapshot.families.iter().find(|f| *f.desc == *desc)
}

/// The series of a window by the name of their family in Prometheus.
type ByFamily<'a> = HashMap<&'a str, Vec<&'a WindowSeries>>;

fn by_family(window: &Window) -> ByFamily<'_> {
    let mut families = ByFamily::new();
    window.series.iter().for_each(|series| families.entry(&series.desc.prometheus).or_default().push(series));
    families
}

fn of<'a>(window: &ByFamily<'a>, desc: &Desc) -> impl Iterator<Item = &'a WindowSeries> {
    window.get(&*desc.prometheus).into_iter().flatten().copied()
}

/// The time since the start of the instance, or since the last reset.
struct Since<'a> {
    baseline: &'a Cumulative,
    end: SystemTime,
}

impl Since<'_> {
    /// Events per second. A rate over less than one says little: three operations in the first millisecond are not 3000/s.
    fn rate(&self, series: &SeriesSnapshot) -> f64 {
        let seconds = self.end.duration_since(self.baseline.at()).unwrap_or_default().as_secs_f64();
        self.baseline.events_since(series) as f64 / seconds.max(1.0)
    }
}

fn view(desc: &Desc, snapshot: &Snapshot, window: Option<&ByFamily<'_>>, since: &Since<'_>) -> Option<MetricView> {
    if *desc == desc::COMPONENT_ERRORS {
        return Some(error_rates(snapshot, window, since.baseline));
    }
    let family = family(snapshot, desc)?;
    let in_window: HashMap<&Labels, Stats> =
        window.into_iter().flat_map(|w| of(w, desc)).map(|s| (&s.labels, s.stats)).collect();
    let series = family.series.iter().map(|s| {
        let stats = in_window.get(&s.labels).copied();
        let value = match &s.value {
            Value::Gauge(value) => *value,
            Value::Histogram(values) => values.last_ns as f64 / 1e6,
            Value::Counter(_) if window.is_some() => stats.map_or(0.0, |s| s.rate),
            Value::Counter(_) => since.rate(s),
        };
        MetricSeries { labels: s.labels.clone(), value, window: stats }
    });
    let series = series.collect();
    let (unit, kind) = match desc.kind {
        Kind::Counter => ("1/s", "rate"),
        Kind::Gauge => ("1", "gauge"),
        Kind::Histogram => ("ms", "histogram"),
    };
    Some(MetricView { name: desc.critical.clone()?, unit, kind, series })
}

/// Errors over operations, by component, error type and whether injected.
fn error_rates(snapshot: &Snapshot, window: Option<&ByFamily<'_>>, baseline: &Cumulative) -> MetricView {
    // Counts since the start or the last reset until there is a window, then those of the window.
    let counts = |desc: &'static Desc| -> Vec<(Labels, u64)> {
        match window {
            Some(window) => of(window, desc).map(|s| (s.labels.clone(), s.stats.count)).collect(),
            None => family(snapshot, desc)
                .into_iter()
                .flat_map(|f| &f.series)
                .map(|s| (s.labels.clone(), baseline.events_since(s)))
                .collect(),
        }
    };
    let (errors, operations) = (counts(&desc::COMPONENT_ERRORS), counts(&desc::COMPONENT_OPERATIONS));
    let total = |component: &str| -> u64 {
        let mine = operations.iter().filter(|(labels, _)| labels.get("component") == Some(component));
        saturating(mine.map(|(_, n)| *n))
    };
    let mut series = Vec::new();
    for component in Component::ALL.map(Component::as_str) {
        let total = total(component);
        let ratio = |n: u64| if total == 0 { 0.0 } else { (n as f64 / total as f64).min(1.0) };
        let mut one = |labels, errors| {
            let value = ratio(errors);
            let stats = Stats {
                min: value,
                max: value,
                avg: value,
                count: total,
                sum: errors as f64,
                p50: value,
                p90: value,
                p95: value,
                p99: value,
                rate: 0.0,
            };
            series.push(MetricSeries { labels, value, window: window.is_some().then_some(stats) });
        };
        let is_mine = |labels: &Labels| labels.get("component") == Some(component);
        let mine: Vec<_> = errors.iter().filter(|(labels, n)| *n > 0 && is_mine(labels)).collect();
        if mine.is_empty() {
            one(Labels::new([("component", component), ("error_type", ""), ("injected", "false")]), 0);
        }
        mine.into_iter().for_each(|(labels, n)| one(labels.clone(), *n));
    }
    MetricView { name: Cow::Borrowed("error_rates_by_component"), unit: "ratio", kind: "ratio", series }
}

/// One line for several series. Percentiles cannot be added: the highest stands for all.
fn aggregate(stats: &[Stats]) -> Option<Stats> {
    let first = *stats.first()?;
    let highest = |of: fn(&Stats) -> f64| stats.iter().map(of).fold(f64::MIN, f64::max);
    let count = saturating(stats.iter().map(|s| s.count));
    let sum = stats.iter().map(|s| s.sum).sum::<f64>();
    Some(Stats {
        min: stats.iter().map(|s| s.min).fold(first.min, f64::min),
        max: highest(|s| s.max),
        avg: if count > 0 { sum / count as f64 } else { 0.0 },
        count,
        sum,
        p50: highest(|s| s.p50),
        p90: highest(|s| s.p90),
        p95: highest(|s| s.p95),
        p99: highest(|s| s.p99),
        rate: stats.iter().map(|s| s.rate).sum(),
    })
}
