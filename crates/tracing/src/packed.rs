//! How traces are kept: as bytes, one behind the other, so that to keep one allocates nothing and takes little memory.
//!
//! A record is a head, the server's name, and spans with the root first. A span is a head, its name, and what is known about
//! it, piece by piece in the order in which it became known. Numbers are little-endian; lengths of texts have two bytes.

mod reader;

use std::num::NonZeroU128;
use std::ops::Range;

use mcpscope_core::{SpanId, TraceId, Transport, bounded};

use self::reader::Reader;
pub(crate) use self::reader::{operation, read, root};
use crate::buffer::{Buffer, LENGTH_BYTES, length};
use crate::record::{SpanKind, Status};
use crate::value::ValueRef;

/// Longest name of a span or server, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 512;
/// Longest text of an attribute, detail or message, in bytes: message contents never enter, and what does is bounded.
pub(crate) const MAX_VALUE_BYTES: usize = 1024;
/// Longest `tracestate`, in bytes: the limit of the specification.
const MAX_TRACESTATE_BYTES: usize = 512;

/// Names that need no text of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Key {
    Method,
    NetworkTransport,
    NetworkProtocol,
    RequestId,
    ProtocolVersion,
    SessionId,
    GenAiOperation,
    Tool,
    Prompt,
    ResourceUri,
    RpcStatus,
    ErrorType,
    DetailMethod,
    RequestBytes,
    ResponseBytes,
    ProxyUs,
    QueueUs,
    ServerUs,
    ErrorClass,
    ErrorMessage,
    Progress,
    Total,
}

/// In the order of [`Key`].
const KEYS: [&str; 22] = [
    "mcp.method.name",
    "network.transport",
    "network.protocol.name",
    "jsonrpc.request.id",
    "mcp.protocol.version",
    "mcp.session.id",
    "gen_ai.operation.name",
    "gen_ai.tool.name",
    "gen_ai.prompt.name",
    "mcp.resource.uri",
    "rpc.response.status_code",
    "error.type",
    "method",
    "request_bytes",
    "response_bytes",
    "proxy_us",
    "queue_us",
    "server_us",
    "error_class",
    "error_message",
    "progress",
    "total",
];

impl Key {
    pub(crate) const fn as_str(self) -> &'static str {
        KEYS[self as usize]
    }
}

/// What an attribute or detail is called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Name<'a> {
    Known(Key),
    Text(&'a str),
}

/// In place of the number of a known name: its text follows.
const NAME_AS_TEXT: u8 = 0xff;

/// What a piece of a span is.
mod piece {
    pub(super) const ATTRIBUTE: u8 = 0;
    pub(super) const DETAIL: u8 = 1;
    pub(super) const EVENT: u8 = 2;
    pub(super) const MESSAGE: u8 = 3;
    pub(super) const TRACESTATE: u8 = 4;
    pub(super) const DROPPED_EVENTS: u8 = 5;
    // Those of calls, of which each is several attributes or details that nearly all of them have.
    pub(super) const NETWORK: u8 = 6;
    pub(super) const TOOL: u8 = 7;
    pub(super) const SIZES: u8 = 8;
    pub(super) const TIMES: u8 = 9;
    pub(super) const AGAIN: u8 = 10;
}

/// What kind of value follows.
mod kind {
    pub(super) const STR: u8 = 0;
    pub(super) const INT: u8 = 1;
    pub(super) const FLOAT: u8 = 2;
    pub(super) const FALSE: u8 = 3;
    pub(super) const TRUE: u8 = 4;
}

/// The beginning of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) trace_id: TraceId,
    /// Since the anchor; before it is negative.
    pub(crate) started_ns: i64,
    pub(crate) duration_ns: u64,
    pub(crate) status: Status,
    /// Whether a fault touched it.
    pub(crate) injected: bool,
    /// Whether it is a span that ended after its root, which had been kept by then.
    pub(crate) late: bool,
    pub(crate) spans: u16,
}

