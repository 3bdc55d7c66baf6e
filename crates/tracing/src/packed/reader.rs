//! Reads what was packed.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use mcpscope_core::{ClockAnchor, SpanId, Transport};

use super::{Head, KEYS, Key, SPAN_HEAD_BYTES, kind, piece};
use crate::record::{Attribute, Event, Span, SpanKind, Status, Trace, Value};

/// What is left to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(length.into())
    }

    fn attribute(&mut self) -> Option<Attribute> {
        let [key] = self.array()?;
        let name = match KEYS.get(usize::from(key)) {
            Some(known) => Cow::Borrowed(*known),
            None => Cow::Owned(self.text()?.to_owned()),
        };
        let value = match self.array()? {
            [kind::STR] => Value::Str(self.text()?.into()),
            [kind::INT] => Value::Int(i64::from_le_bytes(self.array()?)),
            [kind::FLOAT] => Value::Float(f64::from_le_bytes(self.array()?)),
            [other] => Value::Bool(other == kind::TRUE),
        };
        Some((name, value))
    }

    fn event(&mut self) -> Option<Event> {
        let at = Duration::from_nanos(self.u64()?);
        let name = self.text()?.into();
        let [attributes] = self.array()?;
        let attributes = (0..attributes).map(|_| self.attribute()).collect::<Option<_>>()?;
        Some(Event { name, at, attributes })
    }

    /// A span of a record, and the details that stand in it.
    fn span(&mut self, record: &[u8], details: &mut Vec<Attribute>) -> Option<Span> {
        let length = u32::from_le_bytes(self.array()?);
        let mut rest = Reader(self.take(length as usize)?);
        let id = SpanId(NonZeroU64::new(rest.u64()?)?);
        let parent = NonZeroU64::new(rest.u64()?).map(SpanId);
        let [start, duration] = [rest.u64()?, rest.u64()?].map(Duration::from_nanos);
        let [flags] = rest.array()?;
        let mut span = Span {
            id,
            parent,
            name: rest.text()?.into(),
            kind: SpanKind::ALL[usize::from(flags & 0xf) % SpanKind::ALL.len()],
            start,
            duration,
            status: Status::ALL[usize::from(flags >> 4) % Status::ALL.len()],
            message: None,
            tracestate: None,
            attributes: Vec::new(),
            events: Vec::new(),
            dropped_events: 0,
        };
        rest.pieces(record, &mut span, details)?;
        Some(span)
    }

    /// What is known about a span, piece by piece.
    fn pieces(&mut self, record: &[u8], span: &mut Span, details: &mut Vec<Attribute>) -> Option<()> {
        let rest = self;
        let known = |key: Key, value: &str| (Cow::Borrowed(key.as_str()), Value::Str(value.into()));
        while let Some([piece]) = rest.array() {
            match piece {
                piece::NETWORK => {
                    let [transport] = rest.array()?;
                    let transport = Transport::ALL.into_iter().find(|known| *known as u8 == transport)?;
                    span.attributes.push(known(Key::NetworkTransport, transport.network()));
                    if transport == Transport::Http {
                        span.attributes.push(known(Key::NetworkProtocol, "http"));
                    }
                }
                piece::TOOL => span.attributes.push(known(Key::GenAiOperation, "execute_tool")),
                piece::SIZES => {
                    let method = span.attributes.iter().find(|(name, _)| name == Key::Method.as_str());
                    details.extend(method.map(|(_, value)| (Cow::Borrowed(Key::DetailMethod.as_str()), value.clone())));
                    details.extend(rest.numbers([Key::RequestBytes, Key::ResponseBytes])?);
                }
                piece::TIMES => details.extend(rest.numbers([Key::ProxyUs, Key::QueueUs, Key::ServerUs])?),
                piece::AGAIN => {
                    let [from, to] = [rest.array()?, rest.array()?].map(|end| u32::from_le_bytes(end) as usize);
                    // A part of the root, which has none of these.
                    Reader(record.get(from..to)?).pieces(&[], span, &mut Vec::new())?;
                }
                piece::ATTRIBUTE => span.attributes.push(rest.attribute()?),
                piece::DETAIL => details.push(rest.attribute()?),
                piece::EVENT => span.events.push(rest.event()?),
                piece::MESSAGE => span.message = Some(rest.text()?.into()),
                piece::TRACESTATE => span.tracestate = Some(rest.text()?.into()),
                _ => span.dropped_events = u32::from_le_bytes(rest.array()?),
            }
        }
        Some(())
    }

    fn numbers<const N: usize>(&mut self, keys: [Key; N]) -> Option<[Attribute; N]> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = self.u64()?;
        }
        let mut numbers = numbers.into_iter();
        Some(
            keys.map(|key| (Cow::Borrowed(key.as_str()), Value::Int(numbers.next().unwrap_or_default().cast_signed()))),
        )
    }
}

/// What tells operations apart: the server and the name of the root.
pub(crate) fn operation(record: &[u8]) -> Option<[&[u8]; 2]> {
    let mut reader = Reader(record.get(Head::BYTES..)?);
    let server = reader.bytes()?;
    reader.take(SPAN_HEAD_BYTES)?;
    Some([server, reader.bytes()?])
}

/// The id of the first span.
pub(crate) fn root(record: &[u8]) -> Option<SpanId> {
    let mut reader = Reader(record.get(Head::BYTES..)?);
    reader.bytes()?;
    reader.take(4)?;
    NonZeroU64::new(reader.u64()?).map(SpanId)
}

/// Reads a whole record; nothing if it is none.
pub(crate) fn read(record: &[u8], anchor: &ClockAnchor) -> Option<Trace> {
    let head = Head::read(record)?;
    let mut reader = Reader(record.get(Head::BYTES..)?);
    let server: Arc<str> = reader.text()?.into();
    let mut details = Vec::new();
    let spans = (0..head.spans).map(|_| reader.span(record, &mut details)).collect::<Option<Vec<_>>>()?;
    let root = spans.first()?;
    let text = |key: Key| {
        let found = root.attributes.iter().find(|(name, _)| name == key.as_str());
        found.and_then(|(_, value)| if let Value::Str(text) = value { Some(text.clone()) } else { None })
    };
    let since = Duration::from_nanos(head.started_ns.unsigned_abs());
    Some(Trace {
        id: head.trace_id,
        timestamp: if head.started_ns < 0 { anchor.wall - since } else { anchor.wall + since },
        operation: root.name.clone(),
        duration: Duration::from_nanos(head.duration_ns),
        status: head.status,
        details,
        server,
        method: text(Key::Method).unwrap_or_default(),
        tool: text(Key::Tool),
        session: text(Key::SessionId),
        injected: head.injected,
        late: head.late,
        spans,
    })
}
