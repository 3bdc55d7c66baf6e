//! How much later than its delay what is delayed arrives.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use mcpscope_test_support::bench::{Ratio, Report, Table, median, quantile};
use serde_json::json;

use crate::support::api::Chaos;
use crate::way::Way;
use crate::{Bench, Subject};

const ROUNDS: usize = 3;
/// Requests without a fault in each round.
const BASELINE: u32 = 500;
/// Requests that may wait for their answers beside those that are delayed.
const BESIDE: u32 = 16;

/// A delay, and how many requests are given it.
struct Step {
    delay: Duration,
    requests: u32,
    every: Duration,
}

const USUALLY: Duration = Duration::from_millis(2);
const STEPS: [Step; 4] = [
    Step { delay: Duration::from_millis(1), requests: 1000, every: USUALLY },
    Step { delay: Duration::from_millis(10), requests: 1000, every: USUALLY },
    Step { delay: Duration::from_millis(100), requests: 1000, every: USUALLY },
    Step { delay: Duration::from_secs(1), requests: 200, every: Duration::from_millis(5) },
];

pub(crate) fn measure(report: &mut Report, bench: &mut Bench) -> io::Result<()> {
    over(report, "stdio", &mut bench.stdio)?;
    over(report, "HTTP", &mut bench.http)
}

fn over<W: Way>(report: &mut Report, name: &str, subject: &mut Subject<W>) -> io::Result<()> {
    let mut trips = Vec::new();
    let mut errors: [Errors; STEPS.len()] = Default::default();
    for _ in 0..ROUNDS {
        let without = microseconds(&trips_of(&mut subject.way, Duration::ZERO, BASELINE, USUALLY)?);
        let baseline = median(&without);
        trips.push(baseline);
        for (step, errors) in STEPS.iter().zip(&mut errors) {
            let late = microseconds(&step.trips(&mut subject.way, subject.chaos)?);
            let delay = step.delay.as_secs_f64() * 1e6;
            let late: Vec<_> = late.iter().map(|trip| trip - delay - baseline).collect();
            errors.p50.push(quantile(&late, 0.5));
            errors.p99.push(quantile(&late, 0.99));
        }
    }
    let table = |what: &str| Table::new(format!("latency over {name}, {what}"), "us", Ratio::None);
    report.add(table("without a fault").row("p50 from client to server", trips));
    for (what, of) in [("error p50", Errors::p50 as fn(&Errors) -> &[f64]), ("error p99", Errors::p99)] {
        let rows = STEPS.iter().zip(&errors);
        let row = |table: Table, (step, errors): (&Step, &Errors)| {
            table.row(format!("{:?}, {} requests", step.delay, step.requests), of(errors).to_vec())
        };
        report.add(rows.fold(table(what), row));
    }
    Ok(())
}

/// By round, in microseconds.
#[derive(Default)]
struct Errors {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Errors {
    fn p50(&self) -> &[f64] {
        &self.p50
    }

    fn p99(&self) -> &[f64] {
        &self.p99
    }
}

impl Step {
    /// From client to server, delayed.
    fn trips(&self, way: &mut impl Way, chaos: Chaos) -> io::Result<Vec<Duration>> {
        let delay = u64::try_from(self.delay.as_millis()).map_err(io::Error::other)?;
        let parameters =
            json!({"distribution": "constant", "delay": delay, "direction": "to_server", "duration": "60s"});
        let id = chaos.start("latency_injection", &parameters)?;
        let trips = trips_of(way, self.delay, self.requests, self.every)?;
        chaos.has_hit(id, u64::from(self.requests))?;
        chaos.stop(id)?;
        Ok(trips)
    }
}

/// From client to server, of so many requests, one `every` so often, of which each may take `delay`.
fn trips_of(way: &mut impl Way, delay: Duration, requests: u32, every: Duration) -> io::Result<Vec<Duration>> {
    let ahead = (delay.as_secs_f64() / every.as_secs_f64()) as u32 + BESIDE;
    let mut trips = Vec::new();
    let start = Instant::now();
    for number in 0..requests {
        if number >= ahead {
            trips.push(way.receive()?);
        }
        thread::sleep((start + every * number).saturating_duration_since(Instant::now()));
        way.send()?;
    }
    while trips.len() < requests as usize {
        trips.push(way.receive()?);
    }
    Ok(trips.iter().map(|trip| trip.arrived.saturating_sub(trip.sent)).collect())
}

fn microseconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
}
