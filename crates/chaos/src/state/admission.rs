//! Whether an experiment may be started.

use std::sync::Arc;
use std::time::Instant;

use mcpscope_core::{Ratio, Transport};

use super::State;
use crate::Scenario;
use crate::directory::Server;
use crate::experiment::{Experiment, Request};
use crate::fault::Fault;
use crate::lease::Shared;
use crate::outlook::millis;
use crate::parameter::ParameterError;
use crate::plan::{Mode, Plan};
use crate::refusal::Refusal;
use crate::run::Run;
use crate::status::{StartedBy, Status};
use crate::steady::{Window, is_healthy_enough};
use crate::target::{ChaosTarget, Victim};

/// An experiment that may be started.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) experiment: Experiment,
    pub(super) targets: Vec<String>,
    pub(super) carriers: Vec<Arc<dyn ChaosTarget>>,
    pub(super) victims: Vec<Victim>,
    pub(super) scope: Ratio,
}

impl Admitted {
    /// The share of the connections that it is about.
    pub(super) fn share(&self) -> Ratio {
        let own = self.experiment.fault.connections();
        if own < self.scope { own } else { self.scope }
    }
}

impl State {
    /// Everything that has to be right for an experiment to start; nothing is changed.
    pub(super) fn admit(
        &self,
        shared: &Shared,
        request: &Request,
        by: StartedBy,
        now: Instant,
    ) -> Result<Admitted, Refusal> {
        let experiment = self.plan.experiment(request)?;
        let scenario = experiment.scenario;
        if self.is_stopping {
            return Err(Refusal::Stopping);
        }
        if self.plan.mode == Mode::Off {
            return Err(Refusal::Off { why: self.plan.why_off() });
        }
        if let Some(stopped) = &self.stopped {
            let wait_ms = millis(stopped.until.saturating_duration_since(now));
            return Err(Refusal::Stopped { by: stopped.cause.to_string(), wait_ms });
        }
        let (running, most) = (self.unfinished().count(), self.plan.max_concurrent_tests);
        if running >= most {
            return Err(Refusal::TooMany { running, most });
        }
        let limits = &self.plan.blast_radius;
        if let Some(steady) = &self.steady {
            let sample = steady.sample(&Window::second(now));
            if !is_healthy_enough(&sample, limits.min_healthy) {
                let healthy = sample.healthy.unwrap_or(1.0) * 100.0;
                return Err(Refusal::Unhealthy { healthy, least: limits.min_healthy.get() * 100.0 });
            }
        }
        let (targets, carriers, victims) = if scenario.is_out_of_process() {
            let carriers = self.carriers(shared, &experiment)?;
            if scenario == Scenario::ProcessCrash {
                self.may_kill(now)?;
            }
            let victims = self.victims(shared, &experiment)?;
            for target in &carriers {
                target.check(scenario, &experiment.parameters, &victims)?;
            }
            let targets = if victims.is_empty() {
                carriers.iter().map(|target| target.name().to_owned()).collect()
            } else {
                victims.iter().map(|victim| victim.name.clone()).collect()
            };
            (targets, carriers, victims)
        } else {
            (servers(shared, &experiment)?, self.networks(&experiment)?, Vec::new())
        };
        let untouched = Ratio::new(1.0 - experiment.control.get()).unwrap_or(Ratio::ONE);
        let scope = match by {
            StartedBy::Scheduler if limits.max_sessions < untouched => limits.max_sessions,
            _ => untouched,
        };
        Ok(Admitted { experiment, targets, carriers, victims, scope })
    }

    /// The experiments that do what is not allowed under this plan, and why not; what is protected is so from here on.
    pub(super) fn forbidden(&self, shared: &Shared, plan: &Plan) -> Vec<(u64, String)> {
        let mut directory = shared.directory();
        let protected = directory.protect(&plan.blast_radius.protected);
        let why = |run: &Run| {
            if plan.mode == Mode::Off {
                return Some(format!("chaos is off ({})", plan.why_off()));
            }
            let server = protected.iter().find(|server| run.is_about(server)).map(|server| &*server.name);
            let carriers = run.carriers.iter().map(|target| target.name());
            let mut touched = carriers.chain(run.victims.iter().map(|victim| &*victim.name));
            let name = server.or_else(|| touched.find(|name| directory.is_protected(name)))?;
            Some(format!("{name} is protected"))
        };
        let active = self.runs.iter().filter(|run| matches!(run.status, Status::Planned | Status::Running));
        active.filter_map(|run| Some((run.id, why(run)?))).collect()
    }

