//! What is disturbed from outside its messages: processes and resources.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_core::{Component, FaultId};
use serde::{Deserialize, Serialize};

use crate::matcher::Pattern;
use crate::network::{Network, Packets};
use crate::outage::Outage;
use crate::outlook::ResourceOutlook;
use crate::{Parameters, Scenario};

/// Something that carries out the faults that are not done to messages: a supervised process, a helper that takes memory, a
/// part of a program that can be aborted.
///
/// Its methods are called while the controller is locked, never by the data path; they must not wait for what they disturb. Two of
/// them may, for seconds: [`probe`](Self::probe) and [`wait_until_begun`](Self::wait_until_begun), for which nothing is locked.
pub trait ChaosTarget: fmt::Debug + Send + Sync {
    /// Its name, as `target_processes` and `protected` have it.
    fn name(&self) -> &str;

    /// The components that it carries: their names stand for it in `target_processes`. By default none.
    fn components(&self) -> &[Component] {
        &[]
    }

    /// Whether nothing may ever be done to it.
    fn is_critical(&self) -> bool;

    /// Whether there is anything now to do it to, such as a process that runs. By default there is.
    fn is_there(&self) -> bool {
        true
    }

    /// The process that it is now, if it is one: resources can be taken in its control group.
    fn process(&self) -> Option<ProcessId> {
        None
    }

    /// Whether it can carry out this scenario.
    fn carries(&self, scenario: Scenario) -> bool;

    /// Whether it could carry this out now, with these parameters, and on these as in [`Order::victims`]: asked before anything
    /// is written down or begun, also for a plan. By default it could.
    ///
    /// # Errors
    /// It could not; the experiment is refused.
    fn check(&self, _scenario: Scenario, _parameters: &Parameters, _victims: &[Victim]) -> Result<(), TargetError> {
        Ok(())
    }

    /// Tries what takes too long for [`check`](Self::check): of a fault of packets it is asked before each plan and each start. By
    /// default there is nothing to try.
    ///
    /// # Errors
    /// It could not carry it out; the experiment is refused.
    fn probe(&self, _scenario: Scenario, _parameters: &Parameters) -> Result<(), TargetError> {
        Ok(())
    }

    /// What would come of it if it were done now, for a plan. By default nothing is known of that.
    fn foresee(&self, _scenario: Scenario, _parameters: &Parameters, _victims: &[Victim]) -> Foresight {
        Foresight::default()
    }

    /// Carries it out, once, and sees to it that it ends at `order.expires_at` whatever else has failed. Its intent has been
    /// written to disk before. With `crash_rate`, which is not for the target to look at, it is asked for each crash.
    ///
    /// # Errors
    /// It could not be done; the experiment fails.
    fn apply(&self, order: &Order<'_>) -> Result<(), TargetError>;

    /// Waits until what was applied for this fault of packets is there, or will never be, which is in its progress; at the latest
    /// until it is undone. By default it is there when [`apply`](Self::apply) returns.
    fn wait_until_begun(&self, _fault: FaultId) {}

    /// Takes back what was done for this fault, and waits for nothing. It may be asked more than once.
    ///
    /// # Errors
    /// It could not be undone; the experiment fails.
    fn undo(&self, fault: FaultId) -> Result<(), TargetError>;

    /// What is left of it after it was undone: a process, memory, an open descriptor. If there still is something two
    /// seconds later, that is a leak, and an emergency stop.
    fn left_over(&self, fault: FaultId) -> Option<String>;

    /// How it goes with what was done for this fault. It is asked while the fault is active, and once more after it was undone.
    fn progress(&self, _fault: FaultId) -> Progress {
        Progress::default()
    }

    /// What it leads connections through for this fault, which is about their packets: asked once, when it was applied. It may be
    /// up later.
    fn network(&self, _fault: FaultId) -> Option<Arc<dyn Network>> {
        None
    }

    /// Ends a process that an earlier run of this program had started for a fault, if it is still there and provably that
    /// process.
    ///
    /// # Errors
    /// It is there, and cannot be ended.
    fn sweep(&self, _fault: FaultId, _process: ProcessId) -> Result<(), TargetError> {
        Ok(())
    }
}

/// What would come of what a target were to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Foresight {
    /// How long after the end of its process another one would be started.
    pub restarted_after: Option<Duration>,
    /// What it would take.
    pub resource: Option<ResourceOutlook>,
}

