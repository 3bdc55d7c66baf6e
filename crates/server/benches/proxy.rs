//! `mcpscope proxy` in front of an HTTP server, beside a bare copy of the bytes and nothing at all: whole processes that
//! speak over loopback, keep-alive connections, requests of 300 bytes and answers of 480.
//!
//! Linux only: it reads the processor time of the proxies from `/proc`.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

mod support;
use mcpscope_test_support::bench::{self, Ratio, Report, Table, median};
use support::http::{Client, announced, listen, serve, upstream};
use support::{Children, Started, role, this_program};

const ROUNDS: usize = 7;
const MANY: usize = 32;
const TIME_MANY: Duration = Duration::from_millis(800);
const TIME_ONE: Duration = Duration::from_millis(300);

const UPSTREAM: &str = "upstream";
const COPY: &str = "copy";

fn main() -> io::Result<()> {
    match role().as_deref() {
        Some(UPSTREAM) => serve(upstream()),
        Some(COPY) => serve(copy()),
        _ if bench::wanted() => measure(),
        _ => Ok(()),
    }
}

/// One way to the upstream; the proxy's process if there is one.
struct Route {
    name: &'static str,
    addr: SocketAddr,
    proxy: Option<Started>,
}

/// What one round of one way gives.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    p50_us: f64,
    proxy_cpu_us: f64,
}

fn measure() -> io::Result<()> {
    let mut report = Report::new("http");
    let children = Children::new();
    let (_upstream, direct) = announced(children.start(&mut this_program(UPSTREAM)?)?)?;
    let (copy, copied) = announced(children.start(this_program(COPY)?.arg(direct.to_string()))?)?;
    let url = format!("http://{direct}/mcp");
    let arguments = ["--dashboard", "off", "--listen", "127.0.0.1:0", "--upstream", &url];
    let ours = children.start_mcpscope("proxy", arguments)?;
    let proxied = ours.proxy()?;
    let routes = [
        Route { name: "mcpscope proxy", addr: proxied, proxy: Some(ours.process) },
        Route { name: "plain TCP copy", addr: copied, proxy: Some(copy) },
        Route { name: "direct", addr: direct, proxy: None },
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (connections, time) in [(MANY, TIME_MANY), (1, TIME_ONE)] {
        let mut rounds = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (route, rounds) in routes.iter().zip(&mut rounds) {
                rounds.push(runtime.block_on(route.load(connections, time))?);
            }
        }
        let plural = if connections == 1 { "" } else { "s" };
        let mut add = |title: &str, unit, rows: usize, of: fn(&Round) -> f64| {
            let table = Table::new(format!("{connections} connection{plural}, {title}"), unit, Ratio::OursToPeer);
            let rows = routes.iter().zip(&rounds).take(rows);
            report
                .add(rows.fold(table, |table, (route, rounds)| table.row(route.name, rounds.iter().map(of).collect())));
        };
        add("throughput", "requests/s", 3, |round| round.per_second);
        add("p50", "us", 3, |round| round.p50_us);
        // Direct there is no proxy.
        add("proxy CPU per request", "us", 2, |round| round.proxy_cpu_us);
    }
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

impl Route {
    async fn load(&self, connections: usize, time: Duration) -> io::Result<Round> {
        let mut clients = Vec::new();
        for first in (0..).step_by(100_000).take(connections) {
            let mut client = Client::connect(self.addr, &["echo"], first).await?;
            client.exchange().await?;
            clients.push(client);
        }
        let cpu_before = self.proxy_cpu()?;
        let start = Instant::now();
        let mut running = JoinSet::new();
        for mut client in clients {
            running.spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < time {
                    let sent = Instant::now();
                    client.exchange().await?;
                    times.push(sent.elapsed().as_secs_f64() * 1e6);
                }
                Ok(times)
            });
        }
        let times: io::Result<Vec<Vec<f64>>> = running.join_all().await.into_iter().collect();
        let took = start.elapsed().as_secs_f64();
        let cpu = self.proxy_cpu()?.saturating_sub(cpu_before);
        let times = times?.concat();
        let requests = times.len() as f64;
        Ok(Round {
            per_second: requests / took,
            p50_us: median(&times),
            proxy_cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        })
    }

    /// The processor time of the proxy so far, of all its threads.
    fn proxy_cpu(&self) -> io::Result<Duration> {
        let Some(proxy) = &self.proxy else { return Ok(Duration::ZERO) };
        let mut total = Duration::ZERO;
        for thread in fs::read_dir(Path::new("/proc").join(proxy.id.to_string()).join("task"))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            let on_cpu_ns = stat.split(' ').next().unwrap_or_default().parse().map_err(io::Error::other)?;
            total += Duration::from_nanos(on_cpu_ns);
        }
        Ok(total)
    }
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
