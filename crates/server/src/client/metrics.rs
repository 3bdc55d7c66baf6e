//! `mcpscope metrics`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use mcpscope_grpc::Client;
use mcpscope_grpc::proto::{GetMetricRequest, ListMetricsRequest, Metric, MetricSeries, MetricWindow};
use mcpscope_grpc::tonic::{Code, Status};

use super::End;
use super::args::MetricsArgs;
use super::health::or_unknown;
use super::number;
use super::peer::{Peer, connect};
use super::screen::Screen;
use super::text::{BOLD, Column, Table, clean, styled};
use crate::failure::Failure;

pub(super) async fn metrics(args: &MetricsArgs) -> Result<(), End> {
    let mut screen = Screen::new(args.asked.output);
    let (mut client, peer) = connect(&args.asked).await?;
    let Some(name) = &args.metric else {
        let answer = peer.answer(client.metrics.list_metrics(ListMetricsRequest {})).await;
        let metrics = answer.map_err(|status| peer.failure(&status))?.metrics.unwrap_or_default();
        return Ok(screen.show(&metrics, |metrics, width| render(&metrics.metrics, Zeros::Folded, width))?);
    };
    let answer = peer.answer(client.metrics.get_metric(GetMetricRequest { name: name.clone() })).await;
    let metric = match answer {
        Ok(answer) => answer.metric.unwrap_or_default(),
        Err(status) => return Err(not_there(name, &status, &mut client, &peer).await.into()),
    };
    let metrics = BTreeMap::from([(name.clone(), metric)]);
    Ok(screen.show(&metrics, |metrics, width| render(metrics, Zeros::Shown, width))?)
}

/// Why there is no such metric, and which ones there are.
async fn not_there(name: &str, status: &Status, client: &mut Client, peer: &Peer) -> Failure {
    if status.code() != Code::NotFound {
        return peer.failure(status);
    }
    let known = match peer.answer(client.metrics.list_metrics(ListMetricsRequest {})).await {
        Ok(answer) => answer.metrics.unwrap_or_default().metrics,
        Err(status) => return peer.failure(&status),
    };
    let known: Vec<_> = known.keys().map(|name| clean(name)).collect();
    Failure::usage(anyhow!("there is no metric {:?}; there are {}", clean(name), known.join(", ")))
}

/// What becomes of series that are at zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Shown,
    Folded,
}

fn render(metrics: &BTreeMap<String, Metric>, zeros: Zeros, width: Option<usize>) -> String {
    let blocks: Vec<_> = metrics.iter().map(|(name, metric)| block(name, metric, zeros, width)).collect();
    blocks.join("\n")
}

fn block(name: &str, metric: &Metric, zeros: Zeros, width: Option<usize>) -> String {
    let unit = match metric.unit.as_str() {
        unit if unit == "1" || unit == metric.kind => String::new(),
        unit => format!(", {}", clean(unit)),
    };
    let mut out = format!("{}  {}{unit}\n", styled(&clean(name), BOLD), clean(&metric.kind));
    let (zero, shown): (Vec<_>, Vec<_>) =
        metric.series.iter().partition(|series| zeros == Zeros::Folded && is_zero(series));
    out.push_str(&table(metric, &shown).take(width));
    match zero.len() {
        0 if shown.is_empty() => out.push_str("no series yet\n"),
        0 => {}
        1 => out.push_str("1 series at zero\n"),
        n => out.push_str(&format!("{n} series at zero\n")),
    }
    out
}

fn is_zero(series: &MetricSeries) -> bool {
    let recorded = |window: &MetricWindow| window.min != 0.0 || window.max != 0.0;
    series.value == 0.0 && !series.window.as_ref().is_some_and(recorded)
}

/// The labels that come first, the rest in the order of the alphabet.
const FIRST_LABELS: [&str; 3] = ["server", "component", "tool"];

/// What a window's column shows.
type Read = fn(&MetricWindow, &str) -> String;

/// The columns of the last window that say something about a metric of this kind.
fn window_columns(kind: &str) -> Vec<(&'static str, Read)> {
    const MIN: (&str, Read) = ("min", |window, unit| number::in_unit(window.min, unit));
    const AVG: (&str, Read) = ("avg", |window, unit| number::in_unit(window.avg, unit));
    const MAX: (&str, Read) = ("max", |window, unit| number::in_unit(window.max, unit));
    const P50: (&str, Read) = ("p50", |window, unit| number::in_unit(window.p50, unit));
    const P95: (&str, Read) = ("p95", |window, unit| number::in_unit(window.p95, unit));
    const P99: (&str, Read) = ("p99", |window, unit| number::in_unit(window.p99, unit));
    const COUNT: (&str, Read) = ("count", |window, _| window.count.to_string());
    const RATE: (&str, Read) = ("rate", |window, _| number::rate(window.rate));
    match kind {
        // A sample when the window closed, and how far it went since the one before.
        "gauge" => vec![MIN, MAX],
        // The value is what became of this many.
        "rate" | "ratio" => vec![COUNT],
        _ => vec![COUNT, RATE, AVG, P50, P95, P99, MAX],
    }
}

