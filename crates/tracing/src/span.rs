//! Spans while they last.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use mcpscope_core::{Component, SpanId, TraceContext, TraceId, bounded};

use crate::buffer::Buffer;
use crate::call::whole_ns;
use crate::ids::Drawn;
use crate::packed::{self, Head, Key, Name, SpanHead};
use crate::record::{SpanKind, Status};
use crate::sampling::Fate;
use crate::tracer::Tracer;
use crate::value::ValueRef;

/// Most attributes of a span, and most events: the limits of the OpenTelemetry specification.
const MAX_ATTRIBUTES: u16 = 128;
const MAX_EVENTS: u16 = 128;
/// Most attributes of an event.
const MAX_EVENT_ATTRIBUTES: usize = 32;
/// What a span takes in memory before what else it is told is left out.
const MAX_SPAN_BYTES: usize = 192 << 10;
/// Most spans of a trace, and how much memory those below the root may take.
const MAX_SPANS: u16 = 1000;
const MAX_GROUP_BYTES: usize = 128 << 10;
/// What a thread keeps to use it again: this many, if they are not larger than this.
const MAX_SPARE: u8 = 16;
const MAX_SPARE_BYTES: usize = 4096;

/// A span that has begun; it ends when it is dropped.
///
/// One that nobody will see costs a few nanoseconds: whether its trace is recorded was decided at the root, before anything else
/// was done. What is given to it is written down at once, so it takes the clock twice and no more.
///
/// It borrows its [`Tracer`]; [`SpanGuard::into_owned`] makes one that can go into a task. What ends later than the root of its trace
/// is found with the rest all the same ([`Tracer::trace`]).
#[derive(Debug)]
#[must_use = "a span ends when it is dropped"]
pub struct SpanGuard<'t> {
    tracer: Home<'t>,
    /// The trace that it goes on with; none if it begins one.
    trace_id: Option<TraceId>,
    drawn: Drawn,
    fate: Fate,
    recording: Option<Box<Recording>>,
}

#[derive(Debug)]
enum Home<'t> {
    Borrowed(&'t Tracer),
    Owned(Tracer),
}

impl Deref for Home<'_> {
    type Target = Tracer;

    fn deref(&self) -> &Tracer {
        match self {
            Self::Borrowed(tracer) => tracer,
            Self::Owned(tracer) => tracer,
        }
    }
}

/// What a span knows so far.
pub(crate) struct Recording {
    /// For a root the record, for any other span what the record gets when it ends.
    pub(crate) bytes: Buffer,
    /// Where the span begins.
    at: usize,
    started: Instant,
    trace_started: Instant,
    status: Status,
    /// What kind of error it ends with, and what went wrong, in words; empty if nothing did.
    error_type: String,
    message: String,
    is_root: bool,
    attributes: u16,
    events: u16,
    dropped_events: u32,
    /// Where spans below the root wait for it, if there are any.
    group: OnceLock<Arc<Group>>,
    /// In the list of those that can be used again.
    next: Option<Box<Recording>>,
    spare: u8,
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("bytes", &self.bytes.written().len()).finish_non_exhaustive()
    }
}

/// Spans that ended before the root of their trace.
#[derive(Debug)]
struct Group(Mutex<Ended>);

