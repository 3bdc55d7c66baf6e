//! `mcpscope chaos status|history|emergency-stop|rearm`: the engine as a whole.

use std::process::ExitCode;

use mcpscope_grpc::proto::{
    ChaosMode, ChaosStatus, ChaosTest, ChaosTestStatus, EmergencyStopRequest, ListHistoryRequest, RearmRequest,
};
use mcpscope_grpc::tonic::Code;

use super::super::End;
use super::super::health::section;
use super::super::number;
use super::super::screen::Screen;
use super::super::text::{BAD, Cell, Column, DIM, Table, UNKNOWN, clean, styled};
use super::args::{ChaosAsked, HistoryArgs, StatusArgs};
use super::{Engine, experiment, shown};

pub(super) async fn status(args: &StatusArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.of.asked.output);
    let mut engine = Engine::find(&args.of).await?;
    let mut events = if args.follow { Some(experiment::watch(&mut engine).await?) } else { None };
    loop {
        let status = engine.status().await.map_err(|status| engine.peer.failure(&status))?;
        let rearm = engine.command("rearm");
        screen.show(&status, |status, width| {
            let clock = if args.follow { format!("{} UTC\n", number::clock(status.timestamp)) } else { String::new() };
            let end = if args.follow { "\n" } else { "" };
            format!("{clock}{}{end}", state(status, &rearm, width))
        })?;
        let Some(events) = &mut events else { return Ok(ExitCode::SUCCESS) };
        engine.peer.next(events).await?;
    }
}

