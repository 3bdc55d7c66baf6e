//! What a supervised server still owes its client, and what a new one has to be told first.
//!
//! Kept apart from what is observed: whether a restart works must not depend on metrics and traces.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mcpscope_core::{Direction, Outcome, RequestId};
use serde_json::Value;

use crate::relay::MAX_PENDING;
use crate::scan::Message;

/// The requests of both sides that have no answer yet, and the handshake of the session.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The client's, by when they came.
    unanswered: HashMap<RequestId, u64>,
    next: u64,
    /// The server's own.
    asked: HashSet<RequestId>,
    /// Those of servers that are gone, whose answers no other server may get: it may have used the id again.
    orphaned: HashMap<RequestId, usize>,
    greeting: Option<Greeting>,
    /// The answer to a replayed greeting is still to come.
    replaying: bool,
}

/// How the client began its session, for the revisions that have an `initialize`.
#[derive(Debug)]
struct Greeting {
    id: RequestId,
    /// The request as it came.
    initialize: Vec<u8>,
    /// The notification as it came, once it did.
    initialized: Option<Vec<u8>>,
    /// Once a server has answered.
    terms: Option<Terms>,
}

/// What a server's answer to `initialize` says that a client relies on for the whole session.
#[derive(Debug, PartialEq)]
struct Terms {
    protocol: Value,
    capabilities: Value,
}

impl Terms {
    fn read(answer: &[u8]) -> Self {
        let mut answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let mut take = |name: &str| answer.pointer_mut(name).map(Value::take).unwrap_or_default();
        Self { protocol: take("/result/protocolVersion"), capabilities: take("/result/capabilities") }
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It goes on.
    Passes,
    /// It is not for the other side: the answer to a request of a server that is gone.
    Orphan,
    /// It is not for the other side: the answer to the replayed greeting. Now the session can go on.
    Greeted,
}

/// What a new server is told before anything else.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Replay {
    /// Nothing: the session has none, or has not begun.
    Nothing,
    /// The `initialize` that no server has answered yet; its answer is for the client.
    Unanswered(Vec<u8>),
    /// The `initialize` that the client has the answer to; what it sends waits for another.
    Answered(Vec<u8>),
}

impl Ledger {
    /// Takes note of what passes this way: the messages that were found in `bytes`, one or a batch.
    pub(super) fn note(&self, direction: Direction, bytes: &[u8], messages: &[Message]) -> Noted {
        let mut state = self.lock();
        let alone = messages.len() == 1;
        let mut noted = Noted::Passes;
        for message in messages {
            match direction {
                Direction::ToServer if state.sent(message, bytes, alone) => noted = Noted::Orphan,
                Direction::ToClient if state.received(message, bytes) => noted = Noted::Greeted,
                _ => {}
            }
        }
        // Of a batch no part can be taken out.
        if alone { noted } else { Noted::Passes }
    }

    /// A message towards the client is too large to look at. Returns whether it is taken for the answer to the replayed
    /// greeting, which cannot be waited for any longer.
    pub(super) fn overlooked(&self, direction: Direction) -> bool {
        direction == Direction::ToClient && std::mem::take(&mut self.lock().replaying)
    }

    /// Whether messages this way must be complete before they go on, because one of them may have to be left out.
    pub(super) fn holds(&self, direction: Direction) -> bool {
        let state = self.lock();
        match direction {
            Direction::ToServer => !state.orphaned.is_empty(),
            Direction::ToClient => state.replaying,
        }
    }

    /// The id of the `initialize` that no server has answered yet.
    pub(super) fn unanswered_greeting(&self) -> Option<RequestId> {
        self.lock().unanswered_greeting()
    }

    /// The server is gone. Returns the client's requests that it did not answer, in the order in which they came; but for
    /// `initialize` if another server is to answer it.
    pub(super) fn server_lost(&self, is_last: bool) -> Vec<RequestId> {
        let mut state = self.lock();
        let spared = state.unanswered_greeting().filter(|_| !is_last);
        let mut lost = std::mem::take(&mut state.unanswered);
        if let Some((id, at)) = spared.and_then(|id| lost.remove_entry(&id)) {
            state.unanswered.insert(id, at);
        }
        for id in std::mem::take(&mut state.asked) {
            *state.orphaned.entry(id).or_default() += 1;
        }
        state.replaying = false;
        let mut lost: Vec<_> = lost.into_iter().collect();
        lost.sort_unstable_by_key(|(_, at)| *at);
        lost.into_iter().map(|(id, _)| id).collect()
    }

