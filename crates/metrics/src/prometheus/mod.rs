//! What is not critical, kept by `metrics-exporter-prometheus`.

mod names;
mod slot;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ::metrics::{Counter, Gauge, Histogram, HistogramFn as _, Key, Label, Level, Metadata, Recorder as _, Unit};
use mcpscope_core::bounded;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use metrics_util::MetricKindMask;

use crate::declared::MAX_NAME_BYTES;
use crate::facade::sanitized;
use crate::general::{Dropped, General, Refusal};
use crate::schema::desc;

use self::names::{MAX_VALUE_BYTES, Shown, cut, shown, suffix};
use self::slot::{Pulse, Slot};

/// Longest help kept, in bytes.
const MAX_HELP_BYTES: usize = 1024;
/// Upper bounds of histograms of anything but seconds.
const BOUNDS: [f64; 25] = [
    1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7,
    3e7, 1e8, 3e8, 1e9,
];
const METADATA: Metadata<'_> = Metadata::new("mcpscope", Level::INFO, None);

/// Keeps what is not critical in `metrics-exporter-prometheus`, without its listener and its threads.
///
/// Names are the recommended ones: `_total` behind those of counters, `_seconds` and `_bytes` where the library says that
/// this is the unit. Histograms have buckets: the bounds of ours for names that end in `_seconds`, else 1 and 3 times the
/// powers of ten from 0.001 to 10^9. A summary would take a hundred times the memory, and could not be added up.
///
/// A record of a histogram waits while the page is made. A series that nobody writes for the idle timeout is dropped, and
/// may begin anew when somebody does. There are never more than a given number of them, and of the value of a label only
/// the first 256 bytes are kept. What would make the page one that cannot be read is refused: see [`Refusal`].
#[derive(Clone, Debug)]
pub struct Prometheus(Arc<Shared>);

pub(crate) struct Shared {
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    start: Instant,
    pulse: Arc<Pulse>,
    idle_timeout: Duration,
    max_series: usize,
    /// Made with the first series: it busily compares clocks for up to 0.2 s.
    exporter: OnceLock<PrometheusRecorder>,
    /// By what the libraries call them, which can be several names for one.
    slots: RwLock<HashMap<Key, Held, foldhash::fast::RandomState>>,
    book: Mutex<Book>,
    /// Values of series that were idle, and whose place others have by now.
    lost: AtomicU64,
    records: AtomicU64,
}

/// What a metric is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Counter,
    Gauge,
    Histogram,
    /// A histogram that only has a share of its records.
    Sample,
}

#[derive(Clone, Debug)]
enum Held {
    Counter(Arc<Slot<Counter>>),
    Gauge(Arc<Slot<Gauge>>),
    Histogram(Arc<Slot<Histogram>>),
}

/// A handle of the exporter, of one of the three kinds.
trait Kept: Sized {
    fn register(exporter: &PrometheusRecorder, key: &Key) -> Self;
    fn hold(slot: Arc<Slot<Self>>) -> Held;
    fn held(held: &Held) -> Option<&Arc<Slot<Self>>>;
}

impl Kept for Counter {
    fn register(exporter: &PrometheusRecorder, key: &Key) -> Self {
        exporter.register_counter(key, &METADATA)
    }

    fn hold(slot: Arc<Slot<Self>>) -> Held {
        Held::Counter(slot)
    }

    fn held(held: &Held) -> Option<&Arc<Slot<Self>>> {
        if let Held::Counter(slot) = held { Some(slot) } else { None }
    }
}

impl Kept for Gauge {
    fn register(exporter: &PrometheusRecorder, key: &Key) -> Self {
        exporter.register_gauge(key, &METADATA)
    }

    fn hold(slot: Arc<Slot<Self>>) -> Held {
        Held::Gauge(slot)
    }

    fn held(held: &Held) -> Option<&Arc<Slot<Self>>> {
        if let Held::Gauge(slot) = held { Some(slot) } else { None }
    }
}

