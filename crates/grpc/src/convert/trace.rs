//! `trace.proto`.

use std::time::Duration;

use mcpscope_core::{TraceId, bounded};
use mcpscope_hub::tracing::{self, Filter, Status};

use super::{Invalid, by_name, ms_since_epoch, time_at, whole_us};
use crate::proto::{Span, SpanEvent, SpanKind, Trace, TraceFilter, TraceStatus};

/// Most traces that can be asked for at once.
const MAX_TRACES: usize = 10_000;

/// Longest part of something wrong that the answer repeats, in bytes.
const SHOWN_BYTES: usize = 64;

/// Fewest digits of an id that stand for it.
const MIN_ID_DIGITS: usize = 4;

impl From<Status> for TraceStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => Self::Ok,
            Status::Error => Self::Error,
            Status::Timeout => Self::Timeout,
            Status::Cancelled => Self::Cancelled,
        }
    }
}

impl From<tracing::SpanKind> for SpanKind {
    fn from(kind: tracing::SpanKind) -> Self {
        match kind {
            tracing::SpanKind::Server => Self::Server,
            tracing::SpanKind::Client => Self::Client,
            tracing::SpanKind::Internal => Self::Internal,
        }
    }
}

impl From<&tracing::Trace> for Trace {
    fn from(trace: &tracing::Trace) -> Self {
        Self {
            id: trace.id.to_string(),
            timestamp: ms_since_epoch(trace.timestamp),
            operation: trace.operation.to_string(),
            // From whole nanoseconds, so that 1.1 ms is 1.1 and not 1.1000000000000001.
            duration_ms: trace.duration.as_nanos() as f64 / 1e6,
            status: TraceStatus::from(trace.status).into(),
            details: by_name(&trace.details),
            server: trace.server.to_string(),
            method: trace.method.to_string(),
            tool: trace.tool.as_ref().map(ToString::to_string),
            session: trace.session.as_ref().map(ToString::to_string),
            injected: trace.injected,
            spans: trace.spans.iter().map(Into::into).collect(),
        }
    }
}

impl From<&tracing::Span> for Span {
    fn from(span: &tracing::Span) -> Self {
        Self {
            id: span.id.to_string(),
            parent: span.parent.map(|parent| parent.to_string()),
            name: span.name.to_string(),
            kind: SpanKind::from(span.kind).into(),
            start_us: whole_us(span.start),
            duration_us: whole_us(span.duration),
            status: TraceStatus::from(span.status).into(),
            attributes: by_name(&span.attributes),
            events: span.events.iter().map(Into::into).collect(),
            message: span.message.as_ref().map(ToString::to_string),
            dropped_events: span.dropped_events,
        }
    }
}

impl From<&tracing::Event> for SpanEvent {
    fn from(event: &tracing::Event) -> Self {
        Self { name: event.name.to_string(), at_us: whole_us(event.at), attributes: by_name(&event.attributes) }
    }
}

/// Which traces are asked for, `limit` of them when the request does not say how many.
///
/// # Errors
/// A field that cannot be meant.
pub(crate) fn filter(asked: Option<TraceFilter>, limit: usize) -> Result<Filter, Invalid> {
    let TraceFilter {
        operation,
        method,
        status,
        tool,
        server,
        min_duration_ms,
        since,
        until,
        limit: wanted,
        session,
        text,
        injected,
    } = asked.unwrap_or_default();
    let duration = |ms: f64| {
        let invalid = |_| Invalid::new("min_duration_ms", "a number of milliseconds, 0 or more", ms.to_string());
        Duration::try_from_secs_f64(ms / 1e3).map_err(invalid)
    };
    let time = |field: &'static str, ms: i64| {
        time_at(ms).ok_or_else(|| Invalid::new(field, "milliseconds since the epoch", ms.to_string()))
    };
    let limit = match wanted.map(|wanted| wanted as usize) {
        None => limit,
        Some(wanted @ 1..=MAX_TRACES) => wanted,
        Some(wrong) => return Err(Invalid::new("limit", format!("1 to {MAX_TRACES}"), wrong.to_string())),
    };
    Ok(Filter {
        operation,
        method,
        status: read_status(status)?,
        tool,
        server,
        session,
        text,
        injected,
        min_duration: min_duration_ms.map(duration).transpose()?,
        since: since.map(|ms| time("since", ms)).transpose()?,
        until: until.map(|ms| time("until", ms)).transpose()?,
        limit: Some(limit),
    })
}

fn read_status(number: i32) -> Result<Option<Status>, Invalid> {
    match TraceStatus::try_from(number) {
        Ok(TraceStatus::Unspecified) => Ok(None),
        Ok(TraceStatus::Ok) => Ok(Some(Status::Ok)),
        Ok(TraceStatus::Error) => Ok(Some(Status::Error)),
        Ok(TraceStatus::Timeout) => Ok(Some(Status::Timeout)),
        Ok(TraceStatus::Cancelled) => Ok(Some(Status::Cancelled)),
        Err(_) => Err(Invalid::new("status", "a TraceStatus, 0 to 4", number.to_string())),
    }
}

