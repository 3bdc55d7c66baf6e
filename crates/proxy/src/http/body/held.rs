//! Bodies of which something is held, because a fault has touched it or our context is to be put into it.

use std::future::pending;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use mcpscope_core::{Break, Direction};
use mcpscope_hooks::{Instead, Next, Place, Reply, Touch};
use tokio::io::AsyncWrite;

use super::super::exchange::Exchange;
use super::super::stream::Source;
use super::super::wire::Input;
use super::{Body, End, Stopped};
use crate::conversation::Conversation;
use crate::framing::Framing;
use crate::item::{Item, Pace};
use crate::queue::Queue;

/// What becomes of a body that is one message.
#[derive(Debug)]
pub(in crate::http) enum Settled {
    /// It goes on.
    Goes,
    /// It never arrives.
    Lost,
    /// Its sender gets this answer.
    Answered(Reply),
    /// This breaks, of the fault with the injection that ends then.
    Breaks(Break),
}

impl Body {
    /// The same, and waits until it may go on, if a fault has touched it: nothing of it has gone on yet, not even its head.
    pub(in crate::http) async fn settle<R: Source>(
        &mut self,
        from: &mut R,
        input: &mut Input,
    ) -> Result<Settled, Stopped> {
        self.settles = true;
        self.takes_answer = self.direction == Direction::ToServer;
        self.gather(from, input).await?;
        let Some(exchange) = self.exchange.clone() else { return Ok(Settled::Goes) };
        loop {
            let rung = exchange.rung();
            let now = Instant::now();
            match self.due.next(true, |touch, item| exchange.fate(touch, item, now)) {
                Next::Goes(mut item, touch) => {
                    if let Some(touch) = touch {
                        self.alter(&mut item, &touch, &exchange, now);
                    }
                    if let Some(reply) = exchange.reply(&item, now) {
                        item.lost();
                        return Ok(Settled::Answered(reply));
                    }
                    if let Some(Instead::Break(broken)) = item.instead {
                        item.lost();
                        return Ok(Settled::Breaks(broken));
                    }
                    self.next = Some(Box::new(item));
                    return Ok(Settled::Goes);
                }
                Next::Lost(item) => {
                    item.lost();
                    return Ok(Settled::Lost);
                }
                Next::Nothing(None) => return Ok(Settled::Goes),
                Next::Nothing(Some(until)) => {
                    let _waiting = exchange.waiting(self.direction, &self.due);
                    let wait = async {
                        tokio::select! {
                            () = rung => {}
                            () = exchange.until(until) => {}
                        }
                    };
                    self.watching(from, input, wait).await?;
                }
            }
        }
    }

    /// Whether what faults have touched becomes what they make of it when it goes, and not when it is read: where no head says
    /// how long it is before that.
    pub(super) fn alters_late(&self) -> bool {
        self.settles || self.tap_framing == Some(Framing::Sse)
    }

    /// It goes at `now`, with what faults make of it.
    pub(super) fn alter(&self, item: &mut Item, touch: &Touch, exchange: &Exchange, now: Instant) {
        let Some(framing) = self.tap_framing else { return };
        let place = Place {
            is_in_stream: framing == Framing::Sse && !self.is_exact,
            takes_noise: false,
            takes_answer: self.takes_answer,
            has_headers: self.takes_answer,
            breaks: true,
            is_alone: true,
        };
        exchange.alter(item, touch, (framing, place), now);
    }

    /// Whether the headers are to contradict it.
    pub(in crate::http) fn contradicts(&self) -> bool {
        self.next.as_ref().is_some_and(|item| item.contradicts)
    }

    /// All of it has been read. It is complete if no fault keeps anything of it back.
    pub(super) fn complete(&mut self, at: Instant) {
        let settles = self.next.as_deref().is_some_and(Item::is_touched);
        if !self.is_lost && !settles && !self.due.has_touched() {
            self.tell(End::Complete, at);
        }
    }

    /// Writes what may go by now; says when to look again.
    pub(super) async fn write_parts<R: Source, W: AsyncWrite + Unpin>(
        &mut self,
        from: &mut R,
        to: &mut W,
        head: &mut Vec<u8>,
        queue: &Queue,
    ) -> Result<Option<Instant>, Stopped> {
        let mut look = None;
        while let Some(exchange) = self.exchange.clone().filter(|_| !self.is_lost) {
            let now = Instant::now();
            let item = match self.next.take() {
                Some(item) => *item,
                None => match self.due.next(!self.is_within, |touch, item| exchange.fate(touch, item, now)) {
                    Next::Goes(mut item, touch) => {
                        if let Some(touch) = touch.filter(|_| self.alters_late()) {
                            self.alter(&mut item, &touch, &exchange, now);
                        }
                        item
                    }
                    // In an event stream the next event follows; a body that is one message, or told its length, never arrives.
                    Next::Lost(item) => {
                        item.lost();
                        self.is_lost = !self.is_stream() || self.is_exact;
                        continue;
                    }
                    Next::Nothing(until) => {
                        look = until;
                        break;
                    }
                },
            };
            if item.instead.is_some() {
                item.lost();
                return Err(Stopped::Fault);
            }
            self.write_item(item, &exchange, from, to, head, queue).await?;
        }
        // The head of a stream says that there is one; that of a message comes with it.
        let waits = !self.due.is_empty() || self.is_lost;
        let is_end = self.is_chunked && self.decoder.is_done() && !waits;
        let [last, trailers] = if is_end { [b"0\r\n", self.trailers.as_slice()] } else { [&b""[..]; 2] };
        if !waits || self.is_stream() {
            self.pass(from, to, &mut [head.as_slice(), last, trailers].map(IoSlice::new), queue).await?;
            head.clear();
        }
        Ok(look)
    }

