//! `mcpscope chaos plan|start|stop`: one experiment, from what it would do to its end.

use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use mcpscope_chaos::Parameters;
use mcpscope_grpc::prost_types::value::Kind;
use mcpscope_grpc::prost_types::{Struct, Value};
use mcpscope_grpc::proto::chaos_event::What;
use mcpscope_grpc::proto::{
    ChaosTest, ChaosTestStatus, GetReportRequest, GetReportResponse, PlanRequest, StartExperimentRequest,
    StopExperimentRequest, WatchEventsRequest, WatchEventsResponse,
};
use mcpscope_grpc::tonic::Streaming;

use super::super::End;
use super::super::args::Output;
use super::super::number;
use super::super::screen::Screen;
use super::super::text::{BOLD, Cell, DIM, Table, UNKNOWN, clean, styled};
use super::args::{PlanArgs, StartArgs, StopArgs, Wanted};
use super::outlook::planned;
use super::{Engine, exit_code, quoted, shown};
use crate::failure::Failure;

pub(super) async fn plan(args: &PlanArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.of.asked.output);
    let (scenario, parameters) = (args.wanted.scenario.clone(), Some(read(&args.wanted)?));
    let mut engine = Engine::find(&args.of).await?;
    let answer = engine.peer.answer(engine.client.chaos.plan(PlanRequest { scenario, parameters })).await;
    let outlook = match answer {
        Ok(answer) => answer.outlook.unwrap_or_default(),
        Err(status) => return Err(engine.refusal(&status, &args.wanted.scenario).await.into()),
    };
    let start = engine.command(&["start".to_owned(), typed(&args.wanted)].join(" "));
    let now = i64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().as_millis()).unwrap_or(i64::MAX);
    screen.show(&outlook, |outlook, width| planned(outlook, &start, now, width))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn start(args: &StartArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.of.asked.output);
    let (scenario, parameters) = (args.wanted.scenario.clone(), Some(read(&args.wanted)?));
    let mut engine = Engine::find(&args.of).await?;
    let request = engine.authorized(StartExperimentRequest { scenario, parameters })?;
    let events = if args.wait.wait { Some(watch(&mut engine).await?) } else { None };
    let test = match engine.peer.answer(engine.client.chaos.start_experiment(request)).await {
        Ok(answer) => answer.test.unwrap_or_default(),
        Err(status) => return Err(engine.refusal(&status, &args.wanted.scenario).await.into()),
    };
    see(&mut engine, &mut screen, args.of.asked.output, test, events).await
}

/// What may happen from now on.
pub(super) async fn watch(engine: &mut Engine) -> Result<Streaming<WatchEventsResponse>, Failure> {
    let opened = engine.peer.answer(engine.client.chaos.watch_events(WatchEventsRequest { since: None })).await;
    opened.map_err(|status| engine.peer.failure(&status))
}

/// Shows an experiment that has been started, and follows it where there are events, which began before it did.
pub(super) async fn see(
    engine: &mut Engine,
    screen: &mut Screen,
    output: Output,
    test: ChaosTest,
    events: Option<Streaming<WatchEventsResponse>>,
) -> Result<ExitCode, End> {
    if output == Output::Text || events.is_none() {
        screen.show(&test, |test, width| started(test, &|arguments| engine.command(arguments), width))?;
    }
    let Some(mut events) = events else {
        let over = test.status() == ChaosTestStatus::NotStarted;
        return Ok(if over { exit_code(test.status()) } else { ExitCode::SUCCESS });
    };
    let mut status = test.status();
    while !shown::is_final(status) {
        let event = engine.peer.next(&mut events).await?.event.unwrap_or_default();
        let Some(What::Changed(changed)) = &event.what else { continue };
        if changed.id != test.id || changed.status() == status {
            continue;
        }
        status = changed.status();
        // What it was when it was started is shown already.
        if output == Output::Text && !matches!(status, ChaosTestStatus::Planned | ChaosTestStatus::Running) {
            let reason = changed.reason.as_deref().map(|why| format!(": {}", clean(why))).unwrap_or_default();
            let clock = styled(&number::clock(event.time), DIM);
            screen.show(&event, |_, _| format!("{clock}  {}{reason}\n", shown::status(status)))?;
        }
    }
    let request = GetReportRequest { id: test.id, html: false };
    let answer = engine.peer.answer(engine.client.chaos.get_report(request)).await;
    let GetReportResponse { report, verdict, .. } = answer.map_err(|status| engine.peer.failure(&status))?;
    let command = engine.command(&format!("report {}", test.id));
    screen.show(&report.unwrap_or_default(), |_, _| format!("{}\n`{command}` shows all of it\n", clean(&verdict)))?;
    Ok(exit_code(status))
}

pub(super) async fn stop(args: &StopArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.of.asked.output);
    let mut engine = Engine::find(&args.of).await?;
    let request = StopExperimentRequest { id: args.id };
    let answer = engine.peer.answer(engine.client.chaos.stop_experiment(request)).await;
    answer.map_err(|status| engine.peer.failure(&status))?;
    let report = engine.command(&format!("report {}", args.id));
    let done = serde_json::json!({ "id": args.id });
    screen.show(&done, |_, _| format!("experiment {} is ended; `{report}` shows what became of it\n", args.id))?;
    Ok(ExitCode::SUCCESS)
}

