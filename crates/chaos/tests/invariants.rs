//! Whatever is planned, started, stopped, reloaded, opened and sent, in whatever order: what must always hold. On made-up
//! time. `cargo xtask soak chaos` does more of it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Client, MS, SECOND, World, request};
use mcpscope_chaos::{
    BlastRadius, Cause, Endpoint, Happened, MessageKind, Mode, Plan, Rearm, Recording, Scenario, ScenarioPlan, Status,
};
use mcpscope_core::{Effect, FaultId, Injection, Ratio, Transport};
use proptest::collection::vec;
use proptest::prelude::*;

const TOOLS: [&str; 2] = ["echo", "add"];
/// When a world begins, in ms since the epoch.
const BEGINNING: u64 = 1_800_000_000_000;

/// What can happen.
#[derive(Clone, Debug)]
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
    Reload(Box<Plan>),
    /// A plan that cannot be.
    BadReload,
    Pass(u64),
    /// Time passes, and nobody drives the controller.
    Stall(u64),
    Open {
        other: bool,
    },
    Close(usize),
    Messages {
        connection: usize,
        kind: usize,
        tool: usize,
        count: usize,
    },
    /// What becomes of a connection as a whole.
    Look(usize),
    Wellness {
        errors: u64,
    },
}

const SCENARIOS: [(&str, &[&str]); 11] = [
    ("latency_injection", &[]),
    ("packet_loss", &[]),
    ("packet_loss", &["model=gilbert_elliott"]),
    ("network_partition", &[]),
    ("network_partition", &["mode=reset"]),
    ("network_partition", &["mode=refuse_new", "heal=drop"]),
    ("hang", &[]),
    ("duplicate_response", &["probability=0.5"]),
    ("rpc_error", &["max_hits=5"]),
    ("wrong_id", &["every=2"]),
    ("lost_request", &[]),
];

/// Parameters that every one of those has, and whether the server `other` is among those it is about.
const PARAMETERS: [(&[&str], bool); 6] = [
    (&[], true),
    (&["control=0.5"], true),
    (&["direction=both"], true),
    (&["server=de*"], false),
    (&["server=other"], true),
    (&["recovery_time=1s"], true),
];

/// What the scheduler chooses from.
const SCHEDULED: [Scenario; 3] = [Scenario::LatencyInjection, Scenario::LostRequest, Scenario::NetworkPartition];

/// How long what the scheduler starts lasts.
fn scheduled_duration(plan: &Plan) -> Duration {
    plan.test_duration.min(SECOND * 20)
}

