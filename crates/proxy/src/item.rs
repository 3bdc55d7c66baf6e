//! What waits to be written, as faults have it.

use std::time::{Duration, Instant};

use mcpscope_core::{Call, Change, Direction, Effect, Injection, Method, Protocol, RequestId};
use mcpscope_hooks::{Altered, Asked, Departure, Fate, Instead, Passage, Place, Queued, Reply, Touch};

use crate::conversation::Conversation;
use crate::framing::{Framing, Part, Share, message_of};
use crate::relay::Relay;

/// What a touched message is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    /// What an answer to it depends on, if it can have one and is alone.
    pub(crate) asks: Option<Asks>,
    /// The id of the request that it answers, if it is that alone.
    pub(crate) answers: Option<RequestId>,
    /// Whether it is one message and no batch.
    pub(crate) is_alone: bool,
}

/// What can be answered: a request that is followed; by the status of what it was posted with, any other message.
#[derive(Clone, Debug)]
pub(crate) struct Asks {
    /// That of a request.
    pub(crate) id: Option<RequestId>,
    pub(crate) method: Option<Method>,
    pub(crate) protocol: Option<Protocol>,
}

impl From<&Call> for Asks {
    fn from(call: &Call) -> Self {
        Self { id: call.id.clone(), method: Some(call.method.clone()), protocol: call.protocol }
    }
}

/// Bytes that wait to be written, one frame or a part of one.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) bytes: Vec<u8>,
    /// Whether a frame ends with them.
    pub(crate) is_end: bool,
    pub(crate) departure: Option<Departure>,
    /// What happens instead of their being written.
    pub(crate) instead: Option<Instead>,
    /// How slowly they are written.
    pub(crate) slow: Option<Injection>,
    /// Whether the headers that go with them are to contradict them.
    pub(crate) contradicts: bool,
    subject: Option<Box<Subject>>,
    direction: Direction,
    queued: Option<Queued>,
    _share: Option<Share>,
}

impl Item {
    /// A part that travels this way and was complete at `at`, as it came.
    pub(crate) fn new(part: Part<'_>, relay: &Relay, direction: Direction, at: Instant) -> (Self, Passage) {
        let Part { bytes, passage, departure, share, subject, is_end } = part;
        let mut item = Self {
            bytes: bytes.into_owned(),
            is_end,
            departure,
            instead: None,
            slow: None,
            contradicts: false,
            subject,
            direction,
            queued: None,
            _share: share,
        };
        if let Passage::Touched(touch) = &passage {
            relay.probe.acted(touch.waits());
            let queued = relay.probe.queued(direction, 1, at);
            queued.wait(&item.departure);
            item.queued = Some(queued);
        }
        (item, passage)
    }

    /// It goes at `now`: with what is made of it at this place by those of the faults which have touched it that are not over.
    /// Not before, so that what waits is no larger than what came, and the end of a fault is the end of what it does.
    pub(crate) fn alter(&mut self, touch: &Touch, relay: &Relay, (framing, place): (Framing, Place), now: Instant) {
        let frame = std::mem::take(&mut self.bytes);
        let message = message_of(framing, &frame);
        let is_alone = self.subject.as_ref().is_some_and(|subject| subject.is_alone);
        let asks = self.subject.as_ref().is_some_and(|subject| subject.asks.is_some());
        let place = Place { is_alone, takes_answer: place.takes_answer && asks, ..place };
        let altered = touch.alter(&message, place, |injection| relay.probe.is_live(injection, now));
        relay.probe.acted(&altered.acted);
        let Altered { message: now, noise, is_doubled, contradicts, instead, acted, .. } = &altered;
        let framed = (**now != *message).then(|| framing.framed(&frame, now));
        let (noise, is_doubled) = (*noise, *is_doubled);
        (self.contradicts, self.instead) = (*contradicts, instead.clone());
        self.slow = acted.iter().rev().find(|injection| matches!(injection.effect, Effect::Slow { .. })).cloned();
        // Whoever waits for the answer does not recognise it: the call goes on until he gives up.
        let is_lost = |injection: &Injection| {
            use Change::{MalformedJson, Truncate, WrongId};
            matches!(injection.effect, Effect::Change(WrongId | MalformedJson | Truncate { .. }))
        };
        if acted.iter().any(is_lost)
            && let Some(subject) = &mut self.subject
        {
            subject.answers = None;
        }
        self.bytes = framed.unwrap_or(frame);
        if is_doubled {
            self.bytes.extend_from_within(..);
        }
        if let Some(noise) = noise {
            self.bytes = [noise, b"\n".as_slice(), self.bytes.as_slice()].concat();
        }
    }

