//! `metrics.proto`.

use std::time::{Duration, SystemTime};

use mcpscope_hub::health::Usage;
use mcpscope_hub::metrics::{self, MetricView, Stats, Summary};

use super::{labels, ms_since_epoch, whole_ms};
use crate::proto::{Metric, MetricAggregate, MetricSeries, MetricWindow, Metrics, MetricsSummary};

impl From<Stats> for MetricWindow {
    fn from(stats: Stats) -> Self {
        let Stats { min, max, avg, count, sum, p50, p90, p95, p99, rate } = stats;
        Self { min, max, avg, count, sum, p50, p90, p95, p99, rate }
    }
}

impl From<Stats> for MetricAggregate {
    fn from(stats: Stats) -> Self {
        let Stats { min, max, avg, count, sum, .. } = stats;
        Self { min, max, avg, count, sum }
    }
}

impl From<&metrics::MetricSeries> for MetricSeries {
    fn from(series: &metrics::MetricSeries) -> Self {
        Self { labels: labels(&series.labels), value: series.value, window: series.window.map(Into::into) }
    }
}

impl From<&MetricView> for Metric {
    fn from(view: &MetricView) -> Self {
        Self {
            unit: view.unit.to_owned(),
            kind: view.kind.to_owned(),
            series: view.series.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Summary> for MetricsSummary {
    fn from(summary: &Summary) -> Self {
        Self {
            timestamp: ms_since_epoch(summary.timestamp),
            critical_metrics: summary.critical_metrics as u64,
            total_metrics: summary.total_metrics as u64,
            aggregates: summary.aggregates.iter().map(|(name, stats)| (name.to_string(), (*stats).into())).collect(),
            counters: summary.counters.iter().map(|(name, count)| (name.to_string(), *count)).collect(),
        }
    }
}

/// These metrics at one time, with what the instance took of the machine then.
pub(crate) fn metrics(views: &[MetricView], at: SystemTime, uptime: Duration, usage: Option<&Usage>) -> Metrics {
    Metrics {
        metrics: views.iter().map(|view| (view.name.to_string(), view.into())).collect(),
        timestamp: ms_since_epoch(at),
        system_uptime: whole_ms(uptime),
        memory_usage: usage.and_then(|usage| usage.resident_bytes),
        cpu_usage: usage.map(|usage| usage.cpu_ratio),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mcpscope_core::Labels;
    use proptest::prelude::*;

    use super::*;

    fn number() -> impl Strategy<Value = f64> {
        prop::num::f64::NORMAL | prop::num::f64::ZERO
    }

    prop_compose! {
        fn stats()(values in prop::array::uniform9(number()), count in any::<u64>()) -> Stats {
            let [min, max, avg, sum, p50, p90, p95, p99, rate] = values;
            Stats { min, max, avg, count, sum, p50, p90, p95, p99, rate }
        }
    }

    proptest! {
        #[test]
        fn a_series_loses_nothing(value in number(), stats in prop::option::of(stats()), tool in ".*", server in ".*") {
            let given = [("server", server.as_str()), ("tool", tool.as_str())];
            let series = metrics::MetricSeries { labels: Labels::new(given), value, window: stats };
            let found = MetricSeries::from(&series);
            let expected = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
            prop_assert_eq!(found.labels, BTreeMap::from(expected));
            prop_assert_eq!(found.value, value);
            let window = found.window.map(|w| Stats {
                min: w.min, max: w.max, avg: w.avg, count: w.count, sum: w.sum,
                p50: w.p50, p90: w.p90, p95: w.p95, p99: w.p99, rate: w.rate,
            });
            prop_assert_eq!(window, stats);
        }

        #[test]
        fn a_summary_loses_nothing(held in any::<u32>(), total in any::<u32>(), stats in stats(), count in any::<u64>()) {
            let summary = Summary {
                timestamp: SystemTime::UNIX_EPOCH + Duration::from_millis(9),
                critical_metrics: held as usize,
                total_metrics: total as usize,
                aggregates: BTreeMap::from([("a".into(), stats)]),
                counters: BTreeMap::from([("c".into(), count)]),
            };
            let Stats { min, max, avg, count: n, sum, .. } = stats;
            let aggregate = MetricAggregate { min, max, avg, count: n, sum };
            let expected = MetricsSummary {
                timestamp: 9,
                critical_metrics: held.into(),
                total_metrics: total.into(),
                aggregates: BTreeMap::from([("a".to_owned(), aggregate)]),
                counters: BTreeMap::from([("c".to_owned(), count)]),
            };
            prop_assert_eq!(MetricsSummary::from(&summary), expected);
        }
    }

    #[test]
    fn what_the_system_does_not_tell_is_absent() {
        let view = MetricView { name: "m".into(), unit: "ms", kind: "histogram", series: Vec::new() };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(3);
        let usage = Usage { resident_bytes: None, memory_ratio: None, cpu_ratio: 0.5 };
        let found = metrics(&[view], at, Duration::from_millis(2), Some(&usage));
        let metric = Metric { unit: "ms".into(), kind: "histogram".into(), series: Vec::new() };
        let expected = Metrics {
            metrics: BTreeMap::from([("m".to_owned(), metric)]),
            timestamp: 3,
            system_uptime: 2,
            memory_usage: None,
            cpu_usage: Some(0.5),
        };
        assert_eq!(found, expected);
    }
}
