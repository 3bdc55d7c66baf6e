//! What became of an experiment.

mod chart;
mod html;

use serde::{Deserialize, Serialize};

use crate::Parameters;
use crate::audit::Audit;
use crate::network::Packets;
use crate::series::Point;
use crate::status::{StartedBy, Status};
use crate::steady::Sample;
use crate::target::Achieved;

/// What became of an experiment. Times are ms since the epoch, durations ms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The experiment.
    pub id: u64,
    /// Its scenario.
    pub scenario: String,
    /// How it ended.
    pub status: Status,
    /// Why it failed or was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Who wanted it.
    pub started_by: StartedBy,
    /// Its parameters, as given.
    pub parameters: Parameters,
    /// What its decisions were drawn from: starting it with this seed repeats them.
    pub seed: u64,
    /// The names of the servers or targets that it was about.
    pub targets: Vec<String>,
    /// When the fault began; if it never did, when it was accepted.
    pub start_time: u64,
    /// When the fault ended.
    pub end_time: u64,
    /// What had to hold before and after.
    #[serde(default)]
    pub steady_state: Vec<String>,
    /// The check of `abort_when` that held, and so ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<String>,
    /// The ten seconds before the fault. All three tell calls that a fault touched from the others, which are the baseline;
    /// none if nobody watched.
    pub before: Option<Slot>,
    /// While the fault was active.
    pub during: Option<Slot>,
    /// From its end until it was decided whether everything was well again, of calls that began after the end.
    pub after: Option<Slot>,
    /// What was asked for and what was done.
    pub injection: Injected,
    /// From the fault's beginning to the first sample that broke the steady state. Calls that a fault touched are not in
    /// it, so it tells of what the fault did to others, or to what was made of its outcomes.
    pub time_to_detect: Option<u64>,
    /// How it came back.
    pub recovery: RecoveryReport,
    /// The processes that it ended, in the order in which it did; the first hundred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outages: Vec<OutageReport>,
    /// What was left over two seconds after the end; none is what there should be.
    pub leak: Option<String>,
    /// What was looked at to say so.
    #[serde(default)]
    pub audit: Audit,
    /// The command that does it again; none if it did nothing, or if its journal has not everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
    /// One sample for each second, from ten before the fault until it was decided whether all was well again. Lists of
    /// reports leave them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Point>,
}

impl Report {
    /// Whether the watched system withstood the fault: it was well again in time, and did not have to be spared. None if
    /// that was not seen: no calls to judge by, ended by a person, never begun.
    #[must_use]
    pub fn held(&self) -> Option<bool> {
        match self.status {
            // What was done to nothing shows nothing.
            Status::Completed if self.recovery.observed && self.injection.injected > 0 => Some(true),
            Status::Failed => Some(false),
            Status::Aborted if self.guard.is_some() => Some(false),
            _ => None,
        }
    }

    /// The same in a sentence, with the reason.
    #[must_use]
    pub fn verdict(&self) -> String {
        let why = self.error.as_deref().unwrap_or("no reason is known");
        match (self.status, &self.guard) {
            (Status::Completed, _) if self.injection.injected == 0 => {
                "Not known: nothing matched, and nothing was done.".to_owned()
            }
            (Status::Completed, _) => match self.recovery.time {
                Some(0) => {
                    format!(
                        "It held: all was well from the end of the fault on (limit {}){}.",
                        self.limit(),
                        self.back()
                    )
                }
                Some(time) => {
                    let (time, limit) = (duration(time), self.limit());
                    format!("It held: all was well again {time} after the fault (limit {limit}){}.", self.back())
                }
                None => "Not known: there were too few calls after the fault to judge by.".to_owned(),
            },
            (Status::Failed, _) => format!("It did not hold: {why}."),
            (Status::Aborted, Some(check)) => format!("It did not hold: the fault was ended early, as {check}."),
            (Status::Aborted, None) => format!("Not known: it was ended early ({why})."),
            (Status::NotStarted, _) => format!("Nothing was done: {why}."),
            (Status::Planned | Status::Running | Status::Recovering, _) => "It is not over yet.".to_owned(),
        }
    }

    fn limit(&self) -> String {
        duration(self.recovery.limit)
    }

    /// How long processes were away, if any was.
    fn back(&self) -> String {
        let longest = self.outages.iter().filter_map(|outage| outage.first_good_call_after).max();
        longest.map(|time| format!("; a call ended well {} after the crash", duration(time))).unwrap_or_default()
    }
}

/// A time in ms as people write it.
pub(crate) fn duration(ms: u64) -> String {
    humantime::format_duration(std::time::Duration::from_millis(ms)).to_string()
}

/// The watched system in some time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// How long, in ms.
    pub duration: u64,
    /// The share of the calls that ended with an error, 0..=1; none without calls.
    pub error_rate: Option<f64>,
    /// The figures.
    #[serde(flatten)]
    pub sample: Sample,
}

/// What was asked for and what was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Injected {
    /// Connections that the fault could have been about, and those of them that it was about.
    pub connections: u64,
    /// Likewise.
    pub connections_chosen: u64,
    /// Messages on those that matched.
    pub matched: u64,
    /// Messages and connections that were given an effect.
    pub injected: u64,
    /// Effects that were acted on.
    pub observed: u64,
    /// The share of the messages that was asked for, 0..=1; for a partition, of the connections; of the cores' time; for
    /// memory 1, which is all of it.
    pub requested_intensity: f64,
    /// The share that it came to; none if there was nothing.
    pub achieved_intensity: Option<f64>,
    /// Effects that are not in the journal, which is then of no use to a replay.
    pub unjournalled: u64,
    /// What was asked for and what it came to, where memory or processors were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Achieved>,
    /// The packets of the network, where the kernel delayed or lost them (`backend=netem`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<Packets>,
}

/// How the watched system came back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Within which time it was to be well again.
    pub limit: u64,
    /// How long it took, from the end of the fault until the steady state held and of each process that was ended a call had ended
    /// well (from the end of the process, if that came later). None if it did not in time, or if it was not observed.
    pub time: Option<u64>,
    /// Whether there were enough calls to judge by.
    pub observed: bool,
}

/// A process that the fault has ended, and what followed. All durations are ms from its end; none is what did not happen, or was
/// not seen, until the experiment had ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutageReport {
    /// The server whose process it was.
    pub target: String,
    /// When the process ended, in ms since the fault began.
    pub at: u64,
    /// How long until another one was started in its place.
    pub restarted_after: Option<u64>,
    /// How long until that could be called: over stdio once it knew of the session, if there was one, which is when it had
    /// answered the replayed handshake; over HTTP once it accepted a connection.
    pub ready_after: Option<u64>,
    /// How long until a call first ended well again, if the process did not crash once more before.
    pub first_good_call_after: Option<u64>,
}
