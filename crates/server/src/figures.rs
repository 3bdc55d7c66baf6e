//! One line of live figures.

use std::time::Instant;

use mcpscope_metrics::{Desc, HistogramSnapshot, Metrics, Snapshot, Value, desc};

/// Turns snapshots into lines: what happened since the last one.
pub(crate) struct Figures {
    metrics: Metrics,
    last: Snapshot,
}

impl Figures {
    pub(crate) fn new(metrics: Metrics) -> Self {
        let last = metrics.snapshot(Instant::now());
        Self { metrics, last }
    }

    /// Calls per second, their 95th percentile and errors since the last line; sessions and connections now.
    pub(crate) fn line(&mut self) -> String {
        let now = self.metrics.snapshot(Instant::now());
        let seconds = now.at.saturating_duration_since(self.last.at).as_secs_f64();
        let mut calls = HistogramSnapshot::default();
        let mut failed = 0;
        for series in series(&now, &desc::TOOL_CALLS) {
            let Value::Histogram(values) = &series.value else { continue };
            let before = self::series(&self.last, &desc::TOOL_CALLS).find(|s| s.labels == series.labels);
            let new = match before.map(|s| &s.value) {
                Some(Value::Histogram(before)) => values.since(before),
                _ => values.clone(),
            };
            if matches!(series.labels.get("outcome"), Some("error" | "timeout")) {
                failed += new.count;
            }
            calls.merge(&new);
        }
        let gauge = |desc| {
            series(&now, desc).filter_map(|s| if let Value::Gauge(n) = s.value { Some(n) } else { None }).sum::<i64>()
        };
        let line = format!(
            "{:6.1} tool calls/s   p95 {:7.1} ms   failed {:5.1} %   sessions {:3}   connections {:3}",
            if seconds > 0.0 { calls.count as f64 / seconds } else { 0.0 },
            calls.quantile_ns(0.95) as f64 / 1e6,
            if calls.count > 0 { failed as f64 * 100.0 / calls.count as f64 } else { 0.0 },
            gauge(&desc::ACTIVE_SESSIONS),
            gauge(&desc::TRANSPORT_CONNECTIONS),
        );
        self.last = now;
        line
    }
}

fn series<'a>(snapshot: &'a Snapshot, desc: &Desc) -> impl Iterator<Item = &'a mcpscope_metrics::SeriesSnapshot> {
    snapshot.families.iter().filter(move |family| family.desc == desc).flat_map(|family| &family.series)
}
