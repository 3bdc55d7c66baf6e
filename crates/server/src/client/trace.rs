//! `mcpscope trace ID`: one trace, with its spans as a waterfall.

use std::collections::HashMap;

use anyhow::anyhow;
use mcpscope_grpc::proto::{GetTraceRequest, Span, SpanKind, Trace, TraceStatus};
use mcpscope_grpc::tonic::Code;
use unicode_width::UnicodeWidthStr as _;

use super::End;
use super::args::TraceArgs;
use super::health::section;
use super::number;
use super::peer::connect;
use super::screen::Screen;
use super::text::{self, BAD, BOLD, Cell, DIM, GOOD, Table, clean, cut, styled};
use crate::failure::Failure;

/// Where nothing says how wide it is.
const DEFAULT_WIDTH: usize = 80;
/// Deeper spans are indented no further.
const MAX_INDENT: usize = 12;
/// The bars get at least this much of a line.
const MIN_BARS: usize = 20;
/// Where the time went, by the detail's name.
const PARTS: [(&str, &str); 3] =
    [("proxy_us", "in the proxy"), ("queue_us", "in the queue"), ("server_us", "waiting for the server")];

pub(super) async fn trace(args: &TraceArgs) -> Result<(), End> {
    let mut screen = Screen::new(args.asked.output);
    let (mut client, peer) = connect(&args.asked).await?;
    let request = GetTraceRequest { id: args.id.to_ascii_lowercase() };
    let answer = peer.answer(client.traces.get_trace(request)).await;
    let trace = answer.map_err(|status| match status.code() {
        Code::NotFound => Failure::usage(anyhow!(
            "there is no trace {} (any more); `mcpscope traces` lists those that there are",
            clean(&args.id)
        )),
        _ => peer.failure(&status),
    })?;
    Ok(screen.show(&trace.trace.unwrap_or_default(), render)?)
}

fn render(trace: &Trace, width: Option<usize>) -> String {
    let mut out = format!(
        "{}   {}   {}{}\n",
        styled(&clean(&trace.operation), BOLD),
        text::outcome(trace.status()),
        number::duration(trace.duration_ms),
        if trace.injected { "   injected" } else { "" }
    );
    let mut facts = Table::pairs();
    facts.row(vec![Cell::new("id", DIM), trace.id.as_str().into()]);
    facts.row(vec![Cell::new("began", DIM), format!("{} UTC", number::moment(trace.timestamp)).into()]);
    facts.row(vec![Cell::new("server", DIM), trace.server.as_str().into()]);
    facts.row(vec![Cell::new("method", DIM), trace.method.as_str().into()]);
    if let Some(tool) = &trace.tool {
        facts.row(vec![Cell::new("tool", DIM), tool.as_str().into()]);
    }
    if let Some(session) = &trace.session {
        facts.row(vec![Cell::new("session", DIM), session.as_str().into()]);
    }
    let is_part = |name: &str| PARTS.iter().any(|(part, _)| *part == name);
    let said = |name: &str, value: &str| is_part(name) || (name == "method" && value == trace.method);
    for (name, value) in trace.details.iter().filter(|(name, value)| !said(name, value)) {
        facts.row(vec![Cell::new(name, DIM), value.as_str().into()]);
    }
    for (name, title) in PARTS {
        if let Some(ms) = trace.details.get(name).and_then(|us| us.parse::<f64>().ok()).map(|us| us / 1e3) {
            let share = number::percent(ms / trace.duration_ms);
            facts.row(vec![Cell::new(title, DIM), format!("{} ({share})", number::duration(ms)).into()]);
        }
    }
    out.push_str(&section(facts, width));
    out.push_str(&waterfall(&trace.spans, width.unwrap_or(DEFAULT_WIDTH)));
    for span in &trace.spans {
        out.push_str(&contents(span, width));
    }
    out
}

