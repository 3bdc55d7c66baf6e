//! Chaos as the world outside sees it: how late what is delayed arrives, how soon an emergency stop has its last effect, what
//! helpers take of cores and memory; and what a decision costs. Whole processes: `mcpscope run` and `mcpscope proxy` as they
//! are by default, in front of a server that says when each request was there, by a clock that mcpscope does not read.
//!
//! Linux only: it reads `/proc`.

use std::io;
use std::time::Duration;

use clap::Parser;

mod decision;
mod latency;
mod resources;
mod stop;
#[path = "../support/mod.rs"]
mod support;
mod way;

use mcpscope_test_support::bench::{self, Report};
use support::api::Chaos;
use support::http::{announced, serve, upstream};
use support::stdio::respond;
use support::{Children, Mcpscope, config, observed, role, stamped_answer, this_program};
use tempfile::{NamedTempFile, TempDir};
use way::{Http, Stdio};

const RESPOND: &str = "respond";
const UPSTREAM: &str = "upstream";

/// What is under way over HTTP at most, each on a connection of its own. It is also what `mcpscope proxy` has room for here
/// before its queue is full: with the default there would have to be four times as many connections.
const HTTP_QUEUE: usize = 256;
/// The default of `proxy.queue_messages`, which a stdio relay has for each direction.
const STDIO_QUEUE: usize = 1024;
/// One that hangs fails then, because its children are killed.
const LIMIT: Duration = Duration::from_secs(600);

/// Measures chaos.
#[derive(Debug, Parser)]
struct Args {
    /// Only the part whose name contains this: latency, stop, decision, cpu, memory
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long)]
    bench: bool,
}

fn main() -> io::Result<()> {
    match role().as_deref() {
        Some(RESPOND) => respond(stamped_answer),
        Some(UPSTREAM) => serve(upstream(stamped_answer)),
        _ if bench::wanted() => measure(&Args::parse().only),
        _ => Ok(()),
    }
}

fn measure(only: &str) -> io::Result<()> {
    let parts: [(&str, Part); 5] = [
        ("latency", latency::measure),
        ("stop", stop::measure),
        ("decision", decision::measure),
        ("cpu", resources::cpu),
        ("memory", resources::memory),
    ];
    let mut report = Report::new("chaos");
    let children = Children::limited(LIMIT);
    let mut bench = Bench { stdio: stdio(&children)?, http: http(&children)? };
    for (name, measure) in parts.into_iter().filter(|(name, _)| name.contains(only)) {
        measure(&mut report, &mut bench).map_err(|error| io::Error::other(format!("{name}: {error}")))?;
    }
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

/// Measures one thing, and adds its tables.
type Part = fn(&mut Report, &mut Bench) -> io::Result<()>;

/// What all parts are measured with.
struct Bench {
    stdio: Subject<Stdio>,
    http: Subject<Http>,
}

/// An instance of mcpscope, a client of it, and the server behind it.
struct Subject<W> {
    way: W,
    chaos: Chaos,
    id: u32,
    _kept: (NamedTempFile, TempDir),
}

fn stdio(children: &Children) -> io::Result<Subject<Stdio>> {
    let server = [std::env::current_exe()?.into_os_string(), RESPOND.into()];
    let (mcpscope, kept) = start(children, "run", "{}", ["--".into()].into_iter().chain(server))?;
    let (chaos, id) = (Chaos { addr: mcpscope.dashboard()? }, mcpscope.process.id);
    Ok(Subject { way: Stdio::new(mcpscope.process), chaos, id, _kept: kept })
}

fn http(children: &Children) -> io::Result<Subject<Http>> {
    let (upstream, addr) = announced(children.start(&mut this_program(UPSTREAM)?)?)?;
    let settings = format!("proxy: {{ queue_messages: {HTTP_QUEUE} }}");
    let to = format!("http://{addr}/mcp");
    let (mcpscope, kept) =
        start(children, "proxy", &settings, ["--listen", "127.0.0.1:0", "--upstream", &to].map(Into::into))?;
    let (chaos, id) = (Chaos { addr: mcpscope.dashboard()? }, mcpscope.process.id);
    let way = Http::new(mcpscope.proxy()?, [mcpscope.process, upstream], HTTP_QUEUE)?;
    Ok(Subject { way, chaos, id, _kept: kept })
}

/// Starts an instance whose experiments need no token and whose warnings of them nobody reads, and keeps its journals in a folder of its own.
fn start(
    children: &Children,
    mode: &str,
    settings: &str,
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> io::Result<(Mcpscope, (NamedTempFile, TempDir))> {
    let (config, data) = (config(settings)?, tempfile::tempdir()?);
    let mut all = observed(config.path().as_os_str());
    all.extend(["--no-auth", "--log", "error", "--data"].map(Into::into));
    all.push(data.path().as_os_str().to_owned());
    all.extend(arguments);
    Ok((children.start_mcpscope(mode, all)?, (config, data)))
}
