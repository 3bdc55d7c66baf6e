//! Our trace context in a request that goes on: spliced in at a position that the scan found, every other byte as it came.
//!
//! [`scan`](crate::scan) finds the position on its way through the message, so a request is read once, whether it is
//! changed or not. Where the result would not surely be the same request with our context, there is no position: a key is
//! there twice (however it is spelled), or `params` or `_meta` are no objects.

use std::ops::Range;

use mcpscope_core::TraceContext;
use serde_json::value::RawValue;

/// Where in a request its trace context is written, in bytes from the beginning of what was scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    place: Place,
    /// Whether `tracestate` has a value already.
    has_tracestate: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// In place of the value of `traceparent`.
    Value(Range<usize>),
    /// As the first member of `_meta`.
    Meta(First),
    /// As the first member of `params`, in a `_meta` of its own.
    Params(First),
    /// As the first member of the request, in `params` of its own.
    Request(First),
}

/// Behind the opening brace of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct First {
    at: usize,
    is_empty: bool,
}

/// What the scan saw of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) request: &'a RawValue,
    pub(crate) params: Option<&'a RawValue>,
    pub(crate) meta: Option<&'a RawValue>,
    pub(crate) traceparent: Option<&'a RawValue>,
    pub(crate) has_tracestate: bool,
}

impl Slot {
    /// Where the context goes in a request that is a part of `message`, and has no key twice.
    pub(crate) fn find(message: &[u8], seen: Seen<'_>) -> Option<Self> {
        let place = match seen {
            Seen { traceparent: Some(value), .. } => Place::Value(range(message, value)?),
            Seen { meta: Some(meta), .. } => Place::Meta(First::of(message, meta)?),
            Seen { params: Some(params), .. } => Place::Params(First::of(message, params)?),
            Seen { request, .. } => Place::Request(First::of(message, request)?),
        };
        Some(Self { place, has_tracestate: seen.has_tracestate })
    }

    /// Writes `context` there, and `tracestate` with it unless there is one.
    pub(crate) fn splice(&self, context: &TraceContext, tracestate: Option<&str>) -> Splice {
        let mut text = String::with_capacity(96);
        let (at, first) = match &self.place {
            Place::Value(range) => (range.clone(), None),
            Place::Meta(first) | Place::Params(first) | Place::Request(first) => (first.at..first.at, Some(first)),
        };
        let (before, after) = match self.place {
            Place::Value(_) => ("", ""),
            Place::Meta(_) => (r#""traceparent":"#, ""),
            Place::Params(_) => (r#""_meta":{"traceparent":"#, "}"),
            Place::Request(_) => (r#""params":{"_meta":{"traceparent":"#, "}}"),
        };
        text.push_str(before);
        push_string(&mut text, &mcpscope_hooks::traceparent(context));
        if let Some(tracestate) = tracestate.filter(|_| !self.has_tracestate) {
            text.push_str(r#","tracestate":"#);
            push_string(&mut text, tracestate);
        }
        text.push_str(after);
        if first.is_some_and(|first| !first.is_empty) {
            text.push(',');
        }
        Splice { at, text }
    }
}

impl First {
    fn of(message: &[u8], object: &RawValue) -> Option<Self> {
        let inside = object.get().strip_prefix('{')?;
        let is_empty = inside.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('}');
        Some(Self { at: range(message, object)?.start + 1, is_empty })
    }
}

/// Where in `message` a part of it lies.
fn range(message: &[u8], part: &RawValue) -> Option<Range<usize>> {
    let start = part.get().as_ptr().addr().checked_sub(message.as_ptr().addr())?;
    let range = start..start + part.get().len();
    message.get(range.clone()).map(|_| range)
}

/// Printable ASCII, as both headers are, as a JSON string.
fn push_string(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push('"');
}

/// A change to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Splice {
    /// What is replaced, in bytes from the beginning of the message.
    at: Range<usize>,
    /// By what.
    text: String,
}

/// The bytes with these changes to the message that begins `offset` bytes into them; changes are in the order of their
/// places.
pub(crate) fn spliced(bytes: &[u8], offset: usize, splices: &[Splice]) -> Vec<u8> {
    let mut changed = Vec::with_capacity(bytes.len() + splices.iter().map(|splice| splice.text.len()).sum::<usize>());
    let mut done = 0;
    for Splice { at, text } in splices {
        changed.extend_from_slice(bytes.get(done..offset + at.start).unwrap_or_default());
        changed.extend_from_slice(text.as_bytes());
        done = offset + at.end;
    }
    changed.extend_from_slice(bytes.get(done..).unwrap_or_default());
    changed
}
