//! The trace of a call, as it is kept.

use std::time::{Duration, Instant};

use mcpscope_core::{CallEvent, CallEventKind, CallRecord, ClockAnchor, Direction, ErrorType, Forwarded, RequestId};

use crate::buffer::Buffer;
use crate::packed::{self, Head, Key, Name, SpanHead};
use crate::record::{SpanKind, Status};
use crate::value::ValueRef;

/// Writes the trace of one call, seen from the middle: a server's span to whoever asked and, where the call was sent on, a
/// client's to whoever answered.
pub(crate) fn write(bytes: &mut Buffer, record: &CallRecord, anchor: &ClockAnchor) {
    let CallRecord { call, started, duration, outcome, forwarded, events, .. } = record;
    let (status, duration_ns) = (Status::of(outcome), whole_ns(*duration));
    let at = |at: Instant| whole_ns(at.saturating_duration_since(*started)).min(duration_ns);
    packed::begin(bytes, &call.server);
    // An instrumented program that asks is the client itself, and not in the middle.
    let kind = match call.direction {
        Direction::ToClient if forwarded.is_none() => SpanKind::Client,
        _ => SpanKind::Server,
    };
    let parent = call.context.map(|context| context.parent);
    let target = call.target.as_deref().filter(|_| matches!(call.method.as_str(), "tools/call" | "prompts/get"));
    let method = call.method.as_str();
    let root = packed::begin_span(bytes, SpanHead { id: record.span_id, parent, start_ns: 0, kind }, method, target);
    let common = bytes.written().len();
    attributes(bytes, record);
    let common = common..bytes.written().len();
    outcome_attributes(bytes, record, record.error_type());
    let went = forwarded.map(|Forwarded { queued, sent, .. }| (at(queued), at(sent)));
    details(bytes, record, went);
    for CallEvent { at: moment, kind } in events {
        let (name, numbers) = match *kind {
            CallEventKind::Progress { progress, total } => {
                ("notifications/progress", [(Key::Progress, progress), (Key::Total, total)])
            }
            CallEventKind::Cancelled => ("notifications/cancelled", [(Key::Progress, None), (Key::Total, None)]),
        };
        let numbers =
            numbers.into_iter().filter_map(|(key, number)| Some((Name::Known(key), ValueRef::Float(number?))));
        packed::put_event(bytes, name, at(*moment), numbers);
    }
    if record.dropped_events > 0 {
        packed::put_dropped_events(bytes, record.dropped_events);
    }
    packed::end_span(bytes, root, duration_ns, status);
    if let (Some(Forwarded { span_id: id, .. }), Some((_, start_ns))) = (*forwarded, went) {
        let kind = SpanKind::Client;
        let head = SpanHead { id, parent: Some(record.span_id), start_ns, kind };
        let span = packed::begin_span(bytes, head, method, target);
        packed::put_again(bytes, common);
        outcome_attributes(bytes, record, outcome.any_error());
        packed::end_span(bytes, span, duration_ns - start_ns, status);
    }
    let head = Head {
        trace_id: record.trace_id,
        started_ns: since(anchor, *started),
        duration_ns,
        status,
        injected: record.injected.is_some(),
        late: false,
        spans: 1 + u16::from(forwarded.is_some()),
    };
    packed::finish(bytes, head);
}

/// From the anchor to a moment, in ns; negative if it is before.
pub(crate) fn since(anchor: &ClockAnchor, at: Instant) -> i64 {
    let ns = |time: Duration| i64::try_from(whole_ns(time)).unwrap_or(i64::MAX);
    match at.checked_duration_since(anchor.mono) {
        Some(after) => ns(after),
        None => -ns(anchor.mono.duration_since(at)),
    }
}

/// A time in ns; more than 584 years are as many. Not by way of 128 bits, which takes longer.
#[inline]
pub(crate) fn whole_ns(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos().into())
}

/// Those of the OpenTelemetry MCP conventions that are the same whoever's side it is seen from.
fn attributes(bytes: &mut Buffer, record: &CallRecord) {
    let call = &record.call;
    packed::put_attribute(bytes, Name::Known(Key::Method), call.method.as_str().into());
    packed::put_network(bytes, call.transport);
    let mut put = |key, value: &str| packed::put_attribute(bytes, Name::Known(key), ValueRef::Str(value));
    match &call.id {
        Some(RequestId::Integer(number)) => put(Key::RequestId, itoa::Buffer::new().format(*number)),
        Some(RequestId::Number(text) | RequestId::Text(text)) => put(Key::RequestId, text),
        None => {}
    }
    if let Some(protocol) = call.protocol {
        put(Key::ProtocolVersion, protocol.as_str());
    }
    if let Some(session) = &call.session {
        put(Key::SessionId, session);
    }
    match (call.method.as_str(), call.target.as_deref()) {
        ("tools/call", tool) => packed::put_tool(bytes, tool),
        ("prompts/get", Some(prompt)) => put(Key::Prompt, prompt),
        (_, Some(uri)) => put(Key::ResourceUri, uri),
        (_, None) => {}
    }
    if let Some(tracestate) = &call.tracestate {
        packed::put_tracestate(bytes, tracestate);
    }
}

fn outcome_attributes(bytes: &mut Buffer, record: &CallRecord, error: Option<ErrorType>) {
    let mut put = |key, value: &str| packed::put_attribute(bytes, Name::Known(key), ValueRef::Str(value));
    if let Some(code) = record.outcome.rpc_code() {
        put(Key::RpcStatus, itoa::Buffer::new().format(code));
    }
    if let Some(error) = error {
        put(Key::ErrorType, &error.as_label());
    }
    if let Some(message) = record.outcome.message() {
        packed::put_message(bytes, message);
    }
}

/// What else is told of a call; it was `queued` and `sent` on so many nanoseconds after it began, if it was.
fn details(bytes: &mut Buffer, record: &CallRecord, went: Option<(u64, u64)>) {
    packed::put_sizes(bytes, [record.call.request_bytes, record.response_bytes]);
    if let Some((queued, sent)) = went {
        let served = whole_ns(record.duration).saturating_sub(sent);
        packed::put_times(bytes, [queued, sent.saturating_sub(queued), served].map(|ns| ns / 1000));
    }
    let mut put = |key, value: ValueRef<'_>| packed::put_detail(bytes, Name::Known(key), value);
    if let Some(error) = record.outcome.any_error() {
        put(Key::ErrorClass, (&*error.as_label()).into());
    }
    if let Some(message) = record.outcome.message() {
        put(Key::ErrorMessage, message.into());
    }
}
