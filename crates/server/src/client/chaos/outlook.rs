//! What `mcpscope chaos plan` shows of what an experiment would do.

use mcpscope_chaos::Scenario;
use mcpscope_grpc::proto::{ChaosCrashOutlook, ChaosExpectedHits, ChaosOutlook, ChaosResourceOutlook, ChaosUnit};

use super::super::health::{or_unknown, section};
use super::super::number;
use super::super::text::{BOLD, Cell, Column, DIM, Table, UNKNOWN, clean, styled};
use super::shown;

/// `start` is the command that does it; `now` is in ms since the epoch.
pub(super) fn planned(outlook: &ChaosOutlook, start: &str, now: i64, width: Option<usize>) -> String {
    let mut facts = Table::pairs();
    let mut fact = |name: &str, value: &str| facts.row(vec![Cell::new(name, DIM), value.into()]);
    fact("where", &shown::targets(&outlook.targets));
    let lasts = number::duration(outlook.duration as f64);
    let until = number::clock(now.saturating_add_unsigned(outlook.duration));
    fact("for", &format!("{lasts}; started now, it ends at {until} UTC"));
    let is_of_messages = outlook.scenario.parse().is_ok_and(|scenario: Scenario| !scenario.is_out_of_process());
    if let Some(crash) = &outlook.crash {
        crashes(crash, &mut fact);
    } else if let Some(resource) = &outlook.resource {
        takes(resource, &mut fact);
    } else if is_of_messages {
        messages(outlook, &mut fact);
    }
    let limit = number::duration(outlook.recovery_time as f64);
    if outlook.crash.as_ref().is_some_and(|crash| crash.signal != "stop") {
        fact("back", &format!("within {limit} of its end: it can be called, and a call ends well"));
    }
    let checks = outlook.steady_state.join(", ");
    let well = if checks.is_empty() { "not judged".to_owned() } else { format!("within {limit} of the end: {checks}") };
    fact("well again", &well);
    let table = outlook.crash.as_ref().map_or_else(|| hits(&outlook.hits), processes);
    format!(
        "{} would be started\n{}{}\nnothing was started; `{start}` does it\n",
        styled(&clean(&outlook.scenario), BOLD),
        facts.take(width),
        section(table, width),
    )
}

// === processes and resources ===

fn crashes(crash: &ChaosCrashOutlook, fact: &mut impl FnMut(&str, &str)) {
    let signal = match crash.signal.as_str() {
        "kill" => "SIGKILL to",
        "term" => "SIGTERM to",
        "stop" => "SIGSTOP to",
        "close_stdin" => "end of input for",
        other => other,
    };
    let whose = match crash.processes.len() {
        1 => "the process below with its group".to_owned(),
        count => format!("one of the {count} processes below with its group"),
    };
    let most = match crash.most {
        1 => "once".to_owned(),
        most => format!("{most} times"),
    };
    fact(
        "does",
        &match crash.rate {
            None => format!("{signal} {whose}, once, at the beginning"),
            Some(rate) => {
                let rate = number::percent(rate);
                format!(
                    "{signal} each process below with its group, with a chance of {rate} every second, at most {most}"
                )
            }
        },
    );
    let waits: Vec<_> = crash.processes.iter().filter_map(|process| process.restarted_after).collect();
    let wait = |ms: &u64| number::duration(*ms as f64);
    fact(
        "then",
        &match (crash.signal.as_str(), waits.iter().min(), waits.iter().max()) {
            ("stop", ..) => "it goes on at the end".to_owned(),
            (_, Some(least), Some(most)) if least == most => format!("it is started again after {}", wait(least)),
            (_, Some(least), Some(most)) => format!("it is started again after {} to {}", wait(least), wait(most)),
            _ => UNKNOWN.to_owned(),
        },
    );
}

fn processes(crash: &ChaosCrashOutlook) -> Table {
    let mut table = Table::new([
        Column::number("process"),
        Column::long("program"),
        Column::number("in its group"),
        Column::long("server"),
        Column::long("carries"),
    ]);
    for process in &crash.processes {
        let carries = process.components.join(", ");
        table.row(vec![
            process.pid.map_or_else(|| UNKNOWN.to_owned(), |pid| pid.to_string()).into(),
            process.program.as_deref().unwrap_or(UNKNOWN).into(),
            or_unknown(process.group.map(|group| group as f64), number::count),
            process.target.as_str().into(),
            if carries.is_empty() { UNKNOWN.into() } else { carries.into() },
        ]);
    }
    table
}

fn takes(resource: &ChaosResourceOutlook, fact: &mut impl FnMut(&str, &str)) {
    let is_memory = resource.unit() == ChaosUnit::Bytes;
    let amount = |value: f64| if is_memory { number::bytes(value as u64) } else { number::percent(value) };
    let of = match resource.cores {
        Some(1) => " of one core".to_owned(),
        Some(cores) => format!(" of each of {cores} cores"),
        None => " of memory".to_owned(),
    };
    let expected = amount(resource.expected);
    fact(
        "takes",
        &match &resource.limit {
            None => format!("{expected}{of}"),
            Some(limit) => format!("{expected}{of} instead of {}: {}", amount(resource.requested), clean(limit)),
        },
    );
    if let Some(group) = &resource.cgroup {
        fact("in the control group", &clean(group));
    }
    fact("by", "a helper process, which is gone by then, and at once if the experiment is stopped");
}