/// The parameters as they were typed: the instance knows what they may be.
fn read(wanted: &Wanted) -> Result<Struct, Failure> {
    let parameters = Parameters::from_pairs(wanted.parameters.iter().map(String::as_str));
    let parameters = parameters.with_context(|| wanted.scenario.clone()).map_err(|error| {
        Failure::usage(error).and(&format!("`mcpscope chaos scenarios {}` lists what it takes", wanted.scenario))
    })?;
    let value = |value: serde_json::Value| Kind::StringValue(value.as_str().unwrap_or_default().to_owned());
    let fields = parameters.0.into_iter().map(|(name, given)| (name, Value { kind: Some(value(given)) }));
    Ok(Struct { fields: fields.collect() })
}

/// Scenario and parameters as they were typed.
fn typed(wanted: &Wanted) -> String {
    let parameters = wanted.parameters.iter().map(|parameter| quoted(parameter));
    std::iter::once(wanted.scenario.clone()).chain(parameters).collect::<Vec<_>>().join(" ")
}

fn started(test: &ChaosTest, command: &dyn Fn(&str) -> String, width: Option<usize>) -> String {
    let title = styled(&clean(&test.name), BOLD);
    let report = command(&format!("report {}", test.id));
    let mut facts = Table::pairs();
    let mut fact = |name: &str, value: &str| facts.row(vec![Cell::new(name, DIM), value.into()]);
    let (targets, parameters) = shown::details(test);
    fact("where", &targets);
    if !parameters.is_empty() {
        fact("with", &parameters);
    }
    if shown::is_final(test.status()) {
        let error = test.details.as_ref().and_then(|details| details.error.as_deref()).unwrap_or(UNKNOWN);
        fact("why", error);
        fact("report", &report);
        return format!("experiment {}: {title} was {}\n{}", test.id, shown::status(test.status()), facts.take(width));
    }
    let lasts = u64::try_from(test.end_time.saturating_sub(test.start_time)).unwrap_or(0);
    fact("ends", &format!("at {} UTC, after {}", number::clock(test.end_time), number::duration(lasts as f64)));
    fact("to end it now", &command(&format!("stop {}", test.id)));
    fact("to end everything", &command("emergency-stop"));
    fact("what became of it", &report);
    format!("experiment {}: {title} is {}\n{}", test.id, shown::status(test.status()), facts.take(width))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::expect;

    use super::super::super::text::tests::assert_harmless;
    use super::super::args::ChaosCommand;
    use super::super::shown::tests::{example, hostile};
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: ChaosCommand,
    }

    fn wanted(line: &[&str]) -> Wanted {
        let line = ["chaos", "plan"].iter().chain(line);
        let ChaosCommand::Plan(args) = Line::try_parse_from(line).unwrap().command else { panic!("not a plan") };
        args.wanted
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn begun(test: &ChaosTest) -> String {
        started(test, &|arguments| format!("mcpscope chaos {arguments}"), None)
    }

    #[test]
    fn what_is_started_says_how_it_ends() {
        expect![[r#"
            experiment 7: latency_injection is running
            where              weather, files
            with               delay=300ms
            ends               at 16:00:08.123 UTC, after 8.00 s
            to end it now      mcpscope chaos stop 7
            to end everything  mcpscope chaos emergency-stop
            what became of it  mcpscope chaos report 7
        "#]]
        .assert_eq(&plain(&begun(&example(7, ChaosTestStatus::Running))));
        expect![[r#"
            experiment 7: latency_injection was not started
            where   weather, files
            with    delay=300ms
            why     stopped by a person
            report  mcpscope chaos report 7
        "#]]
        .assert_eq(&plain(&begun(&example(7, ChaosTestStatus::NotStarted))));
    }

    #[test]
    fn parameters_are_sent_as_they_are_typed() {
        let wanted = wanted(&["hang", "every=2", "steady_state=p95 < 500"]);
        assert_eq!(typed(&wanted), "hang every=2 'steady_state=p95 < 500'");
        let fields = read(&wanted).unwrap().fields;
        assert_eq!(fields["every"].kind, Some(Kind::StringValue("2".into())));
        assert_eq!(fields["steady_state"].kind, Some(Kind::StringValue("p95 < 500".into())));
    }

    #[test]
    fn what_is_no_parameter_says_where_they_are() {
        for (given, why) in [
            (vec!["hang", "every"], "hang: `every` is no parameter: expected NAME=VALUE, such as delay=300ms"),
            (vec!["hang", "a=1", "a=2"], "hang: a is given twice: expected each parameter once"),
        ] {
            let failure = read(&wanted(&given)).unwrap_err();
            let expected = format!("{why}; `mcpscope chaos scenarios hang` lists what it takes");
            assert_eq!((failure.code(), failure.to_string()), (Failure::USAGE, expected));
        }
    }

    #[test]
    fn a_scenario_that_is_mistyped_is_told_the_nearest() {
        let Err(error) = Line::try_parse_from(["chaos", "start", "latency_injecton"]) else { panic!("taken") };
        let text = error.render().to_string();
        assert!(text.contains("'latency_injection'") && text.contains("a similar value exists"), "{text}");
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        assert_harmless(&begun(&hostile()));
        assert_harmless(&begun(&ChaosTest { status: ChaosTestStatus::Running.into(), ..hostile() }));
    }
}
