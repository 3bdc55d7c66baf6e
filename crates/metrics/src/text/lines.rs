//! The lines of one family.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::members::Shown;
use crate::schema::{Desc, Kind, Unit};
use crate::series::Cell;
use crate::snapshot::{Exemplar, Value};
use crate::storage::cells::{CounterCell, HistogramCell};
use crate::storage::slab::Slab;
use crate::text::{Format, base, number};

/// The lines of one family, series by series.
pub(super) struct Lines<'a> {
    out: &'a mut String,
    format: Format,
    desc: &'a Desc,
    /// A histogram's, from the bound on to the value. Made with the first series.
    bounds: Vec<String>,
    /// What the buckets of a histogram begin with.
    start: String,
    /// Of one histogram, by bucket.
    counts: Vec<u64>,
}

impl<'a> Lines<'a> {
    /// Writes what the family is.
    pub(super) fn new(out: &'a mut String, format: Format, desc: &'a Desc) -> Self {
        header(out, format, desc);
        Self { out, format, desc, bounds: Vec::new(), start: String::new(), counts: Vec::new() }
    }

    /// Writes one series. `exemplars` are as in [`SeriesSnapshot`](crate::SeriesSnapshot).
    pub(super) fn write(&mut self, labels: &str, value: &Value, exemplars: &[Option<Exemplar>]) {
        let exemplars = if self.format == Format::OpenMetrics { exemplars } else { &[] };
        if !matches!(value, Value::Histogram(_)) {
            start(self.out, &self.desc.prometheus, "", labels);
        }
        match value {
            Value::Counter(count) => self.counter(*count, exemplars),
            Value::Gauge(level) => self.gauge(*level),
            Value::Histogram(values) => self.histogram(labels, &values.bounds, values.sum_ns, exemplars),
        }
    }

    /// As [`Lines::write`], without a snapshot of the series.
    #[inline]
    pub(super) fn write_shown(&mut self, shown: &Shown, slabs: &[Arc<Slab>]) {
        let exemplars = match self.format {
            Format::Prometheus => Vec::new(),
            Format::OpenMetrics => shown.series.exemplars(),
        };
        match &shown.cell {
            Cell::Counter(place) => {
                self.out.push_str(&shown.text);
                let cells = slabs.iter().filter_map(|slab| slab.counter(*place));
                self.counter(CounterCell::total(cells), &exemplars);
            }
            Cell::Gauge(cell) => {
                self.out.push_str(&shown.text);
                self.gauge(cell.get());
            }
            Cell::Histogram(place) => {
                let cells = slabs.iter().filter_map(|slab| slab.histogram(*place));
                let mut counts = std::mem::take(&mut self.counts);
                let sum_ns = HistogramCell::exposed(cells, self.desc.bounds, &mut counts);
                self.histogram(&shown.text, &counts, sum_ns, &exemplars);
                self.counts = counts;
            }
        }
    }

    /// The rest of a counter's line.
    #[inline]
    fn counter(&mut self, count: u64, exemplars: &[Option<Exemplar>]) {
        if self.desc.unit == Unit::Seconds {
            number::seconds(self.out, count);
        } else {
            number::whole(self.out, count);
            exemplify(self.out, count, exemplars.first(), number::whole);
        }
        self.out.push('\n');
    }

    /// The rest of a gauge's line.
    fn gauge(&mut self, level: f64) {
        number::float(self.out, level);
        self.out.push('\n');
    }

    /// `counts` are the values per exposed bound, not accumulated.
    fn histogram(&mut self, labels: &str, counts: &[u64], sum_ns: u64, exemplars: &[Option<Exemplar>]) {
        if self.bounds.is_empty() {
            let bounds = self.desc.bounds_ns().iter().map(|ns| number::bound(*ns)).chain(["+Inf".to_owned()]);
            self.bounds = bounds.map(|bound| bound + "\"} ").collect();
        }
        self.start.clear();
        let separator = if labels.is_empty() { "" } else { "," };
        self.start.extend([&self.desc.prometheus, "_bucket{", labels, separator, "le=\""]);
        let mut exemplars = exemplars.iter();
        let mut below = 0;
        for (count, bound) in counts.iter().zip(&self.bounds) {
            below += count;
            self.out.push_str(&self.start);
            self.out.push_str(bound);
            number::whole(self.out, below);
            exemplify(self.out, *count, exemplars.next(), number::seconds);
            self.out.push('\n');
        }
        start(self.out, &self.desc.prometheus, "_sum", labels);
        number::seconds(self.out, sum_ns);
        self.out.push('\n');
        start(self.out, &self.desc.prometheus, "_count", labels);
        number::whole(self.out, below);
        self.out.push('\n');
    }
}

/// A line up to its value.
pub(crate) fn start(out: &mut String, name: &str, suffix: &str, labels: &str) {
    out.push_str(name);
    out.push_str(suffix);
    if labels.is_empty() {
        out.push(' ');
    } else {
        out.push('{');
        out.push_str(labels);
        out.push_str("} ");
    }
}

fn header(out: &mut String, format: Format, desc: &Desc) {
    let name = match (format, desc.kind) {
        (Format::OpenMetrics, Kind::Counter) => base(&desc.prometheus),
        _ => &desc.prometheus,
    };
    out.extend(["# TYPE ", name, " ", desc.kind.as_str(), "\n"]);
    let unit = desc.unit.as_str().filter(|unit| name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')));
    if let (Format::OpenMetrics, Some(unit)) = (format, unit) {
        out.extend(["# UNIT ", name, " ", unit, "\n"]);
    }
    out.extend(["# HELP ", name, " "]);
    for c in desc.help.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if format == Format::OpenMetrics => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('\n');
}

/// Writes the exemplar of `count` records. One of a record that came after they were counted waits for the next time.
#[inline]
fn exemplify(out: &mut String, count: u64, exemplar: Option<&Option<Exemplar>>, value: fn(&mut String, u64)) {
    let Some(Some(exemplar)) = exemplar.filter(|_| count > 0) else { return };
    // Writing to a string cannot fail.
    let _ = write!(out, " # {{trace_id=\"{}\"}} ", exemplar.trace_id);
    value(out, exemplar.value);
    out.push(' ');
    let since = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    number::seconds_of_ms(out, since.as_millis() as u64);
}
