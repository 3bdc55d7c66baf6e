//! Requests and their answers, matched by direction and id within one connection or session.

mod endings;
mod ids;
mod leading;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use mcpscope_core::{
    Call, CallEvent, CallEventKind, Component, Direction, Era, ErrorType, FaultId, Injection, Method, Outcome,
    Protocol, RequestId, TraceContext,
};
use mcpscope_hooks::{InFlight, Lane, Link, Loss, MessageKind, Passage, Session};
use smallvec::SmallVec;

use self::ids::Ids;
use crate::clients::Known;
use crate::inject::Splice;
use crate::item::{Asks, Subject};
use crate::mailbox::Mailbox;
use crate::pending::{Pending, Requests};
use crate::relay::{Place, Relay};
use crate::scan::{self, Message, Messages, Params, Progress, ScanError};

/// One stdio pair, one HTTP session, or one HTTP exchange that belongs to no session.
#[derive(Debug)]
pub(crate) struct Conversation {
    relay: Arc<Relay>,
    /// Tells clients apart that give the same name: the address they come from.
    peer: Box<str>,
    /// The session's id, once there is one.
    id: OnceLock<Arc<str>>,
    /// What it is to faults.
    link: Link,
    /// Answers that are to come on its event stream.
    pub(crate) mailbox: Mailbox,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pending: Requests,
    /// What `initialize` settled on.
    protocol: Option<Protocol>,
    /// Whether an `initialize` that succeeds opens a session here.
    has_session: bool,
    session: Option<Session>,
    /// The client of a stateless request that was answered last.
    client: Option<Known>,
    /// Event streams that are open: as long as there is one, the session is in use.
    streams: usize,
    /// When a message was last seen, or a stream closed.
    last_seen: Instant,
    /// While an experiment wants to know which are used again.
    ids: Option<Box<Ids>>,
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As it should.
    Well,
    /// By this error.
    Failed(ErrorType),
    /// Nobody used it any more: it counts as ended when it was last used.
    Left,
}

/// When something came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// When it was seen.
    pub(crate) at: Instant,
    /// Since when it waited to be: earlier if there was no server for it, else the same.
    pub(crate) since: Instant,
}

impl Arrival {
    /// Of what waited for nothing.
    pub(crate) fn now(at: Instant) -> Self {
        Self { at, since: at }
    }
}

/// How the message travels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Travel<'a> {
    pub(crate) direction: Direction,
    /// When the message was first seen.
    pub(crate) at: Instant,
    /// Since when it waited to be: that is when its call began.
    pub(crate) since: Instant,
    /// The revision that the transport names, where it does.
    pub(crate) protocol: Option<Protocol>,
    /// The trace context that the transport carries; that of the message itself wins.
    pub(crate) context: Option<TraceContext>,
    /// The `tracestate` that came with it, valid.
    pub(crate) tracestate: Option<&'a str>,
    /// Whether it may answer what was not seen yet: a response to nothing is handed back then, and not counted.
    pub(crate) is_early: bool,
    /// Whether all of it is held, so that a fault can touch it.
    pub(crate) is_held: bool,
}

impl Travel<'_> {
    /// Of a message of which the transport says nothing.
    pub(crate) fn new(direction: Direction, came: Arrival) -> Self {
        let Arrival { at, since } = came;
        Self { direction, at, since, protocol: None, context: None, tracestate: None, is_early: false, is_held: false }
    }
}

/// The ids of requests: nearly always one.
pub(crate) type Begun = SmallVec<[RequestId; 1]>;

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) id: Option<RequestId>,
    outcome: Outcome,
    protocol: Option<Protocol>,
    bytes: u64,
}

/// What was seen in some bytes.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) passage: Passage,
    /// The requests that began, to be ended if their exchange breaks off.
    pub(crate) begun: Begun,
    /// What is to be changed in the bytes.
    pub(crate) splices: Vec<Splice>,
    /// Our context in place of the one that the transport carries: where it is to be propagated, there is one request, and
    /// both are of the same trace.
    pub(crate) context: Option<TraceContext>,
    /// The message of an error that names no request, and its size in bytes.
    pub(crate) unaddressed: Option<(Option<Box<str>>, u64)>,
    /// The responses to what was not seen yet.
    pub(crate) early: Vec<Response>,
    /// What it is, if a fault has touched it.
    pub(crate) subject: Option<Box<Subject>>,
}

