//! Workers that measure themselves in four ways; a window is closed, and the page is printed that a scraper would get:
//! `cargo run -p mcpscope-metrics --features prometheus --example embedded`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is what it is for")]

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime};

use mcpscope_core::ClockAnchor;
use mcpscope_metrics::{Config, Declared, Format, Kind, Metrics, Prometheus, RESERVED_PREFIXES, RecordError, Recorder};

fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let others = Prometheus::new(Config::DEFAULT_IDLE_TIMEOUT, Prometheus::DEFAULT_MAX_SERIES, Instant::now);
    let config = Config { general: Some(Arc::new(others)), ..Config::default() };
    let metrics = Metrics::new(&config, ClockAnchor { mono: start, wall: SystemTime::now() });
    metrics.declare(&Declared::new("jobs_total", Kind::Counter, "Jobs done, by queue.")?)?;
    // Only a program may do this, not a library: from here on, the facade's macros record here, whoever uses them.
    let recorder = Recorder::new(metrics.clone(), Instant::now, |name, why| eprintln!("{name} is not recorded: {why}"));
    metrics::set_global_recorder(recorder)?;

    let workers: Vec<_> = (0..2)
        .map(|_| {
            thread::spawn({
                let metrics = metrics.clone();
                move || work(&metrics)
            })
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")??;
    }

    // Every second in a program that runs on: the first one tidies up, the second ends a window.
    let now = Instant::now();
    metrics.upkeep(now);
    let window = metrics.close_window(now);
    // Without what is of the crate's own, such as `mcpscope_build_info`.
    let is_ours = |name: &str| RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    for series in window.series.iter().filter(|series| !is_ours(&series.desc.prometheus)) {
        let (name, stats) = (&series.desc.prometheus, &series.stats);
        eprintln!("{name}: {} in the window, average {:.3}, p99 {:.3}", stats.count, stats.avg, stats.p99);
    }
    print!("{}", metrics.exposition(Format::Prometheus, now));
    Ok(())
}

fn work(metrics: &Metrics) -> Result<(), RecordError> {
    // Found once, written as often as one likes: a few nanoseconds.
    let wait = metrics.histogram("job_wait_seconds", &[("queue", "mail")])?;
    for job in 0..1000_u32 {
        let begun = Instant::now();
        let sum = (0..job).fold(0_u32, u32::wrapping_add);
        let done = Instant::now();
        wait.record(done - begun, done);
        // The same for literal labels: found once for each place in the program.
        mcpscope_metrics::counter!(metrics, "jobs_total", "queue" => "mail").increment(done);
        // By name. It is not critical: one in ten is kept.
        metrics.record("job_sums", f64::from(sum), &[], done)?;
        // As any library does it, without knowing who listens: all are kept.
        metrics::counter!("mailer_sent_total", "kind" => "letter").increment(1);
    }
    Ok(())
}
