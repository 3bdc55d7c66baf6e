//! What the HTTP relay takes for a request in instructions, as valgrind counts them: neither the machine nor what else runs on
//! it changes that. The relay alone, with metrics and traces or with nothing, on one thread and one connection; in user space.
//!
//! Each relay answers few requests, and another one more: what they differ by is none of the start.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{ClockAnchor, Transport};
use mcpscope_hooks::{Parts, Probe};
use mcpscope_metrics::Metrics;
use mcpscope_proxy::http::{self, Config, Upstream};
use mcpscope_test_support::bench::{Ratio, Report, Table, wanted};
use mcpscope_tracing::Tracer;
use tokio::runtime::Builder;

mod support;
use support::http::{Client, announced, listen, serve, upstream};
use support::{Children, answer, role, this_program, wait_for};

const UPSTREAM: &str = "upstream";
const RECORDING: &str = "recording";
const UNOBSERVED: &str = "unobserved";

const FEW: u32 = 1500;
const MANY: u32 = 4500;

/// Instructions take fifty times as long when they are counted.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> io::Result<()> {
    match role().as_deref() {
        Some(UPSTREAM) => serve(upstream(answer)),
        Some(RECORDING) => serve(relay(true)),
        Some(UNOBSERVED) => serve(relay(false)),
        _ if wanted() => measure(),
        _ => Ok(()),
    }
}

fn measure() -> io::Result<()> {
    let mut report = Report::new("instructions");
    let children = Children::limited(LIMIT);
    let (_upstream, upstream) = announced(children.start(&mut this_program(UPSTREAM)?)?)?;
    let mut table = Table::new("HTTP relay: a call of 300 bytes, answered with 500", "instructions", Ratio::OursToPeer);
    for (name, role) in [("metrics and traces", RECORDING), ("nothing recorded", UNOBSERVED)] {
        let [few, many] = [FEW, MANY].map(|requests| count(&children, role, upstream, requests));
        table = table.row(name, vec![(many? - few?) / f64::from(MANY - FEW)]);
    }
    report.add(table);
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

/// The instructions of a relay that has answered so many requests.
fn count(children: &Children, role: &str, upstream: SocketAddr, requests: u32) -> io::Result<f64> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("callgrind");
    let part = this_program(role)?;
    let mut valgrind = std::process::Command::new(std::env::var_os("VALGRIND").unwrap_or_else(|| "valgrind".into()));
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    valgrind.arg(part.get_program()).args(part.get_args()).arg(upstream.to_string());
    let (relay, addr) = announced(children.start(&mut valgrind)?)?;
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut client = Client::connect(addr, &["echo"], 0).await?;
        for _ in 0..requests {
            client.exchange().await?;
        }
        io::Result::Ok(())
    })?;
    // The relay ends with its input.
    drop(relay);
    wait_for("what callgrind has counted", || {
        let counted = std::fs::read_to_string(&file).unwrap_or_default();
        let total = counted.lines().find_map(|line| line.strip_prefix("totals: "));
        total.map(|total| total.trim().parse().map_err(io::Error::other)).transpose()
    })
}

/// The relay to the upstream that is named behind its role, until the benchmark has ended.
async fn relay(records: bool) -> io::Result<()> {
    let upstream = std::env::args().nth(2).unwrap_or_default();
    let upstream = Upstream::parse(&format!("http://{upstream}/mcp")).map_err(io::Error::other)?;
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let mut parts = Parts::new("server", Transport::Http);
    if records {
        parts.metrics = Some(Metrics::new(&mcpscope_metrics::Config::default(), anchor));
        parts.tracer = Some(Tracer::new(&mcpscope_tracing::Config::default(), anchor, 7));
    }
    http::serve(vec![listen().await?], Config::new(upstream), Probe::new(parts), pending()).await;
    Ok(())
}
