//! A helper process, from its parent's side: its start, what it tells, its end.

use std::fs;
use std::io::{self, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::helper::HelperError;
use crate::helper::serve::{is_ready, monotonic};
use crate::helper::wire::{self, Job, Told};
use crate::process::{Process, ProcessEntry};
use crate::target::{Ended, ProcessId};

/// The program that runs, whatever has become of its file.
pub(super) const PROGRAM: &str = "/proc/self/exe";
/// How long the system may take to start it.
const START: Duration = Duration::from_secs(2);
/// How long it may take to greet.
const GREETING: Duration = Duration::from_secs(10);
/// How long a helper of an earlier run may take to end, and how often it is looked at meanwhile.
const SWEPT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// A helper that was started.
#[derive(Debug, Default)]
pub(super) struct Helper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    id: Option<ProcessId>,
    /// What it is signalled by; none before it is there and once it is reaped, when its number may be another's.
    process: Option<Process>,
    /// While this is open, the helper goes on.
    orders: Option<ChildStdin>,
    /// The control group in which it takes what it takes.
    group: Option<String>,
    achieved: Option<f64>,
    ended: Option<Ended>,
    /// It is to end.
    is_over: bool,
    /// It has ended, and is reaped.
    is_gone: bool,
}

impl Helper {
    /// Starts one. It lives in a thread of its own, since a helper dies with the thread that started it.
    pub(super) fn start(job: Job) -> Result<Arc<Self>, HelperError> {
        let helper = Arc::new(Self::default());
        let (sender, started) = sync_channel(1);
        let its = Arc::clone(&helper);
        let live = move || its.live(&job, &sender);
        thread::Builder::new().name("mcpscope-helper".into()).spawn(live).map_err(HelperError::NotStarted)?;
        match started.recv_timeout(START) {
            Ok(Ok(())) => Ok(helper),
            Ok(Err(error)) => Err(HelperError::NotStarted(error)),
            Err(_) => {
                helper.lock().is_over = true;
                Err(HelperError::TooSlow { ms: START.as_millis() as u64 })
            }
        }
    }

    fn live(&self, job: &Job, started: &SyncSender<io::Result<()>>) {
        let mut child = match spawn() {
            Ok(child) => child,
            // Whoever started it may have given up by now.
            Err(error) => return drop(started.send(Err(error))),
        };
        let told = child.stdout.take();
        let (process, id) = identified(&child).unzip();
        let mut state = self.lock();
        state.orders = child.stdin.take();
        state.id = id;
        state.process = process;
        if state.is_over {
            state.kill();
        }
        drop(state);
        let _ = started.send(Ok(()));
        let heard = told.ok_or_else(no_pipe).and_then(|told| self.listen(job, told));
        let mut state = self.lock();
        if let Err(error) = heard {
            state.kill();
            state.ended.get_or_insert(Ended::Failed(error.to_string()));
        }
        drop(state);
        self.reap(&mut child, job);
    }

