//! Whatever is started, stopped, opened and sent, in whatever order: what must always hold. On made-up time.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use common::{Client, MS, SECOND, World, request};
use mcpscope_chaos::{Cause, MessageKind, Plan, Recording, Status};
use mcpscope_core::{Effect, FaultId, Injection};
use proptest::collection::vec;
use proptest::prelude::*;

const TOOLS: [&str; 2] = ["echo", "add"];

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start {
        scenario: usize,
        parameters: usize,
        millis: u64,
    },
    Stop(usize),
    EmergencyStop {
        by_person: bool,
    },
    Rearm,
    Pass(u64),
    /// Time passes, and nobody drives the controller.
    Stall(u64),
    Open,
    Close(usize),
    Messages {
        connection: usize,
        kind: usize,
        tool: usize,
        count: usize,
    },
    Wellness {
        errors: u64,
    },
}

const SCENARIOS: [&str; 8] = [
    "latency_injection",
    "packet_loss",
    "network_partition",
    "hang",
    "duplicate_response",
    "rpc_error",
    "wrong_id",
    "lost_request",
];

/// Parameters that every one of those has.
const PARAMETERS: [&[&str]; 5] = [&[], &["control=0.5"], &["direction=both"], &["server=de*"], &["recovery_time=1s"]];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SCENARIOS.len(), 0..PARAMETERS.len(), 1..60_000_u64)
            .prop_map(|(scenario, parameters, millis)| Step::Start { scenario, parameters, millis }),
        2 => (0..8_usize).prop_map(Step::Stop),
        1 => any::<bool>().prop_map(|by_person| Step::EmergencyStop { by_person }),
        2 => Just(Step::Rearm),
        4 => (0..40_000_u64).prop_map(Step::Pass),
        1 => (0..40_000_u64).prop_map(Step::Stall),
        2 => Just(Step::Open),
        1 => (0..8_usize).prop_map(Step::Close),
        8 => (0..8_usize, 0..3_usize, 0..TOOLS.len(), 1..20_usize)
            .prop_map(|(connection, kind, tool, count)| Step::Messages { connection, kind, tool, count }),
        1 => (0..10_u64).prop_map(|errors| Step::Wellness { errors }),
    ]
}

/// What the test knows of an experiment, from what it did itself.
#[derive(Debug)]
struct Known {
    started: Instant,
    longest: Instant,
    stopped: bool,
    hits: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sent: u64,
    received: u64,
    lost: u64,
    held: u64,
    answered: u64,
    copies: u64,
}

struct Model {
    world: World,
    clients: Vec<Client>,
    known: BTreeMap<FaultId, Known>,
    counts: Counts,
    stopped: bool,
}

impl Model {
    fn new() -> Self {
        let world = World::new(Plan::default());
        let clients = vec![world.client()];
        Self { world, clients, known: BTreeMap::new(), counts: Counts::default(), stopped: false }
    }