/// Which trace is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WantedTrace {
    /// The one with this id.
    Id(TraceId),
    /// The one whose id begins with these digits.
    Beginning(String),
}

/// Reads a trace id, or the beginning of one.
///
/// # Errors
/// It is neither.
pub(crate) fn wanted_trace(text: &str) -> Result<WantedTrace, Invalid> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if let Some(id) = TraceId::parse(text) {
        return Ok(WantedTrace::Id(id));
    }
    if (MIN_ID_DIGITS..32).contains(&text.len()) && text.bytes().all(is_digit) {
        return Ok(WantedTrace::Beginning(text.to_owned()));
    }
    let expected = "32 lower-case hexadecimal digits, not all of them 0, or the first of them, 4 at least";
    Err(Invalid::new("id", expected, format!("{:?}", bounded(text, SHOWN_BYTES))))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::{NonZeroU64, NonZeroU128};
    use std::time::SystemTime;

    use mcpscope_core::SpanId;
    use proptest::prelude::*;

    use super::*;

    const STATUSES: [Status; 4] = [Status::Ok, Status::Error, Status::Timeout, Status::Cancelled];
    const KINDS: [tracing::SpanKind; 3] =
        [tracing::SpanKind::Server, tracing::SpanKind::Client, tracing::SpanKind::Internal];

    fn text() -> impl Strategy<Value = Box<str>> {
        any::<String>().prop_map(Into::into)
    }

    fn value() -> impl Strategy<Value = tracing::Value> {
        use mcpscope_hub::tracing::Value;
        prop_oneof![
            text().prop_map(Value::Str),
            any::<i64>().prop_map(Value::Int),
            any::<f64>().prop_map(Value::Float),
            any::<bool>().prop_map(Value::Bool),
        ]
    }

    fn pairs() -> impl Strategy<Value = Vec<tracing::Attribute>> {
        prop::sample::subsequence(vec!["method", "error.type", "a b"], 0..=3)
            .prop_flat_map(|names| names.into_iter().map(|name| (Just(name.into()), value())).collect::<Vec<_>>())
    }

    fn us() -> impl Strategy<Value = Duration> {
        any::<u32>().prop_map(|us| Duration::from_micros(us.into()))
    }

    fn span_id() -> impl Strategy<Value = SpanId> {
        (1..=u64::MAX).prop_map(|id| SpanId(NonZeroU64::new(id).unwrap()))
    }

    prop_compose! {
        fn span()(
            id in span_id(), parent in prop::option::of(span_id()), name in text(), kind in prop::sample::select(&KINDS),
            start in us(), duration in us(), status in prop::sample::select(&STATUSES), attributes in pairs(),
            message in prop::option::of(text()), events in prop::collection::vec((text(), us(), pairs()), 0..3),
            dropped_events in any::<u32>(),
        ) -> tracing::Span {
            let event = |(name, at, attributes)| tracing::Event { name, at, attributes };
            let events = events.into_iter().map(event).collect();
            tracing::Span {
                id, parent, name, kind, start, duration, status, message, tracestate: None, attributes, events,
                dropped_events,
            }
        }
    }

    prop_compose! {
        fn trace()(
            id in 1..=u128::MAX, began in 0..=10_000_000_000_000_u64, operation in text(), duration in us(),
            status in prop::sample::select(&STATUSES), details in pairs(), server in text(), method in text(),
            tool in prop::option::of(text()), session in prop::option::of(text()), injected in any::<bool>(),
            spans in prop::collection::vec(span(), 0..3),
        ) -> tracing::Trace {
            let id = TraceId(NonZeroU128::new(id).unwrap());
            let timestamp = SystemTime::UNIX_EPOCH + Duration::from_millis(began);
            let server = server.into();
            tracing::Trace {
                id, timestamp, operation, duration, status, details, server, method, tool, session, injected,
                late: false, spans,
            }
        }
    }

    /// The name of an enum value as JSON has it.
    fn word(name: &str, prefix: &str) -> String {
        name.strip_prefix(prefix).unwrap().to_lowercase()
    }

    fn map(pairs: &[tracing::Attribute]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    proptest! {
        #[test]
        fn a_trace_loses_nothing(trace in trace()) {
            let found = Trace::from(&trace);
            prop_assert_eq!(TraceId::parse(&found.id), Some(trace.id));
            prop_assert_eq!(time_at(found.timestamp), Some(trace.timestamp));
            prop_assert_eq!(&*found.operation, &*trace.operation);
            prop_assert_eq!((found.duration_ms * 1e3).round() as u128, trace.duration.as_micros());
            prop_assert_eq!(word(found.status().as_str_name(), "TRACE_STATUS_"), trace.status.as_str());
            prop_assert_eq!(found.details, map(&trace.details));
            prop_assert_eq!(&*found.server, &*trace.server);
            prop_assert_eq!(&*found.method, &*trace.method);
            prop_assert_eq!(found.tool.as_deref(), trace.tool.as_deref());
            prop_assert_eq!(found.session.as_deref(), trace.session.as_deref());
            prop_assert_eq!(found.injected, trace.injected);
            prop_assert_eq!(found.spans.len(), trace.spans.len());
            for (found, span) in found.spans.iter().zip(&trace.spans) {
                prop_assert_eq!(SpanId::parse(&found.id), Some(span.id));
                prop_assert_eq!(found.parent.as_deref().and_then(SpanId::parse), span.parent);
                prop_assert_eq!(&*found.name, &*span.name);
                prop_assert_eq!(word(found.kind().as_str_name(), "SPAN_KIND_"), span.kind.as_str());
                prop_assert_eq!(Duration::from_micros(found.start_us), span.start);
                prop_assert_eq!(Duration::from_micros(found.duration_us), span.duration);
                prop_assert_eq!(word(found.status().as_str_name(), "TRACE_STATUS_"), span.status.as_str());
                prop_assert_eq!(&found.attributes, &map(&span.attributes));
                prop_assert_eq!(found.message.as_deref(), span.message.as_deref());
                prop_assert_eq!(found.events.len(), span.events.len());
                for (found, event) in found.events.iter().zip(&span.events) {
                    prop_assert_eq!((&*found.name, Duration::from_micros(found.at_us)), (&*event.name, event.at));
                    prop_assert_eq!(&found.attributes, &map(&event.attributes));
                }
                prop_assert_eq!(found.dropped_events, span.dropped_events);
            }
        }
    }

    #[test]
    fn every_field_of_a_filter_counts() {
        let epoch = SystemTime::UNIX_EPOCH;
        let asked = TraceFilter {
            operation: Some("tools/call echo".into()),
            method: Some("tools/call".into()),
            status: TraceStatus::Timeout.into(),
            tool: Some("echo".into()),
            server: Some("s".into()),
            min_duration_ms: Some(1.5),
            since: Some(-1),
            until: Some(2000),
            limit: Some(7),
            session: Some("1".into()),
            text: Some("ech".into()),
            injected: Some(false),
        };
        let expected = Filter {
            operation: Some("tools/call echo".into()),
            method: Some("tools/call".into()),
            status: Some(Status::Timeout),
            tool: Some("echo".into()),
            server: Some("s".into()),
            session: Some("1".into()),
            text: Some("ech".into()),
            injected: Some(false),
            min_duration: Some(Duration::from_micros(1500)),
            since: Some(epoch - Duration::from_millis(1)),
            until: Some(epoch + Duration::from_secs(2)),
            limit: Some(7),
        };
        assert_eq!(filter(Some(asked), 100), Ok(expected));
        assert_eq!(filter(None, 100), Ok(Filter { limit: Some(100), ..Filter::default() }));
        for status in STATUSES {
            let asked = TraceFilter { status: TraceStatus::from(status).into(), ..TraceFilter::default() };
            assert_eq!(filter(Some(asked), 1).unwrap().status, Some(status));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_what_is_expected() {
        let all = TraceFilter::default;
        for (asked, expected) in [
            (TraceFilter { status: 5, ..all() }, "status: expected a TraceStatus, 0 to 4; found 5"),
            (
                TraceFilter { min_duration_ms: Some(-1.0), ..all() },
                "min_duration_ms: expected a number of milliseconds, 0 or more; found -1",
            ),
            (
                TraceFilter { min_duration_ms: Some(f64::NAN), ..all() },
                "min_duration_ms: expected a number of milliseconds, 0 or more; found NaN",
            ),
            (TraceFilter { limit: Some(10_001), ..all() }, "limit: expected 1 to 10000; found 10001"),
            (TraceFilter { limit: Some(0), ..all() }, "limit: expected 1 to 10000; found 0"),
        ] {
            assert_eq!(filter(Some(asked), 100).unwrap_err().to_string(), expected);
        }
        let error = wanted_trace("0AF7651916CD43DD8448EB211C80319C").unwrap_err().to_string();
        assert!(error.starts_with("id: expected 32 lower-case hexadecimal digits"), "{error}");
        assert!(wanted_trace(&"é".repeat(10_000)).unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn a_trace_is_asked_for_by_its_id_or_the_beginning_of_it() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(wanted_trace(id).unwrap(), WantedTrace::Id(TraceId::parse(id).unwrap()));
        for length in 4..32 {
            assert_eq!(wanted_trace(&id[..length]).unwrap(), WantedTrace::Beginning(id[..length].to_owned()));
        }
        for bad in ["", "0af", "0AF7", "0xaf", "0af7 ", "äbcd", &"0".repeat(32), &"1".repeat(33)] {
            assert!(wanted_trace(bad).is_err(), "{bad:?}");
        }
    }
}
