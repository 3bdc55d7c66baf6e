//! A process beside one that is supervised, which sees to its end if we cannot.
//!
//! It holds the end of a pipe. When that closes nobody is left who could look after the process group: it is let go on if it
//! was stopped, asked to end, and a second later made to. While it is stopped, the guardian also knows until when, so that it
//! goes on at that time whatever has become of us.
//!
//! The guardian is this very program, started again: who wants one calls [`run_if_requested`] before anything else.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::process::{Process, ProcessEntry, Signal};

/// The argument that makes a program a guardian; the process id and the start time follow.
const REQUEST: &str = "--mcpscope-guardian";
/// What the guardian is called in lists of processes, of which the system keeps 15 bytes.
const NAME: &str = "mcpscope-guard";
/// This program, even where its file has been replaced or removed.
const THIS: &str = "/proc/self/exe";
/// How long a process group has to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// If this process was started to be a guardian, it is one, and ends in here. Otherwise it can start some.
///
/// To be called first in `main`: before threads are started, files opened or arguments read.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a guardian is a process of its own, and this its main")]
pub fn run_if_requested() -> Guardians {
    if let Some(duty) = requested(std::env::args_os().skip(1)) {
        duty.run();
        std::process::exit(0);
    }
    Guardians { program: THIS.into(), arguments: Arc::default() }
}

/// What a guardian is to do, if these arguments ask for one: for a program whose `main` is not its own, such as a test, which hands
/// over to it by arguments that come before.
#[must_use]
pub fn requested(arguments: impl IntoIterator<Item = OsString>) -> Option<Duty> {
    let mut arguments = arguments.into_iter();
    if arguments.next()? != REQUEST {
        return None;
    }
    let mut number = || arguments.next()?.to_str()?.parse::<u64>().ok();
    Some(Duty { pid: u32::try_from(number()?).ok()?, started: number()? })
}

/// What a guardian is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duty {
    pid: u32,
    started: u64,
}

impl Duty {
    /// Does it: returns once the pipe at stdin is closed and nobody of the process group is left, or it was gone before.
    pub fn run(self) {
        // Not through the buffer of the standard library, of which `poll` knows nothing.
        let pipe = io::stdin().as_fd().try_clone_to_owned();
        if let (Ok(process), Ok(pipe)) = (Process::open_started(self.pid, self.started), pipe) {
            // Shows that it watches; nothing depends on it.
            let _ = fs::write("/proc/self/comm", NAME);
            wait(&process, File::from(pipe));
            end(&process);
        }
    }
}

/// Waits until the pipe is closed; what comes through it are times until when the group is stopped.
fn wait(process: &Process, mut pipe: File) {
    let mut resumes: Option<Instant> = None;
    loop {
        let left = resumes.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Err(_) => return,
            Ok(0) => {
                resumes = None;
                let _ = process.signal_group(Signal::CONT);
            }
            Ok(_) => {
                let mut millis = [0; 8];
                if pipe.read_exact(&mut millis).is_err() {
                    return;
                }
                let millis = u64::from_le_bytes(millis);
                resumes = (millis > 0).then(|| Instant::now().checked_add(Duration::from_millis(millis))).flatten();
            }
        }
    }
}

/// Ends the group. While one of it is there its number is no other's: it is looked at again and again.
fn end(process: &Process) {
    // The other way round it could end of the signal before it goes on; one that is stopped takes it when it does.
    for signal in [Signal::TERM, Signal::CONT] {
        if process.signal_group(signal).is_err() {
            return;
        }
    }
    let until = Instant::now() + GRACE;
    while Instant::now() < until {
        std::thread::sleep(LOOK);
        if !process.has_group() {
            return;
        }
    }
    let _ = process.signal_group(Signal::KILL);
}

/// Starts guardians. That there is one of these shows that the program lends itself to it.
#[derive(Clone, Debug)]
pub struct Guardians {
    program: PathBuf,
    arguments: Arc<[OsString]>,
}

impl Guardians {
    /// Guardians by another program, or by this one where [`run_if_requested`] cannot come first: started with these arguments
    /// and more behind them, it is to hand those over to [`requested`].
    #[must_use]
    pub fn of(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self { program: program.into(), arguments: arguments.into_iter().collect() }
    }

    /// Starts one for the process group that this process leads, which is to be a child that nobody has waited for.
    ///
    /// # Errors
    /// The process is gone, or the guardian cannot be started.
    pub fn guard(&self, pid: u32) -> io::Result<Guardian> {
        let started = ProcessEntry::read(pid)?.started;
        let (end, pipe): (PipeReader, PipeWriter) = io::pipe()?;
        let mut command = Command::new(&self.program);
        command
            .arg0("mcpscope-guardian")
            .args(&*self.arguments)
            .arg(REQUEST)
            .args([pid.to_string(), started.to_string()]);
        // In a group of its own: what is sent to ours, as by a terminal, is not for it. Nothing of ours is kept open or busy.
        command.stdin(end).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").process_group(0);
        Ok(Guardian { child: command.spawn()?, pipe })
    }
}

/// A guardian. Dropped without [`Guardian::dismiss`], it ends what it guards.
#[derive(Debug)]
#[must_use = "dropping it ends what it guards"]
pub struct Guardian {
    child: Child,
    pipe: PipeWriter,
}

impl Guardian {
    /// Has the process group go on (SIGCONT) once this time has passed, even if nobody else does. It replaces what was said
    /// before; zero takes it back.
    ///
    /// # Errors
    /// The guardian is gone.
    pub fn resume_after(&mut self, time: Duration) -> io::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(io::Error::other(format!("the guardian has ended ({status})")));
        }
        let millis = u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        self.pipe.write_all(&millis.to_le_bytes())
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it; what it guards is left alone.
    pub fn dismiss(mut self) {
        // In this order: it must not see the pipe close. One that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
