//! `mcpscope status`.

use std::collections::BTreeMap;

use mcpscope_grpc::proto::{
    ChaosServiceGetStatusRequest, ChaosStatus, Dashboard, GetHealthRequest, GetMetricRequest, GetSnapshotRequest,
    Health, MetricSeries, MetricWindow, WatchSnapshotsRequest,
};

use super::End;
use super::args::{Output, WatchArgs};
use super::health::{components, or_unknown, processes, section};
use super::number;
use super::peer::connect;
use super::percentile::{Percentile, percentile};
use super::screen::Screen;
use super::text::{self, BAD, Cell, Column, PLAIN, Table, UNKNOWN, WARNING};

const TOOL_CALLS: &str = "tool_call_duration_ms";
/// Length of a window unless it is configured otherwise, which nobody tells here.
const WINDOW_MS: u64 = 10_000;

pub(super) async fn status(args: &WatchArgs) -> Result<(), End> {
    let mut screen = Screen::new(args.asked.output);
    let (client, peer) = connect(&args.asked).await?;
    let (mut dashboards, mut metrics, mut health) = (client.dashboard, client.metrics, client.health);
    let mut chaos = client.chaos;
    // The dashboard is limited to the busiest series: without the rare ones, errors among them, a tool would look better
    // than it is. Where metrics are off, there are no tools to show.
    let mut tool_calls = async || -> Vec<MetricSeries> {
        if args.asked.output == Output::Json {
            return Vec::new();
        }
        let answer = peer.answer(metrics.get_metric(GetMetricRequest { name: TOOL_CALLS.to_owned() })).await;
        answer.ok().and_then(|answer| answer.metric).unwrap_or_default().series
    };
    if args.follow {
        let opened = peer.answer(dashboards.watch_snapshots(WatchSnapshotsRequest {})).await;
        let stream = opened.map_err(|status| peer.failure(&status))?;
        return peer
            .follow(stream, async |tick| {
                let dashboard = tick.dashboard.unwrap_or_default();
                let calls = tool_calls().await;
                Ok(screen.show(&dashboard, |dashboard, width| {
                    format!("{} UTC\n{}\n", number::clock(dashboard.timestamp), render(dashboard, &calls, width))
                })?)
            })
            .await;
    }
    let answer = peer.answer(dashboards.get_snapshot(GetSnapshotRequest {})).await;
    let mut dashboard = answer.map_err(|status| peer.failure(&status))?.dashboard.unwrap_or_default();
    let calls = tool_calls().await;
    if args.asked.output == Output::Text {
        // The tools are as of now; the rest may be some seconds old, and an instance that has just begun had no calls then.
        if let Ok(answer) = peer.answer(chaos.get_status(ChaosServiceGetStatusRequest {})).await {
            dashboard.chaos_status = answer.status;
        }
        let answer = peer.answer(health.get_health(GetHealthRequest {})).await;
        update(&mut dashboard, answer.map_err(|status| peer.failure(&status))?.health.unwrap_or_default());
    }
    Ok(screen.show(&dashboard, |dashboard, width| render(dashboard, &calls, width))?)
}

/// Puts what is known as of now in the place of what was.
fn update(dashboard: &mut Dashboard, health: Health) {
    dashboard.system_uptime = health.uptime;
    dashboard.processes.clone_from(&health.processes);
    dashboard.system_health = Some(health);
}

/// Open connections: as many as the component counts that is shown below, where it does.
fn connections(dashboard: &Dashboard) -> u64 {
    let transports = dashboard.system_health.as_ref().and_then(|health| health.components.get("transports"));
    transports.and_then(|transports| transports.count).unwrap_or(dashboard.active_connections)
}

fn render(dashboard: &Dashboard, calls: &[MetricSeries], width: Option<usize>) -> String {
    let memory = dashboard.memory_usage.map_or_else(|| UNKNOWN.to_owned(), number::bytes);
    let share = dashboard.memory_ratio.map(|ratio| format!(" ({})", number::percent(ratio))).unwrap_or_default();
    let health = dashboard.system_health.as_ref();
    let mut out = format!(
        "{}   up {}   memory {memory}{share}   CPU {}   connections {}\n",
        text::health(health.map(|health| health.overall()).unwrap_or_default()),
        number::span(dashboard.system_uptime),
        dashboard.cpu_usage.map_or_else(|| UNKNOWN.to_owned(), number::percent),
        connections(dashboard),
    );
    out.push_str(&dashboard.chaos_status.as_ref().map(chaos).unwrap_or_default());
    if let Some(health) = health {
        out.push_str(&components(health, width));
    }
    out.push_str(&processes(&dashboard.processes, width));
    let has_window = dashboard.system_uptime >= WINDOW_MS || calls.iter().any(|series| series.window.is_some());
    out.push_str(&tools(calls, has_window, width));
    out
}

