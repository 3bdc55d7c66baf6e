//! How long it takes from an emergency stop to its last effect: until all that was held is where it was to go, and until what
//! keeps the cores busy is gone.

use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mcpscope_test_support::bench::{Ratio, Report, Table};
use serde_json::json;

use crate::resources::Helper;
use crate::support::now;
use crate::way::Way;
use crate::{Bench, HTTP_QUEUE, STDIO_QUEUE, Subject};

/// What is held in each direction when there is nothing else to do.
const FEW: usize = 5;
const RUNS: usize = 15;

/// Who keeps all cores busy.
#[derive(Clone, Copy)]
enum Busy {
    Nobody,
    /// A cpu_overload, which the stop has to end, too.
    Overload,
    /// Others, with the same priority, that go on.
    Others,
}

struct Case {
    name: &'static str,
    /// Messages in each direction.
    held: usize,
    busy: Busy,
}

pub(crate) fn measure(report: &mut Report, bench: &mut Bench) -> io::Result<()> {
    let cases = |held: [usize; 2]| {
        let [few, many] = held;
        [
            Case { name: "idle", held: few, busy: Busy::Nobody },
            Case { name: "cores idle", held: many, busy: Busy::Nobody },
            Case { name: "cpu_overload on all cores", held: many, busy: Busy::Overload },
            Case { name: "others on all cores", held: many, busy: Busy::Others },
        ]
    };
    let mut rows = Vec::new();
    for case in cases([FEW, STDIO_QUEUE]) {
        rows.push((case.title("stdio"), case.runs(&mut bench.stdio)?));
    }
    // There both directions are one queue.
    for case in cases([FEW, HTTP_QUEUE / 2]) {
        rows.push((case.title("HTTP"), case.runs(&mut bench.http)?));
    }
    let table = |what: &str| Table::new(format!("emergency stop, held each way, {what}"), "ms", Ratio::None);
    let all = table(&format!("median of {RUNS}"));
    report.add(rows.iter().fold(all, |table, (name, runs)| table.row(name, runs.clone())));
    let worst = |runs: &[f64]| runs.iter().copied().fold(f64::NAN, f64::max);
    report.add(rows.iter().fold(table("longest"), |table, (name, runs)| table.row(name, vec![worst(runs)])));
    Ok(())
}

impl Case {
    fn title(&self, way: &str) -> String {
        format!("{way}, {} held, {}", self.held, self.name)
    }

    /// In milliseconds.
    fn runs<W: Way>(&self, subject: &mut Subject<W>) -> io::Result<Vec<f64>> {
        (0..RUNS).map(|_| self.run(subject)).collect()
    }

    fn run<W: Way>(&self, Subject { way, chaos, id, .. }: &mut Subject<W>) -> io::Result<f64> {
        let mut hold = |direction: &str| {
            let parameters =
                json!({"distribution": "constant", "delay": "10m", "direction": direction, "duration": "60s"});
            let fault = chaos.start("latency_injection", &parameters)?;
            for _ in 0..self.held {
                way.send()?;
            }
            chaos.has_hit(fault, self.held as u64)?;
            Ok::<_, io::Error>(fault)
        };
        // The answers to the first, and then the others.
        let mut faults = vec![hold("to_client")?, hold("to_server")?];
        let helper = match self.busy {
            Busy::Overload => {
                faults.push(chaos.start("cpu_overload", &json!({"intensity": 1, "duration": "60s"}))?);
                Some(Helper::at_work(*id)?)
            }
            Busy::Nobody | Busy::Others => None,
        };
        let mut brake = chaos.brake()?;
        let (asked, last) = with_others(matches!(self.busy, Busy::Others), || {
            let asked = now()?;
            brake.pull()?;
            let mut last = asked;
            for _ in 0..self.held {
                last = last.max(way.receive()?.answered);
            }
            for _ in 0..self.held {
                last = last.max(way.receive()?.arrived);
            }
            if let Some(helper) = helper {
                last = last.max(helper.end()?);
            }
            Ok((asked, last))
        })?;
        brake.pulled()?;
        for fault in faults {
            chaos.report(fault)?;
        }
        chaos.rearm()?;
        Ok((last - asked).as_secs_f64() * 1e3)
    }
}

/// Does it while a thread on each core does nothing but work, if `busy`.
fn with_others<T>(busy: bool, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let is_over = AtomicBool::new(false);
    let spin = || {
        while !is_over.load(Ordering::Relaxed) {
            black_box(());
        }
    };
    thread::scope(|scope| {
        if busy {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            (0..cores).for_each(|_| drop(scope.spawn(spin)));
        }
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        done
    })
}
