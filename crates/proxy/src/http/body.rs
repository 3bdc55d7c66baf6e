//! Bodies on their way through, watched frame by frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use mcpscope_core::Direction;
use mcpscope_hooks::{Departure, Lane, Passage, Queued};

use super::exchange::Exchange;
use super::outbox::{Leaving, Outbox};
use crate::framing::{Fate, Framing, Judgement, Part, Seen, Tap};

/// A body as it goes on.
pub(super) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// The body as it came, unwatched.
pub(super) fn unwatched(body: Incoming) -> Body {
    if body.is_end_stream() { empty() } else { body.boxed_unsync() }
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// How a body ended; told to the exchange it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is complete.
    Complete,
    /// Its sender broke off.
    Broken,
    /// Its receiver does not want the rest.
    Abandoned,
}

/// A body that the exchange sees.
pub(super) struct Watched {
    body: Incoming,
    /// None for a body that is not looked at.
    tap: Option<Tap>,
    lane: Lane,
    direction: Direction,
    exchange: Arc<Exchange>,
    /// Whether our trace context is to be in its requests: they are held until they are complete.
    propagates: bool,
    /// Where calls wait until they are written.
    outbox: Arc<Outbox>,
    /// What is held, in order.
    due: VecDeque<Due>,
    /// That of the calls which go on with the next frame, or with the end.
    departure: Option<Departure>,
    /// The messages handed on last; when the next frame is asked for, they are written.
    queued: Option<Queued>,
    /// What was read is not handed on yet.
    is_ahead: bool,
    /// Bytes read.
    received: usize,
    complete: bool,
    failed: Option<hyper::Error>,
    /// They follow what is held.
    trailers: Option<HeaderMap>,
    told: bool,
}

/// Bytes that are held.
struct Due {
    bytes: Bytes,
    passage: Passage,
    leaving: Leaving,
}

impl Watched {
    pub(super) fn new(
        body: Incoming,
        framing: Option<Framing>,
        direction: Direction,
        exchange: Arc<Exchange>,
        outbox: Arc<Outbox>,
        propagates: bool,
    ) -> Self {
        Self {
            body,
            tap: framing.map(|framing| exchange.tap(framing)),
            lane: Lane::default(),
            direction,
            exchange,
            propagates,
            outbox,
            due: VecDeque::new(),
            departure: None,
            queued: None,
            is_ahead: false,
            received: 0,
            complete: false,
            failed: None,
            trailers: None,
            told: false,
        }
    }

    /// Reads on until the body is complete or begins to pass: because it is too large, or finds no room. May be given up
    /// at any time.
    pub(super) async fn complete(&mut self) {
        if self.body.is_end_stream() {
            return;
        }
        self.is_ahead = true;
        while !self.complete && self.failed.is_none() && self.due.is_empty() {
            if let Some(bytes) = self.read().await {
                let leaving = Leaving { departure: self.departure.take(), share: None };
                self.due.push_back(Due { bytes, passage: Passage::Now, leaving });
            }
        }
    }

    /// Lets what is held of the body go on, and the rest as it comes; a fault may still hold it.
    pub(super) fn release(&mut self) {
        self.propagates = false;
        self.data(Bytes::new());
    }

    /// How long the complete body is, if it was changed.
    pub(super) fn changed_length(&self) -> Option<usize> {
        let length = self.due.iter().map(|due| due.bytes.len()).sum::<usize>();
        (self.complete && length != self.received).then_some(length)
    }

    /// The body as it goes on.
    pub(super) fn into_body(mut self) -> Body {
        if self.body.is_end_stream() && !self.is_ahead {
            self.tell(End::Complete);
            return empty();
        }
        // Each step owns the body, so that dropping the stream drops it, which tells the exchange.
        StreamBody::new(futures_util::stream::unfold(self, |mut watched| async move {
            watched.next().await.map(|frame| (frame, watched))
        }))
        .boxed_unsync()
    }

