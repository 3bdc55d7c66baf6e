//! What is known of one request and its answer while their bodies pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use mcpscope_core::{Direction, ErrorType, FaultId, Outcome, RequestId, TraceContext};
use mcpscope_hooks::{Backlog, Connection, Fate, Lane, Loss, Passage, Place, Queued, Reply, Touch};
use url::Url;

use super::Shared;
use super::body::End;
use super::facts::{AnswerFacts, Kind, MAX_SESSION_BYTES, RequestFacts};
use super::sessions::Outside;
use crate::bell::{Held, Rung};
use crate::conversation::{Arrival, Begun, Conversation, Ending, Observed, Response, Travel};
use crate::framing::{Framing, Part, Seen, Tap};
use crate::inject::Splice;
use crate::item::{Item, Pace, Subject};
use crate::queue::Waiting;

/// How many responses are kept that came before their requests: as many as a client may reasonably put into one body.
const MAX_EARLY: usize = 64;

/// One request and its answer.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    conversation: Arc<Conversation>,
    /// What the request's head says.
    facts: Arc<RequestFacts>,
    membership: Membership,
    /// Whether the request's body may still begin calls.
    is_asking: AtomicBool,
    /// The fault through whose network it is led, the first of them.
    leader: OnceLock<FaultId>,
    state: Mutex<State>,
}

/// Whose conversation the exchange belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    /// A session that is followed.
    Session,
    /// None: the conversation is the connection's.
    Nameless,
}

#[derive(Default)]
struct State {
    /// The requests that this exchange began and whose answers it may still carry.
    begun: Begun,
    /// Our context in place of the one in the request's head, if it is to be propagated there.
    onward: Option<TraceContext>,
    answer: Option<Answered>,
    /// Whether the answer has a message that is too large to be looked at: that of a call that seems to have none.
    is_oversized: bool,
    /// An error in the answer that names no request, as servers answer a request they refuse to look into.
    unaddressed: Option<(Option<Box<str>>, u64)>,
    /// What came in the answer before the requests did.
    early: Vec<Response>,
    /// How the answer ended, if it did so before the request.
    over: Option<Over>,
    /// Those of `begun` that its answer broke off without, and those of which that may be so.
    lost: Vec<RequestId>,
    open: Vec<RequestId>,
    /// An event stream is a connection of its own.
    stream: Option<Connection>,
    /// The HTTP+SSE session that this stream is.
    endpoint: Option<Box<str>>,
}

/// What the head of the answer says.
#[derive(Clone, Copy, Debug)]
struct Answered {
    status: u16,
    content: Content,
}

/// An answer that has ended.
#[derive(Clone, Debug)]
struct Over {
    answered: Answered,
    end: End,
    is_oversized: bool,
    /// What it says of a request that it does not name, and in how many bytes.
    message: Option<Box<str>>,
    bytes: u64,
}

/// What the body of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Events, each a message.
    Events,
    /// One message.
    Message,
    /// A message or events in a content encoding, which are relayed without being looked at.
    Encoded,
    /// Nothing of MCP.
    Other,
}

impl Exchange {
    /// An exchange in the session that the request names, or else in the conversation of its connection.
    pub(super) fn new(shared: &Arc<Shared>, outside: &mut Outside, facts: Arc<RequestFacts>) -> Self {
        let name = facts.named.as_deref().unwrap_or(&facts.target);
        let (conversation, membership) = match shared.sessions.get(name) {
            Some(conversation) => (conversation, Membership::Session),
            None => (outside.conversation(shared), Membership::Nameless),
        };
        Self {
            conversation,
            membership,
            is_asking: AtomicBool::new(facts.is_message),
            facts,
            leader: OnceLock::new(),
            state: Mutex::default(),
            shared: Arc::clone(shared),
        }
    }

    pub(super) fn tap(&self, framing: Framing) -> Tap {
        self.shared.relay.tap(framing)
    }