/// A line where the traffic is disturbed, or nothing may be; else nothing.
fn chaos(status: &ChaosStatus) -> String {
    let names: Vec<_> = status
        .active_tests_details
        .iter()
        .map(|test| format!("{} (experiment {})", text::clean(&test.name), test.id))
        .collect();
    match status.stopped_by.as_deref().filter(|_| status.emergency_stop) {
        Some(by) => format!("{} by {}\n", text::styled("chaos: EMERGENCY STOP", BAD), text::clean(by)),
        None if names.is_empty() => String::new(),
        None => format!("{}{}\n", text::styled("chaos: ", WARNING), names.join(", ")),
    }
}

/// A section with a row for each tool of each server, the busiest first; empty without any.
/// Before the first window of calls, nothing is known of their rates.
fn tools(calls: &[MetricSeries], has_window: bool, width: Option<usize>) -> String {
    let mut by_tool = BTreeMap::<_, Vec<&MetricSeries>>::new();
    for series in calls {
        by_tool.entry((label(series, "tool"), label(series, "server"))).or_default().push(series);
    }
    let mut tools: Vec<_> = by_tool.into_iter().map(|(names, series)| (names, Tool::of(&series))).collect();
    // Stable: tools without a difference stay in the order of their names.
    tools.sort_by(|(_, a), (_, b)| b.rate.total_cmp(&a.rate));
    let mut table = Table::new([
        Column::long("tool"),
        Column::long("server"),
        Column::number("calls/s"),
        Column::number("errors"),
        Column::number("p50"),
        Column::number("p95"),
    ]);
    for ((name, server), tool) in tools {
        let errors = match tool.errors {
            Some(errors) => Cell::new(&number::percent(errors), if errors > 0.0 { BAD } else { PLAIN }),
            None => or_unknown(None, number::percent),
        };
        table.row(vec![
            name.into(),
            server.into(),
            or_unknown(has_window.then_some(tool.rate), number::count),
            errors,
            or_unknown(tool.p50, number::duration),
            or_unknown(tool.p95, number::duration),
        ]);
    }
    section(table, width)
}

/// The calls of one tool in the last window, whatever became of them.
struct Tool {
    rate: f64,
    /// The share of calls that the server failed; faults that we injected do not count against it.
    errors: Option<f64>,
    p50: Option<f64>,
    p95: Option<f64>,
}

impl Tool {
    fn of(series: &[&MetricSeries]) -> Self {
        let injected = |series: &&&MetricSeries| label(series, "injected") == "true";
        let failed = |series: &&&MetricSeries| matches!(label(series, "outcome"), "error" | "timeout");
        let real: Vec<&MetricSeries> = series.iter().filter(|series| !injected(series)).copied().collect();
        let calls = count(real.iter());
        let measured = if real.is_empty() { series } else { &real };
        let windows: Vec<&MetricWindow> = measured.iter().filter_map(|series| series.window.as_ref()).collect();
        Self {
            rate: series.iter().filter_map(|series| series.window.as_ref()).map(|window| window.rate).sum(),
            errors: (calls > 0).then(|| count(real.iter().filter(failed)) as f64 / calls as f64),
            p50: percentile(&windows, Percentile::P50),
            p95: percentile(&windows, Percentile::P95),
        }
    }
}

fn count<'a, 'b: 'a>(series: impl Iterator<Item = &'a &'b MetricSeries>) -> u64 {
    series.filter_map(|series| series.window.as_ref()).fold(0, |sum, window| sum.saturating_add(window.count))
}

