//! Why something was not done.

use crate::Scenario;
use crate::journal::JournalError;
use crate::parameter::ParameterError;
use crate::target::TargetError;

/// Why an experiment was not accepted. Nothing was started; the attempt is in the journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// What was asked for makes no sense.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// Nothing here can carry it out.
    #[error("{scenario} is not available here: expected {}, or a fault of messages", .scenario.needs())]
    NotAvailable {
        /// What was asked for.
        scenario: Scenario,
    },
    /// Nothing here can make a network.
    #[error(
        "backend=netem is not available here: expected a helper process, for which the program calls \
         mcpscope_chaos::helper::run_if_requested() first in main (on Linux), or backend=message"
    )]
    NoNetwork,
    /// Chaos is off.
    #[error("chaos is off ({why}): expected mode manual or scheduled")]
    Off {
        /// What switched it off.
        why: String,
    },
    /// Everything was stopped.
    #[error("everything was stopped by {by}: expected {}", rearm_hint(.wait_ms))]
    Stopped {
        /// What caused it.
        by: String,
        /// For how long it cannot even be armed again, in ms.
        wait_ms: u64,
    },
    /// It is ending: [`Controller::shut_down`](crate::Controller::shut_down).
    #[error("the instance is stopping: expected one that goes on")]
    Stopping,
    /// As many experiments as may be are there.
    #[error("{running} experiments are running: expected fewer than {most} (max_concurrent_tests)")]
    TooMany {
        /// How many are there.
        running: usize,
        /// How many may be.
        most: usize,
    },
    /// It would be about nothing.
    #[error("{scenario} matches nothing: {reason}; there {}{}", list(.there), means(.place.as_deref()))]
    NothingMatched {
        /// What was asked for.
        scenario: Scenario,
        /// What does not match.
        reason: &'static str,
        /// The names of what there is.
        there: Vec<String>,
        /// Where it means something as it was asked for, unless that is anywhere.
        place: Option<String>,
        /// The parameter that names what there is not, if one does.
        parameter: Option<&'static str>,
    },
    /// Too much is unwell already.
    #[error("{healthy:.0} % of the components are healthy: expected at least {least:.0} % (blast_radius.min_healthy)")]
    Unhealthy {
        /// How much is healthy, in percent.
        healthy: f64,
        /// How much must be, in percent.
        least: f64,
    },
    /// What is to carry it out could not.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Enough was killed in the last hour.
    #[error("{most} crashes in the last hour: expected fewer (blast_radius.max_kills_per_hour)")]
    TooManyKills {
        /// How many may be.
        most: usize,
    },
    /// It cannot be written down.
    #[error("it cannot be journalled")]
    Journal(#[from] JournalError),
}

impl Refusal {
    /// What is wrong with what was asked for, each with the name of the parameter that says it, if one does; empty if it could be
    /// done another time as it is.
    #[must_use]
    pub fn mistakes(&self) -> Vec<(Option<&str>, String)> {
        match self {
            Self::Parameters(error) => {
                error.each().iter().map(|error| (error.parameter(), error.to_string())).collect()
            }
            Self::NothingMatched { parameter: Some(name), .. } => vec![(Some(name), self.to_string())],
            _ => Vec::new(),
        }
    }
}

impl Scenario {
    const fn needs(self) -> &'static str {
        match self {
            Self::ProcessCrash => {
                "a server that mcpscope starts again (run --restart on-failure, or serve with a command), or a target that an embedding program registered"
            }
            _ => {
                "a helper process, for which the program calls mcpscope_chaos::helper::run_if_requested() first in main (on Linux)"
            }
        }
    }
}

fn rearm_hint(wait_ms: &u64) -> String {
    match wait_ms {
        0 => "it to be armed again".to_owned(),
        wait => format!("it to be armed again, in {} s or later", wait.div_ceil(1000)),
    }
}

fn list(there: &[String]) -> String {
    if there.is_empty() { "is no server yet".to_owned() } else { format!("is {}", there.join(", ")) }
}

fn means(place: Option<&str>) -> String {
    place.map(|place| format!("; as asked for, it means something over {place}")).unwrap_or_default()
}

fn running_now(running: &[u64]) -> String {
    match running {
        [] => "none is".to_owned(),
        running => format!("expected one of {running:?}"),
    }
}

/// Why an experiment was not stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("experiment {id} is not running: {}", running_now(.running))]
pub struct NotRunning {
    /// What was asked for.
    pub id: u64,
    /// Those that are.
    pub running: Vec<u64>,
}

/// Why experiments did not become possible again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RearmError {
    /// They are possible.
    #[error("nothing was stopped: there is nothing to arm again")]
    NotStopped,
    /// It is too early.
    #[error("stopped by {by}: it can be armed again in {} s", .wait_ms.div_ceil(1000))]
    Cooldown {
        /// What caused the stop.
        by: String,
        /// For how long not, in ms.
        wait_ms: u64,
    },
}
