//! `mcpscope chaos report`: what became of an experiment.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use mcpscope_chaos::Scenario;
use mcpscope_grpc::proto::{
    ChaosAchieved, ChaosInjection, ChaosPackets, ChaosRecovery, ChaosReport, ChaosSample, ChaosSlot, ChaosTouched,
    ChaosUnit, GetReportRequest, GetReportResponse, ListHistoryRequest,
};

use super::super::End;
use super::super::health::{or_unknown, section};
use super::super::number;
use super::super::screen::Screen;
use super::super::text::{BAD, BOLD, Cell, Column, DIM, GOOD, PLAIN, Table, WARNING, clean, styled};
use super::args::ReportArgs;
use super::{Engine, shown};
use crate::failure::{Failure, say};

pub(super) async fn report(args: &ReportArgs) -> Result<ExitCode, End> {
    let mut screen = Screen::new(args.of.asked.output);
    let mut engine = Engine::find(&args.of).await?;
    let id = match args.id {
        Some(id) => id,
        None => newest(&mut engine).await?,
    };
    let request = GetReportRequest { id, html: args.html.is_some() };
    let answer = engine.peer.answer(engine.client.chaos.get_report(request)).await;
    let answer = answer.map_err(|status| engine.peer.failure(&status))?;
    if let Some(path) = &args.html {
        write(path, answer.html.as_deref().unwrap_or_default()).map_err(Failure::usage)?;
        say(format_args!("written to {}", path.display()));
    }
    let page = engine.command(&format!("report {id} --html FILE"));
    let GetReportResponse { report, verdict, held, .. } = answer;
    screen.show(&report.unwrap_or_default(), |report, width| {
        let page = if args.html.is_some() { None } else { Some(page.as_str()) };
        render(report, &Verdict { text: &verdict, held }, page, width)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The experiment that ended last. That a newer one has not ended yet is told beside it.
async fn newest(engine: &mut Engine) -> Result<u64, Failure> {
    let id = ended_last(engine).await?;
    let status = engine.status().await.map_err(|status| engine.peer.failure(&status))?;
    for test in status.active_tests_details.iter().filter(|test| test.id > id) {
        let (name, word) = (clean(&test.name), shown::word(test.status()));
        say(format_args!(
            "mcpscope: experiment {} ({name}) is {word}: this is experiment {id}, which ended last",
            test.id
        ));
    }
    Ok(id)
}

async fn ended_last(engine: &mut Engine) -> Result<u64, Failure> {
    let request = ListHistoryRequest { limit: Some(1) };
    let answer = engine.peer.answer(engine.client.chaos.list_history(request)).await;
    let tests = answer.map_err(|status| engine.peer.failure(&status))?.tests;
    let none =
        || Failure::usage(anyhow!("no experiment has ended yet; `{}` shows what runs", engine.command("status")));
    tests.first().map(|test| test.id).ok_or_else(none)
}

/// In one step, so that nobody opens half a page.
pub(super) fn write(path: &Path, page: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let cannot = || format!("cannot write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
    file.write_all(page.as_bytes()).with_context(cannot)?;
    file.persist(path).map(drop).with_context(cannot)
}

/// Whether the watched system withstood the fault, and why.
struct Verdict<'a> {
    text: &'a str,
    held: Option<bool>,
}

/// `page` is the command that makes a page of it.
fn render(report: &ChaosReport, verdict: &Verdict<'_>, page: Option<&str>, width: Option<usize>) -> String {
    let style = match verdict.held {
        Some(true) => GOOD,
        Some(false) => BAD,
        None => WARNING,
    };
    let title = styled(&clean(&report.scenario), BOLD);
    let mut out = format!("experiment {}: {title} {}\n", report.id, shown::status(report.status()));
    out.push_str(&format!("{}\n", styled(&clean(verdict.text), style)));
    out.push_str(&section(facts(report), width));
    out.push_str(&section(slots(report), width));
    out.push_str(&section(injection(&report.scenario, &report.injection.clone().unwrap_or_default()), width));
    out.push_str(&section(end(report), width));
    out.push_str(&section(outages(report), width));
    let mut next = Table::pairs();
    if let Some(replay) = &report.replay {
        next.row(vec![Cell::new("to check its journal", DIM), format!("mcpscope chaos replay {}", report.id).into()]);
        next.row(vec![Cell::new("to do it again", DIM), replay.as_str().into()]);
    }
    if let Some(page) = page {
        next.row(vec![Cell::new("as a page", DIM), page.into()]);
    }
    out.push_str(&section(next, width));
    out
}

/// What it was.
fn facts(report: &ChaosReport) -> Table {
    let mut table = Table::pairs();
    let mut fact = |name: &str, value: &str| table.row(vec![Cell::new(name, DIM), value.into()]);
    let lasted = u64::try_from(report.end_time.saturating_sub(report.start_time)).unwrap_or(0);
    let by = shown::started_by(report.started_by());
    fact("began", &format!("{} UTC, started by {by}", number::moment(report.start_time)));
    fact("lasted", &number::duration(lasted as f64));
    fact("where", &shown::targets(&report.targets));
    let parameters = shown::parameters(report.parameters.as_ref());
    if !parameters.is_empty() {
        fact("with", &parameters);
    }
    fact("seed", &report.seed.to_string());
    if !report.steady_state.is_empty() {
        fact("steady state", &report.steady_state.join(", "));
    }
    if let Some(guard) = &report.guard {
        fact("ended by its guard", guard);
    }
    if let Some(error) = &report.error {
        fact("why", error);
    }
    table
}

type Figure<T> = (&'static str, fn(&T) -> Option<f64>, fn(f64) -> String);

/// How the watched system was before, during and after; empty if nobody watched.
fn slots(report: &ChaosReport) -> Table {
    const UNTOUCHED: [Figure<ChaosSample>; 7] = [
        ("calls", |sample| Some(sample.calls as f64), number::count),
        ("errors", |sample| share(sample.errors, sample.calls), number::percent),
        ("p50", |sample| sample.p50_ms, number::duration),
        ("p95", |sample| sample.p95_ms, number::duration),
        ("p99", |sample| sample.p99_ms, number::duration),
        ("repeated requests", |sample| sample.repeated.map(|n| n as f64), number::count),
        ("duplicate answers", |sample| sample.duplicates.map(|n| n as f64), number::count),
    ];
    const TOUCHED: [Figure<ChaosTouched>; 5] = [
        ("calls touched by the fault", |touched| Some(touched.calls as f64), number::count),
        ("  errors", |touched| share(touched.errors, touched.calls), number::percent),
        ("  p50", |touched| touched.p50_ms, number::duration),
        ("  p95", |touched| touched.p95_ms, number::duration),
        ("  p99", |touched| touched.p99_ms, number::duration),
    ];
    let slots = [&report.before, &report.during, &report.after].map(Option::as_ref);
    let columns = [Column::text("calls"), Column::number("before"), Column::number("during"), Column::number("after")];
    let mut table = Table::new(columns);
    if slots.iter().all(Option::is_none) {
        return table;
    }
    let mut row = |name: &str, value: &dyn Fn(&ChaosSlot) -> Option<f64>, show: fn(f64) -> String| {
        let values = slots.map(|slot| slot.and_then(value));
        if values.iter().any(Option::is_some) {
            let cells = values.map(|value| or_unknown(value, show));
            table.row([Cell::new(name, DIM)].into_iter().chain(cells).collect());
        }
    };
    row("time", &|slot| Some(slot.duration as f64), number::duration);
    for (name, value, show) in UNTOUCHED {
        row(name, &|slot| slot.sample.as_ref().and_then(value), show);
    }
    for (name, value, show) in TOUCHED {
        row(name, &|slot| slot.sample.as_ref()?.touched.as_ref().and_then(value), show);
    }
    table
}

fn share(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| part as f64 / of as f64)
}

/// What was asked for and what was done.
fn injection(scenario: &str, injection: &ChaosInjection) -> Table {
    let mut table = Table::pairs();
    let mut fact = |name: &str, value: &str| table.row(vec![Cell::new(name, DIM), value.into()]);
    let requested = number::percent(injection.requested_intensity);
    let achieved = injection.achieved_intensity.map(number::percent);
    let achieved = achieved.map(|achieved| format!(", {achieved} achieved")).unwrap_or_default();
    match scenario.parse() {
        Ok(Scenario::ProcessCrash) => {
            let of = match injection.matched {
                0 => String::new(),
                // Each target in each second.
                chances => format!(" in {chances} chances ({requested} asked for{achieved})"),
            };
            fact("crashes", &format!("{}{of}", injection.injected));
        }
        Ok(Scenario::MemoryPressure | Scenario::CpuOverload) => match &injection.resource {
            Some(resource) => taken(resource, &mut fact),
            None => fact("taken", "nothing"),
        },
        _ => {
            fact("connections", &format!("{} of {}", injection.connections_chosen, injection.connections));
            fact("messages that matched", &injection.matched.to_string());
            fact("hit", &format!("{} ({requested} asked for{achieved})", injection.injected));
            fact("acted on", &injection.observed.to_string());
        }
    }
    if let Some(ChaosPackets { sent, dropped }) = injection.packets {
        fact("packets", &format!("{sent} arrived, {dropped} lost"));
    }
    if injection.unjournalled > 0 {
        fact("not in the journal", &injection.unjournalled.to_string());
    }
    table
}

/// What was taken of memory or of processors, and where.
fn taken(resource: &ChaosAchieved, fact: &mut impl FnMut(&str, &str)) {
    let ChaosAchieved { requested, achieved, cgroup, .. } = resource;
    if resource.unit() == ChaosUnit::Bytes {
        let size = |bytes: f64| number::bytes(bytes as u64);
        fact("memory taken", &format!("{} of {}", size(*achieved), size(*requested)));
    } else {
        let share = number::percent;
        fact("load", &format!("{} of each core's time ({} asked for)", share(*achieved), share(*requested)));
    }
    cgroup.iter().for_each(|group| fact("in the control group", &clean(group)));
}

/// What was seen of it, and what is left.
fn end(report: &ChaosReport) -> Table {
    let mut table = Table::pairs();
    let mut fact = |name: &str, value: Cell| table.row(vec![Cell::new(name, DIM), value]);
    if let Some(detected) = report.time_to_detect {
        fact("steady state broken after", number::duration(detected as f64).into());
    }
    let ChaosRecovery { limit, time, observed } = report.recovery.unwrap_or_default();
    let limit = number::duration(limit as f64);
    let recovery = match (observed, time) {
        (true, Some(0)) => format!("at once (at most {limit})"),
        (true, Some(time)) => format!("after {} (at most {limit})", number::duration(time as f64)),
        (true, None) => format!("not within {limit}"),
        (false, _) => "not observed: too few calls to judge by".to_owned(),
    };
    let failed = observed && time.is_none();
    fact("well again", Cell::new(&recovery, if failed { BAD } else { PLAIN }));
    let looked_at = report.audit.as_ref().map_or_else(String::new, |audit| audit.looked_at.join(", "));
    let nothing = if looked_at.is_empty() { "not looked at".to_owned() } else { format!("nothing (of {looked_at})") };
    fact("left over", report.leak.as_deref().map_or_else(|| nothing.into(), |leak| Cell::new(leak, BAD)));
    table
}

/// The processes that were ended, and how long they were away.
fn outages(report: &ChaosReport) -> Table {
    const SHOWN: usize = 20;
    let mut table = Table::new([
        Column::text("process of"),
        Column::number("ended at"),
        Column::number("restarted after"),
        Column::number("ready after"),
        Column::number("first good call after"),
    ]);
    for outage in report.outages.iter().take(SHOWN) {
        let times = [Some(outage.at), outage.restarted_after, outage.ready_after, outage.first_good_call_after];
        let times = times.map(|time| or_unknown(time.map(|time| time as f64), number::duration));
        table.row([outage.target.as_str().into()].into_iter().chain(times).collect());
    }
    let more = report.outages.len().saturating_sub(SHOWN);
    if more > 0 {
        table.row(vec![Cell::new(&format!("and {more} more"), DIM)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use mcpscope_grpc::proto::{ChaosAudit, ChaosOutage, ChaosStartedBy, ChaosTestStatus};

    use super::super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    fn example() -> ChaosReport {
        let touched = ChaosTouched { calls: 30, errors: 3, p50_ms: Some(305.0), p95_ms: Some(310.0), p99_ms: None };
        let sample = |calls, touched| ChaosSample {
            calls,
            errors: 1,
            p50_ms: Some(5.0),
            p95_ms: Some(9.5),
            p99_ms: Some(9.9),
            repeated: Some(2),
            touched,
            ..ChaosSample::default()
        };
        let slot = |duration, sample| Some(ChaosSlot { duration, error_rate: None, sample: Some(sample) });
        ChaosReport {
            id: 7,
            scenario: "latency_injection".into(),
            status: ChaosTestStatus::Completed.into(),
            started_by: ChaosStartedBy::Person.into(),
            seed: 42,
            targets: vec!["weather".into()],
            start_time: 1_764_000_000_123,
            end_time: 1_764_000_008_123,
            steady_state: vec!["error_rate < 0.05".into(), "p95 < 500".into()],
            before: slot(10_000, sample(100, None)),
            during: slot(8_000, sample(50, Some(touched))),
            after: slot(2_000, sample(0, None)),
            injection: Some(ChaosInjection {
                connections: 2,
                connections_chosen: 1,
                matched: 60,
                injected: 31,
                observed: 31,
                requested_intensity: 0.5,
                achieved_intensity: Some(0.517),
                unjournalled: 0,
                resource: None,
                packets: None,
            }),
            time_to_detect: Some(1200),
            recovery: Some(ChaosRecovery { limit: 1000, time: Some(0), observed: true }),
            replay: Some("mcpscope chaos replay 7 --start".into()),
            audit: Some(ChaosAudit { looked_at: vec!["children".into(), "memory".into()], ..ChaosAudit::default() }),
            ..ChaosReport::default()
        }
    }

    fn plain(report: &ChaosReport, text: &str, held: Option<bool>) -> String {
        let shown = render(report, &Verdict { text, held }, Some("mcpscope chaos report 7 --html FILE"), None);
        anstream::adapter::strip_str(&shown).to_string()
    }

    #[test]
    fn a_report_is_a_page() {
        expect![[r#"
            experiment 7: latency_injection completed
            It held: all was well from the end of the fault on (limit 1s).

            began         2025-11-24 16:00:00.123 UTC, started by a person
            lasted        8.00 s
            where         weather
            seed          42
            steady state  error_rate < 0.05, p95 < 500

            calls                        before   during    after
            time                         10.0 s   8.00 s   2.00 s
            calls                           100       50        0
            errors                        1.0 %    2.0 %        –
            p50                         5.00 ms  5.00 ms  5.00 ms
            p95                         9.50 ms  9.50 ms  9.50 ms
            p99                         9.90 ms  9.90 ms  9.90 ms
            repeated requests                 2        2        2
            calls touched by the fault        –       30        –
              errors                          –     10 %        –
              p50                             –   305 ms        –
              p95                             –   310 ms        –

            connections            1 of 2
            messages that matched  60
            hit                    31 (50 % asked for, 52 % achieved)
            acted on               31

            steady state broken after  1.20 s
            well again                 at once (at most 1.00 s)
            left over                  nothing (of children, memory)

            to check its journal  mcpscope chaos replay 7
            to do it again        mcpscope chaos replay 7 --start
            as a page             mcpscope chaos report 7 --html FILE
        "#]]
        .assert_eq(&plain(&example(), "It held: all was well from the end of the fault on (limit 1s).", Some(true)));
    }

    #[test]
    fn how_long_processes_were_away_is_shown() {
        let outage = |at, first_good_call_after| ChaosOutage {
            target: "weather".into(),
            at,
            restarted_after: Some(210),
            ready_after: Some(1240),
            first_good_call_after,
        };
        let shown = |outages| {
            let report = ChaosReport { outages, ..ChaosReport::default() };
            anstream::adapter::strip_str(&outages_of(&report)).to_string()
        };
        expect![[r#"

            process of  ended at  restarted after  ready after  first good call after
            weather      3.00 ms           210 ms       1.24 s                 1.30 s
            weather       4.00 s           210 ms       1.24 s                      –
        "#]]
        .assert_eq(&shown(vec![outage(3, Some(1302)), outage(4003, None)]));
        let many = shown(vec![outage(1, None); 25]);
        assert!(many.ends_with("and 5 more\n"), "{many}");
    }

    fn outages_of(report: &ChaosReport) -> String {
        section(outages(report), None)
    }

    /// What was done, row by row.
    fn done(scenario: &str, injection: &ChaosInjection) -> Vec<String> {
        let shown = section(super::injection(scenario, injection), None);
        let shown = anstream::adapter::strip_str(&shown).to_string();
        let rows = shown.lines().filter(|line| !line.is_empty());
        rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn what_was_taken_and_where_is_told() {
        let shown =
            |scenario, resource| done(scenario, &ChaosInjection { injected: 1, resource, ..Default::default() });
        let (unit, cgroup) = (ChaosUnit::Bytes.into(), Some("/sys/fs/cgroup/weather".to_owned()));
        let memory = ChaosAchieved { requested: 134_217_728.0, achieved: 67_108_864.0, unit, cgroup };
        assert_eq!(
            shown("memory_pressure", Some(memory)),
            ["memory taken 64.0 MiB of 128 MiB", "in the control group /sys/fs/cgroup/weather"]
        );
        let load = ChaosAchieved { requested: 0.8, achieved: 0.79, unit: ChaosUnit::Share.into(), cgroup: None };
        assert_eq!(shown("cpu_overload", Some(load)), ["load 79 % of each core's time (80 % asked for)"]);
        assert_eq!(shown("cpu_overload", None), ["taken nothing"]);
    }

    #[test]
    fn crashes_are_told_and_not_messages() {
        let once = ChaosInjection { injected: 1, requested_intensity: 1.0, ..ChaosInjection::default() };
        assert_eq!(done("process_crash", &once), ["crashes 1"]);
        let by_chance = ChaosInjection {
            injected: 3,
            matched: 12,
            requested_intensity: 0.2,
            achieved_intensity: Some(0.25),
            ..ChaosInjection::default()
        };
        assert_eq!(done("process_crash", &by_chance), ["crashes 3 in 12 chances (20 % asked for, 25 % achieved)"]);
    }

    #[test]
    fn what_nobody_watched_is_not_shown() {
        let report = ChaosReport {
            status: ChaosTestStatus::Aborted.into(),
            error: Some("stopped by a person".into()),
            steady_state: Vec::new(),
            before: None,
            during: None,
            after: None,
            time_to_detect: None,
            recovery: Some(ChaosRecovery { limit: 1000, time: None, observed: false }),
            leak: Some("a child".into()),
            replay: None,
            ..example()
        };
        expect![[r#"
            experiment 7: latency_injection aborted
            Not known: it was ended early (stopped by a person).

            began   2025-11-24 16:00:00.123 UTC, started by a person
            lasted  8.00 s
            where   weather
            seed    42
            why     stopped by a person

            connections            1 of 2
            messages that matched  60
            hit                    31 (50 % asked for, 52 % achieved)
            acted on               31

            well again  not observed: too few calls to judge by
            left over   a child

            as a page  mcpscope chaos report 7 --html FILE
        "#]]
        .assert_eq(&plain(&report, "Not known: it was ended early (stopped by a person).", None));
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let hostile = || HOSTILE.to_owned();
        let resource = ChaosAchieved { cgroup: Some(hostile()), ..ChaosAchieved::default() };
        let report = ChaosReport {
            scenario: hostile(),
            error: Some(hostile()),
            targets: vec![hostile()],
            outages: vec![ChaosOutage { target: hostile(), ..ChaosOutage::default() }],
            steady_state: vec![hostile()],
            guard: Some(hostile()),
            injection: Some(ChaosInjection { resource: Some(resource), ..ChaosInjection::default() }),
            leak: Some(hostile()),
            replay: Some(hostile()),
            audit: Some(ChaosAudit { looked_at: vec![hostile()], ..ChaosAudit::default() }),
            ..example()
        };
        assert_harmless(&render(&report, &Verdict { text: HOSTILE, held: None }, None, None));
    }

    #[test]
    fn a_page_is_written_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
        let error = write(&dir.path().join("no/report.html"), "x").unwrap_err().to_string();
        assert!(error.starts_with("cannot write "), "{error}");
    }
}
