//! A client that does not ask again when an answer is lost, and the same client with the fix: what an experiment says of
//! each. `cargo run --example flaky_client`; it ends by itself after a few seconds.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_chaos::{
    Injector, Lane, Message, MessageKind, Parts, Plan, Report, Request, Sample, Slot, SteadyState, Window,
};
use mcpscope_core::{ClockAnchor, Direction, Effect, Transport};

/// How long the client waits for an answer.
const TIMEOUT: Duration = Duration::from_millis(20);

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "Every third answer of the server is lost for three seconds. Is what the user asked for done all the same?\n"
    );
    println!("A client that asks once");
    show(&experiment(1)?);
    println!("The same client, which asks again after a timeout");
    show(&experiment(2)?);
    Ok(())
}

fn show((report, asked, done): &(Report, u64, u64)) {
    let rate = |slot: Option<Slot>| match slot.and_then(|slot| slot.error_rate) {
        Some(rate) => format!("{:.0} %", rate * 100.0),
        None => "not seen".to_owned(),
    };
    println!("  {}", report.verdict());
    println!("  failed before {}, during {}, after {}", rate(report.before), rate(report.during), rate(report.after));
    println!("  {} of {} answers lost", report.injection.observed, report.injection.matched);
    println!("  the server was asked for {asked} jobs, and did {done}: whoever asks again may have it done twice\n");
}

/// Does jobs one after the other, and an experiment meanwhile. How many jobs there were, and how often the server did one.
fn experiment(attempts: u32) -> Result<(Report, u64, u64), Box<dyn Error>> {
    let clock = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let jobs = Arc::new(Jobs::default());
    let steady_state: Arc<dyn SteadyState> = jobs.clone();
    let parts = Parts { steady_state: Some(steady_state), ..Parts::new(Plan::default(), 42, clock) };
    let (controller, injector) = mcpscope_chaos::new(parts)?;
    let server = injector.endpoint("worker", Transport::Http, false);
    let connection = server.connect(None);
    let (to_server, to_client) = (connection.lane(Direction::ToServer), connection.lane(Direction::ToClient));
    let mut client = Client { injector, to_server, to_client, attempts, done: 0 };

    while clock.mono.elapsed() < Duration::from_millis(500) {
        jobs.record(|| client.job());
    }
    let lost = Request::new("lost_response")
        .with("every", 3)
        .with("duration", "3s")
        .with("recovery_time", "30s")
        .with("steady_state", "error_rate < 0.05")
        .with("abort_when", "error_rate > 0.2");
    let id = controller.start(&lost, Instant::now())?;
    loop {
        jobs.record(|| client.job());
        controller.drive(Instant::now());
        if let Some(report) = controller.report(id.0, Instant::now()) {
            return Ok((report, jobs.count(), client.done));
        }
    }
}

/// A client of a server in the same process, over a connection on which faults can act.
struct Client {
    injector: Injector,
    to_server: Lane,
    to_client: Lane,
    attempts: u32,
    /// How often the server did what it was asked for.
    done: u64,
}

impl Client {
    /// What a user wants done: whether it was, as far as the client knows.
    fn job(&mut self) -> bool {
        (0..self.attempts).any(|_| self.call())
    }

    fn call(&mut self) -> bool {
        let answered = passes(&self.injector, &mut self.to_server, MessageKind::Request) && {
            self.done += 1;
            sleep(Duration::from_millis(2));
            passes(&self.injector, &mut self.to_client, MessageKind::Response)
        };
        if !answered {
            sleep(TIMEOUT);
        }
        answered
    }
}

/// Whether a message arrives. A program that is open to all faults acts on all effects; here one is asked for.
fn passes(injector: &Injector, lane: &mut Lane, kind: MessageKind) -> bool {
    let message = Message { kind, method: Some("tools/call"), tool: Some("work"), protocol: None };
    let injections = lane.decide(&message, Instant::now());
    let lost = injections.iter().find(|injection| injection.effect == Effect::Drop);
    lost.inspect(|injection| injector.acted(injection)).is_none()
}

/// The jobs that were done. The checks are on them and not on calls, as a lost answer is no failure of a client that asks
/// again.
#[derive(Debug, Default)]
struct Jobs(Mutex<Vec<Job>>);

#[derive(Debug)]
struct Job {
    began: Instant,
    ended: Instant,
    is_done: bool,
}

impl Jobs {
    fn record(&self, job: impl FnOnce() -> bool) {
        let began = Instant::now();
        let is_done = job();
        let job = Job { began, ended: Instant::now(), is_done };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(job);
    }

    fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}

impl SteadyState for Jobs {
    fn sample(&self, window: &Window) -> Sample {
        let jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_in = |job: &&Job| {
            job.ended > window.from
                && job.ended <= window.until
                && window.began_since.is_none_or(|since| job.began >= since)
        };
        let mut took: Vec<_> =
            jobs.iter().filter(is_in).map(|job| (job.ended - job.began).as_secs_f64() * 1e3).collect();
        took.sort_by(f64::total_cmp);
        let percentile = |share: f64| took.get((took.len() as f64 * share) as usize).copied();
        Sample {
            calls: took.len() as u64,
            errors: jobs.iter().filter(is_in).filter(|job| !job.is_done).count() as u64,
            p50_ms: percentile(0.5),
            p95_ms: percentile(0.95),
            p99_ms: percentile(0.99),
            ..Sample::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail")]

    use mcpscope_chaos::Status;

    use super::*;

    #[test]
    fn the_client_that_asks_once_fails_and_the_one_that_asks_again_does_not() {
        let (report, asked, done) = experiment(1).unwrap();
        assert_eq!((report.status, report.held(), asked), (Status::Aborted, Some(false), done));
        assert!(report.injection.observed > 0);
        let (report, asked, done) = experiment(2).unwrap();
        assert_eq!((report.status, report.held()), (Status::Completed, Some(true)), "{}", report.verdict());
        assert_eq!(report.during.unwrap().error_rate, Some(0.0));
        assert_eq!(done, asked + report.injection.observed, "what was lost was done, and was done again");
    }
}
