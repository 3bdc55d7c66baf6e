//! Which fault.

/// Identifies one running fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FaultId(
    /// The number, unique within an instance.
    pub u64,
);
