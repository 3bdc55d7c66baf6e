//! Metrics that are critical because the configuration says so.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_yaml::{Mapping, Value};

use crate::kind::described;

const MAX_METRICS: usize = 256;
const MAX_NAME_BYTES: usize = 128;
const MAX_HELP_BYTES: usize = 1024;

/// What mcpscope's own metrics begin with.
const RESERVED: [&str; 3] = ["mcpscope_", "mcp_", "process_"];

/// What a metrics page puts behind names by itself.
const PARTS: [&str; 5] = ["_bucket", "_count", "_sum", "_created", "_info"];

/// The metrics that are critical in any case.
const BUILT_IN: [&str; 7] = [
    "registry_operations_per_second",
    "session_creation_latency_ms",
    "transport_connection_count",
    "tool_call_duration_ms",
    "error_rates_by_component",
    "active_sessions_count",
    "message_queue_depth",
];

/// One metric of the user's own of which every record counts.
///
/// In a file it is a mapping of these fields, or its name alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CriticalMetric {
    /// ASCII letters, digits and `_`, not beginning with a digit, 1 to 128 bytes. A histogram's ends in its unit, `_seconds`
    /// or `_ms`; none ends in `_bucket`, `_count`, `_sum`, `_created` or `_info`.
    pub name: String,
    /// Default: what the name says, see [`MetricKind::of`].
    pub kind: MetricKind,
    /// What it measures, in one line of at most 1024 bytes. Default: empty.
    pub help: String,
}

/// What sort of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// A distribution of durations.
    Histogram,
}

impl MetricKind {
    /// The kind that a name stands for: `_total` is a counter, `_seconds` and `_ms` are histograms of durations in that unit,
    /// everything else is a gauge.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if name.ends_with("_total") {
            Self::Counter
        } else if is_duration(name) {
            Self::Histogram
        } else {
            Self::Gauge
        }
    }

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if text == "counter" => Some(Self::Counter),
            Value::String(text) if text == "gauge" => Some(Self::Gauge),
            Value::String(text) if text == "histogram" => Some(Self::Histogram),
            _ => None,
        }
    }
}

/// Reads a list of metrics, no two of which would be the same to a scraper.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<CriticalMetric>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    read(&value).map_err(de::Error::custom)
}

fn read(value: &Value) -> Result<Vec<CriticalMetric>, String> {
    let Value::Sequence(list) = value else {
        return Err(wrong("a list of metrics, each a name or a mapping of name, kind and help", value));
    };
    if list.len() > MAX_METRICS {
        return Err(format!("expected {MAX_METRICS} metrics at most, found {}", list.len()));
    }
    let metrics = list.iter().map(CriticalMetric::read).collect::<Result<Vec<_>, _>>()?;
    for (at, CriticalMetric { name, .. }) in metrics.iter().enumerate() {
        let (before, family) = (&metrics[..at], metrics[at].family());
        if before.iter().any(|other| other.name == *name) {
            return Err(format!("{name} is given twice"));
        }
        if let Some(other) = before.iter().find(|other| other.family() == family) {
            return Err(format!("{} and {name} would be one and the same to a scraper", other.name));
        }
    }
    Ok(metrics)
}

impl CriticalMetric {
    fn read(value: &Value) -> Result<Self, String> {
        let given = match value {
            Value::String(_) => Given { name: Some(value), ..Given::default() },
            Value::Mapping(fields) => Given::new(fields)?,
            other => return Err(wrong("the name of a metric, or a mapping of its name, kind and help", other)),
        };
        let name = given.name.ok_or("expected a name among name, kind and help")?;
        let name = read_name(name)?;
        let kind = match given.kind {
            Some(kind) => MetricKind::read(kind).ok_or_else(|| wrong("counter, gauge or histogram", kind))?,
            None => MetricKind::of(name),
        };
        if kind == MetricKind::Histogram && !is_duration(name) {
            return Err(format!("expected the name of a histogram to end in _seconds or _ms, found {name:?}"));
        }
        if kind == MetricKind::Gauge && name.ends_with("_total") {
            return Err(format!("expected the name of a gauge not to end in _total, found {name:?}"));
        }
        let help = given.help.map_or(Ok(""), read_help)?;
        Ok(Self { name: name.to_owned(), kind, help: help.to_owned() })
    }

    /// What a scraper tells it from others by: the name without what its kind puts behind it, in the unit that is exposed.
    fn family(&self) -> Cow<'_, str> {
        match self.name.strip_suffix("_ms") {
            Some(stem) if self.kind == MetricKind::Histogram => format!("{stem}_seconds").into(),
            _ => self.name.strip_suffix("_total").unwrap_or(&self.name).into(),
        }
    }
}

/// The fields of a mapping, as they were written.
#[derive(Default)]
struct Given<'a> {
    name: Option<&'a Value>,
    kind: Option<&'a Value>,
    help: Option<&'a Value>,
}

impl<'a> Given<'a> {
    fn new(fields: &'a Mapping) -> Result<Self, String> {
        let mut given = Self::default();
        for (key, value) in fields {
            let field = match key {
                Value::String(key) if key == "name" => &mut given.name,
                Value::String(key) if key == "kind" => &mut given.kind,
                Value::String(key) if key == "help" => &mut given.help,
                other => return Err(wrong("only name, kind and help", other)),
            };
            *field = Some(value);
        }
        Ok(given)
    }
}

fn read_name(value: &Value) -> Result<&str, String> {
    let Value::String(name) = value else { return Err(wrong("the name of a metric", value)) };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !(1..=MAX_NAME_BYTES).contains(&name.len())
        || !name.bytes().all(fits)
        || name.starts_with(|first: char| first.is_ascii_digit())
    {
        return Err(wrong("the name of a metric, 1 to 128 letters, digits and _, not beginning with a digit", value));
    }
    if BUILT_IN.contains(&name.as_str()) {
        return Err(format!("{name} is critical in any case: expected metrics besides mcpscope's own"));
    }
    if ["_total", "_seconds", "_ms"].contains(&name.as_str()) {
        return Err(wrong("something before the ending of a name", value));
    }
    if let Some(part) = PARTS.into_iter().find(|part| name.ends_with(part)) {
        return Err(wrong(&format!("a name that does not end in {part}, as a part of a metric does"), value));
    }
    if let Some(reserved) = RESERVED.into_iter().find(|reserved| name.starts_with(reserved)) {
        return Err(wrong(&format!("a name that does not begin with {reserved}, as mcpscope's own do"), value));
    }
    Ok(name)
}

fn read_help(value: &Value) -> Result<&str, String> {
    match value {
        Value::String(help) if help.len() <= MAX_HELP_BYTES && !help.contains(char::is_control) => Ok(help),
        other => Err(wrong("a help text of one line, at most 1024 bytes", other)),
    }
}

fn is_duration(name: &str) -> bool {
    name.ends_with("_seconds") || name.ends_with("_ms")
}

fn wrong(expected: &str, found: &Value) -> String {
    format!("expected {expected}, found {}", described(found))
}
