//! Property by property, against what the OpenTelemetry data model and the MCP conventions say.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroU128};
use std::time::Duration;

use mcpscope_core::{SpanId, TraceId};
use mcpscope_tracing::Status;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn id(n: u64) -> SpanId {
    SpanId(NonZeroU64::new(n).unwrap())
}

fn span(n: u64, parent: Option<u64>) -> Span {
    Span {
        id: id(n),
        parent: parent.map(id),
        name: "tools/call echo".into(),
        kind: SpanKind::Server,
        start: Duration::from_millis(n),
        duration: Duration::from_millis(10),
        status: Status::Ok,
        message: None,
        tracestate: None,
        attributes: vec![(Cow::Borrowed("mcp.method.name"), Value::Str("tools/call".into()))],
        events: Vec::new(),
        dropped_events: 0,
    }
}

fn trace(spans: Vec<Span>) -> Trace {
    let details = [("method", Value::Str("tools/call".into())), ("request_bytes", Value::Int(7))];
    Trace {
        id: TraceId(NonZeroU128::new(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c).unwrap()),
        timestamp: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        operation: "tools/call echo".into(),
        duration: Duration::from_millis(10),
        status: Status::Ok,
        details: details.map(|(name, value)| (Cow::Borrowed(name), value)).into(),
        server: "mine".into(),
        method: "tools/call".into(),
        tool: Some("echo".into()),
        session: None,
        injected: false,
        late: false,
        spans,
    }
}

fn exported(trace: Trace) -> Vec<otlp::Span> {
    let mut request = spans(&[Arc::new(trace)], &Resource::default());
    let bytes = request.encode_to_vec();
    assert_eq!(ExportTraceServiceRequest::decode(&*bytes).unwrap(), request);
    request.resource_spans.remove(0).scope_spans.remove(0).spans
}

fn attribute(span: &otlp::Span, name: &str) -> Option<any_value::Value> {
    let mut found = span.attributes.iter().filter(|attribute| attribute.key == name);
    let first = found.next()?.value.clone()?.value;
    assert!(found.next().is_none(), "{name} is there twice");
    first
}

