//! Real processes to read.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::machine::Machine;

/// Takes all of a core, for ever.
pub(crate) const SPIN: &str = "while :; do :; done";

/// A shell that leads a process group of its own; dropping it ends the whole group.
#[derive(Debug)]
pub(crate) struct Group(Child);

impl Group {
    pub(crate) fn of(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Until there are `count` processes in the group.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) {
        let machine = Machine::new();
        until(|| machine.system.processes(&[self.pid()]).unwrap().len() == count);
    }

    /// Ends its leader, not the rest.
    #[cfg(target_os = "linux")]
    pub(crate) fn kill_leader(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // May be gone already.
        let _gone = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _gone = self.0.wait();
    }
}

#[track_caller]
pub(crate) fn until(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}