prop_compose! {
    fn plan()(
        mode in prop_oneof![1 => Just(Mode::Off), 4 => Just(Mode::Manual), 4 => Just(Mode::Scheduled)],
        max_concurrent_tests in 1..5_usize,
        test_duration in 1..600_u32,
        emergency_threshold in 1..5_u32,
        automatic_stop in any::<bool>(),
        cooldown in 0..400_u32,
        auto in any::<bool>(),
        scheduler in (0..20_u32, 1..60_u32),
        protects in any::<bool>(),
        share in 0.0..1.0,
        chance in 0.0..1.0,
    ) -> Plan {
        let blast_radius = BlastRadius {
            max_sessions: Ratio::new(share).unwrap(),
            protected: if protects { vec!["oth*".into()] } else { Vec::new() },
            ..BlastRadius::default()
        };
        let mut plan = Plan {
            mode,
            max_concurrent_tests,
            test_duration: SECOND * test_duration,
            emergency_threshold,
            automatic_stop,
            cooldown: SECOND * cooldown,
            rearm: if auto { Rearm::Auto } else { Rearm::Manual },
            scheduler_delay: SECOND * scheduler.0,
            scheduler_interval: SECOND * scheduler.1,
            blast_radius,
            ..Plan::default()
        };
        let duration = format!("duration={}ms", scheduled_duration(&plan).as_millis());
        let scenario = |scenario: Scenario| ScenarioPlan {
            enabled: true,
            probability: Ratio::new(chance).unwrap(),
            parameters: request(scenario.as_str(), &[&duration]).parameters,
            ..ScenarioPlan::new(scenario)
        };
        plan.scenarios = SCHEDULED.map(scenario).into();
        plan
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SCENARIOS.len(), 0..PARAMETERS.len(), 1..90_000_u64)
            .prop_map(|(scenario, parameters, millis)| Step::Start { scenario, parameters, millis }),
        2 => (0..8_usize).prop_map(Step::Stop),
        1 => any::<bool>().prop_map(|by_person| Step::EmergencyStop { by_person }),
        2 => Just(Step::Rearm),
        2 => plan().prop_map(|plan| Step::Reload(Box::new(plan))),
        1 => Just(Step::BadReload),
        4 => (0..40_000_u64).prop_map(Step::Pass),
        1 => (0..40_000_u64).prop_map(Step::Stall),
        2 => any::<bool>().prop_map(|other| Step::Open { other }),
        1 => (0..8_usize).prop_map(Step::Close),
        8 => (0..8_usize, 0..3_usize, 0..TOOLS.len(), 1..20_usize)
            .prop_map(|(connection, kind, tool, count)| Step::Messages { connection, kind, tool, count }),
        2 => (0..8_usize).prop_map(Step::Look),
        1 => (0..10_u64).prop_map(|errors| Step::Wellness { errors }),
    ]
}

/// What the test knows of an experiment: from what it did itself, and from when it heard that the scheduler began one.
#[derive(Debug)]
struct Known {
    started: Instant,
    ends: Instant,
    /// Whether it is about the server that is protected at times.
    is_about_other: bool,
    stopped: bool,
    effects: BTreeMap<&'static str, u64>,
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
    beginning: Instant,
    plan: Plan,
    other: Endpoint,
    /// With whether it is a connection to the server that is protected at times.
    clients: Vec<(Client, bool)>,
    known: BTreeMap<FaultId, Known>,
    counts: Counts,
    stopped: bool,
    /// The newest event that was heard of, and the newest experiment by then.
    heard: u64,
    newest: u64,
}

impl Model {
    fn new(plan: Plan) -> Self {
        let world = World::new(plan.clone());
        let other = world.injector.endpoint("other", Transport::Http, false);
        let clients = vec![(world.client(), false), (Client::new(&other), true)];
        Self {
            beginning: world.now,
            world,
            plan,
            other,
            clients,
            known: BTreeMap::new(),
            counts: Counts::default(),
            stopped: false,
            heard: 0,
            newest: 0,
        }
    }

    fn is_other_protected(&self) -> bool {
        !self.plan.blast_radius.protected.is_empty()
    }

    fn running(&self) -> Vec<FaultId> {
        self.known.iter().filter(|(_, known)| !known.stopped).map(|(id, _)| *id).collect()
    }

    fn all_stopped(&mut self) {
        self.known.values_mut().for_each(|known| known.stopped = true);
    }

