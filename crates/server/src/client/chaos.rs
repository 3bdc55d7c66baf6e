//! `mcpscope chaos`.

mod args;
mod experiment;
mod outlook;
mod replay;
mod report;
mod run;
mod scenarios;
mod shown;
mod state;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use mcpscope_grpc::proto::{ChaosServiceGetStatusRequest, ChaosStatus, ChaosTestStatus};
use mcpscope_grpc::tonic::{Code, Request, Status};
use mcpscope_grpc::{Client, authorized};

pub(crate) use args::ChaosCommand;

use self::args::ChaosAsked;
use super::End;
use super::peer::{Peer, connect};
use super::text::clean;
use crate::failure::Failure;

/// The exit code of what was followed and did not end well, and of journals that differ.
const NOT_WELL: u8 = 1;

pub(super) async fn chaos(command: &ChaosCommand) -> Result<ExitCode, End> {
    match command {
        ChaosCommand::Plan(args) => experiment::plan(args).await,
        ChaosCommand::Start(args) => experiment::start(args).await,
        ChaosCommand::Stop(args) => experiment::stop(args).await,
        ChaosCommand::Status(args) => state::status(args).await,
        ChaosCommand::History(args) => state::history(args).await,
        ChaosCommand::Report(args) => report::report(args).await,
        ChaosCommand::Run(args) => run::run(args).await,
        ChaosCommand::Replay(args) => replay::replay(args).await,
        ChaosCommand::EmergencyStop(args) => state::emergency_stop(args).await,
        ChaosCommand::Rearm(args) => state::rearm(args).await,
        ChaosCommand::Scenarios(args) => scenarios::scenarios(args),
    }
}

/// The instance whose engine is asked.
struct Engine {
    client: Client,
    peer: Peer,
    /// What chooses the same instance in another command.
    choice: String,
    token_file: Option<PathBuf>,
}

impl Engine {
    async fn find(of: &ChaosAsked) -> Result<Self, Failure> {
        let (client, peer) = connect(&of.asked).await?;
        let choice = match (&of.asked.addr, &of.asked.name) {
            (Some(addr), _) => format!(" --addr {}", clean(addr)),
            (None, Some(name)) => format!(" --name {}", quoted(name)),
            (None, None) => String::new(),
        };
        Ok(Self { client, peer, choice, token_file: of.token_file.clone() })
    }

    /// A request that shows the chaos token. Only what starts something needs it, and looks for it.
    fn authorized<T>(&self, message: T) -> Result<Request<T>, Failure> {
        match token::find(self.token_file.as_deref(), self.peer.addr())? {
            Some(token) => authorized(message, &token).map_err(Failure::usage),
            // It may need none.
            None => Ok(Request::new(message)),
        }
    }

    /// A command to go on with.
    fn command(&self, arguments: &str) -> String {
        format!("mcpscope chaos {arguments}{}", self.choice)
    }

    async fn status(&mut self) -> Result<ChaosStatus, Status> {
        let answer = self.peer.answer(self.client.chaos.get_status(ChaosServiceGetStatusRequest {})).await;
        Ok(answer?.status.unwrap_or_default())
    }

    /// How the program ends after this answer to what was to be started or planned: with what can be done about it.
    async fn refusal(&mut self, status: &Status, scenario: &str) -> Failure {
        let failure = self.peer.failure(status);
        let next = match status.code() {
            Code::InvalidArgument => {
                format!("`mcpscope chaos scenarios {}` lists what it takes", clean(scenario))
            }
            Code::ResourceExhausted => format!("`{}` shows those that are running", self.command("status")),
            Code::FailedPrecondition if self.status().await.is_ok_and(|status| status.emergency_stop) => {
                format!("`{}` allows experiments again", self.command("rearm"))
            }
            _ => return failure,
        };
        failure.and(&next)
    }
}

/// A text as an argument of a shell.
fn quoted(text: &str) -> String {
    let text = clean(text);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The exit code of an experiment that was followed to this end.
fn exit_code(status: ChaosTestStatus) -> ExitCode {
    if status == ChaosTestStatus::Completed { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_where_a_shell_would_take_them_apart() {
        for (text, expected) in [
            ("duration=8s", "duration=8s"),
            ("error_rate < 0.05", "'error_rate < 0.05'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("\x1b[2J", r"'\u{1b}[2J'"),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }
}