impl Observed {
    /// What instrumentation that failed has to say: nothing.
    pub(crate) const NOTHING: Self = Self {
        passage: Passage::Now,
        begun: Begun::new_const(),
        splices: Vec::new(),
        context: None,
        unaddressed: None,
        early: Vec::new(),
        subject: None,
    };
}

impl Conversation {
    /// A conversation in which `initialize` opens a session at once (stdio), or only after [`Conversation::name`] (HTTP).
    pub(crate) fn new(relay: Arc<Relay>, peer: &str, has_session: bool, now: Instant) -> Self {
        let pending = Requests::default();
        let state = State {
            pending,
            protocol: None,
            has_session,
            session: None,
            client: None,
            streams: 0,
            last_seen: now,
            ids: None,
        };
        let (link, mailbox) = (relay.probe.link(None), Mailbox::default());
        Self { relay, peer: peer.into(), id: OnceLock::new(), link, mailbox, state: Mutex::new(state) }
    }

    /// The conversation turns out to be this session.
    pub(crate) fn name(&self, id: &str) {
        if self.id.set(id.into()).is_ok() {
            self.link.name(id);
        }
        self.lock().has_session = true;
    }

    /// Whether the conversation is a session with a name.
    pub(crate) fn is_named(&self) -> bool {
        self.id.get().is_some()
    }

    /// The conversation is a session that was opened before mcpscope saw it.
    pub(crate) fn adopt(&self, id: &str, protocol: Option<Protocol>, at: Instant) {
        self.name(id);
        let mut state = self.lock();
        // A client without the header speaks 2025-03-26 (specification, 2025-06-18, Protocol Version Header).
        let protocol = protocol.unwrap_or(Protocol::V2025_03_26);
        state.protocol.get_or_insert(protocol);
        state.session.get_or_insert_with(|| self.relay.probe.session(protocol, None, at));
    }

    /// What is done to it as a whole, if anything is; `is_new` if it has just opened.
    pub(crate) fn broken(&self, is_new: bool, at: Instant) -> Option<Injection> {
        let probe = &self.relay.probe;
        let (standing, is_first) = probe.guarded(|| self.link.standing(is_new, at)).flatten()?;
        if is_first {
            probe.acted(std::slice::from_ref(&standing));
        }
        probe.is_live(&standing, at).then_some(standing)
    }

    /// Whether nothing was seen since `since`, and nothing is open.
    pub(crate) fn idle_since(&self, since: Instant) -> bool {
        let state = self.lock();
        state.streams == 0 && state.last_seen < since
    }

    /// An event stream of this conversation opened (1) or closed (-1).
    pub(crate) fn stream(&self, change: isize, at: Instant) {
        let mut state = self.lock();
        state.streams = state.streams.saturating_add_signed(change);
        state.seen(at);
    }

    /// Looks at one message (or batch) and says when its bytes may go on.
    pub(crate) fn observe(&self, bytes: &[u8], travel: Travel<'_>, lane: &mut Lane) -> Observed {
        self.follow(scan::read(bytes, self.relay.probe.propagates()), bytes.len(), travel, lane)
    }

