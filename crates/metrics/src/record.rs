//! Recording by name, for those who hold no handle (behaviour M2), and the raw records.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{Labels, bounded};

use crate::declared::{check_general, checked};
use crate::error::{RecordError, SHOWN_BYTES};
use crate::facade::sanitized;
use crate::family::{Family, Found};
use crate::general::Refusal;
use crate::metrics::Metrics;
use crate::schema::{Desc, Kind, desc, values_of};
use crate::series::{Cell, Series};
use crate::storage::local::local;
use crate::storage::names::Names;
use crate::storage::ring::Raw;
use crate::storage::slab::Slab;

/// Highest number of events, and highest value of our gauges: enough for anything real, and far from overflowing a sum.
const MAX_NUMBER: u32 = 1_000_000_000;
const MS_NS: f64 = 1e6;
/// Longest duration: a day.
const MAX_DURATION_NS: f64 = 24.0 * 60.0 * 60.0 * 1e9;
/// How many raw records are shown (behaviour M4).
const MAX_RAW: usize = 1000;

/// One record of a critical metric.
#[derive(Clone, Debug)]
pub struct RawRecord {
    /// The critical metric's name.
    pub name: Cow<'static, str>,
    /// The value, in the metric's unit.
    pub value: f64,
    /// The labels of its series.
    pub labels: Labels,
    /// When it was recorded.
    pub timestamp: SystemTime,
}

/// What a record by name came to, in the thread that knows what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Recorded,
    /// To be kept by others.
    Sampled,
    /// What it means, or why it is refused, is to be found out.
    Unknown,
}

impl Metrics {
    /// The names of the seven critical metrics that are always there.
    pub const CRITICAL_NAMES: [&'static str; 7] = [
        "registry_operations_per_second",
        "session_creation_latency_ms",
        "transport_connection_count",
        "tool_call_duration_ms",
        "error_rates_by_component",
        "active_sessions_count",
        "message_queue_depth",
    ];

    /// Records a value by name, which ended at `at`.
    ///
    /// For a critical metric, one of the seven or a declared one, each record counts. A label of the seven that is left
    /// out, or empty, is empty; `injected` is `false` and `outcome` is `ok`. All others but `server`, `tool`, `component` and
    /// `error_type` take only the values that mcpscope itself gives them. The value is a number of events for a counter and for
    /// `registry_operations_per_second`, a duration in the unit of the name for a histogram, the new value for a gauge, and
    /// one operation of a component, failed (1) or not (0), for `error_rates_by_component`. A gauge of a server that a
    /// relay counts is left to the relay.
    ///
    /// Records by any other name are sampled ([`Config::sampling_rate`](crate::Config::sampling_rate)) and passed on to
    /// [`Config::general`](crate::Config::general).
    ///
    /// # Errors
    /// [`RecordError`]: nothing was recorded.
    pub fn record(&self, name: &str, value: f64, labels: &[(&str, &str)], at: Instant) -> Result<(), RecordError> {
        let store = &self.inner().store;
        let done = local(store, |local| {
            let Ok(mut names) = local.names.try_borrow_mut() else { return Done::Unknown };
            match names.find_next(name, labels) {
                Some(Target::Core(core)) if self.add(core, value, local.slab(), at) => Done::Recorded,
                Some(Target::Core(_)) => Done::Unknown,
                _ => self.sample_remembered(&mut names, name, value),
            }
        });
        match done.unwrap_or(Done::Unknown) {
            Done::Recorded => Ok(()),
            Done::Sampled => self.pass_on(name, value, labels, at),
            Done::Unknown => self.record_new(name, value, labels, at),
        }
    }

    /// What becomes of a record by a name that the thread remembers as that of no critical metric. It means the same with
    /// any labels.
    #[inline(never)]
    fn sample_remembered(&self, names: &mut Names, name: &str, value: f64) -> Done {
        match names.find(name, &[]) {
            // Otherwise it may have been declared meanwhile.
            Some(found) if found.is_general_of(self.families()) => self.sample(value, names.random.u64(..)),
            _ => Done::Unknown,
        }
    }

