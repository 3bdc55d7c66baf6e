//! Traces as OTLP spans.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use mcpscope_tracing::{Attribute, Event, Span, SpanKind, Trace, Value};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as otlp, ResourceSpans, ScopeSpans, SpanFlags};

use super::{nanos, pair, scope};

/// W3C: the trace was sampled.
const SAMPLED: u32 = 1;
/// The attribute that makes a span one with an error.
const ERROR_TYPE: &str = "error.type";
/// Details that say what a span with an error says already.
const ERROR_DETAILS: [&str; 2] = ["error_class", "error_message"];
/// The detail that every span has as `mcp.method.name`.
const METHOD: &str = "method";

/// The request that exports these traces.
pub(crate) fn spans(traces: &[Arc<Trace>], resource: &Resource) -> ExportTraceServiceRequest {
    let spans = traces.iter().flat_map(|trace| (0..trace.spans.len()).filter_map(|index| of(trace, index)));
    let scope_spans = ScopeSpans { scope: Some(scope()), spans: spans.collect(), ..ScopeSpans::default() };
    let resource = Some(resource.clone());
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans: vec![scope_spans], ..ResourceSpans::default() }],
    }
}

/// Whether a span of a trace is its first, which carries what is known of the whole.
const fn is_root(trace: &Trace, index: usize) -> bool {
    index == 0 && !trace.late
}

/// The attributes of a span of a trace as they are exported: its own, and where it is the first, what is known of the whole. A
/// name stands for one value.
pub(crate) fn attributes(trace: &Trace, index: usize) -> Vec<(Cow<'_, str>, Cow<'_, Value>)> {
    let Some(span) = trace.spans.get(index) else { return Vec::new() };
    let own = latest(&span.attributes).map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(value)));
    let mut attributes = own.collect::<Vec<_>>();
    if !is_root(trace, index) {
        return attributes;
    }
    let failed = has_error(span);
    let is_told = |name: &str| name == METHOD || (failed && ERROR_DETAILS.contains(&name));
    let named = |name: &'static str, value| (Cow::Borrowed(name), Cow::Owned(value));
    // A program that traces itself may have no server.
    let server = (!trace.server.is_empty()).then(|| named("mcpscope.server", Value::Str((&*trace.server).into())));
    let details = latest(&trace.details).filter(|(name, _)| !is_told(name)).map(|(name, value)| {
        let name = if name.contains('.') { Cow::Borrowed(&**name) } else { Cow::Owned(format!("mcpscope.{name}")) };
        (name, Cow::Borrowed(value))
    });
    let injected = trace.injected.then(|| named("mcpscope.injected", Value::Bool(true)));
    for attribute in server.into_iter().chain(details).chain(injected) {
        if !attributes.iter().any(|(known, _)| *known == attribute.0) {
            attributes.push(attribute);
        }
    }
    attributes
}

fn of(trace: &Trace, index: usize) -> Option<otlp::Span> {
    let span = trace.spans.get(index)?;
    let start = trace.timestamp + span.start;
    let status = has_error(span).then(|| otlp::Status {
        code: StatusCode::Error as i32,
        message: span.message.as_deref().unwrap_or_default().to_owned(),
    });
    let kind = match span.kind {
        SpanKind::Server => otlp::span::SpanKind::Server,
        SpanKind::Client => otlp::span::SpanKind::Client,
        SpanKind::Internal => otlp::span::SpanKind::Internal,
    };
    let parent_is_remote = is_root(trace, index) && span.parent.is_some();
    let remote = if parent_is_remote { SpanFlags::ContextIsRemoteMask as u32 } else { 0 };
    let attributes = attributes(trace, index).into_iter().map(|(name, found)| pair(name, value(&found)));
    Some(otlp::Span {
        trace_id: trace.id.0.get().to_be_bytes().to_vec(),
        span_id: span.id.0.get().to_be_bytes().to_vec(),
        trace_state: span.tracestate.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: span.parent.map(|parent| parent.0.get().to_be_bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32 | remote,
        name: span.name.to_string(),
        kind: kind as i32,
        start_time_unix_nano: nanos(start),
        end_time_unix_nano: nanos(start + span.duration),
        attributes: attributes.collect(),
        events: span.events.iter().map(|event| of_event(trace.timestamp, event)).collect(),
        dropped_events_count: span.dropped_events,
        status,
        ..otlp::Span::default()
    })
}

fn of_event(trace: SystemTime, event: &Event) -> otlp::span::Event {
    otlp::span::Event {
        time_unix_nano: nanos(trace + event.at),
        name: event.name.to_string(),
        attributes: latest(&event.attributes).map(|(name, found)| pair(name.as_ref(), value(found))).collect(),
        ..otlp::span::Event::default()
    }
}

/// The conventions: an error is what has a type.
fn has_error(span: &Span) -> bool {
    span.attributes.iter().any(|(name, _)| name == ERROR_TYPE)
}

/// A name stands for one value: the last that it was given.
fn latest(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    let is_last = |at: usize, name: &str| attributes.iter().skip(at + 1).all(|(other, _)| other != name);
    attributes.iter().enumerate().filter(move |(at, (name, _))| is_last(*at, name)).map(|(_, attribute)| attribute)
}

fn value(value: &Value) -> any_value::Value {
    match value {
        Value::Str(text) => any_value::Value::StringValue(text.to_string()),
        Value::Int(number) => any_value::Value::IntValue(*number),
        Value::Float(number) => any_value::Value::DoubleValue(*number),
        Value::Bool(yes) => any_value::Value::BoolValue(*yes),
    }
}

#[cfg(test)]
mod tests;
