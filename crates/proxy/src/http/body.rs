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
use mcpscope_hooks::{Lane, Passage, Queued};

use super::exchange::Exchange;
use crate::framing::{Fate, Framing, Seen, Tap};

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
pub(super) fn watched(body: Incoming, framing: Option<Framing>, direction: Direction, exchange: Arc<Exchange>) -> Body {
    if body.is_end_stream() {
        exchange.ended(direction, End::Complete);
        return empty();
    }
    let watched = WatchedBody {
        body,
        tap: framing.map(|framing| exchange.tap(framing)),
        lane: Lane::default(),
        direction,
        exchange,
        due: VecDeque::new(),
        queued: None,
        complete: false,
        trailers: None,
        told: false,
    };
    // Each step owns the body, so that dropping the stream drops it, which tells the exchange.
    StreamBody::new(futures_util::stream::unfold(watched, |mut watched| async move {
        watched.next().await.map(|frame| (frame, watched))
    }))
    .boxed_unsync()
}

struct WatchedBody {
    body: Incoming,
    /// None for a body that is not looked at.
    tap: Option<Tap>,
    lane: Lane,
    direction: Direction,
    exchange: Arc<Exchange>,
    /// What a fault holds, in order.
    due: VecDeque<(Bytes, Passage)>,
    /// The messages handed on last; when the next frame is asked for, they are written.
    queued: Option<Queued>,
    complete: bool,
    /// They follow what is held.
    trailers: Option<HeaderMap>,
    told: bool,
}

impl WatchedBody {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        self.queued = None;
        loop {
            while let Some((bytes, passage)) = self.due.pop_front() {
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
                return Some(Ok(Frame::data(bytes)));
            }
            if self.complete {
                self.tell(End::Complete);
                return self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => match self.data(data) {
                        Some(data) => return Some(Ok(Frame::data(data))),
                        None => continue,
                    },
                    Err(trailers) => {
                        self.ends();
                        self.trailers = trailers.into_trailers().ok();
                    }
                },
                Some(Err(error)) => {
                    self.tell(End::Broken);
                    return Some(Err(error));
                }
                None => self.ends(),
            }
        }
    }

    /// Looks at the next bytes; returns them if they go on at once.
    fn data(&mut self, data: Bytes) -> Option<Bytes> {
        let at = Instant::now();
        let Self { tap, lane, direction, exchange, .. } = self;
        let mut messages = 0;
        let fate = tap.as_mut().map(|tap| {
            tap.feed(&data, exchange.holds(), |seen| {
                let passage = exchange.observe(seen, *direction, lane, at);
                messages += usize::from(passage != Passage::Never);
                passage
            })
        });
        let passes = match fate.unwrap_or(Fate::Now(&data)) {
            Fate::Now(_) => true,
            Fate::Parts(parts) => {
                self.due.extend(parts.into_iter().map(|(bytes, passage)| (Bytes::from(bytes), passage)));
                false
            }
        };
        // The last frame of a body with a known length is the last thing its receiver waits for: what it completes must be
        // seen before it goes on.
        if self.body.is_end_stream() {
            messages += self.finish(at);
            self.tell(End::Complete);
        }
        self.queued = Some(self.exchange.queued(self.direction, messages, at));
        passes.then_some(data)
    }

    /// The body has ended after its last frame: a message that it completes has left with its end.
    fn ends(&mut self) {
        let at = Instant::now();
        let messages = self.finish(at);
        self.queued = Some(self.exchange.queued(self.direction, messages, at));
    }

    /// The body is complete: what is left in the tap is a message. Returns how many were seen that go on.
    fn finish(&mut self, at: Instant) -> usize {
        let Self { tap, lane, direction, exchange, .. } = self;
        let mut messages = 0;
        let parts = tap.as_mut().map(|tap| {
            tap.end(|seen: Seen<'_>| {
                let passage = exchange.observe(seen, *direction, lane, at);
                messages += usize::from(passage != Passage::Never);
                passage
            })
        });
        let held = parts.into_iter().flatten().filter(|(bytes, _)| !bytes.is_empty());
        self.due.extend(held.map(|(bytes, passage)| (Bytes::from(bytes), passage)));
        self.complete = true;
        messages
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

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.tell(End::Abandoned);
    }
}
