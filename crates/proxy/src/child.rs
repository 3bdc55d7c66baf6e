//! The child process: its start, the signals it gets, and its end.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::{Notify, oneshot};

/// How long a child may take to end once it was asked to by SIGTERM, before it is made to by SIGKILL.
const TERM: Duration = Duration::from_secs(10);

/// Sends signals to the child, or to the one that was started in its place.
#[derive(Clone, Debug)]
pub struct ChildHandle(Arc<ChildState>);

#[derive(Debug, Default)]
struct ChildState {
    /// None once the child is reaped, when its number may be another's.
    pid: Mutex<Option<Pid>>,
    /// Someone asked the child to end, so that its end is no crash.
    asked_to_end: AtomicBool,
    /// The signals that were passed on, as bits.
    signals: AtomicU64,
    /// Someone asked the child to end after it had ended: what is left of its output is not waited for, and no other is
    /// started.
    is_abandoned: AtomicBool,
    abandoned: Notify,
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
        self.lock().map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Passes a signal on to the child's process group. Once the child has ended, a signal to end makes
    /// [`StdioRelay::wait`](crate::stdio::StdioRelay::wait) return without the rest of the output, and without another child.
    pub fn signal(&self, signal: Signal) {
        let ends = [Signal::INT, Signal::TERM, Signal::QUIT].contains(&signal);
        match *self.lock() {
            Some(pid) => {
                self.0.asked_to_end.fetch_or(ends, Ordering::Relaxed);
                // That one ends whoever gets it: it is no wish of whoever sends it to us.
                if signal != Signal::KILL {
                    self.0.signals.fetch_or(bit(signal.as_raw()), Ordering::Relaxed);
                }
                if let Err(error) = kill_process_group(pid, signal) {
                    tracing::warn!(?signal, %error, "cannot signal the server");
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

    pub(crate) fn new() -> Self {
        Self(Arc::default())
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
        let mut pid = self.lock();
        if self.is_abandoned() {
            return Ok(None);
        }
        let mut child = command.spawn()?;
        *pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        drop(pid);
        let no_pipe = || io::Error::other("the child has no pipe");
        let start = |child: &mut Child| {
            let ends = ends(child).ok_or_else(no_pipe)?;
            let (sender, exited) = oneshot::channel();
            let handle = self.clone();
            // Handed over once there is a thread: without one it is ended below.
            let (hand_over, taken) = std::sync::mpsc::channel::<Child>();
            thread::Builder::new().name("mcpscope-wait".into()).spawn(move || {
                if let Ok(mut child) = taken.recv() {
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
        let pid = *self.lock();
        if let Some(pid) = pid {
            let ended = loop {
                match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                    Ok(ended) => break ended,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            };
            let well = ended.is_some_and(|ended| ended.exit_status() == Some(0)) || self.was_asked_to_end();
            if clean_up == CleanUp::Always || (clean_up == CleanUp::AfterCrash && !well) {
                // Not beside the next one; there is no error but that nobody is left.
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
        let mut pid = self.lock();
        *pid = None;
        child.wait()
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

    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bit(signal: i32) -> u64 {
    u32::try_from(signal).ok().and_then(|signal| 1_u64.checked_shl(signal)).unwrap_or_default()
}