    /// Gives it its job, and hears what becomes of it until it ends.
    fn listen(&self, job: &Job, told: ChildStdout) -> io::Result<()> {
        let hint = || {
            io::Error::other(
                "the helper process does not greet: expected mcpscope_chaos::helper::run_if_requested() to be called \
                 first in main",
            )
        };
        if !is_ready(&told, GREETING)? {
            return Err(hint());
        }
        let mut told = BufReader::new(told);
        match wire::read(&mut told) {
            Ok(Some(Told::Ready)) => {}
            Ok(None) => return Ok(()),
            _ => return Err(hint()),
        }
        match &self.lock().orders {
            // It has been told to end: it will see that.
            None => {}
            // An empty pipe has room for it: nothing to wait for.
            Some(orders) => match wire::write(orders, job) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            },
        }
        while let Some(what) = wire::read(&mut told)? {
            let mut state = self.lock();
            match what {
                Told::Ready => {}
                Told::Group(group) => state.group = Some(group),
                Told::Achieved(achieved) => state.achieved = Some(achieved),
                Told::LetGo(why) => state.ended = Some(Ended::LetGo(why)),
                Told::Failed(why) => state.ended = Some(Ended::Failed(why)),
            }
        }
        Ok(())
    }

    /// Waits for its end without reaping it first: until it is let go of, no signal may reach another process that
    /// has got its number.
    fn reap(&self, child: &mut Child, job: &Job) {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // An error is that somebody else has reaped it.
            let wait = || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            while matches!(wait(), Err(Errno::INTR)) {}
        }
        let mut state = self.lock();
        state.process = None;
        state.orders = None;
        let status = child.wait();
        let is_early = !state.is_over && monotonic() < Duration::from_nanos(job.deadline_ns);
        if is_early && state.ended.is_none() {
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            state.ended = Some(Ended::Failed(format!("the helper process ended before its time ({how})")));
        }
        state.is_gone = true;
    }

    /// Ends it, without waiting until it is gone.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        state.orders = None;
        state.kill();
    }

    pub(super) fn id(&self) -> Option<ProcessId> {
        self.lock().id
    }

    pub(super) fn achieved(&self) -> Option<f64> {
        self.lock().achieved
    }

    pub(super) fn group(&self) -> Option<String> {
        self.lock().group.clone()
    }

    /// That it has ended though nobody wanted it to.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.lock().ended.clone()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.lock().is_gone
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn kill(&self) {
        if let Some(process) = &self.process {
            // There is no error but that it has ended.
            let _ = process.signal(Signal::KILL);
        }
    }
}

fn spawn() -> io::Result<Child> {
    Command::new(PROGRAM)
        .arg0("mcpscope-chaos-helper")
        .args([wire::MARKER, &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // What it has to say it tells.
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
}

fn no_pipe() -> io::Error {
    io::Error::other("the helper process has no pipe")
}

/// Our child, and what it can be known by later. Nothing if its number is of another process: somebody else has reaped it.
fn identified(child: &Child) -> Option<(Process, ProcessId)> {
    let entry = ProcessEntry::read(child.id()).ok().filter(|entry| entry.parent == std::process::id())?;
    let process = Process::open_started(entry.pid, entry.started).ok()?;
    Some((process, ProcessId { pid: entry.pid, started: entry.started }))
}

/// Ends a helper of an earlier run, if it is still there and provably that: the same number, the same start, and a helper by
/// its arguments. Whether it is gone.
pub(super) fn sweep(id: ProcessId) -> bool {
    let Ok(process) = Process::open_started(id.pid, id.started) else { return true };
    let arguments = fs::read(format!("/proc/{}/cmdline", id.pid)).unwrap_or_default();
    if arguments.split(|byte| *byte == 0).nth(1) != Some(wire::MARKER.as_bytes()) {
        return true;
    }
    // There is no error but that it has ended, which is looked for.
    let _ = process.signal(Signal::KILL);
    let until = Instant::now() + SWEPT;
    let is_there = || ProcessEntry::read(id.pid).is_ok_and(|entry| entry.started == id.started && !entry.is_zombie);
    while is_there() && Instant::now() < until {
        thread::sleep(LOOK);
    }
    !is_there()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::wire::Task;

    #[test]
    fn a_program_that_is_no_helper_is_ended_with_a_hint() {
        // The harness of these tests takes the marker for the name of a test, of which there is none.
        let job = Job { task: Task::Cpu { cores: 1, duty: 0.1 }, victims: Vec::new(), deadline_ns: u64::MAX };
        let helper = Helper::start(job).unwrap();
        while !helper.is_gone() {
            thread::sleep(Duration::from_millis(1));
        }
        let Some(Ended::Failed(why)) = helper.ended() else { panic!("{:?}", helper.ended()) };
        assert!(why.contains("expected mcpscope_chaos::helper::run_if_requested() to be called"), "{why}");
    }
}