    pub(super) fn holds(&self) -> bool {
        self.shared.relay.probe.holds()
    }

    pub(super) fn queued(&self, direction: Direction, messages: usize, at: Instant) -> Queued {
        self.shared.relay.probe.queued(direction, messages, at)
    }

    /// Looks at a message of either body, which may be held so that a fault can touch it.
    /// Says when it goes on, what is to be changed in it, and what it is, if a fault has touched it.
    pub(super) fn observe(
        &self,
        (seen, is_held): (Seen<'_>, bool),
        direction: Direction,
        lane: &mut Lane,
        came: Arrival,
    ) -> (Passage, Vec<Splice>, Option<Box<Subject>>) {
        let (probe, Arrival { at, since }) = (&self.shared.relay.probe, came);
        let mut observed = Observed::NOTHING;
        probe.guarded(|| match seen {
            Seen::Oversized => probe.lost(Loss::OversizedMessage, at),
            Seen::Endpoint(endpoint) => self.announce(endpoint, at),
            Seen::Message(bytes) => {
                let RequestFacts { protocol, context, ref tracestate, .. } = *self.facts;
                let tracestate = tracestate.as_deref();
                let is_early = direction == Direction::ToClient && self.is_asking.load(Ordering::Relaxed);
                let travel = Travel { direction, at, since, protocol, context, tracestate, is_early, is_held };
                observed = self.conversation.observe(bytes, travel, lane);
            }
        });
        if let Some(fault) = self.leader.get() {
            self.conversation.touched_by(*fault, direction, &observed.begun);
        }
        let mut state = self.state();
        state.is_oversized |= direction == Direction::ToClient && seen == Seen::Oversized;
        match direction {
            Direction::ToServer => {
                state.onward = observed.context;
                if state.begun.is_empty() {
                    state.begun = observed.begun;
                } else {
                    state.begun.extend(observed.begun);
                }
                if !state.early.is_empty() || state.over.is_some() {
                    drop(state);
                    probe.guarded(|| self.catch_up(at));
                }
            }
            Direction::ToClient => {
                if observed.unaddressed.is_some() {
                    state.unaddressed = observed.unaddressed;
                }
                for response in observed.early {
                    if state.early.len() < MAX_EARLY {
                        state.early.push(response);
                    } else {
                        probe.lost(Loss::UnmatchedResponse, at);
                    }
                }
            }
        }
        (observed.passage, observed.splices, observed.subject)
    }

    /// A part of either body as it waits to be written.
    pub(super) fn item(&self, part: Part<'_>, direction: Direction, at: Instant) -> (Item, Passage) {
        Item::new(part, &self.shared.relay, direction, at)
    }

    /// It goes at `now`, with what faults make of it at this place.
    pub(super) fn alter(&self, item: &mut Item, touch: &Touch, place: (Framing, Place), now: Instant) {
        item.alter(touch, &self.shared.relay, place, now);
    }

    /// What becomes at `now` of what a fault has touched.
    pub(super) fn fate(&self, touch: &Touch, item: &Item, now: Instant) -> Fate {
        item.fate(touch, &self.conversation, &self.shared.relay, now)
    }

    /// It is written next.
    pub(super) fn goes(&self, item: &mut Item, now: Instant) {
        item.goes(&self.conversation, now);
    }

    /// What its sender is answered instead, if that is so.
    pub(super) fn reply(&self, item: &Item, now: Instant) -> Option<Reply> {
        item.reply(&self.conversation, now)
    }

    /// Whether what goes slowly has to wait.
    pub(super) fn keeps(&self, pace: &mut Pace) -> bool {
        pace.waits(&self.shared.relay)
    }

    /// This waits for the faults that keep it back, as long as what is returned lives.
    pub(super) fn waiting(&self, direction: Direction, backlog: &Backlog<Item>) -> (Waiting<'_>, Held<'_>) {
        let relay = &self.shared.relay;
        (relay.queue.wait(direction, backlog.messages(), backlog.bytes()), relay.hold(backlog))
    }

    /// Whether more can wait than so many messages and bytes.
    pub(super) fn has_room(&self, messages: usize, bytes: usize) -> bool {
        let limits = &self.shared.relay.limits;
        messages < limits.queue_messages && bytes < limits.queue_bytes
    }

    /// Waits until the faults change, or what is held is not wanted any more; from now on.
    pub(super) fn rung(&self) -> Rung<'_> {
        self.shared.relay.rung()
    }