    /// Hears of what the scheduler has started under the plan that holds, and of stops.
    fn hear(&mut self) {
        let events = self.world.controller.events_since(self.heard, self.world.now);
        self.heard = events.last().map_or(self.heard, |event| event.sequence);
        for event in events {
            match event.what {
                Happened::Changed { id, status, .. } => {
                    self.newest = self.newest.max(id);
                    if status != Status::Running {
                        continue;
                    }
                    let started = self.beginning + MS * u32::try_from(event.time - BEGINNING).unwrap();
                    let ends = started + scheduled_duration(&self.plan);
                    let effects = BTreeMap::new();
                    let known = Known { started, ends, is_about_other: true, stopped: false, effects };
                    self.known.entry(FaultId(id)).or_insert(known);
                }
                Happened::EmergencyStop { .. } => {
                    let known = self.known.range_mut(..=FaultId(self.newest));
                    known.for_each(|(_, known)| known.stopped = true);
                }
                _ => {}
            }
        }
        self.stopped = self.world.controller.status(self.world.now).emergency_stop;
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let now = self.world.now;
        match step {
            Step::Start { scenario, parameters, millis } => self.start(scenario, parameters, millis)?,
            Step::Stop(which) => {
                let running = self.running();
                if let Some(id) = running.get(which % running.len().max(1)) {
                    // It may have ended by itself.
                    drop(self.world.controller.stop(id.0, now));
                    self.known.get_mut(id).unwrap().stopped = true;
                }
            }
            Step::EmergencyStop { by_person } => {
                let cause = if by_person { Cause::Person } else { Cause::Alert("alert".into()) };
                let done = self.world.controller.emergency_stop(cause, now);
                prop_assert_eq!(done, by_person || self.plan.automatic_stop);
                if done {
                    self.stopped = true;
                    self.all_stopped();
                    prop_assert!(!self.world.injector.is_active());
                }
            }
            Step::Rearm => {
                if self.world.controller.rearm(now).is_ok() {
                    self.stopped = false;
                }
            }
            Step::Reload(plan) => self.reload(*plan)?,
            Step::BadReload => {
                let bad = Plan { mode: Mode::Off, test_duration: SECOND * 601, ..self.plan.clone() };
                prop_assert!(self.world.controller.replace_plan(bad, now).is_err());
                prop_assert_eq!(self.world.controller.status(now).mode, self.plan.mode);
            }
            Step::Pass(millis) => {
                self.world.pass(MS * u32::try_from(millis).unwrap());
                self.hear();
            }
            Step::Stall(millis) => self.world.now += MS * u32::try_from(millis).unwrap(),
            Step::Open { other } => {
                if self.clients.len() < 8 {
                    let client = if other { Client::new(&self.other) } else { self.world.client() };
                    self.clients.push((client, other));
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
            Step::Look(connection) => {
                let clients = self.clients.len();
                let Some((client, is_other)) = self.clients.get(connection % clients.max(1)) else { return Ok(()) };
                let (hit, is_other) = (client.connection.standing(false, now), *is_other);
                self.check(hit.as_slice(), is_other)?;
            }
            Step::Wellness { errors } => self.world.watched.set(10, errors),
        }
        Ok(())
    }

    fn start(&mut self, scenario: usize, parameters: usize, millis: u64) -> Result<(), TestCaseError> {
        let now = self.world.now;
        let (scenario, own) = SCENARIOS[scenario];
        let (common, is_about_other) = PARAMETERS[parameters];
        let duration = format!("duration={millis}ms");
        let pairs = [own, common, &[&duration]].concat();
        let length = Duration::from_millis(millis);
        let Ok(id) = self.world.controller.start(&request(scenario, &pairs), now) else { return Ok(()) };
        prop_assert!(!self.stopped, "started in an emergency stop");
        prop_assert!(self.plan.mode != Mode::Off, "started while chaos is off");
        prop_assert!(length <= self.plan.test_duration, "longer than is allowed");
        prop_assert!(!(self.is_other_protected() && pairs.contains(&"server=other")), "about what is protected");
        let status = self.world.controller.status(now);
        let (active, most) = (status.active_tests, self.plan.max_concurrent_tests);
        let not_started = self.world.status(id) == Status::NotStarted;
        prop_assert!(active <= most || not_started, "{active} at once of {most}");
        let known =
            Known { started: now, ends: now + length, is_about_other, stopped: not_started, effects: BTreeMap::new() };
        self.known.insert(id, known);
        Ok(())
    }

    fn reload(&mut self, plan: Plan) -> Result<(), TestCaseError> {
        self.world.controller.replace_plan(plan.clone(), self.world.now).unwrap();
        let was_protected = self.is_other_protected();
        self.plan = plan;
        if self.plan.mode == Mode::Off {
            self.all_stopped();
            prop_assert!(!self.world.injector.is_active());
        }
        if self.is_other_protected() && !was_protected {
            let about = self.known.values_mut().filter(|known| known.is_about_other);
            about.for_each(|known| known.stopped = true);
        }
        Ok(())
    }

    /// Whether these hits may be.
    fn check(&mut self, hits: &[Injection], is_other: bool) -> Result<(), TestCaseError> {
        let now = self.world.now;
        prop_assert!(hits.is_empty() || !is_other || !self.is_other_protected(), "what is protected is hit");
        for (at, Injection { fault, effect, ends }) in hits.iter().enumerate() {
            let known = self.known.get_mut(fault).unwrap();
            prop_assert!(!known.stopped, "{fault:?} was stopped and hits");
            prop_assert!(now < known.ends && *ends == known.ends, "{fault:?} is over and hits");
            prop_assert!(!is_other || known.is_about_other, "{fault:?} is not about this server");
            prop_assert!(known.ends <= known.started + SECOND * 600);
            prop_assert!(!effect.is_final() || at + 1 == hits.len(), "something comes after {effect:?}");
            *known.effects.entry(effect.as_str()).or_default() += 1;
        }
        Ok(())
    }

    fn message(&mut self, connection: usize, kind: MessageKind, tool: &str) -> Result<(), TestCaseError> {
        let (now, clients) = (self.world.now, self.clients.len());
        let Some((client, is_other)) = self.clients.get_mut(connection % clients.max(1)) else { return Ok(()) };
        let hits = match kind {
            MessageKind::Response => client.response(tool, now),
            _ => client.request(tool, now),
        };
        let is_other = *is_other;
        self.check(&hits, is_other)?;
        self.counts.sent += 1;
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
        self.hear();
        let counts = &self.counts;
        prop_assert_eq!(counts.received + counts.lost + counts.held + counts.answered - counts.copies, counts.sent);
        prop_assert!(!self.world.injector.is_active());
        let mut all = 0;
        for (id, known) in &self.known {
            let report = self.world.controller.report(id.0, self.world.now).unwrap();
            prop_assert!(report.status.is_final());
            let longest = u64::try_from((known.ends - known.started).as_millis()).unwrap();
            prop_assert!(report.end_time - report.start_time <= longest);
            let hits: u64 = known.effects.values().sum();
            prop_assert_eq!(report.injection.injected, hits);
            prop_assert!(report.injection.connections_chosen <= report.injection.connections);
            prop_assert_eq!(report.injection.unjournalled, 0);
            prop_assert_eq!(report.leak, None);
            let Some(text) = self.world.controller.journal(id.0, self.world.now) else {
                // The newest 64 are kept in memory.
                prop_assert!(self.newest >= id.0 + 64, "the journal of {id:?} is gone");
                continue;
            };
            let recording = Recording::parse(&text).unwrap();
            let mut effects = BTreeMap::new();
            recording.hits().iter().for_each(|hit| *effects.entry(hit.effect.as_str()).or_default() += 1);
            prop_assert_eq!(&effects, &known.effects);
            prop_assert_eq!(recording.verify(), None);
            all += hits;
        }
        prop_assert!(self.newest > 64 || all >= counts.lost + counts.held + counts.answered);
        Ok(())
    }
}

proptest! {
    // More with PROPTEST_CASES, others with PROPTEST_RNG_SEED.
    #![proptest_config({
        let config = ProptestConfig::default();
        ProptestConfig { cases: config.cases.max(500), failure_persistence: None, ..config }
    })]

    #[test]
    fn what_must_always_hold_does(plan in plan(), steps in vec(step(), 1..60)) {
        let mut model = Model::new(plan);
        for step in steps {
            model.take(step)?;
        }
        model.finish()?;
    }
}