impl Kept for Histogram {
    fn register(exporter: &PrometheusRecorder, key: &Key) -> Self {
        exporter.register_histogram(key, &METADATA)
    }

    fn hold(slot: Arc<Slot<Self>>) -> Held {
        Held::Histogram(slot)
    }

    fn held(held: &Held) -> Option<&Arc<Slot<Self>>> {
        if let Held::Histogram(slot) = held { Some(slot) } else { None }
    }
}

impl Held {
    /// When it was last written, and what its family is called.
    fn used(&self) -> (u64, &str) {
        match self {
            Self::Counter(slot) => (slot.used_ms(), &slot.shown.base),
            Self::Gauge(slot) => (slot.used_ms(), &slot.shown.base),
            Self::Histogram(slot) => (slot.used_ms(), &slot.shown.base),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("book", &self.book).finish_non_exhaustive()
    }
}

/// Held while a series comes or goes, and while the exporter drops some; before anything else that is held.
#[derive(Debug, Default)]
struct Book {
    /// By name, a counter's without `_total`.
    families: HashMap<Box<str>, Family>,
    /// By name, before anything is put behind it.
    described: HashMap<Box<str>, Described>,
    series: usize,
    /// When it was last looked for idle series.
    looked_ms: u64,
}

#[derive(Debug)]
struct Family {
    /// As it is shown.
    name: Box<str>,
    /// As it is described.
    given: Box<str>,
    kind: Use,
    series: usize,
}

#[derive(Debug)]
struct Described {
    unit: Option<Unit>,
    help: Box<str>,
}

impl Prometheus {
    /// 10,000.
    pub const DEFAULT_MAX_SERIES: usize = 10_000;

    /// Keeps at most `max_series` series, each until nobody wrote it for `idle_timeout`. `clock` is to be the real one: the
    /// exporter has no other.
    #[must_use]
    pub fn new(idle_timeout: Duration, max_series: usize, clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        let pulse = Pulse {
            now_ms: AtomicU64::new(0),
            fresh_ms: whole_ms(idle_timeout) / 2,
            bad_values: AtomicU64::new(0),
            taking_over: RwLock::default(),
        };
        Self(Arc::new(Shared {
            start: clock(),
            clock: Box::new(clock),
            pulse: Arc::new(pulse),
            idle_timeout,
            max_series,
            exporter: OnceLock::new(),
            slots: RwLock::default(),
            book: Mutex::default(),
            lost: AtomicU64::new(0),
            records: AtomicU64::new(0),
        }))
    }

    #[inline]
    fn get<H: Kept>(&self, key: &Key, kind: Use, is_taken: &dyn Fn(&str) -> bool) -> Result<Arc<Slot<H>>, Refusal> {
        let key = cut(key);
        self.0.find(&key, kind).map_or_else(|| self.0.add(&key, kind, is_taken), Ok)
    }
}

impl Shared {
    fn find<H: Kept>(&self, key: &Key, kind: Use) -> Option<Arc<Slot<H>>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(key).and_then(H::held)?;
        (slot.kind == kind).then(|| Arc::clone(slot))
    }

    #[cold]
    fn add<H: Kept>(
        self: &Arc<Self>,
        key: &Key,
        kind: Use,
        is_taken: &dyn Fn(&str) -> bool,
    ) -> Result<Arc<Slot<H>>, Refusal> {
        let given = sanitized(key.name());
        let mut book = self.book();
        // Another thread may have been first.
        if let Some(slot) = self.find(key, kind) {
            return Ok(slot);
        }
        let unit = book.described.get(&*given).and_then(|described| described.unit);
        let shown = shown(key, kind, unit)?;
        if is_taken(&shown.base) {
            return Err(Refusal::Conflict("mcpscope has a metric of this name"));
        }
        book.add(&shown, &given, kind, self.max_series)?;
        let exporters = H::register(self.exporter(), &shown.key);
        let slot = Slot::new(self, key.to_retained(), shown, kind, exporters);
        self.insert(&slot);
        Ok(slot)
    }

