//! The command line of `mcpscope chaos`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Subcommand};
use mcpscope_chaos::Scenario;

use super::super::args::{Asked, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum ChaosCommand {
    /// Show what an experiment would hit, by the traffic of the last minute; nothing is started
    Plan(PlanArgs),
    /// Start an experiment
    Start(StartArgs),
    /// End an experiment before its time
    Stop(StopArgs),
    /// Show what is running and whether anything can be started
    Status(StatusArgs),
    /// List the experiments that have ended, newest first
    History(HistoryArgs),
    /// Show what became of an experiment
    Report(ReportArgs),
    /// Run the experiments of a file, one after the other, as in a CI pipeline
    ///
    /// All are checked before the first is started. Ctrl-C stops the one that runs and skips the rest.
    Run(RunArgs),
    /// Decide everything in the journal of an experiment again, compare it with another one, or do it again
    ///
    /// The exit code is 1 where something differs.
    Replay(ReplayArgs),
    /// End all experiments at once, and start none until `mcpscope chaos rearm`
    EmergencyStop(ChaosAsked),
    /// Allow experiments again after an emergency stop
    Rearm(ChaosAsked),
    /// List what can be started, or the parameters of one scenario; asks no instance
    Scenarios(ScenariosArgs),
}

/// Which instance is asked, and what it has to see.
#[derive(Args, Debug)]
pub(crate) struct ChaosAsked {
    #[command(flatten)]
    pub(crate) asked: Asked,
    /// The file with the chaos token, which start, run, rearm and replay --start need [default: as an instance of this user on this
    /// machine left it]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// An experiment.
#[derive(Args, Debug)]
pub(crate) struct Wanted {
    /// What is injected
    #[arg(value_parser = scenarios())]
    pub(crate) scenario: String,
    /// Parameters, such as delay=300ms duration=8s; `mcpscope chaos scenarios SCENARIO` lists them
    #[arg(value_name = "NAME=VALUE")]
    pub(crate) parameters: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
}

#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) wanted: Wanted,
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// Follow the experiment to its end, and end with 0 if it is completed, else with 1; Ctrl-C ends the following, not the
    /// experiment
    #[arg(long, visible_alias = "watch")]
    pub(crate) wait: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StopArgs {
    /// The experiment, as `mcpscope chaos status` lists it
    pub(crate) id: u64,
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
    /// Show it again whenever something happens, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Args, Debug)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
    /// How many at most, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArgs {
    /// The experiment [default: the one that ended last]
    pub(crate) id: Option<u64>,
    /// Write the report to this file as one HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The experiments, as YAML: `experiments: [{ scenario: hang, parameters: { duration: 5s } }]`
    pub(crate) file: PathBuf,
    /// End with 1 unless every experiment has ended as expected
    #[arg(long)]
    pub(crate) assert: bool,
    /// Write the results to this file as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Write the report of each to this folder, as experiment-ID.html
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// The experiment, which has ended
    pub(crate) id: u64,
    /// Compare it with this one, which had the same parameters, seed and traffic
    #[arg(conflicts_with = "start")]
    pub(crate) other: Option<u64>,
    /// Start it again with its seed
    #[arg(long)]
    pub(crate) start: bool,
    /// Follow the new experiment to its end, and end with 0 if it is completed, else with 1
    #[arg(long, visible_alias = "watch", requires = "start")]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) of: ChaosAsked,
}

#[derive(Args, Debug)]
pub(crate) struct ScenariosArgs {
    /// Only this one, with its parameters
    #[arg(value_parser = scenarios())]
    pub(crate) scenario: Option<String>,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Output,
}

/// All of them, so that a mistake is told what is nearest.
fn scenarios() -> PossibleValuesParser {
    PossibleValuesParser::new(
        Scenario::ALL.map(|scenario| PossibleValue::new(scenario.as_str()).help(scenario.description())),
    )
}
