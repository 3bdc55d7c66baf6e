//! An engine on made-up time, with traffic that is whatever a test says.

#![allow(dead_code, reason = "each test uses some of it")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use mcpscope_chaos::{
    Connection, Controller, Endpoint, Injector, Journal, Lane, Message, MessageKind, Parts, Plan, Request, Sample,
    Status, SteadyState, Test, Window,
};
use mcpscope_core::{ClockAnchor, Direction, FaultId, Injection, Protocol, Transport};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MS: Duration = Duration::from_millis(1);

/// The watched system, as a test wants it to be.
#[derive(Debug, Default)]
pub(crate) struct Watched(pub(crate) Mutex<Sample>, pub(crate) Mutex<Vec<Window>>);

impl SteadyState for Watched {
    fn sample(&self, window: &Window) -> Sample {
        self.1.lock().unwrap().push(*window);
        *self.0.lock().unwrap()
    }
}

impl Watched {
    pub(crate) fn set(&self, calls: u64, errors: u64) {
        *self.0.lock().unwrap() = Sample { calls, errors, ..Sample::default() };
    }
}

/// An engine, its time, and one HTTP server called `demo`.
pub(crate) struct World {
    pub(crate) controller: Controller,
    pub(crate) injector: Injector,
    pub(crate) watched: Arc<Watched>,
    pub(crate) endpoint: Endpoint,
    pub(crate) now: Instant,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        Self::with_journal(plan, 7, Journal::in_memory())
    }

    pub(crate) fn with_journal(plan: Plan, seed: u64, journal: Journal) -> Self {
        let now = Instant::now();
        let clock = ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH + SECOND * 1_800_000_000 };
        let watched = Arc::new(Watched::default());
        let steady_state: Arc<dyn SteadyState> = watched.clone();
        let parts = Parts { journal, steady_state: Some(steady_state), ..Parts::new(plan, seed, clock) };
        let (controller, injector) = mcpscope_chaos::new(parts).unwrap();
        let endpoint = injector.endpoint("demo", Transport::Http, false);
        Self { controller, injector, watched, endpoint, now }
    }

    /// Lets time pass, and drives the controller whenever it wants to be.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let next = self.controller.drive(self.now);
            assert!(next > self.now, "it wants to be driven again at once");
            if next > until {
                self.now = until;
                return;
            }
            self.now = next;
        }
    }

    pub(crate) fn start(&self, scenario: &str, pairs: &[&str]) -> FaultId {
        self.controller.start(&request(scenario, pairs), self.now).unwrap()
    }

    pub(crate) fn test(&self, id: FaultId) -> Test {
        self.controller.experiment(id.0, self.now).unwrap()
    }

    pub(crate) fn status(&self, id: FaultId) -> Status {
        self.test(id).status
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.endpoint)
    }
}

pub(crate) fn request(scenario: &str, pairs: &[&str]) -> Request {
    let parameters = mcpscope_chaos::Parameters::from_pairs(pairs.iter().copied()).unwrap();
    Request { parameters, ..Request::new(scenario) }
}

/// A connection with both of its directions.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Connection,
    to_server: Lane,
    to_client: Lane,
}

impl Client {
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        let connection = endpoint.connect(None);
        let (to_server, to_client) = (connection.lane(Direction::ToServer), connection.lane(Direction::ToClient));
        Self { connection, to_server, to_client }
    }

    pub(crate) fn request(&mut self, tool: &str, now: Instant) -> Vec<Injection> {
        self.to_server.decide(&message(MessageKind::Request, tool), now)
    }

    pub(crate) fn response(&mut self, tool: &str, now: Instant) -> Vec<Injection> {
        self.to_client.decide(&message(MessageKind::Response, tool), now)
    }
}

pub(crate) fn message(kind: MessageKind, tool: &str) -> Message<'_> {
    Message { kind, method: Some("tools/call"), tool: Some(tool), protocol: Some(Protocol::V2025_11_25) }
}
