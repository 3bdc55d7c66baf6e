//! The `metrics` facade: what libraries emit through it goes to the core or to who keeps the rest.

use std::borrow::Cow;
use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ::metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use mcpscope_core::bounded;

use crate::declared::is_reserved;
use crate::error::SHOWN_BYTES;
use crate::general::{BAD_VALUE, General, METRIC_CONFLICT, Refusal};
use crate::metrics::Metrics;
use crate::record::{Core, Target};
use crate::schema::Kind;
use crate::series;

/// Metrics of which it is told that they are refused. More are nobody's reading.
const MAX_TOLD: usize = 256;

/// A [`metrics::Recorder`](::metrics::Recorder): critical names go to the core, all others to
/// [`Config::general`](crate::Config::general), if there is one. What comes this way is never sampled.
///
/// A metric that is refused, because its name is reserved or it cannot be shown beside the others, gets a handle that does
/// nothing, and is counted in `mcpscope_dropped_total` each time that it asks for one. A value that a metric cannot take
/// is counted there too, as `bad_value`.
///
/// A counter that is critical takes events; that of `error_rates_by_component`, operations that failed, and with 0 one that
/// did not. A histogram that is critical takes durations in the unit that its name ends in, `_seconds` or `_ms`.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Shared>);

type OnRefused = dyn Fn(&str, &dyn Error) + Send + Sync;

struct Shared {
    metrics: Metrics,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    on_refused: Box<OnRefused>,
    /// The metrics of which it was told that they are refused.
    told: Mutex<HashSet<Box<str>>>,
    /// Held while a counter is brought to a number: two at once would both add what is missing.
    raising: Mutex<()>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder into `metrics`. `clock` says when something is recorded; `on_refused` is told the name of a metric that
    /// is refused, and why, once for each name and of no more than 256 names.
    #[must_use]
    pub fn new(
        metrics: Metrics,
        clock: impl Fn() -> Instant + Send + Sync + 'static,
        on_refused: impl Fn(&str, &dyn Error) + Send + Sync + 'static,
    ) -> Self {
        // There as zero from the start, so that a rate sees the first one.
        for what in [BAD_VALUE, Refusal::ReservedName.what(), METRIC_CONFLICT, Refusal::TooManySeries.what()] {
            let _zero = metrics.dropped(what);
        }
        let (clock, on_refused) = (Box::new(clock), Box::new(on_refused));
        Self(Arc::new(Shared { metrics, clock, on_refused, told: Mutex::default(), raising: Mutex::default() }))
    }

    /// A handle of the core for what is critical, or what `others` has of the rest; none for what is refused.
    fn register<H>(
        &self,
        key: &Key,
        kind: Kind,
        core: impl FnOnce(Arc<Critical>) -> H,
        others: impl FnOnce(&dyn General, &dyn Fn(&str) -> bool) -> Result<H, Refusal>,
    ) -> Option<H> {
        let metrics = &self.0.metrics;
        let name = sanitized(key.name());
        let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
        match metrics.target(&name, kind, &labels) {
            Ok(Target::Core(found)) => Some(core(Arc::new(Critical { shared: Arc::clone(&self.0), core: found }))),
            Ok(Target::General { .. }) if is_reserved(&name) => {
                self.0.refuse(&name, Refusal::ReservedName.what(), &Refusal::ReservedName)
            }
            Ok(Target::General { .. }) => {
                let general = metrics.inner().general.as_deref()?;
                match others(general, &|name| metrics.is_taken(name)) {
                    Ok(handle) => Some(handle),
                    Err(refusal) => self.0.refuse(&name, refusal.what(), &refusal),
                }
            }
            Err(error) => self.0.refuse(&name, METRIC_CONFLICT, &error),
        }
    }

    fn describe(&self, name: &KeyName, unit: Option<Unit>, help: &str) {
        if let Some(general) = &self.0.metrics.inner().general {
            general.describe(name.as_str(), unit, help);
        }
    }
}

impl Shared {
    #[cold]
    fn refuse<H>(&self, name: &str, what: &str, why: &dyn Error) -> Option<H> {
        self.drop_one(what);
        let name = bounded(name, SHOWN_BYTES);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = told.len() < MAX_TOLD && !told.contains(name) && told.insert(name.into());
        drop(told);
        if is_news {
            (self.on_refused)(name, why);
        }
        None
    }

    #[cold]
    fn drop_one(&self, what: &str) {
        self.metrics.dropped(what).increment((self.clock)());
    }
}

