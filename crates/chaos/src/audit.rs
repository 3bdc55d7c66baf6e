//! Whether a fault has left something behind.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use mcpscope_core::FaultId;
use serde::{Deserialize, Serialize};

/// Sees what of this program a fault could leave behind. It is asked in the middle of the controller's commands, before and
/// after experiments, so it must be quick and must not call it.
pub trait LeakAudit: fmt::Debug + Send + Sync {
    /// What there is now.
    fn observe(&self) -> Footprint;
}

/// What of this program a fault could leave behind. What is not known is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Footprint {
    /// The children of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children: Option<Vec<Child>>,
    /// Open descriptors that are no sockets: those come and go with clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<u64>,
    /// Resident memory of this process, without its children, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A child of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Its number.
    pub pid: u32,
    /// What it is there for.
    pub role: ChildRole,
    /// Whether it is stopped, as by SIGSTOP.
    pub stopped: bool,
}

/// What a child is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildRole {
    /// It is watched over, and started again when it ends.
    Supervised,
    /// It carries out the fault of this experiment, or takes it back.
    Helper(
        /// The number of the [`FaultId`].
        u64,
    ),
    /// Nobody knows.
    Other,
}

/// What was looked at after an experiment, and what was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    /// What was looked at, of: fault table, queues, targets, children, descriptors, memory. Nothing as long as it is not
    /// decided, or if nobody could look: then nobody knows whether something was left over.
    pub looked_at: Vec<String>,
    /// What there was before the fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Footprint>,
    /// What there was when it was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Footprint>,
}

/// How long something may still be there after the end of an experiment.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// Descriptors may be so many more than before for other reasons: files that are written.
const DESCRIPTORS: u64 = 16;
/// And so many more for each child that there is more: its pipes, and what it is watched by. The plan of supervised servers
/// may change while an experiment is there.
const CHILD_DESCRIPTORS: u64 = 4;
/// And so many more for each other experiment: its journal, and what it has of its helper.
const EXPERIMENT_DESCRIPTORS: u64 = 4;
/// Memory may be larger by half, and by so much, for other reasons: traffic, what allocators keep. What a fault is to take,
/// a helper takes; what it holds up is bounded by the queues.
const MEMORY: u64 = 256 << 20;

/// The other experiments that are not over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Others {
    pub(crate) count: u64,
    /// Whether one of them acts on processes: then the children are not judged.
    pub(crate) act: bool,
}

/// What is there that should not be, in words; nothing if all is as before.
pub(crate) fn left_over(fault: FaultId, before: &Footprint, after: &Footprint, others: Others) -> Vec<String> {
    let mut left = Vec::new();
    let none = Vec::new();
    let was = |pid: u32| before.children.as_ref().unwrap_or(&none).iter().find(move |child| child.pid == pid);
    for Child { pid, role, stopped } in after.children.as_ref().unwrap_or(&none) {
        match role {
            ChildRole::Helper(of) if *of == fault.0 => left.push(format!("helper {pid} is still there")),
            // Each answers for its own.
            ChildRole::Helper(_) => {}
            _ if others.act || before.children.is_none() => {}
            ChildRole::Other if was(*pid).is_none() => left.push(format!("child {pid} was not there before")),
            _ if *stopped && !was(*pid).is_some_and(|child| child.stopped) => {
                left.push(format!("child {pid} is stopped"));
            }
            _ => {}
        }
    }
    let more_children = match (&before.children, &after.children) {
        (Some(before), Some(after)) => after.len().saturating_sub(before.len()) as u64,
        _ => 0,
    };
    let more = DESCRIPTORS
        .saturating_add(more_children.saturating_mul(CHILD_DESCRIPTORS))
        .saturating_add(others.count.saturating_mul(EXPERIMENT_DESCRIPTORS));
    if let (Some(before), Some(after)) = (before.descriptors, after.descriptors)
        && after > before.saturating_add(more)
    {
        left.push(format!("{after} descriptors are open, {before} were before"));
    }
    if let (Some(before), Some(after)) = (before.memory_bytes, after.memory_bytes)
        && after > before.saturating_add(before / 2).saturating_add(MEMORY)
    {
        left.push(format!("{} of memory are resident, {} were before", ByteSize(after), ByteSize(before)));
    }
    left
}

