//! A server that we start and that serves HTTP itself.

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
use crate::restarts::{Decision, RestartPolicy, Restarts, ServerState, tell};

/// A server process beside a relay: it is started, started again when it crashes, and ended.
#[derive(Debug)]
pub struct ServerProcess {
    command: Command,
    child: ChildHandle,
    restarts: Option<Restarts>,
    probe: Probe,
    state: watch::Sender<ServerState>,
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
        Self { command, child, restarts, probe, state: watch::Sender::new(ServerState::Starting) }
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
                Err(error) => Err(error),
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
    async fn live(
        &self,
        started: Started<ChildStdin>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<io::Result<ExitStatus>> {
        let Started { ends: stdin, mut exited } = started;
        let closing = async {
            self.child.closing().await;
            drop(stdin);
            std::future::pending().await
        };
        // It stays open until this returns.
        let mut closing = pin!(closing);
        tokio::select! {
            ended = &mut exited => return Some(ended.map_err(io::Error::other).flatten()),
            never = &mut closing => match never {},
            () = stop => {}
        }
        self.child.signal(Signal::TERM);
        tokio::select! {
            _ = &mut exited => {}
            () = self.child.kill_after_term() => drop(exited.await),
        }
        None
    }

    /// What becomes of a server whose process has ended, or could not be started: how it is then, and how long until it is
    /// started again, if it is.
    fn after(&mut self, ended: io::Result<ExitStatus>, begun: Instant) -> (ServerState, Option<Duration>) {
        let status = ended.as_ref().ok().copied();
        let fault = self.child.crashed_by();
        let is_crash = !status.is_some_and(|status| status.success()) || fault.is_some();
        self.probe.server_ended(is_crash.then_some(ErrorType::Crash), fault, Instant::now());
        let (server, why) = (&**self.probe.server(), ended.map_or_else(|error| error.to_string(), |it| it.to_string()));
        let command = self.command.get_program();
        let decision =
            self.restarts.as_mut().filter(|_| is_crash).map(|restarts| restarts.crashed(begun, fault, now()));
        tell(server, command, &why, decision);
        decision.map_or((ServerState::Ended { status }, None), Decision::outcome)
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