#[derive(Debug)]
struct Ended {
    bytes: Vec<u8>,
    spans: u16,
    /// Whether the root has not ended.
    is_open: bool,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, Ended> {
        // Spans are appended whole or not at all.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'t> SpanGuard<'t> {
    #[inline]
    pub(crate) fn root(tracer: &'t Tracer, path: Component, name: &str, context: Option<TraceContext>) -> Self {
        Self::root_at(tracer, path, name, context, || tracer.now())
    }

    #[inline]
    pub(crate) fn root_at(
        tracer: &'t Tracer,
        path: Component,
        name: &str,
        context: Option<TraceContext>,
        started: impl FnOnce() -> Instant,
    ) -> Self {
        let (drawn, fate) = tracer.decide(path, context);
        let trace_id = context.map(|context| context.trace_id);
        let span = Self { tracer: Home::Borrowed(tracer), trace_id, drawn, fate, recording: None };
        if fate.is_recorded() { span.recording(name, context, started()) } else { span }
    }

    #[inline(never)]
    fn recording(mut self, name: &str, context: Option<TraceContext>, started: Instant) -> Self {
        let mut recording = Recording::take(started, started, true);
        packed::begin(&mut recording.bytes, "");
        recording.begin(self.span_id(), context.map(|context| context.parent), 0, name);
        self.recording = Some(recording);
        self
    }

    /// Begins a span below this one.
    pub fn child(&self, name: &str) -> Self {
        let tracer = match &self.tracer {
            Home::Borrowed(tracer) => Home::Borrowed(tracer),
            Home::Owned(tracer) => Home::Owned(tracer.clone()),
        };
        let Some(parent) = &self.recording else { return Self { tracer, recording: None, ..*self } };
        let (trace_id, drawn) = (Some(self.trace_id()), tracer.sequence().draw());
        let started = tracer.now();
        let mut recording = Recording::take(started, parent.trace_started, false);
        recording.group = Arc::clone(parent.group.get_or_init(Group::open)).into();
        let start_ns = whole_ns(started.saturating_duration_since(parent.trace_started));
        recording.begin(tracer.sequence().span_id(drawn), Some(self.span_id()), start_ns, name);
        Self { tracer, trace_id, drawn, fate: self.fate, recording: Some(recording) }
    }

    /// One that does not borrow, to be sent to a task or thread.
    pub fn into_owned(mut self) -> SpanGuard<'static> {
        let (tracer, recording) = (Home::Owned(Tracer::clone(&self.tracer)), self.recording.take());
        SpanGuard { tracer, trace_id: self.trace_id, drawn: self.drawn, fate: self.fate, recording }
    }

    /// The trace it belongs to; also if nobody will see it.
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        self.trace_id.unwrap_or_else(|| self.tracer.sequence().trace_id(self.drawn))
    }

    /// Its own id. Below a root that nobody will see it is the root's.
    #[must_use]
    pub fn span_id(&self) -> SpanId {
        self.tracer.sequence().span_id(self.drawn)
    }

    /// Whether anyone will see it: if not, what is given to it is dropped.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// What a message carries so that the receiver's span comes below this one ([`traceparent`](crate::traceparent)).
    #[must_use]
    pub fn context(&self) -> TraceContext {
        TraceContext { trace_id: self.trace_id(), parent: self.span_id(), sampled: self.tracer.says_sampled(self.fate) }
    }

    /// Which side of a call it stands for; without it, neither.
    #[inline]
    pub fn kind(&mut self, kind: SpanKind) -> &mut Self {
        if let Some(recording) = &mut self.recording {
            packed::set_kind(&mut recording.bytes, recording.at, kind);
        }
        self
    }

    /// Adds an attribute. The OpenTelemetry conventions have names for most things. Of more than 128 the rest is dropped.
    #[inline]
    pub fn attribute<'a>(&mut self, name: &str, value: impl Into<ValueRef<'a>>) -> &mut Self {
        if let Some(recording) = &mut self.recording {
            match value.into() {
                ValueRef::Str(text) => recording.text_attribute(name, text),
                value => recording.attribute(Name::Text(name), value),
            }
        }
        self
    }

    /// Adds a detail to the trace, which is shown with it and not with one of its spans.
    #[inline]
    pub fn detail<'a>(&mut self, name: &str, value: impl Into<ValueRef<'a>>) -> &mut Self {
        if let Some(recording) = &mut self.recording
            && recording.has_room()
        {
            packed::put_detail(&mut recording.bytes, Name::Text(name), value.into());
        }
        self
    }

    /// Notes that something happened now. Of more than 128 events the rest is counted.
    pub fn event(&mut self, name: &str, attributes: &[(&str, ValueRef<'_>)]) -> &mut Self {
        if let Some(recording) = &mut self.recording {
            let at = self.tracer.now();
            recording.event(name, at, attributes);
        }
        self
    }

    /// How it ends; without it, well.
    #[inline]
    pub fn status(&mut self, status: Status) -> &mut Self {
        if let Some(recording) = &mut self.recording {
            recording.status = status;
        }
        self
    }

    /// What went wrong, in the caller's own words; the last ones count.
    pub fn message(&mut self, message: &str) -> &mut Self {
        if let Some(recording) = &mut self.recording {
            replace(&mut recording.message, message);
        }
        self
    }

    /// It ends with an error of this kind (`error.type`). What went wrong is told in the caller's own words. Where
    /// `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` switches them on, the first one gets a backtrace (`exception.stacktrace`).
    pub fn error(&mut self, kind: &str, message: &str) -> &mut Self {
        if let Some(recording) = &mut self.recording {
            let is_first = recording.error_type.is_empty();
            recording.status = Status::Error;
            replace(&mut recording.error_type, kind);
            replace(&mut recording.message, message);
            let backtrace = if is_first { Backtrace::capture() } else { Backtrace::disabled() };
            if backtrace.status() == BacktraceStatus::Captured {
                recording.attribute(Name::Text("exception.stacktrace"), backtrace.to_string().as_str().into());
            }
        }
        self
    }

    /// Ends it; the same as to drop it.
    pub fn end(self) {}

    pub(crate) fn end_at(mut self, ended: Instant) {
        if let Some(recording) = self.recording.take() {
            recording.end(&self, ended);
        }
    }
}

impl Drop for SpanGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            recording.end(self, self.tracer.now());
        }
    }
}