    /// What becomes of it at `now`.
    pub(crate) fn fate(&self, touch: &Touch, conversation: &Conversation, relay: &Relay, now: Instant) -> Fate {
        relay.probe.fate(touch, now, || self.is_cancelled(conversation))
    }

    /// Whether the call that it answers was given up.
    fn is_cancelled(&self, conversation: &Conversation) -> bool {
        let answers = self.subject.as_ref().and_then(|subject| subject.answers.as_ref());
        answers.is_some_and(|id| !conversation.is_pending(self.direction.reverse(), id))
    }

    /// Whether a fault has touched it.
    pub(crate) fn is_touched(&self) -> bool {
        self.queued.is_some()
    }

    /// It is written next, or what is in its place happens.
    pub(crate) fn goes(&mut self, conversation: &Conversation, now: Instant) {
        if let Some(queued) = &mut self.queued {
            queued.held_until(now);
        }
        if let Some(id) = self.subject.as_ref().and_then(|subject| subject.answers.as_ref()) {
            conversation.delivered(self.direction.reverse(), id, now);
        }
    }

    /// It was written.
    pub(crate) fn wrote(mut self) {
        match &mut self.queued {
            Some(queued) => queued.wrote(&self.departure),
            None => self.departure.iter().for_each(|departure| departure.sent(Instant::now())),
        }
    }

    /// It is lost, or something else happened in its place.
    pub(crate) fn lost(self) {
        if let Some(queued) = self.queued {
            queued.lost();
        }
    }

    /// The answer that its sender gets instead, if that is what happens. The call ends with it.
    pub(crate) fn reply(&self, conversation: &Conversation, now: Instant) -> Option<Reply> {
        let Some(Instead::Answer(answer)) = &self.instead else { return None };
        let Asks { id, method, protocol } = self.subject.as_ref()?.asks.as_ref()?;
        let (id, method) = (id.as_ref(), method.as_ref().map(Method::as_str));
        let reply = Reply::new(answer, Asked { id, method, protocol: *protocol, message: &self.bytes });
        if let Some(id) = id {
            let bytes = reply.body.to_string().len() as u64;
            conversation.end(self.direction, id, reply.outcome.clone(), bytes, now);
        }
        Some(reply)
    }
}

/// How fast bytes go on that are to go slowly.
#[derive(Debug)]
pub(crate) struct Pace {
    slow: Injection,
    bytes_per_second: f64,
    began: Instant,
    /// Bytes that have gone.
    gone: usize,
    hurries: bool,
}

impl Pace {
    /// How often something is written, if there is a byte for it.
    const TURNS_PER_SECOND: f64 = 50.0;

    pub(crate) fn new(slow: &Injection, now: Instant) -> Self {
        let bytes_per_second = match slow.effect {
            Effect::Slow { bytes_per_second } => f64::from(bytes_per_second.max(1)),
            _ => f64::from(u32::MAX),
        };
        Self { slow: slow.clone(), bytes_per_second, began: now, gone: 0, hurries: false }
    }

    /// How many of the bytes that are left go next.
    pub(crate) fn next(&mut self, left: usize) -> usize {
        let turn = (self.bytes_per_second / Self::TURNS_PER_SECOND).max(1.0) as usize;
        let next = if self.hurries { left } else { turn.min(left) };
        self.gone += next;
        next
    }

    /// Whether the next ones have to wait. Once the fault is over all the rest goes.
    pub(crate) fn waits(&mut self, relay: &Relay) -> bool {
        let now = Instant::now();
        self.hurries |= !relay.probe.is_live(&self.slow, now);
        !self.hurries && now < self.due()
    }

    /// When the next ones go, at the latest.
    pub(crate) fn due(&self) -> Instant {
        (self.began + Duration::from_secs_f64(self.gone as f64 / self.bytes_per_second)).min(self.slow.ends)
    }

    /// The rest goes at once.
    pub(crate) fn hurry(&mut self) {
        self.hurries = true;
    }
}
