//! The child process: its start, the signals it gets, and its end.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mcpscope_chaos::guardian::{Guardian, Guardians};
use mcpscope_chaos::process::{ProcessEntry, ProcessTable};
use mcpscope_chaos::{Crash, Order, ProcessId, TargetError};
use mcpscope_core::FaultId;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::{Notify, oneshot};

use crate::crashes::Crashes;
use crate::standstill::Standstills;

/// How long a child may take to end once it was asked to by SIGTERM, before it is made to by SIGKILL.
const TERM: Duration = Duration::from_secs(10);

/// How long after a fault a child that was made to end by it may take to do so: one that ends later does by itself.
const ENDING: Duration = Duration::from_secs(5);

/// Sends signals to the child, or to the one that was started in its place.
#[derive(Clone, Debug)]
pub struct ChildHandle(Arc<ChildState>);

/// A server's program.
#[derive(Debug)]
pub struct Program {
    pub(crate) command: Command,
    pub(crate) guardians: Option<Guardians>,
}

impl From<Command> for Program {
    fn from(command: Command) -> Self {
        Self { command, guardians: None }
    }
}

impl Program {
    /// With a guardian beside each of its processes, which ends it if we die without having done so.
    #[must_use]
    pub fn guarded(self, guardians: Guardians) -> Self {
        Self { guardians: Some(guardians), ..self }
    }
}

#[derive(Debug)]
struct ChildState {
    guardians: Option<Guardians>,
    /// Whether the child is of no use any more once its input has ended.
    lives_by_stdin: bool,
    child: Mutex<Current>,
    crashes: Crashes,
    standstills: Standstills,
    /// Its input is to be closed.
    closing: Notify,
    /// It accepts connections.
    accepting: Notify,
    /// Someone asked the child to end, so that its end is no crash.
    asked_to_end: AtomicBool,
    /// The signals that were passed on, as bits.
    signals: AtomicU64,
    /// Someone asked the child to end after it had ended: what is left of its output is not waited for, and no other is
    /// started.
    is_abandoned: AtomicBool,
    abandoned: Notify,
}

/// The child that runs, or that has ended and has none in its place yet.
#[derive(Debug, Default)]
struct Current {
    /// None once the child is reaped, when its number may be another's.
    pid: Option<Pid>,
    /// Before when there was no child.
    started: Option<Instant>,
    guardian: Option<Guardian>,
    /// Whether it was seen to accept connections.
    accepts: bool,
    /// What it was made to end by.
    crashed_by: Option<FaultId>,
    /// When that was over, though the child was there.
    outlived_at: Option<Instant>,
    /// By whom its input was closed.
    closed_by: Option<FaultId>,
    /// What holds it up, and until when.
    stopped_by: Vec<(FaultId, Instant)>,
    /// What did so last.
    resumed_after: Option<FaultId>,
}

/// A child that was started.
#[derive(Debug)]
pub(crate) struct Started<E> {
    /// Our ends of its pipes.
    pub(crate) ends: E,
    /// Its end, once it is reaped.
    pub(crate) exited: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// When what is left of a child's process group is killed at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CleanUp {
    Never,
    AfterCrash,
    Always,
}

