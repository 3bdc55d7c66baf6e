//! What is disturbed from outside its messages: processes and resources.

use std::fmt;
use std::time::Instant;

use mcpscope_core::FaultId;

use crate::{Parameters, Scenario};

/// Something that carries out the faults that are not done to messages: a supervised process, a helper that takes memory, a
/// part of a program that can be aborted.
///
/// Its methods are called while the controller is locked, never by the data path; they must not wait for what they disturb.
pub trait ChaosTarget: fmt::Debug + Send + Sync {
    /// Its name, as `target_processes` and `protected` have it.
    fn name(&self) -> &str;

    /// Whether nothing may ever be done to it.
    fn is_critical(&self) -> bool;

    /// Whether it can carry out this scenario.
    fn carries(&self, scenario: Scenario) -> bool;

    /// Carries it out, and sees to it that it ends at `order.expires_at` whatever else has failed. Its intent has been
    /// written to disk before.
    ///
    /// # Errors
    /// It could not be done; the experiment fails.
    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError>;

    /// Takes back what was done for this fault. It may be asked more than once.
    ///
    /// # Errors
    /// It could not be undone; the experiment fails.
    fn undo(&self, fault: FaultId) -> Result<(), TargetError>;

    /// What is left of it after it was undone: a process, memory, an open descriptor. That is a leak, and an emergency stop.
    fn left_over(&self, fault: FaultId) -> Option<String>;
}

/// What a target is to do.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// For which fault.
    pub fault: FaultId,
    /// What.
    pub scenario: Scenario,
    /// With which parameters, checked.
    pub parameters: &'a Parameters,
    /// What random choices are to be drawn from.
    pub seed: u64,
    /// When it must have ended.
    pub expires_at: Instant,
}

/// A target could not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(
    /// What went wrong.
    pub String,
);
