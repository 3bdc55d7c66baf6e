//! `mcpscope proxy` in front of an HTTP server, recording everything and recording nothing, beside nginx, haproxy, a bare copy
//! of the bytes and nothing at all: whole processes that speak over loopback. Requests of 300 bytes, answers of 500, each
//! connection kept alive and its answer awaited before it asks again.
//!
//! Linux only: it asks for the processor time of other processes.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

mod support;
use mcpscope_test_support::bench::{self, Ratio, Report, Table};
use support::http::{Client, announced, listen, serve, serve_on_all_cores, upstream};
use support::peers::{self, Peer};
use support::process::cpu_time;
use support::{Children, answer, config, observed, role, this_program};

const UPSTREAM: &str = "upstream";
const COPY: &str = "copy";

const OURS: &str = "mcpscope proxy, recording all";
const UNOBSERVED: &str = "mcpscope proxy, observability off";
const DIRECT: &str = "direct";

/// What a proxy uses to serve a thousand requests per second, in percent of a core, for each microsecond per request.
const CPU_PERCENT_PER_1000_REQUESTS_S: f64 = 0.1;

/// Measures the proxy and its peers.
#[derive(Debug, Parser)]
struct Args {
    /// How often each case is visited
    #[arg(long, default_value_t = 11)]
    rounds: u32,
    /// Only the cases whose name contains this, such as `recording` while a profiler looks
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long)]
    bench: bool,
}

fn main() -> io::Result<()> {
    match role().as_deref() {
        Some(UPSTREAM) => serve(upstream(answer)),
        Some(COPY) => serve_on_all_cores(copy()),
        _ if bench::wanted() => measure(&Args::parse()),
        _ => Ok(()),
    }
}

/// One way to the upstream.
struct Case {
    name: &'static str,
    start: fn(&Children, upstream: SocketAddr) -> io::Result<Peer>,
}

const CASES: [Case; 7] = [
    Case { name: OURS, start: |children, upstream| mcpscope(children, upstream, "{}") },
    Case { name: UNOBSERVED, start: |children, upstream| mcpscope(children, upstream, "observability_enabled: false") },
    Case { name: "nginx, proxy_buffering off", start: |children, to| peers::nginx(children, to, "off") },
    Case { name: "nginx, proxy_buffering on", start: |children, to| peers::nginx(children, to, "on") },
    Case { name: "haproxy", start: peers::haproxy },
    Case { name: "plain TCP copy", start: tcp_copy },
    Case { name: DIRECT, start: |_, upstream| Ok(Peer { process: None, addr: upstream, folder: None }) },
];

/// What is asked of a case.
struct Load {
    title: &'static str,
    connections: u32,
    time: Duration,
    /// How often each connection asks; without it as fast as it is answered.
    every: Option<Duration>,
}

const LOADS: [Load; 3] = [
    Load { title: "32 connections", connections: 32, time: Duration::from_millis(800), every: None },
    Load {
        title: "32 connections, 1000/s",
        connections: 32,
        time: Duration::from_millis(800),
        every: Some(Duration::from_millis(32)),
    },
    Load { title: "1 connection", connections: 1, time: Duration::from_millis(300), every: None },
];

/// What one round of one case gives.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

fn measure(args: &Args) -> io::Result<()> {
    const SETTING_OUT: Duration = Duration::from_secs(60);
    const A_ROUND: Duration = Duration::from_secs(60);
    let mut report = Report::new("proxy");
    let children = Children::limited(SETTING_OUT + A_ROUND * args.rounds);
    let (_upstream, direct) = announced(children.start(&mut this_program(UPSTREAM)?)?)?;
    let started = CASES.iter().filter(|case| case.name.contains(&args.only)).map(|case| {
        let peer = (case.start)(&children, direct);
        peer.map(|peer| (case.name, peer)).map_err(|error| io::Error::other(format!("{}: {error}", case.name)))
    });
    let cases: Vec<_> = started.collect::<io::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for load in LOADS {
        let mut rounds = vec![Vec::new(); cases.len()];
        for _ in 0..args.rounds {
            for ((_, peer), rounds) in cases.iter().zip(&mut rounds) {
                rounds.push(load.put_on(peer, &runtime)?);
            }
        }
        let rounds: Vec<_> = cases.iter().map(|(name, _)| *name).zip(rounds).collect();
        load.report(&mut report, &rounds);
    }
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

fn mcpscope(children: &Children, upstream: SocketAddr, settings: &str) -> io::Result<Peer> {
    let config = config(settings)?;
    let mut arguments = observed(config.path().as_os_str());
    arguments.extend(["--listen", "127.0.0.1:0", "--upstream", &format!("http://{upstream}/mcp")].map(Into::into));
    let started = children.start_mcpscope("proxy", arguments)?;
    Ok(Peer { addr: started.proxy()?, process: Some(started.process), folder: None })
}

fn tcp_copy(children: &Children, upstream: SocketAddr) -> io::Result<Peer> {
    let (process, addr) = announced(children.start(this_program(COPY)?.arg(upstream.to_string()))?)?;
    Ok(Peer { process: Some(process), addr, folder: None })
}

/// The floor of every proxy.
async fn copy() -> io::Result<()> {
    let upstream: SocketAddr = std::env::args().nth(2).unwrap_or_default().parse().map_err(io::Error::other)?;
    let listener = listen().await?;
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        connections.spawn(async move {
            let mut server = TcpStream::connect(upstream).await?;
            server.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut server).await
        });
    }
}

