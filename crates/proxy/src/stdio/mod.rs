//! The stdio relay: a child process behind two threads that move bytes on raw descriptors.
//!
//! Threads and blocking descriptors rather than the runtime: `O_NONBLOCK` on an inherited descriptor would change it for
//! every process that shares it, and `tokio::io::stdin` is many times slower.

mod ahead;
mod ends;
mod ledger;
mod observe;
mod pump;
mod supervise;
mod unseen;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcpscope_core::{Component, ErrorType};
use mcpscope_hooks::{Connection, Probe};
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use self::ends::{Desk, Order, Orders, Report, start_input, start_output};
use self::observe::{Supervised, Watch};
use self::supervise::Supervisor;
pub use crate::child::ChildHandle;
use crate::child::{CleanUp, Program, Started};
use crate::conversation::{Conversation, Ending};
use crate::relay::Relay;
use crate::standstill::Patience;
use crate::{Limits, RestartPolicy, SWEEP, ServerState, Traffic};

/// How long after the child's end its output is waited for, if a grandchild holds it open.
const LINGER: Duration = Duration::from_millis(500);

/// How long a child may take to end once its input has ended, before it is asked to by SIGTERM.
const END_OF_INPUT: Duration = Duration::from_secs(2);

/// How long a server that was started again may take to answer the replayed `initialize`, before it is taken for one that hangs
/// and is ended as if it had crashed. Many take their time to start; what the client sends waits as long.
const GREETING: Duration = Duration::from_secs(30);

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
    #[error("cannot start {command:?}")]
    Spawn {
        /// The command as it was given.
        command: String,
        /// Not found, not allowed, ...
        source: io::Error,
    },
    /// The system refused a thread or a pipe.
    #[error("cannot set up the relay")]
    Setup(#[from] io::Error),
}

/// A running child and the relay in front of it.
#[derive(Debug)]
pub struct StdioRelay {
    command: Command,
    child: ChildHandle,
    /// Whether its input was closed before its end.
    is_closed: bool,
    exited: oneshot::Receiver<io::Result<ExitStatus>>,
    watch: Option<Arc<Watch>>,
    supervisor: Option<Supervisor>,
    state: watch::Sender<ServerState>,
    /// Until when the server may take to answer the replayed `initialize`, if it has to.
    greeting: Option<Patience>,
    /// The threads end with these.
    input: Orders,
    output: Orders,
    reports: mpsc::UnboundedReceiver<Report>,
    told: Told,
    connection: Option<Connection>,
    traffic: Option<Arc<Traffic>>,
}

/// The child's stdin and stdout.
type Pipes = (OwnedFd, OwnedFd);

fn pipes(child: &mut Child) -> Option<Pipes> {
    Some((child.stdin.take()?.into(), child.stdout.take()?.into()))
}

/// What the threads have reported.
#[derive(Debug, Default)]
struct Told {
    input_ended: bool,
    client_gone: bool,
    /// Of the child that runs now, or ran last.
    parked: bool,
    given_up: bool,
    output_ended: bool,
    written: bool,
}

/// Starts `program` as a stdio MCP server and relays between it and `client`. When it ends, so does the relay.
///
/// The child's stdin and stdout are ours; its stderr is as the command says (inherited unless changed). It gets a process
/// group of its own, so that signals reach its descendants too.
///
/// # Errors
/// The command cannot be started, or the system refuses threads or pipes.
pub fn spawn(
    program: impl Into<Program>,
    client: ClientEnd,
    probe: &Probe,
    limits: Limits,
) -> Result<StdioRelay, StdioError> {
    start(program.into(), client, probe, limits, None)
}

/// The same, but if the server crashes, which is to end neither with exit code 0 nor because it was asked to, it is started
/// again as `policy` says, for as long as the client is there.
///
/// Requests that the crashed server leaves unanswered are answered with a JSON-RPC error. A session that began with
/// `initialize` goes on: the new server gets that request again, and its answer is kept from the client, which has one.
/// Meanwhile what the client writes waits. Nothing else is ever sent twice.
///
/// # Errors
/// As of [`spawn`]: only a server that could be started once is started again.
pub fn spawn_supervised(
    program: impl Into<Program>,
    client: ClientEnd,
    probe: &Probe,
    limits: Limits,
    policy: RestartPolicy,
) -> Result<StdioRelay, StdioError> {
    start(program.into(), client, probe, limits, Some(policy))
}

