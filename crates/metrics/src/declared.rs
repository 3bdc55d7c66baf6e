//! Critical metrics that a user declares.

use std::borrow::Cow;
use std::sync::Arc;

use mcpscope_core::bounded;

use crate::error::{RecordError, SHOWN_BYTES};
use crate::family::Family;
use crate::handle::{Counter, Gauge, Handle, Histogram};
use crate::metrics::Metrics;
use crate::schema::{Desc, Kind, Unit, desc};

/// Prefixes of names that are ours alone.
pub const RESERVED_PREFIXES: [&str; 3] = ["mcpscope_", "mcp_", "process_"];
/// Longest name of a metric or a label, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 128;
/// Labels that a series may have.
pub(crate) const MAX_LABELS: usize = 16;

/// A critical metric besides the seven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    name: String,
    kind: Kind,
    help: String,
}

impl Declared {
    /// A metric with this name and meaning; an empty `help` becomes a general one.
    ///
    /// In Prometheus a counter's name ends in `_total`, which is added where it is missing. A histogram measures
    /// durations, in the unit that its name ends in: `_seconds`, or `_ms`, which becomes `_seconds` in Prometheus. No other
    /// name ends in `_total` or `_ms`: counters and gauges are shown in the unit in which they are recorded, which has to be
    /// the one that Prometheus wants.
    ///
    /// # Errors
    /// [`RecordError::BadName`]: the name is none for Prometheus, or reserved, or has not the unit of its kind, or would be
    /// mistaken for a part of another metric.
    pub fn new(name: impl Into<String>, kind: Kind, help: impl Into<String>) -> Result<Self, RecordError> {
        let (name, help) = (name.into(), help.into());
        check_name(&name)?;
        // Without the ending that belongs to its kind.
        let stem = match kind {
            Kind::Counter => name.strip_suffix("_total").unwrap_or(&name),
            Kind::Gauge => &name,
            Kind::Histogram => match name.strip_suffix("_seconds").or_else(|| name.strip_suffix("_ms")) {
                Some(stem) => stem,
                None => return Err(bad_name(&name, "the name of a histogram of durations to end in _seconds or _ms")),
            },
        };
        if kind != Kind::Histogram && stem.ends_with("_ms") {
            return Err(bad_name(&name, "a name in _seconds: only a histogram's _ms become seconds in Prometheus"));
        }
        if stem.is_empty() {
            return Err(bad_name(&name, "something before the ending of a name"));
        }
        if kind != Kind::Histogram && stem.ends_with("_total") {
            return Err(bad_name(&name, "a name that ends in _total once, and only if it is a counter's"));
        }
        if kind != Kind::Histogram && (is_part(stem) || stem.ends_with("_info")) {
            return Err(bad_name(&name, NO_PART));
        }
        Ok(Self { name, kind, help })
    }

    /// As a critical metric, or as one that is only counted.
    fn desc(&self, is_critical: bool) -> Desc {
        let name = &self.name;
        let (prometheus, unit) = match self.kind {
            Kind::Counter if name.ends_with("_total") => (name.clone(), Unit::None),
            Kind::Counter => (format!("{name}_total"), Unit::None),
            Kind::Gauge => (name.clone(), Unit::None),
            Kind::Histogram => match name.strip_suffix("_ms") {
                Some(base) => (format!("{base}_seconds"), Unit::Seconds),
                None => (name.clone(), Unit::Seconds),
            },
        };
        let help = if self.help.trim().is_empty() { "Declared by the user." } else { self.help.trim() };
        Desc {
            prometheus: Cow::Owned(prometheus),
            name: Cow::Owned(name.clone()),
            critical: is_critical.then(|| Cow::Owned(name.clone())),
            help: Cow::Owned(help.to_owned()),
            kind: self.kind,
            unit,
            labels: None,
            bounds: desc::TOOL_CALLS.bounds,
            logged: is_critical,
        }
    }
}

const NO_PART: &str = "a name without a suffix that Prometheus gives to parts of metrics";

pub(crate) fn bad_name(name: &str, expected: &'static str) -> RecordError {
    RecordError::BadName { name: bounded(name, SHOWN_BYTES).to_owned(), expected }
}