    /// What the next server is told first. From here on the answer to it is awaited.
    pub(super) fn replay(&self) -> Replay {
        let mut state = self.lock();
        let Some(greeting) = &state.greeting else { return Replay::Nothing };
        let initialize = [greeting.initialize.as_slice(), b"\n"].concat();
        if greeting.terms.is_none() {
            return Replay::Unanswered(initialize);
        }
        state.replaying = true;
        Replay::Answered(initialize)
    }

    /// What a server is told once it has answered the replayed greeting: what the client said then, if it did.
    pub(super) fn confirmation(&self) -> Option<Vec<u8>> {
        let state = self.lock();
        let initialized = state.greeting.as_ref()?.initialized.as_deref()?;
        Some([initialized, b"\n"].concat())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside can at worst have left out one entry.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn unanswered_greeting(&self) -> Option<RequestId> {
        let greeting = self.greeting.as_ref()?;
        (greeting.terms.is_none() && self.unanswered.contains_key(&greeting.id)).then(|| greeting.id.clone())
    }

    /// Notes what the client sends. Returns whether it is an answer to a server that is gone.
    fn sent(&mut self, message: &Message, bytes: &[u8], alone: bool) -> bool {
        match message {
            Message::Request { id: Some(id), method, .. } => {
                if alone && method.as_str() == "initialize" {
                    let initialize = bytes.to_vec();
                    self.greeting = Some(Greeting { id: id.clone(), initialize, initialized: None, terms: None });
                }
                if self.unanswered.len() < MAX_PENDING {
                    self.unanswered.insert(id.clone(), self.next);
                    self.next += 1;
                }
                false
            }
            Message::Notification { method, params } => {
                if let Some(id) = &params.cancels {
                    self.unanswered.remove(id);
                }
                if let Some(greeting) =
                    self.greeting.as_mut().filter(|_| alone && method.as_str() == "notifications/initialized")
                {
                    greeting.initialized = Some(bytes.to_vec());
                }
                false
            }
            Message::Response { id: Some(id), .. } => {
                if let Some(times) = self.orphaned.get_mut(id).filter(|_| alone) {
                    *times -= 1;
                    if *times == 0 {
                        self.orphaned.remove(id);
                    }
                    return true;
                }
                self.asked.remove(id);
                false
            }
            _ => false,
        }
    }

    /// Notes what the server sends. Returns whether it is the answer to the replayed greeting.
    fn received(&mut self, message: &Message, bytes: &[u8]) -> bool {
        match message {
            Message::Request { id: Some(id), .. } => {
                // A bound against servers that ask and never wait.
                if self.asked.len() + self.orphaned.len() < MAX_PENDING {
                    self.asked.insert(id.clone());
                }
                false
            }
            Message::Notification { params, .. } => {
                if let Some(id) = &params.cancels {
                    self.asked.remove(id);
                }
                false
            }
            Message::Response { id: Some(id), outcome, .. } => {
                self.unanswered.remove(id);
                let Some(greeting) = self.greeting.as_mut().filter(|greeting| greeting.id == *id) else {
                    return false;
                };
                if self.replaying {
                    self.replaying = false;
                    greeting.compare(outcome, bytes);
                    return true;
                }
                match outcome {
                    Outcome::Ok => greeting.terms = Some(Terms::read(bytes)),
                    // There is no session, or not yet.
                    _ => self.greeting = None,
                }
                false
            }
            _ => false,
        }
    }
}

impl Greeting {
    /// Says so if a new server does not greet as the one did that the client knows.
    fn compare(&self, outcome: &Outcome, answer: &[u8]) {
        if *outcome != Outcome::Ok {
            tracing::warn!(?outcome, "the restarted server refuses the session that the client has");
            return;
        }
        let (before, now) = (self.terms.as_ref(), Terms::read(answer));
        if before.is_some_and(|before| before.protocol != now.protocol) {
            tracing::warn!(protocol = %now.protocol, "the restarted server speaks another protocol version than before");
        }
        if before.is_some_and(|before| before.capabilities != now.capabilities) {
            tracing::warn!("the restarted server has other capabilities than before; the client is not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::scan;
    use Direction::{ToClient, ToServer};

    const INITIALIZE: &str =
        r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
    const RESULT: &str = r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{}}}"#;
    const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

    fn note(ledger: &Ledger, direction: Direction, message: &str) -> Noted {
        ledger.note(direction, message.as_bytes(), &scan(message.as_bytes()).unwrap_or_default())
    }

    fn request(ledger: &Ledger, id: &str) {
        assert_eq!(note(ledger, ToServer, &format!(r#"{{"id":{id},"method":"ping"}}"#)), Noted::Passes);
    }

    fn answer(id: &str) -> String {
        format!(r#"{{"id":{id},"result":{{}}}}"#)
    }

    #[test]
    fn what_is_unanswered_is_told_in_its_order() {
        let ledger = Ledger::default();
        for id in ["3", "\"a\"", "1", "2", "4"] {
            request(&ledger, id);
        }
        note(&ledger, ToClient, &answer("1"));
        note(&ledger, ToServer, r#"{"method":"notifications/cancelled","params":{"requestId":4}}"#);
        let ids = [RequestId::Integer(3), RequestId::Text("a".into()), RequestId::Integer(2)];
        assert_eq!(ledger.server_lost(false), ids);
        assert_eq!(ledger.server_lost(true), [], "once");
    }

    #[test]
    fn requests_and_answers_in_a_batch_count_each() {
        let ledger = Ledger::default();
        note(&ledger, ToServer, r#"[{"id":1,"method":"ping"},{"id":2,"method":"ping"},{"method":"x"}]"#);
        note(&ledger, ToClient, r#"[{"id":2,"result":{}}]"#);
        assert_eq!(ledger.server_lost(true), [RequestId::Integer(1)]);
    }

    #[test]
    fn a_greeting_without_an_answer_is_for_the_next_server() {
        let ledger = Ledger::default();
        assert_eq!(ledger.replay(), Replay::Nothing);
        note(&ledger, ToServer, INITIALIZE);
        request(&ledger, "1");
        assert_eq!(ledger.unanswered_greeting(), Some(RequestId::Integer(0)));
        assert_eq!(ledger.server_lost(false), [RequestId::Integer(1)]);
        assert_eq!(ledger.replay(), Replay::Unanswered(format!("{INITIALIZE}\n").into()));
        assert!(!ledger.holds(ToClient), "its answer is for the client");
        assert_eq!(note(&ledger, ToClient, RESULT), Noted::Passes);
        assert_eq!(ledger.server_lost(true), []);
    }

    #[test]
    fn a_greeting_is_replayed_and_its_answer_swallowed() {
        let ledger = Ledger::default();
        note(&ledger, ToServer, INITIALIZE);
        assert_eq!(note(&ledger, ToClient, RESULT), Noted::Passes);
        for _ in 0..2 {
            assert_eq!(ledger.server_lost(false), []);
            assert_eq!(ledger.replay(), Replay::Answered(format!("{INITIALIZE}\n").into()));
            assert!(ledger.holds(ToClient));
            assert_eq!(note(&ledger, ToClient, r#"{"method":"notifications/message"}"#), Noted::Passes);
            assert_eq!(note(&ledger, ToClient, RESULT), Noted::Greeted);
            assert!(!ledger.holds(ToClient));
        }
        assert_eq!(ledger.confirmation(), None, "the client has not said it yet");
        note(&ledger, ToServer, INITIALIZED);
        assert_eq!(ledger.confirmation(), Some(format!("{INITIALIZED}\n").into()));
    }

    #[test]
    fn a_refused_greeting_begins_no_session() {
        let ledger = Ledger::default();
        note(&ledger, ToServer, INITIALIZE);
        note(&ledger, ToClient, r#"{"id":0,"error":{"code":-32602,"message":"Unsupported protocol version"}}"#);
        assert_eq!(ledger.replay(), Replay::Nothing);
    }

    #[test]
    fn an_answer_to_a_server_that_is_gone_reaches_no_other() {
        let ledger = Ledger::default();
        let ask = |id: &str| note(&ledger, ToClient, &format!(r#"{{"id":{id},"method":"roots/list"}}"#));
        ask("1");
        ask("2");
        assert_eq!(note(&ledger, ToServer, &answer("2")), Noted::Passes);
        ledger.server_lost(false);
        assert!(ledger.holds(ToServer));
        ask("1");
        assert_eq!(note(&ledger, ToServer, &answer("1")), Noted::Orphan, "the first is for the first");
        assert!(!ledger.holds(ToServer));
        assert_eq!(note(&ledger, ToServer, &answer("1")), Noted::Passes);
    }
}
