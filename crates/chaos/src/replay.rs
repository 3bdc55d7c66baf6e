//! Journals read back: were these decisions what they would be again, and where does another run part from this one?

use std::collections::HashMap;

use mcpscope_core::Direction;

use crate::Scenario;
use crate::draw::Key;
use crate::experiment::{Experiment, Request};
use crate::fault::{Chain, Fault};
use crate::journal::{Header, HitRecord, Record, VERSION, amount};
use crate::parameter::ParameterError;
use crate::report::Report;

/// Why a journal cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It does not begin as one.
    #[error("this is no journal of an experiment: expected a first line with \"record\":\"experiment\"")]
    NoJournal,
    /// It was written by another version.
    #[error("this journal has version {found}: expected version {VERSION}")]
    Version {
        /// Its version.
        found: u64,
    },
    /// A line is not whole, or not what follows.
    #[error("line {line} is no whole record: expected the journal as it was written")]
    BadLine {
        /// Which, from 1.
        line: usize,
    },
    /// There is no last line.
    #[error("the journal ends after line {line} without the record \"end\": it is cut")]
    Cut {
        /// The last line, from 1.
        line: usize,
    },
    /// Not everything is in it.
    #[error("{missing} hits are not in the journal, so that what it has proves nothing")]
    Incomplete {
        /// How many are not.
        missing: u64,
    },
    /// What became of packets nobody but the kernel knows.
    #[error(
        "which packets were lost or late was drawn by the kernel (backend=netem), and cannot be drawn again: expected an \
         experiment on messages"
    )]
    Packets,
    /// What it says was asked for cannot be asked for.
    #[error("the journal's experiment makes no sense")]
    Parameters(
        /// Why.
        #[from]
        ParameterError,
    ),
}

/// A journal that was read back.
#[derive(Clone, Debug)]
pub struct Recording {
    header: Header,
    hits: Vec<HitRecord>,
    report: Report,
    experiment: Experiment,
}

/// Where a journal parts from what is expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The so-many-th hit, from 0.
    pub at: usize,
    /// What should be there; none: nothing more.
    pub expected: Option<HitRecord>,
    /// What is there; none: nothing more.
    pub found: Option<HitRecord>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |hit: &Option<HitRecord>| match hit {
            Some(hit) => {
                let (method, tool) = (hit.method.as_deref().unwrap_or("-"), hit.tool.as_deref().unwrap_or("-"));
                let direction = hit.direction.as_deref().unwrap_or("both");
                let amount = hit.amount.map(|amount| format!(" {amount}")).unwrap_or_default();
                let (connection, ordinal, effect) = (hit.connection, hit.ordinal, &hit.effect);
                format!(
                    "{effect}{amount} on message {ordinal} {direction} of connection {connection} ({method} {tool})"
                )
            }
            None => "nothing more".to_owned(),
        };
        write!(f, "hit {}: expected {}, found {}", self.at, text(&self.expected), text(&self.found))
    }
}

/// The state of a chain is worked out draw by draw; no connection has more messages within ten minutes.
const MAX_ORDINAL: u64 = 100_000_000;

impl Recording {
    /// Reads a journal. No line is passed over.
    ///
    /// # Errors
    /// It is none, of another version, cut, or incomplete.
    pub fn parse(text: &str) -> Result<Self, ReplayError> {
        let mut lines = text.lines().enumerate();
        let first = lines.next().and_then(|(_, line)| serde_json::from_str::<serde_json::Value>(line).ok());
        let first = first.filter(|first| first["record"] == "experiment").ok_or(ReplayError::NoJournal)?;
        match first["version"].as_u64() {
            Some(version) if version == u64::from(VERSION) => {}
            Some(found) => return Err(ReplayError::Version { found }),
            None => return Err(ReplayError::NoJournal),
        }
        let Ok(Record::Experiment(header)) = serde_json::from_value(first) else {
            return Err(ReplayError::BadLine { line: 1 });
        };
        let (mut hits, mut report, mut last) = (Vec::new(), None, 1);
        for (number, line) in lines {
            last = number + 1;
            let record = serde_json::from_str(line).map_err(|_| ReplayError::BadLine { line: last })?;
            match record {
                // Nothing comes after the end.
                _ if report.is_some() => return Err(ReplayError::BadLine { line: last }),
                Record::Experiment(_) => return Err(ReplayError::BadLine { line: last }),
                Record::Hit(hit) if hit.ordinal > MAX_ORDINAL => return Err(ReplayError::BadLine { line: last }),
                Record::Hit(hit) => hits.push(hit),
                Record::End { report: end } => report = Some(*end),
                Record::State { .. } | Record::Intent { .. } | Record::Process { .. } | Record::Undone { .. } => {}
            }
        }
        let report = report.ok_or(ReplayError::Cut { line: last })?;
        // What is not done to messages makes no hits.
        let outside = header.scenario.parse().is_ok_and(Scenario::is_out_of_process);
        let expected = if outside { 0 } else { report.injection.injected };
        let missing = expected.abs_diff(hits.len() as u64).max(report.injection.unjournalled);
        if missing > 0 {
            return Err(ReplayError::Incomplete { missing });
        }
        let longest = std::time::Duration::from_millis(crate::catalogue::LONGEST_MS);
        let request = Request { scenario: header.scenario.clone(), parameters: header.parameters.clone() };
        let experiment = Experiment::read(&request, longest, None)?;
        if matches!(experiment.fault, Fault::Network(_)) {
            return Err(ReplayError::Packets);
        }
        Ok(Self { header, hits, report, experiment })
    }