impl ChildHandle {
    /// The process id; none once the child has ended.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.lock().pid.map(id)
    }

    /// When the child that runs was started, at the earliest; none if none runs.
    pub(crate) fn started(&self) -> Option<Instant> {
        let current = self.lock();
        current.pid.and(current.started)
    }

    /// The process, as it can still be known when its number is another's.
    pub(crate) fn process(&self) -> Option<ProcessId> {
        // Held: until it is taken out, nobody has waited for the child's end, and its number is its own.
        let current = self.lock();
        let entry = ProcessEntry::read(id(current.pid?)).ok().filter(|entry| !entry.is_zombie)?;
        Some(ProcessId { pid: entry.pid, started: entry.started })
    }

    /// Passes a signal on to the child's process group. Once the child has ended, a signal to end makes
    /// [`StdioRelay::wait`](crate::stdio::StdioRelay::wait) return without the rest of the output, and without another child.
    pub fn signal(&self, signal: Signal) {
        let ends = [Signal::INT, Signal::TERM, Signal::QUIT].contains(&signal);
        let mut current = self.lock();
        match current.pid {
            Some(pid) => {
                self.0.asked_to_end.fetch_or(ends, Ordering::Relaxed);
                // That one ends whoever gets it: it is no wish of whoever sends it to us.
                if signal != Signal::KILL {
                    self.0.signals.fetch_or(bit(signal.as_raw()), Ordering::Relaxed);
                }
                if let Err(error) = kill_process_group(pid, signal) {
                    tracing::warn!(?signal, %error, "cannot signal the server");
                }
                if ends && !current.stopped_by.is_empty() {
                    // One that a fault holds up could do nothing about it.
                    current.resume(pid);
                    self.0.standstills.end(None, Instant::now());
                }
            }
            None if ends => {
                self.0.is_abandoned.store(true, Ordering::Relaxed);
                self.0.abandoned.notify_one();
            }
            None => {}
        }
    }

    /// Gives a child that was asked to end by SIGTERM 10 s to do so, and then ends it by SIGKILL.
    pub async fn kill_after_term(&self) {
        tokio::time::sleep(TERM).await;
        if self.id().is_some() {
            tracing::warn!("the server did not end within {TERM:?} of SIGTERM: it is killed");
        }
        self.signal(Signal::KILL);
    }

    /// Of no child yet. `lives_by_stdin` says whether it is of no use any more once its input has ended.
    pub(crate) fn new(guardians: Option<Guardians>, lives_by_stdin: bool) -> Self {
        Self(Arc::new(ChildState {
            guardians,
            lives_by_stdin,
            child: Mutex::default(),
            crashes: Crashes::default(),
            standstills: Standstills::new(Instant::now()),
            closing: Notify::new(),
            accepting: Notify::new(),
            asked_to_end: AtomicBool::new(false),
            signals: AtomicU64::new(0),
            is_abandoned: AtomicBool::new(false),
            abandoned: Notify::new(),
        }))
    }

    /// Starts a child that has none before it, or one that has ended, and takes our ends of its pipes. Nothing if someone
    /// wants the server to end.
    pub(crate) fn start<E>(
        &self,
        command: &mut Command,
        clean_up: CleanUp,
        ends: impl FnOnce(&mut Child) -> Option<E>,
    ) -> io::Result<Option<Started<E>>> {
        // Held until the child has a number: a signal reaches the child or is seen here.
        let mut current = self.lock();
        if self.is_abandoned() {
            return Ok(None);
        }
        *current = Current { started: Some(Instant::now()), ..Current::default() };
        let mut child = command.spawn()?;
        self.0.crashes.restarted(Instant::now());
        current.pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        drop(current);
        let no_pipe = || io::Error::other("the child has no pipe");
        let start = |child: &mut Child| {
            let ends = ends(child).ok_or_else(no_pipe)?;
            let (sender, exited) = oneshot::channel();
            let handle = self.clone();
            // Handed over once there is a thread: without one it is ended below.
            let (hand_over, taken) = std::sync::mpsc::channel::<Child>();
            thread::Builder::new().name("mcpscope-wait".into()).spawn(move || {
                if let Ok(mut child) = taken.recv() {
                    handle.guard();
                    // The receiver may be gone, with the relay.
                    let _ = sender.send(handle.reap(&mut child, clean_up));
                }
            })?;
            Ok((hand_over, Started { ends, exited }))
        };
        match start(&mut child) {
            Ok((hand_over, started)) => {
                // It waits for it.
                let _ = hand_over.send(child);
                Ok(Some(started))
            }
            Err(error) => {
                // Nothing half-started: a server that nobody relays to must not stay.
                self.signal(Signal::KILL);
                let _ = self.reap(&mut child, clean_up);
                Err(error)
            }
        }
    }

    /// Waits for the end of the child without reaping it first: until its number is taken out of the handle, no signal may
    /// reach another process that has got the number.
    fn reap(&self, child: &mut Child, clean_up: CleanUp) -> io::Result<ExitStatus> {
        let pid = self.lock().pid;
        if let Some(pid) = pid {
            let ended = loop {
                match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                    Ok(ended) => break ended,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            };
            self.end(Instant::now());
            let well = ended.is_some_and(|ended| ended.exit_status() == Some(0)) && self.crashed_by().is_none();
            let well = well || self.was_asked_to_end();
            if clean_up == CleanUp::Always || (clean_up == CleanUp::AfterCrash && !well) {
                // Not beside the next one; there is no error but that nobody is left.
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
        let mut current = self.lock();
        current.guardian.take().into_iter().for_each(Guardian::dismiss);
        (current.pid, current.stopped_by) = (None, Vec::new());
        self.0.standstills.end(None, Instant::now());
        child.wait()
    }

    /// Has someone see to the end of the child if we cannot.
    fn guard(&self) {
        if let (current, Some(guardians)) = (&mut *self.lock(), &self.0.guardians)
            && let Err(error) = current.guardian(guardians)
        {
            tracing::warn!(%error, "nobody will end the server if mcpscope is killed");
        }
    }

    /// Crashes the child as is wanted. Nobody asked for its end: what follows is what follows a crash.
    pub(crate) fn crash(&self, order: &Order<'_>) -> Result<(), TargetError> {
        let error = |error: &dyn std::fmt::Display| TargetError(error.to_string());
        let mut current = self.lock();
        // Until it is taken out, nobody has waited for the child's end, and its number is its own.
        let pid = current.pid.ok_or_else(|| TargetError("no process runs now".to_owned()))?;
        let table = ProcessTable::read().map_err(|why| error(&format_args!("cannot read the process table: {why}")))?;
        table.may_signal(id(pid), std::process::id(), order.protected).map_err(|protected| error(&protected))?;
        let signal = |signal| kill_process_group(pid, signal).map_err(|why| error(&why));
        match order.crash() {
            Crash::Kill => signal(Signal::KILL)?,
            Crash::Term => signal(Signal::TERM)?,
            Crash::Stop => {
                let guardians = self.0.guardians.as_ref().ok_or_else(|| {
                    TargetError("nobody would let it go on if mcpscope were killed: expected a program that calls mcpscope_chaos::guardian::run_if_requested()".to_owned())
                })?;
                current.stopped_by.push((order.fault, order.expires_at));
                let until = current.stopped_by.iter().map(|(_, until)| *until).max().unwrap_or(order.expires_at);
                let guardian = current.guardian(guardians).map_err(|why| error(&why))?;
                // First: from here on it goes on in time whatever happens.
                let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                guardian.resume_after(left).map_err(|why| error(&why))?;
                self.0.standstills.begin(order.fault, Instant::now(), order.expires_at);
                let stopped = signal(Signal::STOP);
                if stopped.is_err() {
                    self.0.standstills.end(Some(order.fault), Instant::now());
                }
                stopped?;
                if Instant::now() >= until {
                    // The guardian may have been faster.
                    current.resume(pid);
                }
                return Ok(());
            }
            Crash::CloseStdin => {
                current.closed_by = Some(order.fault);
                self.0.closing.notify_one();
            }
        }
        (current.crashed_by, current.outlived_at) = (Some(order.fault), None);
        self.0.crashes.follow(order.outage);
        Ok(())
    }

    /// Takes back what this fault, which is over `now`, has done to the child, if it is the one to which it was done.
    pub(crate) fn recover(&self, fault: FaultId, now: Instant) {
        let mut current = self.lock();
        let Some(pid) = current.pid else { return };
        if current.stopped_by.iter().any(|(by, _)| *by == fault) {
            // As often as it did so: with `crash_rate` it does again and again.
            current.stopped_by.retain(|(by, _)| *by != fault);
            current.resumed_after = Some(fault);
            if current.stopped_by.is_empty() {
                current.resume(pid);
            }
            self.0.standstills.end(Some(fault), Instant::now());
        }
        // Its input cannot be opened again; without one it is nobody's server.
        if current.closed_by.take_if(|by| *by == fault).is_some() && self.0.lives_by_stdin {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        if current.crashed_by == Some(fault) {
            current.outlived_at = Some(now);
        }
    }

    /// Who of the child's group is stopped though this fault is over.
    pub(crate) fn left_over(&self, fault: FaultId) -> Option<String> {
        let current = self.lock();
        let pid = current.pid.filter(|_| current.resumed_after == Some(fault) && current.stopped_by.is_empty())?;
        let table = ProcessTable::read().ok()?;
        let stopped = table.group(id(pid)).find(|process| process.is_stopped)?;
        Some(format!("process {} ({}) is stopped", stopped.pid, stopped.name))
    }

    /// What made the child that runs, or ran last, end, or will.
    pub(crate) fn crashed_by(&self) -> Option<FaultId> {
        self.lock().crashed_by
    }

    /// The fault that made the child end, or makes it, if a call that began `since` then was in flight at the time.
    pub(crate) fn broken_by(&self, since: Instant) -> Option<FaultId> {
        // First this: it is not reset before the other is set.
        let current = self.lock().ending(Instant::now());
        current.or_else(|| self.0.crashes.since(since))
    }

    /// The fault that made the child stand still at some time between the beginning of a call and its end.
    pub(crate) fn held_up_by(&self, began: Instant, ended: Instant) -> Option<FaultId> {
        self.0.standstills.within(began, ended)
    }

    /// How long faults made the child stand still between these.
    pub(crate) fn stood_still(&self, from: Instant, to: Instant) -> Duration {
        self.0.standstills.total(from, to)
    }

    /// The child with this number accepts connections, whatever becomes of them. Of another than the one that runs that says nothing.
    pub(crate) fn accepts(&self, process: Option<u32>) {
        let mut current = self.lock();
        if current.pid.map(id) == process {
            current.accepts = true;
            self.0.accepting.notify_one();
        }
    }

    /// Waits until it does.
    pub(crate) async fn accepting(&self) {
        while !self.lock().accepts {
            self.0.accepting.notified().await;
        }
    }

    /// Asks the child that runs to end, so that another can be started.
    pub(crate) fn ask_to_end(&self) {
        if let Some(pid) = self.lock().pid {
            // There is no error but that nobody is left.
            let _ = kill_process_group(pid, Signal::TERM);
        }
    }

    /// The child with this number can be called. Of another than the one that runs that says nothing.
    pub(crate) fn ready(&self, process: Option<u32>) {
        self.accepts(process);
        if self.id() == process {
            self.0.crashes.ready(Instant::now());
        }
    }

    #[cfg(test)]
    pub(crate) fn standstills(&self) -> &Standstills {
        &self.0.standstills
    }

    #[cfg(test)]
    pub(crate) fn crashes(&self) -> &Crashes {
        &self.0.crashes
    }

    /// The child has ended.
    fn end(&self, now: Instant) {
        let mut current = self.lock();
        current.ended(now);
        self.0.crashes.ended(current.crashed_by, now);
    }

    /// Waits until the child's input is to be closed.
    pub(crate) async fn closing(&self) {
        while self.lock().closed_by.is_none() {
            self.0.closing.notified().await;
        }
    }

    pub(crate) fn was_asked_to_end(&self) -> bool {
        self.0.asked_to_end.load(Ordering::Relaxed)
    }

    /// Whether a signal with this number was passed on.
    pub(crate) fn got(&self, signal: i32) -> bool {
        self.0.signals.load(Ordering::Relaxed) & bit(signal) != 0
    }

    /// Whether someone asked a child to end that had ended.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.is_abandoned.load(Ordering::Relaxed)
    }

    /// Waits until someone does.
    pub(crate) async fn abandoned(&self) {
        while !self.is_abandoned() {
            self.0.abandoned.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.0.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    /// The guardian of the child, from now on if it had none.
    fn guardian(&mut self, guardians: &Guardians) -> io::Result<&mut Guardian> {
        let pid = self.pid.ok_or_else(|| io::Error::other("no process runs now"))?;
        match &mut self.guardian {
            Some(guardian) => Ok(guardian),
            none => Ok(none.insert(guardians.guard(id(pid))?)),
        }
    }

    /// The child has ended `now`: by what it was to end by, unless it had outlived that.
    fn ended(&mut self, now: Instant) {
        self.crashed_by = self.ending(now);
    }

    /// What it ends by if it does so `now`.
    fn ending(&self, now: Instant) -> Option<FaultId> {
        let has_outlived = self.outlived_at.is_some_and(|at| now.saturating_duration_since(at) > ENDING);
        self.crashed_by.filter(|_| !has_outlived)
    }

    /// Lets the child go on.
    fn resume(&mut self, pid: Pid) {
        self.stopped_by.clear();
        // The guardian may do so once more, later, which does no harm.
        let _ = kill_process_group(pid, Signal::CONT);
    }
}

fn id(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn bit(signal: i32) -> u64 {
    u32::try_from(signal).ok().and_then(|signal| 1_u64.checked_shl(signal)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::process::CommandExt as _;
    use std::process::{ChildStdin, ChildStdout, Stdio};

    use mcpscope_chaos::{Parameters, ProtectedNames, Scenario};
    use mcpscope_test_support::within;

    use super::*;

    const FAULT: FaultId = FaultId(3);

    /// One that says when it lives, and ends badly once its input ends, whatever signals it gets.
    fn start(child: &ChildHandle) -> Started<(ChildStdin, ChildStdout)> {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo; read -r line; exit 3"]);
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let ends = |child: &mut Child| Some((child.stdin.take()?, child.stdout.take()?));
        let mut started = child.start(&mut command, CleanUp::Always, ends).unwrap().unwrap();
        started.ends.1.read_exact(&mut [0]).unwrap();
        started
    }

    fn term(child: &ChildHandle, fault: FaultId) {
        let (parameters, now) = (Parameters::from_pairs(["signal=term"]).unwrap(), Instant::now());
        let (scenario, protected) = (Scenario::ProcessCrash, &ProtectedNames::default());
        let expires_at = now + Duration::from_secs(10);
        child
            .crash(&Order {
                fault,
                scenario,
                parameters: &parameters,
                victims: &[],
                seed: 0,
                now,
                expires_at,
                protected,
                outage: None,
            })
            .unwrap();
    }

    #[tokio::test]
    async fn who_has_outlived_a_fault_does_not_end_by_it() {
        let now = Instant::now();
        let (long_ago, later) = (now.checked_sub(ENDING * 2).unwrap(), now + Duration::from_secs(3600));
        for (over, at, found) in [
            (Some(FAULT), long_ago, None),
            (Some(FAULT), later, Some(FAULT)),
            (Some(FaultId(4)), long_ago, Some(FAULT)),
            (None, long_ago, Some(FAULT)),
        ] {
            let child = ChildHandle::new(None, true);
            let started = start(&child);
            term(&child, FAULT);
            if let Some(over) = over {
                child.recover(over, at);
            }
            drop(started.ends);
            assert_eq!(within(started.exited).await.unwrap().unwrap().code(), Some(3));
            assert_eq!(child.crashed_by(), found, "{over:?}");
        }
    }

    #[tokio::test]
    async fn a_fault_that_was_outlived_is_followed_by_one_that_was_not() {
        let child = ChildHandle::new(None, true);
        let mut started = start(&child);
        term(&child, FAULT);
        child.recover(FAULT, Instant::now().checked_sub(ENDING * 2).unwrap());
        term(&child, FaultId(4));
        started.ends.0.write_all(b"\n").unwrap();
        within(started.exited).await.unwrap().unwrap();
        assert_eq!(child.crashed_by(), Some(FaultId(4)));
    }
}