fn label<'a>(series: &'a MetricSeries, name: &str) -> &'a str {
    series.labels.get(name).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use mcpscope_grpc::proto::{ChaosTest, ComponentHealth};

    use super::super::health::tests::example as example_health;
    use super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    fn calls(tool: &str, outcome: &str, injected: bool, count: u64) -> MetricSeries {
        let labels = [("server", "demo"), ("tool", tool), ("outcome", outcome), ("injected", &injected.to_string())];
        let [min, p50, p90, p95, p99, max] = [1.0, 5.0, 9.0, 9.5, 9.9, 10.0];
        let window =
            MetricWindow { count, rate: count as f64 / 10.0, min, p50, p90, p95, p99, max, ..MetricWindow::default() };
        MetricSeries {
            labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            value: 1.0,
            window: (count > 0).then_some(window),
        }
    }

    fn dashboard() -> Dashboard {
        let health = example_health();
        Dashboard {
            timestamp: health.timestamp,
            processes: health.processes.clone(),
            system_health: Some(health),
            active_connections: 12,
            system_uptime: 192_000,
            memory_usage: Some(24_536_678),
            memory_ratio: Some(0.012),
            cpu_usage: Some(0.031),
            ..Dashboard::default()
        }
    }

    #[test]
    fn status_as_text() {
        let series = vec![
            calls("echo", "ok", false, 90),
            calls("echo", "error", false, 4),
            calls("echo", "timeout", false, 1),
            calls("echo", "caller_error", false, 3),
            calls("echo", "cancelled", false, 2),
            calls("echo", "error", true, 20),
            calls("idle", "ok", false, 0),
            calls("\x1b[31mred", "ok", false, 10),
        ];
        expect![[r#"
            warning   up 3 min 12 s   memory 23.4 MiB (1.2 %)   CPU 3.1 %   connections 12

            component          state     message                  for    rate  count
            registry           healthy   Registry active   1 min 40 s  1.25/s
            sessions           warning   Active sessions  18 min 20 s              3
            up\u{1b}[2Jstream  critical  gone\nfor good          10 s

            process   pid    memory  of limit    CPU
            files    4711  64.0 MiB     6.2 %  1.2 %
            web        12         –         –    0 %

            tool           server  calls/s  errors      p50      p95
            echo           demo         12   5.0 %  5.00 ms  9.50 ms
            \u{1b}[31mred  demo          1     0 %  5.00 ms  9.50 ms
            idle           demo          0       –        –        –
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&render(&dashboard(), &series, None)).to_string());
    }

    #[test]
    fn that_the_traffic_is_disturbed_is_said() {
        let shown = |status: ChaosStatus| {
            let dashboard = Dashboard { chaos_status: Some(status), ..Dashboard::default() };
            let shown = anstream::adapter::strip_str(&render(&dashboard, &[], None)).to_string();
            shown.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let running = |emergency_stop| ChaosStatus {
            emergency_stop,
            stopped_by: Some("a\x1b person".into()),
            active_tests_details: vec![ChaosTest { id: 7, name: "hang".into(), ..ChaosTest::default() }],
            ..ChaosStatus::default()
        };
        assert_eq!(shown(running(false)), ["chaos: hang (experiment 7)"]);
        assert_eq!(shown(running(true)), [r"chaos: EMERGENCY STOP by a\u{1b} person"]);
        assert_eq!(shown(ChaosStatus::default()), [""; 0]);
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        assert_harmless(&render(&dashboard(), &[calls(HOSTILE, HOSTILE, false, 1)], None));
    }

    #[test]
    fn with_everything_off_there_is_one_line() {
        expect![[r#"
            –   up 0 s   memory –   CPU –   connections 0
        "#]]
        .assert_eq(&anstream::adapter::strip_str(&render(&Dashboard::default(), &[], Some(80))).to_string());
    }

    #[test]
    fn what_has_just_begun_does_not_contradict_itself() {
        let mut dashboard = Dashboard { active_connections: 7, ..dashboard() };
        let mut now = example_health();
        now.uptime = 3_500;
        now.components.insert("transports".into(), ComponentHealth { count: Some(2), ..ComponentHealth::default() });
        update(&mut dashboard, now);
        let shown =
            anstream::adapter::strip_str(&render(&dashboard, &[calls("echo", "ok", false, 0)], None)).to_string();
        let head = shown.lines().next().unwrap();
        assert!(head.contains("up 3 s ") && head.ends_with("connections 2"), "{head}");
        // The tool was called, and how often will be known at the end of the window.
        assert_eq!(
            shown.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["echo", "demo", "–", "–", "–", "–"]
        );
    }
}
