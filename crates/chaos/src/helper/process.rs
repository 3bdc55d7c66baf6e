//! A helper process, from its parent's side: its start, what it tells, its end.

use std::fs;
use std::io::{self, BufReader, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::helper::HelperError;
use crate::helper::serve::{is_ready, monotonic};
use crate::helper::wire::{self, Job, Task, Told};
use crate::network::{Network, Packets};
use crate::process::{Process, ProcessEntry};
use crate::target::{Ended, ProcessId};

/// The program that runs, whatever has become of its file.
pub(super) const PROGRAM: &str = "/proc/self/exe";
/// How long the system may take to start it.
const START: Duration = Duration::from_secs(2);
/// How long it may take to greet.
const GREETING: Duration = Duration::from_secs(10);
/// How long it may take to make a network, and a connection through it.
const NETWORK: Duration = Duration::from_secs(5);
const PAIR: Duration = Duration::from_secs(2);
/// How long it may take to say how a network ended.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long a helper of an earlier run may take to end, and how often it is looked at meanwhile.
const SWEPT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// A helper that was started.
#[derive(Debug, Default)]
pub(super) struct Helper {
    state: Mutex<State>,
    /// The network is there.
    is_up: AtomicBool,
    /// Tells of changes to those who wait for them.
    changed: Condvar,
    /// One order at a time waits for what it is answered.
    asking: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    id: Option<ProcessId>,
    /// What it is signalled by; none before it is there and once it is reaped, when its number may be another's.
    process: Option<Process>,
    /// While this is open, the helper goes on.
    orders: Option<UnixStream>,
    /// The control group in which it takes what it takes.
    group: Option<String>,
    achieved: Option<f64>,
    packets: Option<Packets>,
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
        let (mut child, orders) = match spawn() {
            Ok(spawned) => spawned,
            // Whoever started it may have given up by now.
            Err(error) => return drop(started.send(Err(error))),
        };
        let ear = Ear::new(child.stdout.take(), &orders);
        let (process, id) = identified(&child).unzip();
        let mut state = self.lock();
        state.orders = Some(orders);
        state.id = id;
        state.process = process;
        if state.is_over {
            state.kill();
        }
        drop(state);
        let _ = started.send(Ok(()));
        let heard = ear.and_then(|mut ear| self.listen(job, &mut ear));
        let mut state = self.lock();
        if heard.is_err() || state.is_over {
            state.kill();
        }
        if let Err(error) = heard {
            state.ended.get_or_insert(Ended::Failed(error.to_string()));
        }
        drop(state);
        self.reap(&mut child, job);
    }

    /// Gives it its job, and hears what becomes of it until it ends.
    fn listen(&self, job: &Job, ear: &mut Ear) -> io::Result<()> {
        let hint = || {
            io::Error::other(
                "the helper process does not greet: expected mcpscope_chaos::helper::run_if_requested() to be called \
                 first in main",
            )
        };
        match ear.hear(Some(GREETING)) {
            Ok(Some(Told::Ready)) => {}
            Ok(None) => return Ok(()),
            _ => return Err(hint()),
        }
        match &self.lock().orders {
            // It has been told to end: it will see that.
            None => {}
            // An empty pipe has room for it: nothing to wait for.
            Some(orders) => match wire::write(orders, job) {
                Err(error) if !is_end(&error) => return Err(error),
                _ => {}
            },
        }
        let is_awaited = || matches!(job.task, Task::Network(_)) && !self.is_up.load(Ordering::SeqCst);
        loop {
            let told = match ear.hear(is_awaited().then_some(NETWORK)) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(io::Error::other(format!("there was no network within {} s", NETWORK.as_secs())));
                }
                told => told?,
            };
            let Some(what) = told else { return Ok(()) };
            let mut state = self.lock();
            match what {
                Told::Ready => {}
                Told::Group(group) => state.group = Some(group),
                Told::Up => self.is_up.store(!state.is_over, Ordering::SeqCst),
                Told::Achieved(achieved) => state.achieved = Some(achieved),
                Told::Packets(packets) => state.packets = Some(packets),
                Told::LetGo(why) => state.ended = Some(Ended::LetGo(why)),
                Told::Failed(why) => state.ended = Some(Ended::Failed(why)),
            }
            self.changed.notify_all();
        }
    }

    /// Waits for its end without reaping it first: until it is let go of, no signal may reach another process that
    /// has got its number.
    fn reap(&self, child: &mut Child, job: &Job) {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // An error is that somebody else has reaped it.
            let wait = || waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
            while matches!(wait(), Err(Errno::INTR)) {}
        }
        self.is_up.store(false, Ordering::SeqCst);
        let mut state = self.lock();
        state.process = None;
        state.no_more_orders();
        let status = child.wait();
        let is_early = !state.is_over && monotonic() < Duration::from_nanos(job.deadline_ns);
        if is_early && state.ended.is_none() {
            let why = status.map_or_else(|error| format!("{EARLY} ({error})"), |status| early_end(status, job.task));
            state.ended = Some(Ended::Failed(why));
        }
        state.is_gone = true;
        self.changed.notify_all();
    }

    /// Ends it, without waiting until it is gone.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        self.is_up.store(false, Ordering::SeqCst);
        state.is_over = true;
        state.no_more_orders();
        state.kill();
        self.changed.notify_all();
    }

    /// Ends it as a network, without waiting until it is gone: it tells first what has become of its packets, and lets go of
    /// them. Whoever listens to it ends it hard if that takes long.
    pub(super) fn end_network(&self) {
        let mut state = self.lock();
        self.is_up.store(false, Ordering::SeqCst);
        state.is_over = true;
        state.no_more_orders();
        self.changed.notify_all();
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

    pub(super) fn packets(&self) -> Option<Packets> {
        self.lock().packets
    }

    /// Waits until the network is there, or will not be: it has failed, or is to end.
    pub(super) fn wait_until_up(&self) -> Result<(), HelperError> {
        let is_up = || self.is_up.load(Ordering::SeqCst);
        let waits = |state: &mut State| !is_up() && state.ended.is_none() && !state.is_over && !state.is_gone;
        let state = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        match &state.ended {
            Some(Ended::Failed(why) | Ended::LetGo(why)) => Err(HelperError::NoNetwork(why.clone())),
            None if is_up() => Ok(()),
            None => Err(HelperError::NoNetwork("the helper process was ended".to_owned())),
        }
    }

    /// Ends it, and waits until it is gone, if it does not take long.
    pub(super) fn end_and_wait(&self) {
        self.end();
        let state = self.lock();
        drop(self.changed.wait_timeout_while(state, SWEPT, |state| !state.is_gone));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network for Helper {
    fn pair(&self) -> io::Result<[TcpStream; 2]> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let orders = self.lock().orders.as_ref().ok_or_else(gone)?.try_clone()?;
        send(&orders, &[0], SendFlags::NOSIGNAL)?;
        if !is_ready(&orders, PAIR)? {
            // What it may say later would be taken for the answer to another.
            let why = format!("the helper process made no connection within {} s", PAIR.as_secs());
            self.lock().ended.get_or_insert(Ended::Failed(why));
            self.end();
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&orders, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let ends = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(ends) => Some(ends),
            _ => None,
        });
        let ends: Vec<_> = ends.flatten().map(TcpStream::from).collect();
        <[TcpStream; 2]>::try_from(ends).map_err(|_| gone())
    }

    fn is_up(&self) -> bool {
        self.is_up.load(Ordering::SeqCst)
    }
}

