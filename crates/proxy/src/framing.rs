//! Splits a byte stream into messages while the bytes pass.
//!
//! The relay writes what it reads; a [`Tap`] keeps a copy of the message under way, shows each complete message to a
//! judge before its last byte goes on, and tells when the bytes may go. Only while a fault is active, or trace context is
//! propagated, are bytes held back until their message is complete.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mcpscope_hooks::{Departure, Passage};

use crate::inject::{Splice, spliced};
use crate::item::Subject;

/// Memory for the copies of messages under way, shared by all taps of a relay: many large messages at once must not add
/// up without bound. Who finds it used up treats the message as too large.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Arc<AtomicUsize>,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(bytes)) }
    }

    /// The same budget for one more connection.
    pub(crate) fn for_connection(&self) -> Self {
        Self { left: Arc::clone(&self.left) }
    }

    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.left.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// A share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// How messages are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// One message a line (stdio).
    Line,
    /// Server-sent events: the `data` lines up to an empty line.
    Sse,
    /// The whole body is one message.
    Body,
}

/// What becomes of the bytes that were fed in.
#[derive(Debug)]
pub(crate) enum Fate<'a> {
    /// They go on at once, as they are.
    Now(&'a [u8]),
    /// Each part goes on at its time, in this order.
    Parts(Vec<Part<'a>>),
}

/// Bytes, and when they go on.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) passage: Passage,
    /// That of the calls among them.
    pub(crate) departure: Option<Departure>,
    /// What they took from the budget, to be kept until they are written.
    pub(crate) share: Option<Share>,
    /// What they are, if a fault has touched them.
    pub(crate) subject: Option<Box<Subject>>,
    /// Whether a frame ends with them.
    pub(crate) is_end: bool,
}

impl<'a> Part<'a> {
    /// Bytes that follow what has gone on already.
    pub(crate) fn rest(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { bytes: bytes.into(), passage: Passage::Now, departure: None, share: None, subject: None, is_end: false }
    }
}

/// What a judge says of a message.
#[derive(Debug)]
pub(crate) struct Judgement {
    pub(crate) passage: Passage,
    /// What is to be changed in it, if it is held until it is complete.
    pub(crate) splices: Vec<Splice>,
    /// That of its calls, where they are not to leave with what else is fed in.
    pub(crate) departure: Option<Departure>,
    /// What it is, if a fault has touched it.
    pub(crate) subject: Option<Box<Subject>>,
}

impl From<Passage> for Judgement {
    /// It goes on as it is.
    fn from(passage: Passage) -> Self {
        Self { passage, splices: Vec::new(), departure: None, subject: None }
    }
}

/// What the tap shows to its judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen<'a> {
    /// A complete message.
    Message(&'a [u8]),
    /// The data of an `endpoint` event, with which HTTP+SSE (2024-11-05) says where requests go.
    Endpoint(&'a [u8]),
    /// A message that is too large to look at; it has passed, or is passing.
    Oversized,
}

/// Watches one direction of one stream.
#[derive(Debug)]
pub(crate) struct Tap {
    framing: Framing,
    max_message: usize,
    budget: Arc<Budget>,
    /// What was taken from the budget for the frame.
    taken: usize,
    /// The frame under way.
    frame: Vec<u8>,
    /// How many bytes of the frame have gone on already.
    passed: usize,
    /// The frame is over the limit: its bytes pass, nothing is kept of it.
    oversized: bool,
    line: SseLine,
}

/// Where in a line of an event stream the next byte falls. Lines end with CR, LF or CRLF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SseLine {
    /// At the beginning of a frame.
    #[default]
    First,
    /// In a comment that a frame begins with.
    Comment,
    /// In a line that is none of these.
    Filled,
    /// At the beginning of a further line.
    Next,
    /// After a CR, with which the frame ends or not; an LF that follows belongs to it.
    AfterCr { ends: bool },
}