fn check_name(name: &str) -> Result<(), RecordError> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let rest = |c: char| first(c) || c.is_ascii_digit();
    if !name.starts_with(first) || !name.chars().all(rest) || name.len() > MAX_NAME_BYTES {
        return Err(bad_name(name, "letters, digits and _, no digit first, 128 bytes at most"));
    }
    if is_reserved(name) {
        return Err(bad_name(name, "a name that does not begin with mcpscope_, mcp_ or process_"));
    }
    Ok(())
}

/// Whether a name has a suffix that histograms and counters give to what they consist of.
pub(crate) fn is_part(name: &str) -> bool {
    ["_bucket", "_count", "_sum", "_created"].iter().any(|suffix| name.ends_with(suffix))
}

/// Whether a name is ours alone, or is so with the suffix that Prometheus gives it.
pub(crate) fn is_reserved(name: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix) || prefix.strip_suffix('_') == Some(name))
}

/// The labels ordered by name, each of which is a good one and there once.
///
/// # Errors
/// [`RecordError::BadLabel`] otherwise.
pub(crate) fn checked<'a>(labels: &[(&'a str, &'a str)]) -> Result<Vec<(&'a str, &'a str)>, RecordError> {
    let bad = |label: &str, expected| RecordError::BadLabel { label: bounded(label, SHOWN_BYTES).to_owned(), expected };
    if let Some((label, _)) = labels.get(MAX_LABELS) {
        return Err(bad(label, "16 labels at most"));
    }
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    for (at, (label, _)) in labels.iter().enumerate() {
        let is_name = label.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && label.len() <= MAX_NAME_BYTES
            && !label.starts_with("__");
        if !is_name || ["le", "quantile"].contains(label) {
            return Err(bad(label, "letters, digits and _, no digit and no __ first, neither le nor quantile"));
        }
        if labels.get(at + 1).is_some_and(|(next, _)| next == label) {
            return Err(bad(label, "each label once"));
        }
    }
    Ok(labels)
}

impl Metrics {
    /// Makes a critical metric; one that is there already is left as it is.
    ///
    /// # Errors
    /// [`RecordError::Taken`]: the name belongs to a metric of another kind, or one that is not critical, or would be
    /// mistaken for another's.
    pub fn declare(&self, declared: &Declared) -> Result<(), RecordError> {
        let family = self.declared(declared, true)?;
        // It may have been there, by another name or only counted: then records by this name would not get there.
        if family.desc.critical.is_some() && *family.desc.name == declared.name {
            Ok(())
        } else {
            Err(RecordError::Taken { name: bounded(&declared.name, SHOWN_BYTES).to_owned() })
        }
    }

    fn declared(&self, declared: &Declared, is_critical: bool) -> Result<Arc<Family>, RecordError> {
        let desc = declared.desc(is_critical);
        let taken = || RecordError::Taken { name: bounded(&declared.name, SHOWN_BYTES).to_owned() };
        let mine = base(&desc.prometheus).to_owned();
        let beside = |other: &Desc| {
            let same = base(&other.prometheus) == mine || other.name == declared.name;
            if same { Err(taken()) } else { Ok(()) }
        };
        let is_new = self.family(|other| *other == desc).is_none();
        if is_new
            && self
                .inner()
                .general
                .as_ref()
                .is_some_and(|general| general.has(&mine) || general.has(base(&declared.name)))
        {
            // What is kept there already would no longer be seen.
            return Err(taken());
        }
        self.add_family(desc, beside)?.ok_or(RecordError::TooMany)
    }

    /// The counter with this name and these labels.
    ///
    /// A name that is new makes a metric: counted as exactly as a critical one, with windows and at `/metrics`, but not
    /// among the critical ones and their raw records. Those are declared.
    ///
    /// # Errors
    /// [`RecordError`]: the name or a label is no good, or taken, or there are too many.
    pub fn counter(&self, name: &str, labels: &[(&str, &str)]) -> Result<Counter, RecordError> {
        self.named(name, Kind::Counter, labels).map(Counter)
    }

    /// The gauge with this name and these labels; see [`Metrics::counter`].
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Result<Gauge, RecordError> {
        self.named(name, Kind::Gauge, labels).map(Gauge)
    }