    fn running(&self) -> Vec<FaultId> {
        self.known.iter().filter(|(_, known)| !known.stopped).map(|(id, _)| *id).collect()
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Start { scenario, parameters, millis } => {
                let duration = format!("duration={millis}ms");
                let pairs = [PARAMETERS[parameters], &[&duration]].concat();
                let now = self.world.now;
                let started = self.world.controller.start(&request(SCENARIOS[scenario], &pairs), now);
                let Ok(id) = started else { return Ok(()) };
                prop_assert!(!self.stopped, "started in an emergency stop");
                let longest = now + MS * u32::try_from(millis).unwrap();
                let not_started = self.world.status(id) == Status::NotStarted;
                self.known.insert(id, Known { started: now, longest, stopped: not_started, hits: 0 });
            }
            Step::Stop(which) => {
                let running = self.running();
                if let Some(id) = running.get(which % running.len().max(1)) {
                    // It may have ended by itself.
                    drop(self.world.controller.stop(id.0, self.world.now));
                    self.known.get_mut(id).unwrap().stopped = true;
                }
            }
            Step::EmergencyStop { by_person } => {
                let cause = if by_person { Cause::Person } else { Cause::Alert("alert".into()) };
                self.world.controller.emergency_stop(cause, self.world.now);
                self.stopped = true;
                self.known.values_mut().for_each(|known| known.stopped = true);
                prop_assert!(!self.world.injector.is_active());
            }
            Step::Rearm => {
                if self.world.controller.rearm(self.world.now).is_ok() {
                    self.stopped = false;
                }
            }
            Step::Pass(millis) => {
                self.world.pass(MS * u32::try_from(millis).unwrap());
                // A stop may have come from failures.
                self.stopped = self.world.controller.status(self.world.now).emergency_stop;
            }
            Step::Stall(millis) => self.world.now += MS * u32::try_from(millis).unwrap(),
            Step::Open => {
                if self.clients.len() < 8 {
                    self.clients.push(self.world.client());
                }
            }
            Step::Close(which) => {
                if !self.clients.is_empty() {
                    self.clients.remove(which % self.clients.len());
                }
            }
            Step::Messages { connection, kind, tool, count } => {
                for _ in 0..count {
                    self.message(connection, MessageKind::ALL[kind], TOOLS[tool])?;
                }
            }
            Step::Wellness { errors } => self.world.watched.set(10, errors),
        }
        let active = self.world.controller.status(self.world.now).active_tests;
        prop_assert!(active <= 3, "{active} at once");
        Ok(())
    }

    fn message(&mut self, connection: usize, kind: MessageKind, tool: &str) -> Result<(), TestCaseError> {
        let (now, clients) = (self.world.now, self.clients.len());
        let Some(client) = self.clients.get_mut(connection % clients.max(1)) else { return Ok(()) };
        let hits = match kind {
            MessageKind::Response => client.response(tool, now),
            _ => client.request(tool, now),
        };
        self.counts.sent += 1;
        for (at, Injection { fault, effect, ends }) in hits.iter().enumerate() {
            let known = self.known.get_mut(fault).unwrap();
            prop_assert!(!known.stopped, "{fault:?} was stopped and hits");
            prop_assert!(now < known.longest && *ends == known.longest, "{fault:?} is over and hits");
            prop_assert!(known.longest <= known.started + 60 * SECOND);
            prop_assert!(!effect.is_final() || at + 1 == hits.len(), "something comes after {effect:?}");
            known.hits += 1;
        }
        // What a peer would count: a message arrives, or it is known what became of it.
        let copies = hits.iter().filter(|hit| hit.effect == Effect::Duplicate).count() as u64;
        match hits.last().map(|hit| &hit.effect) {
            Some(Effect::Drop | Effect::Break(_)) => self.counts.lost += 1,
            Some(Effect::Hold { .. }) => self.counts.held += 1,
            Some(Effect::Answer(_)) => self.counts.answered += 1,
            _ => {
                self.counts.received += 1 + copies;
                self.counts.copies += copies;
            }
        }
        Ok(())
    }

    /// All is over: what the journals and reports say is what happened.
    fn finish(mut self) -> Result<(), TestCaseError> {
        self.world.controller.emergency_stop(Cause::Person, self.world.now);
        self.world.pass(120 * SECOND);
        let counts = &self.counts;
        prop_assert_eq!(counts.received + counts.lost + counts.held + counts.answered - counts.copies, counts.sent);
        prop_assert!(!self.world.injector.is_active());
        let mut all = 0;
        for (id, known) in &self.known {
            let report = self.world.controller.report(id.0, self.world.now).unwrap();
            prop_assert!(report.status.is_final());
            prop_assert!(report.end_time - report.start_time <= 60_000);
            prop_assert_eq!(report.injection.injected, known.hits);
            prop_assert!(report.injection.matched >= report.injection.injected);
            prop_assert_eq!(report.injection.unjournalled, 0);
            let text = self.world.controller.journal(id.0, self.world.now).unwrap();
            let recording = Recording::parse(&text).unwrap();
            prop_assert_eq!(recording.hits().len() as u64, known.hits);
            prop_assert_eq!(recording.verify(), None);
            all += known.hits;
        }
        prop_assert!(all >= counts.lost + counts.held + counts.answered);
        Ok(())
    }
}

proptest! {
    // More with PROPTEST_CASES.
    #![proptest_config({
        let config = ProptestConfig::default();
        ProptestConfig { cases: config.cases.max(500), failure_persistence: None, ..config }
    })]

    #[test]
    fn what_must_always_hold_does(steps in vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            model.take(step)?;
        }
        model.finish()?;
    }
}