    fn sample(&self, value: f64, random: u64) -> Done {
        if !is_general(value) {
            Done::Unknown
        } else if random < self.inner().sampled_below || self.inner().sampling_rate >= 1.0 {
            Done::Sampled
        } else {
            Done::Recorded
        }
    }

    #[cold]
    fn pass_on(&self, name: &str, value: f64, labels: &[(&str, &str)], at: Instant) -> Result<(), RecordError> {
        let Some(general) = &self.inner().general else {
            return Err(RecordError::UnknownMetric { name: bounded(name, SHOWN_BYTES).to_owned() });
        };
        general.record(name, value, labels, &|name| self.is_taken(name)).map_err(|refusal| {
            self.dropped(refusal.what()).increment(at);
            RecordError::NotKept { name: bounded(name, SHOWN_BYTES).to_owned(), refusal }
        })
    }

    /// The first record of this thread by this name and these labels, or one that is refused.
    #[cold]
    fn record_new(&self, name: &str, value: f64, labels: &[(&str, &str)], at: Instant) -> Result<(), RecordError> {
        let Some(family) = self.family(|desc| desc.is_recorded_as(name)) else {
            return self.record_general(name, value, labels, at);
        };
        // Before a series is made of it.
        if let Some(expected) = Takes::of(&family.desc).refusal(value) {
            return Err(RecordError::BadValue { metric: family.desc.name.clone(), value, expected });
        }
        let (core, is_replaced) = self.core(&family, labels)?;
        core.free()?;
        // What has no place of its own is not worth remembering, and is counted each time.
        if !is_replaced {
            self.remember(name, labels, Target::Core(core.clone()));
        }
        self.inner().store.write(|slab| _ = self.add(&core, value, slab, at));
        Ok(())
    }