#[test]
fn ids_times_and_kinds() {
    let mut client = span(3, Some(2));
    client.kind = SpanKind::Client;
    client.tracestate = Some("vendor=1".into());
    let spans = exported(trace(vec![span(2, Some(1)), client]));
    let [root, client] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(root.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!((&root.span_id[..], &root.parent_span_id[..]), (&2_u64.to_be_bytes()[..], &1_u64.to_be_bytes()[..]));
    assert_eq!((root.start_time_unix_nano, root.end_time_unix_nano), (5_002_000_000, 5_012_000_000));
    assert_eq!((root.kind, &*root.name), (otlp::span::SpanKind::Server as i32, "tools/call echo"));
    assert_eq!(client.parent_span_id, root.span_id);
    assert_eq!((client.kind, &*client.trace_state), (otlp::span::SpanKind::Client as i32, "vendor=1"));
    assert_eq!((client.trace_id == root.trace_id, &*root.trace_state), (true, ""));
    // Sampled; and the parent of the root is another program's, that of the other span is not.
    assert_eq!([root.flags, client.flags], [0x301, 0x101]);
    let alone = exported(trace(vec![span(1, None)]));
    assert_eq!((alone[0].parent_span_id.len(), alone[0].flags), (0, 0x101));
    // One that ended later than its root comes alone, and is none: its parent is ours.
    let late = exported(Trace { late: true, ..trace(vec![span(2, Some(1))]) }).remove(0);
    assert_eq!((late.parent_span_id.len(), late.flags), (8, 0x101));
    assert_eq!(attribute(&late, "mcpscope.server"), None);
}

#[test]
fn only_the_root_tells_of_the_whole_trace() {
    use any_value::Value::{BoolValue, IntValue, StringValue};
    let mut whole = trace(vec![span(1, None), span(2, Some(1))]);
    whole.injected = true;
    whole.details.push((Cow::Borrowed("custom.name"), Value::Float(1.5)));
    whole.details.push((Cow::Borrowed("mcp.method.name"), Value::Str("told already".into())));
    let spans = exported(whole);
    assert_eq!(attribute(&spans[0], "mcpscope.server"), Some(StringValue("mine".into())));
    assert_eq!(attribute(&spans[0], "mcpscope.request_bytes"), Some(IntValue(7)));
    assert_eq!(attribute(&spans[0], "mcpscope.injected"), Some(BoolValue(true)));
    assert_eq!(attribute(&spans[0], "custom.name"), Some(any_value::Value::DoubleValue(1.5)));
    assert_eq!(attribute(&spans[0], "mcp.method.name"), Some(StringValue("tools/call".into())));
    assert_eq!(attribute(&spans[0], "mcpscope.method"), None);
    assert_eq!(spans[1].attributes.len(), 1);
    assert_eq!(attribute(&exported(trace(vec![span(1, None)]))[0], "mcpscope.injected"), None);
}

#[test]
fn an_error_is_what_has_a_type() {
    let failed = |error_type: Option<&str>, status| {
        let mut root = span(1, None);
        (root.status, root.message) = (status, Some("it broke".into()));
        root.attributes.extend(error_type.map(|kind| (Cow::Borrowed("error.type"), Value::Str(kind.into()))));
        let mut whole = trace(vec![root]);
        let details = [("error_class", "-32602"), ("error_message", "it broke")];
        whole.details.extend(details.map(|(name, text)| (Cow::Borrowed(name), Value::Str(text.into()))));
        exported(whole).remove(0)
    };
    let error = failed(Some("tool_error"), Status::Error);
    let status = error.status.clone().unwrap();
    assert_eq!((status.code, &*status.message), (StatusCode::Error as i32, "it broke"));
    assert_eq!([attribute(&error, "mcpscope.error_class"), attribute(&error, "mcpscope.error_message")], [None, None]);
    // The caller's mistake is none of the server's, but what it was is told.
    let callers = failed(None, Status::Error);
    assert_eq!(callers.status, None);
    assert_eq!(attribute(&callers, "mcpscope.error_class"), Some(any_value::Value::StringValue("-32602".into())));
    assert_eq!(failed(None, Status::Cancelled).status, None);
    assert_eq!(failed(Some("timeout"), Status::Timeout).status.unwrap().code, StatusCode::Error as i32);
}

#[test]
fn events_are_on_the_clock_of_the_trace() {
    let mut root = span(1, None);
    root.dropped_events = 3;
    root.events = vec![Event {
        name: "notifications/progress".into(),
        at: Duration::from_millis(4),
        attributes: vec![(Cow::Borrowed("progress"), Value::Float(0.5)), (Cow::Borrowed("last"), Value::Bool(false))],
    }];
    let root = exported(trace(vec![root])).remove(0);
    assert_eq!((root.events[0].time_unix_nano, &*root.events[0].name), (5_004_000_000, "notifications/progress"));
    assert_eq!((root.events[0].attributes.len(), root.dropped_events_count), (2, 3));
}

#[test]
fn a_name_stands_for_the_last_value_it_was_given() {
    use any_value::Value::{IntValue, StringValue};
    let twice = |name: &'static str| [1, 2].map(|n| (Cow::Borrowed(name), Value::Int(n)));
    let mut root = span(1, None);
    root.attributes.extend(twice("a"));
    root.attributes.push((Cow::Borrowed("mcp.method.name"), Value::Str("ping".into())));
    root.events = vec![Event { name: "e".into(), at: Duration::ZERO, attributes: twice("b").into() }];
    let mut whole = trace(vec![root]);
    whole.details.extend(twice("c"));
    let root = exported(whole).remove(0);
    let found = ["a", "mcp.method.name", "mcpscope.c"].map(|name| attribute(&root, name));
    assert_eq!(found, [Some(IntValue(2)), Some(StringValue("ping".into())), Some(IntValue(2))]);
    assert_eq!(root.events[0].attributes, [pair("b", IntValue(2))]);
}

fn any_value_of_ours() -> impl Strategy<Value = Value> {
    prop_oneof![
        ".{0,20}".prop_map(|text| Value::Str(text.into())),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_filter("comparable", |number| !number.is_nan()).prop_map(Value::Float),
        any::<bool>().prop_map(Value::Bool),
    ]
}

prop_compose! {
    fn any_span()(
        n in 1..u64::MAX,
        parent in proptest::option::of(1..u64::MAX),
        start in 0..u64::from(u32::MAX),
        duration in 0..u64::from(u32::MAX),
        kind in prop_oneof![Just(SpanKind::Server), Just(SpanKind::Client), Just(SpanKind::Internal)],
        message in proptest::option::of(".{0,20}"),
        attributes in proptest::collection::vec((prop_oneof![Just("error.type"), Just("a"), Just("b.c")], any_value_of_ours()), 0..4),
        events in proptest::collection::vec((".{0,10}", 0..u64::from(u32::MAX)), 0..3),
    ) -> Span {
        Span {
            kind,
            start: Duration::from_nanos(start),
            duration: Duration::from_nanos(duration),
            message: message.map(Into::into),
            attributes: attributes.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect(),
            events: events
                .into_iter()
                .map(|(name, at)| Event { name: name.into(), at: Duration::from_nanos(at), attributes: Vec::new() })
                .collect(),
            ..span(n, parent)
        }
    }
}

proptest! {
    #[test]
    fn nothing_of_a_span_is_lost(ours in proptest::collection::vec(any_span(), 1..5), injected in any::<bool>()) {
        let whole = Trace { injected, ..trace(ours.clone()) };
        let theirs = exported(whole);
        prop_assert_eq!(theirs.len(), ours.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert_eq!(&theirs.span_id[..], &ours.id.0.get().to_be_bytes()[..]);
            prop_assert_eq!(theirs.parent_span_id.is_empty(), ours.parent.is_none());
            prop_assert_eq!(u128::from(theirs.end_time_unix_nano - theirs.start_time_unix_nano), ours.duration.as_nanos());
            prop_assert_eq!(theirs.flags & SAMPLED, SAMPLED);
            let typed = ours.attributes.iter().any(|(name, _)| name == "error.type");
            prop_assert_eq!(theirs.status.is_some(), typed);
            prop_assert_eq!(theirs.events.len(), ours.events.len());
            // The last value of each name.
            let ours: BTreeMap<_, _> = ours.attributes.iter().map(|(name, ours)| (&**name, value(ours))).collect();
            for (name, ours) in ours {
                prop_assert_eq!(attribute(theirs, name), Some(ours));
            }
        }
    }
}
