//! What is read is what was written.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use proptest::prelude::*;

use super::*;
use crate::record::{Attribute, Event, Span, Value};

fn anchor() -> ClockAnchor {
    ClockAnchor { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40) }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        ".{0,40}".prop_map(|text| Value::Str(text.into())),
        any::<i64>().prop_map(Value::Int),
        any::<i32>().prop_map(|number| Value::Float(number.into())),
        any::<bool>().prop_map(Value::Bool),
    ]
}

fn attributes() -> impl Strategy<Value = Vec<Attribute>> {
    let known = prop::sample::select(&KEYS).prop_map(Cow::Borrowed);
    let other = ".{0,40}".prop_map(Cow::Owned);
    prop::collection::vec((prop_oneof![known, other], value()), 0..5)
}

fn ns() -> impl Strategy<Value = Duration> {
    (0..=i64::MAX as u64 / 4).prop_map(Duration::from_nanos)
}

prop_compose! {
    fn span()(
        id in 1_u64.., parent in any::<u64>(), name in ".{0,40}", kind in prop::sample::select(&SpanKind::ALL),
        start in ns(), duration in ns(), status in prop::sample::select(&Status::ALL),
        message in prop::option::of(".{0,40}"), tracestate in prop::option::of("[a-z]=[a-z]{0,20}"),
        attributes in attributes(), events in prop::collection::vec((".{0,20}", ns(), attributes()), 0..3),
        dropped_events in any::<u32>(),
    ) -> Span {
        Span {
            id: SpanId(NonZeroU64::new(id).unwrap()), parent: NonZeroU64::new(parent).map(SpanId), name: name.into(), kind,
            start, duration, status, message: message.map(Into::into), tracestate: tracestate.map(Into::into), attributes,
            events: events.into_iter().map(|(name, at, attributes)| Event { name: name.into(), at, attributes }).collect(),
            dropped_events,
        }
    }
}

fn name(name: &str) -> Name<'_> {
    if name == Key::Method.as_str() { Name::Known(Key::Method) } else { Name::Text(name) }
}

fn write(record: &mut Buffer, server: &str, spans: &[Span], details: &[Attribute], head: Head) {
    begin(record, server);
    for (n, span) in spans.iter().enumerate() {
        let start_ns = span.start.as_nanos() as u64;
        let span_head = SpanHead { id: span.id, parent: span.parent, start_ns, kind: span.kind };
        let at = begin_span(record, span_head, &span.name, None);
        span.attributes.iter().for_each(|(n, value)| match (name(n), value) {
            (Name::Text(name), Value::Str(text)) => put_text_attribute(record, name, text),
            (name, value) => put_attribute(record, name, value.into()),
        });
        if n == 0 {
            details.iter().for_each(|(n, value)| put_detail(record, name(n), value.into()));
        }
        for event in &span.events {
            let attributes = event.attributes.iter().map(|(n, value)| (name(n), value.into()));
            put_event(record, &event.name, event.at.as_nanos() as u64, attributes);
        }
        span.message.iter().for_each(|message| put_message(record, message));
        span.tracestate.iter().for_each(|tracestate| put_tracestate(record, tracestate));
        put_dropped_events(record, span.dropped_events);
        end_span(record, at, span.duration.as_nanos() as u64, span.status);
    }
    finish(record, head);
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(
        trace_id in 1_u128.., started_ns in -i64::MAX / 4..i64::MAX / 4, server in ".{0,40}",
        spans in prop::collection::vec(span(), 1..4), details in attributes(), injected in any::<bool>(),
    ) {
        let (id, anchor) = (TraceId(NonZeroU128::new(trace_id).unwrap()), anchor());
        let head = Head {
            trace_id: id, started_ns, duration_ns: spans[0].duration.as_nanos() as u64, status: spans[0].status, injected,
            late: false, spans: spans.len() as u16,
        };
        let mut record = Buffer::default();
        // What was there before leaves nothing behind.
        write(&mut record, "before", &spans, &details, Head { trace_id: id, ..head });
        write(&mut record, &server, &spans, &details, head);
        let bytes = record.written();
        prop_assert_eq!(Head::read(bytes), Some(head));
        prop_assert_eq!(Head::spans(bytes), head.spans);
        prop_assert_eq!(operation(bytes), Some([server.as_bytes(), spans[0].name.as_bytes()]));
        let trace = read(bytes, &anchor).unwrap();
        let since = Duration::from_nanos(started_ns.unsigned_abs());
        let began = if started_ns < 0 { anchor.wall - since } else { anchor.wall + since };
        prop_assert_eq!((trace.id, trace.timestamp, &*trace.server, trace.injected), (id, began, &*server, injected));
        prop_assert_eq!(&trace.operation, &spans[0].name);
        prop_assert_eq!((trace.duration, trace.status), (spans[0].duration, spans[0].status));
        prop_assert_eq!(trace.details, details);
        prop_assert_eq!(trace.spans, spans);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = (Head::read(&bytes), operation(&bytes), read(&bytes, &anchor()));
    }
}

#[test]
fn long_texts_are_cut_between_characters() {
    let mut record = Buffer::default();
    begin(&mut record, &"é".repeat(1000));
    let head = SpanHead { id: SpanId(NonZeroU64::MIN), parent: None, start_ns: 0, kind: SpanKind::Server };
    let at = begin_span(&mut record, head, &"x".repeat(1000), Some(&"é".repeat(1000)));
    put_attribute(&mut record, Name::Text(&"y".repeat(1000)), ValueRef::Str(&"é".repeat(1000)));
    end_span(&mut record, at, 1, Status::Ok);
    let head = Head {
        trace_id: TraceId(NonZeroU128::MIN),
        started_ns: 0,
        duration_ns: 1,
        status: Status::Ok,
        injected: false,
        late: false,
        spans: 1,
    };
    finish(&mut record, head);
    let trace = read(record.written(), &anchor()).unwrap();
    let (name, value) = &trace.spans[0].attributes[0];
    let lengths = [trace.server.len(), trace.operation.len(), name.len(), value.to_string().len()];
    assert_eq!(lengths, [512, 1025, 512, 1024]);
}