    /// The same, of `size` bytes that were looked at already.
    pub(crate) fn follow(
        &self,
        mut scanned: Result<Messages, ScanError>,
        size: usize,
        travel: Travel<'_>,
        lane: &mut Lane,
    ) -> Observed {
        let mut unreadable = [Message::Invalid];
        // Where they are: they are large.
        let messages = match &mut scanned {
            Ok(messages) => messages.as_mut_slice(),
            Err(ScanError::Invalid) => &mut unreadable,
            Err(ScanError::TooMany) => {
                self.relay.probe.lost(Loss::OversizedMessage, travel.at);
                return Observed { ..Observed::NOTHING };
            }
        };
        let mut observed = Observed::NOTHING;
        let is_alone = messages.iter().filter(|message| matches!(message, Message::Request { .. })).count() == 1;
        let mut subject = Subject { is_alone: messages.len() == 1, ..Subject::default() };
        for message in messages {
            let invalid = (*message == Message::Invalid).then_some(ErrorType::InvalidMessage);
            self.relay.probe.operation(Component::Transport, invalid, travel.at);
            let passage = match message {
                Message::Invalid => Passage::Now,
                Message::Request { id, method, params } => {
                    let (call, is_only) = self.call(travel, method.clone(), id.take(), params, size);
                    match self.place(&call, is_only, travel.at) {
                        Some(place) => {
                            observed.begun.extend(call.id.clone());
                            if travel.is_held {
                                subject.asks = Some(Asks::from(&call));
                            }
                            let (passage, onward) = self.begin(call, place, params, travel, lane);
                            if let Some((context, splice)) = onward {
                                let replaces = travel.context.is_some_and(|their| their.trace_id == context.trace_id);
                                observed.context = (is_alone && replaces).then_some(context);
                                observed.splices.extend(splice);
                            }
                            passage
                        }
                        None => self.admit(travel, MessageKind::Request, Some(&call)),
                    }
                }
                Message::Notification { method, params } => {
                    let (call, _) = self.call(travel, method.clone(), None, params, size);
                    let passage = self.admit(travel, MessageKind::Notification, Some(&call));
                    subject.asks = matches!(passage, Passage::Touched(_)).then(|| Asks::from(&call));
                    if let Some(id) = &params.cancels {
                        let outcome = if params.timed_out { Outcome::Timeout } else { Outcome::Cancelled };
                        self.cancel(travel.direction, id, outcome, travel.at);
                    }
                    if let Some(progress) = params.progress.take() {
                        self.progress(travel.direction.reverse(), progress, travel.at);
                    }
                    self.relay.probe.notify(call, travel.at);
                    passage
                }
                Message::Response { id: None, outcome: Outcome::Error { message, .. }, .. } => {
                    observed.unaddressed = Some((message.take(), size as u64));
                    self.admit(travel, MessageKind::Response, None)
                }
                Message::Response { id, outcome, protocol } => {
                    let outcome = std::mem::replace(outcome, Outcome::Ok);
                    let response = Response { id: id.clone(), outcome, protocol: *protocol, bytes: size as u64 };
                    let passage = self.answer(response, travel, &mut observed.early);
                    subject.asks = Some(Asks { id: None, method: None, protocol: None });
                    subject.answers = id.take().filter(|_| matches!(passage, Passage::Touched(_)));
                    passage
                }
            };
            observed.passage = observed.passage.and(passage);
        }
        if matches!(observed.passage, Passage::Touched(_)) {
            observed.subject = Some(Box::new(subject));
        }
        observed
    }

    /// Whether a call is still to be answered.
    pub(crate) fn awaits(&self, direction: Direction, id: &RequestId) -> bool {
        self.lock().pending.contains(direction, id)
    }

    /// Takes note of how far a call made in this direction has come.
    fn progress(&self, direction: Direction, told: Progress, at: Instant) {
        let Progress { token, progress, total } = told;
        if let Some(in_flight) = self.lock().pending.by_token(direction, &token) {
            in_flight.event(CallEvent { at, kind: CallEventKind::Progress { progress, total } });
        }
    }

    /// Begins a call; says when it goes on, and, where our context is to be propagated, with which and how it is written.
    fn begin(
        &self,
        call: Call,
        place: Place,
        params: &mut Params,
        travel: Travel<'_>,
        lane: &mut Lane,
    ) -> (Passage, Option<(TraceContext, Option<Splice>)>) {
        let Some(id) = call.id.clone() else { return (Passage::Now, None) };
        // A handshake opens a session, whatever revision it asks for; only who has none is counted as a client.
        let stateless =
            call.protocol.is_some_and(|protocol| protocol.era() == Era::Modern) && call.method.as_str() != "initialize";
        let client =
            (stateless && travel.direction == Direction::ToServer).then(|| params.client.take().unwrap_or_default());
        let starts_over = call.method.as_str() == "initialize";
        let mut in_flight = self.relay.probe.begin_held_up(call, travel.since, travel.at);
        let passage =
            if travel.is_held { in_flight.admit(&self.link, travel.direction, travel.at) } else { Passage::Now };
        let onward = in_flight.forward(lane).filter(|_| self.relay.probe.propagates()).map(|context| {
            let tracestate = in_flight.call().and_then(|call| call.tracestate.as_deref());
            (context, params.slot.as_ref().map(|slot| slot.splice(&context, tracestate)))
        });
        let token = params.progress_token.clone();
        let pending = Pending { in_flight, _place: place, client, token, answered: None };
        // One that reuses an id in flight ends the call before it: nobody can tell their answers apart.
        let (is_the_clients, since) = (travel.direction == Direction::ToServer, self.relay.probe.followed_since());
        let (reused, is_repeated) = {
            let mut state = self.lock();
            let is_repeated = is_the_clients && state.asks(since, starts_over, &id);
            (state.pending.insert(travel.direction, id, pending), is_repeated)
        };
        if let Some(reused) = reused {
            self.finish(reused.in_flight, Outcome::Cancelled, 0, travel.at);
        }
        if is_repeated {
            self.relay.probe.repeated(travel.at);
        }
        (passage, onward)
    }

