//! What helpers take of cores and memory: what was asked for, what `/proc` says, and what mcpscope reports.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use mcpscope_test_support::bench::{Ratio, Report, Table};
use serde_json::{Value, json};

use crate::Bench;
use crate::support::process::{self, children};
use crate::support::{now, wait_for};

const ROUNDS: usize = 3;
/// Percent of a core.
const DUTIES: [f64; 5] = [10.0, 25.0, 50.0, 80.0, 95.0];
/// How long a load is looked at.
const WINDOW: Duration = Duration::from_millis(2500);
const SIZES_MIB: [f64; 3] = [16.0, 100.0, 512.0];
const MIB: f64 = 1024.0 * 1024.0;
/// Memory that has not changed for so long will not.
const SETTLED: Duration = Duration::from_millis(300);

/// What one load came to, in the unit that it was asked for in.
struct Taken {
    name: String,
    asked: f64,
    /// By `/proc`, in each round.
    seen: Vec<f64>,
    /// By mcpscope.
    reported: Vec<f64>,
}

pub(crate) fn cpu(report: &mut Report, bench: &mut Bench) -> io::Result<()> {
    let (chaos, mcpscope) = (bench.http.chaos, bench.http.id);
    let taken = Taken::rounds(&DUTIES, "%", |percent| {
        let parameters = json!({"intensity": percent / 100.0, "cores": 1, "duration": "60s"});
        let id = chaos.start("cpu_overload", &parameters)?;
        let helper = Helper::at_work(mcpscope)?;
        let (worked, began) = (helper.cpu_time()?, now()?);
        thread::sleep(WINDOW);
        let (worked, took) = (helper.cpu_time()?.saturating_sub(worked), now()?.saturating_sub(began));
        let achieved = achieved(&chaos.stop(id)?)?;
        helper.end()?;
        Ok((worked.as_secs_f64() / took.as_secs_f64() * 100.0, achieved * 100.0))
    })?;
    let points = |asked: f64| move |value: &f64| value - asked;
    let table = |title, unit, values: &dyn Fn(&Taken) -> Vec<f64>| Taken::table(&taken, title, unit, values);
    report.add(table("cpu_overload on one core, by /proc", "% of a core", &|load| load.seen.clone()));
    report.add(table("the same, less what was asked for", "points", &|load| {
        load.seen.iter().map(points(load.asked)).collect()
    }));
    report.add(table("reported, less what was asked for", "points", &|load| {
        load.reported.iter().map(points(load.asked)).collect()
    }));
    Ok(())
}

pub(crate) fn memory(report: &mut Report, bench: &mut Bench) -> io::Result<()> {
    let (chaos, mcpscope) = (bench.http.chaos, bench.http.id);
    let take = |bytes: f64| -> io::Result<(f64, f64)> {
        let id = chaos.start("memory_pressure", &json!({"size": bytes as u64, "duration": "60s"}))?;
        let helper = Helper::of(mcpscope)?;
        let seen = helper.memory(bytes / 2.0)?;
        let achieved = achieved(&chaos.stop(id)?)?;
        helper.end()?;
        Ok((seen, achieved))
    };
    let (own, _) = take(1.0)?;
    let taken = Taken::rounds(&SIZES_MIB, "MiB", |mib| {
        let (seen, achieved) = take(mib * MIB)?;
        Ok((seen / MIB, achieved / MIB))
    })?;
    let own = own / MIB;
    let percent = |asked: f64| move |value: f64| (value / asked - 1.0) * 100.0;
    let table = |title, unit, values: &dyn Fn(&Taken) -> Vec<f64>| Taken::table(&taken, title, unit, values);
    let seen = table("memory_pressure, RssAnon of the helper", "MiB", &|load| load.seen.clone());
    report.add(seen.row("1 B, which is what it has for itself", vec![own]));
    report.add(table("the same, less what was asked for", "%", &|load| {
        load.seen.iter().copied().map(percent(load.asked)).collect()
    }));
    report.add(table("without what it has for itself", "%", &|load| {
        load.seen.iter().map(|seen| seen - own).map(percent(load.asked)).collect()
    }));
    report.add(table("reported, less what was asked for", "%", &|load| {
        load.reported.iter().copied().map(percent(load.asked)).collect()
    }));
    Ok(())
}