    #[cold]
    fn record_general(&self, name: &str, value: f64, labels: &[(&str, &str)], at: Instant) -> Result<(), RecordError> {
        if self.inner().general.is_none() {
            return Err(RecordError::UnknownMetric { name: bounded(name, SHOWN_BYTES).to_owned() });
        }
        check_general(name, labels)?;
        // Each time, and not only those that are sampled: nobody would notice.
        if self.is_taken(&sanitized(name)) {
            let refusal = Refusal::Conflict("mcpscope has a metric of this name");
            self.dropped(refusal.what()).increment(at);
            return Err(RecordError::NotKept { name: bounded(name, SHOWN_BYTES).to_owned(), refusal });
        }
        if !is_general(value) {
            let metric = Cow::Owned(bounded(name, SHOWN_BYTES).to_owned());
            return Err(RecordError::BadValue { metric, value, expected: "a finite number from 0 on" });
        }
        let families = self.families();
        let sampled = local(&self.inner().store, |local| {
            let mut names = local.names.try_borrow_mut().ok()?;
            names.remember(name, &[], Target::General { families });
            Some(self.sample(value, names.random.u64(..)))
        });
        // A thread that is about to end draws from the time.
        let drawn = || self.sample(value, self.inner().store.since_start_ns(at).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if sampled.flatten().unwrap_or_else(drawn) == Done::Sampled {
            self.pass_on(name, value, labels, at)
        } else {
            Ok(())
        }
    }

    /// The series of a critical metric that these labels mean, and whether a label was replaced or cut.
    fn core(&self, family: &Family, labels: &[(&str, &str)]) -> Result<(Core, bool), RecordError> {
        let takes = Takes::of(&family.desc);
        match family.desc.labels {
            Some(expected) => self.ours(family, takes, expected, labels),
            None => {
                let Found { series, replaced, cut } = self.resolve(family, &checked(labels)?);
                Ok((Core { series, operations: None, takes }, replaced || cut))
            }
        }
    }

    /// What a name and labels mean, as this thread remembers it or finds it out now. Records nothing.
    ///
    /// # Errors
    /// [`RecordError`]: it means nothing, or no metric of this kind.
    pub(crate) fn target(&self, name: &str, kind: Kind, labels: &[(&str, &str)]) -> Result<Target, RecordError> {
        let taken = || RecordError::Taken { name: bounded(name, SHOWN_BYTES).to_owned() };
        let store = &self.inner().store;
        let families = self.families();
        let remembered = local(store, |local| {
            let names = local.names.try_borrow().ok()?;
            let general = || names.find(name, &[]).filter(|found| found.is_general_of(families));
            names.find(name, labels).filter(|found| matches!(found, Target::Core(_))).or_else(general).cloned()
        });
        if let Some(target) = remembered.flatten() {
            let fits = !matches!(&target, Target::Core(core) if core.series.desc.kind != kind);
            return if fits { Ok(target) } else { Err(taken()) };
        }
        let (target, labels, is_worth_it) = match self.family(|desc| desc.is_recorded_as(name)) {
            Some(family) if family.desc.kind != kind => return Err(taken()),
            Some(family) => {
                let (core, is_replaced) = self.core(&family, labels)?;
                (Target::Core(core), labels, !is_replaced)
            }
            None => (Target::General { families }, [].as_slice(), self.inner().general.is_some()),
        };
        if is_worth_it {
            self.remember(name, labels, target.clone());
        }
        Ok(target)
    }

    /// So that this thread knows the next time.
    fn remember(&self, name: &str, labels: &[(&str, &str)], target: Target) {
        local(&self.inner().store, |local| {
            if let Ok(mut names) = local.names.try_borrow_mut() {
                names.remember(name, labels, target);
            }
        });
    }

    /// What a record of one of the seven means, and whether a label was replaced or cut.
    fn ours(
        &self,
        family: &Family,
        takes: Takes,
        expected: &'static [&'static str],
        labels: &[(&str, &str)],
    ) -> Result<(Core, bool), RecordError> {
        let metric = || family.desc.name.clone();
        if let Some((label, _)) = labels.iter().find(|(label, _)| !expected.contains(label)) {
            let label = bounded(label, SHOWN_BYTES).to_owned();
            return Err(RecordError::UnknownLabel { metric: metric(), label, expected });
        }
        let mut given = labels.iter().enumerate();
        if let Some((_, (label, _))) = given.find(|(at, (label, _))| labels.iter().take(*at).any(|(l, _)| l == label)) {
            return Err(RecordError::BadLabel { label: (*label).to_owned(), expected: "each label once" });
        }
        let value_of = |name: &'static str| {
            let given = labels.iter().find_map(|(label, value)| (*label == name).then_some(*value));
            given.filter(|value| !value.is_empty()).unwrap_or(match name {
                "injected" => "false",
                "outcome" => "ok",
                _ => "",
            })
        };
        for label in expected {
            let (value, values) = (value_of(label), values_of(label));
            if let Some(expected) = values.filter(|values| !value.is_empty() && !values.contains(&value)) {
                let value = bounded(value, SHOWN_BYTES).to_owned();
                return Err(RecordError::UnknownLabelValue { metric: metric(), label, value, expected });
            }
        }
        if family.desc.kind == Kind::Gauge && self.is_announced(value_of("server")) {
            let server = bounded(value_of("server"), SHOWN_BYTES).to_owned();
            return Err(RecordError::Counted { metric: metric(), server });
        }
        let operations = (*family.desc == desc::COMPONENT_ERRORS).then(|| {
            let labels = [("component", value_of("component")), ("injected", value_of("injected"))];
            self.built_in_counter(&desc::COMPONENT_OPERATIONS, labels).0.series
        });
        let pairs: Vec<_> = expected.iter().map(|name| (*name, value_of(name))).collect();
        let Found { series, replaced, cut } = self.resolve(family, &pairs);
        Ok((Core { series, operations, takes }, replaced || cut))
    }

    /// Adds a value to what is meant, if it takes it and anybody may.
    #[inline(always)]
    #[must_use]
    pub(crate) fn add(&self, core: &Core, value: f64, slab: &Slab, at: Instant) -> bool {
        let (store, series) = (&self.inner().store, &*core.series);
        match core.takes {
            // Nearly all.
            Takes::Events => {
                let Some(n) = whole(value) else { return false };
                series.count(store, slab, n, at);
                true
            }
            _ => self.add_other(core, value, slab, at),
        }
    }

    fn add_other(&self, core: &Core, value: f64, slab: &Slab, at: Instant) -> bool {
        let (store, series) = (&self.inner().store, &*core.series);
        if core.takes.refusal(value).is_some() {
            return false;
        }
        match core.takes {
            Takes::Events => series.count(store, slab, value as u64, at),
            Takes::Duration { unit_ns } => series.observe(store, slab, (value * unit_ns + 0.5) as u64, at),
            Takes::Level | Takes::WholeLevel => {
                if core.free().is_err() {
                    return false;
                }
                if let Cell::Gauge(cell) = &series.cell {
                    series.became(store, slab, cell.set(value), at);
                }
            }
            Takes::Operation => {
                if let Some(operations) = &core.operations {
                    operations.count(store, slab, 1, at);
                }
                if value > 0.0 {
                    series.count(store, slab, 1, at);
                }
            }
        }
        true
    }

    /// The newest raw records of the critical metrics, newest first; at most 1000.
    #[must_use]
    pub fn critical_metrics(&self) -> Vec<RawRecord> {
        let slabs = self.inner().store.slabs.all();
        let mut newest: Vec<Raw> =
            slabs.iter().filter_map(|slab| slab.raw()).flat_map(|ring| ring.read().into_iter().rev()).collect();
        newest.sort_by_key(|raw| std::cmp::Reverse(raw.at_ns));
        newest.truncate(MAX_RAW);
        let mut wanted: HashMap<u64, Option<Arc<Series>>> = newest.iter().map(|raw| (raw.series, None)).collect();
        self.each_series(|series| {
            if let Some(found) = wanted.get_mut(&series.number) {
                *found = Some(Arc::clone(series));
            }
        });
        let record = |raw: &Raw| {
            let series = wanted.get(&raw.series)?.as_ref()?;
            let name = series.desc.name.clone();
            let value = match series.desc.kind {
                Kind::Counter => raw.value as f64,
                Kind::Gauge => f64::from_bits(raw.value),
                Kind::Histogram => raw.value as f64 / unit_ns(&name),
            };
            let timestamp = self.anchor().wall_at(self.anchor().mono + Duration::from_nanos(raw.at_ns));
            Some(RawRecord { name, value, labels: series.labels.clone(), timestamp })
        };
        newest.iter().filter_map(record).collect()
    }

    /// How many raw records there are to show.
    pub(crate) fn raw_len(&self) -> usize {
        let slabs = self.inner().store.slabs.all();
        slabs.iter().filter_map(|slab| slab.raw()).map(|ring| ring.len()).sum::<usize>().min(MAX_RAW)
    }
}