    fn answer(&self, response: Response, travel: Travel<'_>, early: &mut Vec<Response>) -> Passage {
        let asked = travel.direction.reverse();
        let (is_the_clients, since) = (asked == Direction::ToServer, self.relay.probe.followed_since());
        let (pending, is_duplicate) = {
            let mut state = self.lock();
            state.seen(travel.at);
            let pending = response.id.as_ref().and_then(|id| state.pending.remove(asked, id));
            let was_answered = pending.as_ref().map(|pending| pending.answered.is_some());
            (pending, is_the_clients && state.answers(since, response.id.as_ref(), was_answered))
        };
        if is_duplicate {
            self.relay.probe.duplicate(travel.at);
        }
        let Some(mut pending) = pending else {
            let passage = self.admit(travel, MessageKind::Response, None);
            if travel.is_early && response.id.is_some() {
                early.push(response);
            } else {
                self.relay.probe.lost(Loss::UnmatchedResponse, travel.at);
            }
            return passage;
        };
        let passage = if travel.is_held {
            pending.in_flight.admit(&self.link, travel.direction, travel.at)
        } else {
            Passage::Now
        };
        match (&passage, response.id.clone()) {
            (Passage::Touched(_), Some(id)) => {
                // It is not answered before whoever asked has the answer, which may be never.
                pending.answered = Some(response);
                drop(self.lock().pending.insert(asked, id, pending));
            }
            _ => self.conclude(pending, response, travel.at),
        }
        passage
    }

    /// The client's request that this response came before was seen.
    pub(crate) fn was_answered(&self, response: Response, at: Instant) {
        let pending = response.id.as_ref().and_then(|id| self.lock().pending.remove(Direction::ToServer, id));
        match pending {
            Some(pending) => self.conclude(pending, response, at),
            None => self.relay.probe.lost(Loss::UnmatchedResponse, at),
        }
    }

    /// The answer to a request made in this direction, which a fault had its hand in, reaches whoever asked.
    pub(crate) fn delivered(&self, direction: Direction, id: &RequestId, at: Instant) {
        let answered = {
            let mut state = self.lock();
            match state.pending.remove(direction, id) {
                Some(mut pending) => match pending.answered.take() {
                    Some(response) => Some((pending, response)),
                    // Another request has its id by now.
                    None => {
                        drop(state.pending.insert(direction, id.clone(), pending));
                        None
                    }
                },
                None => None,
            }
        };
        if let Some((pending, response)) = answered {
            self.conclude(pending, response, at);
        }
    }

    /// Whether a request made in this direction is in flight.
    pub(crate) fn is_pending(&self, direction: Direction, id: &RequestId) -> bool {
        self.lock().pending.contains(direction, id)
    }

    /// Ends a call with its response.
    fn conclude(&self, pending: Pending, response: Response, at: Instant) {
        let Pending { mut in_flight, client, .. } = pending;
        let Response { outcome, protocol, bytes, .. } = response;
        // The head of the answer may have opened the session, or shown that it is known.
        if let Some(call) = in_flight.call_mut().filter(|call| call.session.is_none()) {
            call.session = self.id.get().cloned();
        }
        let settled =
            matches!(outcome, Outcome::Ok | Outcome::InputRequired | Outcome::Error { kind: ErrorType::Tool, .. });
        if settled {
            self.settle(&mut in_flight, protocol, client, at);
        }
        self.finish(in_flight, outcome, bytes, at);
    }

    /// Learns from a result what it says of session and client.
    fn settle(&self, in_flight: &mut InFlight, settled: Option<Protocol>, client: Option<Box<str>>, at: Instant) {
        let started = in_flight.started();
        let Some(call) = in_flight.call_mut() else { return };
        if call.method.as_str() == "initialize" {
            let protocol = settled.or(call.protocol).unwrap_or(Protocol::Other);
            call.protocol = Some(protocol);
            self.link.saw(protocol.era());
            let mut state = self.lock();
            state.protocol = Some(protocol);
            if state.has_session {
                let new = self.relay.probe.session(protocol, Some(started), at);
                // A client that initializes again starts over.
                if let Some(before) = state.session.replace(new) {
                    before.end(None, started);
                }
            }
        }
        if let (Some(client), Some(protocol)) = (client, call.protocol) {
            self.link.saw(protocol.era());
            let client = (&*self.peer, client);
            self.relay.clients.seen(&self.relay.probe, client, protocol, &mut self.lock().client, at);
        }
    }

