//! How a process knows that it was started as a helper, and what becomes of it then.

use std::ffi::OsStr;
use std::panic;

use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

use crate::helper::{serve, wire};

/// The process id of the parent, if this process was started as a helper.
pub(super) fn requested() -> Option<Pid> {
    let mut arguments = std::env::args_os().skip(1);
    let is_helper = arguments.next().as_deref() == Some(OsStr::new(wire::MARKER));
    let parent = arguments.next().filter(|_| is_helper)?;
    // Of a marker without a parent nothing good can come.
    Some(parent.to_str().and_then(|pid| Pid::from_raw(pid.parse().ok()?)).unwrap_or_else(getpid))
}

/// Is a helper until its end.
pub(super) fn run(parent: Pid) -> ! {
    let well = panic::catch_unwind(|| {
        set_parent_process_death_signal(Some(Signal::KILL)).is_ok()
            // It may have died before: then there is another one by now.
            && getppid() == Some(parent)
            && serve::serve().is_ok()
    });
    end(u8::from(!well.unwrap_or(false)))
}

/// Ends this process, whatever its other threads do.
#[expect(clippy::disallowed_methods, reason = "the process is a helper, and does nothing else")]
fn end(code: u8) -> ! {
    std::process::exit(i32::from(code))
}

/// Ends this process now: no handler, no destructor, nothing left to hang.
pub(super) fn kill_self() {
    // A process can always kill itself.
    let _ = kill_process(getpid(), Signal::KILL);
}