fn start(
    Program { mut command, guardians }: Program,
    client: ClientEnd,
    probe: &Probe,
    limits: Limits,
    policy: Option<RestartPolicy>,
) -> Result<StdioRelay, StdioError> {
    let now = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    let supervised = policy.is_some();
    let (reporter, reports) = mpsc::unbounded_channel();
    let child = ChildHandle::new(guardians, true);
    let watch = (probe.is_on() || supervised).then(|| {
        let relay = Relay::new(probe.clone(), limits, Some(child.clone()));
        let conversation = Conversation::new(Arc::clone(&relay), "", true, now);
        let supervised = supervised.then(|| Supervised::new(reporter.clone()));
        Arc::new(Watch::new(relay, conversation, supervised))
    });
    let desk = Desk { watch: watch.clone(), supervised, reports: reporter };
    let (input, output) = (start_input(client.input, desk.clone())?, start_output(client.output, desk)?);
    let clean_up = if supervised { CleanUp::AfterCrash } else { CleanUp::Never };
    let started = child.start(&mut command, clean_up, pipes).map_err(|source| StdioError::Spawn {
        command: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    // Nobody has the handle yet who could want the child to end.
    let started = started.ok_or_else(|| io::Error::other("the server is not wanted any more"))?;
    let connection = probe.is_on().then(|| probe.connection(now));
    let supervisor = policy.map(Supervisor::new);
    let state = watch::Sender::new(ServerState::Serving(child.id()));
    let (_, exited) = oneshot::channel();
    let mut relay = StdioRelay {
        command,
        child,
        is_closed: false,
        exited,
        watch,
        supervisor,
        state,
        greeting: None,
        input,
        output,
        reports,
        told: Told::default(),
        connection,
        traffic: None,
    };
    relay.serve(started);
    relay.input.give(Order::Flow);
    Ok(relay)
}

impl StdioRelay {
    /// A handle to signal the child.
    #[must_use]
    pub fn child(&self) -> ChildHandle {
        self.child.clone()
    }

    /// Tells `traffic` when what waits to be written on comes close to the limits. It is not told how the server is.
    #[must_use]
    pub fn telling(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic: Some(traffic), ..self }
    }

    /// How the server is, from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.subscribe()
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

    /// Relays until the child has ended and all of its output is passed on; where it is started again after a crash, until
    /// the last one has.
    ///
    /// # Errors
    /// The child's end could not be waited for.
    pub async fn wait(mut self) -> io::Result<ExitStatus> {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let status = self.child_ended(&mut sweep).await?;
            let asked_to_end = self.child.was_asked_to_end();
            self.output_ended(asked_to_end).await;
            let fault = self.child.crashed_by();
            let crashed = ((!status.success() || fault.is_some()) && !asked_to_end).then_some(ErrorType::Crash);
            if let Some(watch) = &self.watch {
                watch.relay.probe.server_ended(crashed, fault, Instant::now());
            }
            if crashed.is_some()
                && let Some(started) = self.after_crash(status).await
            {
                self.restarted(started);
                continue;
            }
            self.finish(status, crashed);
            return Ok(status);
        }
    }

    async fn child_ended(&mut self, sweep: &mut tokio::time::Interval) -> io::Result<ExitStatus> {
        let status = loop {
            tokio::select! {
                status = &mut self.exited => break status.map_err(io::Error::other)??,
                Some(report) = self.reports.recv() => self.hear(report),
                () = reached(self.greeting.as_ref().map(Patience::due)) => self.hangs(),
                () = self.child.closing(), if !self.is_closed => {
                    self.is_closed = true;
                    self.input.give(Order::Stop);
                }
                _ = sweep.tick() => if let Some(watch) = &self.watch {
                    watch.sweep();
                    watch.relay.queue.look(self.traffic.as_deref());
                },
            }
        };
        // What was reported before the child's end may be its reason.
        while let Ok(report) = self.reports.try_recv() {
            self.hear(report);
        }
        Ok(status)
    }

    /// Waits until the output of a child that has ended is passed on.
    async fn output_ended(&mut self, asked_to_end: bool) {
        if self.told(|told| told.output_ended, Some(LINGER)).await {
            return;
        }
        self.input.give(Order::Stop);
        self.output.give(Order::Stop);
        // What was read must still be written, however slowly the client reads, as the child would have waited to write it;
        // but not for a client that wanted the child to end.
        if !asked_to_end {
            self.told(|told| told.output_ended, None).await;
        }
    }

    /// Waits until this was reported, and no longer than `limit`, nor than someone wants the server to end. Returns whether
    /// it was.
    async fn told(&mut self, what: impl Fn(&Told) -> bool, limit: Option<Duration>) -> bool {
        let child = self.child.clone();
        let overdue = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let (mut overdue, mut abandoned) = (std::pin::pin!(overdue), std::pin::pin!(child.abandoned()));
        while !what(&self.told) {
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(report) => self.hear(report),
                    None => return false,
                },
                () = &mut abandoned => return false,
                () = &mut overdue => return false,
            }
        }
        true
    }

    fn hear(&mut self, report: Report) {
        let told = &mut self.told;
        match report {
            Report::InputEnded => told.input_ended = true,
            Report::Parked => told.parked = true,
            Report::GivenUp => told.given_up = true,
            Report::OutputEnded { client_gone } => {
                told.output_ended = true;
                told.client_gone |= client_gone;
            }
            Report::Written => told.written = true,
            Report::Greeted => self.greeted(),
        }
    }

    /// Puts a child behind the relay; what the client writes still waits.
    fn serve(&mut self, started: Started<Pipes>) {
        let Started { ends: (stdin, stdout), exited } = started;
        self.exited = exited;
        (self.greeting, self.is_closed) = (None, false);
        (self.told.parked, self.told.output_ended) = (false, false);
        self.output.give(Order::Serve(stdout));
        self.input.give(Order::Serve(stdin));
        if let Some(watch) = &self.watch {
            watch.relay.probe.operation(Component::Server, None, Instant::now());
        }
    }

    fn finish(self, status: ExitStatus, crashed: Option<ErrorType>) {
        drop(self.connection);
        if let Some(watch) = &self.watch {
            // A pump that still waits for the client must not keep the session open.
            watch.look_back();
            let unanswered = watch.conversation.close(crashed.map_or(Ending::Well, Ending::Failed), Instant::now());
            if unanswered > 0 {
                tracing::warn!(server = &**watch.relay.probe.server(), %status, unanswered, "the server ended with calls unanswered");
            }
        }
    }
}

/// Waits for a time, if there is one.
async fn reached(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
