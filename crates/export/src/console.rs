//! Spans for people to see: one line of JSON each.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_tracing::{Trace, Value};
use serde_json::{Map, Value as Json, json};

use crate::convert;

/// Writes the spans of these traces.
///
/// # Errors
/// It could not be written.
pub(crate) fn write(to: &mut impl Write, traces: &[Arc<Trace>]) -> io::Result<()> {
    let mut lines = Vec::new();
    for trace in traces {
        for span in lines_of(trace) {
            serde_json::to_writer(&mut lines, &span)?;
            lines.push(b'\n');
        }
    }
    to.write_all(&lines)?;
    to.flush()
}

fn lines_of(trace: &Trace) -> impl Iterator<Item = Json> {
    trace.spans.iter().enumerate().map(|(index, span)| {
        let attributes = convert::attributes(trace, index);
        let mut line = json!({
            "timestamp": time(trace.timestamp + span.start),
            "trace_id": trace.id.to_string(),
            "span_id": span.id.to_string(),
            "parent_id": span.parent.map(|parent| parent.to_string()),
            "server": &*trace.server,
            "name": &*span.name,
            "kind": span.kind.as_str(),
            "duration_ms": millis(span.duration),
            "status": span.status.as_str(),
            "attributes": object(attributes.iter().map(|(name, value)| (&**name, &**value))),
        });
        if let Some(line) = line.as_object_mut() {
            if let Some(message) = &span.message {
                line.insert("message".to_owned(), Json::from(&**message));
            }
            let event = |event: &mcpscope_tracing::Event| {
                json!({"name": &*event.name, "at": time(trace.timestamp + event.at), "attributes": object(event.attributes.iter().map(|(name, value)| (&**name, value)))})
            };
            if !span.events.is_empty() {
                line.insert("events".to_owned(), span.events.iter().map(event).collect());
            }
        }
        line
    })
}

fn object<'a>(attributes: impl Iterator<Item = (&'a str, &'a Value)>) -> Json {
    let value = |value: &Value| match value {
        Value::Str(text) => Json::from(&**text),
        Value::Int(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Bool(yes) => Json::from(*yes),
    };
    Json::Object(attributes.map(|(name, found)| (name.to_owned(), value(found))).collect::<Map<_, _>>())
}

// What cannot be written would be a panic.
fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_micros(at.max(SystemTime::UNIX_EPOCH)).to_string()
}

fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