pub(super) async fn history(args: &HistoryArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.of.asked.output);
    let mut engine = Engine::find(&args.of).await?;
    let request = ListHistoryRequest { limit: Some(args.limit) };
    let answer = engine.peer.answer(engine.client.chaos.list_history(request)).await;
    let tests = answer.map_err(|status| engine.peer.failure(&status))?.tests;
    screen.show(&tests, |tests, width| match tests.as_slice() {
        [] => "no experiment has ended yet\n".to_owned(),
        tests => ended(tests, width),
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn emergency_stop(of: &ChaosAsked) -> Result<ExitCode, End> {
    let mut screen = Screen::new(of.asked.output);
    let mut engine = Engine::find(of).await?;
    let answer = engine.peer.answer(engine.client.chaos.emergency_stop(EmergencyStopRequest {})).await;
    answer.map_err(|status| engine.peer.failure(&status))?;
    let rearm = engine.command("rearm");
    let done = serde_json::json!({ "emergency_stop": true });
    screen.show(&done, |_, _| {
        format!("all experiments are ended, and none is started until `{rearm}` allows it again\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn rearm(of: &ChaosAsked) -> Result<ExitCode, End> {
    let mut screen = Screen::new(of.asked.output);
    let mut engine = Engine::find(of).await?;
    let request = engine.authorized(RearmRequest {})?;
    let answer = engine.peer.answer(engine.client.chaos.rearm(request)).await;
    answer.map_err(|status| {
        let failure = engine.peer.failure(&status);
        match status.code() {
            Code::FailedPrecondition => failure.and(&format!("`{}` shows the state", engine.command("status"))),
            _ => failure,
        }
    })?;
    let start = engine.command("start SCENARIO");
    let done = serde_json::json!({ "emergency_stop": false });
    screen.show(&done, |_, _| format!("experiments can be started again, as with `{start}`\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn state(status: &ChaosStatus, rearm: &str, width: Option<usize>) -> String {
    let mode = match status.mode() {
        ChaosMode::Off => format!("off ({})", clean(status.off.as_deref().unwrap_or("by its configuration"))),
        ChaosMode::Manual => "manual: people start experiments".to_owned(),
        ChaosMode::Scheduled => "scheduled: people and the scheduler start experiments".to_owned(),
        ChaosMode::Unspecified => UNKNOWN.to_owned(),
    };
    let mut out = format!("{mode}   running {}   ended {}\n", status.active_tests, status.total_history);
    if status.emergency_stop {
        let by = clean(status.stopped_by.as_deref().unwrap_or("nobody knows whom")).into_owned();
        let when = match status.rearm_at.filter(|at| *at > status.timestamp) {
            Some(at) => format!(", from {} UTC on", number::clock(at)),
            None => String::new(),
        };
        let stopped = styled("EMERGENCY STOP", BAD);
        out.push_str(&format!("{stopped} by {by}: nothing is started until `{rearm}`{when}\n"));
    }
    if status.journal_errors > 0 {
        let lost = styled(&format!("{} journal lines are lost", status.journal_errors), BAD);
        out.push_str(&format!("{lost}: what they were of cannot be replayed\n"));
    }
    out.push_str(&running(status, width));
    let mut failures =
        Table::new([Column::number("id"), Column::text("failed (UTC)"), Column::text("scenario"), Column::long("why")]);
    for test in &status.recent_failures {
        failures.row(vec![
            test.id.to_string().into(),
            number::moment(test.end_time).into(),
            test.name.as_str().into(),
            error(test),
        ]);
    }
    out.push_str(&section(failures, width));
    out
}

/// A section with a row for each experiment that has not ended; empty without any.
fn running(status: &ChaosStatus, width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::number("id"),
        Column::text("scenario"),
        Column::text("status"),
        Column::number("time left"),
        Column::number("hits"),
        Column::long("where"),
        Column::long("with"),
    ]);
    for test in &status.active_tests_details {
        let left = u64::try_from(test.end_time.saturating_sub(status.timestamp)).unwrap_or(0);
        let left = match test.status() {
            ChaosTestStatus::Planned | ChaosTestStatus::Running => number::duration(left as f64).into(),
            _ => Cell::new(UNKNOWN, DIM),
        };
        let (targets, parameters) = shown::details(test);
        table.row(vec![
            test.id.to_string().into(),
            test.name.as_str().into(),
            shown::status(test.status()),
            left,
            test.details.as_ref().map_or(0, |details| details.injected).to_string().into(),
            targets.into(),
            parameters.into(),
        ]);
    }
    section(table, width)
}

fn ended(tests: &[ChaosTest], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::number("id"),
        Column::text("began (UTC)"),
        Column::text("scenario"),
        Column::text("status"),
        Column::number("lasted"),
        Column::number("hits"),
        Column::long("where"),
        Column::long("with"),
        Column::long("why"),
    ]);
    for test in tests {
        let lasted = u64::try_from(test.end_time.saturating_sub(test.start_time)).unwrap_or(0);
        let (targets, parameters) = shown::details(test);
        table.row(vec![
            test.id.to_string().into(),
            number::moment(test.start_time).into(),
            test.name.as_str().into(),
            shown::status(test.status()),
            number::duration(lasted as f64).into(),
            test.details.as_ref().map_or(0, |details| details.injected).to_string().into(),
            targets.into(),
            parameters.into(),
            error(test),
        ]);
    }
    table.take(width)
}

/// Why an experiment failed or was ended.
fn error(test: &ChaosTest) -> Cell {
    test.details.as_ref().and_then(|details| details.error.as_deref()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::super::text::tests::{HOSTILE, assert_harmless};
    use super::super::shown::tests::{example, hostile};
    use super::*;

    const REARM: &str = "mcpscope chaos rearm";

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn status() -> ChaosStatus {
        ChaosStatus {
            timestamp: 1_764_000_002_123,
            active_tests: 2,
            total_history: 14,
            active_tests_details: vec![example(7, ChaosTestStatus::Running), example(8, ChaosTestStatus::Recovering)],
            mode: ChaosMode::Manual.into(),
            ..ChaosStatus::default()
        }
    }

    #[test]
    fn what_is_running_has_its_time_left() {
        expect![[r#"
            manual: people start experiments   running 2   ended 14

            id  scenario           status      time left  hits  where           with
             7  latency_injection  running        6.00 s    31  weather, files  delay=300ms
             8  latency_injection  recovering          –    31  weather, files  delay=300ms
        "#]]
        .assert_eq(&plain(&state(&status(), REARM, None)));
    }

    #[test]
    fn a_stop_says_what_is_next() {
        let stopped = ChaosStatus {
            emergency_stop: true,
            stopped_by: Some("alert memory".into()),
            rearm_at: Some(1_764_000_302_123),
            active_tests: 0,
            active_tests_details: Vec::new(),
            recent_failures: vec![example(6, ChaosTestStatus::Failed)],
            journal_errors: 3,
            ..status()
        };
        expect![[r#"
            manual: people start experiments   running 0   ended 14
            EMERGENCY STOP by alert memory: nothing is started until `mcpscope chaos rearm`, from 16:05:02.123 UTC on
            3 journal lines are lost: what they were of cannot be replayed

            id  failed (UTC)             scenario           why
             6  2025-11-24 16:00:08.123  latency_injection  stopped by a person
        "#]]
        .assert_eq(&plain(&state(&stopped, REARM, None)));
        let past = ChaosStatus { rearm_at: Some(1), recent_failures: Vec::new(), journal_errors: 0, ..stopped };
        expect![[r#"
            manual: people start experiments   running 0   ended 14
            EMERGENCY STOP by alert memory: nothing is started until `mcpscope chaos rearm`
        "#]]
        .assert_eq(&plain(&state(&past, REARM, None)));
        let off =
            ChaosStatus { mode: ChaosMode::Off.into(), off: Some("--chaos off".into()), ..ChaosStatus::default() };
        assert_eq!(plain(&state(&off, REARM, None)), "off (--chaos off)   running 0   ended 0\n");
    }

    #[test]
    fn what_has_ended_is_a_table() {
        let tests = [example(7, ChaosTestStatus::Aborted), example(6, ChaosTestStatus::NotStarted)];
        expect![[r#"
            id  began (UTC)              scenario           status       lasted  hits  where           with         why
             7  2025-11-24 16:00:00.123  latency_injection  aborted      8.00 s    31  weather, files  delay=300ms  stopped by a person
             6  2025-11-24 16:00:00.123  latency_injection  not started  8.00 s    31  weather, files  delay=300ms  stopped by a person
        "#]]
        .assert_eq(&plain(&ended(&tests, None)));
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let hostile = || vec![hostile()];
        let status = ChaosStatus {
            emergency_stop: true,
            stopped_by: Some(HOSTILE.into()),
            active_tests_details: hostile(),
            recent_failures: hostile(),
            mode: ChaosMode::Off.into(),
            off: Some(HOSTILE.into()),
            ..ChaosStatus::default()
        };
        assert_harmless(&state(&status, REARM, None));
        assert_harmless(&ended(&hostile(), None));
    }
}
