//! What a fault does to one message.

use std::time::Duration;

/// Identifies one running fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FaultId(
    /// The number, unique within an instance.
    pub u64,
);

/// What is to be done with one message; decided by an injector, acted on by the interception point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Passes as it is.
    #[default]
    Pass,
    /// Arrives later by this much; what follows it in the same direction keeps its order.
    Delay {
        /// The fault that asks for it.
        fault: FaultId,
        /// How much later.
        by: Duration,
    },
    /// Never arrives.
    Drop {
        /// The fault that asks for it.
        fault: FaultId,
    },
}

impl Verdict {
    /// The fault behind the verdict, if there is one.
    #[must_use]
    pub const fn fault(&self) -> Option<FaultId> {
        match self {
            Self::Pass => None,
            Self::Delay { fault, .. } | Self::Drop { fault } => Some(*fault),
        }
    }
}