/// What a record by name is added to.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Core(Core),
    /// The name of no critical metric, as long as there are so many families.
    General {
        families: usize,
    },
}

impl Target {
    pub(crate) fn each_series(&self, mut with: impl FnMut(&Series)) {
        if let Self::Core(core) = self {
            with(&core.series);
            core.operations.iter().for_each(|operations| with(operations));
        }
    }

    fn is_general_of(&self, number: usize) -> bool {
        matches!(self, Self::General { families } if *families == number)
    }
}

/// A series of ours.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) series: Arc<Series>,
    /// Of which the series are the errors.
    pub(crate) operations: Option<Arc<Series>>,
    pub(crate) takes: Takes,
}

impl Core {
    /// Whether anybody may write to it.
    ///
    /// # Errors
    /// [`RecordError::Counted`]: only who counts it may.
    pub(crate) fn free(&self) -> Result<(), RecordError> {
        if !self.series.counted.load(Relaxed) {
            return Ok(());
        }
        let server = self.series.labels.get("server").unwrap_or_default().to_owned();
        Err(RecordError::Counted { metric: self.series.desc.name.clone(), server })
    }
}

/// What the values of a metric are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Takes {
    Events,
    /// One operation, failed or not.
    Operation,
    Level,
    WholeLevel,
    Duration {
        unit_ns: f64,
    },
}

