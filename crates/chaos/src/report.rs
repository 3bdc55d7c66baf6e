//! What became of an experiment.

use serde::{Deserialize, Serialize};

use crate::Parameters;
use crate::status::{StartedBy, Status};
use crate::steady::Sample;

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
    /// The ten seconds before the fault; all three are of calls that no fault touched, and none without a steady state.
    pub before: Option<Slot>,
    /// While the fault was active.
    pub during: Option<Slot>,
    /// From its end until it was decided whether everything was well again, of calls that began after the end.
    pub after: Option<Slot>,
    /// What was asked for and what was done.
    pub injection: Injected,
    /// From the fault's beginning to the first sample that broke the steady state.
    pub time_to_detect: Option<u64>,
    /// How it came back.
    pub recovery: RecoveryReport,
    /// What was left over; none is what there should be.
    pub leak: Option<String>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// The share of the messages that was asked for, 0..=1; for a partition, of the connections.
    pub requested_intensity: f64,
    /// The share that it came to; none if there was nothing.
    pub achieved_intensity: Option<f64>,
    /// Effects that are not in the journal, which is then of no use to a replay.
    pub unjournalled: u64,
}

/// How the watched system came back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Within which time it was to be well again.
    pub limit: u64,
    /// How long it took; none if it did not, or if it was not observed.
    pub time: Option<u64>,
    /// Whether there were enough calls to judge by.
    pub observed: bool,
}
