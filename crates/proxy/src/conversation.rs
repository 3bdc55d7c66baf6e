//! Requests and their answers, matched by direction and id within one connection or session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mcpscope_core::{Call, Component, Direction, Era, ErrorType, Method, Outcome, Protocol, RequestId, TraceContext};
use mcpscope_hooks::{InFlight, Lane, Loss, MessageFacts, Passage, Session};

use crate::relay::{Place, Relay};
use crate::scan::{Message, Params, ScanError, scan};

/// One stdio pair, one HTTP session, or one HTTP exchange that belongs to no session.
#[derive(Debug)]
pub(crate) struct Conversation {
    relay: Arc<Relay>,
    /// Tells clients apart that give the same name: the address they come from.
    peer: Box<str>,
    /// The session's id, once there is one.
    id: OnceLock<Arc<str>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pending: HashMap<(Direction, RequestId), Pending>,
    /// What `initialize` settled on.
    protocol: Option<Protocol>,
    /// Whether an `initialize` that succeeds opens a session here.
    has_session: bool,
    session: Option<Session>,
    /// Event streams that are open: as long as there is one, the session is in use.
    streams: usize,
    /// When a message was last seen, or a stream closed.
    last_seen: Instant,
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

#[derive(Debug)]
struct Pending {
    in_flight: InFlight,
    _place: Place,
    /// The client as it calls itself in a stateless request.
    client: Option<Box<str>>,
}

/// How the message travels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Travel {
    pub(crate) direction: Direction,
    /// When the message was first seen.
    pub(crate) at: Instant,
    /// The revision that the transport names, where it does.
    pub(crate) protocol: Option<Protocol>,
    /// The trace context that the transport carries; that of the message itself wins.
    pub(crate) context: Option<TraceContext>,
}

/// What was seen in some bytes.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) passage: Passage,
    /// The requests that began, to be ended if their exchange breaks off.
    pub(crate) begun: Vec<RequestId>,
    /// The message of an error that names no request, and its size in bytes.
    pub(crate) unaddressed: Option<(Option<Box<str>>, u64)>,
}

impl Observed {
    /// What instrumentation that failed has to say: nothing.
    pub(crate) const NOTHING: Self = Self { passage: Passage::Now, begun: Vec::new(), unaddressed: None };
}

impl Conversation {
    /// A conversation in which `initialize` opens a session at once (stdio), or only after [`Conversation::name`] (HTTP).
    pub(crate) fn new(relay: Arc<Relay>, peer: &str, has_session: bool, now: Instant) -> Self {
        let state =
            State { pending: HashMap::new(), protocol: None, has_session, session: None, streams: 0, last_seen: now };
        Self { relay, peer: peer.into(), id: OnceLock::new(), state: Mutex::new(state) }
    }

