//! The ids that were used in a session, while somebody wants to know which are used again.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};

use mcpscope_core::{FaultId, RequestId};

/// Ids remembered of a session: more than a client has in flight, or asks for again.
const REMEMBERED: usize = 256;

/// The newest ids of the client's requests, and those of them that were answered.
#[derive(Debug)]
pub(super) struct Ids {
    since: FaultId,
    hash: RandomState,
    asked: VecDeque<u64>,
    answered: VecDeque<u64>,
}

impl Ids {
    /// None yet, at the beginning of this experiment or of a session in it.
    pub(super) fn new(since: FaultId) -> Self {
        Self { since, hash: RandomState::new(), asked: VecDeque::new(), answered: VecDeque::new() }
    }

    /// The experiment since whose beginning they were noted.
    pub(super) fn since(&self) -> FaultId {
        self.since
    }

    /// A request has this id. Returns whether another one had it before.
    pub(super) fn asks(&mut self, id: &RequestId) -> bool {
        note(&mut self.asked, self.hash.hash_one(id))
    }

    /// A request with this id was answered. It may be asked, and answered, once more.
    pub(super) fn answers(&mut self, id: &RequestId) {
        note(&mut self.answered, self.hash.hash_one(id));
    }

    /// Whether a request with this id was answered.
    pub(super) fn has_answered(&self, id: &RequestId) -> bool {
        self.answered.contains(&self.hash.hash_one(id))
    }
}

/// Adds an id to others, of which the oldest is forgotten if there are too many. Returns whether it was there.
fn note(ids: &mut VecDeque<u64>, id: u64) -> bool {
    if ids.contains(&id) {
        return true;
    }
    if ids.len() == REMEMBERED {
        ids.pop_front();
    }
    ids.push_back(id);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_until_as_many_others_have_come() {
        let mut ids = Ids::new(FaultId(1));
        let id = |number: usize| RequestId::Integer(number as i64);
        assert!(!ids.asks(&id(0)) && ids.asks(&id(0)) && !ids.has_answered(&id(0)));
        ids.answers(&id(0));
        assert!(ids.has_answered(&id(0)));
        assert!((1..REMEMBERED).all(|number| !ids.asks(&id(number))) && ids.asks(&id(0)));
        assert!(!ids.asks(&id(REMEMBERED)) && !ids.asks(&id(0)), "the oldest was forgotten");
        (1..=REMEMBERED).for_each(|number| ids.answers(&id(number)));
        assert!(!ids.has_answered(&id(0)));
    }
}
