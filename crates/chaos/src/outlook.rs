//! What an experiment would do.

use std::time::Duration;

use mcpscope_core::{Direction, Protocol, Transport};
use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::experiment::Experiment;
use crate::fault::Fault;
use crate::target::Unit;
use crate::{Message, MessageKind};

/// How often messages of one kind pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    /// The server.
    pub server: String,
    /// How they travel.
    pub transport: Transport,
    /// Which way.
    pub direction: Direction,
    /// The revision, where known.
    pub protocol: Option<Protocol>,
    /// What sort of message.
    pub kind: MessageKind,
    /// The method, or that of the request that is answered.
    pub method: Option<String>,
    /// The tool, likewise.
    pub tool: Option<String>,
    /// How many in a second.
    pub per_second: f64,
}

/// What an experiment would do if it were started now. Nothing is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// The scenario.
    pub scenario: String,
    /// How long the fault would last, in ms.
    pub duration: u64,
    /// The names of the servers or targets that it would be about.
    pub targets: Vec<String>,
    /// Their open connections.
    pub connections: usize,
    /// The share of the connections that it would be about, rounded up, 0..=1.
    pub connection_share: f64,
    /// Whether it would be done to packets (`backend=netem`), and so to connections and no messages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packets: bool,
    /// Messages that it would hit, if traffic goes on as it was. Of a fault of packets the connections, of those that are open now.
    pub expected_hits: f64,
    /// Of which methods and tools, the most first.
    pub hits: Vec<ExpectedHits>,
    /// Within which time after the end all is to be well again, and a process that it ended is to be there again, in ms.
    pub recovery_time: u64,
    /// What would have to hold before and after.
    pub steady_state: Vec<String>,
    /// What would be done to processes; none if nothing would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<CrashOutlook>,
    /// What would be taken of memory or processors; none if nothing would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceOutlook>,
}

/// What an experiment would do to processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CrashOutlook {
    /// How they would crash: `kill`, `term`, `stop` or `close_stdin`.
    pub signal: String,
    /// The chance of each process in every second, 0..=1; none: one of them, at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// How many crashes there would be at most, also by what is left of the limit of this hour.
    pub most: u64,
    /// The processes that it could be.
    pub processes: Vec<ProcessOutlook>,
}

/// A process that an experiment could crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessOutlook {
    /// The name of the target that it is.
    pub target: String,
    /// The components by whose names it is meant; empty if it is meant by its own, or with all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<String>,
    /// Its number; none if the target is no process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What it runs, without its arguments, which may be secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// How many processes there are in its group, which crashes as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u64>,
    /// How long after its end another one would be started, in ms; none if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted_after: Option<u64>,
}

/// What an experiment would take of memory or processors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceOutlook {
    /// What was asked for.
    pub requested: f64,
    /// What it would come to now.
    pub expected: f64,
    /// What both are in.
    pub unit: Unit,
    /// Of how many cores; none for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u64>,
    /// Why it would come to less than what was asked for; none if it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// The folder of the control group that it would count against; none if that cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// A part of what an experiment would hit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpectedHits {
    /// The server.
    pub server: String,
    /// Which way: `to_server` or `to_client`.
    pub direction: String,
    /// `request`, `response` or `notification`.
    pub kind: String,
    /// The method, or that of the request that is answered.
    pub method: Option<String>,
    /// The tool, likewise.
    pub tool: Option<String>,
    /// How many.
    pub hits: f64,
}

impl ExpectedHits {
    fn is_of(&self, other: &Self) -> bool {
        Self { hits: other.hits, ..self.clone() } == *other
    }
}

/// What an experiment that was admitted would do, given this traffic.
pub(crate) fn outlook(
    experiment: &Experiment,
    targets: Vec<String>,
    share: f64,
    directory: &Directory,
    traffic: &[Traffic],
) -> Outlook {
    let (matcher, fault) = (&experiment.matcher, &experiment.fault);
    // What is done to processes or to the machine is done to no message.
    let is_of_packets = matches!(fault, Fault::Network(_));
    let is_of_messages = !experiment.scenario.is_out_of_process() && !is_of_packets;
    let connections = if is_of_messages || is_of_packets { directory.connections(matcher).len() } else { 0 };
    let traffic = if is_of_messages { traffic } else { &[] };
    let seconds = experiment.duration.as_secs_f64();
    let messages = |row: &Traffic| {
        let message = Message {
            kind: row.kind,
            method: row.method.as_deref(),
            tool: row.tool.as_deref(),
            protocol: row.protocol,
        };
        let server =
            directory.servers().find(|server| *server.name == *row.server && server.transport == row.transport)?;
        // Which session it belongs to is not known here.
        let taken = !server.is_protected()
            && matcher.takes_server(&server.name, server.transport)
            && matcher.takes_direction(row.direction)
            && matcher.takes_message(row.transport, &message);
        taken.then_some(row.per_second.max(0.0) * seconds * share)
    };
    let matching: Vec<_> = traffic.iter().filter_map(|row| Some((row, messages(row)?))).collect();
    let total: f64 = matching.iter().map(|(_, messages)| messages).sum();
    let expected = if is_of_packets {
        // As a lease chooses them: rounded up.
        (share * connections as f64 - 1e-9).ceil().max(0.0)
    } else {
        matcher.count.expected(total, fault.intensity().get())
    };
    let part = |(row, messages): &(&Traffic, f64)| ExpectedHits {
        server: row.server.clone(),
        direction: row.direction.as_str().to_owned(),
        kind: row.kind.as_str().to_owned(),
        method: row.method.clone(),
        tool: row.tool.clone(),
        hits: if total > 0.0 { expected * messages / total } else { 0.0 },
    };
    let mut hits: Vec<ExpectedHits> = Vec::new();
    for part in matching.iter().map(part) {
        // Revisions and transports are not told apart here.
        match hits.iter_mut().find(|known| known.is_of(&part)) {
            Some(known) => known.hits += part.hits,
            None => hits.push(part),
        }
    }
    hits.sort_by(|a, b| b.hits.total_cmp(&a.hits));
    Outlook {
        scenario: experiment.scenario.to_string(),
        duration: millis(experiment.duration),
        connections,
        targets,
        connection_share: share,
        packets: is_of_packets,
        expected_hits: expected,
        hits,
        recovery_time: millis(experiment.recovery_time),
        steady_state: Vec::new(),
        crash: None,
        resource: None,
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
