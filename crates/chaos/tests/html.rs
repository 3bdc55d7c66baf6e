//! The page of a report: what is in it, and that nothing from users is anything but text in it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod common;

use std::collections::BTreeSet;

use common::{SECOND, World, request};
use mcpscope_chaos::{OutageReport, Parameters, Plan, Report, Sample, Status, Touched};
use mcpscope_core::Transport;

const TAGS: &[&str] = &[
    "bdi",
    "body",
    "b",
    "code",
    "dd",
    "div",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "footer",
    "h1",
    "h2",
    "h3",
    "head",
    "header",
    "html",
    "line",
    "main",
    "meta",
    "p",
    "path",
    "pre",
    "rect",
    "section",
    "small",
    "span",
    "style",
    "svg",
    "table",
    "tbody",
    "td",
    "text",
    "th",
    "thead",
    "title",
    "tr",
];

const ATTRIBUTES: &[&str] = &[
    "aria-hidden",
    "aria-label",
    "charset",
    "class",
    "content",
    "d",
    "height",
    "http-equiv",
    "lang",
    "name",
    "overflow",
    "preserveAspectRatio",
    "role",
    "scope",
    "text-anchor",
    "viewBox",
    "width",
    "x",
    "x1",
    "x2",
    "y",
    "y1",
    "y2",
];

