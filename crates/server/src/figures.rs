//! One line of live figures.

use mcpscope_hub::Frame;
use mcpscope_hub::metrics::{Desc, HistogramSnapshot, Value, desc};

/// Calls per second, their 95th percentile and errors since the frame before; sessions and connections now. Nothing for
/// the first frames, which cover no time, and where metrics are off.
pub(crate) fn line(frame: &Frame) -> Option<String> {
    let metrics = frame.metrics.as_ref().filter(|_| frame.sequence > 1)?;
    let mut calls = HistogramSnapshot::default();
    let mut failed = 0;
    for series in metrics.change.series(&desc::TOOL_CALLS) {
        let Value::Histogram(values) = &series.value else { continue };
        if matches!(series.labels.get("outcome"), Some("error" | "timeout")) {
            failed += values.count;
        }
        calls.merge(values);
    }
    let gauge = |desc: &Desc| {
        let values = metrics.change.series(desc).map(|series| if let Value::Gauge(n) = series.value { n } else { 0.0 });
        // The sum of nothing is -0.
        0.0 + values.sum::<f64>()
    };
    let seconds = metrics.interval.as_secs_f64();
    Some(format!(
        "{:6.1} tool calls/s   p95 {:7.1} ms   failed {:5.1} %   sessions {:3}   connections {:3}",
        if seconds > 0.0 { calls.count as f64 / seconds } else { 0.0 },
        calls.quantile_ns(0.95) as f64 / 1e6,
        if calls.count > 0 { failed as f64 * 100.0 / calls.count as f64 } else { 0.0 },
        gauge(&desc::ACTIVE_SESSIONS),
        gauge(&desc::TRANSPORT_CONNECTIONS),
    ))
}
