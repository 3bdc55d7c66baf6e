//! A server that we start and that serves HTTP itself.

use std::future::pending;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::pin::{Pin, pin};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use mcpscope_core::{Component, ErrorType};
use mcpscope_hooks::Probe;
use rustix::process::Signal;
use tokio::sync::watch;

use crate::child::{ChildHandle, CleanUp, Program, Started};
use crate::restarts::{NotListening, RestartPolicy, Restarts, ServerState, tell};
use crate::standstill::Patience;

/// A server process beside a relay: it is started, started again when it crashes, and ended.
#[derive(Debug)]
pub struct ServerProcess {
    command: Command,
    child: ChildHandle,
    restarts: Option<Restarts>,
    start_timeout: Option<Duration>,
    probe: Probe,
    state: watch::Sender<ServerState>,
}

/// How a process has ended, or why it could not even be started.
struct Ended {
    status: io::Result<ExitStatus>,
    /// If it was ended because it accepted no connections: how long it had been given.
    start_timeout: Option<Duration>,
}

impl ServerProcess {
    /// A process that is started by [`ServerProcess::run`]. When it crashes, which is to end other than with exit code 0, it
    /// is started again as `policy` says, if there is one.
    ///
    /// It gets a process group of its own, so that signals reach its descendants too. Its stdin is a pipe that stays open and
    /// empty as long as it runs: a server that watches it ends with us. Its stdout and stderr are as the command says.
    #[must_use]
    pub fn new(program: impl Into<Program>, policy: Option<RestartPolicy>, probe: Probe) -> Self {
        let Program { mut command, guardians } = program.into();
        command.stdin(Stdio::piped()).process_group(0);
        let (child, restarts) = (ChildHandle::new(guardians, false), policy.map(Restarts::new));
        let state = watch::Sender::new(ServerState::Starting);
        Self { command, child, restarts, start_timeout: None, probe, state }
    }

    /// Takes a process that accepts no connections within this time after its start for one that hangs: it is ended, and that is
    /// a crash. Only if there is a policy, and a relay in front of it to tell ([`Config::child`](super::Config::child)). Default: it is
    /// waited for without a limit.
    #[must_use]
    pub fn with_start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = Some(limit);
        self
    }

    /// How the server is, for the [`Config::server`](super::Config::server) of the relay in front of it and for everyone else.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.subscribe()
    }

    /// A handle to signal the process.
    #[must_use]
    pub fn child(&self) -> ChildHandle {
        self.child.clone()
    }

    /// Keeps the process running until `stop`, and then ends it: by SIGTERM, and 10 s later by SIGKILL, each to its whole
    /// process group, of which nothing is left behind. Dropped, it kills the group.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut is_first = true;
        loop {
            let begun = now();
            let ended = match self.start(is_first) {
                Ok(Some(started)) => match self.live(started, stop.as_mut()).await {
                    Some(ended) => ended,
                    None => return,
                },
                Ok(None) => return,
                Err(error) => Ended { status: Err(error), start_timeout: None },
            };
            is_first = false;
            let (state, again) = self.after(ended, begun);
            self.state.send_replace(state);
            let Some(wait) = again else { return stop.await };
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn start(&mut self, is_first: bool) -> io::Result<Option<Started<ChildStdin>>> {
        let started = self.child.start(&mut self.command, CleanUp::Always, |child| child.stdin.take())?;
        if started.is_some() {
            let at = Instant::now();
            self.probe.operation(Component::Server, None, at);
            if !is_first {
                self.probe.restarted(at);
            }
            self.state.send_replace(ServerState::Serving(self.child.id()));
        }
        Ok(started)
    }

    /// Waits for the end of a process; nothing if it was made to end.
    async fn live(&self, started: Started<ChildStdin>, stop: Pin<&mut impl Future<Output = ()>>) -> Option<Ended> {
        let Started { ends: stdin, mut exited } = started;
        let closing = async {
            self.child.closing().await;
            drop(stdin);
            pending().await
        };
        // It stays open until this returns.
        let mut closing = pin!(closing);
        let status = |ended: Result<_, _>| ended.map_err(io::Error::other).flatten();
        let start_timeout = tokio::select! {
            ended = &mut exited => return Some(Ended { status: status(ended), start_timeout: None }),
            never = &mut closing => match never {},
            () = stop => None,
            limit = self.not_listening() => Some(limit),
        };
        match start_timeout {
            None => self.child.signal(Signal::TERM),
            Some(_) => self.child.ask_to_end(),
        }
        let ended = tokio::select! {
            ended = &mut exited => ended,
            () = self.child.kill_after_term() => exited.await,
        };
        start_timeout.map(|_| Ended { status: status(ended), start_timeout })
    }

    /// Waits until the process has had its time to accept connections, and has not; says how long that was. The time in which
    /// a fault made it stand still is none of it.
    async fn not_listening(&self) -> Duration {
        let Some(limit) = self.start_timeout.filter(|_| self.restarts.is_some()) else { return pending().await };
        let mut patience = Patience::new(now(), limit);
        while tokio::time::timeout_at(patience.due().into(), self.child.accepting()).await.is_err() {
            if !patience.goes_on(|from, to| self.child.stood_still(from, to), now()) {
                return limit;
            }
        }
        pending().await
    }

    /// What becomes of a server whose process has ended, or could not be started: how it is then, and how long until it is
    /// started again, if it is.
    fn after(&mut self, ended: Ended, begun: Instant) -> (ServerState, Option<Duration>) {
        let Ended { status: ended, start_timeout } = ended;
        let status = ended.as_ref().ok().copied();
        let fault = self.child.crashed_by();
        let ended_well = status.is_some_and(|status| status.success()) && start_timeout.is_none();
        let is_crash = !ended_well || fault.is_some();
        self.probe.server_ended(is_crash.then_some(ErrorType::Crash), fault, Instant::now());
        let server = &**self.probe.server();
        let why = match (start_timeout, ended) {
            (Some(limit), _) => NotListening(limit).to_string(),
            (None, Ok(status)) => status.to_string(),
            (None, Err(error)) => error.to_string(),
        };
        let command = self.command.get_program();
        let decision = self.restarts.as_mut().filter(|_| is_crash).map(|restarts| match start_timeout {
            None => restarts.crashed(begun, fault, now()),
            Some(_) => restarts.did_not_listen(begun, fault, now()),
        });
        tell(server, command, &why, decision, start_timeout);
        decision.map_or((ServerState::Ended { status }, None), |decision| decision.outcome(start_timeout))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            self.child.signal(Signal::KILL);
        }
    }
}

/// The runtime's time, in which its waits are.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