/// A line for each span, with a bar where it was in the time of the whole; empty without spans.
fn waterfall(spans: &[Span], width: usize) -> String {
    if spans.is_empty() {
        return String::new();
    }
    let end = spans.iter().map(|span| span.start_us.saturating_add(span.duration_us)).max().unwrap_or(0).max(1);
    let depths = depths(spans);
    let names: Vec<String> =
        spans.iter().zip(depths).map(|(span, depth)| format!("{:1$}{2}", "", depth * 2, clean(&span.name))).collect();
    let times: Vec<String> = spans.iter().map(|span| number::duration(span.duration_us as f64 / 1e3)).collect();
    let widest = |texts: &[String]| texts.iter().map(|text| text.width()).max().unwrap_or(0);
    let time_width = widest(&times);
    let kind_width = spans.iter().map(|span| kind(span).len()).max().unwrap_or(0);
    // Two spaces between the parts.
    let room = width.saturating_sub(kind_width + time_width + 6);
    let name_width = widest(&names).min(room.saturating_sub(MIN_BARS).max(MIN_BARS));
    let bars = room.saturating_sub(name_width).max(MIN_BARS);
    let mut out = String::from("\n");
    for ((span, name), time) in spans.iter().zip(&names).zip(&times) {
        let name = cut(name, name_width);
        let (offset, length) = bar(span, end, bars);
        let style = match span.status() {
            TraceStatus::Ok => GOOD,
            TraceStatus::Error | TraceStatus::Timeout => BAD,
            TraceStatus::Cancelled | TraceStatus::Unspecified => DIM,
        };
        out.push_str(&format!(
            "{name}{:padding$}  {}{:kind_padding$}  {:time_padding$}{time}  {:offset$}{}\n",
            "",
            styled(kind(span), DIM),
            "",
            "",
            "",
            styled(&"█".repeat(length), style),
            padding = name_width - name.width(),
            kind_padding = kind_width - kind(span).len(),
            time_padding = time_width - time.width(),
        ));
    }
    out
}

/// How deep each span lies under the root. A parent is known if it came before, as roots do; so no circle is.
fn depths(spans: &[Span]) -> Vec<usize> {
    let mut depths = HashMap::<&str, usize>::new();
    spans
        .iter()
        .map(|span| {
            let parent = span.parent.as_deref().and_then(|parent| depths.get(parent));
            let depth = parent.map_or(0, |depth| (depth + 1).min(MAX_INDENT));
            depths.insert(&span.id, depth);
            depth
        })
        .collect()
}

/// Where a span's bar begins and how long it is, of `width` columns that stand for `end_us`. Something is always seen.
fn bar(span: &Span, end_us: u64, width: usize) -> (usize, usize) {
    let column = |at: u64| usize::try_from(u128::from(at) * width as u128 / u128::from(end_us)).unwrap_or(width);
    let offset = column(span.start_us).min(width.saturating_sub(1));
    let length = column(span.start_us.saturating_add(span.duration_us)).saturating_sub(offset).max(1);
    (offset, length)
}

/// What is in a span, after its name; empty without anything.
fn contents(span: &Span, width: Option<usize>) -> String {
    let mut rows = Table::pairs();
    if let Some(message) = &span.message {
        rows.row(vec![Cell::new("message", DIM), message.as_str().into()]);
    }
    for (name, value) in &span.attributes {
        rows.row(vec![Cell::new(name, DIM), value.as_str().into()]);
    }
    for event in &span.events {
        let at = format!("+{}", number::duration(event.at_us as f64 / 1e3));
        let attributes: String = event.attributes.iter().map(|(name, value)| format!("  {name} {value}")).collect();
        rows.row(vec![Cell::new(&at, DIM), format!("{}{attributes}", event.name).into()]);
    }
    if span.dropped_events > 0 {
        rows.row(vec![Cell::new("", DIM), format!("{} further events found no place", span.dropped_events).into()]);
    }
    if rows.is_empty() {
        return String::new();
    }
    let heading = styled(&format!("{} {}", kind(span), clean(&span.id)), DIM);
    format!("\n{}  {heading}\n{}", styled(&clean(&span.name), BOLD), rows.take(width))
}

