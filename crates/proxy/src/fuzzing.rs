//! What the fuzz targets of this project drive. Not for users: it can change or go without notice.

use std::sync::Arc;

use mcpscope_core::TraceContext;
use mcpscope_hooks::Passage;

use crate::framing::{self, Budget, Fate, Framing, Seen};
use crate::inject::spliced;
use crate::{Message, scan};

/// Watches one direction of one stream.
#[derive(Debug)]
pub struct Tap(framing::Tap);

/// Bytes, and when they may go on.
pub type Part = (Vec<u8>, Passage);

impl Tap {
    /// One message a line, of at most `max_message` bytes.
    #[must_use]
    pub fn lines(max_message: usize) -> Self {
        Self(tap(Framing::Line, max_message))
    }

    /// Server-sent events of at most `max_message` bytes.
    #[must_use]
    pub fn events(max_message: usize) -> Self {
        Self(tap(Framing::Sse, max_message))
    }

    /// One message of at most `max_message` bytes.
    #[must_use]
    pub fn body(max_message: usize) -> Self {
        Self(tap(Framing::Body, max_message))
    }

    /// Takes the next bytes; `judge` sees every message that they complete, or nothing of one that is too large.
    pub fn feed(&mut self, chunk: &[u8], hold: bool, mut judge: impl FnMut(Option<&[u8]>) -> Passage) -> Vec<Part> {
        match self.0.feed(chunk, hold, |seen| judge(message(seen)).into()) {
            Fate::Now(bytes) => vec![(bytes.to_vec(), Passage::Now)],
            Fate::Parts(parts) => parts.into_iter().map(part).collect(),
        }
    }

    /// The stream has ended; returns what was held.
    pub fn end(&mut self, mut judge: impl FnMut(Option<&[u8]>) -> Passage) -> Vec<Part> {
        self.0.end(|seen| judge(message(seen)).into()).into_iter().map(part).collect()
    }
}

fn message(seen: Seen<'_>) -> Option<&[u8]> {
    match seen {
        Seen::Message(bytes) | Seen::Endpoint(bytes) => Some(bytes),
        Seen::Oversized => None,
    }
}

fn part(part: framing::Part<'_>) -> Part {
    (part.bytes.into_owned(), part.passage)
}

/// The message or batch with `context` in each of its requests that can take it, as a relay that propagates passes it on.
/// Nothing if it is no JSON.
#[must_use]
pub fn injected(message: &[u8], context: &TraceContext, tracestate: Option<&str>) -> Option<Vec<u8>> {
    let slots = scan(message).ok()?.into_iter().filter_map(|message| match message {
        Message::Request { params, .. } => params.slot,
        _ => None,
    });
    let splices: Vec<_> = slots.map(|slot| slot.splice(context, tracestate)).collect();
    Some(spliced(message, 0, &splices))
}

/// With a budget of its own that never runs out.
fn tap(framing: Framing, max_message: usize) -> framing::Tap {
    framing::Tap::new(framing, max_message, Arc::new(Budget::new(usize::MAX)))
}
