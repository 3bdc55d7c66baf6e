//! What the benchmarks of this workspace share: rounds that visit every case in turn, so that noise is spread over all of
//! them, and tables of medians and ratios, on stdout and as JSON in `target/bench/`.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measures")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde_json::{Value, json};

/// How long one case runs in one round.
const SAMPLE: Duration = Duration::from_millis(10);
const ROUNDS: usize = 11;

/// Whether cargo runs this program as a benchmark. As a test, which `cargo test --all-targets` does, it ends at once.
pub fn wanted() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Which way the targets in the specification are given.
#[derive(Clone, Copy, Debug)]
pub enum Ratio {
    /// How many times as much the peer has or takes.
    PeerToOurs,
    /// How many times as much we have or take.
    OursToPeer,
    /// The rows are not compared.
    None,
}

impl Ratio {
    fn name(self) -> &'static str {
        match self {
            Self::PeerToOurs => "peer/ours",
            Self::OursToPeer => "ours/peer",
            Self::None => "",
        }
    }

    /// The median of the ratios within each round: what slows a whole round down is not in it.
    fn of(self, ours: &[f64], peer: &[f64]) -> f64 {
        let ratios = ours.iter().zip(peer).map(|(ours, peer)| match self {
            Self::PeerToOurs => peer / ours,
            Self::OursToPeer => ours / peer,
            Self::None => f64::NAN,
        });
        median(&ratios.collect::<Vec<_>>())
    }
}

/// One quantity of several cases, of which the first is ours.
#[derive(Debug)]
pub struct Table {
    title: String,
    unit: &'static str,
    ratio: Ratio,
    rows: Vec<(String, Vec<f64>)>,
}

impl Table {
    /// A table without rows yet; `unit` is that of the values.
    pub fn new(title: impl Into<String>, unit: &'static str, ratio: Ratio) -> Self {
        Self { title: title.into(), unit, ratio, rows: Vec::new() }
    }

    /// Adds a case with its value in each round.
    #[must_use]
    pub fn row(mut self, name: impl Into<String>, rounds: Vec<f64>) -> Self {
        self.rows.push((name.into(), rounds));
        self
    }

    fn ratios(&self) -> Vec<f64> {
        let ours = self.rows.first().map_or(&[][..], |(_, rounds)| rounds);
        self.rows.iter().map(|(_, rounds)| self.ratio.of(ours, rounds)).collect()
    }

    fn print(&self) {
        println!("\n{:<52} {:>14} {:>12}", self.title, self.unit, self.ratio.name());
        for ((name, rounds), ratio) in self.rows.iter().zip(self.ratios()) {
            let ratio = if ratio.is_nan() { String::new() } else { format!("{ratio:.3}") };
            println!("  {name:<50} {:>14} {ratio:>12}", digits(median(rounds)));
        }
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().zip(self.ratios());
        let rows = rows.map(
            |((name, rounds), ratio)| json!({"name": name, "median": median(rounds), "ratio": ratio, "rounds": rounds}),
        );
        let rows: Vec<_> = rows.collect();
        json!({"title": self.title, "unit": self.unit, "ratio": self.ratio.name(), "rows": rows})
    }
}

/// The tables of one benchmark.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    load: String,
    tables: Vec<Table>,
}

impl Report {
    /// A report that will be `NAME.json`; says on what machine it is made.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default().to_owned();
        println!("{name}: {} cores, load average {load} before; ours is the first row where there are ratios", cores());
        Self { name, load, tables: Vec::new() }
    }

    /// Prints a table and keeps it for the file.
    pub fn add(&mut self, table: Table) {
        table.print();
        self.tables.push(table);
    }

    /// Writes all tables to `bench/NAME.json` in the target folder. `inside` is a folder in there: `CARGO_TARGET_TMPDIR`,
    /// which cargo tells benchmarks.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self, inside: &str) -> io::Result<()> {
        let folder = Path::new(inside).parent().unwrap_or(Path::new(inside)).join("bench");
        let tables: Vec<_> = self.tables.iter().map(Table::json).collect();
        let load: Option<f64> = self.load.parse().ok();
        let all = json!({"bench": self.name, "cores": cores(), "load_average_before": load, "tables": tables});
        let file = folder.join(format!("{}.json", self.name));
        fs::create_dir_all(&folder)?;
        fs::write(&file, format!("{all:#}\n"))?;
        println!("\nwritten to {}", file.display());
        Ok(())
    }
}

/// Cases that are run again and again, in turn.
pub struct Race<'a> {
    title: String,
    threads: usize,
    cases: Vec<(&'static str, Repeat<'a>)>,
}

impl std::fmt::Debug for Race<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Race").field("title", &self.title).finish_non_exhaustive()
    }
}

/// Does its operation so many times.
type Repeat<'a> = Box<dyn Fn(u64) + Sync + 'a>;

impl<'a> Race<'a> {
    /// A race without cases yet, each of which will run on so many threads at once.
    #[must_use]
    pub fn new(title: &str, threads: usize) -> Self {
        let plural = if threads == 1 { "" } else { "s" };
        Self { title: format!("{title}, {threads} thread{plural}"), threads, cases: Vec::new() }
    }

    /// Adds a case; the first is ours.
    #[must_use]
    pub fn case<R>(self, name: &'static str, operation: impl Fn() -> R + Sync + 'a) -> Self {
        self.numbered_case(name, move |_| operation())
    }

    /// Adds a case whose operation is told its number, so that it can take something else each time.
    #[must_use]
    pub fn numbered_case<R>(mut self, name: &'static str, operation: impl Fn(u64) -> R + Sync + 'a) -> Self {
        let repeat = move |times: u64| (0..times).for_each(|number| drop(black_box(operation(number))));
        self.cases.push((name, Box::new(repeat)));
        self
    }

    /// The time that one operation takes, on each thread if there are several.
    pub fn run(self) -> Table {
        let times: Vec<u64> = self.cases.iter().map(|(_, repeat)| calibrated(repeat)).collect();
        let mut rounds = vec![Vec::new(); self.cases.len()];
        for _ in 0..ROUNDS {
            for (((_, repeat), times), values) in self.cases.iter().zip(&times).zip(&mut rounds) {
                // What the case before left in caches and to the allocator is not this one's to pay for.
                repeat(1);
                let took = on_threads(self.threads, || repeat(*times));
                values.push(took.as_secs_f64() * 1e9 / *times as f64);
            }
        }
        let table = Table::new(self.title, "ns", Ratio::PeerToOurs);
        self.cases.iter().zip(rounds).fold(table, |table, ((name, _), rounds)| table.row(*name, rounds))
    }
}

/// How often to repeat for a sample to last as long as it should.
fn calibrated(repeat: &dyn Fn(u64)) -> u64 {
    let mut times = 1;
    loop {
        let start = Instant::now();
        repeat(times);
        let took = start.elapsed();
        if took >= SAMPLE / 4 {
            return ((times as f64 * SAMPLE.as_secs_f64() / took.as_secs_f64()) as u64).max(1);
        }
        times *= 2;
    }
}

/// How long the slowest of the threads takes.
fn on_threads(threads: usize, work: impl Fn() + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    let timed = || {
        barrier.wait();
        let start = Instant::now();
        work();
        start.elapsed()
    };
    if threads == 1 {
        return timed();
    }
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(timed)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).max().unwrap_or_default()
    })
}

/// The middle value; of an even number, the higher one in the middle.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that this share of them (0 to 1, without 1) is below.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get((share * sorted.len() as f64) as usize).copied().unwrap_or(f64::NAN)
}

fn digits(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