    /// Ends the experiments on servers and targets that have been marked as critical since they began; whether there were any,
    /// whose leases are then to be taken out of the table.
    pub(super) fn spare_critical(&mut self, shared: &Shared, now: Instant) -> bool {
        let marked = shared.directory().take_marked();
        let Self { runs, targets, .. } = self;
        let is_critical = |name: &str| targets.iter().any(|target| target.name() == name && target.is_critical());
        let mut has_ended = false;
        for run in runs.iter_mut().filter(|run| run.status == Status::Running) {
            let server = marked.iter().find(|server| run.is_about(server)).map(|server| &*server.name);
            let mut critical = run.carriers.iter().filter(|target| target.is_critical()).map(|target| target.name());
            // Crashes by chance go on for the others, who have nothing to do with it.
            let needed = if run.crashes.is_some() { run.carriers.len().max(1) } else { 1 };
            let victim = run.victims.iter().map(|victim| &*victim.name).find(|name| is_critical(name));
            if let Some(name) = server.or_else(|| critical.nth(needed - 1)).or(victim).map(str::to_owned) {
                run.abort(format!("{name} is marked as critical"), now);
                has_ended = true;
            }
        }
        has_ended
    }
}

impl State {
    /// Who has a network for a fault of packets.
    fn networks(&self, experiment: &Experiment) -> Result<Vec<Arc<dyn ChaosTarget>>, Refusal> {
        let Experiment { scenario, parameters, .. } = experiment;
        if !matches!(experiment.fault, Fault::Network(_)) {
            return Ok(Vec::new());
        }
        let Some(target) = self.targets.iter().find(|target| target.carries(*scenario)) else {
            return Err(Refusal::NoNetwork);
        };
        target.check(*scenario, parameters, &[])?;
        Ok(vec![target.clone()])
    }

    /// Who has to be asked, while nothing is locked, whether it can make a network for this. Nobody if it is not about packets, or
    /// will be refused anyway.
    pub(crate) fn prober(
        &self,
        shared: &Shared,
        request: &Request,
        by: StartedBy,
        now: Instant,
    ) -> Option<(Arc<dyn ChaosTarget>, Experiment)> {
        let is_of_packets = |experiment: &Experiment| matches!(experiment.fault, Fault::Network(_));
        self.plan.experiment(request).ok().filter(is_of_packets)?;
        let Admitted { experiment, carriers, .. } = self.admit(shared, request, by, now).ok()?;
        Some((carriers.into_iter().next()?, experiment))
    }
}

/// The servers that a fault of messages is about.
fn servers(shared: &Shared, experiment: &Experiment) -> Result<Vec<String>, Refusal> {
    let (scenario, matcher) = (experiment.scenario, &experiment.matcher);
    let directory = shared.directory();
    let there = || directory.servers().map(|server| format!("{} ({})", server.name, server.transport)).collect();
    let nothing =
        |reason, place, parameter| Refusal::NothingMatched { scenario, reason, there: there(), place, parameter };
    let given = |names: &[&'static str]| names.iter().copied().find(|name| experiment.parameters.0.contains_key(*name));
    let named: Vec<_> =
        directory.servers().filter(|server| matcher.takes_server(&server.name, server.transport)).collect();
    if named.is_empty() {
        let is_of_packets = matches!(experiment.fault, Fault::Network(_));
        let is_pipe = |server: &Arc<Server>| server.transport == Transport::Stdio && matcher.takes_name(&server.name);
        return Err(nothing(
            if is_of_packets && directory.servers().any(is_pipe) {
                "a pipe has no packets (backend=netem)"
            } else {
                "no server of that name and transport"
            },
            matcher.meaningful(),
            given(&["server", "transport"]),
        ));
    }
    let speaks = |server: &Server| {
        let mut eras = server.eras().peekable();
        eras.peek().is_none() || eras.any(|era| matcher.takes_place(server.transport, era))
    };
    if !named.iter().any(|server| speaks(server)) {
        let place = named.first().map(|server| format!("{}, as {} speaks it", server.transport, server.name));
        return Err(ParameterError::Meaningless { scenario, place: place.unwrap_or_default() }.into());
    }
    let free: Vec<_> = named.into_iter().filter(|server| !server.is_protected() && speaks(server)).collect();
    if free.is_empty() {
        return Err(nothing("all servers that match are critical or protected", None, None));
    }
    if matcher.wants_open_session() && directory.connections(matcher).is_empty() {
        return Err(nothing("no session that matches is open", None, given(&["session"])));
    }
    let mut names: Vec<_> = free.into_iter().map(|server| server.name.to_string()).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}