/// Which parts of both were seen.
pub(crate) fn seen(before: &Footprint, after: &Footprint) -> impl Iterator<Item = &'static str> {
    let parts = [
        ("children", before.children.is_some() && after.children.is_some()),
        ("descriptors", before.descriptors.is_some() && after.descriptors.is_some()),
        ("memory", before.memory_bytes.is_some() && after.memory_bytes.is_some()),
    ];
    parts.into_iter().filter(|(_, seen)| *seen).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Child = Child { pid: 10, role: ChildRole::Supervised, stopped: false };
    const FAULT: FaultId = FaultId(7);
    const ALONE: Others = Others { count: 0, act: false };

    fn footprint(children: &[Child], descriptors: u64, mebibytes: u64) -> Footprint {
        let memory_bytes = Some(mebibytes << 20);
        Footprint { children: Some(children.to_vec()), descriptors: Some(descriptors), memory_bytes }
    }

    #[track_caller]
    fn check(after: &Footprint, expected: &[&str]) {
        let before = footprint(&[SERVER, Child { pid: 11, ..SERVER }], 40, 100);
        assert_eq!(left_over(FAULT, &before, after, ALONE), expected);
        // What is not known is no leak.
        assert_eq!(left_over(FAULT, &before, &Footprint::default(), ALONE), [""; 0]);
    }

    #[test]
    fn what_changes_for_other_reasons_is_no_leak() {
        check(&footprint(&[SERVER, Child { pid: 11, ..SERVER }], 40, 100), &[]);
        check(&footprint(&[], 0, 0), &[]);
        // A server that was started again, traffic.
        check(&footprint(&[Child { pid: 99, ..SERVER }], 56, 406), &[]);
        let other = Child { pid: 50, role: ChildRole::Helper(8), stopped: false };
        check(&footprint(&[SERVER, other], 40, 100), &[]);
    }

    #[test]
    fn what_a_fault_leaves_is_named() {
        let helper = Child { pid: 50, role: ChildRole::Helper(7), stopped: false };
        check(&footprint(&[SERVER, helper], 40, 100), &["helper 50 is still there"]);
        check(&footprint(&[Child { stopped: true, ..SERVER }], 40, 100), &["child 10 is stopped"]);
        check(&footprint(&[Child { pid: 99, stopped: true, ..SERVER }], 40, 100), &["child 99 is stopped"]);
        let stray = Child { pid: 51, role: ChildRole::Other, stopped: false };
        check(&footprint(&[stray], 40, 100), &["child 51 was not there before"]);
        check(&footprint(&[], 57, 100), &["57 descriptors are open, 40 were before"]);
        let memory = "407.0 MiB of memory are resident, 100.0 MiB were before";
        check(&footprint(&[], 58, 407), &["58 descriptors are open, 40 were before", memory]);
    }

    #[test]
    fn descriptors_of_children_that_came_are_no_leak() {
        let servers = |count: u32| (10..10 + count).map(|pid| Child { pid, ..SERVER }).collect::<Vec<_>>();
        // 13 more servers, two pipes each.
        check(&footprint(&servers(15), 40 + 26, 100), &[]);
        check(&footprint(&servers(15), 40 + 16 + 13 * 4, 100), &[]);
        check(&footprint(&servers(15), 40 + 16 + 13 * 4 + 1, 100), &["109 descriptors are open, 40 were before"]);
        // One that was started again has the place of another.
        let again = [SERVER, Child { pid: 99, ..SERVER }];
        check(&footprint(&again, 57, 100), &["57 descriptors are open, 40 were before"]);
        let unknown = Footprint { children: None, ..footprint(&[], 57, 100) };
        check(&unknown, &["57 descriptors are open, 40 were before"]);
    }

    #[test]
    fn descriptors_of_other_experiments_are_no_leak() {
        let left = |descriptors| {
            let others = Others { count: 24, act: false };
            left_over(FAULT, &footprint(&[SERVER], 27, 1), &footprint(&[SERVER], descriptors, 1), others)
        };
        assert_eq!(left(27 + 16 + 24 * 4), [""; 0]);
        assert_eq!(left(27 + 16 + 24 * 4 + 1), ["140 descriptors are open, 27 were before"]);
    }

    #[test]
    fn what_was_stopped_before_or_may_be_anothers_doing_is_not_judged() {
        let stopped = Child { stopped: true, ..SERVER };
        let (well, ill) = (footprint(&[SERVER], 1, 1), footprint(&[stopped], 1, 1));
        assert_eq!(left_over(FAULT, &ill, &ill, ALONE), [""; 0]);
        assert_eq!(left_over(FAULT, &well, &ill, Others { count: 1, act: true }), [""; 0]);
        assert_eq!(left_over(FAULT, &Footprint::default(), &ill, ALONE), [""; 0], "nobody saw what was there before");
    }
}
