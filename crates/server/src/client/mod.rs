//! The client commands: what a running instance knows, as text for people or JSON for programs.

mod args;
mod chaos;
mod find;
mod health;
mod metrics;
mod number;
mod peer;
mod percentile;
mod screen;
mod status;
mod text;
mod trace;
mod traces;

use std::io;
use std::process::ExitCode;

use anyhow::Context as _;

pub(crate) use args::ClientCommand;

use crate::failure::Failure;

/// Why a client command ends before its work is done.
enum End {
    Failed(Failure),
    /// Nothing can be written to stdout.
    Output(io::Error),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Asks an instance and shows the answer.
///
/// # Errors
/// With 64 where something is asked for that there is not, with 69 where nobody answers.
pub(crate) async fn run(command: ClientCommand) -> Result<ExitCode, Failure> {
    let well = |()| ExitCode::SUCCESS;
    let done = match command {
        ClientCommand::Status(args) => status::status(&args).await.map(well),
        ClientCommand::Health(args) => health::health(&args).await.map(well),
        ClientCommand::Metrics(args) => metrics::metrics(&args).await.map(well),
        ClientCommand::Traces(args) => traces::traces(&args).await.map(well),
        ClientCommand::Trace(args) => trace::trace(&args).await.map(well),
        ClientCommand::Chaos(command) => chaos::chaos(&command).await,
    };
    match done {
        Ok(code) => Ok(code),
        // The reader has seen enough, as `head` does.
        Err(End::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(End::Output(error)) => Err(error).context("cannot write to stdout").map_err(Failure::internal),
        Err(End::Failed(failure)) => Err(failure),
    }
}