    /// Writes to a series that the exporter may have dropped.
    fn come_back<H: Kept>(&self, slot: &Arc<Slot<H>>, write: impl FnOnce(&Slot<H>)) {
        // Until it is written the exporter must not drop it again.
        let mut book = self.book();
        if self.find::<H>(&slot.key, slot.kind).is_none() {
            let given = sanitized(slot.key.name());
            if book.add(&slot.shown, &given, slot.kind, self.max_series).is_err() {
                self.lost.fetch_add(1, Relaxed);
                return;
            }
            self.insert(slot);
        }
        slot.set_exporters(H::register(self.exporter(), &slot.shown.key));
        write(slot);
        drop(book);
    }

    fn insert<H: Kept>(&self, slot: &Arc<Slot<H>>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.insert(slot.key.clone(), H::hold(Arc::clone(slot)));
    }

    fn exporter(&self) -> &PrometheusRecorder {
        self.exporter.get_or_init(|| {
            let seconds: Vec<f64> = desc::TOOL_CALLS.bounds_ns().iter().map(|ns| *ns as f64 / 1e9).collect();
            let buckets = PrometheusBuilder::new()
                .set_buckets(&BOUNDS)
                .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds));
            // It only fails without any bounds.
            buckets.unwrap_or_default().idle_timeout(MetricKindMask::ALL, Some(self.idle_timeout)).build_recorder()
        })
    }

    /// Takes note of the time; to be called before the exporter drops anything.
    fn tick(&self) -> u64 {
        let now = whole_ms((self.clock)().saturating_duration_since(self.start));
        self.pulse.now_ms.fetch_max(now, Relaxed).max(now)
    }

    /// Lets the exporter take over the records of histograms.
    fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        let _alone = self.pulse.taking_over.write().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Makes room for a series.
    fn add(&mut self, shown: &Shown, given: &str, kind: Use, max_series: usize) -> Result<(), Refusal> {
        if let Some(family) = self.families.get(&shown.base)
            && (family.kind != kind || *family.name != *shown.key.name())
        {
            return Err(Refusal::Conflict("there is a metric of this name, but of another kind"));
        }
        if self.series >= max_series {
            return Err(Refusal::TooManySeries);
        }
        self.series += 1;
        let new = || Family { name: shown.key.name().into(), given: given.into(), kind, series: 0 };
        self.families.entry(shown.base.clone()).or_insert_with(new).series += 1;
        Ok(())
    }

    fn remove(&mut self, base: &str) {
        self.series -= 1;
        if let Some(family) = self.families.get_mut(base) {
            family.series -= 1;
            if family.series == 0 {
                self.families.remove(base);
            }
        }
    }

    /// The family that is shown, or would be, under this name.
    fn family(&self, name: &str) -> Option<&Family> {
        self.families.get(name.strip_suffix("_total").unwrap_or(name))
    }

    /// What `# HELP` says.
    fn help(&self, family: &Family) -> String {
        let described = self.described.get(&family.given);
        let help = described.map(|described| described.help.trim()).filter(|help| !help.is_empty());
        let mut text = help.unwrap_or(family.kind.help()).replace('\\', "\\\\").replace('\n', "\\n");
        // Those that are in the name need no mention.
        let unit = described.and_then(|described| described.unit);
        if let Some(unit) = unit.filter(|unit| *unit != Unit::Count && suffix(*unit).is_none()) {
            text.extend([" Unit: ", unit.as_str(), "."]);
        }
        if family.kind == Use::Sample {
            text.push_str(" A sample: divide counts and sums by mcpscope_sampling_rate.");
        }
        text
    }
}

impl Use {
    /// As `# TYPE` has it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram | Self::Sample => "histogram",
        }
    }

    /// For those who did not describe it.
    const fn help(self) -> &'static str {
        match self {
            Self::Counter | Self::Gauge | Self::Histogram => "Not described by who records it.",
            Self::Sample => "Recorded by name.",
        }
    }
}