// === impl Load ===

impl Load {
    fn put_on(&self, peer: &Peer, runtime: &Runtime) -> io::Result<Round> {
        let clients = runtime.block_on(self.connect(peer.addr))?;
        let cpu = || peer.process.as_ref().map_or(Ok(Duration::ZERO), |process| cpu_time(process.id));
        let before = cpu()?;
        let start = Instant::now();
        let mut times = runtime.block_on(self.exchanges(clients, start))?;
        let took = start.elapsed().as_secs_f64();
        let cpu = cpu()?.saturating_sub(before);
        times.sort_unstable();
        let requests = times.len() as f64;
        let quantile =
            |quantile: f64| times.get((quantile * requests) as usize).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
        Ok(Round {
            per_second: requests / took,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        })
    }

    /// Clients that have had their first answer.
    async fn connect(&self, addr: SocketAddr) -> io::Result<Vec<Client>> {
        let mut clients = Vec::new();
        for number in 0..self.connections {
            let mut client = Client::connect(addr, &["echo"], u64::from(number) * 100_000).await?;
            client.exchange().await?;
            clients.push(client);
        }
        Ok(clients)
    }

    /// What each exchange took.
    async fn exchanges(&self, clients: Vec<Client>, start: Instant) -> io::Result<Vec<Duration>> {
        let time = self.time;
        let mut running = JoinSet::new();
        for (number, mut client) in (0..).zip(clients) {
            let mut pace = self.every.map(|every| {
                let first = start + every * number / self.connections;
                tokio::time::interval_at(first.into(), every)
            });
            running.spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < time {
                    if let Some(pace) = &mut pace {
                        pace.tick().await;
                    }
                    let sent = Instant::now();
                    client.exchange().await?;
                    times.push(sent.elapsed());
                }
                Ok(times)
            });
        }
        let times: io::Result<Vec<_>> = running.join_all().await.into_iter().collect();
        Ok(times?.concat())
    }

    fn report(&self, report: &mut Report, rounds: &[(&str, Vec<Round>)]) {
        let mut add = |what: &str, unit, of: fn(&Round) -> f64, wanted: fn(&str) -> bool| {
            let table = Table::new(format!("{}, {what}", self.title), unit, Ratio::OursToPeer);
            let rows = rounds.iter().filter(|(name, _)| wanted(name));
            report.add(rows.fold(table, |table, (name, rounds)| table.row(*name, rounds.iter().map(of).collect())));
        };
        if self.every.is_none() {
            add("throughput", "requests/s", |round| round.per_second, |_| true);
        }
        add("p50", "us", |round| round.p50_us, |_| true);
        add("p99", "us", |round| round.p99_us, |_| true);
        // Direct there is no proxy.
        add("proxy CPU per request", "us", |round| round.cpu_us, |name| name != DIRECT);
        let of = |wanted| rounds.iter().find(|(name, _)| *name == wanted).map(|(_, rounds)| rounds);
        if let (Some(on), Some(off)) = (of(OURS), of(UNOBSERVED)) {
            let cost = on.iter().zip(off).map(|(on, off)| (on.cpu_us - off.cpu_us) * CPU_PERCENT_PER_1000_REQUESTS_S);
            let title = format!("{}, what recording costs", self.title);
            report.add(Table::new(title, "% of a core", Ratio::None).row("for 1000 requests/s", cost.collect()));
        }
    }
}
