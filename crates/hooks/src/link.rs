//! A connection as faults see it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use mcpscope_chaos::{Connection, Detour, Endpoint, Lane, Message};
use mcpscope_core::{Direction, Era, Injection};

/// A connection as faults see it: a stdio pair; over HTTP a session where the revision has sessions, else a client's
/// connection. What faults choose and count are these.
#[derive(Debug, Default)]
pub struct Link(Option<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    /// Asked only while a fault is active.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    connection: Connection,
    lanes: [Lane; 2],
    /// What was said last of the connection as a whole.
    standing: Option<Injection>,
}

impl State {
    fn new(endpoint: &Endpoint, session: Option<&str>) -> Self {
        let connection = endpoint.connect(session);
        let lanes = Direction::ALL.map(|direction| connection.lane(direction));
        Self { connection, lanes, standing: None }
    }
}

impl Link {
    pub(crate) fn new(endpoint: Option<&Endpoint>, session: Option<&str>) -> Self {
        let inner = |endpoint: &Endpoint| Inner {
            endpoint: endpoint.clone(),
            state: Mutex::new(State::new(endpoint, session)),
        };
        Self(endpoint.map(inner))
    }

    /// It turns out to be this session, which is another connection to faults.
    pub fn name(&self, session: &str) {
        if let Some(inner) = &self.0 {
            *inner.lock() = State::new(&inner.endpoint, Some(session));
        }
    }

    /// Its server speaks a revision of this era.
    pub fn saw(&self, era: Era) {
        if let Some(inner) = &self.0 {
            inner.endpoint.saw(era);
        }
    }

    pub(crate) fn decide(&self, direction: Direction, message: &Message<'_>, at: Instant) -> Vec<Injection> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let mut state = inner.lock();
        let lane = state.lanes.iter_mut().find(|lane| lane.direction() == direction);
        lane.map_or_else(Vec::new, |lane| lane.decide(message, at))
    }

    /// The ways through networks of faults that what it carries takes at `at`, the outermost last. None, almost always.
    #[must_use]
    pub fn detours(&self, at: Instant) -> Vec<Detour> {
        self.0.as_ref().map_or_else(Vec::new, |inner| inner.lock().connection.detours(at))
    }

    /// What is done to it as a whole at `at`, and whether that is said for the first time; nothing if nothing is. `is_new` if
    /// it has just opened. To be asked again whenever the faults have changed.
    #[must_use]
    pub fn standing(&self, is_new: bool, at: Instant) -> Option<(Injection, bool)> {
        let mut state = self.0.as_ref()?.lock();
        let said = state.connection.standing(is_new, at);
        let is_first = said.is_some();
        state.standing = said.or(state.standing.take()).filter(|standing| at < standing.ends);
        state.standing.clone().map(|standing| (standing, is_first))
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic inside can at worst have left out one message.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
