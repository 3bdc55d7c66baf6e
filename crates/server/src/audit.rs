//! What of this process a fault could leave behind, from what the kernel says.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mcpscope_chaos::helper::ResourceTarget;
use mcpscope_chaos::{Child, ChildRole, Footprint, LeakAudit};
use mcpscope_core::FaultId;

/// Looks into `/proc`. What cannot be read, as elsewhere than on Linux, is not known.
#[derive(Debug)]
pub(crate) struct Proc {
    /// Knows its helpers.
    pub(crate) resources: Option<Arc<ResourceTarget>>,
}

impl LeakAudit for Proc {
    fn observe(&self) -> Footprint {
        let helpers = self.resources.as_ref().map(|resources| resources.helpers()).unwrap_or_default();
        Footprint { children: children(&helpers), descriptors: descriptors(), memory_bytes: resident_bytes() }
    }
}

/// All children. Which of them is a server and which its guardian is not told from here: those who started them answer for
/// their end, and what is seen here is whether one was left stopped.
fn children(helpers: &[(u32, FaultId)]) -> Option<Vec<Child>> {
    let mut children = Vec::new();
    for task in fs::read_dir("/proc/self/task").ok()? {
        let of_task = fs::read_to_string(task.ok()?.path().join("children")).ok()?;
        children.extend(of_task.split_ascii_whitespace().filter_map(|pid| child(pid.parse().ok()?, helpers)));
    }
    Some(children)
}

/// None if it has ended by now.
fn child(pid: u32, helpers: &[(u32, FaultId)]) -> Option<Child> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which is in parentheses and may have some in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let helper = helpers.iter().find(|(helper, _)| *helper == pid);
    let role = helper.map_or(ChildRole::Supervised, |(_, fault)| ChildRole::Helper(fault.0));
    Some(Child { pid, role, stopped: fields.starts_with('T') })
}

fn descriptors() -> Option<u64> {
    let links = fs::read_dir("/proc/self/fd").ok()?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let is_socket = |link: &Path| link.to_str().is_some_and(|link| link.starts_with("socket:"));
    u64::try_from(links.filter(|link| !is_socket(link)).count()).ok()
}

fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(u64::try_from(rustix::param::page_size()).ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

    use super::*;

    const PROC: Proc = Proc { resources: None };

    #[test]
    fn a_child_and_whether_it_is_stopped_is_seen() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let seen = || PROC.observe().children.unwrap().into_iter().find(|child| child.pid == cat.id());
        let is_stopped = seen().unwrap().stopped;
        let pid = Pid::from_child(&cat);
        kill_process(pid, Signal::STOP).unwrap();
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
        assert_eq!((is_stopped, seen().unwrap().stopped), (false, true));
        cat.kill().unwrap();
        cat.wait().unwrap();
        let gone = PROC.observe().children.unwrap().into_iter().all(|child| child.pid != cat.id());
        assert!(gone);
    }

    #[test]
    fn descriptors_are_counted_but_for_sockets() {
        let before = PROC.observe().descriptors.unwrap();
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let sockets: Vec<_> = (0..50).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let after = PROC.observe().descriptors.unwrap();
        // Other tests run beside this one.
        assert!((30..80).contains(&(after - before)), "{before} {after}");
        drop((files, sockets));
        assert!(PROC.observe().memory_bytes.unwrap() > 1 << 20);
    }
}