/// How it goes with what a target does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The process that was started for it. It is journalled, for the next run to make sure that it is gone.
    pub process: Option<ProcessId>,
    /// How much was asked for and how much it is, where that can be told.
    pub achieved: Option<Achieved>,
    /// The packets of the network that was made for it.
    pub packets: Option<Packets>,
    /// That it has ended by itself before its time.
    pub ended: Option<Ended>,
}

/// A process that cannot be taken for another one that gets its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in the system's ticks since it was booted.
    pub started: u64,
}

/// Another target's process, in whose control group something is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// The name of the target.
    pub name: String,
    /// Its process.
    pub process: ProcessId,
}

/// What was asked for and what it came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Achieved {
    /// What was asked for.
    pub requested: f64,
    /// What it came to.
    pub achieved: f64,
    /// What both are in.
    pub unit: Unit,
    /// The folder of the control group that it counted against; none if that cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

impl Achieved {
    pub(crate) fn requested_share(&self) -> f64 {
        if self.unit == Unit::Share { self.requested } else { 1.0 }
    }

    /// What it came to: of the time of the cores, or of what was asked for.
    pub(crate) fn share(&self) -> f64 {
        match self.unit {
            Unit::Share => self.achieved,
            Unit::Bytes if self.requested > 0.0 => self.achieved / self.requested,
            Unit::Bytes => 1.0,
        }
    }
}

/// What something is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The share of the time of each core, 0..=1, on average.
    Share,
    /// Bytes, at most.
    Bytes,
}

/// Why something ended before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// To be on the safe side: the experiment is aborted.
    LetGo(String),
    /// It could not go on: the experiment has failed.
    Failed(String),
}

/// How a process crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Crash {
    /// It is ended, and cannot do anything about it (SIGKILL).
    #[default]
    Kill,
    /// It is asked to end (SIGTERM).
    Term,
    /// It stands still until the fault ends (SIGSTOP, SIGCONT).
    Stop,
    /// Its input ends, which is how MCP ends a stdio server.
    CloseStdin,
}

impl Crash {
    const ALL: [(&'static str, Self); 4] =
        [("kill", Self::Kill), ("term", Self::Term), ("stop", Self::Stop), ("close_stdin", Self::CloseStdin)];

    /// What these parameters, which were checked, ask for.
    pub(crate) fn of(parameters: &Parameters) -> Self {
        let signal = parameters.0.get("signal").and_then(|signal| signal.as_str());
        Self::ALL.into_iter().find(|(name, _)| signal == Some(name)).map_or_else(Self::default, |(_, crash)| crash)
    }

    /// The value of the parameter `signal`.
    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, crash)| *crash == self).map_or("", |(name, _)| name)
    }
}

/// Names that are never touched.
#[derive(Clone, Debug, Default)]
pub struct ProtectedNames(Vec<Pattern>);

impl ProtectedNames {
    /// These, in each of which `*` stands for any text.
    #[must_use]
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|text| Pattern::new(text)).collect())
    }

    /// Whether this is one of them.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }
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
    /// In whose control group: with `cgroup=target` one at least, else none.
    pub victims: &'a [Victim],
    /// What random choices are to be drawn from.
    pub seed: u64,
    /// When it is done.
    pub now: Instant,
    /// When it must have ended.
    pub expires_at: Instant,
    /// What must not be touched, whatever the target consists of.
    pub protected: &'a ProtectedNames,
    /// Who wants to hear of the end of the process, and of the one in its place: where a crash is to be timed.
    pub outage: Option<&'a Arc<Outage>>,
}

impl Order<'_> {
    /// How a process is to crash.
    #[must_use]
    pub fn crash(&self) -> Crash {
        Crash::of(self.parameters)
    }
}

/// A target could not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(
    /// What went wrong.
    pub String,
);

/// Has a target do something: one that panics could not do it.
pub(crate) fn guarded(work: impl FnOnce() -> Result<(), TargetError>) -> Result<(), TargetError> {
    // What is half done there is taken back like everything else that has failed.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(TargetError("it panicked".to_owned())))
}

impl TargetError {
    /// An error with its causes.
    pub fn of(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(error.source(), |error| error.source());
        Self(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
    }
}
