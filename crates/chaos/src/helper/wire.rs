//! What a helper is told and what it tells, as JSON lines on its standard input and output.

use std::io::{self, BufRead, Read as _, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::helper::groups::Controller;
use crate::network::{Netem, Packets};
use crate::target::Victim;

/// The first argument of a helper; the second is the process id of its parent.
pub(super) const MARKER: &str = "mcpscope-chaos-helper-2f0c7d7e41b94d3f";
/// Longest line, in bytes: room for a hundred servers whose control group is meant.
const LONGEST: u64 = 64 << 10;

/// All that a helper is ever told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) task: Task,
    /// In whose control group; empty: in its own.
    pub(super) victims: Vec<Victim>,
    /// When it is to be gone, by the monotonic clock of the system.
    pub(super) deadline_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    Take(Take),
    /// A network with faults.
    Network(Netem),
}

/// What a helper takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Take {
    Memory {
        bytes: u64,
    },
    Cpu {
        cores: usize,
        /// Of each core, 0..=1.
        duty: f64,
    },
}

impl Take {
    /// What counts it.
    pub(super) const fn controller(self) -> Controller {
        match self {
            Self::Memory { .. } => Controller::Memory,
            Self::Cpu { .. } => Controller::Cpu,
        }
    }
}

/// What a helper tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// It waits for its job.
    Ready,
    /// The network is there: from here on it hands out connections.
    Up,
    /// It takes what it takes in this control group.
    Group(String),
    /// Bytes of memory at most, or the share of the cores' time on average.
    Achieved(f64),
    /// What has become of packets so far.
    Packets(Packets),
    /// It ended before its time, to be on the safe side.
    LetGo(String),
    /// It could not do it.
    Failed(String),
}

pub(super) fn write(mut to: impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// The next line; none at the end.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LONGEST).read_until(b'\n', &mut line)?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::ProcessId;

    #[test]
    fn what_is_written_can_be_read() {
        // More than there ever are.
        let victim = Victim { name: "x".repeat(100), process: ProcessId { pid: 7, started: 8 } };
        let victims = vec![victim; 300];
        let jobs = [
            Job { task: Task::Take(Take::Memory { bytes: 5 }), victims: Vec::new(), deadline_ns: 7 },
            Job { task: Task::Take(Take::Cpu { cores: 2, duty: 0.8 }), victims, deadline_ns: u64::MAX },
            Job { task: Task::Network(Netem::default()), victims: Vec::new(), deadline_ns: 1 },
        ];
        let mut text = Vec::new();
        jobs.iter().for_each(|job| write(&mut text, job).unwrap());
        let mut from = text.as_slice();
        assert_eq!(jobs.map(Some), [0; 3].map(|_| read(&mut from).unwrap()));
        assert_eq!(read::<Job>(&mut from).unwrap(), None);
    }

    #[test]
    fn what_is_no_line_of_ours_is_an_error() {
        for text in ["\n", "hello\n", "{\"task\":\"cpu\"}\n", &format!("\"{}\"", "x".repeat(70_000))] {
            assert!(read::<Job>(&mut text.as_bytes()).is_err(), "{text}");
        }
    }
}