impl Takes {
    fn of(desc: &Desc) -> Self {
        match desc.kind {
            Kind::Counter if *desc == desc::COMPONENT_ERRORS => Self::Operation,
            Kind::Counter => Self::Events,
            Kind::Gauge if desc.labels.is_some() => Self::WholeLevel,
            Kind::Gauge => Self::Level,
            Kind::Histogram => Self::Duration { unit_ns: unit_ns(&desc.name) },
        }
    }

    /// What is expected instead of this value, if it is not taken.
    #[inline]
    pub(crate) fn refusal(self, value: f64) -> Option<&'static str> {
        let is_whole = || whole(value).is_some();
        let (is_taken, expected) = match self {
            Self::Events | Self::WholeLevel => (is_whole(), "a whole number from 0 to 1000000000"),
            Self::Operation => (value == 0.0 || value == 1.0, "1 for an operation that failed, 0 for one that did not"),
            Self::Level => (value.is_finite(), "a finite number"),
            Self::Duration { unit_ns } => (
                (0.0..=MAX_DURATION_NS).contains(&(value * unit_ns)),
                if unit_ns == MS_NS {
                    "a number of milliseconds from 0 to 86400000, a day"
                } else {
                    "a number of seconds from 0 to 86400, a day"
                },
            ),
        };
        (!is_taken).then_some(expected)
    }
}

/// The number of events, or the level, that a value is. Not by `f64::trunc`, which calls the C library.
#[inline(always)]
fn whole(value: f64) -> Option<u64> {
    let n = value as u32;
    (f64::from(n) == value && n <= MAX_NUMBER).then_some(n.into())
}

/// Whether a value may be kept in a histogram, whose sum never falls.
fn is_general(value: f64) -> bool {
    (0.0..f64::INFINITY).contains(&value)
}

