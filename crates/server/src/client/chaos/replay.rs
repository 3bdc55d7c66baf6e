//! `mcpscope chaos replay`: a journal decided again, compared, or done again.

use std::process::ExitCode;

use mcpscope_grpc::proto::{ReplayRequest, ReplayResponse};
use mcpscope_grpc::tonic::Request;

use super::super::End;
use super::super::args::Output;
use super::super::screen::Screen;
use super::super::text::{BAD, GOOD, clean, styled};
use super::args::ReplayArgs;
use super::{Engine, NOT_WELL, experiment};

pub(super) async fn replay(args: &ReplayArgs) -> Result<ExitCode, End> {
    let output = args.of.asked.output;
    let mut screen = Screen::new(output);
    let mut engine = Engine::find(&args.of).await?;
    let request = ReplayRequest { id: args.id, other_id: args.other, start: args.start };
    let request = if args.start { engine.authorized(request)? } else { Request::new(request) };
    let events = if args.wait { Some(experiment::watch(&mut engine).await?) } else { None };
    let mut replayed = match engine.peer.answer(engine.client.chaos.replay(request)).await {
        Ok(replayed) => replayed,
        Err(status) => return Err(engine.peer.failure(&status).into()),
    };
    let started = replayed.started.take().filter(|_| args.start);
    if output == Output::Text || started.is_none() {
        screen.show(&replayed, |replayed, _| render(replayed, args.id, args.other))?;
    }
    match started {
        Some(test) => experiment::see(&mut engine, &mut screen, output, test, events).await,
        None if replayed.divergence.is_some() => Ok(ExitCode::from(NOT_WELL)),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn render(replayed: &ReplayResponse, id: u64, other: Option<u64>) -> String {
    let what = match (other, replayed.other_hits) {
        (Some(other), Some(others)) => {
            format!("experiment {id} has {} hits, experiment {other} has {others}", replayed.hits)
        }
        _ => format!("the journal of experiment {id} has {} hits, which were decided again", replayed.hits),
    };
    match &replayed.divergence {
        None => format!("{what}: {}\n", styled("all are the same", GOOD)),
        Some(divergence) => {
            format!("{what}: {}\nthe first: {}\n", styled("they differ", BAD), clean(&divergence.text))
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use mcpscope_grpc::proto::ChaosDivergence;

    use super::*;

    fn check(replayed: &ReplayResponse, other: Option<u64>, expected: &Expect) {
        expected.assert_eq(&anstream::adapter::strip_str(&render(replayed, 7, other)).to_string());
    }

    #[test]
    fn what_differs_is_told() {
        let same = ReplayResponse { hits: 12, ..ReplayResponse::default() };
        check(
            &same,
            None,
            &expect![[r"
            the journal of experiment 7 has 12 hits, which were decided again: all are the same
        "]],
        );
        let text = "hit 3: expected drop, found \x1b[2Jnothing more".to_owned();
        let divergence = Some(ChaosDivergence { at: 3, text, ..ChaosDivergence::default() });
        let differs = ReplayResponse { hits: 12, other_hits: Some(3), divergence, started: None };
        check(
            &differs,
            Some(8),
            &expect![[r"
            experiment 7 has 12 hits, experiment 8 has 3: they differ
            the first: hit 3: expected drop, found \u{1b}[2Jnothing more
        "]],
        );
    }
}