impl General for Prometheus {
    fn record(
        &self,
        name: &str,
        value: f64,
        labels: &[(&str, &str)],
        is_taken: &dyn Fn(&str) -> bool,
    ) -> Result<(), Refusal> {
        let label =
            |(name, value): &(&str, &str)| Label::new((*name).to_owned(), bounded(value, MAX_VALUE_BYTES).to_owned());
        let labels: Vec<_> = labels.iter().map(label).collect();
        let key = Key::from_parts(name.to_owned(), labels);
        self.get::<Histogram>(&key, Use::Sample, is_taken)?.record(value);
        self.0.records.fetch_add(1, Relaxed);
        Ok(())
    }

    fn counter(&self, key: &Key, is_taken: &dyn Fn(&str) -> bool) -> Result<Counter, Refusal> {
        self.get(key, Use::Counter, is_taken).map(Counter::from_arc)
    }

    fn gauge(&self, key: &Key, is_taken: &dyn Fn(&str) -> bool) -> Result<Gauge, Refusal> {
        self.get(key, Use::Gauge, is_taken).map(Gauge::from_arc)
    }

    fn histogram(&self, key: &Key, is_taken: &dyn Fn(&str) -> bool) -> Result<Histogram, Refusal> {
        self.get(key, Use::Histogram, is_taken).map(Histogram::from_arc)
    }

    fn describe(&self, name: &str, unit: Option<Unit>, help: &str) {
        let name = sanitized(name);
        let mut book = self.0.book();
        let is_known = book.described.contains_key(&*name);
        if is_known || (book.described.len() < self.0.max_series && name.len() <= MAX_NAME_BYTES) {
            book.described.insert((*name).into(), Described { unit, help: bounded(help, MAX_HELP_BYTES).into() });
        }
    }

    fn has(&self, base: &str) -> bool {
        self.0.book().families.contains_key(base)
    }

    fn to_prometheus(&self) -> String {
        let Some(exporter) = self.0.exporter.get() else { return String::new() };
        let book = self.0.book();
        self.0.tick();
        let text = self.0.alone(|| exporter.handle().render());
        let mut families: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut samples = None;
        for line in text.split('\n').filter(|line| !line.is_empty()) {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').unwrap_or((family, ""));
                // Not what the exporter is about to drop, in whose place there may be something else.
                let is_shown = |family: &&Family| *family.name == *name && family.kind.as_str() == kind;
                let is_shown = book.family(name).filter(is_shown).is_some();
                samples = is_shown.then(|| families.entry(name).or_default());
            } else if let Some(samples) = &mut samples {
                samples.push(line);
            }
        }
        let mut out = String::with_capacity(text.len() * 2);
        for (name, samples) in families {
            let Some(family) = book.family(name) else { continue };
            out.extend(["# HELP ", name, " ", &book.help(family), "\n# TYPE ", name, " ", family.kind.as_str(), "\n"]);
            samples.into_iter().for_each(|sample| out.extend([sample, "\n"]));
        }
        out
    }

    fn upkeep(&self) {
        let now = self.0.tick();
        let Some(exporter) = self.0.exporter.get() else { return };
        let mut book = self.0.book();
        self.0.alone(|| exporter.handle().run_upkeep());
        let idle = whole_ms(self.0.idle_timeout);
        if now.saturating_sub(book.looked_ms) < idle / 16 {
            return;
        }
        book.looked_ms = now;
        // The exporter drops what is idle only when it shows the rest.
        let _ = self.0.alone(|| exporter.handle().render_to_write(&mut io::sink()));
        let mut slots = self.0.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, held| {
            let (used, base) = held.used();
            let is_idle = now.saturating_sub(used) > idle;
            if is_idle {
                book.remove(base);
            }
            !is_idle
        });
    }

    fn records(&self) -> u64 {
        self.0.records.load(Relaxed)
    }

    fn reset(&self) {
        self.0.records.store(0, Relaxed);
    }

    fn take_dropped(&self) -> Dropped {
        Dropped { bad_values: self.0.pulse.bad_values.swap(0, Relaxed), series: self.0.lost.swap(0, Relaxed) }
    }
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests;
