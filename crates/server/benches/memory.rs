//! Resident memory of `mcpscope run` and `mcpscope proxy` with everything on (metrics, traces, dashboard, gRPC): idle, and
//! as requests to call 200 tools go through. Every answer is checked, and that each call was counted.
//!
//! Linux only: it reads `/proc`.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use mcpscope_test_support::bench::{Ratio, Report, Table};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

mod support;
use support::api::get;
use support::http::{Client, announced, serve, upstream};
use support::process::memory;
use support::stdio::respond;
use support::{Children, Mcpscope, answer, config, observed, renumber, request, role, this_program};

const TOOLS: u64 = 200;
/// As many measurements are made under load.
const STEPS: u64 = 10;
/// The load of this time is warm-up: until then there are as many windows, traces and raw records as are kept.
const WARM_UP: Duration = Duration::from_secs(60);
/// Windows are kept for less than the warm-up, so that those that come after it take the place of others.
const CONFIG: &str = "metrics: { retention: 30s }";
/// How many requests are under way on stdio.
const PIPELINED: u64 = 64;
const CONNECTIONS: u64 = 32;
/// Pages come and go: less than this is no growth.
const TOLERANCE_MB: f64 = 1.0;

const RESPOND: &str = "respond";
const UPSTREAM: &str = "upstream";

/// Measures resident memory, idle and under load.
#[derive(Debug, Parser)]
struct Args {
    /// Requests through `run`
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(STEPS..))]
    stdio: u64,
    /// Requests through `proxy`
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(STEPS..))]
    http: u64,
    /// Configuration of mcpscope; without it, windows are kept for 30 s
    #[arg(long, value_name = "FILE")]
    config: Option<OsString>,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long)]
    bench: bool,
}

