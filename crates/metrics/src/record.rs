//! Recording by name, for those who hold no handle (behaviour M2).

use std::time::{Duration, Instant};

use mcpscope_core::bounded;

use crate::family::{Counter, Gauge, Histogram};
use crate::metrics::Metrics;

/// Longest name that an error repeats, in bytes.
const SHOWN_BYTES: usize = 64;
/// Highest number of operations, and highest value of a gauge: enough for anything real, and far from overflowing a sum.
const MAX_NUMBER: u64 = 1_000_000_000;
/// Longest duration: a day.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a record was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// There is no critical metric of this name.
    #[error("there is no critical metric {name:?}: expected one of {}", Metrics::CRITICAL_NAMES.join(", "))]
    UnknownMetric {
        /// The name that was given.
        name: String,
    },
    /// The metric has no such label.
    #[error("{metric} has no label {label:?}: expected some of {}", expected.join(", "))]
    UnknownLabel {
        /// The metric.
        metric: &'static str,
        /// The label that was given.
        label: String,
        /// The labels that it has.
        expected: &'static [&'static str],
    },
    /// The gauge belongs to a relay, which counts up and down from what it knows.
    #[error("{metric} of server {server:?} is counted by a relay: record it for a server of your own")]
    Counted {
        /// The metric.
        metric: &'static str,
        /// The server.
        server: String,
    },
    /// The metric does not take such a value.
    #[error("{metric} does not take {value}: expected {expected}")]
    BadValue {
        /// The metric.
        metric: &'static str,
        /// The value that was given.
        value: f64,
        /// What it takes.
        expected: &'static str,
    },
}

impl Metrics {
    /// The names of the critical metrics.
    pub const CRITICAL_NAMES: [&'static str; 7] = [
        "registry_operations_per_second",
        "session_creation_latency_ms",
        "transport_connection_count",
        "tool_call_duration_ms",
        "error_rates_by_component",
        "active_sessions_count",
        "message_queue_depth",
    ];

    /// Records a value of the critical metric `name`, which ended at `at`.
    ///
    /// A label that is left out is empty, `injected` is `false` and `outcome` is `ok`. The value is a number of operations
    /// for `registry_operations_per_second`, milliseconds for the two latencies, the new value for the three gauges, and
    /// one operation of a component, failed (1) or not (0), for `error_rates_by_component`. A gauge of a server that a relay
    /// counts is left to the relay.
    ///
    /// # Errors
    /// [`RecordError`]: nothing was recorded.
    pub fn record(&self, name: &str, value: f64, labels: &[(&str, &str)], at: Instant) -> Result<(), RecordError> {
        let Some(metric) = Self::CRITICAL_NAMES.into_iter().find(|known| *known == name) else {
            return Err(RecordError::UnknownMetric { name: bounded(name, SHOWN_BYTES).to_owned() });
        };
        let given = Given { metric, value, labels };
        let all = self.inner();
        match metric {
            "registry_operations_per_second" => {
                let values = given.labels(&["server", "operation"])?;
                let operations = given.whole("a whole number of operations from 0 to 1000000000")?;
                Counter(self.critical(&all.registry_operations, values)).add(operations, at);
            }
            "session_creation_latency_ms" => {
                let values = given.labels(&["server", "protocol"])?;
                let duration = given.duration()?;
                Histogram(self.critical(&all.session_creation, values)).record(duration, at);
            }
            "tool_call_duration_ms" => {
                let values = given.labels(&["server", "tool", "outcome", "injected"])?;
                let duration = given.duration()?;
                Histogram(self.critical(&all.tool_calls, values)).record(duration, at);
            }
            "error_rates_by_component" => {
                let [component, error_type, injected] = given.labels(&["component", "error_type", "injected"])?;
                let failed = match value {
                    0.0 => false,
                    1.0 => true,
                    _ => return Err(given.bad("1 for an operation that failed, 0 for one that did not")),
                };
                Counter(self.quiet(&all.component_operations, [component, injected])).increment(at);
                if failed {
                    Counter(self.critical(&all.component_errors, [component, error_type, injected])).increment(at);
                }
            }
            gauge => {
                let (family, second) = match gauge {
                    "transport_connection_count" => (&all.transport_connections, &["server", "transport"]),
                    "active_sessions_count" => (&all.active_sessions, &["server", "protocol"]),
                    _ => (&all.queue_depth, &["server", "direction"]),
                };
                let values @ [server, _] = given.labels(second)?;
                let value = given.whole("a whole number from 0 to 1000000000")?;
                if self.is_announced(server) {
                    let server = bounded(server, SHOWN_BYTES).to_owned();
                    return Err(RecordError::Counted { metric, server });
                }
                Gauge(self.critical(family, values)).set(i64::try_from(value).unwrap_or(i64::MAX), at);
            }
        }
        Ok(())
    }
}

struct Given<'a> {
    metric: &'static str,
    value: f64,
    labels: &'a [(&'a str, &'a str)],
}

