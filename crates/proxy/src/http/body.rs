//! Bodies on their way through, watched as they pass.
//!
//! What passes is what came, chunk by chunk. Only where messages are held, because a fault is active or trace context is put
//! into them, are the chunks made anew.

mod held;

use std::future::{pending, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use mcpscope_core::Direction;
use mcpscope_hooks::{Backlog, Departure, Lane, Passage, Queued};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

pub(super) use self::held::Settled;
use super::decode::{BadBody, Decoder, Length, Step};
use super::exchange::Exchange;
use super::rarely;
use super::stream::Source;
use super::wire::{Input, write};
use crate::MAX_HOLD;
use crate::conversation::Arrival;
use crate::framing::{Fate, Framing, Judgement, Part, Seen, Tap};
use crate::item::Item;
use crate::queue::{Queue, Waiting};

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

/// Why a body did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// Its sender broke off, or sent what is no body.
    #[error("{0}")]
    Source(#[source] io::Error),
    /// Its receiver takes no more.
    #[error("{0}")]
    Sink(#[source] io::Error),
    /// A fault broke it off.
    #[error("a fault broke it off")]
    Fault,
}

impl From<BadBody> for Stopped {
    fn from(bad: BadBody) -> Self {
        let kind = if bad == BadBody::BrokenOff { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
        Self::Source(io::Error::new(kind, bad))
    }
}

/// A body on its way.
pub(super) struct Body {
    decoder: Decoder,
    is_chunked: bool,
    is_exact: bool,
    /// What sees it; nothing if nothing is observed.
    exchange: Option<Arc<Exchange>>,
    /// None for a body that is not looked at.
    tap: Option<Tap>,
    lane: Lane,
    direction: Direction,
    tap_framing: Option<Framing>,
    /// Whether our trace context is to be in its messages: they are held until they are complete.
    propagates: bool,
    /// Whether it goes on message by message, and not as it came.
    is_parted: bool,
    /// Since when what is read next has waited for a connection, and whether more than what has come by now did.
    waited: Option<(Instant, bool)>,
    /// Since when the beginning of a message is held.
    held_since: Option<Instant>,
    /// What is held, in order.
    due: Backlog<Item>,
    /// What goes on before that.
    next: Option<Box<Item>>,
    /// Whether what was written last is not the end of a message.
    is_within: bool,
    /// Whether a message never arrives without which the body is not complete.
    is_lost: bool,
    /// Whether nothing of it goes on before it has settled what becomes of it.
    settles: bool,
    /// Whether the sender of its message can be answered.
    takes_answer: bool,
    /// That of the calls which go on with what is written next.
    departure: Option<Departure>,
    /// The messages that are written next, and how many they are.
    queued: Option<Queued>,
    messages: usize,
    /// With the empty line behind them, where the body is parted.
    trailers: Vec<u8>,
    /// Bytes of data read.
    received: u64,
    /// Bytes at the beginning of the input that were looked at and are being written: whoever goes on reading in place of the
    /// writer must pass over them.
    looked_at: usize,
    told: bool,
}

impl Body {
    /// A body of this length. `framing` says how it is looked at, if it is.
    pub(super) fn new(
        length: Length,
        framing: Option<Framing>,
        direction: Direction,
        exchange: Option<Arc<Exchange>>,
        propagates: bool,
    ) -> Self {
        Self {
            decoder: Decoder::new(length),
            is_chunked: length == Length::Chunked,
            is_exact: matches!(length, Length::Exact(_)),
            tap: framing.zip(exchange.as_ref()).map(|(framing, exchange)| exchange.tap(framing)),
            exchange,
            lane: Lane::default(),
            direction,
            tap_framing: framing,
            propagates,
            is_parted: false,
            waited: None,
            held_since: None,
            due: Backlog::default(),
            next: None,
            is_within: false,
            is_lost: false,
            settles: false,
            takes_answer: false,
            departure: None,
            queued: None,
            messages: 0,
            trailers: Vec::new(),
            received: 0,
            looked_at: 0,
            told: false,
        }
    }

    /// Reads on until the body is complete or begins to pass: because it is too large, or finds no room. May be given up
    /// at any time.
    pub(super) async fn gather<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        input: &mut Input,
    ) -> Result<(), Stopped> {
        loop {
            let taken = self.look(input.bytes())?;
            input.advance(taken);
            if self.decoder.is_done() || !self.due.is_empty() || self.next.is_some() {
                return Ok(());
            }
            self.fill(from, input, || usize::MAX).await?;
        }
    }

    /// What is there of it has waited for a connection since then; if `is_cut`, so has what is not.
    pub(super) fn has_waited(&mut self, (since, is_cut): (Instant, bool)) {
        self.waited = Some((since, is_cut));
    }

    /// Looks at what has come of it, of which nothing goes on.
    pub(super) fn gone(&mut self, input: &Input) {
        // What is no body is nobody's call.
        let _ = self.look(input.bytes());
    }

    /// Lets what is held of the body go on, and the rest as it comes; a fault may still hold it.
    pub(super) fn release(&mut self) {
        self.propagates = false;
        let at = Instant::now();
        let messages = self.data(&[], at);
        self.queue(messages, at);
    }

    /// How long the complete body is, if it was changed.
    pub(super) fn changed_length(&self) -> Option<u64> {
        let length = self.due.iter().chain(self.next.as_deref()).map(|item| item.bytes.len() as u64).sum::<u64>();
        (self.decoder.is_done() && length != self.received).then_some(length)
    }

    /// Reads the rest and lets nothing pass: so that what is in it is known.
    pub(super) async fn drain<R: AsyncRead + Unpin>(&mut self, from: &mut R, input: &mut Input) -> Result<(), Stopped> {
        input.advance(std::mem::take(&mut self.looked_at));
        while !self.decoder.is_done() {
            let taken = self.look(input.bytes())?;
            input.advance(taken);
            self.due = Backlog::default();
            if taken == 0 {
                self.fill(from, input, || usize::MAX).await?;
            }
        }
        Ok(())
    }

    /// Lets the body pass, behind `head`, which is empty then. What is read ahead stays in `input`, what waits to be written
    /// is in `queue`.
    pub(super) async fn relay<R: Source, W: AsyncWrite + Unpin>(
        &mut self,
        from: &mut R,
        input: &mut Input,
        to: &mut W,
        head: &mut Vec<u8>,
        queue: &Queue,
    ) -> Result<(), Stopped> {
        loop {
            let taken = self.look(input.bytes())?;
            let (mut look, rung) = (None, self.exchange.as_ref().map_or(0, |exchange| exchange.times_rung()));
            if self.is_parted {
                input.advance(taken);
                look = rarely(self.write_parts(from, to, head, queue)).await?;
            } else if taken > 0 || !head.is_empty() {
                self.looked_at = taken;
                let bytes = input.bytes().get(..taken).unwrap_or_default();
                self.pass(from, to, &mut [IoSlice::new(head), IoSlice::new(bytes)], queue).await?;
                input.advance(std::mem::take(&mut self.looked_at));
                head.clear();
            }
            self.wrote();
            let is_read = self.decoder.is_done();
            if is_read && self.due.is_empty() && !self.is_lost {
                return Ok(());
            }
            let mail = self.write_mail(from, to, queue).await?;
            if self.is_lost || !self.due.is_empty() {
                // More may come in the meantime, for which this does not stand in the way.
                rarely(self.wait(from, input, (look, rung), mail, queue)).await?;
            } else if taken == 0 || input.bytes().is_empty() {
                // It may have stopped where its messages begin to be held.
                let filled = self.fill(from, input, || queue.room());
                match mail {
                    None => filled.await?,
                    Some(mail) => tokio::select! {
                        filled = filled => filled?,
                        () = mail.mailbox.filled() => {}
                    },
                }
            }
        }
    }

    /// Reads more of it, but no more than `most` bytes, or learns that it has ended.
    async fn fill<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        input: &mut Input,
        most: impl Fn() -> usize,
    ) -> Result<(), Stopped> {
        let read = match self.patience() {
            None => input.read_some(from, most).await,
            // Nobody knows whether the end of what is held will come.
            Some(patience) => match rarely(timeout(patience, input.read_some(from, most))).await {
                Ok(read) => read,
                Err(_) => {
                    let at = Instant::now();
                    let messages = self.feed(&[], false, at);
                    self.queue(messages, at);
                    return Ok(());
                }
            },
        };
        let ended = match read {
            Ok(0) => self.decoder.end().map_err(Stopped::from),
            Ok(_) => return Ok(()),
            Err(error) => Err(Stopped::Source(error)),
        };
        match ended {
            Ok(()) => {
                let at = Instant::now();
                let messages = self.finish(at);
                self.queue(messages, at);
                Ok(())
            }
            Err(stopped) => {
                self.tell(End::Broken, Instant::now());
                Err(stopped)
            }
        }
    }

    /// How long to wait for more of a message of a stream that is held to put trace context into it. A fault may hold it for
    /// ever, and so may whoever gathers a body.
    fn patience(&self) -> Option<Duration> {
        let exchange = self.exchange.as_ref().filter(|_| self.propagates && self.is_stream())?;
        let held_since = self.held_since.filter(|_| !exchange.holds())?;
        Some(MAX_HOLD.saturating_sub(held_since.elapsed()))
    }

    /// Looks at what goes on next; returns how much of it that is.
    fn look(&mut self, bytes: &[u8]) -> Result<usize, Stopped> {
        if self.decoder.is_done() {
            if !self.told {
                self.complete(Instant::now());
            }
            return Ok(0);
        }
        if bytes.is_empty() {
            self.waited = None;
            return Ok(0);
        }
        let at = Instant::now();
        let (mut taken, mut messages) = (0, 0);
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty() && !self.decoder.is_done()) {
            if self.decoder.is_between_chunks() && self.is_to_be_parted() != self.is_parted {
                // What is before this place goes on as it was meant to.
                if taken > 0 {
                    break;
                }
                self.is_parted = !self.is_parted;
            }
            let step = self.decoder.next(rest).inspect_err(|_| self.tell(End::Broken, at))?;
            taken += match step {
                Step::Data(length) => {
                    self.received += length as u64;
                    let data = rest.get(..length).unwrap_or_default();
                    messages += if self.is_whole() { self.whole(data, at) } else { self.data(data, at) };
                    length
                }
                Step::Framing(length) => length,
                Step::Trailers(length) => {
                    if self.is_parted {
                        self.trailers.extend_from_slice(rest.get(..length).unwrap_or_default());
                    }
                    length
                }
            };
        }
        // The last bytes are the last thing its receiver waits for: what they complete must be seen before they go on.
        if self.decoder.is_done() {
            messages += self.finish(at);
        }
        self.queue(messages, at);
        if taken == bytes.len() {
            self.waited = self.waited.filter(|(_, is_cut)| *is_cut);
        }
        Ok(taken)
    }

    fn is_to_be_parted(&self) -> bool {
        let Some((tap, exchange)) = self.tap.as_ref().zip(self.exchange.as_ref()) else { return false };
        self.propagates
            || self.settles
            || exchange.holds()
            || tap.is_holding()
            || self.next.is_some()
            || self.is_lost
            || !self.due.is_empty()
    }

    /// Whether the data that was read last is all of a body that is one message, and goes on as it came.
    fn is_whole(&self) -> bool {
        let is_first = |tap: &Tap| tap.framing() == Framing::Body && tap.is_between();
        self.decoder.is_done() && !self.is_parted && self.tap.as_ref().is_some_and(is_first)
    }

    /// Looks at all of such a body; returns how many messages were seen that go on.
    fn whole(&mut self, data: &[u8], at: Instant) -> usize {
        let Some(mut tap) = self.tap.take() else { return 0 };
        let mut messages = 0;
        tap.whole(data, |seen, _| self.judge((seen, false), false, at, &mut messages));
        self.tap = Some(tap);
        messages
    }

    /// Looks at data; returns how many messages were seen that go on.
    fn data(&mut self, data: &[u8], at: Instant) -> usize {
        let hold =
            self.is_parted && (self.propagates || self.exchange.as_ref().is_some_and(|exchange| exchange.holds()));
        self.feed(data, hold, at)
    }

    fn feed(&mut self, data: &[u8], hold: bool, at: Instant) -> usize {
        let Some(mut tap) = self.tap.take() else { return 0 };
        let mut messages = 0;
        match tap.feed(data, hold, |seen, is_held| self.judge((seen, is_held), hold, at, &mut messages)) {
            Fate::Now(bytes) if self.is_parted && !bytes.is_empty() => {
                let departure = self.departure.take();
                let part = Part { departure, is_end: true, ..Part::rest(bytes) };
                self.hold(vec![part], at);
            }
            Fate::Now(_) => {}
            Fate::Parts(parts) => self.hold(parts, at),
        }
        // With a message another one may have begun.
        let since = self.held_since.filter(|_| messages == 0).unwrap_or(at);
        self.held_since = tap.is_holding().then_some(since);
        self.tap = Some(tap);
        messages
    }

    /// The body is complete: what is left in the tap is a message. Returns how many were seen that go on.
    fn finish(&mut self, at: Instant) -> usize {
        let hold = self.is_parted;
        let mut messages = 0;
        if let Some(mut tap) = self.tap.take() {
            let parts = tap.end(|seen, is_held| self.judge((seen, is_held && hold), hold, at, &mut messages));
            self.hold(parts, at);
            self.tap = Some(tap);
        }
        self.complete(at);
        messages
    }

    fn judge(&mut self, seen: (Seen<'_>, bool), hold: bool, at: Instant, messages: &mut usize) -> Judgement {
        let Some(exchange) = &self.exchange else { return Passage::Now.into() };
        let came = Arrival { at, since: self.waited.map_or(at, |(since, _)| since) };
        let (passage, splices, subject) = exchange.observe(seen, self.direction, &mut self.lane, came);
        *messages += usize::from(passage == Passage::Now);
        let splices = if self.propagates { splices } else { Vec::new() };
        Judgement { passage, splices, departure: if hold { self.lane.depart() } else { None }, subject }
    }

    fn hold(&mut self, parts: Vec<Part<'_>>, at: Instant) {
        let Some(exchange) = self.exchange.clone() else { return };
        for part in parts {
            if part.bytes.is_empty() {
                // It has passed already, or passes now; its calls leave with the end.
                self.departure = part.departure.or(self.departure.take());
            } else {
                let (mut item, passage) = exchange.item(part, self.direction, at);
                if let Passage::Touched(touch) = &passage
                    && !self.alters_late()
                {
                    self.alter(&mut item, touch, &exchange, at);
                }
                let bytes = item.bytes.len();
                self.due.push(item, passage, bytes);
            }
        }
    }

    /// So many more messages wait for their turn to be written.
    fn queue(&mut self, messages: usize, at: Instant) {
        self.departure = self.lane.depart().or(self.departure.take());
        if let Some(exchange) = self.exchange.as_ref().filter(|_| messages > 0) {
            self.queued = Some(exchange.queued(self.direction, messages, at));
            self.messages = messages;
        }
        if let Some(queued) = &self.queued {
            // Mostly nothing is held.
            if !self.due.is_empty() {
                queued.wait(self.due.iter().filter_map(|item| item.departure.as_ref()));
            }
            queued.wait(&self.departure);
        }
    }

    /// What was to be written is written.
    fn wrote(&mut self) {
        let departure = self.departure.take();
        self.messages = 0;
        if let Some(mut queued) = self.queued.take()
            && departure.is_some()
        {
            queued.wrote(&departure);
        }
    }

    /// Writes. Gives up if the client that sends the body breaks off while the server takes nothing of it.
    async fn pass<R: Source, W: AsyncWrite + Unpin>(
        &self,
        from: &R,
        to: &mut W,
        slices: &mut [IoSlice<'_>],
        queue: &Queue,
    ) -> Result<(), Stopped> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let mut writing = pin!(write(to, slices));
        // Mostly it is done at once, and nothing waits.
        if let Poll::Ready(written) = poll_fn(|cx| Poll::Ready(writing.as_mut().poll(cx))).await {
            return written.map_err(Stopped::Sink);
        }
        let _waiting = self.waiting(queue, bytes);
        let broken_off = async {
            match self.direction {
                Direction::ToServer => from.until_reset().await,
                Direction::ToClient => pending().await,
            }
        };
        tokio::select! {
            biased;
            written = writing => written.map_err(Stopped::Sink),
            error = broken_off => Err(Stopped::Source(error)),
        }
    }

    /// So many bytes of it wait, and what is held behind them.
    fn waiting<'q>(&self, queue: &'q Queue, bytes: usize) -> Waiting<'q> {
        queue.wait(self.direction, self.messages, bytes + self.due.bytes())
    }

    /// Waits, and gives up if the client that sends the body is gone.
    async fn watching<R: Source>(
        &self,
        from: &mut R,
        input: &mut Input,
        wait: impl Future<Output = ()>,
    ) -> Result<(), Stopped> {
        let gone = async {
            match self.direction {
                Direction::ToServer => input.gone(from).await,
                Direction::ToClient => pending().await,
            }
        };
        tokio::select! {
            () = wait => Ok(()),
            error = gone => Err(Stopped::Source(error)),
        }
    }

    /// What ends the stream behind these events, so that its receiver takes it for complete; nothing where no event can follow
    /// what has passed.
    pub(super) fn last_events(&self, events: &[u8]) -> Option<Vec<u8>> {
        self.is_between_events().then(|| {
            let size = format!("{:x}\r\n", events.len());
            if self.is_chunked { [size.as_bytes(), events, b"\r\n0\r\n\r\n"].concat() } else { events.to_vec() }
        })
    }

    /// Whether an event of our own can come next.
    fn is_between_events(&self) -> bool {
        let is_between_events = self.is_stream() && self.tap.as_ref().is_some_and(Tap::has_passed_whole);
        let is_between_chunks = self.is_parted || self.decoder.is_between_chunks();
        is_between_events && is_between_chunks && !self.is_exact
    }

    fn is_stream(&self) -> bool {
        self.tap.as_ref().is_some_and(|tap| tap.framing() == Framing::Sse)
    }

    fn tell(&mut self, end: End, at: Instant) {
        if !self.told {
            self.told = true;
            if let Some(exchange) = &self.exchange {
                exchange.ended(self.direction, end, at);
            }
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.told {
            self.tell(End::Abandoned, Instant::now());
        }
    }
}