/// What a value of a histogram of this name means in nanoseconds.
fn unit_ns(name: &str) -> f64 {
    if name.ends_with("_ms") { MS_NS } else { 1e9 }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use std::time::SystemTime;

    use mcpscope_core::ClockAnchor;

    use super::*;
    use crate::Config;

    fn metrics() -> (Metrics, Instant) {
        let now = Instant::now();
        (Metrics::new(&Config::default(), ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH }), now)
    }

    #[test]
    fn every_critical_metric_can_be_recorded_by_name() {
        let (metrics, at) = metrics();
        for name in Metrics::CRITICAL_NAMES {
            metrics.record(name, 1.0, &[], at).unwrap();
        }
        let text = metrics.snapshot(at).to_prometheus();
        for line in [
            "mcpscope_registry_operations_total{server=\"\",operation=\"\"} 1",
            "mcpscope_session_creation_seconds_count{server=\"\",protocol=\"\"} 1",
            "mcpscope_transport_connections{server=\"\",transport=\"\"} 1",
            "mcpscope_tool_call_duration_seconds_count{server=\"\",tool=\"\",outcome=\"ok\",injected=\"false\"} 1",
            "mcpscope_component_operations_total{component=\"\",injected=\"false\"} 1",
            "mcpscope_component_errors_total{component=\"\",error_type=\"\",injected=\"false\"} 1",
            "mcpscope_active_sessions{server=\"\",protocol=\"\"} 1",
            "mcpscope_message_queue_depth{server=\"\",direction=\"\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(
            Metrics::CRITICAL_NAMES.to_vec(),
            metrics.views(at).iter().map(|v| v.name.clone()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_gauge_takes_the_new_value() {
        let (metrics, at) = metrics();
        for value in [5.0, 2.0] {
            metrics.record("message_queue_depth", value, &[("server", "s"), ("direction", "to_server")], at).unwrap();
        }
        let view = metrics.metrics("message_queue_depth", at).unwrap();
        assert_eq!(view.series[0].value, 2.0);
        metrics.close_window(at + Duration::from_secs(1));
        let window = metrics.metrics("message_queue_depth", at).unwrap().series[0].window.unwrap();
        assert_eq!((window.min, window.max), (2.0, 5.0));
    }

    #[test]
    fn a_gauge_that_a_relay_counts_is_left_to_it() {
        let (metrics, at) = metrics();
        metrics.announce_server("s", mcpscope_core::Transport::Stdio);
        let refused = metrics.record("transport_connection_count", 5.0, &[("server", "s"), ("transport", "stdio")], at);
        assert!(matches!(refused, Err(RecordError::Counted { .. })), "{refused:?}");
        metrics.record("transport_connection_count", 5.0, &[("server", "mine"), ("transport", "stdio")], at).unwrap();
        metrics.record("tool_call_duration_ms", 5.0, &[("server", "s")], at).unwrap();
    }

    #[test]
    fn a_gauge_that_was_set_before_is_left_to_the_relay_too() {
        let (metrics, at) = metrics();
        let record =
            |protocol| metrics.record("active_sessions_count", 5.0, &[("server", "s"), ("protocol", protocol)], at);
        for protocol in ["2025-11-25", "other"] {
            record(protocol).unwrap();
        }
        metrics.announce_server("s", mcpscope_core::Transport::Stdio);
        for protocol in ["2025-11-25", "other"] {
            let refused = record(protocol);
            assert!(matches!(refused, Err(RecordError::Counted { .. })), "{protocol}: {refused:?}");
        }
    }

    #[test]
    fn durations_are_rounded_to_nanoseconds() {
        let (metrics, at) = metrics();
        for ms in [0.000_000_4, 0.000_000_6, 1.000_000_6, 86_400_000.0] {
            metrics.record("session_creation_latency_ms", ms, &[], at).unwrap();
        }
        let text = metrics.snapshot(at).to_prometheus();
        let sum = "mcpscope_session_creation_seconds_sum{server=\"\",protocol=\"\"} 86400.001000002\n";
        assert!(text.contains(sum), "{text}");
    }

    #[test]
    fn sums_do_not_overflow() {
        let (metrics, at) = metrics();
        for n in 0..3 {
            let operation = n.to_string();
            let counter = metrics.registry_operations("s", &operation);
            (0..3).for_each(|_| counter.add(u64::MAX / 2, at));
        }
        assert_eq!(metrics.totals().registry_operations, u64::MAX);
        let _ = (metrics.summary(at), metrics.close_window(at), metrics.summary(at));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_recorded_nowhere() {
        let (metrics, at) = metrics();
        let before = metrics.snapshot(at).to_prometheus();
        let refused = |name, value, labels: &[(&str, &str)]| metrics.record(name, value, labels, at).unwrap_err();
        assert!(matches!(refused("tool_calls", 1.0, &[]), RecordError::UnknownMetric { .. }));
        assert!(matches!(refused("tool_call_duration_ms", 1.0, &[("tol", "x")]), RecordError::UnknownLabel { .. }));
        for value in [-1.0, 1e10, f64::NAN, f64::INFINITY] {
            for name in Metrics::CRITICAL_NAMES {
                assert!(matches!(refused(name, value, &[]), RecordError::BadValue { .. }), "{name} {value}");
            }
        }
        assert!(matches!(refused("error_rates_by_component", 0.5, &[]), RecordError::BadValue { .. }));
        assert!(matches!(refused("active_sessions_count", 0.5, &[]), RecordError::BadValue { .. }));
        assert_eq!(metrics.snapshot(at).to_prometheus(), before);
        assert!(metrics.critical_metrics().is_empty());
    }
}
