//! One component: what its owner says of it, and what was seen of it.

use std::time::SystemTime;

use crate::report::{ComponentReport, State};

/// What was seen of a component from outside, as opposed to what its owner says.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// How it looks.
    pub state: State,
    /// What there is to say about it.
    pub message: String,
    /// Operations per second, if known.
    pub rate: Option<f64>,
    /// How many there are of what the component keeps, such as sessions; if known.
    pub count: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Component {
    said: Option<(State, String)>,
    seen: Option<Observation>,
    /// When the worse of both states last changed.
    since: SystemTime,
}

impl Component {
    /// One of which nothing is known yet, which comes into being at `at`.
    pub(crate) const fn new(at: SystemTime) -> Self {
        Self { said: None, seen: None, since: at }
    }

    pub(crate) fn say(&mut self, state: State, message: String, at: SystemTime) {
        let before = self.state();
        self.said = Some((state, message));
        self.changed(before, at);
    }

    pub(crate) fn see(&mut self, observation: Observation, at: SystemTime) {
        let before = self.state();
        self.seen = Some(observation);
        self.changed(before, at);
    }

    pub(crate) fn report(&self) -> ComponentReport {
        let said = self.said.as_ref().map(|(state, message)| (*state, message));
        let seen = self.seen.as_ref().map(|seen| (seen.state, &seen.message));
        // Of equals the last one wins: what was seen says more.
        let worse = said.into_iter().chain(seen).max_by_key(|(state, _)| *state);
        let (state, message) =
            worse.map_or((State::Healthy, String::new()), |(state, message)| (state, message.clone()));
        let (rate, count) = self.seen.as_ref().map_or((None, None), |seen| (seen.rate, seen.count));
        ComponentReport { state, message, since: self.since, rate, count }
    }

    /// The state as it is reported.
    pub(crate) fn known_state(&self) -> State {
        self.state().unwrap_or(State::Healthy)
    }

    /// The worse of both; nothing before the first word.
    fn state(&self) -> Option<State> {
        let said = self.said.as_ref().map(|(state, _)| *state);
        said.max(self.seen.as_ref().map(|seen| seen.state))
    }

    fn changed(&mut self, before: Option<State>, at: SystemTime) {
        if self.state() != before {
            self.since = at;
        }
    }
}