/// The page's text, without its markup: every tag is one that we write, has only attributes that we write, and is closed.
fn text_of(html: &str) -> String {
    let (tags, attributes) = (BTreeSet::from_iter(TAGS), BTreeSet::from_iter(ATTRIBUTES));
    let body = html.strip_prefix("<!doctype html>\n").unwrap();
    let (mut open, mut text) = (Vec::new(), String::new());
    for (at, piece) in body.split('<').enumerate().skip(1) {
        let (tag, after) = piece.split_once('>').unwrap_or_else(|| panic!("{at}: {piece}"));
        if tag != "style" {
            text += after;
            assert!(!after.contains('>'), "{after}");
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let (tag, is_closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(tags.contains(&name), "<{tag}>");
        while !rest.is_empty() {
            let (attribute, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("<{tag}>"));
            assert!(attributes.contains(&attribute), "{attribute} in <{tag}>");
            rest = value.split_once('"').unwrap().1.trim_start();
        }
        if !is_closed && name != "meta" {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
    text
}

/// An experiment of 4 s that held, with 300 calls of 5 ms a second, of which it touched a third.
fn report() -> Report {
    let mut world = World::new(Plan::default());
    let quiet = Sample { calls: 300, p50_ms: Some(5.0), p95_ms: Some(8.0), p99_ms: Some(9.5), ..Sample::default() };
    let touched = Touched { calls: 100, errors: 25, p50_ms: Some(305.0), p95_ms: Some(400.0), p99_ms: Some(421.0) };
    *world.watched.0.lock().unwrap() = quiet;
    let mut client = world.client();
    let id = world.start("latency_injection", &["delay=300ms", "duration=4s", "tool=echo"]);
    let during = Sample { calls: 200, touched: Some(touched), ..quiet };
    *world.watched.0.lock().unwrap() = during;
    for _ in 0..7 {
        let hit = client.request("echo", world.now).remove(0);
        world.injector.acted(&hit);
    }
    world.pass(4 * SECOND);
    *world.watched.0.lock().unwrap() = quiet;
    world.pass(10 * SECOND);
    let mut report = world.controller.report(id.0, world.now).unwrap();
    // What is watched here knows nothing of the past, and this is asked for in the end.
    report.during.as_mut().unwrap().sample = during;
    report
}

#[test]
fn the_facts_are_there_in_the_order_in_which_one_asks() {
    let text = text_of(&report().to_html());
    let mut rest = text.as_str();
    for expected in [
        "Chaos experiment #1",
        "latency_injection",
        "2027-01-15 08:00:00 UTC, for 4s on demo, started by a person",
        "It held: all was well from the end of the fault on (limit 1s).",
        "What was done",
        "1 of 1",
        "Hits7of 7 that matched",
        "Carried out7all that were decided",
        "100 %100 % asked for",
        "delay300ms",
        "toolecho",
        "error_rate &lt; 0.05",
        "What happened",
        "calls that the fault touched",
        "600 ms",
        "\u{2212}10s to \u{2212}9s: 300 calls, p50 5 ms, p95 8 ms, p99 9.50 ms, 0 errors",
        "0s to 1s: 200 calls, p50 5 ms, p95 8 ms, p99 9.50 ms, 0 errors; touched by the fault: 100 calls, p50 305 ms",
        "Calls per second",
        "Before, 10sDuring, 4sTouched by the faultAfter",
        "Error rate0 %0 %25 %0 %",
        "p505 ms5 ms305 ms5 ms",
        "p999.50 ms9.50 ms421 ms9.50 ms",
        "Recovery",
        "Time to recover0sfrom the end of the fault",
        "What was left over",
        "Nothing was left over.",
        "How to do it again",
        "mcpscope chaos replay 1",
    ] {
        let at = rest.find(expected).unwrap_or_else(|| panic!("{expected} is not in {rest}"));
        rest = &rest[at + expected.len()..];
    }
    assert!(!text.contains("Repeated ids") && !text.contains("Healthy"), "what nobody looked at is not in it");
}

#[test]
fn the_fault_is_drawn_where_it_was() {
    let report = report();
    let html = report.to_html();
    let last = report.samples.last().unwrap().at as f64;
    assert_eq!((report.samples.len(), last), (17, 7000.0));
    let from = 10_000.0 / 17_000.0 * 100.0;
    let width = 4_000.0 / 17_000.0 * 100.0;
    let span = format!("<rect class=\"fault\" x=\"{from:.3}%\" width=\"{width:.3}%\"");
    assert_eq!(html.matches(&span).count(), 2, "in both charts");
    // p50 of the calls that it touched, in the middle of its first and to that of its last second, at 305 of 600 ms.
    let y = (1.0 - 305.0 / 600.0) * 1000.0;
    let path = |second: f64| format!("{:.1} {y:.1}", (10.0 + second) / 17.0 * 1000.0);
    let expected = format!("<path class=\"p50 touched\" d=\"M{}h0L{}", path(0.5), path(1.5));
    assert!(html.contains(&expected), "{expected}");
    let end = format!("L{}\"", path(3.5));
    assert!(html.contains(&end), "{end}");
}

#[test]
fn nothing_in_it_comes_from_elsewhere() {
    let html = report().to_html();
    for outside in ["http:", "https:", "//", "url(", "@import", "src=", "href=", "<script", "<link", "<img"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains(&format!("content=\"{}\"", Report::CONTENT_SECURITY_POLICY)));
    assert!(html.contains("prefers-color-scheme: dark"));
}

const HOSTILE: [&str; 6] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</style></title></svg><svg onload=alert(1)>",
    "&lt;b&gt; &amp; <!-- ]]> -->",
    "a\u{202e}gnp.exe\u{0}\u{1b}[31m\n",
];

#[test]
fn what_comes_from_users_is_text() {
    for hostile in HOSTILE {
        let mut world = World::new(Plan::default());
        let _endpoint = world.injector.endpoint(hostile, Transport::Http, false);
        let tool = format!("tool={hostile}");
        let id = world.controller.start(&request("lost_request", &[&tool, "duration=1s"]), world.now).unwrap();
        world.pass(30 * SECOND);
        let mut report = world.controller.report(id.0, world.now).unwrap();
        let text = text_of(&report.to_html());
        let plain: String = hostile.chars().take_while(|letter| letter.is_alphanumeric()).collect();
        assert!(text.contains(&plain) && !text.contains('\u{202e}') && !text.contains('\u{0}'));
        // A journal may have been written by anybody.
        let all = || hostile.to_owned();
        (report.scenario, report.error, report.leak, report.guard) = (all(), Some(all()), Some(all()), Some(all()));
        (report.replay, report.steady_state, report.targets) = (Some(all()), vec![all()], vec![all(); 20]);
        report.parameters = Parameters::new().with(hostile, hostile).with("list", serde_json::json!([hostile]));
        for status in [Status::Completed, Status::Failed, Status::Aborted, Status::NotStarted, Status::Running] {
            report.status = status;
            text_of(&report.to_html());
        }
    }
}

#[test]
fn a_report_of_which_little_is_known_is_a_page_too() {
    let mut report = report();
    (report.before, report.during, report.after) = (None, None, None);
    report.samples.clear();
    assert!(text_of(&report.to_html()).contains("Nobody watched the system, so nothing is known."));
    report.replay = None;
    assert!(text_of(&report.to_html()).contains("it cannot be replayed"));
    report.leak = Some("helper 42 is still there".into());
    let leak = "Something was left over: helper 42 is still there.";
    assert!(text_of(&report.to_html()).contains(leak));
    // Figures that make no sense are drawn nowhere, not everywhere.
    let mut odd = self::report();
    odd.samples[3].sample.p99_ms = Some(f64::INFINITY);
    odd.samples[4].sample.p99_ms = Some(f64::NAN);
    (odd.samples[5].at, odd.samples[6].at, odd.end_time) = (i64::MIN, i64::MAX, 0);
    let html = odd.to_html();
    assert!(!html.contains("NaN") && !html.contains("inf\"") && !html.contains("inf "));
    text_of(&html);
}

#[test]
fn how_long_processes_were_away_is_there_the_longest_first() {
    let outage = |target: &str, at, first_good_call_after| OutageReport {
        target: target.into(),
        at,
        restarted_after: Some(210),
        ready_after: None,
        first_good_call_after,
    };
    let outages = vec![outage("one", 2, Some(1302)), outage("<two>", 4000, None), outage("three", 9, Some(2500))];
    let text = text_of(&Report { outages, ..report() }.to_html());
    let head = "Ended atRestarted afterReady afterFirst good call after";
    let rows = "&lt;two&gt;4 s210 ms\u{2013}\u{2013}three9 ms210 ms\u{2013}2.50 sone2 ms210 ms\u{2013}1.30 s";
    assert!(text.contains(&format!("Processes that were ended{head}{rows}From the beginning")), "{text}");
    let many = (0..30).map(|at| outage("one", at, Some(at))).collect();
    assert!(text_of(&Report { outages: many, ..report() }.to_html()).contains(" 10 more were not longer."));
    assert!(!report().to_html().contains("Processes that were ended"));
}
