//! What there is to see: experiments, the engine's state, events.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::Mode;
use crate::report::Report;
use crate::{Parameters, Scenario};

/// Where an experiment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, and not begun.
    Planned,
    /// The fault is active.
    Running,
    /// The fault is over; whether the watched system is well again is being seen.
    Recovering,
    /// The fault ended, and the steady state returned in time.
    Completed,
    /// It did not, or the fault could not be applied or removed.
    Failed,
    /// Stopped before its time.
    Aborted,
    /// The steady state did not hold to begin with.
    NotStarted,
}

impl Status {
    /// The name in APIs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Recovering => "recovering",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::NotStarted => "not_started",
        }
    }

    /// Whether nothing follows.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Planned | Self::Running | Self::Recovering)
    }
}

/// Who wanted an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartedBy {
    /// A person.
    Person,
    /// The scheduler.
    Scheduler,
    /// The demo, which shows what an experiment is.
    Demo,
}

impl StartedBy {
    /// For people: `a person`, `the scheduler`, `the demo`.
    #[must_use]
    pub const fn told(self) -> &'static str {
        match self {
            Self::Person => "a person",
            Self::Scheduler => "the scheduler",
            Self::Demo => "the demo",
        }
    }
}

/// What caused a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A person.
    Person,
    /// An alert of this name.
    Alert(
        /// Its name.
        String,
    ),
    /// Too many failures in a row.
    Threshold,
    /// Something was left over from a fault.
    Leak(
        /// What.
        String,
    ),
    /// The coordinator of the fleet cannot be reached.
    Coordinator,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person => f.write_str("a person"),
            Self::Alert(name) => write!(f, "alert {name}"),
            Self::Threshold => f.write_str("too many failures in a row"),
            Self::Leak(what) => write!(f, "a leak: {what}"),
            Self::Coordinator => f.write_str("loss of the coordinator"),
        }
    }
}

/// The state of the engine: `chaos_status` of the APIs. Times are ms since the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChaosStatus {
    /// When this was.
    pub timestamp: u64,
    /// Who may start experiments.
    pub mode: Mode,
    /// What switched chaos off, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
    /// Experiments that have not ended.
    pub active_tests: usize,
    /// Whether nothing can be started after an emergency stop.
    pub emergency_stop: bool,
    /// What caused it.
    pub stopped_by: Option<String>,
    /// From when it can be armed again; none: at once, by a person.
    pub rearm_at: Option<u64>,
    /// Experiments that have ended, as far as they are kept.
    pub total_history: usize,
    /// The names of what can be started.
    pub available_scenarios: Vec<String>,
    /// The experiments that have not ended.
    pub active_tests_details: Vec<Test>,
    /// The newest that have failed, newest first.
    pub recent_failures: Vec<Test>,
    /// Journal lines that could not be written.
    pub journal_errors: u64,
}

/// An experiment: `test` of the APIs. Times are ms since the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// Unique within an instance, also across its restarts.
    pub id: u64,
    /// The scenario.
    pub name: String,
    /// When the fault began; before that, when it was accepted.
    pub start_time: u64,
    /// When it had ended altogether; before that, when the fault is to end.
    pub end_time: u64,
    /// Where it is in its life.
    pub status: Status,
    /// `low`, `medium` or `high`.
    pub impact: String,
    /// Within which time everything is to be well again, in ms.
    pub recovery_time: u64,
    /// The rest.
    pub details: Details,
}

/// The rest of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Its parameters, as given.
    pub parameters: Parameters,
    /// The names of the servers or targets that it is about.
    pub targets: Vec<String>,
    /// What its decisions are drawn from.
    pub seed: u64,
    /// Messages and connections hit so far.
    pub injected: u64,
    /// Why it failed or was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Once it has ended, and it is decided what it has left over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than that of the event before.
    pub sequence: u64,
    /// When, in ms since the epoch.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub what: Happened,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happened {
    /// An experiment is at another place in its life.
    Changed {
        /// Which.
        id: u64,
        /// What it injects.
        scenario: String,
        /// Where it is now.
        status: Status,
        /// Why, where there is a reason.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// An experiment was not accepted.
    Refused {
        /// What was asked for.
        scenario: String,
        /// With which parameters.
        parameters: Parameters,
        /// Who asked.
        by: StartedBy,
        /// Why not.
        reason: String,
    },
    /// Everything was stopped.
    EmergencyStop {
        /// What caused it.
        cause: Cause,
    },
    /// Experiments can be started again.
    Rearmed {
        /// Whether by themselves.
        automatically: bool,
    },
    /// Another plan holds from now on. What it does not forbid goes on under the terms it was started with.
    PlanReplaced {
        /// Who may start experiments now.
        mode: Mode,
        /// What switched chaos off, if it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        off: Option<String>,
        /// The experiments that it ended.
        ended: Vec<u64>,
    },
    /// What an earlier run had left unfinished was closed.
    Swept {
        /// Which experiments.
        ids: Vec<u64>,
    },
}

/// The names of scenarios, for lists.
pub(crate) fn names(scenarios: impl IntoIterator<Item = Scenario>) -> Vec<String> {
    scenarios.into_iter().map(|scenario| scenario.to_string()).collect()
}