    async fn next(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        if !std::mem::take(&mut self.is_ahead) {
            self.queued = None;
        }
        loop {
            while let Some(Due { bytes, passage, leaving }) = self.due.pop_front() {
                match passage {
                    Passage::Now => {}
                    Passage::At(due) => {
                        if let Some(queued) = &mut self.queued {
                            queued.held_until(due);
                        }
                        tokio::time::sleep_until(due.into()).await;
                    }
                    // In an event stream the next event follows; a body that is one message never arrives.
                    Passage::Never if self.is_stream() => continue,
                    Passage::Never => std::future::pending().await,
                }
                self.outbox.put(leaving);
                return Some(Ok(Frame::data(bytes)));
            }
            if let Some(error) = self.failed.take() {
                self.tell(End::Broken);
                return Some(Err(error));
            }
            if self.complete {
                self.tell(End::Complete);
                self.depart();
                return self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)));
            }
            if let Some(data) = self.read().await {
                self.depart();
                return Some(Ok(Frame::data(data)));
            }
        }
    }

    fn depart(&mut self) {
        self.outbox.put(Leaving { departure: self.departure.take(), share: None });
    }

    /// Reads the next bytes and looks at them; returns them if they go on at once.
    async fn read(&mut self) -> Option<Bytes> {
        match self.body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return self.data(data),
                Err(trailers) => {
                    self.ends();
                    self.trailers = trailers.into_trailers().ok();
                }
            },
            Some(Err(error)) => self.failed = Some(error),
            None => self.ends(),
        }
        None
    }

    /// Looks at the next bytes; returns them if they go on at once.
    fn data(&mut self, data: Bytes) -> Option<Bytes> {
        let at = Instant::now();
        self.received += data.len();
        let hold = self.propagates || self.exchange.holds();
        let mut tap = self.tap.take();
        let mut messages = 0;
        let fate = tap.as_mut().map(|tap| tap.feed(&data, hold, |seen| self.judge(seen, hold, at, &mut messages)));
        let passes = match fate.unwrap_or(Fate::Now(&data)) {
            Fate::Now(_) => true,
            Fate::Parts(parts) => {
                self.hold(parts);
                false
            }
        };
        self.tap = tap;
        // The last frame of a body with a known length is the last thing its receiver waits for: what it completes must be
        // seen before it goes on.
        if self.body.is_end_stream() {
            messages += self.finish(at);
            self.tell(End::Complete);
        }
        self.queue(messages, at);
        passes.then_some(data)
    }

    /// The body has ended after its last frame: a message that it completes has left with its end.
    fn ends(&mut self) {
        let at = Instant::now();
        let messages = self.finish(at);
        self.queue(messages, at);
    }

    /// The body is complete: what is left in the tap is a message. Returns how many were seen that go on.
    fn finish(&mut self, at: Instant) -> usize {
        let hold = self.propagates || self.exchange.holds();
        let mut tap = self.tap.take();
        let mut messages = 0;
        let parts = tap.as_mut().map(|tap| tap.end(|seen| self.judge(seen, hold, at, &mut messages)));
        self.hold(parts.unwrap_or_default());
        self.tap = tap;
        self.complete = true;
        messages
    }

    fn judge(&mut self, seen: Seen<'_>, hold: bool, at: Instant, messages: &mut usize) -> Judgement {
        let (passage, splices) = self.exchange.observe(seen, self.direction, &mut self.lane, at);
        *messages += usize::from(passage != Passage::Never);
        let splices = if self.propagates { splices } else { Vec::new() };
        Judgement { passage, splices, departure: if hold { self.lane.depart() } else { None } }
    }

    fn hold(&mut self, parts: Vec<Part<'_>>) {
        for Part { bytes, passage, departure, share } in parts {
            if bytes.is_empty() {
                // It has passed already; its calls leave with the end.
                self.departure = departure.or(self.departure.take());
            } else {
                let (bytes, leaving) = (Bytes::from(bytes.into_owned()), Leaving { departure, share });
                self.due.push_back(Due { bytes, passage, leaving });
            }
        }
    }

    /// So many more messages wait for their turn to be handed on.
    fn queue(&mut self, messages: usize, at: Instant) {
        self.departure = self.lane.depart().or(self.departure.take());
        let queued = self.exchange.queued(self.direction, messages, at);
        queued.wait(self.due.iter().filter_map(|due| due.leaving.departure.as_ref()).chain(&self.departure));
        self.queued = Some(queued);
    }

    fn is_stream(&self) -> bool {
        self.tap.as_ref().is_some_and(|tap| tap.framing() == Framing::Sse)
    }

    fn tell(&mut self, end: End) {
        if !self.told {
            self.told = true;
            self.exchange.ended(self.direction, end);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tell(End::Abandoned);
    }
}