impl Head {
    pub(crate) const BYTES: usize = 39;
    const TURN: Range<usize> = 35..39;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace_id.0.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.started_ns.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.duration_ns.to_le_bytes());
        bytes[32] = self.status as u8 | u8::from(self.injected) << 2 | u8::from(self.late) << 3;
        bytes[33..35].copy_from_slice(&self.spans.to_le_bytes());
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let trace_id = TraceId(NonZeroU128::new(u128::from_le_bytes(reader.array()?))?);
        let [started_ns, duration_ns] = [reader.u64()?, reader.u64()?];
        let [flags] = reader.array()?;
        Some(Self {
            trace_id,
            started_ns: started_ns.cast_signed(),
            duration_ns,
            status: Status::ALL[usize::from(flags & 3)],
            injected: flags & 4 != 0,
            late: flags & 8 != 0,
            spans: u16::from_le_bytes(reader.array()?),
        })
    }

    /// Notes in a record the how-manieth of its thread it is.
    pub(crate) fn set_turn(record: &mut [u8], turn: usize) {
        if let Some(place) = record.get_mut(Self::TURN) {
            place.copy_from_slice(&(turn as u32).to_le_bytes());
        }
    }

    /// What [`Head::set_turn`] noted: tells which of those that ended at the same moment came first.
    pub(crate) fn turn(record: &[u8]) -> u32 {
        record.get(Self::TURN).and_then(<[u8]>::first_chunk).map_or(0, |turn| u32::from_le_bytes(*turn))
    }

    /// Whether a record is a span that ended after its root.
    pub(crate) fn is_late(record: &[u8]) -> bool {
        record.get(32).is_some_and(|flags| flags & 8 != 0)
    }

    /// The number of spans of a record.
    pub(crate) fn spans(record: &[u8]) -> u16 {
        record.get(33..35).and_then(<[u8]>::first_chunk).map_or(0, |spans| u16::from_le_bytes(*spans))
    }

    /// Whether it is one of those that a flood of good ones must not push out.
    pub(crate) const fn is_failure(&self) -> bool {
        matches!(self.status, Status::Error | Status::Timeout)
    }

    pub(crate) const fn ended_ns(&self) -> i64 {
        self.started_ns.saturating_add_unsigned(self.duration_ns)
    }
}

/// Begins a record; [`finish`] has the rest of its head.
pub(crate) fn begin(record: &mut Buffer, server: &str) {
    record.clear();
    let server = bounded_name(server);
    let mut room = record.room(Head::BYTES + text_bytes(server));
    room.put(&[0; Head::BYTES]);
    room.put_text(server);
}

/// Writes the head of a record that is complete.
pub(crate) fn finish(record: &mut Buffer, head: Head) {
    if let Some(place) = record.written_mut().first_chunk_mut() {
        *place = head.to_bytes();
    }
}

/// What is known about a span when it begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpanHead {
    pub(crate) id: SpanId,
    pub(crate) parent: Option<SpanId>,
    /// Since the beginning of the trace.
    pub(crate) start_ns: u64,
    pub(crate) kind: SpanKind,
}

/// Length of everything behind it (u32), id, parent or 0, start, duration (u64 each), kind and status.
const SPAN_HEAD_BYTES: usize = 37;

/// Begins a span; returns where it stands. Attributes and the like follow, and then [`end_span`]. The name has two parts where
/// there is a target, with a space between them.
pub(crate) fn begin_span(record: &mut Buffer, head: SpanHead, name: &str, target: Option<&str>) -> usize {
    let at = record.written().len();
    let (name, target) = (bounded_name(name), target.map(bounded_name));
    let name_bytes = name.len() + target.map_or(0, |target| 1 + target.len());
    let mut room = record.room(SPAN_HEAD_BYTES + LENGTH_BYTES + name_bytes);
    let mut begin = [0; SPAN_HEAD_BYTES + LENGTH_BYTES];
    begin[4..12].copy_from_slice(&head.id.0.get().to_le_bytes());
    begin[12..20].copy_from_slice(&head.parent.map_or(0, |parent| parent.0.get()).to_le_bytes());
    begin[20..28].copy_from_slice(&head.start_ns.to_le_bytes());
    begin[SPAN_HEAD_BYTES - 1] = head.kind as u8;
    begin[SPAN_HEAD_BYTES..].copy_from_slice(&length(name_bytes));
    room.put(&begin);
    room.put_short(name.as_bytes());
    if let Some(target) = target {
        room.put(b" ");
        room.put_short(target.as_bytes());
    }
    at
}