// === messages ===

fn messages(outlook: &ChaosOutlook, fact: &mut impl FnMut(&str, &str)) {
    let connections = outlook.connections;
    let share = match outlook.connection_share {
        all if all >= 1.0 => String::new(),
        share => format!(", {} of them at most", number::percent(share)),
    };
    fact("connections", &format!("{connections} open now{share}"));
    if outlook.packets() {
        fact("packets", "those of these connections and of new ones, from the next request of each on");
        return;
    }
    let traffic = "if traffic goes on as in the last minute";
    fact(
        "messages",
        &match outlook.expected_hits {
            hits if hits >= 1.0 => format!("{}, {traffic}", number::count(hits.round())),
            hits if hits > 0.0 => format!("less than one, {traffic}"),
            _ => "none is known of: nothing that it matches has passed in the last minute".to_owned(),
        },
    );
}

/// What has the same method, tool and server is one row, whichever way it goes.
fn hits(parts: &[ChaosExpectedHits]) -> Table {
    let mut rows: Vec<(&ChaosExpectedHits, Vec<String>, f64)> = Vec::new();
    for part in parts.iter().filter(|part| part.hits > 0.0) {
        let what = format!("{} {}", part.kind, part.direction.replace('_', " "));
        let about = |part: &ChaosExpectedHits| (part.method.clone(), part.tool.clone(), part.server.clone());
        match rows.iter_mut().find(|(row, ..)| about(row) == about(part)) {
            Some((_, all, hits)) => {
                *hits += part.hits;
                if !all.contains(&what) {
                    all.push(what);
                }
            }
            None => rows.push((part, vec![what], part.hits)),
        }
    }
    rows.sort_by(|(_, _, a), (_, _, b)| b.total_cmp(a));
    let mut table = Table::new([
        Column::number("messages"),
        Column::long("method"),
        Column::long("tool"),
        Column::long("what"),
        Column::long("server"),
    ]);
    let unknown = || UNKNOWN.to_owned();
    for (part, mut what, hits) in rows {
        // Requests before their answers.
        what.sort();
        table.row(vec![
            number::count((hits * 10.0).round() / 10.0).into(),
            part.method.clone().unwrap_or_else(unknown).into(),
            part.tool.clone().unwrap_or_else(unknown).into(),
            what.join(", ").into(),
            part.server.as_str().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use mcpscope_grpc::proto::ChaosProcessOutlook;

    use super::super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    fn outlook() -> ChaosOutlook {
        let hits = |tool: Option<&str>, is_answer, hits| ChaosExpectedHits {
            server: "weather".into(),
            method: Some("tools/call".into()),
            tool: tool.map(Into::into),
            hits,
            direction: if is_answer { "to_client" } else { "to_server" }.into(),
            kind: if is_answer { "response" } else { "request" }.into(),
        };
        ChaosOutlook {
            scenario: "latency_injection".into(),
            duration: 8000,
            targets: vec!["weather".into()],
            connections: 3,
            connection_share: 0.34,
            packets: None,
            expected_hits: 82.3,
            hits: vec![
                hits(Some("forecast"), false, 40.0),
                hits(Some("forecast"), true, 39.0),
                hits(None, false, 2.31),
                hits(Some("forecast"), false, 1.0),
                hits(Some("never"), false, 0.0),
            ],
            recovery_time: 1000,
            steady_state: vec!["error_rate < 0.05".into()],
            crash: None,
            resource: None,
        }
    }

    fn other(scenario: &str) -> ChaosOutlook {
        let targets = vec!["weather".to_owned(), "files".to_owned()];
        ChaosOutlook { scenario: scenario.into(), targets, connections: 0, hits: Vec::new(), ..outlook() }
    }

    #[test]
    fn packets_are_of_connections_and_no_messages() {
        let netem = ChaosOutlook { packets: Some(true), expected_hits: 2.0, hits: Vec::new(), ..outlook() };
        let text = planned(&netem, "mcpscope chaos start latency_injection", 1_800_000_000_000, None);
        assert!(
            text.contains("3 open now, 34 % of them at most") && text.contains("those of these connections"),
            "{text}"
        );
        assert!(!text.contains("messages"), "{text}");
    }

    fn crash(signal: &str, rate: Option<f64>, most: u64) -> ChaosOutlook {
        let process = |target: &str, pid, restarted_after| ChaosProcessOutlook {
            target: target.into(),
            components: vec!["tools".into()],
            pid: Some(pid),
            program: Some("node".into()),
            group: Some(2),
            restarted_after: Some(restarted_after),
        };
        let processes = vec![process("weather", 4711, 200), process("files", 4712, 200)];
        let crash = ChaosCrashOutlook { signal: signal.into(), rate, most, processes };
        ChaosOutlook { crash: Some(crash), ..other("process_crash") }
    }

    #[track_caller]
    fn check(outlook: &ChaosOutlook, expected: &Expect) {
        let shown = planned(outlook, "mcpscope chaos start it", 1_764_000_000_123, None);
        expected.assert_eq(&anstream::adapter::strip_str(&shown).to_string());
    }

    #[test]
    fn a_plan_says_what_would_be_hit() {
        check(
            &outlook(),
            &expect![[r#"
            latency_injection would be started
            where        weather
            for          8.00 s; started now, it ends at 16:00:08.123 UTC
            connections  3 open now, 34 % of them at most
            messages     82, if traffic goes on as in the last minute
            well again   within 1.00 s of the end: error_rate < 0.05

            messages  method      tool      what                                   server
                  80  tools/call  forecast  request to server, response to client  weather
                2.30  tools/call  –         request to server                      weather

            nothing was started; `mcpscope chaos start it` does it
        "#]],
        );
    }

    #[test]
    fn a_plan_says_who_would_crash_and_what_follows() {
        check(
            &crash("kill", None, 1),
            &expect![[r#"
            process_crash would be started
            where       weather, files
            for         8.00 s; started now, it ends at 16:00:08.123 UTC
            does        SIGKILL to one of the 2 processes below with its group, once, at the beginning
            then        it is started again after 200 ms
            back        within 1.00 s of its end: it can be called, and a call ends well
            well again  within 1.00 s of the end: error_rate < 0.05

            process  program  in its group  server   carries
               4711  node                2  weather  tools
               4712  node                2  files    tools

            nothing was started; `mcpscope chaos start it` does it
        "#]],
        );
        check(
            &crash("stop", Some(0.2), 12),
            &expect![[r#"
            process_crash would be started
            where       weather, files
            for         8.00 s; started now, it ends at 16:00:08.123 UTC
            does        SIGSTOP to each process below with its group, with a chance of 20 % every second, at most 12 times
            then        it goes on at the end
            well again  within 1.00 s of the end: error_rate < 0.05

            process  program  in its group  server   carries
               4711  node                2  weather  tools
               4712  node                2  files    tools

            nothing was started; `mcpscope chaos start it` does it
        "#]],
        );
    }

    #[test]
    fn a_plan_says_what_would_be_taken_and_what_there_is_no_room_for() {
        let memory = ChaosResourceOutlook {
            requested: 268_435_456.0,
            expected: 104_857_600.0,
            unit: ChaosUnit::Bytes.into(),
            cores: None,
            limit: Some("of 512.0 MiB, which is the machine's memory, 176.8 MiB is free".into()),
            cgroup: Some("/sys/fs/cgroup/weather".into()),
        };
        check(
            &ChaosOutlook { resource: Some(memory), ..other("memory_pressure") },
            &expect![[r#"
            memory_pressure would be started
            where                 weather, files
            for                   8.00 s; started now, it ends at 16:00:08.123 UTC
            takes                 100 MiB of memory instead of 256 MiB: of 512.0 MiB, which is the machine's memory, 176.8 MiB is free
            in the control group  /sys/fs/cgroup/weather
            by                    a helper process, which is gone by then, and at once if the experiment is stopped
            well again            within 1.00 s of the end: error_rate < 0.05

            nothing was started; `mcpscope chaos start it` does it
        "#]],
        );
        let cpu = ChaosResourceOutlook {
            requested: 0.8,
            expected: 0.8,
            unit: ChaosUnit::Share.into(),
            cores: Some(2),
            limit: None,
            cgroup: None,
        };
        let outlook = ChaosOutlook { resource: Some(cpu), steady_state: Vec::new(), ..other("cpu_overload") };
        check(
            &outlook,
            &expect![[r#"
            cpu_overload would be started
            where       weather, files
            for         8.00 s; started now, it ends at 16:00:08.123 UTC
            takes       80 % of each of 2 cores
            by          a helper process, which is gone by then, and at once if the experiment is stopped
            well again  not judged

            nothing was started; `mcpscope chaos start it` does it
        "#]],
        );
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let text = || HOSTILE.to_owned();
        let hits = ChaosExpectedHits {
            server: text(),
            method: Some(text()),
            tool: Some(text()),
            hits: 1.0,
            direction: text(),
            kind: text(),
        };
        let process = ChaosProcessOutlook {
            target: text(),
            components: vec![text()],
            program: Some(text()),
            ..ChaosProcessOutlook::default()
        };
        let crash = ChaosCrashOutlook { signal: text(), processes: vec![process], ..ChaosCrashOutlook::default() };
        let resource =
            ChaosResourceOutlook { limit: Some(text()), cgroup: Some(text()), ..ChaosResourceOutlook::default() };
        let base = || ChaosOutlook {
            scenario: text(),
            targets: vec![text()],
            steady_state: vec![text()],
            hits: vec![hits.clone()],
            ..outlook()
        };
        assert_harmless(&planned(&base(), "", 0, None));
        assert_harmless(&planned(&ChaosOutlook { crash: Some(crash), ..base() }, "", 0, None));
        assert_harmless(&planned(&ChaosOutlook { resource: Some(resource), ..base() }, "", 0, None));
    }
}