    /// A place among the requests in flight, which this may be the only one of; nothing, and counted, if it cannot be followed.
    fn place(&self, call: &Call, is_only: bool, at: Instant) -> Option<Place> {
        if call.id.is_none() {
            self.relay.probe.lost(Loss::UntrackedCall, at);
            return None;
        }
        if is_only { Some(Place::of_the_only_one()) } else { self.relay.place(at) }
    }

    /// The call that a request or notification is, and whether no other is in flight. Its target is taken from the parameters.
    fn call(
        &self,
        travel: Travel<'_>,
        method: Method,
        id: Option<RequestId>,
        params: &mut Params,
        bytes: usize,
    ) -> (Call, bool) {
        // Both from the same place: a `tracestate` means nothing beside the context of another.
        let own = params.traceparent.as_deref().and_then(mcpscope_hooks::trace_context);
        let (context, tracestate) = match own {
            Some(own) => (Some(own), params.tracestate.as_deref().and_then(mcpscope_hooks::tracestate)),
            None => (travel.context, travel.tracestate.map(Into::into)),
        };
        let mut state = self.lock();
        state.seen(travel.at);
        let call = Call {
            server: Arc::clone(self.relay.probe.server()),
            transport: self.relay.probe.transport(),
            direction: travel.direction,
            protocol: params.protocol.or(state.protocol).or(travel.protocol),
            method,
            id,
            target: params.target.take(),
            session: self.id.get().cloned(),
            request_bytes: bytes as u64,
            context,
            tracestate,
        };
        (call, state.pending.is_empty())
    }

    /// What faults do to a message that belongs to no call that is followed; `call` says what is known of it.
    fn admit(&self, travel: Travel<'_>, kind: MessageKind, call: Option<&Call>) -> Passage {
        if !travel.is_held || !self.relay.probe.holds() {
            return Passage::Now;
        }
        let method = call.map(|call| call.method.as_str());
        let tool = call.and_then(|call| call.target.as_deref()).filter(|_| method == Some("tools/call"));
        let protocol = call.map_or_else(|| self.lock().protocol.or(travel.protocol), |call| call.protocol);
        let message = mcpscope_hooks::Message { kind, method, tool, protocol };
        self.relay.probe.admit(&self.link, travel.direction, &message, travel.at)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside can at worst have left out one entry.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The two directions are seen by two threads, and may be seen in either order.
    fn seen(&mut self, at: Instant) {
        self.last_seen = self.last_seen.max(at);
    }

    /// The ids of the session, if there is one and somebody wants to know, from the beginning of this experiment on.
    fn ids(&mut self, since: Option<FaultId>) -> Option<&mut Ids> {
        self.ids.take_if(|ids| since != Some(ids.since()) || !self.has_session);
        let since = since.filter(|_| self.has_session)?;
        Some(self.ids.get_or_insert_with(|| Box::new(Ids::new(since))))
    }

    /// The client's request has this id; one that `starts_over` begins a session, whose ids may be those of the one before.
    /// Returns whether another request of the session had it before.
    fn asks(&mut self, since: Option<FaultId>, starts_over: bool, id: &RequestId) -> bool {
        if starts_over {
            // Over HTTP there is a session only with the answer.
            self.ids = since.map(|since| Box::new(Ids::new(since)));
            return self.ids.as_mut().is_some_and(|ids| ids.asks(id));
        }
        self.ids(since).is_some_and(|ids| ids.asks(id))
    }

    /// The client's request with this id is answered; `was_answered` says whether it was before, if it is in flight. Returns
    /// whether this is one answer too many.
    fn answers(&mut self, since: Option<FaultId>, id: Option<&RequestId>, was_answered: Option<bool>) -> bool {
        let (Some(ids), Some(id)) = (self.ids(since), id) else { return false };
        match was_answered {
            Some(was_answered) => {
                ids.answers(id);
                was_answered
            }
            None => ids.has_answered(id),
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.end_of_use();
    }
}

#[cfg(test)]
mod tests;
