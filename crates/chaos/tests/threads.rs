//! Decisions on several threads while others start, drive and stop: on real time, without waiting for any of it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use common::{Client, World, request};
use mcpscope_chaos::{Cause, Plan};

const ROUNDS: u64 = 100;
const THREADS: u64 = 2;

/// What the threads and their test tell each other.
#[derive(Default)]
struct Told {
    /// The round whose emergency stop has returned, until something is armed again; else 0.
    stopped: AtomicU64,
    /// Decisions that came from a fault that had been stopped before it was asked.
    late: AtomicU64,
    over: AtomicBool,
    hits: AtomicU64,
    /// Messages asked about since the beginning.
    asked: AtomicU64,
}

impl Told {
    fn ask(&self, client: &mut Client) {
        let before = self.stopped.load(Ordering::SeqCst);
        let hits = client.response("echo", Instant::now()).len() as u64;
        if before > 0 && before == self.stopped.load(Ordering::SeqCst) {
            self.late.fetch_add(hits, Ordering::SeqCst);
        }
        self.hits.fetch_add(hits, Ordering::SeqCst);
        self.asked.fetch_add(1, Ordering::SeqCst);
    }

    /// Every thread has asked since.
    fn wait_for_asking(&self) {
        let enough = self.asked.load(Ordering::SeqCst) + 10 * THREADS;
        while self.asked.load(Ordering::SeqCst) < enough {
            thread::yield_now();
        }
    }
}

#[test]
fn no_decision_begins_after_an_emergency_stop_and_every_one_before_it_is_journalled() {
    let world = World::new(Plan::default());
    let (controller, told) = (&world.controller, &Told::default());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let mut client = world.client();
            scope.spawn(move || {
                while !told.over.load(Ordering::SeqCst) {
                    told.ask(&mut client);
                }
            });
        }
        // Somebody else drives, and so holds the controller's state much of the time.
        scope.spawn(|| {
            while !told.over.load(Ordering::SeqCst) {
                controller.drive(Instant::now());
                thread::yield_now();
            }
        });
        for round in 1..=ROUNDS {
            for scenario in ["hang", "duplicate_response"] {
                // It may not be journalled yet that those of the round before are over.
                while controller.start(&request(scenario, &["max_hits=20"]), Instant::now()).is_err() {
                    thread::yield_now();
                }
            }
            told.wait_for_asking();
            controller.emergency_stop(Cause::Person, Instant::now());
            told.stopped.store(round, Ordering::SeqCst);
            told.wait_for_asking();
            told.stopped.store(0, Ordering::SeqCst);
            controller.rearm(Instant::now()).unwrap();
        }
        told.over.store(true, Ordering::SeqCst);
    });
    controller.emergency_stop(Cause::Person, Instant::now());
    controller.drive(Instant::now());
    let history = controller.history(1000, Instant::now());
    assert_eq!(controller.status(Instant::now()).active_tests, 0);
    // The newest that a journal in memory keeps are enough to see that each says what its counters say.
    let reports: Vec<_> = history.iter().filter_map(|test| test.details.report.as_ref()).collect();
    assert!(!reports.is_empty());
    for report in reports {
        let Some(text) = controller.journal(report.id, Instant::now()) else { continue };
        let hits = text.lines().filter(|line| line.contains("\"record\":\"hit\"")).count() as u64;
        assert_eq!(hits + report.injection.unjournalled, report.injection.injected);
        assert!(report.injection.injected <= 20);
    }
    assert_eq!(told.late.load(Ordering::SeqCst), 0);
    assert!(told.hits.load(Ordering::SeqCst) > 0);
}

#[test]
fn an_emergency_stop_does_not_wait_for_the_controller() {
    use mcpscope_chaos::{Sample, SteadyState, Window};
    use std::sync::{Arc, mpsc};

    /// Keeps the controller waiting in the middle of a command.
    #[derive(Debug)]
    struct Stuck(std::sync::Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>, AtomicBool);
    impl SteadyState for Stuck {
        fn sample(&self, _: &Window) -> Sample {
            if self.1.load(Ordering::SeqCst) {
                let ends = self.0.lock().unwrap();
                ends.0.send(()).unwrap();
                ends.1.recv().unwrap();
            }
            Sample::default()
        }
    }
    let now = Instant::now();
    let clock = mcpscope_core::ClockAnchor { mono: now, wall: std::time::SystemTime::now() };
    let ((arrived, is_stuck), (go_on, wait)) = (mpsc::channel(), mpsc::channel());
    let stuck = Arc::new(Stuck(std::sync::Mutex::new((arrived, wait)), AtomicBool::new(false)));
    let steady: Arc<dyn SteadyState> = stuck.clone();
    let parts = mcpscope_chaos::Parts::new(Plan::default(), 1, clock);
    let (controller, injector) =
        mcpscope_chaos::new(mcpscope_chaos::Parts { steady_state: Some(steady), ..parts }).unwrap();
    let endpoint = injector.endpoint("demo", mcpscope_core::Transport::Http, false);
    let mut client = Client::new(&endpoint);
    let id = controller.start(&request("hang", &[]), now).unwrap();
    assert_eq!(client.response("echo", now).len(), 1);
    stuck.1.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let starting = scope.spawn(|| controller.start(&request("lost_request", &[]), now).is_ok());
        is_stuck.recv().unwrap();
        // This would never return if it waited.
        controller.emergency_stop(Cause::Person, now);
        assert!(!injector.is_active() && client.response("echo", now).is_empty());
        stuck.1.store(false, Ordering::SeqCst);
        go_on.send(()).unwrap();
        starting.join().unwrap();
    });
    // What was being started meanwhile is void, and everything is known to be stopped.
    assert!(client.request("echo", now).is_empty());
    let status = controller.status(now);
    assert!(status.emergency_stop && status.active_tests == 0);
    assert_eq!(controller.experiment(id.0, now).unwrap().status, mcpscope_chaos::Status::Aborted);
}