    /// The conversation turns out to be this session.
    pub(crate) fn name(&self, id: &str) {
        let _ = self.id.set(id.into());
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

    /// The session has ended, whoever still holds the conversation: what is pending will not be answered. Returns how many
    /// calls those are.
    pub(crate) fn close(&self, ending: Ending, at: Instant) -> usize {
        let (session, pending, last_seen) = {
            let mut state = self.lock();
            state.has_session = false;
            (state.session.take(), std::mem::take(&mut state.pending), state.last_seen)
        };
        if let Some(session) = session {
            match ending {
                Ending::Well => session.end(None, at),
                Ending::Failed(error) => session.end(Some(error), at),
                Ending::Left => session.end(None, last_seen),
            }
        }
        let unanswered = pending.len();
        for pending in pending.into_values() {
            pending.in_flight.finish(Outcome::Timeout, 0, at);
        }
        unanswered
    }

    /// Forgets a call that will be made again elsewhere.
    pub(crate) fn forget(&self, direction: Direction, id: &RequestId) {
        let pending = self.lock().pending.remove(&(direction, id.clone()));
        if let Some(pending) = pending {
            pending.in_flight.discard();
        }
    }

    /// Looks at one message (or batch) and says when its bytes may go on.
    pub(crate) fn observe(&self, bytes: &[u8], travel: Travel, lane: &mut Lane) -> Observed {
        let messages = match scan(bytes) {
            Ok(messages) => messages,
            Err(ScanError::Invalid) => vec![Message::Invalid],
            Err(ScanError::TooMany) => {
                self.relay.probe.lost(Loss::OversizedMessage, travel.at);
                return Observed { passage: self.admit(travel, lane, None, None, None), ..Observed::NOTHING };
            }
        };
        let mut observed = Observed::NOTHING;
        for message in messages {
            let invalid = (message == Message::Invalid).then_some(ErrorType::InvalidMessage);
            self.relay.probe.operation(Component::Transport, invalid, travel.at);
            let passage = match message {
                Message::Invalid => self.admit(travel, lane, None, None, None),
                Message::Request { id, method, params } => {
                    let call = self.call(travel, method, id.clone(), &params, bytes.len());
                    if id.is_none() {
                        self.relay.probe.lost(Loss::UntrackedCall, travel.at);
                    }
                    match id.and_then(|id| Some((id, self.relay.place(travel.at)?))) {
                        Some((id, place)) => {
                            observed.begun.push(id.clone());
                            self.begin(call, id, place, params.client.as_deref(), travel, lane)
                        }
                        None => self.admit(travel, lane, Some(&call.method), call.target.as_deref(), None),
                    }
                }
                Message::Notification { method, params } => {
                    let call = self.call(travel, method, None, &params, bytes.len());
                    let passage = self.admit(travel, lane, Some(&call.method), call.target.as_deref(), None);
                    if let Some(id) = &params.cancels {
                        let outcome = if params.timed_out { Outcome::Timeout } else { Outcome::Cancelled };
                        self.end(travel.direction, id, outcome, 0, travel.at);
                    }
                    self.relay.probe.notify(call, travel.at);
                    passage
                }
                Message::Response { id: None, outcome: Outcome::Error { message, .. }, .. } => {
                    observed.unaddressed = Some((message, bytes.len() as u64));
                    self.admit(travel, lane, None, None, None)
                }
                Message::Response { id, outcome, protocol } => {
                    self.answer(id.as_ref(), outcome, protocol, bytes.len() as u64, travel, lane)
                }
            };
            observed.passage = later(observed.passage, passage);
        }
        observed
    }

    /// Ends a call that got no answer of its own, but perhaps `bytes` bytes that tell why; one that has ended already is
    /// left alone.
    pub(crate) fn end(&self, direction: Direction, id: &RequestId, outcome: Outcome, bytes: u64, at: Instant) {
        let pending = self.lock().pending.remove(&(direction, id.clone()));
        if let Some(pending) = pending {
            pending.in_flight.finish(outcome, bytes, at);
        }
    }

    /// Ends the calls that have waited for `timeout`; a stream that is meant to stay open is none of them.
    pub(crate) fn expire(&self, timeout: Duration, now: Instant) {
        let expired = |_: &(Direction, RequestId), pending: &mut Pending| {
            let long_lived = pending.in_flight.call().is_some_and(|call| call.method.is_long_lived());
            !long_lived && now.saturating_duration_since(pending.in_flight.started()) >= timeout
        };
        let expired: Vec<_> = self.lock().pending.extract_if(expired).collect();
        for (_, pending) in expired {
            pending.in_flight.finish(Outcome::Timeout, 0, now);
        }
    }

    fn begin(
        &self,
        call: Call,
        id: RequestId,
        place: Place,
        client: Option<&str>,
        travel: Travel,
        lane: &mut Lane,
    ) -> Passage {
        let (method, target) = (call.method.clone(), call.target.clone());
        // A handshake opens a session, whatever revision it asks for; only who has none is counted as a client.
        let stateless =
            call.protocol.is_some_and(|protocol| protocol.era() == Era::Modern) && call.method.as_str() != "initialize";
        let client = (stateless && travel.direction == Direction::ToServer)
            .then(|| format!("{} {}", self.peer, client.unwrap_or_default()).into());
        let mut in_flight = self.relay.probe.begin(call, travel.at);
        let facts = self.facts(travel.direction, Some(method.as_str()), target.as_deref(), Some(&id));
        let passage = self.relay.probe.admit(&facts, Some(&mut in_flight), lane, travel.at);
        // One that reuses an id in flight ends the call before it: nobody can tell their answers apart.
        let reused = self.lock().pending.insert((travel.direction, id), Pending { in_flight, _place: place, client });
        drop(reused);
        passage
    }

    fn answer(
        &self,
        id: Option<&RequestId>,
        outcome: Outcome,
        protocol: Option<Protocol>,
        bytes: u64,
        travel: Travel,
        lane: &mut Lane,
    ) -> Passage {
        let asked = travel.direction.reverse();
        let pending = {
            let mut state = self.lock();
            state.seen(travel.at);
            id.and_then(|id| state.pending.remove(&(asked, id.clone())))
        };
        let Some(Pending { mut in_flight, client, .. }) = pending else {
            self.relay.probe.lost(Loss::UnmatchedResponse, travel.at);
            return self.admit(travel, lane, None, None, id);
        };
        let (method, target) = in_flight.call().map(|call| (call.method.clone(), call.target.clone())).unzip();
        let target = target.flatten();
        let facts = self.facts(travel.direction, method.as_ref().map(|m| m.as_str()), target.as_deref(), id);
        let passage = self.relay.probe.admit(&facts, Some(&mut in_flight), lane, travel.at);
        let settled =
            matches!(outcome, Outcome::Ok | Outcome::InputRequired | Outcome::Error { kind: ErrorType::Tool, .. });
        if settled {
            self.settle(&mut in_flight, protocol, client, travel);
        }
        in_flight.finish(outcome, bytes, travel.at);
        passage
    }

    /// Learns from a result what it says of session and client.
    fn settle(&self, in_flight: &mut InFlight, settled: Option<Protocol>, client: Option<Box<str>>, travel: Travel) {
        let started = in_flight.started();
        let Some(call) = in_flight.call_mut() else { return };
        if call.method.as_str() == "initialize" {
            let protocol = settled.or(call.protocol).unwrap_or(Protocol::Other);
            call.protocol = Some(protocol);
            let mut state = self.lock();
            state.protocol = Some(protocol);
            if state.has_session {
                let new = self.relay.probe.session(protocol, Some(started), travel.at);
                // A client that initializes again starts over.
                if let Some(before) = state.session.replace(new) {
                    before.end(None, started);
                }
            }
        }
        if let (Some(client), Some(protocol)) = (client, call.protocol) {
            self.relay.clients.seen(&self.relay.probe, client, protocol, travel.at);
        }
    }

    fn call(&self, travel: Travel, method: Method, id: Option<RequestId>, params: &Params, bytes: usize) -> Call {
        let mut state = self.lock();
        state.seen(travel.at);
        Call {
            server: Arc::clone(self.relay.probe.server()),
            transport: self.relay.probe.transport(),
            direction: travel.direction,
            protocol: params.protocol.or(state.protocol).or(travel.protocol),
            method,
            id,
            target: params.target.clone(),
            session: self.id.get().cloned(),
            request_bytes: bytes as u64,
            context: params.traceparent.as_deref().and_then(mcpscope_hooks::trace_context).or(travel.context),
            tracestate: None,
        }
    }

    /// Asks for a verdict on a message that belongs to no call.
    fn admit(
        &self,
        travel: Travel,
        lane: &mut Lane,
        method: Option<&Method>,
        target: Option<&str>,
        id: Option<&RequestId>,
    ) -> Passage {
        let facts = self.facts(travel.direction, method.map(Method::as_str), target, id);
        self.relay.probe.admit(&facts, None, lane, travel.at)
    }

    fn facts<'a>(
        &'a self,
        direction: Direction,
        method: Option<&'a str>,
        target: Option<&'a str>,
        id: Option<&'a RequestId>,
    ) -> MessageFacts<'a> {
        MessageFacts { server: self.relay.probe.server(), direction, method, target, id }
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
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.close(Ending::Well, Instant::now());
    }
}