fn kind(span: &Span) -> &'static str {
    match span.kind() {
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Internal => "internal",
        SpanKind::Unspecified => "",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use mcpscope_grpc::proto::SpanEvent;
    use proptest::prelude::*;

    use super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    fn span(id: &str, parent: Option<&str>, name: &str, start_us: u64, duration_us: u64) -> Span {
        Span {
            id: id.into(),
            parent: parent.map(Into::into),
            name: name.into(),
            kind: SpanKind::Server.into(),
            start_us,
            duration_us,
            status: TraceStatus::Ok.into(),
            ..Span::default()
        }
    }

    fn example() -> Trace {
        let mut root = span("00f067aa0ba902b7", Some("caller"), "tools/call echo", 0, 10_000);
        root.attributes = [("mcp.method.name", "tools/call"), ("gen_ai.tool.name", "\x1b[31mecho")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        root.message = Some("it\nbroke".into());
        let attributes = [("progress", "0.5"), ("total", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        root.events = vec![
            SpanEvent { name: "notifications/progress".into(), at_us: 2_500, attributes: attributes.into() },
            SpanEvent { name: "notifications/cancelled".into(), at_us: 9_000, ..SpanEvent::default() },
        ];
        root.dropped_events = 3;
        let mut child = span("2", Some("00f067aa0ba902b7"), "upstream\x1b]0;", 2_000, 7_000);
        child.status = TraceStatus::Error.into();
        child.kind = SpanKind::Client.into();
        Trace {
            id: "0af7651916cd43dd8448eb211c80319c".into(),
            timestamp: 1_764_000_000_123,
            operation: "tools/call echo".into(),
            duration_ms: 10.0,
            status: TraceStatus::Error.into(),
            details: [
                ("error_message", "it\nbroke"),
                ("method", "tools/call"),
                ("proxy_us", "1500"),
                ("queue_us", "500"),
                ("request_bytes", "120"),
                ("server_us", "8000"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            server: "demo".into(),
            method: "tools/call".into(),
            tool: Some("echo".into()),
            session: Some("1".into()),
            injected: true,
            spans: vec![root, child, span("3", Some("2"), "parse", 9_999, 1)],
        }
    }

    #[test]
    fn a_trace_as_text() {
        expect![[r#"
            tools/call echo   error   10.0 ms   injected

            id                      0af7651916cd43dd8448eb211c80319c
            began                   2025-11-24 16:00:00.123 UTC
            server                  demo
            method                  tools/call
            tool                    echo
            session                 1
            error_message           it\nbroke
            request_bytes           120
            in the proxy            1.50 ms (15 %)
            in the queue            500 µs (5.0 %)
            waiting for the server  8.00 ms (80 %)

            tools/call echo      server  10.0 ms  ██████████████████████████████████████████
              upstream\u{1b}]0;  client  7.00 ms          █████████████████████████████
                parse            server  1.00 µs                                           █

            tools/call echo  server 00f067aa0ba902b7
            message           it\nbroke
            gen_ai.tool.name  \u{1b}[31mecho
            mcp.method.name   tools/call
            +2.50 ms          notifications/progress  progress 0.5  total 1
            +9.00 ms          notifications/cancelled
                              3 further events found no place
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&render(&example(), None)).to_string());
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let texts = || [(HOSTILE.to_owned(), HOSTILE.to_owned())].into();
        let mut root = span(HOSTILE, None, HOSTILE, 0, 1);
        root.attributes = texts();
        root.events = vec![SpanEvent { name: HOSTILE.into(), at_us: 0, attributes: texts() }];
        let hostile = || HOSTILE.to_owned();
        root.message = Some(hostile());
        let trace = Trace {
            id: hostile(),
            operation: hostile(),
            details: texts(),
            server: hostile(),
            method: hostile(),
            tool: Some(hostile()),
            session: Some(hostile()),
            spans: vec![root],
            ..Trace::default()
        };
        assert_harmless(&render(&trace, None));
    }

    #[test]
    fn a_circle_of_spans_has_an_end() {
        let spans = [span("a", Some("b"), "a", 0, 1), span("b", Some("a"), "b", 0, 1), span("b", Some("b"), "c", 0, 1)];
        assert_eq!(depths(&spans), [0, 1, 2]);
        let deep: Vec<_> =
            (0..100).map(|n: u32| span(&n.to_string(), Some(&n.wrapping_sub(1).to_string()), "x", 0, 1)).collect();
        assert_eq!(depths(&deep).last(), Some(&MAX_INDENT));
    }

    proptest! {
        #[test]
        fn whatever_the_times_the_bars_fit(
            times in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..5),
            width in 60usize..200,
        ) {
            let spans: Vec<_> = times.iter().map(|(start, duration)| span("x", None, "name", *start, *duration)).collect();
            let text = anstream::adapter::strip_str(&waterfall(&spans, width)).to_string();
            for line in text.lines() {
                prop_assert!(line.width() <= width, "{}: {line}", line.width());
                prop_assert!(line.is_empty() || line.contains('█'));
            }
        }
    }
}
