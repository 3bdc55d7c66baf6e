//! `mcpscope traces`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mcpscope_grpc::proto::{ListTracesRequest, Trace, TraceFilter, TraceStatus, WatchTracesRequest};

use super::End;
use super::args::TracesArgs;
use super::number;
use super::peer::connect;
use super::screen::Screen;
use super::text::{self, Cell, Column, DIM, Table};
use crate::failure::say;

pub(super) async fn traces(args: &TracesArgs) -> Result<(), End> {
    let mut screen = Screen::new(args.asked.output);
    let filter = filter(args, SystemTime::now());
    let (mut client, peer) = connect(&args.asked).await?;
    let mut table = table(args.follow);
    if args.follow {
        let opened = peer.answer(client.traces.watch_traces(WatchTracesRequest { filter: Some(filter) })).await;
        let stream = opened.map_err(|status| peer.failure(&status))?;
        return peer
            .follow(stream, async |new| {
                if new.missed > 0 {
                    say(format_args!("mcpscope: {} traces missed: they came faster than they are read", new.missed));
                }
                Ok(screen.show_each(&new.traces, |traces, width| render(&mut table, traces, width))?)
            })
            .await;
    }
    let answer = peer.answer(client.traces.list_traces(ListTracesRequest { filter: Some(filter) })).await;
    let traces = answer.map_err(|status| peer.failure(&status))?.traces;
    Ok(screen.show(&traces, |traces, width| match traces.as_slice() {
        [] => "no traces\n".to_owned(),
        traces => render(&mut table, traces, width),
    })?)
}

fn filter(args: &TracesArgs, now: SystemTime) -> TraceFilter {
    let time = |ago: Duration| {
        let time = now.checked_sub(ago).and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
    };
    TraceFilter {
        operation: args.operation.clone(),
        method: args.method.clone(),
        status: args.status.map_or(TraceStatus::Unspecified, Into::into).into(),
        tool: args.tool.clone(),
        server: args.server.clone(),
        min_duration_ms: args.min_duration.map(|duration| duration.as_secs_f64() * 1e3),
        since: args.since.map(time),
        until: args.until.map(time),
        limit: args.limit,
        session: args.session.clone(),
        text: args.text.clone(),
        injected: args.injected,
    }
}

/// Rows that come one after the other line up only if there is room from the beginning.
fn table(follow: bool) -> Table {
    let room = |column: Column, width| if follow { column.at_least(width) } else { column };
    Table::new([
        Column::text("time (UTC)"),
        room(Column::text("status"), 9),
        room(Column::number("duration"), 8),
        room(Column::long("operation"), 24),
        room(Column::long("server"), 12),
        Column::text("id"),
    ])
}