/// Changes which side of a call the span that stands at `at` is of.
pub(crate) fn set_kind(record: &mut Buffer, at: usize, kind: SpanKind) {
    if let Some(place) = record.written_mut().get_mut(at + SPAN_HEAD_BYTES - 1) {
        *place = kind as u8;
    }
}

/// Ends the span that stands at `at`, which is the last of the record.
pub(crate) fn end_span(record: &mut Buffer, at: usize, duration_ns: u64, status: Status) {
    let Some(span) = record.written_mut().get_mut(at..) else { return };
    let length = u32::try_from(span.len().saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(head) = span.first_chunk_mut::<SPAN_HEAD_BYTES>() {
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[28..36].copy_from_slice(&duration_ns.to_le_bytes());
        head[36] |= (status as u8) << 4;
    }
}

pub(crate) fn put_attribute(record: &mut Buffer, name: Name<'_>, value: ValueRef<'_>) {
    put_pair(record, Some(piece::ATTRIBUTE), name, value);
}

/// The same for a name and a text, in as few pieces as possible.
#[inline]
pub(crate) fn put_text_attribute(record: &mut Buffer, name: &str, value: &str) {
    let (name, value) = (bounded_name(name), bounded_value(value));
    let mut room = record.room(2 + text_bytes(name) + 1 + text_bytes(value));
    let ([a, b], [c, d]) = (length(name.len()), length(value.len()));
    room.put(&[piece::ATTRIBUTE, NAME_AS_TEXT, a, b]);
    room.put_short(name.as_bytes());
    room.put(&[kind::STR, c, d]);
    room.put_short(value.as_bytes());
}

pub(crate) fn put_detail(record: &mut Buffer, name: Name<'_>, value: ValueRef<'_>) {
    put_pair(record, Some(piece::DETAIL), name, value);
}

/// An event; `at_ns` is since the beginning of the trace. No more than 255 attributes.
pub(crate) fn put_event<'a>(
    record: &mut Buffer,
    name: &str,
    at_ns: u64,
    attributes: impl Iterator<Item = (Name<'a>, ValueRef<'a>)>,
) {
    let name = bounded_name(name);
    let mut room = record.room(1 + 8 + text_bytes(name) + 1);
    room.put(&[piece::EVENT]);
    room.put(&at_ns.to_le_bytes());
    room.put_text(name);
    room.put(&[0]);
    let count = record.written().len() - 1;
    for (name, value) in attributes.take(usize::from(u8::MAX)) {
        put_pair(record, None, name, value);
        if let Some(count) = record.written_mut().get_mut(count) {
            *count += 1;
        }
    }
}

/// How a call travels: `network.transport`, and what is spoken where that has a name.
pub(crate) fn put_network(record: &mut Buffer, transport: Transport) {
    record.put(&[piece::NETWORK, transport as u8]);
}

/// That a call is one of a tool, which it is given behind it.
pub(crate) fn put_tool(record: &mut Buffer, tool: Option<&str>) {
    record.put(&[piece::TOOL]);
    if let Some(tool) = tool {
        put_attribute(record, Name::Known(Key::Tool), tool.into());
    }
}

/// The details `method`, which the attribute of the root says, `request_bytes` and `response_bytes`.
pub(crate) fn put_sizes(record: &mut Buffer, sizes: [u64; 2]) {
    put_numbers(record, piece::SIZES, sizes);
}

/// The details `proxy_us`, `queue_us` and `server_us`.
pub(crate) fn put_times(record: &mut Buffer, times: [u64; 3]) {
    put_numbers(record, piece::TIMES, times);
}

fn put_numbers<const N: usize>(record: &mut Buffer, piece: u8, numbers: [u64; N]) {
    let mut room = record.room(1 + N * 8);
    room.put(&[piece]);
    room.put(numbers.map(|number| number.min(i64::MAX as u64).to_le_bytes()).as_flattened());
}