thread_local! {
    static SPARE: Cell<Option<Box<Recording>>> = const { Cell::new(None) };
}

impl Recording {
    /// An empty one, used before if there is one of these.
    pub(crate) fn take(started: Instant, trace_started: Instant, is_root: bool) -> Box<Self> {
        // There is none while the thread ends.
        let spare = SPARE.try_with(|spare| {
            let mut first = spare.take()?;
            spare.set(first.next.take());
            Some(first)
        });
        match spare.ok().flatten() {
            Some(mut recording) => {
                (recording.started, recording.trace_started, recording.is_root) = (started, trace_started, is_root);
                recording
            }
            None => Box::new(Self {
                bytes: Buffer::default(),
                at: 0,
                started,
                trace_started,
                status: Status::Ok,
                error_type: String::new(),
                message: String::new(),
                is_root,
                attributes: 0,
                events: 0,
                dropped_events: 0,
                group: OnceLock::new(),
                next: None,
                spare: 0,
            }),
        }
    }

    /// Lets it be used again.
    pub(crate) fn give_back(mut self: Box<Self>) {
        if self.bytes.capacity() > MAX_SPARE_BYTES {
            return;
        }
        self.bytes.clear();
        self.error_type.clear();
        self.message.clear();
        (self.status, self.attributes, self.events, self.dropped_events) = (Status::Ok, 0, 0, 0);
        self.group = OnceLock::new();
        // What finds no place is dropped.
        let _ = SPARE.try_with(|spare| {
            self.next = spare.take();
            self.spare = self.next.as_ref().map_or(0, |next| next.spare + 1);
            let first = if self.spare < MAX_SPARE { Some(self) } else { self.next.take() };
            spare.set(first);
        });
    }

    fn begin(&mut self, id: SpanId, parent: Option<SpanId>, start_ns: u64, name: &str) {
        let head = SpanHead { id, parent, start_ns, kind: SpanKind::Internal };
        self.at = packed::begin_span(&mut self.bytes, head, name, None);
    }

    #[inline]
    fn has_room(&mut self) -> bool {
        let has_room = self.attributes < MAX_ATTRIBUTES && self.bytes.written().len() < MAX_SPAN_BYTES;
        self.attributes += u16::from(has_room);
        has_room
    }

    /// What most attributes are.
    #[inline(never)]
    fn text_attribute(&mut self, name: &str, text: &str) {
        if name == Key::ErrorType.as_str() {
            replace(&mut self.error_type, text);
        } else if self.has_room() {
            packed::put_text_attribute(&mut self.bytes, name, text);
        }
    }

