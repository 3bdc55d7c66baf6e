//! What the metrics were at one moment: cumulative, plain data.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mcpscope_core::{Labels, TraceId};

use crate::schema::Desc;
use crate::sparse::Sparse;
use crate::storage::scale;

/// All families at one moment. Taking one changes nothing, so any number of readers may.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was taken.
    pub at: Instant,
    /// The families, in the order of the documentation.
    pub families: Vec<FamilySnapshot>,
}

impl Snapshot {
    /// What happened since `earlier`, an older snapshot of the same instance: events and distributions are differences,
    /// gauges are as they are now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let families = self.families.iter().map(|family| {
            let before = earlier.families.iter().find(|before| before.desc == family.desc);
            let series = family.series.iter().map(|series| {
                // Both are ordered by labels.
                let found = before.and_then(|before| {
                    let at = before.series.binary_search_by(|other| other.labels.cmp(&series.labels)).ok()?;
                    before.series.get(at)
                });
                let found = found.filter(|found| found.number == series.number);
                // Or it was not shown then.
                let hidden = || before?.hidden.iter().find(|hidden| hidden.number == series.number);
                let then = found.or_else(hidden).map(|found| &found.value);
                let value = then.map_or_else(|| series.value.clone(), |then| series.value.since(then));
                let SeriesSnapshot { number, labels, exemplars, .. } = series;
                SeriesSnapshot { number: *number, labels: labels.clone(), value, exemplars: exemplars.clone() }
            });
            FamilySnapshot { desc: Arc::clone(&family.desc), series: series.collect(), hidden: Vec::new() }
        });
        Self { at: self.at, families: families.collect() }
    }

    /// The series of one family; none if it is not there.
    pub fn series(&self, desc: &Desc) -> impl Iterator<Item = &SeriesSnapshot> {
        self.families.iter().filter(move |family| *family.desc == *desc).flat_map(|family| &family.series)
    }
}

/// One family at one moment.
#[derive(Clone, Debug)]
pub struct FamilySnapshot {
    /// What it is.
    pub desc: Arc<Desc>,
    /// Its series, ordered by labels.
    pub series: Vec<SeriesSnapshot>,
    /// Those that are not shown, and may be again.
    pub(crate) hidden: Vec<SeriesSnapshot>,
}

impl FamilySnapshot {
    /// The numbers of all its series ([`SeriesSnapshot::number`]), of those too that are not shown and may be again.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.series.iter().chain(&self.hidden).map(|series| series.number)
    }
}

/// One series at one moment.
#[derive(Clone, Debug)]
pub struct SeriesSnapshot {
    /// Tells it from every other series of the instance, also from one with the same labels that was there before.
    pub(crate) number: u64,
    /// Its labels.
    pub labels: Labels,
    /// Its value since the start of the instance.
    pub value: Value,
    /// A recent record for each exposed bucket of a histogram, or one of a counter's events; empty if there is none.
    pub exemplars: Vec<Option<Exemplar>>,
}

impl SeriesSnapshot {
    /// Tells the series from every other one of the instance, also from one with the same labels that was there before and
    /// whose place it has taken: as long as the number stays, the value goes on.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }
}

/// A record of which there is more to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// The trace that tells more.
    pub trace_id: TraceId,
    /// The duration in nanoseconds, or 1 for an event.
    pub value: u64,
    /// When it was recorded.
    pub at: SystemTime,
}

/// A value since the start of the instance.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Events so far; nanoseconds if the family's unit is seconds.
    Counter(u64),
    /// The value now.
    Gauge(f64),
    /// The distribution so far. Boxed: most series are none, and it would make all of them large.
    Histogram(Box<HistogramSnapshot>),
}

impl Value {
    /// Events so far, or the value now without what is below zero or a whole number.
    pub(crate) const fn whole(&self) -> u64 {
        match self {
            Self::Counter(count) => *count,
            Self::Gauge(level) => *level as u64,
            Self::Histogram(values) => values.count,
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        match (self, earlier) {
            (Self::Counter(now), Self::Counter(then)) => Self::Counter(now.saturating_sub(*then)),
            (Self::Histogram(now), Self::Histogram(then)) => Self::Histogram(Box::new(now.since(then))),
            (now, _) => now.clone(),
        }
    }
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Number of values; the sum of `bounds`.
    pub count: u64,
    /// Sum of all values, in nanoseconds.
    pub sum_ns: u64,
    /// Lowest value, in nanoseconds; 0 if there is none.
    pub min_ns: u64,
    /// Highest value, in nanoseconds; 0 if there is none.
    pub max_ns: u64,
    /// The value recorded last, in nanoseconds; 0 if there is none, or the metric is not critical.
    pub last_ns: u64,
    /// The exposed upper bounds, in nanoseconds, ascending; one fewer than `bounds` has cells.
    pub bounds_ns: &'static [u64],
    /// Values per exposed bound (not accumulated), the last one above all bounds.
    pub bounds: Vec<u64>,
    /// Values per position on the log-linear scale.
    pub scale: Sparse,
}

impl HistogramSnapshot {
    /// What was recorded since `earlier`, an older snapshot of the same series.
    ///
    /// Lowest and highest value are those of the whole life of the series: a difference cannot know them.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let bounds: Vec<u64> = self
            .bounds
            .iter()
            .enumerate()
            .map(|(at, n)| n.saturating_sub(earlier.bounds.get(at).copied().unwrap_or(0)))
            .collect();
        Self {
            count: bounds.iter().sum(),
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
            bounds,
            scale: self.scale.join(&earlier.scale, u64::saturating_sub),
            ..*self
        }
    }