fn table(metric: &Metric, series: &[&MetricSeries]) -> Table {
    let labels: BTreeSet<&str> = series.iter().flat_map(|series| series.labels.keys()).map(String::as_str).collect();
    let mut labels: Vec<&str> = labels.into_iter().collect();
    labels.sort_by_key(|label| FIRST_LABELS.iter().position(|first| first == label).unwrap_or(FIRST_LABELS.len()));
    let window = window_columns(&metric.kind);
    let value = if metric.kind == "histogram" { "last" } else { "value" };
    let columns = labels.iter().map(|label| Column::long(label)).chain([Column::number(value)]);
    let mut table = Table::of(columns.chain(window.iter().map(|(title, _)| Column::number(title))).collect());
    for series in series {
        let names = labels.iter().map(|label| series.labels.get(*label).map_or("", String::as_str).into());
        let value = or_unknown(Some(series.value), |value| number::in_unit(value, &metric.unit));
        let numbers = window.iter().map(|(_, read)| {
            series.window.as_ref().map(|window| read(window, &metric.unit)).unwrap_or_default().into()
        });
        table.row(names.chain([value]).chain(numbers).collect());
    }
    table
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::text::tests::{HOSTILE, assert_harmless};
    use super::*;

    fn series(labels: &[(&str, &str)], value: f64, window: Option<MetricWindow>) -> MetricSeries {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        MetricSeries { labels, value, window }
    }

    fn metric(kind: &str, unit: &str, series: Vec<MetricSeries>) -> Metric {
        Metric { kind: kind.into(), unit: unit.into(), series }
    }

    fn example() -> BTreeMap<String, Metric> {
        let window = MetricWindow {
            min: 0.5,
            max: 120.0,
            avg: 12.5,
            count: 42,
            sum: 525.0,
            p50: 10.0,
            p90: 50.0,
            p95: 80.0,
            p99: 110.0,
            rate: 4.2,
        };
        let ones = MetricWindow { min: 1.0, max: 1.0, avg: 1.0, count: 17, rate: 1.7, ..MetricWindow::default() };
        let gauge = |min, max| MetricWindow { min, max, count: 1, ..MetricWindow::default() };
        let call = |tool, outcome, value, window| {
            series(&[("server", "demo"), ("tool", tool), ("outcome", outcome)], value, window)
        };
        let transport = |name, value, window| series(&[("transport", name)], value, Some(window));
        let all = [
            (
                "tool_call_duration_ms",
                metric(
                    "histogram",
                    "ms",
                    vec![call("echo", "ok", 3.25, Some(window)), call("\x1b[31m", "error", 0.01, None)],
                ),
            ),
            (
                "transport_connection_count",
                metric(
                    "gauge",
                    "1",
                    vec![
                        transport("http", 3.0, gauge(1.0, 4.0)),
                        transport("stdio", 0.0, gauge(0.0, 2.0)),
                        transport("sse", 0.0, gauge(0.0, 0.0)),
                        transport("other", 0.0, gauge(0.0, 0.0)),
                    ],
                ),
            ),
            (
                "registry_operations_per_second",
                metric("rate", "1/s", vec![series(&[("operation", "list")], 1.7, Some(ones))]),
            ),
            ("error_rates_by_component", metric("ratio", "ratio", vec![series(&[("component", "tools")], 0.0, None)])),
            ("session_creation_latency_ms", metric("histogram", "ms", vec![])),
        ];
        all.map(|(name, metric)| (name.to_owned(), metric)).into()
    }

    fn check(metrics: &BTreeMap<String, Metric>, zeros: Zeros, width: Option<usize>, expected: &Expect) {
        expected.assert_eq(&anstream::adapter::strip_str(&render(metrics, zeros, width)).to_string());
    }

    #[test]
    fn metrics_as_text() {
        check(
            &example(),
            Zeros::Folded,
            None,
            &expect![[r#"
            error_rates_by_component  ratio
            1 series at zero

            registry_operations_per_second  rate, 1/s
            operation   value  count
            list       1.70/s     17

            session_creation_latency_ms  histogram, ms
            no series yet

            tool_call_duration_ms  histogram, ms
            server  tool        outcome     last  count    rate      avg      p50      p95     p99     max
            demo    echo        ok       3.25 ms     42  4.20/s  12.5 ms  10.0 ms  80.0 ms  110 ms  120 ms
            demo    \u{1b}[31m  error    10.0 µs

            transport_connection_count  gauge
            transport  value  min  max
            http           3    1    4
            stdio          0    0    2
            2 series at zero
        "#]],
        );
    }

    #[test]
    fn nothing_from_the_wire_reaches_the_terminal_as_it_is() {
        let hostile = metric(HOSTILE, HOSTILE, vec![series(&[(HOSTILE, HOSTILE)], 1.0, None)]);
        assert_harmless(&render(&[(HOSTILE.to_owned(), hostile)].into(), Zeros::Shown, None));
    }

    #[test]
    fn one_metric_is_shown_with_its_zeros_and_cut_to_the_terminal() {
        let mut one = example();
        one.retain(|name, _| name == "transport_connection_count");
        if let Some(metric) = one.values_mut().next() {
            metric.series.push(series(&[("transport", &"long ".repeat(30))], 1.0, None));
        }
        check(
            &one,
            Zeros::Shown,
            Some(50),
            &expect![[r#"
            transport_connection_count  gauge
            transport                          value  min  max
            http                                   3    1    4
            stdio                                  0    0    2
            sse                                    0    0    0
            other                                  0    0    0
            long long long long long long lo…      1
        "#]],
        );
    }
}