impl Tap {
    /// A tap that looks at messages of at most `max_message` bytes, as long as the budget lasts.
    pub(crate) fn new(framing: Framing, max_message: usize, budget: Arc<Budget>) -> Self {
        Self {
            framing,
            max_message,
            budget,
            taken: 0,
            frame: Vec::new(),
            passed: 0,
            oversized: false,
            line: SseLine::default(),
        }
    }

    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether bytes of an unfinished message are held.
    pub(crate) fn is_holding(&self) -> bool {
        self.passed < self.frame.len()
    }

    /// Whether bytes of an unfinished message pass of which nothing is kept.
    pub(crate) fn is_passing(&self) -> bool {
        self.oversized
    }

    /// Whether nothing has gone on of a message that is not complete.
    pub(crate) fn has_passed_whole(&self) -> bool {
        self.passed == 0 && !self.oversized
    }

    /// What has gone on of the message under way reached nobody: it will go on from its beginning, if it was kept.
    pub(crate) fn rewind(&mut self) {
        self.passed = 0;
    }

    /// Takes the next bytes. `hold` says whether messages are held until they are complete; `judge` sees every message that
    /// they complete, and whether all of it is held, so that a fault can touch it.
    pub(crate) fn feed<'a>(
        &mut self,
        chunk: &'a [u8],
        hold: bool,
        mut judge: impl FnMut(Seen<'_>, bool) -> Judgement,
    ) -> Fate<'a> {
        let mut parts = Vec::new();
        let parting = hold || self.is_holding();
        let mut rest = chunk;
        while let Some(length) = self.frame_end(rest) {
            let (end, after) = rest.split_at(length);
            rest = after;
            self.complete(end, parting.then_some(&mut parts), &mut judge);
        }
        self.keep(rest, parting.then_some(&mut parts), &mut judge);
        if !parting {
            self.passed = self.frame.len();
            return Fate::Now(chunk);
        }
        // What has begun to pass cannot be held back any more.
        if (!hold || self.passed > 0) && self.is_holding() {
            parts.push(self.release(&mut judge));
        }
        Fate::Parts(parts)
    }

    /// Takes the whole of a body in one piece, none of which is held. Nothing is copied.
    pub(crate) fn whole(&mut self, body: &[u8], mut judge: impl FnMut(Seen<'_>, bool) -> Judgement) {
        self.complete(body, None, &mut judge);
    }

    /// Whether nothing of a message was seen yet.
    pub(crate) fn is_between(&self) -> bool {
        self.frame.is_empty() && !self.oversized
    }

    /// The stream has ended: what is left goes on. `judge` sees it if it is a message.
    pub(crate) fn end(&mut self, mut judge: impl FnMut(Seen<'_>, bool) -> Judgement) -> Vec<Part<'static>> {
        let mut parts = Vec::new();
        if self.oversized {
            self.oversized = false;
        } else if !self.frame.is_empty() {
            self.complete(&[], Some(&mut parts), &mut judge);
        }
        parts
    }

    /// The bytes of `chunk` up to and including the end of the frame under way, if it ends there.
    fn frame_end(&mut self, chunk: &[u8]) -> Option<usize> {
        match self.framing {
            Framing::Line => memchr::memchr(b'\n', chunk).map(|at| at + 1),
            Framing::Body => None,
            Framing::Sse => {
                for (at, byte) in chunk.iter().enumerate() {
                    self.line = match (self.line, *byte) {
                        // The LF of a CRLF that ends the frame belongs to it; any other byte to the next.
                        (SseLine::AfterCr { ends: true }, byte) => {
                            self.line = SseLine::First;
                            return Some(at + usize::from(byte == b'\n'));
                        }
                        (SseLine::Filled | SseLine::AfterCr { ends: false }, b'\n') => SseLine::Next,
                        // An empty line ends an event. A comment before it is a frame of its own: it keeps the stream alive,
                        // so it must not wait for the event.
                        (_, b'\n') => {
                            self.line = SseLine::First;
                            return Some(at + 1);
                        }
                        (line, b'\r') => SseLine::AfterCr { ends: line != SseLine::Filled },
                        (SseLine::First, b':') | (SseLine::Comment, _) => SseLine::Comment,
                        _ => SseLine::Filled,
                    };
                }
                None
            }
        }
    }

    fn complete<'a>(
        &mut self,
        end: &'a [u8],
        parts: Option<&mut Vec<Part<'a>>>,
        judge: &mut impl FnMut(Seen<'_>, bool) -> Judgement,
    ) {
        if self.oversized {
            self.oversized = false;
            if let Some(parts) = parts {
                parts.push(Part { is_end: true, ..Part::rest(end) });
            }
            return;
        }
        if self.frame.len() + end.len() > self.max_message {
            judge(Seen::Oversized, false);
            if let Some(parts) = parts {
                let mut bytes = self.frame.split_off(self.passed);
                bytes.extend_from_slice(end);
                parts.push(Part { share: self.share(), is_end: true, ..Part::rest(bytes) });
            }
            self.reset();
            return;
        }
        // The common case, a message within one chunk, is judged where it lies.
        let frame = if self.frame.is_empty() {
            Cow::Borrowed(end)
        } else {
            self.frame.extend_from_slice(end);
            Cow::Owned(std::mem::take(&mut self.frame))
        };
        let is_held = parts.is_some() && self.passed == 0;
        let judge = &mut |seen: Seen<'_>| judge(seen, is_held);
        let (judgement, offset) = match self.framing {
            Framing::Line => {
                let line = frame.trim_ascii();
                (judged(Seen::Message(line), judge), offset(&frame, line))
            }
            Framing::Body => (judged(Seen::Message(&frame), judge), Some(0)),
            Framing::Sse => {
                let (is_endpoint, data) = sse_event(&frame);
                let seen = if is_endpoint { Seen::Endpoint(&data) } else { Seen::Message(&data) };
                (judged(seen, judge), offset(&frame, &data))
            }
        };
        let Some(parts) = parts else {
            if let Cow::Owned(frame) = frame {
                self.frame = frame;
            }
            return self.reset();
        };
        let Judgement { passage, splices, departure, subject } = judgement;
        if self.passed > 0 {
            // Of a message that has begun to pass, the rest must follow.
            let rest = frame.get(self.passed..).unwrap_or_default().to_vec();
            parts.push(Part { departure, is_end: true, ..Part::rest(rest) });
        } else {
            let bytes = match offset.filter(|_| !splices.is_empty()) {
                Some(offset) => spliced(&frame, offset, &splices).into(),
                None => frame,
            };
            parts.push(Part { bytes, passage, departure, share: self.share(), subject, is_end: true });
        }
        self.reset();
    }

    /// Keeps the beginning of a frame.
    fn keep<'a>(
        &mut self,
        bytes: &'a [u8],
        parts: Option<&mut Vec<Part<'a>>>,
        judge: &mut impl FnMut(Seen<'_>, bool) -> Judgement,
    ) {
        if !self.oversized && !self.has_room_for(bytes.len()) {
            let held = self.give_up(judge);
            if let Some(parts) = parts {
                parts.push(held);
                parts.push(Part::rest(bytes));
            }
        } else if self.oversized {
            if let Some(parts) = parts {
                parts.push(Part::rest(bytes));
            }
        } else {
            self.frame.extend_from_slice(bytes);
        }
    }

    /// Lets what is held of the frame go on, and keeps a copy to look at, if there is room for one.
    fn release(&mut self, judge: &mut impl FnMut(Seen<'_>, bool) -> Judgement) -> Part<'static> {
        let held = self.frame.get(self.passed..).unwrap_or_default();
        let bytes = held.len();
        if !self.budget.take(bytes) {
            return self.give_up(judge);
        }
        let share = Some(Share { budget: Arc::clone(&self.budget), bytes });
        let part = Part { share, ..Part::rest(held.to_vec()) };
        self.passed = self.frame.len();
        part
    }

    /// Looks at the frame no more, which is too large; returns what was held of it.
    fn give_up(&mut self, judge: &mut impl FnMut(Seen<'_>, bool) -> Judgement) -> Part<'static> {
        judge(Seen::Oversized, false);
        let held = Part { share: self.share(), ..Part::rest(self.frame.split_off(self.passed)) };
        self.reset();
        self.oversized = true;
        held
    }

    /// Whether the frame may grow by this much; takes it from the budget if so.
    fn has_room_for(&mut self, bytes: usize) -> bool {
        let fits = self.frame.len() + bytes <= self.max_message && self.budget.take(bytes);
        if fits {
            self.taken += bytes;
        }
        fits
    }

    /// What the frame took from the budget, which it is not to give back.
    fn share(&mut self) -> Option<Share> {
        let bytes = std::mem::take(&mut self.taken);
        (bytes > 0).then(|| Share { budget: Arc::clone(&self.budget), bytes })
    }

    fn reset(&mut self) {
        // A large message must not keep its memory for ever.
        const KEPT: usize = 64 * 1024;
        self.frame.clear();
        self.frame.shrink_to(KEPT);
        self.passed = 0;
        self.budget.give_back(std::mem::take(&mut self.taken));
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.budget.give_back(self.taken);
    }
}

/// The message in a frame.
pub(crate) fn message_of(framing: Framing, frame: &[u8]) -> Cow<'_, [u8]> {
    match framing {
        Framing::Line => Cow::Borrowed(frame.trim_ascii()),
        Framing::Body => Cow::Borrowed(frame),
        Framing::Sse => sse_event(frame).1,
    }
}

impl Framing {
    /// Another message in place of that in `frame`; what else the frame has stays.
    pub(crate) fn framed(self, frame: &[u8], message: &[u8]) -> Vec<u8> {
        match self {
            Self::Line => [message, b"\n"].concat(),
            Self::Body => message.to_vec(),
            Self::Sse => {
                let lines = frame.split(|byte| matches!(byte, b'\n' | b'\r'));
                let others = lines.filter(|line| !line.is_empty() && field(line, b"data").is_none());
                let data = message.split(|byte| *byte == b'\n').map(|line| [b"data: ", line].concat());
                let mut framed = others.map(<[u8]>::to_vec).chain(data).collect::<Vec<_>>().join(&b'\n');
                framed.extend_from_slice(b"\n\n");
                framed
            }
        }
    }
}

fn judged(seen: Seen<'_>, judge: &mut impl FnMut(Seen<'_>) -> Judgement) -> Judgement {
    match seen {
        // Empty lines, comments and events without data are no messages.
        Seen::Message([]) | Seen::Endpoint([]) => Passage::Now.into(),
        seen => judge(seen),
    }
}

/// Where in `frame` the message begins; nowhere if it was put together from several places.
fn offset(frame: &[u8], message: &[u8]) -> Option<usize> {
    let at = message.as_ptr().addr().checked_sub(frame.as_ptr().addr())?;
    (at + message.len() <= frame.len()).then_some(at)
}

/// Whether an event is an `endpoint` event, and its data: the `data` lines without the field name, joined by line feeds.
fn sse_event(event: &[u8]) -> (bool, Cow<'_, [u8]>) {
    let (mut is_endpoint, mut data) = (false, Cow::Borrowed([].as_slice()));
    // A byte order mark may precede the first event.
    let event = event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event);
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        if let Some(value) = field(line, b"data") {
            if data.is_empty() {
                data = Cow::Borrowed(value);
            } else {
                let data = data.to_mut();
                data.push(b'\n');
                data.extend_from_slice(value);
            }
        } else if let Some(kind) = field(line, b"event") {
            is_endpoint = kind == b"endpoint";
        }
    }
    (is_endpoint, data)
}

/// The value of `name: value` or `name:value`.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name)?.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests;