/// What a report says was achieved.
fn achieved(report: &Value) -> io::Result<f64> {
    let achieved = report["injection"]["resource"]["achieved"].as_f64();
    achieved.ok_or_else(|| io::Error::other(format!("a report says nothing of what was achieved: {report}")))
}

impl Taken {
    /// Has all of these loads taken in turn; `take` gives what was seen and what was reported.
    fn rounds(loads: &[f64], unit: &str, take: impl Fn(f64) -> io::Result<(f64, f64)>) -> io::Result<Vec<Self>> {
        let none = |asked: &f64| Self {
            name: format!("{asked} {unit} asked for"),
            asked: *asked,
            seen: Vec::new(),
            reported: Vec::new(),
        };
        let mut all: Vec<_> = loads.iter().map(none).collect();
        for _ in 0..ROUNDS {
            for load in &mut all {
                let (seen, reported) =
                    take(load.asked).map_err(|error| io::Error::other(format!("{}: {error}", load.name)))?;
                load.seen.push(seen);
                load.reported.push(reported);
            }
        }
        Ok(all)
    }

    fn table(all: &[Self], title: &str, unit: &'static str, values: &dyn Fn(&Self) -> Vec<f64>) -> Table {
        let table = Table::new(title, unit, Ratio::None);
        all.iter().fold(table, |table, load| table.row(&load.name, values(load)))
    }
}

/// The process that takes something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Helper {
    id: u32,
}

impl Helper {
    /// The only one of this mcpscope, once it is there.
    fn of(mcpscope: u32) -> io::Result<Self> {
        wait_for("a helper", || {
            let all = children(mcpscope)?.into_iter().map(|id| Self { id });
            Ok(all.into_iter().find(|helper| helper.read("comm").trim_end() == "mcpscope-chaos" && !helper.is_gone()))
        })
    }

    /// The same, once it has worked for a while.
    pub(crate) fn at_work(mcpscope: u32) -> io::Result<Self> {
        const A_WHILE: Duration = Duration::from_millis(20);
        let helper = Self::of(mcpscope)?;
        wait_for("a load", || Ok((helper.cpu_time()? >= A_WHILE).then_some(helper)))
    }

    /// When it has ended, or rather when that was seen: it is looked at a few thousand times a second.
    pub(crate) fn end(self) -> io::Result<Duration> {
        const LOOK: Duration = Duration::from_micros(200);
        const PATIENCE: Duration = Duration::from_secs(10);
        let start = Instant::now();
        while !self.is_gone() {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("the helper {} is still there", self.id)));
            }
            thread::sleep(LOOK);
        }
        now()
    }

    /// What all of its threads have had of the cores.
    fn cpu_time(self) -> io::Result<Duration> {
        let of = |task: io::Result<fs::DirEntry>| {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
            nanoseconds
                .map(Duration::from_nanos)
                .ok_or_else(|| io::Error::other(format!("no time in schedstat: {text}")))
        };
        fs::read_dir(format!("/proc/{}/task", self.id))?.map(of).sum()
    }

    /// Its memory that is nobody else's and no file's, once it has `least` and does not grow any more.
    fn memory(self, least: f64) -> io::Result<f64> {
        let (mut last, mut since) = (f64::NAN, Instant::now());
        wait_for("memory that stays as it is", || {
            let now = process::memory(self.id, "RssAnon")?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            Ok((now >= least && since.elapsed() >= SETTLED).then_some(now))
        })
    }

    fn is_gone(self) -> bool {
        // Behind the name, which may have anything in it, is the state.
        let stat = self.read("stat");
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
    }

    /// A file of its; nothing if it is gone.
    fn read(self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.id)).unwrap_or_default()
    }
}
