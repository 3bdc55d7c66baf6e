//! The stdio relay: a child process behind two threads that move bytes on raw descriptors.
//!
//! Threads and blocking descriptors rather than the runtime: `O_NONBLOCK` on an inherited descriptor would change it for
//! every process that shares it, and `tokio::io::stdin` is many times slower.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mcpscope_core::{Component, Direction, ErrorType};
use mcpscope_hooks::{Connection, Lane, Loss, Passage, Probe, Queued};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::{Notify, oneshot};

use crate::conversation::{Conversation, Ending, Observed, Travel};
use crate::framing::{Fate, Framing, Judgement, Part, Seen, Tap};
use crate::relay::Relay;
use crate::{Limits, MAX_HOLD, SWEEP};

/// Bytes read at once: the capacity of a Linux pipe.
const CHUNK_BYTES: usize = 64 * 1024;

/// How long after the child's end its output is waited for, if a grandchild holds it open.
const LINGER: Duration = Duration::from_millis(500);

/// How long a child may take to end once its input has ended, before it is asked to by SIGTERM.
const END_OF_INPUT: Duration = Duration::from_secs(2);

/// How long a child may take to end once it was asked to by SIGTERM, before it is made to by SIGKILL.
const TERM: Duration = Duration::from_secs(10);

/// The client's side of the relay.
#[derive(Debug)]
pub struct ClientEnd {
    /// What the client writes.
    pub input: OwnedFd,
    /// What the client reads.
    pub output: OwnedFd,
}

/// Why a stdio relay could not start.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The command could not be started.
    #[error("cannot start {command:?}: {source}")]
    Spawn {
        /// The command as it was given.
        command: String,
        /// Not found, not allowed, ...
        source: io::Error,
    },
    /// The system refused a thread or a pipe.
    #[error("cannot set up the relay: {0}")]
    Setup(#[from] io::Error),
}

/// A running child and the relay in front of it.
#[derive(Debug)]
pub struct StdioRelay {
    child: ChildHandle,
    observed: Option<Arc<Watch>>,
    exited: oneshot::Receiver<io::Result<ExitStatus>>,
    output_done: oneshot::Receiver<()>,
    /// Dropped to stop the threads.
    stop: io::PipeWriter,
    connection: Option<Connection>,
}

/// Sends signals to the child.
#[derive(Clone, Debug)]
pub struct ChildHandle(Arc<ChildState>);

#[derive(Debug)]
struct ChildState {
    /// None once the child is reaped, when its number may be another's.
    pid: Mutex<Option<Pid>>,
    /// Someone asked the child to end, so that its end is no crash.
    asked_to_end: AtomicBool,
    /// Someone asked the child to end after it had ended: what is left of its output is not waited for.
    abandoned: Notify,
}

