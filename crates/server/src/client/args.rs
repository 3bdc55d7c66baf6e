//! The command line of the client commands.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use mcpscope_grpc::proto::TraceStatus;

use super::chaos::ChaosCommand;

#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Show a running instance at a glance
    Status(WatchArgs),
    /// Show the health of a running instance and its components
    Health(WatchArgs),
    /// Show the critical metrics of a running instance
    Metrics(MetricsArgs),
    /// List the newest traces of a running instance, the one that ended last first; the time shown is when it began
    Traces(TracesArgs),
    /// Show one trace with all of its spans
    Trace(TraceArgs),
    /// Disturb the traffic of a running instance, and see what comes of it
    #[command(subcommand)]
    Chaos(ChaosCommand),
}

/// Which instance is asked, and how its answer is shown.
#[derive(Args, Debug)]
pub(crate) struct Asked {
    /// The instance's gRPC listener [default: the instance that runs on this machine, else 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR", conflicts_with = "instance")]
    pub(crate) addr: Option<String>,
    /// The name of the instance, where several run on this machine
    #[arg(long = "name", id = "instance", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs: one line
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Show it again whenever it is taken anew, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Args, Debug)]
pub(crate) struct MetricsArgs {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// One metric only, with all of its series
    #[arg(value_name = "NAME")]
    pub(crate) metric: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct TracesArgs {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// Only this operation, such as "tools/call echo"
    #[arg(long)]
    pub(crate) operation: Option<String>,
    /// Only this method, such as tools/call
    #[arg(long)]
    pub(crate) method: Option<String>,
    /// Only calls of this tool
    #[arg(long)]
    pub(crate) tool: Option<String>,
    /// Only this MCP server
    #[arg(long)]
    pub(crate) server: Option<String>,
    /// Only this HTTP session, as `mcpscope trace ID` shows it; over stdio all traces of a server are of one session
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<String>,
    /// Only with this in the operation, server, session or id, in capital letters or small ones
    #[arg(long)]
    pub(crate) text: Option<String>,
    /// Only those that a fault touched, or with `false` only those that none did
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) injected: Option<bool>,
    /// Only those that ended like this
    #[arg(long)]
    pub(crate) status: Option<StatusArg>,
    /// Only those that took at least this long, such as 200ms or 1s; a bare number is milliseconds
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) min_duration: Option<Duration>,
    /// Only those that began at most this long ago, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) since: Option<Duration>,
    /// Only those that began longer ago than this, such as 5m: with --since, those between the two
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "follow")]
    pub(crate) until: Option<Duration>,
    /// How many at most, 1 to 10000 [default: 100]; with --follow, how many of those that are there already come first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: Option<u32>,
    /// Show traces as they end, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StatusArg {
    Ok,
    Error,
    Timeout,
    Cancelled,
}

impl From<StatusArg> for TraceStatus {
    fn from(status: StatusArg) -> Self {
        match status {
            StatusArg::Ok => Self::Ok,
            StatusArg::Error => Self::Error,
            StatusArg::Timeout => Self::Timeout,
            StatusArg::Cancelled => Self::Cancelled,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// The trace, as `mcpscope traces` lists it, or the first digits of its id: four at least
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

fn duration(text: &str) -> Result<Duration, String> {
    let bare = text.parse().ok().map(Duration::from_millis);
    bare.or_else(|| humantime::parse_duration(text).ok())
        .ok_or_else(|| "expected a duration such as 200ms, 10s or 5m, or a number of milliseconds".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        assert_eq!(duration("250"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for bad in ["", "fast", "-1", "1.5", "99999999999999999999"] {
            assert!(duration(bad).unwrap_err().contains("expected a duration such as"), "{bad}");
        }
    }
}
