//! Readiness: a set of named conditions that must all be met.

use std::sync::Arc;

use crate::channel::Shared;

/// Whether the instance can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether every condition is met; also true while none was required.
    pub ready: bool,
    /// The conditions that are not met, in the order in which they were required.
    pub missing: Vec<Missing>,
}

/// A condition that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The condition.
    pub name: String,
    /// Why it is not met.
    pub reason: String,
}

#[derive(Debug)]
pub(crate) struct Condition {
    pub(crate) name: Box<str>,
    /// Why it is not met; nothing if it is.
    pub(crate) unmet: Option<Box<str>>,
}

/// Why a condition is not met that nobody has met yet.
pub(crate) const NOT_YET: &str = "not yet";
/// Why a condition is not met whose requirement was dropped.
const GONE: &str = "gone";

/// One condition of readiness, held by the task that meets it.
///
/// It starts unmet. Dropping it makes it unmet for good, so a task that dies makes the instance unready (invariant 8).
#[derive(Debug)]
#[must_use = "dropping it makes the instance unready for good"]
pub struct Requirement {
    pub(crate) shared: Arc<Shared>,
    /// Its place among the conditions, which are never removed.
    pub(crate) index: usize,
}

impl Requirement {
    /// From now on the condition is met.
    pub fn met(&self) {
        self.put(None);
    }

    /// From now on the condition is not met, for this reason.
    pub fn unmet(&self, reason: &str) {
        self.put(Some(reason));
    }

    fn put(&self, unmet: Option<&str>) {
        if let Some(condition) = self.shared.lock().conditions.get_mut(self.index) {
            condition.unmet = unmet.map(Into::into);
        }
    }
}

impl Drop for Requirement {
    fn drop(&mut self) {
        self.put(Some(GONE));
    }
}
