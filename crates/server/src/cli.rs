//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mcpscope_chaos::Check;

use crate::client::ClientCommand;
use crate::data::KeepIn;
use crate::listen::{Address, ListenAt};

/// See what an MCP server really does: exact metrics, traces and health of its traffic, without a code change.
#[derive(Debug, Parser)]
#[command(name = "mcpscope", version, disable_help_subcommand = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show everything on a built-in MCP server with built-in client traffic
    Demo(DemoArgs),
    /// Wrap a stdio MCP server: stdin and stdout are MCP, everything else goes to stderr
    Run(RunArgs),
    /// Stand in front of a Streamable HTTP MCP server
    Proxy(ProxyArgs),
    /// Stand in front of many Streamable HTTP MCP servers: those under `servers:` in the configuration file
    Serve(ServeArgs),
    #[command(flatten)]
    Client(ClientCommand),
    /// The demo's server alone: over stdio, as the demo starts it, or over Streamable HTTP
    #[command(hide = true)]
    DemoServer(DemoServerArgs),
}

/// As in the configuration's `servers`: an empty label is none.
fn name(given: &str) -> Result<String, &'static str> {
    if (1..=128).contains(&given.len()) { Ok(given.to_owned()) } else { Err("expected a name of 1 to 128 bytes") }
}

/// Options of demo, run, proxy and serve.
#[derive(Args, Debug)]
pub(crate) struct Common {
    /// Configuration file; may be repeated, later files override earlier ones; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Vec<PathBuf>,
    /// Name of the instance, and in labels and traces that of the server, where there is one of them [default: the command's
    /// file name, the upstream's host and port, `serve` or `demo`]
    #[arg(long, value_parser = name)]
    pub(crate) name: Option<String>,
    /// Where the dashboard listens (loopback only), or `off` [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR|off")]
    pub(crate) dashboard: Option<ListenAt>,
    /// Where gRPC listens (loopback only), or `off` [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR|off")]
    pub(crate) grpc: Option<ListenAt>,
    /// Where a plain, read-only listener with /metrics, /healthz, /readyz and gRPC health listens; any address, such as a
    /// pod's [default: off]
    #[arg(long, value_name = "ADDR|off")]
    pub(crate) probe: Option<ListenAt>,
    /// Who may start chaos experiments: nobody, people, or people and the scheduler; beats the configuration's `chaos.mode`
    /// [default: manual]
    #[arg(long, value_name = "off|manual|scheduled")]
    pub(crate) chaos: Option<Chaos>,
    /// Chaos experiments are started without a token in this run, by whoever can reach the loopback listeners
    #[arg(long)]
    pub(crate) no_auth: bool,
    /// Where chaos experiments are kept, in a folder for each instance, or `off` [default: `mcpscope` in the user's state
    /// directory]
    #[arg(long, value_name = "DIR|off")]
    pub(crate) data: Option<KeepIn>,
    /// What is to hold before and after chaos experiments, where that is not what it is by default.
    #[arg(skip)]
    pub(crate) steady_state: Option<Vec<Check>>,
    /// Write the addresses of all listeners to this file as JSON once they are bound
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// Whether requests are passed on with our trace context in `params._meta`, the only change that is ever made to them;
    /// `auto` does it while traces are exported
    #[arg(long, value_name = "auto|on|off", default_value = "auto")]
    pub(crate) propagate: Propagate,
    /// What is logged to stderr
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub(crate) log: LogLevel,
    /// How it is logged
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Whether the server is started again when it crashes; the client's session goes on [default: never]
    #[arg(long, value_name = "on-failure|never")]
    pub(crate) restart: Option<Restart>,
    /// The stdio MCP server and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// The MCP server, as `http://HOST[:PORT][/PATH]` or `https://...`
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: String,
    /// Where clients connect instead; port 0 takes any free one
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: String,
    /// The Host header that the upstream gets; by default it is kept for a loopback upstream only
    #[arg(long, value_name = "keep|upstream")]
    pub(crate) host_header: Option<HostHeader>,
}

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Whether a server that mcpscope starts is started again when it crashes [default: on-failure]
    #[arg(long, value_name = "on-failure|never")]
    pub(crate) restart: Option<Restart>,
}

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Where MCP clients can connect to the demo's server; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    pub(crate) listen: String,
    /// Whether the stdio server is started again when it crashes [default: on-failure]
    #[arg(long, value_name = "on-failure|never")]
    pub(crate) restart: Option<Restart>,
    /// Seed of the random traffic
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Args, Debug)]
pub(crate) struct DemoServerArgs {
    /// Seed of its random behaviour
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Where to listen instead of serving stdin and stdout; port 0 takes any free one
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<Address>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum HostHeader {
    Keep,
    Upstream,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Restart {
    OnFailure,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Chaos {
    Off,
    Manual,
    Scheduled,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Propagate {
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Whether the mistake is likely that `--` is missing between `run` and the server's command.
pub(crate) fn forgot_dashes(error: &clap::Error, mut arguments: impl Iterator<Item = OsString>) -> bool {
    let is_run = arguments.nth(1).is_some_and(|command| command == "run");
    error.kind() == ErrorKind::UnknownArgument && is_run && !arguments.any(|argument| argument == "--")
}
