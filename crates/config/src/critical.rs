//! Metrics that are critical because the configuration says so.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_yaml::{Mapping, Value};

use crate::kind::described;

const MAX_METRICS: usize = 256;
const MAX_NAME_BYTES: usize = 128;
const MAX_HELP_BYTES: usize = 1024;

/// The key of the list.
pub(crate) const KEY: &str = "metrics.critical_metrics";

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
    /// or `_ms`, no other one's in `_ms`; none ends in `_bucket`, `_count`, `_sum`, `_created` or `_info`, also before the
    /// `_total` of a counter.
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

    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
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
    let mut read = List::default();
    list.iter().try_for_each(|element| read.push(element.clone()))?;
    Ok(read.metrics)
}

/// The list, element by element.
#[derive(Debug, Default)]
pub(crate) struct List {
    elements: Vec<Value>,
    metrics: Vec<CriticalMetric>,
}

impl List {
    /// Adds an element, or says what is wrong with it. Nothing is where there are too many, which is not its fault.
    pub(crate) fn push(&mut self, element: Value) -> Result<(), String> {
        if self.metrics.len() < MAX_METRICS {
            let metric = CriticalMetric::read(&element)?;
            let (name, family) = (&metric.name, metric.family());
            if self.metrics.iter().any(|other| other.name == *name) {
                return Err(format!("{name} is given twice"));
            }
            if let Some(other) = self.metrics.iter().find(|other| other.family() == family) {
                return Err(format!("{} and {name} would be one and the same to a scraper", other.name));
            }
            self.metrics.push(metric);
        }
        self.elements.push(element);
        Ok(())
    }

    /// What was added, as it was written.
    pub(crate) fn into_value(self) -> Value {
        Value::Sequence(self.elements)
    }
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
        check_ending(name, kind)?;
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
    // A counter's `_total` begins with `_`.
    if let Some(reserved) = RESERVED.into_iter().find(|reserved| format!("{name}_").starts_with(reserved)) {
        return Err(wrong(&format!("a name that does not begin with {reserved}, as mcpscope's own do"), value));
    }
    Ok(name)
}

/// Whether a name of this kind says what will be shown: a counter's is exposed with `_total`, a histogram's in seconds.
fn check_ending(name: &str, kind: MetricKind) -> Result<(), String> {
    let total = if kind == MetricKind::Counter && name.ends_with("_total") { "_total" } else { "" };
    let stem = &name[..name.len() - total.len()];
    let not_in = |ending: &str, why| {
        format!("expected the name of a {} not to end in {ending}{total}{why}, found {name:?}", kind.as_str())
    };
    if kind == MetricKind::Histogram {
        let expected = "expected the name of a histogram to end in _seconds or _ms";
        return if is_duration(name) { Ok(()) } else { Err(format!("{expected}, found {name:?}")) };
    }
    if stem.ends_with("_total") {
        return Err(not_in("_total", ""));
    }
    if stem.ends_with("_ms") {
        return Err(not_in("_ms", ", of which only a histogram's becomes seconds"));
    }
    match PARTS.into_iter().find(|part| stem.ends_with(part)) {
        Some(part) => Err(not_in(part, ", as a part of a metric does")),
        None => Ok(()),
    }
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
