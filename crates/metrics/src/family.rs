//! Series by labels: looked up without a lock, bounded in number.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hashbrown::{Equivalent, HashMap, HashSet};
use mcpscope_core::{Labels, bounded};

use crate::cell::{CounterCell, GaugeCell, HistogramCell};
use crate::raw::RawLog;
use crate::schema::Desc;
use crate::snapshot::{FamilySnapshot, SeriesSnapshot, Value};

/// What a label value becomes that is over the limit of distinct values.
pub(crate) const OTHER: &str = "other";

/// Longest label value kept, in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// One time series.
#[derive(Debug, Default)]
pub(crate) struct Series<C> {
    pub(crate) labels: Labels,
    pub(crate) cell: C,
}

/// All series of one metric that has `N` labels.
#[derive(Debug)]
pub(crate) struct Family<C, const N: usize> {
    pub(crate) desc: &'static Desc,
    label_names: [&'static str; N],
    max_label_values: usize,
    /// Replaced as a whole when a series is added, which is rare; read without a lock on every lookup.
    table: ArcSwap<Table<C, N>>,
    adding: Mutex<()>,
}

#[derive(Debug)]
struct Table<C, const N: usize> {
    series: HashMap<Key<N>, Arc<Series<C>>>,
    /// Distinct values seen per label.
    values: [HashSet<Box<str>>; N],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key<const N: usize>([Box<str>; N]);

/// A borrowed [`Key`]; hashes like it because `str` and `Box<str>` do.
#[derive(PartialEq, Eq, Hash)]
struct KeyRef<'a, const N: usize>([&'a str; N]);

impl<const N: usize> Equivalent<Key<N>> for KeyRef<'_, N> {
    fn equivalent(&self, key: &Key<N>) -> bool {
        self.0.iter().zip(&key.0).all(|(mine, theirs)| **mine == **theirs)
    }
}

/// A series found, and whether a label value had to be replaced by `other`.
pub(crate) struct Found<C> {
    pub(crate) series: Arc<Series<C>>,
    pub(crate) replaced: bool,
}

impl<C: Default, const N: usize> Family<C, N> {
    pub(crate) fn new(desc: &'static Desc, label_names: [&'static str; N], max_label_values: usize) -> Self {
        let table = Table { series: HashMap::new(), values: std::array::from_fn(|_| HashSet::new()) };
        Self { desc, label_names, max_label_values, table: ArcSwap::from_pointee(table), adding: Mutex::new(()) }
    }

    /// The series with these label values, in the order of the label names.
    pub(crate) fn with(&self, values: [&str; N]) -> Found<C> {
        let wanted = values.map(|value| bounded(value, MAX_VALUE_BYTES));
        let table = self.table.load();
        if let Some(series) = table.series.get(&KeyRef(wanted)) {
            return Found { series: Arc::clone(series), replaced: false };
        }
        // Once a label is full it stays full, so a flood of new values ends here and never takes the lock.
        let (values, replaced) = self.limited(&table, wanted);
        if replaced && let Some(series) = table.series.get(&KeyRef(values)) {
            return Found { series: Arc::clone(series), replaced };
        }
        drop(table);
        self.add(wanted)
    }

    fn limited<'a>(&self, table: &Table<C, N>, mut values: [&'a str; N]) -> ([&'a str; N], bool) {
        let mut replaced = false;
        for (value, seen) in values.iter_mut().zip(&table.values) {
            if seen.len() >= self.max_label_values && !seen.contains(*value) {
                *value = OTHER;
                replaced = true;
            }
        }
        (values, replaced)
    }

    fn add(&self, wanted: [&str; N]) -> Found<C> {
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.load();
        let (values, replaced) = self.limited(&table, wanted);
        if let Some(series) = table.series.get(&KeyRef(values)) {
            return Found { series: Arc::clone(series), replaced };
        }
        let labels = Labels::new(self.label_names.into_iter().zip(values));
        let series = Arc::new(Series { labels, cell: C::default() });
        let mut next = Table { series: table.series.clone(), values: table.values.clone() };
        next.series.insert(Key(values.map(Into::into)), Arc::clone(&series));
        for (value, seen) in values.iter().zip(&mut next.values) {
            if *value != OTHER {
                seen.insert((*value).into());
            }
        }
        self.table.store(Arc::new(next));
        Found { series, replaced }
    }

    /// All series, ordered by labels.
    pub(crate) fn series(&self) -> Vec<Arc<Series<C>>> {
        let mut all: Vec<_> = self.table.load().series.values().cloned().collect();
        all.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        all
    }

    pub(crate) fn snapshot(&self, value: impl Fn(&C) -> Value) -> FamilySnapshot {
        let series = self.series();
        let series =
            series.iter().map(|s| SeriesSnapshot { labels: s.labels.clone(), value: value(&s.cell) }).collect();
        FamilySnapshot { desc: self.desc, series }
    }
}