impl ::metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(&key, unit, &description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(&key, unit, &description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(&key, unit, &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> ::metrics::Counter {
        let others = |general: &dyn General, is_taken: &dyn Fn(&str) -> bool| general.counter(key, is_taken);
        let found = self.register(key, Kind::Counter, ::metrics::Counter::from_arc, others);
        found.unwrap_or_else(::metrics::Counter::noop)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> ::metrics::Gauge {
        let others = |general: &dyn General, is_taken: &dyn Fn(&str) -> bool| general.gauge(key, is_taken);
        let found = self.register(key, Kind::Gauge, ::metrics::Gauge::from_arc, others);
        found.unwrap_or_else(::metrics::Gauge::noop)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> ::metrics::Histogram {
        let others = |general: &dyn General, is_taken: &dyn Fn(&str) -> bool| general.histogram(key, is_taken);
        let found = self.register(key, Kind::Histogram, ::metrics::Histogram::from_arc, others);
        found.unwrap_or_else(::metrics::Histogram::noop)
    }
}

/// A critical metric, as the facade writes it.
struct Critical {
    shared: Arc<Shared>,
    core: Core,
}

impl Critical {
    /// Counts `n` events; of operations, `n` that failed, or one that did not if there are none.
    fn count(&self, n: u64) {
        let (store, at) = (&self.shared.metrics.inner().store, (self.shared.clock)());
        store.write(|slab| {
            if let Some(operations) = &self.core.operations {
                operations.count(store, slab, n.max(1), at);
            }
            if n > 0 {
                self.core.series.count(store, slab, n, at);
            }
        });
    }

    /// Brings a counter to `total`, unless it is there already.
    fn raise(&self, total: u64) {
        if self.core.operations.is_some() {
            // They come in two kinds.
            return self.shared.drop_one(BAD_VALUE);
        }
        let _raising = self.shared.raising.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.core.series.value(&self.shared.metrics.inner().store.slabs.all()).whole();
        if now < total {
            self.count(total - now);
        }
    }

    /// Records a value as [`Metrics::record`] does.
    fn add(&self, value: f64) {
        let (metrics, at) = (&self.shared.metrics, (self.shared.clock)());
        let mut is_added = true;
        metrics.inner().store.write(|slab| is_added = metrics.add(&self.core, value, slab, at));
        if !is_added {
            self.refused();
        }
    }

    /// Changes a gauge, to what it could be set to as well.
    fn change(&self, change: f64) {
        if self.core.takes.refusal(change.abs()).is_some() {
            return self.shared.drop_one(BAD_VALUE);
        }
        if self.core.free().is_err() {
            return self.refused();
        }
        if let series::Cell::Gauge(cell) = &self.core.series.cell {
            let Some(now) = cell.add_if(change, |level| self.core.takes.refusal(level).is_none()) else {
                return self.shared.drop_one(BAD_VALUE);
            };
            let (store, at) = (&self.shared.metrics.inner().store, (self.shared.clock)());
            store.write(|slab| self.core.series.became(store, slab, now, at));
        }
    }

    #[cold]
    fn refused(&self) {
        // Of what belongs to somebody who counts it, or is no value that it takes.
        self.shared.drop_one(if self.core.free().is_err() { METRIC_CONFLICT } else { BAD_VALUE });
    }
}

impl CounterFn for Critical {
    fn increment(&self, value: u64) {
        self.count(value);
    }

    fn absolute(&self, value: u64) {
        self.raise(value);
    }
}

impl GaugeFn for Critical {
    fn increment(&self, value: f64) {
        self.change(value);
    }

    fn decrement(&self, value: f64) {
        self.change(-value);
    }

    fn set(&self, value: f64) {
        self.add(value);
    }
}

impl HistogramFn for Critical {
    fn record(&self, value: f64) {
        self.add(value);
    }
}

/// A name as Prometheus takes it: what it does not is `_`. Colons are for what rules make of metrics.
pub(crate) fn sanitized(name: &str) -> Cow<'_, str> {
    let fits =
        |at: usize, c: char| c == '_' || if at == 0 { c.is_ascii_alphabetic() } else { c.is_ascii_alphanumeric() };
    if name.chars().enumerate().all(|(at, c)| fits(at, c)) {
        return Cow::Borrowed(name);
    }
    name.chars().enumerate().map(|(at, c)| if fits(at, c) { c } else { '_' }).collect::<String>().into()
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use std::time::{Instant, SystemTime};

    use ::metrics::{gauge, with_local_recorder};
    use mcpscope_core::ClockAnchor;

    use super::{BAD_VALUE, Recorder, sanitized};
    use crate::{Config, Declared, Kind, Metrics, Value};

    #[test]
    fn gauges_stay_within_their_range() {
        let now = Instant::now();
        let anchor = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH };
        let metrics = Metrics::new(&Config::default(), anchor);
        metrics.declare(&Declared::new("level", Kind::Gauge, "").unwrap()).unwrap();
        let recorder = Recorder::new(metrics.clone(), move || now, |_, _| ());
        with_local_recorder(&recorder, || {
            let (sessions, level) = (gauge!("active_sessions_count", "server" => "s"), gauge!("level"));
            sessions.decrement(1.0);
            sessions.increment(3.0);
            sessions.decrement(4.0);
            sessions.increment(1e9);
            sessions.decrement(1.0);
            // Of one that is declared, any finite number will do.
            level.decrement(5.0);
            level.set(f64::MAX);
            level.increment(f64::MAX);
        });
        let value = |name| metrics.metrics(name, now).unwrap().series[0].value;
        assert_eq!((value("active_sessions_count"), value("level")), (2.0, f64::MAX));
        let dropped = metrics.dropped(BAD_VALUE);
        assert_eq!(dropped.0.series.value(&metrics.inner().store.slabs.all()), Value::Counter(4));
    }

    #[test]
    fn names_become_such_as_prometheus_takes() {
        for (name, expected) in
            [("a_b1", "a_b1"), ("a.b-c:d", "a_b_c_d"), ("1a", "_a"), ("mcp.x", "mcp_x"), ("é", "_"), ("", "")]
        {
            assert_eq!(sanitized(name), expected);
        }
    }
}