/// A batch travels as one: as late as its latest message, and not at all if one of them is to be lost.
fn later(a: Passage, b: Passage) -> Passage {
    match (a, b) {
        (Passage::Never, _) | (_, Passage::Never) => Passage::Never,
        (Passage::At(a), Passage::At(b)) => Passage::At(a.max(b)),
        (Passage::At(at), Passage::Now) | (Passage::Now, Passage::At(at)) => Passage::At(at),
        (Passage::Now, Passage::Now) => Passage::Now,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use mcpscope_core::{ClockAnchor, Transport};
    use mcpscope_hooks::{Parts, Probe};
    use mcpscope_metrics::Metrics;

    use super::*;
    use crate::Limits;

    struct Bench {
        now: Instant,
        metrics: Metrics,
        relay: Arc<Relay>,
        conversation: Conversation,
    }

    fn bench() -> Bench {
        let now = Instant::now();
        let anchor = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH };
        let metrics = Metrics::new(&mcpscope_metrics::Config::default(), anchor);
        let probe = Probe::new(Parts { metrics: Some(metrics.clone()), ..Parts::new("s", Transport::Stdio) });
        let relay = Relay::new(probe, Limits::default());
        let conversation = Conversation::new(Arc::clone(&relay), "", true, now);
        Bench { now, metrics, relay, conversation }
    }

    impl Bench {
        fn client(&self, json: &str) -> Observed {
            self.message(Direction::ToServer, json)
        }

        fn server(&self, json: &str) -> Observed {
            self.message(Direction::ToClient, json)
        }

        fn message(&self, direction: Direction, json: &str) -> Observed {
            let travel = Travel { direction, at: self.now, protocol: None, context: None };
            self.conversation.observe(json.as_bytes(), travel, &mut Lane::default())
        }

        #[track_caller]
        fn has(&self, line: &str) {
            let text = self.metrics.snapshot(self.now).to_prometheus();
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }

        #[track_caller]
        fn has_calls(&self, tool: &str, outcome: &str, count: u64) {
            self.has(&format!("mcpscope_tool_call_duration_seconds_count{{server=\"s\",tool=\"{tool}\",outcome=\"{outcome}\",injected=\"false\"}} {count}"));
        }
    }

    #[test]
    fn a_handshake_opens_a_session_that_lasts_as_long_as_the_pair() {
        let bench = bench();
        bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
        bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-06-18"}}"#);
        bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-06-18\"} 1");
        bench.has("mcpscope_session_creation_seconds_count{server=\"s\",protocol=\"2025-06-18\"} 1");
        let Bench { now, metrics, conversation, .. } = bench;
        drop(conversation);
        let text = metrics.snapshot(now).to_prometheus();
        assert!(text.contains("mcpscope_active_sessions{server=\"s\",protocol=\"2025-06-18\"} 0"));
    }

    #[test]
    fn answers_find_their_requests_by_direction_and_id() {
        let bench = bench();
        bench.client(r#"{"id":1,"method":"tools/call","params":{"name":"a"}}"#);
        bench.client(r#"{"id":"1","method":"tools/call","params":{"name":"b"}}"#);
        bench.server(r#"{"id":1,"method":"sampling/createMessage"}"#);
        bench.server(r#"{"id":"1","result":{"isError":true}}"#);
        bench.client(r#"{"id":1,"result":{}}"#);
        bench.server(r#"{"id":1,"result":{}}"#);
        bench.has_calls("a", "ok", 1);
        bench.has_calls("b", "error", 1);
        bench.server(r#"{"id":1,"result":{}}"#);
        bench.has("mcpscope_dropped_total{what=\"unmatched_response\"} 1");
        bench.has("mcpscope_component_operations_total{component=\"transport\",injected=\"false\"} 7");
    }

    #[test]
    fn a_batch_counts_message_by_message() {
        let bench = bench();
        let observed = bench.client(r#"[{"id":1,"method":"tools/call","params":{"name":"a"}},{"id":2,"method":"tools/call","params":{"name":"a"}}]"#);
        assert_eq!(observed.begun, [RequestId::Integer(1), RequestId::Integer(2)]);
        bench.server(r#"[{"id":2,"result":{}},{"id":1,"error":{"code":-32603,"message":"x"}}]"#);
        bench.has_calls("a", "ok", 1);
        bench.has_calls("a", "error", 1);
    }

    #[test]
    fn calls_end_by_cancellation_timeout_and_the_end_of_the_pair() {
        let bench = bench();
        for (id, tool) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
            bench.client(&format!(r#"{{"id":{id},"method":"tools/call","params":{{"name":"{tool}"}}}}"#));
        }
        bench.client(r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#);
        bench.client(r#"{"method":"notifications/cancelled","params":{"requestId":2,"reason":"timed out"}}"#);
        bench.has_calls("a", "cancelled", 1);
        bench.has_calls("b", "timeout", 1);
        bench.client(r#"{"id":9,"method":"subscriptions/listen"}"#);
        bench.conversation.end(
            Direction::ToServer,
            &RequestId::Integer(3),
            Outcome::error(ErrorType::ConnectionLost),
            0,
            bench.now,
        );
        bench.conversation.end(Direction::ToServer, &RequestId::Integer(3), Outcome::Cancelled, 0, bench.now);
        bench.has_calls("c", "error", 1);
        bench.conversation.expire(Duration::from_secs(300), bench.now + Duration::from_secs(300));
        bench.has_calls("d", "timeout", 1);
        bench.has("mcpscope_component_operations_total{component=\"json_rpc\",injected=\"false\"} 4");
    }

    #[test]
    fn stateless_clients_are_counted_once_they_are_answered_and_for_five_minutes() {
        let bench = bench();
        let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"}}"#;
        bench.client(&format!(r#"{{"id":1,"method":"server/discover","params":{{{meta}}}}}"#));
        bench.server(r#"{"id":1,"error":{"code":-32601,"message":"no such method"}}"#);
        bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 0");
        for id in 2..5 {
            bench.client(&format!(r#"{{"id":{id},"method":"server/discover","params":{{{meta}}}}}"#));
            bench.server(&format!(r#"{{"id":{id},"result":{{}}}}"#));
        }
        bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 1");
        bench.has("mcpscope_session_creation_seconds_count{server=\"s\",protocol=\"2026-07-28\"} 3");
        bench.relay.clients.expire(bench.now + Duration::from_secs(299));
        bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 1");
        bench.relay.clients.expire(bench.now + Duration::from_secs(300));
        bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2026-07-28\"} 0");
    }

    #[test]
    fn a_handshake_for_an_unknown_revision_is_one_session() {
        let bench = bench();
        bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2031-01-01"}}"#);
        bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-11-25"}}"#);
        bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-11-25\"} 1");
    }

    #[test]
    fn a_closed_session_is_over_whoever_still_holds_it() {
        let bench = bench();
        bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
        bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-11-25"}}"#);
        bench.client(r#"{"id":1,"method":"tools/call","params":{"name":"a"}}"#);
        bench.conversation.close(Ending::Well, bench.now);
        bench.has("mcpscope_active_sessions{server=\"s\",protocol=\"2025-11-25\"} 0");
        bench.has_calls("a", "timeout", 1);
    }

    #[test]
    fn a_session_that_was_left_has_lasted_until_it_was_last_used() {
        let bench = bench();
        bench.client(r#"{"id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#);
        bench.server(r#"{"id":0,"result":{"protocolVersion":"2025-11-25"}}"#);
        let at = bench.now + Duration::from_secs(10);
        let travel = Travel { direction: Direction::ToServer, at, protocol: None, context: None };
        bench.conversation.observe(br#"{"id":5,"result":{}}"#, travel, &mut Lane::default());
        bench.conversation.close(Ending::Left, bench.now + Duration::from_secs(1800));
        let text = bench.metrics.snapshot(bench.now).to_prometheus();
        let sum = text.lines().find_map(|line| {
            line.strip_prefix(
                "mcp_server_session_duration_seconds_sum{server=\"s\",mcp_protocol_version=\"2025-11-25\"",
            )
        });
        assert!(sum.unwrap().contains("} 10"), "{sum:?}");
    }

    #[test]
    fn a_session_with_an_open_stream_is_not_idle() {
        let Bench { now, conversation, .. } = bench();
        let later = now + Duration::from_secs(1);
        assert!(conversation.idle_since(later));
        conversation.stream(1, now);
        assert!(!conversation.idle_since(later));
        conversation.stream(-1, now);
        assert!(conversation.idle_since(later));
    }

    #[test]
    fn a_flood_of_requests_is_followed_up_to_a_bound() {
        let bench = bench();
        let batch = |from: usize| {
            let requests: Vec<_> = (from..from + 1000).map(|id| format!(r#"{{"id":{id},"method":"ping"}}"#)).collect();
            format!("[{}]", requests.join(","))
        };
        for at in 0..20 {
            bench.client(&batch(at * 1000));
        }
        bench.has("mcpscope_dropped_total{what=\"untracked_call\"} 3616");
        bench.conversation.close(Ending::Well, bench.now);
        assert_eq!(bench.client(&batch(0)).begun.len(), 1000, "places are free again");
    }

    #[test]
    fn what_cannot_be_followed_is_counted_and_passes() {
        let bench = bench();
        assert_eq!(bench.client("garbage").passage, Passage::Now);
        bench.client(r#"{"id":null,"method":"ping"}"#);
        bench.has("mcpscope_component_errors_total{component=\"transport\",error_type=\"invalid_message\",injected=\"false\"} 1");
        bench.has("mcpscope_dropped_total{what=\"untracked_call\"} 1");
    }
}