/// Where a handle writes: its series, and the log of raw records if its metric keeps them.
#[derive(Debug)]
pub(crate) struct Target<C> {
    pub(crate) series: Arc<Series<C>>,
    pub(crate) raw: Option<(Arc<RawLog>, &'static str)>,
}

impl<C> Clone for Target<C> {
    fn clone(&self) -> Self {
        Self { series: Arc::clone(&self.series), raw: self.raw.clone() }
    }
}

impl<C> Target<C> {
    fn log(&self, value: f64, at: Instant) {
        if let Some((log, name)) = &self.raw {
            log.push(name, value, &self.series.labels, at);
        }
    }
}

/// Writes one counter series. Cheap to clone; recording through it takes no lock and never fails.
#[derive(Clone, Debug)]
pub struct Counter(pub(crate) Target<CounterCell>);

impl Counter {
    /// Counts one event that happened at `at`.
    pub fn increment(&self, at: Instant) {
        self.add(1, at);
    }

    pub(crate) fn add(&self, n: u64, at: Instant) {
        self.0.series.cell.add(n);
        self.0.log(n as f64, at);
    }
}

/// Writes one gauge series. Cheap to clone; recording through it takes no lock and never fails.
#[derive(Clone, Debug)]
pub struct Gauge(pub(crate) Target<GaugeCell>);

impl Gauge {
    /// Changes the value by `n` at the time `at`.
    pub fn add(&self, n: i64, at: Instant) {
        self.0.series.cell.add(n);
        if self.0.raw.is_some() {
            self.0.log(self.0.series.cell.get() as f64, at);
        }
    }

    /// Makes the value `n` at the time `at`.
    pub fn set(&self, n: i64, at: Instant) {
        self.0.series.cell.set(n);
        self.0.log(n as f64, at);
    }
}

/// Writes one histogram series. Cheap to clone; recording through it takes no lock and never fails.
#[derive(Clone, Debug)]
pub struct Histogram(pub(crate) Target<HistogramCell>);

impl Histogram {
    /// Records a duration that ended at `at`.
    pub fn record(&self, duration: Duration, at: Instant) {
        self.0.series.cell.record(duration);
        self.0.log(duration.as_secs_f64() * 1e3, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::desc;

    fn family(max: usize) -> Family<CounterCell, 2> {
        Family::new(&desc::REGISTRY_OPERATIONS, ["server", "operation"], max)
    }

    #[test]
    fn the_same_labels_are_the_same_series() {
        let family = family(256);
        family.with(["a", "list"]).series.cell.add(1);
        family.with(["a", "list"]).series.cell.add(1);
        family.with(["a", "read"]).series.cell.add(1);
        let values: Vec<u64> = family.series().iter().map(|s| s.cell.get()).collect();
        assert_eq!(values, [2, 1]);
    }

    #[test]
    fn a_million_names_make_a_bounded_number_of_series() {
        let family = family(3);
        let mut replaced = 0;
        for n in 0..1_000_000 {
            let found = family.with(["a", &format!("tool{n}")]);
            found.series.cell.add(1);
            replaced += usize::from(found.replaced);
        }
        assert_eq!(family.series().len(), 4);
        assert_eq!(replaced, 999_997);
        assert_eq!(family.with(["a", "tool2"]).series.cell.get(), 1);
        assert_eq!(family.with(["a", "anything"]).series.cell.get(), 999_997);
        assert_eq!(family.series().iter().map(|s| s.cell.get()).sum::<u64>(), 1_000_000);
    }

    #[test]
    fn threads_that_add_the_same_series_share_it() {
        let family = family(256);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..100 {
                        family.with(["a", &format!("op{}", n % 10)]).series.cell.add(1);
                    }
                });
            }
        });
        assert_eq!(family.series().len(), 10);
        assert!(family.series().iter().all(|s| s.cell.get() == 80));
    }
}
