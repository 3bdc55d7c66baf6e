//! What follows a crash: what the client is told, and another server in the place of the one that is gone.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Signal;

use super::ends::Order;
use super::ledger::Replay;
use super::{GREETING, LINGER, Pipes, StdioRelay, pipes};
use crate::child::{CleanUp, Started};
use crate::restarts::{Decision, RestartPolicy, Restarts, ServerState, tell};
use crate::standstill::Patience;
use crate::{INTERNAL_ERROR, answer};

/// Decides about restarts.
#[derive(Debug)]
pub(super) struct Supervisor {
    restarts: Restarts,
    /// When the child that runs now, or ran last, was started.
    started: Instant,
    /// Whether that one was ended because it did not answer the replayed `initialize`.
    hung: bool,
}

impl Supervisor {
    pub(super) fn new(policy: RestartPolicy) -> Self {
        Self { restarts: Restarts::new(policy), started: now(), hung: false }
    }
}

impl StdioRelay {
    /// The child crashed. Tells the client what will not be answered, and starts another if there is to be one.
    pub(super) async fn after_crash(&mut self, status: ExitStatus) -> Option<Started<Pipes>> {
        let supervisor = self.supervisor.as_ref()?;
        if status.signal().is_some_and(|signal| self.child.got(signal)) {
            return None;
        }
        let started = supervisor.started;
        let is_parked = self.park().await;
        let wanted = is_parked && !self.told.input_ended && !self.told.client_gone && !self.child.is_abandoned();
        if !wanted {
            self.give_up(is_parked).await;
            self.answer_lost(status, true).await;
            return None;
        }
        let fault = self.child.crashed_by();
        let supervisor = self.supervisor.as_mut()?;
        let mut decision = if supervisor.hung {
            supervisor.restarts.did_not_listen(started, fault, now())
        } else {
            supervisor.restarts.crashed(started, fault, now())
        };
        let is_last = matches!(decision, Decision::GiveUp { .. });
        if is_last {
            self.give_up(is_parked).await;
        }
        self.answer_lost(status, is_last).await;
        let server = self.watch.as_ref().map(|watch| Arc::clone(watch.relay.probe.server())).unwrap_or_default();
        let mut why = status.to_string();
        let started = loop {
            tell(&server, self.command.get_program(), &why, Some(decision), None);
            let (state, again) = decision.outcome(None);
            self.state.send_replace(state);
            let Some(after) = again else { break None };
            // A client that leaves needs no server.
            if self.told(|told| told.input_ended, Some(after)).await || self.child.is_abandoned() {
                break None;
            }
            match self.child.start(&mut self.command, CleanUp::AfterCrash, pipes) {
                Ok(started) => break started,
                Err(error) => {
                    why = error.to_string();
                    let at = now();
                    decision = self.supervisor.as_mut()?.restarts.crashed(at, None, at);
                }
            }
        };
        if started.is_none() && !is_last {
            self.give_up(is_parked).await;
            // Not even its greeting will be answered.
            self.answer_lost(status, true).await;
        }
        started
    }

    /// Goes on with another server: it learns of the session first.
    pub(super) fn restarted(&mut self, started: Started<Pipes>) {
        self.serve(started);
        if let Some(supervisor) = &mut self.supervisor {
            (supervisor.started, supervisor.hung) = (now(), false);
        }
        let Some(watch) = self.watch.clone() else { return };
        watch.relay.probe.restarted(Instant::now());
        let replay = watch.supervised.as_ref().map_or(Replay::Nothing, |supervised| supervised.ledger.replay());
        match replay {
            Replay::Nothing => self.flow(None),
            Replay::Unanswered(initialize) => self.flow(Some(initialize)),
            // What follows it waits for the answer.
            Replay::Answered(initialize) => {
                self.input.give(Order::Write(initialize));
                self.greeting = Some(Patience::new(now(), GREETING.min(watch.relay.limits.call_timeout)));
            }
        }
    }

    /// The new server has not answered in time, unless a fault kept it from that: its end is that of any server that crashes.
    pub(super) fn hangs(&mut self) {
        let child = &self.child;
        let mut goes_on = |patience: &mut Patience| patience.goes_on(|from, to| child.stood_still(from, to), now());
        if self.greeting.as_mut().is_some_and(&mut goes_on) {
            return;
        }
        self.greeting = None;
        self.supervisor.iter_mut().for_each(|supervisor| supervisor.hung = true);
        tracing::warn!("the restarted server does not answer the replayed `initialize`: it is killed");
        self.child.signal(Signal::KILL);
    }

    /// The new server knows of the session.
    pub(super) fn greeted(&mut self) {
        self.greeting = None;
        let supervised = self.watch.as_ref().and_then(|watch| watch.supervised.as_ref());
        let confirmation = supervised.and_then(|supervised| supervised.ledger.confirmation());
        self.flow(confirmation);
    }

    /// Lets what the client writes go on to the new server, behind what we have to say.
    fn flow(&mut self, first: Option<Vec<u8>>) {
        if let Some(bytes) = first {
            self.input.give(Order::Write(bytes));
        }
        // Before any call can end.
        self.child.ready(self.child.id());
        self.input.give(Order::Flow);
        self.state.send_replace(ServerState::Serving(self.child.id()));
    }

    /// Waits until nothing more is read from the client. Returns whether that is so.
    async fn park(&mut self) -> bool {
        // Once: another answer would be taken for one about the next server.
        if !self.is_closed {
            self.input.give(Order::Stop);
        }
        let is_parked = self.told(|told| told.parked || told.input_ended, Some(LINGER)).await;
        if !is_parked && !self.child.is_abandoned() {
            // Someone who left its process group took nothing of what was written.
            tracing::warn!("the server is not started again: another process holds its input");
        }
        is_parked
    }

    /// There will be no other server: what the client has written for it is lost like what the last one left unanswered.
    async fn give_up(&mut self, is_parked: bool) {
        if !is_parked {
            return;
        }
        self.input.give(Order::GiveUp);
        // Whoever wants the server to end does not want its client's calls uncounted.
        let seen = async {
            while !self.told.given_up && !self.told.input_ended {
                let Some(report) = self.reports.recv().await else { return };
                self.hear(report);
            }
        };
        // It waits for nobody, and is done in a moment.
        let _ = tokio::time::timeout(LINGER, seen).await;
    }

    /// Answers what the server did not, in its place.
    async fn answer_lost(&mut self, status: ExitStatus, is_last: bool) {
        let Some(watch) = self.watch.clone() else { return };
        let Some(supervised) = &watch.supervised else { return };
        let message = format!("mcpscope: the server crashed before it answered ({status})");
        let spared = supervised.ledger.unanswered_greeting().filter(|_| !is_last);
        watch.look_back();
        let lost = supervised.ledger.server_lost(is_last);
        let at = Instant::now();
        watch
            .relay
            .probe
            .guarded(|| watch.conversation.break_off(spared.as_ref(), &message, self.child.crashed_by(), at));
        let line = |id| answer::error(INTERNAL_ERROR, Some(id), &message).to_string() + "\n";
        // Even without any: half a line is ended.
        let lines: String = lost.iter().map(line).collect();
        self.told.written = false;
        self.output.give(Order::Write(lines.into_bytes()));
        // A client that does not read is waited for, as a server would.
        self.told(|told| told.written, None).await;
    }
}

/// The runtime's time, in which its waits are.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
