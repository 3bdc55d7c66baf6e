//! Metrics as text: Prometheus' own format 0.0.4, and OpenMetrics 1.0.

mod general;
pub(crate) mod lines;
mod number;

use std::collections::HashSet;
use std::time::Instant;

use crate::metrics::Metrics;
use crate::schema::{Desc, Kind};
use crate::snapshot::Snapshot;
use crate::text::lines::Lines;

/// A text format for scrapers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// OpenMetrics text 1.0: with units, exemplars and an end.
    OpenMetrics,
}

impl Format {
    /// What an HTTP answer in this format has as its `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Snapshot {
    /// All families as Prometheus text 0.0.4.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        self.to_text(Format::Prometheus)
    }

    /// All families as OpenMetrics text 1.0. An exemplar is the trace id of a recent event, or of a recent duration within
    /// the bucket.
    #[must_use]
    pub fn to_openmetrics(&self) -> String {
        self.to_text(Format::OpenMetrics)
    }

    fn to_text(&self, format: Format) -> String {
        let mut out = String::with_capacity(CAPACITY);
        for family in &self.families {
            let mut lines = Lines::new(&mut out, format, &family.desc);
            family.series.iter().for_each(|s| lines.write(s.labels.as_text(), &s.value, &s.exemplars));
        }
        end(out, format)
    }
}

impl Metrics {
    /// All that there is to scrape now, which is `at`: the families of a snapshot, then those of
    /// [`Config::general`](crate::Config::general) whose names are not among the names of the former.
    #[must_use]
    pub fn exposition(&self, format: Format, at: Instant) -> String {
        let mut out = String::with_capacity(CAPACITY);
        let mut taken = HashSet::new();
        // Without a snapshot in between: that would be as much work again.
        self.each_family(at, |family, slabs| {
            take(&mut taken, &family.desc);
            let mut lines = Lines::new(&mut out, format, &family.desc);
            family.shown(slabs, at).iter().for_each(|shown| lines.write_shown(shown, slabs));
        });
        if let Some(general) = &self.inner().general {
            general::convert(&mut out, format, &general.to_prometheus(), &taken);
        }
        end(out, format)
    }
}

/// What a page begins with as room, in bytes: enough for one without traffic.
const CAPACITY: usize = 32 << 10;

fn end(mut out: String, format: Format) -> String {
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

/// The name of a counter without what only its samples have in OpenMetrics.
fn base(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

/// Adds the names that a family and its samples have in either format.
fn take(taken: &mut HashSet<String>, desc: &Desc) {
    let name = &*desc.prometheus;
    taken.insert(name.to_owned());
    match desc.kind {
        Kind::Counter => {
            taken.insert(base(name).to_owned());
        }
        Kind::Histogram => taken.extend(["_bucket", "_count", "_sum"].map(|suffix| format!("{name}{suffix}"))),
        Kind::Gauge => {}
    }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests;