impl ChildHandle {
    /// The process id; none once the child has ended.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.lock().map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Passes a signal on to the child's process group. Once the child has ended, a signal to end makes
    /// [`StdioRelay::wait`] return without the rest of the output.
    pub fn signal(&self, signal: Signal) {
        let ends = [Signal::INT, Signal::TERM, Signal::QUIT].contains(&signal);
        match *self.lock() {
            Some(pid) => {
                self.0.asked_to_end.fetch_or(ends, Ordering::Relaxed);
                if let Err(error) = kill_process_group(pid, signal) {
                    tracing::warn!(?signal, %error, "cannot signal the server");
                }
            }
            None if ends => self.0.abandoned.notify_one(),
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Pid>> {
        self.0.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What both directions share to observe.
#[derive(Debug)]
struct Watch {
    relay: Arc<Relay>,
    conversation: Conversation,
}

/// Starts `command` as a stdio MCP server and relays between it and `client`.
///
/// The child's stdin and stdout are ours; its stderr is as `command` says (inherited unless changed). It gets a process
/// group of its own, so that signals reach its descendants too.
///
/// # Errors
/// The command cannot be started, or the system refuses threads or pipes.
pub fn spawn(mut command: Command, client: ClientEnd, probe: &Probe, limits: Limits) -> Result<StdioRelay, StdioError> {
    let now = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    let (stopped, stop) = io::pipe()?;
    let also_stopped = stopped.try_clone()?;
    let mut child = command.spawn().map_err(|source| StdioError::Spawn {
        command: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    probe.operation(Component::Server, None, now);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let handle = ChildHandle(Arc::new(ChildState {
        pid: Mutex::new(pid),
        asked_to_end: AtomicBool::new(false),
        abandoned: Notify::new(),
    }));
    let watch = probe.is_on().then(|| {
        let relay = Relay::new(probe.clone(), limits);
        Arc::new(Watch { conversation: Conversation::new(Arc::clone(&relay), "", true, now), relay })
    });
    let (output_sender, output_done) = oneshot::channel();
    let (exit_sender, exited) = oneshot::channel();
    let start = || -> io::Result<()> {
        let no_pipe = || io::Error::other("the child has no pipe");
        let (stdin, stdout) = (child.stdin.take().ok_or_else(no_pipe)?, child.stdout.take().ok_or_else(no_pipe)?);
        let to_server = Pump::new(client.input, stdin.into(), stopped, Direction::ToServer, watch.clone());
        let to_client = Pump::new(stdout.into(), client.output, also_stopped, Direction::ToClient, watch.clone());
        let reaper = handle.clone();
        thread::Builder::new().name("mcpscope-wait".into()).spawn(move || {
            let _ = exit_sender.send(reap(&mut child, &reaper));
        })?;
        thread::Builder::new().name("mcpscope-in".into()).spawn(move || to_server.run())?;
        thread::Builder::new().name("mcpscope-out".into()).spawn(move || {
            to_client.run();
            // The receiver may be gone, with the relay.
            let _ = output_sender.send(());
        })?;
        Ok(())
    };
    if let Err(error) = start() {
        // Nothing half-started: a server that nobody relays to must not stay.
        handle.signal(Signal::KILL);
        return Err(error.into());
    }
    let connection = watch.as_ref().map(|watch| watch.relay.probe.connection(now));
    Ok(StdioRelay { child: handle, observed: watch, exited, output_done, stop, connection })
}

/// Waits for the end of the child without reaping it first: until its number is taken out of the handle, no signal may
/// reach another process that has got the number.
fn reap(child: &mut Child, handle: &ChildHandle) -> io::Result<ExitStatus> {
    let pid = *handle.lock();
    if let Some(pid) = pid {
        while let Err(error) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
    }
    let mut pid = handle.lock();
    *pid = None;
    child.wait()
}

impl StdioRelay {
    /// A handle to signal the child.
    #[must_use]
    pub fn child(&self) -> ChildHandle {
        self.child.clone()
    }

    /// Relays until the child has ended, which it is made to once `input_ended`, as the MCP specification wants stdio
    /// servers to be ended: 2 s later by SIGTERM, another 10 s later by SIGKILL, each to its whole process group.
    ///
    /// # Errors
    /// The child's end could not be waited for.
    pub async fn end_after(self, input_ended: impl Future<Output = ()>) -> io::Result<ExitStatus> {
        let child = self.child();
        let mut ended = std::pin::pin!(self.wait());
        tokio::select! {
            status = &mut ended => return status,
            () = input_ended => {}
        }
        if let Ok(status) = tokio::time::timeout(END_OF_INPUT, &mut ended).await {
            return status;
        }
        child.signal(Signal::TERM);
        tokio::select! {
            status = &mut ended => status,
            () = child.kill_after_term() => ended.await,
        }
    }

    /// Relays until the child has ended and all of its output is passed on.
    ///
    /// # Errors
    /// The child's end could not be waited for.
    pub async fn wait(self) -> io::Result<ExitStatus> {
        let Self { child, observed, mut exited, output_done, stop, connection } = self;
        let mut sweep = tokio::time::interval(SWEEP);
        let status = loop {
            tokio::select! {
                status = &mut exited => break status.map_err(io::Error::other)??,
                _ = sweep.tick() => if let Some(watch) = &observed {
                    watch.sweep();
                },
            }
        };
        let asked_to_end = child.0.asked_to_end.load(Ordering::Relaxed);
        let mut output_done = output_done;
        tokio::select! {
            _ = &mut output_done => {}
            () = child.0.abandoned.notified() => {}
            () = tokio::time::sleep(LINGER) => {
                drop(stop);
                // What was read must still be written, however slowly the client reads, as the child would have waited to
                // write it; but not for a client that wanted the child to end.
                if !asked_to_end {
                    tokio::select! {
                        _ = output_done => {}
                        () = child.0.abandoned.notified() => {}
                    }
                }
            }
        }
        drop(connection);
        if let Some(watch) = &observed {
            let crashed = (!status.success() && !asked_to_end).then_some(ErrorType::Crash);
            // A pump that still waits for the client must not keep the session open.
            let unanswered = watch.conversation.close(crashed.map_or(Ending::Well, Ending::Failed), Instant::now());
            if unanswered > 0 {
                tracing::warn!(server = &**watch.relay.probe.server(), %status, unanswered, "the server ended with calls unanswered");
            }
            watch.relay.probe.operation(Component::Server, crashed, Instant::now());
        }
        Ok(status)
    }
}

impl Watch {
    fn sweep(&self) {
        let now = Instant::now();
        self.relay.probe.guarded(|| {
            self.conversation.expire(self.relay.limits.call_timeout, now);
            self.relay.clients.expire(now);
        });
    }

    fn observe(&self, seen: Seen<'_>, direction: Direction, lane: &mut Lane, at: Instant) -> Observed {
        let observe = || match seen {
            Seen::Message(bytes) | Seen::Endpoint(bytes) => {
                let travel = Travel { direction, at, protocol: None, context: None, tracestate: None };
                self.conversation.observe(bytes, travel, lane)
            }
            Seen::Oversized => {
                self.relay.probe.lost(Loss::OversizedMessage, at);
                Observed::NOTHING
            }
        };
        self.relay.probe.guarded(observe).unwrap_or(Observed::NOTHING)
    }
}

/// Moves bytes one way.
struct Pump {
    from: OwnedFd,
    to: OwnedFd,
    /// Hangs up when the relay is to stop.
    stopped: io::PipeReader,
    direction: Direction,
    watch: Option<Arc<Watch>>,
}

#[derive(Clone, Copy)]
struct Ready {
    input: bool,
    stopped: bool,
    nobody_reads: bool,
}

impl Pump {
    fn new(
        from: OwnedFd,
        to: OwnedFd,
        stopped: io::PipeReader,
        direction: Direction,
        watch: Option<Arc<Watch>>,
    ) -> Self {
        Self { from, to, stopped, direction, watch }
    }

    /// Runs until the input ends, the output is closed or the relay stops. Dropping the descriptors passes the end on.
    fn run(self) {
        let direction = self.direction;
        if let Err(error) = self.relay() {
            // A closed pipe is how every stdio session ends.
            if error.kind() != io::ErrorKind::BrokenPipe {
                tracing::warn!(direction = direction.as_str(), %error, "the relay ended");
            }
        }
    }

    fn relay(self) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut side = self.watch.as_ref().map(|watch| Side {
            watch,
            direction: self.direction,
            tap: watch.relay.tap(Framing::Line),
            lane: Lane::default(),
        });
        // Once the relay is to stop: what was in the pipe by then, so that nobody who keeps writing keeps it alive.
        let mut left = None;
        loop {
            let ready = self.ready(side.as_ref().and_then(Side::patience))?;
            if ready.stopped && left.is_none() {
                left = Some(usize::try_from(rustix::io::ioctl_fionread(&self.from)?).unwrap_or(usize::MAX));
            }
            if ready.nobody_reads || (left.is_some() && !ready.input) || left == Some(0) {
                break;
            }
            if !ready.input {
                if let Some(side) = &mut side {
                    self.relay_observed(side, &[])?;
                }
                continue;
            }
            let room = buffer.get_mut(..left.unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)).unwrap_or_default();
            let read = match rustix::io::read(&self.from, room) {
                Ok(0) => break,
                Ok(read) => read,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            left = left.map(|left| left.saturating_sub(read));
            let chunk = buffer.get(..read).unwrap_or_default();
            match &mut side {
                Some(side) => self.relay_observed(side, chunk)?,
                None => write_all(&self.to, &mut [IoSlice::new(chunk)])?,
            }
        }
        match side {
            Some(side) => self.end_observed(side),
            None => Ok(()),
        }
    }

    fn relay_observed(&self, side: &mut Side<'_>, chunk: &[u8]) -> io::Result<()> {
        let at = Instant::now();
        let Side { watch, direction, tap, lane } = side;
        let probe = &watch.relay.probe;
        // No input: what is held has waited long enough for its end.
        let hold = probe.holds() || (probe.propagates() && !chunk.is_empty());
        let mut messages = 0;
        let fate = tap.feed(chunk, hold, |seen| {
            let Observed { passage, splices, .. } = watch.observe(seen, *direction, lane, at);
            messages += usize::from(passage != Passage::Never);
            Judgement { passage, splices, departure: if hold { lane.depart() } else { None } }
        });
        let departure = lane.depart();
        let mut queued = probe.queued(*direction, messages, at);
        match fate {
            Fate::Now(bytes) => {
                queued.wait(&departure);
                write_all(&self.to, &mut [IoSlice::new(bytes)])?;
            }
            Fate::Parts(parts) => {
                queued.wait(parts.iter().filter_map(|part| part.departure.as_ref()).chain(&departure));
                self.write_parts(&parts, &mut queued)?;
            }
        }
        if departure.is_some() {
            queued.wrote(&departure);
        }
        Ok(())
    }

    /// The input has ended: what is left of it is a message without its line feed.
    fn end_observed(&self, side: Side<'_>) -> io::Result<()> {
        let at = Instant::now();
        let Side { watch, direction, mut tap, mut lane } = side;
        let mut messages = 0;
        let parts = tap.end(|seen| {
            let Observed { passage, splices, .. } = watch.observe(seen, direction, &mut lane, at);
            messages += usize::from(passage != Passage::Never);
            Judgement { passage, splices, departure: lane.depart() }
        });
        let mut queued = watch.relay.probe.queued(direction, messages, at);
        queued.wait(parts.iter().filter_map(|part| part.departure.as_ref()));
        // Before the end of the stream the bytes have passed already, unless they were held.
        self.write_parts(&parts, &mut queued)
    }

    fn write_parts(&self, parts: &[Part<'_>], queued: &mut Queued) -> io::Result<()> {
        // What need not wait goes on together with what is before it.
        let together = |a: &Part<'_>, b: &Part<'_>| a.passage != Passage::Never && b.passage == Passage::Now;
        for parts in parts.chunk_by(together) {
            match parts.first().map(|part| part.passage) {
                Some(Passage::Never) => continue,
                Some(Passage::At(due)) => {
                    self.wait_until(due)?;
                    queued.held_until(due);
                }
                Some(Passage::Now) | None => {}
            }
            let mut bytes: Vec<_> = parts.iter().map(|part| IoSlice::new(&part.bytes)).collect();
            write_all(&self.to, &mut bytes)?;
            queued.wrote(parts.iter().filter_map(|part| part.departure.as_ref()));
        }
        Ok(())
    }

    /// Waits until something is to be done, and no longer than `patience`.
    fn ready(&self, patience: Option<Duration>) -> io::Result<Ready> {
        let timeout = patience.map(timespec);
        let mut fds = [
            PollFd::new(&self.from, PollFlags::IN),
            PollFd::new(&self.stopped, PollFlags::IN),
            // Asks for nothing, but is told of an error: a pipe that nobody reads any more.
            PollFd::new(&self.to, PollFlags::empty()),
        ];
        while let Err(error) = poll(&mut fds, timeout.as_ref()) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        let [from, stopped, to] = fds.map(|fd| fd.revents());
        Ok(Ready {
            input: !from.is_empty(),
            stopped: !stopped.is_empty(),
            nobody_reads: to.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
        })
    }

    /// Waits for a time, or until the relay is to stop.
    fn wait_until(&self, due: Instant) -> io::Result<()> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            match poll(&mut [PollFd::new(&self.stopped, PollFlags::IN)], Some(&timespec(left))) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What a pump needs to observe its direction.
struct Side<'a> {
    watch: &'a Watch,
    direction: Direction,
    tap: Tap,
    lane: Lane,
}

impl Side<'_> {
    /// How long to wait for more of a message that is held to put trace context into it: nobody knows that it is one, or
    /// that its end will come. A fault may hold it for ever.
    fn patience(&self) -> Option<Duration> {
        (self.tap.is_holding() && !self.watch.relay.probe.holds()).then_some(MAX_HOLD)
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

fn write_all(to: impl AsFd, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // What the system takes at once.
    const MAX_SLICES: usize = 1024;
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match rustix::io::writev(&to, slices.get(..MAX_SLICES).unwrap_or(slices)) {
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(rustix::io::Errno::INTR) => {}
            // Someone else may have made an inherited descriptor non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    /// Clients on Node give sockets as standard streams, shells give pipes.
    #[test]
    fn a_pump_ends_once_nobody_reads_what_it_writes() {
        let (reader, pipe) = io::pipe().unwrap();
        let (socket, peer) = UnixStream::pair().unwrap();
        drop((reader, peer));
        for to in [pipe.into(), socket.into()] {
            let (from, _open) = io::pipe().unwrap();
            let (stopped, _stop) = io::pipe().unwrap();
            let pump = Pump::new(from.into(), to, stopped, Direction::ToClient, None);
            let (done, ended) = mpsc::channel();
            thread::spawn(move || {
                pump.run();
                done.send(())
            });
            ended.recv_timeout(Duration::from_secs(10)).expect("it ends, and does not wait for input");
        }
    }
}