const EARLY: &str = "the helper process ended before its time";

/// Why it ended, and what can be done about it.
fn early_end(status: ExitStatus, task: Task) -> String {
    let is_filtered = status.signal() == Some(Signal::SYS.as_raw());
    match task {
        _ if !is_filtered => format!("{EARLY} ({status})"),
        Task::Take(_) => {
            format!("{EARLY} ({status}): a seccomp filter forbids what it does: expected one that allows it")
        }
        Task::Network(_) => format!(
            "backend=netem needs a user and network namespace of its own, and a seccomp filter forbids it, or what it takes \
             to work with it ({status}): expected one that allows unshare(2), or backend=message"
        ),
    }
}

/// Whether it is because nobody reads any more.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl State {
    fn no_more_orders(&mut self) {
        if let Some(orders) = self.orders.take() {
            // Whoever waits for an answer there has one now, too.
            let _ = orders.shutdown(Shutdown::Both);
        }
    }

    fn kill(&self) {
        if let Some(process) = &self.process {
            // There is no error but that it has ended.
            let _ = process.signal(Signal::KILL);
        }
    }
}

/// What a helper tells, and for how long that is of interest.
#[derive(Debug)]
struct Ear {
    told: BufReader<ChildStdout>,
    /// Tells that there are no more orders.
    orders: UnixStream,
    /// Until when it may say something, once there are no more.
    last_words: Option<Instant>,
}

