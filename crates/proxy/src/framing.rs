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

/// Memory for the copies of messages under way, shared by all taps of a relay: many large messages at once must not add
/// up without bound. Who finds it used up treats the message as too large.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { left: AtomicUsize::new(bytes) }
    }

    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
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
}

impl<'a> Part<'a> {
    /// Bytes that follow what has gone on already.
    fn rest(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { bytes: bytes.into(), passage: Passage::Now, departure: None, share: None }
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
}

impl From<Passage> for Judgement {
    /// It goes on as it is.
    fn from(passage: Passage) -> Self {
        Self { passage, splices: Vec::new(), departure: None }
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
    #[default]
    Empty,
    Filled,
    /// After CR, ending an empty line if `empty`; an LF that follows belongs to it.
    AfterCr {
        empty: bool,
    },
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

    /// Takes the next bytes. `hold` says whether messages are held until they are complete; `judge` sees every message that they complete.
    pub(crate) fn feed<'a>(
        &mut self,
        chunk: &'a [u8],
        hold: bool,
        mut judge: impl FnMut(Seen<'_>) -> Judgement,
    ) -> Fate<'a> {
        let mut parts = Vec::new();
        let parting = hold || self.passed < self.frame.len();
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
        if !hold && self.passed < self.frame.len() {
            let held = self.frame.get(self.passed..).unwrap_or_default().to_vec();
            parts.push(Part::rest(held));
            self.passed = self.frame.len();
        }
        Fate::Parts(parts)
    }

    /// The stream has ended: what is left goes on. `judge` sees it if it is a message.
    pub(crate) fn end(&mut self, mut judge: impl FnMut(Seen<'_>) -> Judgement) -> Vec<Part<'static>> {
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
                    let ended = match (self.line, *byte) {
                        // The LF of a CRLF: nothing new, but after an empty line the frame ends behind it.
                        (SseLine::AfterCr { empty }, b'\n') => {
                            self.line = SseLine::Empty;
                            if empty {
                                return Some(at + 1);
                            }
                            continue;
                        }
                        // The frame ended with the CR before this byte, which belongs to the next.
                        (SseLine::AfterCr { empty: true }, _) => {
                            self.line = SseLine::Empty;
                            return Some(at);
                        }
                        (line, b'\r') => {
                            self.line = SseLine::AfterCr { empty: line != SseLine::Filled };
                            continue;
                        }
                        (line, b'\n') => line != SseLine::Filled,
                        _ => {
                            self.line = SseLine::Filled;
                            continue;
                        }
                    };
                    self.line = SseLine::Empty;
                    if ended {
                        return Some(at + 1);
                    }
                }
                None
            }
        }
    }