impl<'a> Given<'a> {
    /// The values of the labels that the metric has, in its order.
    fn labels<const N: usize>(&self, expected: &'static [&'static str; N]) -> Result<[&'a str; N], RecordError> {
        if let Some((label, _)) = self.labels.iter().find(|(label, _)| !expected.contains(label)) {
            let label = bounded(label, SHOWN_BYTES).to_owned();
            return Err(RecordError::UnknownLabel { metric: self.metric, label, expected });
        }
        Ok(expected.map(|name| {
            let given = self.labels.iter().find_map(|(label, value)| (*label == name).then_some(*value));
            given.unwrap_or(match name {
                "injected" => "false",
                "outcome" => "ok",
                _ => "",
            })
        }))
    }

    fn whole(&self, expected: &'static str) -> Result<u64, RecordError> {
        let fits = (0.0..=MAX_NUMBER as f64).contains(&self.value) && self.value.fract() == 0.0;
        if fits { Ok(self.value as u64) } else { Err(self.bad(expected)) }
    }

    fn duration(&self) -> Result<Duration, RecordError> {
        let duration = Duration::try_from_secs_f64(self.value / 1e3).ok().filter(|duration| *duration <= MAX_DURATION);
        duration.ok_or_else(|| self.bad("a number of milliseconds from 0 to 86400000, a day"))
    }

    fn bad(&self, expected: &'static str) -> RecordError {
        RecordError::BadValue { metric: self.metric, value: self.value, expected }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use mcpscope_core::ClockAnchor;

    use super::*;
    use crate::Config;

    fn metrics() -> (Metrics, Instant) {
        let now = Instant::now();
        (Metrics::new(&Config::default(), ClockAnchor { mono: now, wall: SystemTime::UNIX_EPOCH }), now)
    }

    #[test]
    fn every_critical_metric_can_be_recorded_by_name() {
        let (metrics, at) = metrics();
        for name in Metrics::CRITICAL_NAMES {
            metrics.record(name, 1.0, &[], at).unwrap();
        }
        let text = metrics.snapshot(at).to_prometheus();
        for line in [
            "mcpscope_registry_operations_total{server=\"\",operation=\"\"} 1",
            "mcpscope_session_creation_seconds_count{server=\"\",protocol=\"\"} 1",
            "mcpscope_transport_connections{server=\"\",transport=\"\"} 1",
            "mcpscope_tool_call_duration_seconds_count{server=\"\",tool=\"\",outcome=\"ok\",injected=\"false\"} 1",
            "mcpscope_component_operations_total{component=\"\",injected=\"false\"} 1",
            "mcpscope_component_errors_total{component=\"\",error_type=\"\",injected=\"false\"} 1",
            "mcpscope_active_sessions{server=\"\",protocol=\"\"} 1",
            "mcpscope_message_queue_depth{server=\"\",direction=\"\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(Metrics::CRITICAL_NAMES.to_vec(), metrics.views(at).iter().map(|v| v.name).collect::<Vec<_>>());
    }

    #[test]
    fn a_gauge_takes_the_new_value() {
        let (metrics, at) = metrics();
        for value in [5.0, 2.0] {
            metrics.record("message_queue_depth", value, &[("server", "s"), ("direction", "to_server")], at).unwrap();
        }
        let view = metrics.metrics("message_queue_depth", at).unwrap();
        assert_eq!(view.series[0].value, 2.0);
        metrics.close_window(at + Duration::from_secs(1));
        let window = metrics.metrics("message_queue_depth", at).unwrap().series[0].window.unwrap();
        assert_eq!((window.min, window.max), (0.0, 5.0));
    }

    #[test]
    fn a_gauge_that_a_relay_counts_is_left_to_it() {
        let (metrics, at) = metrics();
        metrics.announce_server("s", mcpscope_core::Transport::Stdio);
        let refused = metrics.record("transport_connection_count", 5.0, &[("server", "s"), ("transport", "stdio")], at);
        assert!(matches!(refused, Err(RecordError::Counted { .. })), "{refused:?}");
        metrics.record("transport_connection_count", 5.0, &[("server", "mine"), ("transport", "stdio")], at).unwrap();
        metrics.record("tool_call_duration_ms", 5.0, &[("server", "s")], at).unwrap();
    }

    #[test]
    fn sums_do_not_overflow() {
        let (metrics, at) = metrics();
        for n in 0..3 {
            let operation = n.to_string();
            let counter = metrics.registry_operations("s", &operation);
            (0..3).for_each(|_| counter.add(u64::MAX / 2, at));
        }
        assert_eq!(metrics.totals().registry_operations, u64::MAX);
        let _ = (metrics.summary(at), metrics.close_window(at), metrics.summary(at));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_recorded_nowhere() {
        let (metrics, at) = metrics();
        let before = metrics.snapshot(at).to_prometheus();
        let refused = |name, value, labels: &[(&str, &str)]| metrics.record(name, value, labels, at).unwrap_err();
        assert!(matches!(refused("tool_calls", 1.0, &[]), RecordError::UnknownMetric { .. }));
        assert!(matches!(refused("tool_call_duration_ms", 1.0, &[("tol", "x")]), RecordError::UnknownLabel { .. }));
        for value in [-1.0, 1e10, f64::NAN, f64::INFINITY] {
            for name in Metrics::CRITICAL_NAMES {
                assert!(matches!(refused(name, value, &[]), RecordError::BadValue { .. }), "{name} {value}");
            }
        }
        assert!(matches!(refused("error_rates_by_component", 0.5, &[]), RecordError::BadValue { .. }));
        assert!(matches!(refused("active_sessions_count", 0.5, &[]), RecordError::BadValue { .. }));
        assert_eq!(metrics.snapshot(at).to_prometheus(), before);
        assert!(metrics.critical_metrics().is_empty());
    }
}