impl Ear {
    fn new(told: Option<ChildStdout>, orders: &UnixStream) -> io::Result<Self> {
        let told = told.ok_or_else(|| io::Error::other("the helper process has no pipe"))?;
        Ok(Self { told: BufReader::new(told), orders: orders.try_clone()?, last_words: None })
    }

    /// The next that is told, if it is `within` this time. None: there is nothing more to come, or too late.
    fn hear(&mut self, within: Option<Duration>) -> io::Result<Option<Told>> {
        let until = within.map(|within| Instant::now() + within);
        while self.told.buffer().is_empty() {
            let end = self.last_words.or(until);
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let left = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
            // Of the orders only their end is waited for: what comes there is for those who ask for connections.
            let told = PollFd::new(self.told.get_ref(), PollFlags::IN);
            let mut both = [told, PollFd::new(&self.orders, PollFlags::empty())];
            let waited_for = if self.last_words.is_some() { &mut both[..1] } else { &mut both[..] };
            let ready = poll(waited_for, left.as_ref());
            let is_told = !both[0].revents().is_empty();
            match ready {
                Ok(0) if self.last_words.is_some() => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) if is_told => break,
                Ok(_) => self.last_words = Some(Instant::now() + LAST_WORDS),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        wire::read(&mut self.told)
    }
}

/// Starts one, with what it is given orders by.
fn spawn() -> io::Result<(Child, UnixStream)> {
    // Not a pipe: what it answers may have descriptors with it.
    let (orders, its) = UnixStream::pair()?;
    let child = Command::new(PROGRAM)
        .arg0("mcpscope-chaos-helper")
        .args([wire::MARKER, &std::process::id().to_string()])
        .stdin(OwnedFd::from(its))
        .stdout(Stdio::piped())
        // What it has to say it tells.
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()?;
    Ok((child, orders))
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
    use crate::helper::wire::Take;

    #[test]
    fn what_a_filter_forbids_is_told_with_what_helps() {
        let network = Task::Network(crate::network::Netem::default());
        let filtered = early_end(ExitStatus::from_raw(Signal::SYS.as_raw()), network);
        assert!(
            filtered.starts_with("backend=netem needs ") && filtered.contains("a seccomp filter forbids"),
            "{filtered}"
        );
        assert!(filtered.ends_with("expected one that allows unshare(2), or backend=message"), "{filtered}");
        let killed = early_end(ExitStatus::from_raw(Signal::KILL.as_raw()), network);
        assert!(killed.starts_with("the helper process ended before its time (signal: 9"), "{killed}");
    }

    #[test]
    fn a_program_that_is_no_helper_is_ended_with_a_hint() {
        // The harness of these tests takes the marker for the name of a test, of which there is none.
        let job =
            Job { task: Task::Take(Take::Cpu { cores: 1, duty: 0.1 }), victims: Vec::new(), deadline_ns: u64::MAX };
        let helper = Helper::start(job).unwrap();
        while !helper.is_gone() {
            thread::sleep(Duration::from_millis(1));
        }
        let Some(Ended::Failed(why)) = helper.ended() else { panic!("{:?}", helper.ended()) };
        assert!(why.contains("expected mcpscope_chaos::helper::run_if_requested() to be called"), "{why}");
    }
}
