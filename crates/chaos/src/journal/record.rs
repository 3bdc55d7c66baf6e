//! The lines of a journal.

use std::time::Duration;

use mcpscope_core::{Answer, Change, Direction, Effect, FaultId};
use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::status::{StartedBy, Status};
use crate::target::ProcessId;
use crate::{MessageKind, Parameters, Scenario};

/// The form of the lines. A journal of another one cannot be replayed: its draws may mean something else.
pub const VERSION: u32 = 1;

/// A line of an experiment's journal. `t_us` is the time since the fault began, in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// The first line: what is done.
    Experiment(Header),
    /// It is at another place in its life.
    State {
        /// When.
        t_us: u64,
        /// Where.
        status: Status,
        /// Why, where there is a reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A message or a connection was hit.
    Hit(HitRecord),
    /// Something is about to be done outside of this process; on disk before it is.
    Intent {
        /// When.
        t_us: u64,
        /// To what.
        target: String,
    },
    /// A process was started for it, which the next run makes sure is gone.
    Process {
        /// When.
        t_us: u64,
        /// By what.
        target: String,
        /// The process.
        #[serde(flatten)]
        process: ProcessId,
    },
    /// That was taken back.
    Undone {
        /// When.
        t_us: u64,
        /// From what.
        target: String,
    },
    /// The last line.
    End {
        /// What became of it.
        report: Box<Report>,
    },
}

impl Record {
    /// When it was, in microseconds since the fault began; the first and the last line do not say.
    pub(crate) fn t_us(&self) -> Option<u64> {
        match self {
            Self::State { t_us, .. }
            | Self::Intent { t_us, .. }
            | Self::Process { t_us, .. }
            | Self::Undone { t_us, .. }
            | Self::Hit(HitRecord { t_us, .. }) => Some(*t_us),
            Self::Experiment(_) | Self::End { .. } => None,
        }
    }
}

/// What an experiment is: enough to do it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`] when it was written.
    pub version: u32,
    /// The experiment.
    pub id: u64,
    /// When it was accepted, in ms since the epoch.
    pub time: u64,
    /// Its scenario.
    pub scenario: String,
    /// Its parameters, those of the plan included.
    pub parameters: Parameters,
    /// What its decisions are drawn from.
    pub seed: u64,
    /// Who wanted it.
    pub started_by: StartedBy,
    /// The names of the servers or targets that it is about.
    pub targets: Vec<String>,
}

/// A message or a connection that was hit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitRecord {
    /// When, since the fault began, in microseconds.
    pub t_us: u64,
    /// The scenario that decided.
    pub rule: String,
    /// The so-many-th connection that the experiment saw, from 0.
    pub connection: u64,
    /// The message's direction; none if the connection as a whole was hit, of which the rest says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// The so-many-th message in this direction of it, from 0.
    pub ordinal: u64,
    /// The so-many-th message of the experiment that matched, from 1.
    pub number: u64,
    /// `request`, `response` or `notification`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The method, or that of the request that is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The tool, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The number in 0..1 that decided.
    pub draw: f64,
    /// What was done: the name of an [`Effect`].
    pub effect: String,
    /// How much of it: microseconds of a delay, bytes, a status or a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<i64>,
}

/// A hit on its way into the journal.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) experiment: FaultId,
    /// Since the fault began.
    pub(crate) at: Duration,
    pub(crate) rule: Scenario,
    pub(crate) connection: u64,
    pub(crate) direction: Option<Direction>,
    pub(crate) ordinal: u64,
    pub(crate) number: u64,
    pub(crate) kind: Option<MessageKind>,
    pub(crate) method: Option<Box<str>>,
    pub(crate) tool: Option<Box<str>>,
    pub(crate) draw: f64,
    pub(crate) effect: Effect,
}

impl From<Hit> for HitRecord {
    fn from(hit: Hit) -> Self {
        Self {
            t_us: micros(hit.at),
            rule: hit.rule.to_string(),
            connection: hit.connection,
            direction: hit.direction.map(|direction| direction.as_str().to_owned()),
            ordinal: hit.ordinal,
            number: hit.number,
            kind: hit.kind.map(|kind| kind.as_str().to_owned()),
            method: hit.method.map(String::from),
            tool: hit.tool.map(String::from),
            draw: hit.draw,
            effect: hit.effect.as_str().to_owned(),
            amount: amount(&hit.effect),
        }
    }
}

/// How much an effect does, as a journal has it.
pub(crate) fn amount(effect: &Effect) -> Option<i64> {
    let whole = |number: u64| Some(i64::try_from(number).unwrap_or(i64::MAX));
    match effect {
        Effect::Delay { by, .. } => whole(micros(*by)),
        Effect::Slow { bytes_per_second } => Some(i64::from(*bytes_per_second)),
        Effect::Answer(Answer::RpcError { code, .. }) => Some(*code),
        Effect::Answer(Answer::HttpStatus { status, .. }) => Some(i64::from(*status)),
        Effect::Change(Change::Oversize { bytes }) => whole(*bytes),
        Effect::Hold { .. }
        | Effect::Drop
        | Effect::Duplicate
        | Effect::Answer(_)
        | Effect::Change(_)
        | Effect::Network
        | Effect::Break(_) => None,
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
