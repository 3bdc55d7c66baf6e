//! What the fuzz targets of this project drive. Not for users: it can change or go without notice.

use std::sync::Arc;

use mcpscope_core::TraceContext;
use mcpscope_hooks::Passage;

pub use crate::http::fuzzing::{Found, Messages, Side};

use crate::framing::{self, Budget, Fate, Framing, Judgement, Seen};
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
        match self.0.feed(chunk, hold, |seen, _| judge(message(seen)).into()) {
            Fate::Now(bytes) => vec![(bytes.to_vec(), Passage::Now)],
            Fate::Parts(parts) => parts.into_iter().map(part).collect(),
        }
    }

    /// The stream has ended; returns what was held.
    pub fn end(&mut self, mut judge: impl FnMut(Option<&[u8]>) -> Passage) -> Vec<Part> {
        self.0.end(|seen, _| judge(message(seen)).into()).into_iter().map(part).collect()
    }

    /// The whole stream with `context` in each of its requests that can take it, as a relay that propagates passes it on.
    #[must_use]
    pub fn inject(mut self, stream: &[u8], context: &TraceContext, tracestate: Option<&str>) -> Vec<u8> {
        let judge = |seen: Seen<'_>, _: bool| {
            let messages = message(seen).and_then(|bytes| scan(bytes).ok()).into_iter().flatten();
            let slots = messages.filter_map(|message| match message {
                Message::Request { params, .. } => params.slot,
                _ => None,
            });
            let splices = slots.map(|slot| slot.splice(context, tracestate)).collect();
            Judgement { passage: Passage::Now, splices, departure: None, subject: None }
        };
        let mut parts = match self.0.feed(stream, true, judge) {
            Fate::Now(bytes) => return bytes.to_vec(),
            Fate::Parts(parts) => parts,
        };
        parts.extend(self.0.end(judge));
        parts.into_iter().flat_map(|part| part.bytes.into_owned()).collect()
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

/// With a budget of its own that never runs out.
fn tap(framing: Framing, max_message: usize) -> framing::Tap {
    framing::Tap::new(framing, max_message, Arc::new(Budget::new(usize::MAX)))
}
