//! What a decision costs: with nothing active, and with faults that a message has nothing to do with, or is hit by.

use std::hint::black_box;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use mcpscope_chaos::{Controller, Endpoint, Injector, Lane, Message, MessageKind, Parts, Plan, Request};
use mcpscope_core::{ClockAnchor, Direction, Protocol, Transport};
use mcpscope_test_support::bench::{Race, Report, Table};

use crate::Bench;

const MESSAGE: Message<'static> = Message {
    kind: MessageKind::Request,
    method: Some("tools/call"),
    tool: Some("echo"),
    protocol: Some(Protocol::V2025_11_25),
};

pub(crate) fn measure(report: &mut Report, _: &mut Bench) -> io::Result<()> {
    report.add(idle()?);
    report.add(active()?);
    Ok(())
}

/// An engine in which these experiments are running, and what keeps it so.
struct Engine {
    injector: Injector,
    endpoint: Endpoint,
    now: Instant,
    _controller: Controller,
}

impl Engine {
    fn new(requests: &[Request]) -> io::Result<Self> {
        let now = Instant::now();
        let clock = ClockAnchor { mono: now, wall: SystemTime::now() };
        let (controller, injector) =
            mcpscope_chaos::new(Parts::new(Plan::default(), 1, clock)).map_err(io::Error::other)?;
        let endpoint = injector.endpoint("demo", Transport::Http, false);
        for request in requests {
            controller.start(request, now).map_err(io::Error::other)?;
        }
        Ok(Self { injector, endpoint, now, _controller: controller })
    }

    fn lane(&self) -> Lane {
        self.endpoint.connect(None).lane(Direction::ToServer)
    }
}

fn idle() -> io::Result<Table> {
    let engine = Engine::new(&[])?;
    let flag = AtomicBool::new(false);
    let table = Race::new("B12 no active fault", 1)
        .case("mcpscope: is anything active", || black_box(&engine.injector).is_active())
        .case("a relaxed atomic load", || black_box(&flag).load(Ordering::Relaxed))
        .run();
    Ok(table)
}

fn active() -> io::Result<Table> {
    let other = Request::new("latency_injection").with("tool", "other");
    let hit = |scenario| Request::new(scenario).with("tool", "echo").with("duration", "60s");
    let never = hit("rpc_error").with("probability", 0);
    let engines = [
        Engine::new(&[])?,
        Engine::new(&[other])?,
        Engine::new(std::slice::from_ref(&never))?,
        Engine::new(&[never.clone(), never.clone(), never])?,
        Engine::new(&[hit("latency_injection")])?,
    ];
    let lanes = engines.each_ref().map(|engine| Mutex::new(engine.lane()));
    let decide = |which: usize| {
        let mut lane = lanes[which].lock().ok()?;
        Some(lane.decide(black_box(&MESSAGE), engines[which].now).len())
    };
    let names = [
        "a lane, no fault (with its mutex here)",
        "1 fault, of another tool",
        "1 fault, drawn and not hit",
        "3 faults, drawn and not hit",
        "1 fault, hit, its journal full",
    ];
    let race =
        names.into_iter().enumerate().fold(Race::new("a message with active faults", 1), |race, (which, name)| {
            race.case(name, move || decide(which))
        });
    Ok(race.run())
}