/// The attributes, and the `tracestate`, that stand in this part of the record are those of this span, too.
pub(crate) fn put_again(record: &mut Buffer, part: Range<usize>) {
    let ends = [part.start, part.end].map(|end| u32::try_from(end).unwrap_or(u32::MAX).to_le_bytes());
    let mut room = record.room(1 + 8);
    room.put(&[piece::AGAIN]);
    room.put(ends.as_flattened());
}

pub(crate) fn put_message(record: &mut Buffer, message: &str) {
    put_piece(record, piece::MESSAGE, bounded_value(message));
}

pub(crate) fn put_tracestate(record: &mut Buffer, tracestate: &str) {
    put_piece(record, piece::TRACESTATE, bounded(tracestate, MAX_TRACESTATE_BYTES));
}

fn put_piece(record: &mut Buffer, piece: u8, text: &str) {
    let mut room = record.room(1 + text_bytes(text));
    room.put(&[piece]);
    room.put_text(text);
}

pub(crate) fn put_dropped_events(record: &mut Buffer, number: u32) {
    let mut room = record.room(5);
    room.put(&[piece::DROPPED_EVENTS]);
    room.put(&number.to_le_bytes());
}

#[inline]
fn put_pair(record: &mut Buffer, piece: Option<u8>, name: Name<'_>, value: ValueRef<'_>) {
    // Nearly all that is known of a call: in as few pieces as possible.
    match (piece, name, value) {
        (Some(piece), Name::Known(key), ValueRef::Str(text)) => {
            let text = bounded_value(text);
            let mut room = record.room(3 + text_bytes(text));
            let [a, b] = length(text.len());
            room.put(&[piece, key as u8, kind::STR, a, b]);
            room.put_short(text.as_bytes());
        }
        (Some(piece), Name::Known(key), ValueRef::Int(number)) => {
            let mut room = record.room(3 + 8);
            room.put(&[piece, key as u8, kind::INT]);
            room.put(&number.to_le_bytes());
        }
        _ => put_any_pair(record, piece, name, value),
    }
}

fn put_any_pair(record: &mut Buffer, piece: Option<u8>, name: Name<'_>, value: ValueRef<'_>) {
    let name = match name {
        Name::Known(key) => Name::Known(key),
        Name::Text(name) => Name::Text(bounded_name(name)),
    };
    let name_bytes = if let Name::Text(name) = name { text_bytes(name) } else { 0 };
    let (value, value_bytes) = match value {
        ValueRef::Str(text) => {
            let text = bounded_value(text);
            (ValueRef::Str(text), text_bytes(text))
        }
        ValueRef::Int(_) | ValueRef::Float(_) => (value, 8),
        ValueRef::Bool(_) => (value, 0),
    };
    let mut room = record.room(piece.map_or(0, |_| 1) + 1 + name_bytes + 1 + value_bytes);
    if let Some(piece) = piece {
        room.put(&[piece]);
    }
    match name {
        Name::Known(key) => room.put(&[key as u8]),
        Name::Text(name) => {
            room.put(&[NAME_AS_TEXT]);
            room.put_text(name);
        }
    }
    match value {
        ValueRef::Str(text) => {
            room.put(&[kind::STR]);
            room.put_text(text);
        }
        ValueRef::Int(number) => {
            room.put(&[kind::INT]);
            room.put(&number.to_le_bytes());
        }
        ValueRef::Float(number) => {
            room.put(&[kind::FLOAT]);
            room.put(&number.to_le_bytes());
        }
        ValueRef::Bool(false) => room.put(&[kind::FALSE]),
        ValueRef::Bool(true) => room.put(&[kind::TRUE]),
    }
}

fn bounded_name(name: &str) -> &str {
    if name.len() <= MAX_NAME_BYTES { name } else { bounded(name, MAX_NAME_BYTES) }
}

fn bounded_value(value: &str) -> &str {
    if value.len() <= MAX_VALUE_BYTES { value } else { bounded(value, MAX_VALUE_BYTES) }
}

const fn text_bytes(text: &str) -> usize {
    LENGTH_BYTES + text.len()
}

#[cfg(test)]
mod tests;