fn render(table: &mut Table, traces: &[Trace], width: Option<usize>) -> String {
    for trace in traces {
        let mark = if trace.injected { " (injected)" } else { "" };
        table.row(vec![
            Cell::new(&number::clock(trace.timestamp), DIM),
            text::outcome(trace.status()),
            number::duration(trace.duration_ms).into(),
            format!("{}{mark}", trace.operation).into(),
            trace.server.as_str().into(),
            trace.id.as_str().into(),
        ]);
    }
    table.take(width)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::expect;

    use super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    fn trace(operation: &str, status: TraceStatus, duration_ms: f64, injected: bool) -> Trace {
        Trace {
            id: "0af7651916cd43dd8448eb211c80319c".into(),
            timestamp: 1_764_000_000_123,
            operation: operation.into(),
            duration_ms,
            status: status.into(),
            server: "demo".into(),
            injected,
            ..Trace::default()
        }
    }

    fn shown(table: &mut Table, traces: &[Trace], width: Option<usize>) -> String {
        anstream::adapter::strip_str(&render(table, traces, width)).to_string()
    }

    #[test]
    fn traces_as_text() {
        let traces = [
            trace("tools/call echo", TraceStatus::Ok, 0.321, false),
            trace("tools/call \x1b[31mred", TraceStatus::Error, 1200.0, true),
            trace("a name that is far too long to be shown in one line", TraceStatus::Timeout, 300_000.0, false),
        ];
        expect![[r#"
            time (UTC)    status    duration  operation                                            server  id
            16:00:00.123  ok          321 µs  tools/call echo                                      demo    0af7651916cd43dd8448eb211c80319c
            16:00:00.123  error       1.20 s  tools/call \u{1b}[31mred (injected)                  demo    0af7651916cd43dd8448eb211c80319c
            16:00:00.123  timeout  5 min 0 s  a name that is far too long to be shown in one line  demo    0af7651916cd43dd8448eb211c80319c
        "#]].assert_eq(&shown(&mut table(false), &traces, None));
        // The id stays whole, to be copied.
        expect![[r#"
            time (UTC)    status    duration  operation       server  id
            16:00:00.123  ok          321 µs  tools/call ec…  demo    0af7651916cd43dd8448eb211c80319c
            16:00:00.123  error       1.20 s  tools/call \u…  demo    0af7651916cd43dd8448eb211c80319c
            16:00:00.123  timeout  5 min 0 s  a name that i…  demo    0af7651916cd43dd8448eb211c80319c
        "#]]
        .assert_eq(&shown(&mut table(false), &traces, Some(90)));
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let mut hostile = trace(HOSTILE, TraceStatus::Ok, 1.0, false);
        (hostile.id, hostile.server) = (HOSTILE.into(), HOSTILE.into());
        assert_harmless(&render(&mut table(false), &[hostile], None));
    }

    #[test]
    fn followed_traces_line_up() {
        let mut table = table(true);
        let mut text = shown(&mut table, &[trace("ping", TraceStatus::Ok, 0.3, false)], None);
        text += &shown(&mut table, &[], None);
        text += &shown(&mut table, &[trace("tools/call echo", TraceStatus::Cancelled, 123.0, false)], None);
        expect![[r#"
            time (UTC)    status     duration  operation                 server        id
            16:00:00.123  ok           300 µs  ping                      demo          0af7651916cd43dd8448eb211c80319c
            16:00:00.123  cancelled    123 ms  tools/call echo           demo          0af7651916cd43dd8448eb211c80319c
        "#]]
        .assert_eq(&text);
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TracesArgs,
    }

    #[test]
    fn options_become_the_filter() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let asked = |line: &str| filter(&Line::parse_from(line.split(' ')).args, now);
        assert_eq!(asked("traces"), TraceFilter::default());
        let all = "traces --operation o --method m --tool t --server s --status timeout --min-duration 1500us \
                   --since 10m --until 5s --limit 5 --session 1 --text ech --injected";
        assert_eq!(
            asked(all),
            TraceFilter {
                operation: Some("o".into()),
                method: Some("m".into()),
                status: TraceStatus::Timeout.into(),
                tool: Some("t".into()),
                server: Some("s".into()),
                min_duration_ms: Some(1.5),
                since: Some(400_000),
                until: Some(995_000),
                limit: Some(5),
                session: Some("1".into()),
                text: Some("ech".into()),
                injected: Some(true),
            }
        );
        assert_eq!(asked("traces --since 365d").since, Some(0), "before the epoch is the epoch");
        for (line, injected) in [("--injected true", true), ("--injected false", false), ("--injected=false", false)] {
            assert_eq!(asked(&format!("traces {line}")).injected, Some(injected), "{line}");
        }
        assert_eq!(asked("traces --injected --limit 1").injected, Some(true));
        for bad in ["traces --injected maybe", "traces --until soon", "traces --until 5m --follow"] {
            assert!(Line::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
        for bad in ["traces --limit 0", "traces --status bad", "traces --since soon", "traces --addr a:1 --name b"] {
            assert!(Line::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