    /// How often that was so.
    pub(super) fn times_rung(&self) -> u64 {
        self.shared.relay.bell.times()
    }

    /// Waits until then, to a fraction of a millisecond.
    pub(super) async fn until(&self, due: Instant) {
        self.shared.relay.alarm.until(due).await;
    }

    /// It is led through the network of this fault, which so has its hand in all calls that it carries.
    pub(super) fn is_led_by(&self, fault: FaultId) {
        let leader = self.leader.get_or_init(|| fault);
        self.conversation.touched_by(*leader, Direction::ToServer, &self.state().begun);
    }

    /// The conversation that it is part of.
    pub(super) fn conversation(&self) -> &Arc<Conversation> {
        &self.conversation
    }

    /// Calls began behind their answer, or the end of it.
    fn catch_up(&self, at: Instant) {
        let (begun, early, over) = {
            let mut state = self.state();
            let State { begun, early, over, .. } = &mut *state;
            let early: Vec<_> =
                early.extract_if(.., |early| early.id.as_ref().is_some_and(|id| begun.contains(id))).collect();
            // Without an end they are still waited for.
            let begun = if over.is_some() { std::mem::take(begun) } else { Begun::new() };
            (begun, early, over.clone())
        };
        for response in early {
            self.conversation.was_answered(response, at);
        }
        if let Some(over) = over {
            self.end_unanswered(begun, &over, at);
        }
    }

    /// The `traceparent` header that the request goes on with instead of its own.
    pub(super) fn traceparent(&self) -> Option<String> {
        Some(mcpscope_hooks::traceparent(&self.state().onward?))
    }

    /// The stream announces where the requests of its session go.
    fn announce(&self, endpoint: &[u8], at: Instant) {
        let mut state = self.state();
        if state.endpoint.is_some() || endpoint.len() > MAX_SESSION_BYTES {
            return;
        }
        let Some(name) = std::str::from_utf8(endpoint).ok().and_then(|endpoint| self.resolve(endpoint)) else { return };
        self.conversation.name(&name);
        if self.shared.sessions.open(&name, &self.conversation) {
            state.endpoint = Some(name.into());
            self.conversation.mailbox.open();
        } else {
            self.shared.relay.probe.lost(Loss::UntrackedSession, at);
        }
    }