    /// The histogram of durations with this name and these labels; see [`Metrics::counter`].
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Result<Histogram, RecordError> {
        self.named(name, Kind::Histogram, labels).map(Histogram)
    }

    fn named(&self, name: &str, kind: Kind, labels: &[(&str, &str)]) -> Result<Handle, RecordError> {
        let family = match self.family(|desc| desc.labels.is_none() && desc.name == name) {
            Some(family) if family.desc.kind == kind => family,
            Some(_) => return Err(RecordError::Taken { name: bounded(name, SHOWN_BYTES).to_owned() }),
            None => self.declared(&Declared::new(name, kind, "")?, false)?,
        };
        let series = self.resolve(&family, &checked(labels)?).series;
        Ok(Handle { store: Arc::clone(&self.inner().store), series })
    }
}

/// Whether others can keep a record like this.
///
/// # Errors
/// [`RecordError`] otherwise.
pub(crate) fn check_general(name: &str, labels: &[(&str, &str)]) -> Result<(), RecordError> {
    check_name(name)?;
    if is_part(name) {
        return Err(bad_name(name, NO_PART));
    }
    if name.ends_with("_total") {
        return Err(bad_name(name, "a declared metric: what ends in _total is a counter, which cannot be sampled"));
    }
    checked(labels).map(drop)
}

/// A name without what Prometheus adds: two families must differ in it.
fn base(prometheus: &str) -> &str {
    prometheus.strip_suffix("_total").unwrap_or(prometheus)
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use std::time::{Instant, SystemTime};

    use mcpscope_core::ClockAnchor;

    use super::*;
    use crate::Config;

    fn metrics(config: &Config) -> (Metrics, Instant) {
        let now = Instant::now();
        (Metrics::new(config, ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH }), now)
    }

    fn declared(name: &str, kind: Kind) -> Declared {
        Declared::new(name, kind, "").unwrap()
    }

    #[test]
    fn names_that_would_be_another_metrics_are_refused() {
        for (kind, names) in [
            (Kind::Counter, &["_total", "x_count_total", "x_sum", "x_info_total", "x_total_total", "x_created"][..]),
            (Kind::Counter, &["waited_ms", "waited_ms_total", "_ms"]),
            (Kind::Gauge, &["x_total", "_total", "x_bucket", "x_info", "queue_ms", "_ms"]),
            (Kind::Histogram, &["_seconds", "_ms", "x", "x_total"]),
        ] {
            for name in names {
                let refused = Declared::new(*name, kind, "").unwrap_err();
                assert!(matches!(refused, RecordError::BadName { .. }), "{name} {refused}");
            }
        }
        for (kind, name) in [
            (Kind::Counter, "x_total"),
            (Kind::Counter, "subtotal"),
            (Kind::Counter, "waited_seconds"),
            (Kind::Counter, "waited_seconds_total"),
            (Kind::Gauge, "queue_seconds"),
            (Kind::Gauge, "queue_bytes"),
            (Kind::Gauge, "count"),
            (Kind::Histogram, "x_seconds"),
            (Kind::Histogram, "x_count_ms"),
        ] {
            declared(name, kind);
        }
    }

    #[test]
    fn what_is_declared_is_critical_by_its_own_name() {
        let (metrics, at) = metrics(&Config::default());
        let taken = |name, kind| matches!(metrics.declare(&declared(name, kind)), Err(RecordError::Taken { .. }));
        metrics.counter("later", &[]).unwrap().increment(at);
        assert!(taken("later", Kind::Counter) && taken("later_total", Kind::Counter));
        metrics.declare(&declared("jobs", Kind::Counter)).unwrap();
        assert!(taken("jobs_total", Kind::Counter) && taken("jobs", Kind::Gauge));
        metrics.declare(&declared("wait_seconds", Kind::Histogram)).unwrap();
        assert!(taken("wait_ms", Kind::Histogram));
        metrics.declare(&declared("jobs", Kind::Counter)).unwrap();
        metrics.record("jobs", 2.0, &[], at).unwrap();
        assert!(metrics.views(at).iter().any(|view| view.name == "jobs"));
        assert!(metrics.views(at).iter().all(|view| view.name != "later"));
    }
}
