//! The instance that is asked: connecting to it, and what becomes of answers that are none.

use std::error::Error as _;
use std::time::Duration;

use anyhow::anyhow;
use mcpscope_grpc::tonic::{Code, Response, Status, Streaming};
use mcpscope_grpc::{Client, ClientError, mistakes};
use tokio::signal::unix::{SignalKind, signal};

use super::End;
use super::args::Asked;
use super::find::find;
use super::text::clean;
use crate::failure::Failure;
use crate::running;

/// How long an answer may take, or the beginning of a stream of them.
const DEADLINE: Duration = Duration::from_secs(10);
/// How messages begin that are made on this side, of an answer that is no gRPC.
const NO_GRPC: [&str; 2] = ["protocol error: ", "grpc-status header missing"];
/// As a shell says that SIGINT ended a program.
const INTERRUPTED: i32 = 130;

/// The instance at the other end of a connection.
pub(super) struct Peer {
    addr: String,
}

/// Connects to the instance that is meant.
pub(super) async fn connect(asked: &Asked) -> Result<(Client, Peer), Failure> {
    let addr = find(asked, running::instances)?;
    let client = Client::connect(&addr).await.map_err(|error| match error {
        ClientError::InvalidAddress { .. } => Failure::usage(anyhow!(error).context("--addr")),
        ClientError::Unreachable { .. } | ClientError::Timeout { .. } => {
            let error = anyhow!(error);
            Failure::unavailable(anyhow!(
                "no instance of mcpscope answers at {}: {}; start one with `mcpscope demo`, `run`, `proxy` or \
                 `serve`, or choose another with --addr",
                clean(&addr),
                clean(&error.root_cause().to_string())
            ))
        }
    })?;
    Ok((client, Peer { addr }))
}

impl Peer {
    /// `HOST:PORT`.
    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    /// The answer to one call, or to the opening of a stream.
    pub(super) async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {DEADLINE:?}"))),
        }
    }

    /// Calls `each` with every message of a stream, which has no end of its own: Ctrl-C ends the program.
    pub(super) async fn follow<T>(
        &self,
        mut stream: Streaming<T>,
        mut each: impl AsyncFnMut(T) -> Result<(), End>,
    ) -> Result<(), End> {
        end_at_interrupt().map_err(Failure::internal)?;
        loop {
            each(self.next(&mut stream).await?).await?;
        }
    }

    /// The next message of a stream that has no end of its own.
    pub(super) async fn next<T>(&self, stream: &mut Streaming<T>) -> Result<T, Failure> {
        match stream.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(self.gone("it has ended")),
            Err(status) => Err(self.failure(&status)),
        }
    }

    /// How the program ends after such an answer.
    pub(super) fn failure(&self, status: &Status) -> Failure {
        let said = clean(status.message());
        let mistakes = mistakes::of(status);
        match status.code() {
            // One in each line.
            Code::InvalidArgument if mistakes.len() > 1 => {
                let lines: Vec<_> = mistakes.iter().map(|mistake| clean(&mistake.told).into_owned()).collect();
                Failure::usage(anyhow!(lines.join("\n")))
            }
            // It would be no other another time.
            Code::FailedPrecondition if !mistakes.is_empty() => {
                Failure::usage(anyhow!("the instance at {} refuses: {said}", clean(&self.addr)))
            }
            Code::NotFound | Code::InvalidArgument | Code::Unauthenticated => Failure::usage(anyhow!("{said}")),
            Code::OutOfRange => Failure::unavailable(anyhow!(
                "what was asked of the instance at {}, or its answer, is too large: {said}",
                clean(&self.addr)
            )),
            Code::FailedPrecondition | Code::ResourceExhausted => {
                Failure::unavailable(anyhow!("the instance at {} refuses: {said}", clean(&self.addr)))
            }
            Code::Unimplemented => Failure::unavailable(anyhow!(
                "what answers at {} is no mcpscope, or an older one: it does not know this call",
                clean(&self.addr)
            )),
            // The connection was closed under the call: as what speaks no HTTP/2 does, before or after it says so.
            Code::Cancelled if is_no_grpc(status) => Failure::unavailable(anyhow!(
                "what answers at {} does not speak gRPC, or has just ended ({said})",
                clean(&self.addr)
            )),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => self.gone(&said),
            Code::Unknown | Code::Internal if is_no_grpc(status) => Failure::unavailable(anyhow!(
                "what answers at {} does not speak gRPC, or has just ended ({said}); --addr takes what an instance prints as `grpc`",
                clean(&self.addr)
            )),
            code => Failure::internal(anyhow!("the instance at {} failed: {said} ({code:?})", clean(&self.addr))),
        }
    }

    fn gone(&self, why: &str) -> Failure {
        Failure::unavailable(anyhow!("the instance at {} does not answer any more: {why}", clean(&self.addr)))
    }
}

/// Whether a status was made on this side, of something that is no answer.
fn is_no_grpc(status: &Status) -> bool {
    status.source().is_some() || NO_GRPC.iter().any(|beginning| status.message().starts_with(beginning))
}

/// Ends the program at SIGINT with 130, also where the system alone would not: as the first process of a container, or
/// while nobody reads what is written.
#[expect(clippy::disallowed_methods, reason = "the server may spawn, and end the process when a person insists")]
fn end_at_interrupt() -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        interrupt.recv().await;
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_exit_code_and_says_what_the_instance_said() {
        let peer = Peer { addr: "127.0.0.1:1".into() };
        for (code, exit) in [
            (Code::InvalidArgument, 64),
            (Code::NotFound, 64),
            (Code::Unauthenticated, 64),
            (Code::FailedPrecondition, 69),
            (Code::ResourceExhausted, 69),
            (Code::OutOfRange, 69),
            (Code::Unavailable, 69),
            (Code::DeadlineExceeded, 69),
            (Code::Internal, 70),
            (Code::Unknown, 70),
        ] {
            let failure = peer.failure(&Status::new(code, "metrics are \x1b[31moff"));
            assert_eq!(failure.code(), exit, "{code:?}");
            assert!(failure.to_string().contains(r"metrics are \u{1b}[31moff"), "{failure}");
        }
        let other = peer.failure(&Status::unimplemented(""));
        assert_eq!(other.code(), 69);
        assert!(other.to_string().contains("127.0.0.1:1 is no mcpscope"), "{other}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_takes_10_seconds_at_most() {
        let peer = Peer { addr: "127.0.0.1:1".into() };
        let silence = std::future::pending::<Result<Response<()>, Status>>();
        let status = peer.answer(silence).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "no answer within 10s"));
    }
}