    fn complete<'a>(
        &mut self,
        end: &'a [u8],
        parts: Option<&mut Vec<Part<'a>>>,
        judge: &mut impl FnMut(Seen<'_>) -> Judgement,
    ) {
        if self.oversized {
            self.oversized = false;
            if let Some(parts) = parts {
                parts.push(Part::rest(end));
            }
            return;
        }
        if self.frame.len() + end.len() > self.max_message {
            judge(Seen::Oversized);
            if let Some(parts) = parts {
                let mut bytes = self.frame.split_off(self.passed);
                bytes.extend_from_slice(end);
                parts.push(Part::rest(bytes));
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
        let Judgement { passage, splices, departure } = judgement;
        if self.passed > 0 {
            // Of a message that has begun to pass, the rest must follow.
            parts.push(Part { departure, ..Part::rest(frame.get(self.passed..).unwrap_or_default().to_vec()) });
        } else {
            let bytes = match offset.filter(|_| !splices.is_empty()) {
                Some(offset) => spliced(&frame, offset, &splices).into(),
                None => frame,
            };
            parts.push(Part { bytes, passage, departure, share: self.share() });
        }
        self.reset();
    }

    /// Keeps the beginning of a frame.
    fn keep<'a>(
        &mut self,
        bytes: &'a [u8],
        parts: Option<&mut Vec<Part<'a>>>,
        judge: &mut impl FnMut(Seen<'_>) -> Judgement,
    ) {
        if !self.oversized && !self.has_room_for(bytes.len()) {
            judge(Seen::Oversized);
            let held = self.frame.split_off(self.passed.min(self.frame.len()));
            self.reset();
            self.oversized = true;
            if let Some(parts) = parts {
                parts.push(Part::rest(held));
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tap(framing: Framing, max: usize) -> Tap {
        Tap::new(framing, max, Arc::new(Budget::new(1 << 20)))
    }

    /// What is held, feeding `chunk`.
    fn held(tap: &mut Tap, chunk: &[u8], judge: impl FnMut(Seen<'_>) -> Judgement) -> Vec<(Vec<u8>, Passage)> {
        let Fate::Parts(parts) = tap.feed(chunk, true, judge) else { panic!("held") };
        parts.into_iter().map(|part| (part.bytes.into_owned(), part.passage)).collect()
    }

    /// Feeds `input` in pieces; returns what went on and what was judged.
    fn run(framing: Framing, max: usize, pieces: &[&[u8]], hold: impl Fn(usize) -> bool) -> (Vec<u8>, Vec<String>) {
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        let mut tap = tap(framing, max);
        let mut judge = |what: Seen<'_>| {
            seen.push(match what {
                Seen::Message(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                Seen::Endpoint(bytes) => format!("endpoint {}", String::from_utf8_lossy(bytes)),
                Seen::Oversized => "oversized".to_owned(),
            });
            Passage::Now.into()
        };
        for (at, piece) in pieces.iter().enumerate() {
            match tap.feed(piece, hold(at), &mut judge) {
                Fate::Now(bytes) => out.extend_from_slice(bytes),
                Fate::Parts(parts) => parts.iter().for_each(|part| out.extend_from_slice(&part.bytes)),
            }
        }
        tap.end(&mut judge).iter().for_each(|part| out.extend_from_slice(&part.bytes));
        (out, seen)
    }

    #[test]
    fn lines_are_judged_before_their_end_goes_on() {
        let (out, seen) = run(Framing::Line, 100, &[b"a\nb", b"c\r\n\n", b"d"], |_| false);
        assert_eq!((out.as_slice(), seen), (b"a\nbc\r\n\nd".as_slice(), vec!["a".into(), "bc".into(), "d".into()]));
    }

    #[test]
    fn events_are_told_apart_by_every_kind_of_line_end() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = format!(": hi{end}{end}event: m{end}data: 1{end}data:2{end}{end}data: 3{end}{end}");
            for size in 1..stream.len() {
                let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
                for hold in [false, true] {
                    let (out, seen) = run(Framing::Sse, 100, &pieces, |_| hold);
                    assert_eq!(
                        (String::from_utf8(out).unwrap(), seen),
                        (stream.clone(), vec!["1\n2".into(), "3".into()]),
                        "{end:?} {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_endpoint_is_told_by_its_event() {
        let stream: &[u8] = b"event: endpoint\ndata: /messages?id=1\n\nevent: message\ndata: /not\n\n";
        assert_eq!(run(Framing::Sse, 100, &[stream], |_| false).1, ["endpoint /messages?id=1", "/not"]);
    }

    #[test]
    fn a_fault_holds_and_drops_whole_messages() {
        let mut tap = tap(Framing::Line, 100);
        let drop_b = |seen: Seen<'_>| match seen {
            Seen::Message(b"bb") => Passage::Never.into(),
            _ => Passage::Now.into(),
        };
        assert_eq!(held(&mut tap, b"a\nb", drop_b), [(b"a\n".to_vec(), Passage::Now)]);
        let parts = held(&mut tap, b"b\nc\n", drop_b);
        assert_eq!(parts, [(b"bb\n".to_vec(), Passage::Never), (b"c\n".to_vec(), Passage::Now)]);
    }

    #[test]
    fn of_a_message_that_has_begun_to_pass_the_rest_follows() {
        let mut tap = tap(Framing::Line, 100);
        assert!(matches!(tap.feed(b"be", false, |_| Passage::Never.into()), Fate::Now(b"be")));
        let parts = held(&mut tap, b"gun\nx\n", |_| Passage::Never.into());
        assert_eq!(parts, [(b"gun\n".to_vec(), Passage::Now), (b"x\n".to_vec(), Passage::Never)]);
    }

    #[test]
    fn what_is_too_large_passes_unseen_and_costs_no_memory() {
        let mut tap = tap(Framing::Line, 1000);
        let mut oversized = 0;
        for _ in 0..1000 {
            tap.feed(&[b'x'; 500], false, |seen| {
                oversized += usize::from(seen == Seen::Oversized);
                Passage::Now.into()
            });
            assert!(tap.frame.capacity() <= 64 * 1024);
        }
        let mut seen = Vec::new();
        tap.feed(b"end\nnext\n", false, |what| {
            seen.push(format!("{what:?}"));
            Passage::Now.into()
        });
        assert_eq!((oversized, seen), (1, vec![format!("{:?}", Seen::Message(b"next"))]));
    }

    #[test]
    fn messages_under_way_share_a_budget() {
        let budget = Arc::new(Budget::new(1000));
        let mut oversized = 0;
        let mut taps: Vec<_> = (0..3).map(|_| Tap::new(Framing::Body, 900, Arc::clone(&budget))).collect();
        for tap in &mut taps {
            tap.feed(&[b'x'; 400], false, |seen| {
                oversized += usize::from(seen == Seen::Oversized);
                Passage::Now.into()
            });
        }
        assert_eq!(
            (oversized, budget.left.load(Ordering::Relaxed)),
            (1, 200),
            "two have their copy, the third passes unseen"
        );
        drop(taps);
        assert_eq!(budget.left.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn what_is_held_keeps_its_share_of_the_budget() {
        let budget = Arc::new(Budget::new(1000));
        let mut tap = Tap::new(Framing::Body, 900, Arc::clone(&budget));
        tap.feed(&[b'x'; 400], true, |_| Passage::Now.into());
        let parts = tap.end(|_| Passage::Now.into());
        drop(tap);
        assert_eq!((parts.len(), budget.left.load(Ordering::Relaxed)), (1, 600), "until it is written");
        drop(parts);
        assert_eq!(budget.left.load(Ordering::Relaxed), 1000);
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            pieces in prop::collection::vec((prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'd'), any::<u8>()], 0..40), any::<bool>()), 0..20),
            framing in prop_oneof![Just(Framing::Line), Just(Framing::Sse), Just(Framing::Body)],
            max in prop_oneof![1_usize..30, Just(10_000)],
        ) {
            let input: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            let slices: Vec<&[u8]> = pieces.iter().map(|(bytes, _)| bytes.as_slice()).collect();
            let (out, _) = run(framing, max, &slices, |at| pieces[at].1);
            prop_assert_eq!(out, input);
        }

        #[test]
        fn the_same_messages_are_seen_however_the_bytes_are_split(
            lines in prop::collection::vec("[a-z]{1,20}", 0..10), size in 1_usize..30, hold in any::<bool>(),
        ) {
            let input = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let pieces: Vec<&[u8]> = input.as_bytes().chunks(size).collect();
            let (_, seen) = run(Framing::Line, 1000, &pieces, |_| hold);
            prop_assert_eq!(seen, lines);
        }
    }
}
