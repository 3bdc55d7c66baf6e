//! The requests in flight of one conversation, by direction and id, and by the token of their progress.

use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use hashbrown::{Equivalent, HashMap};
use mcpscope_core::{Direction, RequestId};
use mcpscope_hooks::InFlight;

use crate::conversation::Response;
use crate::relay::Place;

type Key = (Direction, RequestId);

/// A [`Key`] to look for.
#[derive(Hash)]
struct Wanted<'a>(Direction, &'a RequestId);

impl Equivalent<Key> for Wanted<'_> {
    fn equivalent(&self, (direction, id): &Key) -> bool {
        self.0 == *direction && self.1 == id
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) in_flight: InFlight,
    pub(crate) _place: Place,
    /// The client as it calls itself in a stateless request.
    pub(crate) client: Option<Box<str>>,
    /// What its progress is told by.
    pub(crate) token: Option<RequestId>,
    /// Its answer, if there is one that a fault has its hand in: it has not been delivered yet.
    pub(crate) answered: Option<Response>,
}

/// The requests in flight, whose number their places bound.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// The only one, if there is one alone: as it mostly is, and then nothing need be hashed.
    only: Option<(Key, Pending)>,
    by_id: HashMap<Key, Pending, RandomState>,
    /// Ids by token, where they differ: the official SDKs take the one for the other.
    by_token: HashMap<Key, RequestId, RandomState>,
}

impl Requests {
    pub(crate) fn is_empty(&self) -> bool {
        self.only.is_none() && self.by_id.is_empty()
    }

    pub(crate) fn contains(&self, direction: Direction, id: &RequestId) -> bool {
        let wanted = Wanted(direction, id);
        match &self.only {
            Some((key, _)) => wanted.equivalent(key),
            None => self.by_id.contains_key(&wanted),
        }
    }

    /// Adds a request; returns the one that had its id.
    pub(crate) fn insert(&mut self, direction: Direction, id: RequestId, pending: Pending) -> Option<Pending> {
        let reused = self.remove(direction, &id);
        if self.is_empty() {
            self.only = Some(((direction, id), pending));
            return reused;
        }
        if let Some((key, only)) = self.only.take() {
            self.add(key, only);
        }
        self.add((direction, id), pending);
        reused
    }

    /// Adds a request to others.
    fn add(&mut self, (direction, id): Key, pending: Pending) {
        // Of those with the same token, which no client should have at a time, the newest is meant.
        match pending.token.clone() {
            Some(token) if token != id => drop(self.by_token.insert((direction, token), id.clone())),
            Some(token) => drop(self.by_token.remove(&(direction, token))),
            None => {}
        }
        self.by_id.insert((direction, id), pending);
    }

    pub(crate) fn remove(&mut self, direction: Direction, id: &RequestId) -> Option<Pending> {
        let wanted = Wanted(direction, id);
        if self.only.is_some() {
            return self.only.take_if(|(key, _)| wanted.equivalent(key)).map(|(_, only)| only);
        }
        // This is asked thrice for each: before it, with its answer, and after.
        if self.by_id.is_empty() {
            return None;
        }
        let (key, pending) = self.by_id.remove_entry(&wanted)?;
        self.forget_token(&key, &pending);
        Some(pending)
    }

    pub(crate) fn get_mut(&mut self, direction: Direction, id: &RequestId) -> Option<&mut Pending> {
        let wanted = Wanted(direction, id);
        match &mut self.only {
            Some((key, only)) => wanted.equivalent(key).then_some(only),
            None => self.by_id.get_mut(&wanted),
        }
    }

    /// The request that asked for its progress by this token.
    pub(crate) fn by_token(&mut self, direction: Direction, token: &RequestId) -> Option<&mut InFlight> {
        let pending = match &mut self.only {
            Some(((asked, _), only)) => (*asked == direction).then_some(only)?,
            None => {
                let id = self.by_token.get(&Wanted(direction, token)).unwrap_or(token);
                self.by_id.get_mut(&Wanted(direction, id))?
            }
        };
        // A request that asked by another token, or not at all, may have an id like it.
        (pending.token.as_ref() == Some(token)).then_some(&mut pending.in_flight)
    }

    /// Takes out those that have waited for `timeout`; a stream that is meant to stay open is none of them.
    pub(crate) fn expired(&mut self, timeout: Duration, now: Instant) -> Vec<Pending> {
        let expired = self.extract(|_, pending| {
            let long_lived = pending.in_flight.call().is_some_and(|call| call.method.is_long_lived());
            !long_lived && now.saturating_duration_since(pending.in_flight.started()) >= timeout
        });
        expired.into_iter().map(|(_, pending)| pending).collect()
    }

    /// Takes out those that were made in this direction.
    pub(crate) fn asked(&mut self, direction: Direction) -> Vec<(RequestId, Pending)> {
        let asked = self.extract(|(asked, _), _| *asked == direction);
        asked.into_iter().map(|((_, id), pending)| (id, pending)).collect()
    }

    /// Takes out all of them.
    pub(crate) fn drain(&mut self) -> Vec<Pending> {
        self.by_token.clear();
        let all = std::mem::take(&mut self.by_id).into_values();
        self.only.take().map(|(_, only)| only).into_iter().chain(all).collect()
    }

    fn extract(&mut self, mut is_wanted: impl FnMut(&Key, &Pending) -> bool) -> Vec<(Key, Pending)> {
        if self.only.is_some() {
            return self.only.take_if(|(key, only)| is_wanted(key, only)).into_iter().collect();
        }
        let extracted: Vec<_> = self.by_id.extract_if(|key, pending| is_wanted(key, pending)).collect();
        extracted.iter().for_each(|(key, pending)| self.forget_token(key, pending));
        extracted
    }

    fn forget_token(&mut self, (direction, id): &Key, pending: &Pending) {
        let Some(token) = pending.token.as_ref().filter(|token| *token != id) else { return };
        let key = Wanted(*direction, token);
        // A later request may have taken the token over.
        if self.by_token.get(&key) == Some(id) {
            self.by_token.remove(&key);
        }
    }
}