    async fn write_item<R: Source, W: AsyncWrite + Unpin>(
        &mut self,
        mut item: Item,
        exchange: &Exchange,
        from: &mut R,
        to: &mut W,
        head: &mut Vec<u8>,
        queue: &Queue,
    ) -> Result<(), Stopped> {
        let now = Instant::now();
        exchange.goes(&mut item, now);
        if self.decoder.is_done() {
            self.complete(now);
        }
        let mut pace = item.slow.as_ref().map(|slow| Pace::new(slow, now));
        let mut rest = item.bytes.as_slice();
        while !rest.is_empty() {
            let taken = pace.as_mut().map_or(rest.len(), |pace| pace.next(rest.len()));
            let (piece, after) = rest.split_at(taken);
            let size = if self.is_chunked { format!("{:x}\r\n", piece.len()) } else { String::new() };
            let end: &[u8] = if self.is_chunked { b"\r\n" } else { b"" };
            let mut slices = [head.as_slice(), size.as_bytes(), piece, end].map(IoSlice::new);
            self.pass(from, to, &mut slices, queue).await?;
            head.clear();
            rest = after;
            while let Some(pace) = pace.as_mut().filter(|_| !rest.is_empty()) {
                let rung = exchange.rung();
                if !exchange.keeps(pace) {
                    break;
                }
                tokio::select! {
                    () = rung => {}
                    () = exchange.until(pace.due()) => {}
                }
            }
        }
        self.is_within = !item.is_end;
        if let (Some(queued), Some(_)) = (&mut self.queued, &item.departure) {
            queued.wrote(&item.departure);
        }
        item.wrote();
        Ok(())
    }

    /// Writes the answers that are to come on this stream, if an event can come next. Returns whose those are, which may
    /// become more.
    pub(super) async fn write_mail<R: Source, W: AsyncWrite + Unpin>(
        &mut self,
        from: &R,
        to: &mut W,
        queue: &Queue,
    ) -> Result<Option<Arc<Conversation>>, Stopped> {
        let exchange = self.exchange.as_ref().filter(|_| self.direction == Direction::ToClient && !self.is_lost);
        let Some(conversation) = exchange.map(|exchange| exchange.conversation()) else { return Ok(None) };
        if !conversation.mailbox.is_open() || self.is_within || !self.is_between_events() {
            return Ok(None);
        }
        let conversation = Arc::clone(conversation);
        let events = conversation.mailbox.take();
        if !events.is_empty() {
            let size = if self.is_chunked { format!("{:x}\r\n", events.len()) } else { String::new() };
            let end = if self.is_chunked { "\r\n" } else { "" };
            let mut slices = [&*size, &*events, end].map(|part| IoSlice::new(part.as_bytes()));
            self.pass(from, to, &mut slices, queue).await?;
        }
        Ok(Some(conversation))
    }

    /// Waits for what is held, for mail, or for more. The time is when to look again, and the number how often the bell had
    /// rung when that was found.
    pub(super) async fn wait<R: Source>(
        &mut self,
        from: &mut R,
        input: &mut Input,
        (until, times_rung): (Option<Instant>, u64),
        mail: Option<Arc<Conversation>>,
        queue: &Queue,
    ) -> Result<(), Stopped> {
        let Some(exchange) = self.exchange.clone() else { return Ok(()) };
        let _waiting = exchange.waiting(self.direction, &self.due);
        let has_room = exchange.has_room(self.due.messages(), self.due.bytes());
        let reads = !self.decoder.is_done() && !self.is_lost && has_room;
        let rung = exchange.rung();
        if exchange.times_rung() != times_rung {
            return Ok(());
        }
        let look = async {
            match until {
                Some(until) => exchange.until(until).await,
                None => pending().await,
            }
        };
        let filled = async {
            match &mail {
                Some(mail) => mail.mailbox.filled().await,
                None => pending().await,
            }
        };
        let due = async {
            tokio::select! {
                () = look => {}
                () = filled => {}
            }
        };
        if reads {
            tokio::select! {
                filled = self.fill(from, input, || queue.room()) => filled,
                () = rung => Ok(()),
                () = due => Ok(()),
            }
        } else {
            let wait = async {
                tokio::select! {
                    () = rung => {}
                    () = due => {}
                }
            };
            self.watching(from, input, wait).await
        }
    }
}