    fn attribute(&mut self, name: Name<'_>, value: ValueRef<'_>) {
        if self.has_room() {
            packed::put_attribute(&mut self.bytes, name, value);
        }
    }

    fn event(&mut self, name: &str, at: Instant, attributes: &[(&str, ValueRef<'_>)]) {
        if self.events == MAX_EVENTS || self.bytes.written().len() >= MAX_SPAN_BYTES {
            self.dropped_events = self.dropped_events.saturating_add(1);
            return;
        }
        self.events += 1;
        let at_ns = whole_ns(at.saturating_duration_since(self.trace_started));
        let attributes = attributes.iter().take(MAX_EVENT_ATTRIBUTES).map(|(name, value)| (Name::Text(name), *value));
        packed::put_event(&mut self.bytes, name, at_ns, attributes);
    }

    /// The error's kind and message. One that nobody named has a name too: without it, it would be no error to OpenTelemetry.
    fn tell_what_went_wrong(&mut self) {
        let unnamed = match self.status {
            Status::Ok | Status::Cancelled => "",
            Status::Error => "_OTHER",
            Status::Timeout => "timeout",
        };
        let kind = if self.error_type.is_empty() { unnamed } else { &self.error_type };
        if !kind.is_empty() {
            packed::put_attribute(&mut self.bytes, Name::Known(Key::ErrorType), kind.into());
        }
        if !self.message.is_empty() {
            packed::put_message(&mut self.bytes, &self.message);
        }
    }

    fn end(mut self: Box<Self>, span: &SpanGuard<'_>, ended: Instant) {
        let duration_ns = whole_ns(ended.saturating_duration_since(self.started));
        if self.dropped_events > 0 {
            packed::put_dropped_events(&mut self.bytes, self.dropped_events);
        }
        self.tell_what_went_wrong();
        packed::end_span(&mut self.bytes, self.at, duration_ns, self.status);
        let group = self.group.take();
        if self.is_root {
            let mut spans = 1;
            if let Some(group) = group {
                let mut ended = group.lock();
                ended.is_open = false;
                self.bytes.put(&std::mem::take(&mut ended.bytes));
                spans += ended.spans;
            }
            self.keep(span, duration_ns, spans, false);
        } else if group.is_none_or(|group| !group.lock().add(self.bytes.written(), span)) {
            let alone = std::mem::take(&mut self.bytes);
            packed::begin(&mut self.bytes, "");
            self.bytes.put(alone.written());
            // It says when it began in the time of its trace.
            let until_ns = whole_ns(ended.saturating_duration_since(self.trace_started));
            self.keep(span, until_ns, 1, true);
        }
        self.give_back();
    }

    fn keep(&mut self, span: &SpanGuard<'_>, duration_ns: u64, spans: u16, late: bool) {
        let started_ns = span.tracer.since_anchor(self.trace_started);
        let (trace_id, status) = (span.trace_id(), self.status);
        packed::finish(
            &mut self.bytes,
            Head { trace_id, started_ns, duration_ns, status, injected: false, late, spans },
        );
        span.tracer.keep_or_count(self.bytes.written_mut(), span.fate);
    }
}

/// Takes over a text, bounded like the value of an attribute.
fn replace(place: &mut String, text: &str) {
    place.clear();
    place.push_str(bounded(text, packed::MAX_VALUE_BYTES));
}

impl Group {
    fn open() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Ended { bytes: Vec::new(), spans: 0, is_open: true })))
    }
}

impl Ended {
    /// Takes a span; or not, if the root does not wait any more.
    fn add(&mut self, bytes: &[u8], span: &SpanGuard<'_>) -> bool {
        if !self.is_open {
            return false;
        }
        if self.spans + 1 >= MAX_SPANS || self.bytes.len() + bytes.len() > MAX_GROUP_BYTES {
            span.tracer.count_lost(span.fate);
            return true;
        }
        self.bytes.extend_from_slice(bytes);
        self.spans += 1;
        true
    }
}