fn main() -> io::Result<()> {
    match role().as_deref() {
        Some(RESPOND) => return respond(answer),
        Some(UPSTREAM) => return serve(upstream(answer)),
        _ => {}
    }
    let args = Args::parse();
    if !args.bench {
        return Ok(());
    }
    let mut report = Report::new("memory");
    let default = config(CONFIG)?;
    let kept = if args.config.is_none() { ", windows kept for 30 s" } else { "" };
    let config = args.config.as_deref().unwrap_or(default.path().as_os_str());
    run(&args, config)?.report(&mut report, &format!("run: {} requests, {PIPELINED} under way{kept}", args.stdio));
    proxy(&args, config)?
        .report(&mut report, &format!("proxy: {} requests, {CONNECTIONS} connections{kept}", args.http));
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

fn run(args: &Args, config: &OsStr) -> io::Result<Measured> {
    let requests = args.stdio;
    let children = limited(requests);
    let mut arguments = observed(config);
    arguments.extend(["--".into(), std::env::current_exe()?.into_os_string(), RESPOND.into()]);
    let mut load = Stdio::new(children.start_mcpscope("run", arguments)?);
    measure(requests, load.mcpscope.process.id, load.mcpscope.dashboard()?, |number| load.call(number))
}

fn proxy(args: &Args, config: &OsStr) -> io::Result<Measured> {
    let requests = args.http;
    let children = limited(requests);
    let (_upstream, addr) = announced(children.start(&mut this_program(UPSTREAM)?)?)?;
    let mut arguments = observed(config);
    let url = format!("http://{addr}/mcp");
    arguments.extend(["--listen", "127.0.0.1:0", "--upstream", &url].map(Into::into));
    let mcpscope = children.start_mcpscope("proxy", arguments)?;
    let mut load = Http::new(mcpscope.proxy()?)?;
    measure(requests, mcpscope.process.id, mcpscope.dashboard()?, |number| load.call(number))
}

/// A minute, and for each request ten times what it takes.
fn limited(requests: u64) -> Children {
    Children::limited(Duration::from_secs(60) + Duration::from_micros(requests.saturating_mul(500)))
}

/// What one case gives; memory in MB.
struct Measured {
    idle: f64,
    loaded: Vec<Loaded>,
}

/// Memory under load.
struct Loaded {
    requests: u64,
    /// What they took.
    took: Duration,
    resident: f64,
}

impl Measured {
    fn report(&self, report: &mut Report, title: &str) {
        let row = |table: Table, at: &Loaded| {
            let Loaded { requests, took, resident } = at;
            table.row(format!("after {requests} requests, {:.0} s", took.as_secs_f64()), vec![*resident])
        };
        let memory = Table::new(format!("{title}: resident"), "MB", Ratio::None).row("idle", vec![self.idle]);
        report.add(self.loaded.iter().fold(memory, row));
        let Some(end) = self.loaded.last() else { return };
        let growth = |title| Table::new(title, "MB", Ratio::None);
        report.add(match self.loaded.iter().find(|at| at.took >= WARM_UP && at.requests < end.requests) {
            Some(warm) => {
                let (grown, requests) = (end.resident - warm.resident, end.requests - warm.requests);
                growth(format!("growth after the warm-up of {WARM_UP:?}"))
                    .row(format!("of {requests} requests; none below {TOLERANCE_MB} MB"), vec![grown])
                    .row("of each million of them", vec![grown * 1e6 / requests as f64])
            }
            None => growth(format!("growth not known: all of it is within the warm-up of {WARM_UP:?}")),
        });
        let per_second = end.requests as f64 / end.took.as_secs_f64();
        report.add(Table::new("throughput", "requests/s", Ratio::None).row("mcpscope", vec![per_second]));
    }
}

/// Has `call` make so many requests, and reads the memory of process `id`.
fn measure(
    requests: u64,
    id: u32,
    dashboard: SocketAddr,
    mut call: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<Measured> {
    await_tick(dashboard)?;
    let idle = resident(id)?;
    let mut loaded = Vec::new();
    let mut took = Duration::ZERO;
    let mut made = 0;
    for step in 1..=STEPS {
        let due = requests / STEPS * step;
        let start = Instant::now();
        call(due - made)?;
        took += start.elapsed();
        made = due;
        // As Prometheus would.
        let counted = calls(&get(dashboard, "/metrics")?);
        if counted != made {
            return Err(io::Error::other(format!("{made} calls were answered, {counted} are in the metrics")));
        }
        loaded.push(Loaded { requests: made, took, resident: resident(id)? });
    }
    Ok(Measured { idle, loaded })
}

/// The resident memory of a process, in MB.
fn resident(id: u32) -> io::Result<f64> {
    Ok(memory(id, "VmRSS")? / 1e6)
}

/// Waits for the first frame with content.
fn await_tick(dashboard: SocketAddr) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let start = Instant::now();
    loop {
        let frame: Value = serde_json::from_str(&get(dashboard, "/api/v1/dashboard")?)?;
        if frame["system_health"]["components"].as_object().is_some_and(|components| !components.is_empty()) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other("the dashboard has no frame"));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// The tool calls in Prometheus text, of all tools.
fn calls(metrics: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with("mcpscope_tool_call_duration_seconds_count{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn tools() -> Vec<String> {
    (0..TOOLS).map(|tool| format!("tool-{tool:03}")).collect()
}

/// The client of `mcpscope run`.
struct Stdio {
    mcpscope: Mcpscope,
    /// A line for each tool.
    requests: Vec<Vec<u8>>,
    /// The answer to the request that is next to be answered.
    expected: Vec<u8>,
    sent: u64,
    answered: u64,
}

impl Stdio {
    fn new(mcpscope: Mcpscope) -> Self {
        let requests: Vec<_> = tools().iter().map(|tool| format!("{}\n", request(tool)).into_bytes()).collect();
        let mut expected = Vec::new();
        answer(request("any").as_bytes(), &mut expected);
        Self { mcpscope, requests, expected, sent: 0, answered: 0 }
    }

    fn call(&mut self, number: u64) -> io::Result<()> {
        let Mcpscope { process, .. } = &mut self.mcpscope;
        let mut output = BufReader::with_capacity(64 * 1024, &mut process.stdout);
        let mut line = vec![0; self.expected.len() + 1];
        let mut batch = Vec::new();
        let end = self.sent + number;
        while self.answered < end {
            batch.clear();
            for number in self.sent..end.min(self.answered + PIPELINED) {
                let request = &mut self.requests[(number % TOOLS) as usize];
                let length = request.len() - 1;
                renumber(&mut request[..length], number);
                batch.extend_from_slice(request);
                self.sent += 1;
            }
            process.stdin.write_all(&batch)?;
            // One, and all that came with it.
            loop {
                output.read_exact(&mut line)?;
                renumber(&mut self.expected, self.answered);
                if line.strip_suffix(b"\n") != Some(&self.expected) {
                    let text = String::from_utf8_lossy(&line);
                    return Err(io::Error::other(format!("not the answer to request {}: {text}", self.answered)));
                }
                self.answered += 1;
                if output.buffer().len() < line.len() {
                    break;
                }
            }
        }
        if output.buffer().is_empty() { Ok(()) } else { Err(io::Error::other("more answers than requests")) }
    }
}

/// The clients of `mcpscope proxy`.
struct Http {
    runtime: Runtime,
    clients: Vec<Client>,
}

impl Http {
    fn new(addr: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut clients = Vec::new();
        for client in 0..CONNECTIONS {
            clients.push(runtime.block_on(Client::connect(addr, &tools(), client * 100_000))?);
        }
        Ok(Self { runtime, clients })
    }

    fn call(&mut self, number: u64) -> io::Result<()> {
        let mut running = JoinSet::new();
        for (at, mut client) in (0..).zip(self.clients.drain(..)) {
            let share = number / CONNECTIONS + u64::from(at < number % CONNECTIONS);
            running.spawn_on(
                async move {
                    for _ in 0..share {
                        client.exchange().await?;
                    }
                    Ok(client)
                },
                self.runtime.handle(),
            );
        }
        let clients: io::Result<_> = self.runtime.block_on(running.join_all()).into_iter().collect();
        self.clients = clients?;
        Ok(())
    }
}