    /// Adds another distribution, of another series.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.min_ns = if self.count == 0 { other.min_ns } else { self.min_ns.min(other.min_ns) };
        self.max_ns = self.max_ns.max(other.max_ns);
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.last_ns = other.last_ns;
        if self.bounds.is_empty() {
            self.bounds_ns = other.bounds_ns;
            self.bounds.resize(other.bounds.len(), 0);
        }
        for (mine, theirs) in self.bounds.iter_mut().zip(&other.bounds) {
            *mine += theirs;
        }
        self.scale = self.scale.join(&other.scale, u64::saturating_add);
    }

    /// The value below which the share `quantile` (0..=1) of the values lies, in nanoseconds; never outside of lowest and
    /// highest value, and at most 1.6 % off from 1.024 us to 39 h. Values below that range cannot be told apart, nor those
    /// above. 0 if there are no values.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let total: u64 = self.scale.iter().map(|(_, n)| n).sum();
        let rank = ((quantile * total as f64).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        let bucket = self.scale.iter().find(|(_, n)| {
            seen += n;
            seen >= rank
        });
        bucket.map_or(0, |(index, _)| scale::middle_ns(index).clamp(self.min_ns, self.max_ns.max(self.min_ns)))
    }

    /// What the lowest value is at most, and the highest at least, by the scale, in nanoseconds. 0 if there are no values.
    pub(crate) fn ends_ns(&self) -> (u64, u64) {
        let edges = |end: Option<(u16, u64)>| end.map_or((0, 0), |(index, _)| scale::edges_ns(index));
        (edges(self.scale.iter().next()).1, edges(self.scale.iter().last()).0)
    }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use proptest::prelude::*;

    use crate::schema::desc;
    use crate::storage::cells::HistogramCell;

    fn recorded(values_ns: &[u64]) -> super::HistogramSnapshot {
        let (cell, bounds) = (HistogramCell::default(), desc::TOOL_CALLS.bounds);
        values_ns.iter().for_each(|ns| cell.record(bounds, *ns, 1));
        HistogramCell::snapshot(std::iter::once(&cell), bounds)
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_stated_error(values in prop::collection::vec((1_024_u64..1 << 47, 0_u32..37), 1..200), q in 0.01_f64..1.0) {
            let mut values: Vec<u64> = values.into_iter().map(|(value, bits)| (value >> bits).max(1_024)).collect();
            let found = recorded(&values).quantile_ns(q) as f64;
            values.sort_unstable();
            let exact = values[((q * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1] as f64;
            prop_assert!((found - exact).abs() / exact <= 1.0 / 64.0 + 1e-9, "{found} for {exact}");
        }

        #[test]
        fn merging_is_recording_together(a in prop::collection::vec(any::<u32>(), 0..50), b in prop::collection::vec(any::<u32>(), 0..50)) {
            let (a, b): (Vec<u64>, Vec<u64>) = (a.into_iter().map(u64::from).collect(), b.into_iter().map(u64::from).collect());
            let mut merged = recorded(&a);
            merged.merge(&recorded(&b));
            let together = recorded(&[a, b].concat());
            prop_assert_eq!(merged.quantile_ns(0.5), together.quantile_ns(0.5));
            prop_assert_eq!((merged.count, merged.sum_ns, merged.min_ns, merged.max_ns, merged.bounds, merged.scale),
                (together.count, together.sum_ns, together.min_ns, together.max_ns, together.bounds, together.scale));
        }

        #[test]
        fn a_difference_is_what_came_after(a in prop::collection::vec(any::<u32>(), 0..50), b in prop::collection::vec(any::<u32>(), 0..50)) {
            let (a, b): (Vec<u64>, Vec<u64>) = (a.into_iter().map(u64::from).collect(), b.into_iter().map(u64::from).collect());
            let after = recorded(&[a.clone(), b.clone()].concat()).since(&recorded(&a));
            let alone = recorded(&b);
            prop_assert_eq!((after.count, after.sum_ns, after.bounds, after.scale), (alone.count, alone.sum_ns, alone.bounds, alone.scale));
        }
    }

    #[test]
    fn a_value_on_a_bound_counts_below_it() {
        let snapshot = recorded(&[1_000_000, 1_000_001]);
        assert_eq!(snapshot.bounds[..2], [1, 1]);
    }
}