    /// Path and query of an endpoint, which may be relative to this request's.
    fn resolve(&self, endpoint: &str) -> Option<String> {
        if self.facts.kind != Kind::Other {
            return None;
        }
        // The origin does not matter: requests are found by path and query.
        let base = Url::parse("http://localhost").ok()?.join(&self.facts.target).ok()?;
        let url = base.join(endpoint.trim()).ok()?;
        Some(url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path())))
    }

    /// Learns from the answer's head; says how its body is looked at, if it is.
    pub(super) fn answered(&self, facts: &AnswerFacts) -> Option<Framing> {
        let AnswerFacts { status, is_json, is_stream, is_encoded, .. } = *facts;
        let content = match (is_stream, is_encoded) {
            (true, true) => Content::Encoded,
            (true, false) => Content::Events,
            // Other methods than POST are answered with events or with nothing of MCP.
            (false, true) if self.facts.kind == Kind::Post && is_json => Content::Encoded,
            (false, false) if self.facts.kind == Kind::Post && is_json => Content::Message,
            _ => Content::Other,
        };
        self.state().answer = Some(Answered { status, content });
        if is_stream {
            let now = Instant::now();
            self.state().stream = Some(self.shared.relay.probe.connection(now));
            self.conversation.stream(1, now);
        }
        self.shared.relay.probe.guarded(|| self.follow_session(facts));
        match content {
            Content::Events => Some(Framing::Sse),
            Content::Message => Some(Framing::Body),
            Content::Encoded | Content::Other => None,
        }
    }

    fn follow_session(&self, answer: &AnswerFacts) {
        let status = answer.status;
        let sessions = &self.shared.sessions;
        let open = |name: &str| {
            let opened = sessions.open(name, &self.conversation);
            if !opened {
                self.shared.relay.probe.lost(Loss::UntrackedSession, Instant::now());
            }
            opened
        };
        match &self.facts.named {
            // At the head: clients hang up right after it, and that must not look like an end of its own.
            Some(name) if self.facts.kind == Kind::Delete && is_success(status) => {
                sessions.close(name, Ending::Well, Instant::now());
            }
            Some(name) if self.membership != Membership::Session && is_success(status) => {
                // Another request may have named it first while this one was under way: one session, counted once.
                if sessions.get(name).is_none() && open(name) {
                    self.conversation.adopt(name, self.facts.protocol, Instant::now());
                }
            }
            Some(_) => {}
            None => {
                if let Some(name) = &answer.named {
                    self.conversation.name(name);
                    open(name);
                }
            }
        }
    }

    /// A body has ended, one way or another.
    pub(super) fn ended(&self, direction: Direction, end: End, now: Instant) {
        if direction == Direction::ToServer {
            self.is_asking.store(false, Ordering::Relaxed);
            return;
        }
        let State { begun, answer, is_oversized, unaddressed, early, stream, endpoint, .. } =
            std::mem::take(&mut *self.state());
        let (message, bytes) = unaddressed.unwrap_or_default();
        if stream.is_some() {
            self.conversation.stream(-1, now);
        }
        drop(stream);
        let mut lost = Vec::new();
        if let Some(endpoint) = endpoint {
            // Their answers were to come on this stream.
            lost = if end == End::Broken { self.conversation.lose_all(now) } else { lost };
            let ending = if end == End::Broken { Ending::Failed(ErrorType::ConnectionLost) } else { Ending::Well };
            self.conversation.mailbox.close();
            self.shared.sessions.close(&endpoint, ending, now);
        }
        let Some(answered) = answer else { return };
        let over = Over { answered, end, is_oversized, message, bytes };
        let (unanswered, open) = self.end_unanswered(begun, &over, now);
        lost.extend(unanswered);
        let is_asking = self.is_asking.load(Ordering::Relaxed);
        if end == End::Broken || is_asking || !early.is_empty() {
            let mut state = self.state();
            (state.lost, state.open, state.early) = (lost, open, early);
            state.over = is_asking.then_some(over);
        }
        // The server does not know the session any more.
        if let Some(name) = self.facts.named.as_deref().filter(|_| answered.status == 404) {
            self.shared.sessions.close(name, Ending::Well, now);
        }
    }

    /// Does with each of these calls, which the answer did not answer, what becomes of it. Returns those that have ended with
    /// this, and those whose answer may still come.
    fn end_unanswered(&self, begun: Begun, over: &Over, at: Instant) -> (Vec<RequestId>, Vec<RequestId>) {
        let Over { answered: Answered { status, content }, end, is_oversized, ref message, bytes } = *over;
        let (mut lost, mut open) = (Vec::new(), Vec::new());
        for id in begun {
            let ended = match self.unanswered(status, content, end) {
                // Counted as such when it passed.
                Unanswered::Pending | Unanswered::Ended(_)
                    if is_oversized && end == End::Complete && is_success(status) =>
                {
                    self.conversation.end(Direction::ToServer, &id, Outcome::Ok, 0, at)
                }
                Unanswered::Ended(Outcome::Error { kind, message: None }) => {
                    let outcome = Outcome::Error { kind, message: message.clone() };
                    self.conversation.end(Direction::ToServer, &id, outcome, bytes, at)
                }
                Unanswered::Ended(outcome) => self.conversation.end(Direction::ToServer, &id, outcome, 0, at),
                Unanswered::Forgotten => {
                    self.conversation.forget(Direction::ToServer, &id);
                    false
                }
                Unanswered::Pending => {
                    open.push(id);
                    continue;
                }
                Unanswered::Unseen => {
                    self.shared.relay.probe.lost(Loss::EncodedMessage, at);
                    self.conversation.end(Direction::ToServer, &id, Outcome::Ok, 0, at)
                }
            };
            if ended {
                lost.push(id);
            }
        }
        (lost, open)
    }

    /// What becomes of a call that this answer did not answer.
    fn unanswered(&self, status: u16, content: Content, end: End) -> Unanswered {
        let in_session = self.membership == Membership::Session || self.conversation.is_named();
        if (300..400).contains(&status) {
            return Unanswered::Forgotten;
        }
        if status >= 400 {
            return Unanswered::Ended(Outcome::error(ErrorType::HttpStatus(status)));
        }
        // The answer comes on the session's stream (HTTP+SSE), or on this one once the client resumes it.
        if in_session && (status == 202 || content == Content::Events) {
            return Unanswered::Pending;
        }
        match end {
            End::Abandoned => Unanswered::Ended(Outcome::Cancelled),
            End::Complete if content == Content::Encoded => Unanswered::Unseen,
            End::Complete | End::Broken => Unanswered::Ended(Outcome::error(ErrorType::ConnectionLost)),
        }
    }

    /// Whether the answer broke off without that to a call.
    pub(super) fn is_unanswered(&self) -> bool {
        let state = self.state();
        !state.lost.is_empty() || state.open.iter().any(|id| self.conversation.awaits(Direction::ToServer, id))
    }

    /// The calls that the answer broke off without, now that their server is gone: nobody need wait for any of them elsewhere.
    pub(super) fn give_up(&self) -> Vec<RequestId> {
        let (mut lost, open) = {
            let mut state = self.state();
            (std::mem::take(&mut state.lost), std::mem::take(&mut state.open))
        };
        let (now, outcome) = (Instant::now(), Outcome::error(ErrorType::ConnectionLost));
        let is_open = |id: &RequestId| self.conversation.end(Direction::ToServer, id, outcome.clone(), 0, now);
        lost.extend(open.into_iter().filter(is_open));
        lost
    }

    /// Ends the calls of this exchange because no answer will come, for this reason; returns their ids.
    pub(super) fn fail(&self, kind: ErrorType, reason: &str) -> Vec<RequestId> {
        let ids = self.state().begun.to_vec();
        self.end_begun(&Outcome::Error { kind, message: Some(reason.into()) });
        ids
    }

    fn end_begun(&self, outcome: &Outcome) {
        let begun = std::mem::take(&mut self.state().begun);
        if begun.is_empty() {
            return;
        }
        let now = Instant::now();
        for id in begun {
            self.conversation.end(Direction::ToServer, &id, outcome.clone(), 0, now);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a call whose exchange has ended without an answer to it.
enum Unanswered {
    /// It ended like this.
    Ended(Outcome),
    /// It will be made again elsewhere, and counts then.
    Forgotten,
    /// Its answer may still come.
    Pending,
    /// Its answer passed, in a form that is not looked at.
    Unseen,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // What is left began and saw no answer's head: the client went away.
        self.end_begun(&Outcome::Cancelled);
        for _ in &self.state.get_mut().unwrap_or_else(PoisonError::into_inner).early {
            self.shared.relay.probe.lost(Loss::UnmatchedResponse, Instant::now());
        }
        if self.membership == Membership::Nameless && !self.conversation.is_named() {
            self.conversation.end_of_use();
        }
    }
}

const fn is_success(status: u16) -> bool {
    matches!(status, 200..=299)
}