    /// What the experiment was.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What it hit, in the order of the journal.
    #[must_use]
    pub fn hits(&self) -> &[HitRecord] {
        &self.hits
    }

    /// What became of it.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Asks for the same experiment with the same seed: over the same traffic it makes the same decisions.
    #[must_use]
    pub fn request(&self) -> Request {
        let parameters = self.header.parameters.clone().with("seed", self.header.seed);
        Request { scenario: self.header.scenario.clone(), parameters }
    }

    /// Decides everything in it again: the first hit that would not be what it is.
    #[must_use]
    pub fn verify(&self) -> Option<Divergence> {
        let mut chains = HashMap::new();
        self.hits.iter().enumerate().find_map(|(at, found)| {
            let expected = self.again(found, &mut chains);
            let is_same = expected.as_ref().is_some_and(|expected| is_same(expected, found));
            (!is_same).then(|| Divergence { at, expected, found: Some(found.clone()) })
        })
    }

    fn again(&self, hit: &HitRecord, chains: &mut HashMap<(u64, Direction), (u64, Chain)>) -> Option<HitRecord> {
        let fault = &self.experiment.fault;
        let Some(direction) = &hit.direction else {
            // Of a connection as a whole; that it was a new one is known from the effect only.
            let effects = [true, false].map(|is_new| fault.on_connection(is_new));
            let effect = effects.into_iter().flatten().find(|effect| effect.as_str() == hit.effect)?;
            return Some(HitRecord { effect: effect.as_str().to_owned(), amount: amount(&effect), ..hit.clone() });
        };
        let direction = Direction::ALL.into_iter().find(|known| known.as_str() == direction)?;
        let key = Key::messages(self.header.seed, self.experiment.scenario, hit.connection, direction);
        let chain = if matches!(fault, Fault::Loss { .. }) {
            // A journal has the hits of one direction in the order of its messages.
            let (mut next, mut chain) = chains.get(&(hit.connection, direction)).copied().unwrap_or_default();
            if next > hit.ordinal {
                return None;
            }
            while next <= hit.ordinal {
                chain = fault.advanced(key, next, chain);
                next += 1;
            }
            chains.insert((hit.connection, direction), (next, chain));
            chain
        } else {
            Chain::default()
        };
        if !self.experiment.matcher.count.takes(hit.number) {
            return None;
        }
        let drawn = fault.drawn(key, hit.ordinal, chain);
        let effect = drawn.effect?;
        let (effect, amount) = (effect.as_str().to_owned(), amount(&effect));
        Some(HitRecord { draw: drawn.draw, effect, amount, ..hit.clone() })
    }

    /// Where another run of the experiment parts from this one. Times do not matter, nor does the order between different
    /// connections and directions.
    #[must_use]
    pub fn first_divergence(&self, other: &Self) -> Option<Divergence> {
        let ordered = |hits: &[HitRecord]| {
            let mut hits = hits.to_vec();
            hits.sort_by(|a, b| (a.connection, &a.direction, a.ordinal).cmp(&(b.connection, &b.direction, b.ordinal)));
            hits
        };
        let (expected, found) = (ordered(&self.hits), ordered(&other.hits));
        (0..expected.len().max(found.len())).find_map(|at| {
            let (expected, found) = (expected.get(at), found.get(at));
            let is_same = expected.zip(found).is_some_and(|(expected, found)| is_same(expected, found));
            (!is_same).then(|| Divergence { at, expected: expected.cloned(), found: found.cloned() })
        })
    }
}

/// Whether two hits differ in nothing but their times. A draw may be off by what reading it back from text costs, an
/// amount by a unit where a machine rounds a logarithm otherwise.
fn is_same(a: &HitRecord, b: &HitRecord) -> bool {
    let amounts = match (a.amount, b.amount) {
        (Some(a), Some(b)) => a.abs_diff(b) <= 1,
        (a, b) => a == b,
    };
    let rest = |hit: &HitRecord| HitRecord { t_us: 0, number: 0, draw: 0.0, amount: None, ..hit.clone() };
    amounts && (a.draw - b.draw).abs() < 1e-12 && rest(a) == rest(b)
}
