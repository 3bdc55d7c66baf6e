//! What everything looked like at one tick.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_chaos::ChaosStatus;
use mcpscope_core::ClockAnchor;
use mcpscope_health::{ChildUsage, Overall, Report, Usage};
use mcpscope_metrics::{MetricView, Snapshot};
use mcpscope_tracing::{Filter, Trace};

use crate::Core;

/// What everything looked like at one tick. Shared by all readers.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Counts the ticks; 0 is the frame before the first.
    pub sequence: u64,
    /// When it was made.
    pub at: Instant,
    /// When it was made, on the wall clock.
    pub timestamp: SystemTime,
    /// The metrics; none where they are off, and before the first tick.
    pub metrics: Option<MetricsFrame>,
    /// The newest traces, newest first.
    pub traces: Vec<Arc<Trace>>,
    /// Health.
    pub health: Arc<Report>,
    /// What this process takes of the machine; not known before the first tick.
    pub usage: Option<Usage>,
    /// What the supervised children take of the machine.
    pub children: Vec<ChildUsage>,
    /// How the chaos engine was; none where there is none, and before the first tick.
    pub chaos: Option<ChaosStatus>,
    /// How long the instance had been running.
    pub uptime: Duration,
    /// Open connections and streams of the watched traffic.
    pub active_connections: u64,
}

/// The metrics at one tick.
#[derive(Clone, Debug)]
pub struct MetricsFrame {
    /// All families, cumulative.
    pub snapshot: Arc<Snapshot>,
    /// What happened since the frame before, or since the start; gauges are as they are now.
    pub change: Snapshot,
    /// How much time `change` covers.
    pub interval: Duration,
    /// The critical metrics, all series.
    pub views: Vec<MetricView>,
    /// The critical metrics, at most [`crate::Config::max_series`] series together: of each metric those with the most
    /// records in the last window, but of no metric so many that another has none.
    pub shown: Vec<MetricView>,
}

impl Frame {
    /// The frame before the first tick.
    pub(crate) fn empty(anchor: &ClockAnchor) -> Self {
        let health = Report {
            overall: Overall::Healthy,
            health_percentage: 1.0,
            components: BTreeMap::new(),
            uptime: Duration::ZERO,
            timestamp: anchor.wall,
        };
        Self {
            sequence: 0,
            at: anchor.mono,
            timestamp: anchor.wall,
            metrics: None,
            traces: Vec::new(),
            health: Arc::new(health),
            usage: None,
            children: Vec::new(),
            chaos: None,
            uptime: Duration::ZERO,
            active_connections: 0,
        }
    }

    /// The frame at `at`, which comes after `last`.
    pub(crate) fn next(core: &Core, last: &Self, health: Arc<Report>, at: Instant) -> Self {
        let sources = &core.sources;
        let metrics = sources.metrics.as_ref().map(|metrics| {
            let snapshot = Arc::new(metrics.snapshot(at));
            let change = match &last.metrics {
                Some(before) => snapshot.since(&before.snapshot),
                None => Snapshot::clone(&snapshot),
            };
            let views = metrics.views_of(&snapshot);
            let shown = most_active(&views, core.config.max_series);
            MetricsFrame { snapshot, change, interval: at.saturating_duration_since(last.at), views, shown }
        });
        let newest = Filter { limit: Some(core.config.max_traces), ..Filter::default() };
        Self {
            sequence: last.sequence + 1,
            at,
            timestamp: sources.anchor.wall_at(at),
            metrics,
            traces: sources.tracer.as_ref().map(|tracer| tracer.traces(&newest)).unwrap_or_default(),
            health,
            usage: Some(sources.health.usage(at)),
            children: sources.health.children(at),
            chaos: sources.chaos.as_ref().map(|chaos| chaos.controller.status(at)),
            uptime: sources.health.uptime(at),
            active_connections: sources.metrics.as_ref().map_or(0, |metrics| metrics.totals().transport_connections),
        }
    }
}

/// The views with at most `max` series together.
fn most_active(views: &[MetricView], max: usize) -> Vec<MetricView> {
    let mut ranked: Vec<Vec<usize>> = views
        .iter()
        .map(|view| {
            let records = |at: &usize| view.series.get(*at).and_then(|s| s.window).map_or(0, |window| window.count);
            let mut order: Vec<usize> = (0..view.series.len()).collect();
            // Stable, so that series without a difference stay in the order of their labels.
            order.sort_by_key(|at| std::cmp::Reverse(records(at)));
            order
        })
        .collect();
    // One of each metric in turn until there are enough.
    let mut kept: Vec<Vec<usize>> = vec![Vec::new(); views.len()];
    let mut left = max;
    for round in 0.. {
        let mut any = false;
        for (order, kept) in ranked.iter_mut().zip(&mut kept) {
            if left > 0
                && let Some(at) = order.get(round)
            {
                kept.push(*at);
                left -= 1;
                any = true;
            }
        }
        if !any {
            break;
        }
    }
    let keep = |(view, kept): (&MetricView, &mut Vec<usize>)| {
        kept.sort_unstable();
        let series = kept.iter().filter_map(|at| view.series.get(*at).cloned()).collect();
        MetricView { name: view.name.clone(), unit: view.unit, kind: view.kind, series }
    };
    views.iter().zip(&mut kept).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use mcpscope_core::Labels;
    use mcpscope_metrics::{MetricSeries, Stats};

    use super::*;

    fn view(name: &'static str, counts: &[u64]) -> MetricView {
        let series = counts.iter().enumerate().map(|(at, count)| MetricSeries {
            labels: Labels::new([("n", at.to_string().as_str())]),
            value: 0.0,
            window: Some(Stats { count: *count, ..Stats::default() }),
        });
        MetricView { name: name.into(), unit: "1", kind: "gauge", series: series.collect() }
    }

    fn kept(views: &[MetricView]) -> Vec<Vec<&str>> {
        let names = |view: &MetricView| view.series.len();
        assert!(views.iter().map(names).sum::<usize>() <= 50);
        views.iter().map(|view| view.series.iter().filter_map(|s| s.labels.get("n")).collect()).collect()
    }

    #[test]
    fn the_most_active_series_are_shown_and_no_metric_is_left_out() {
        let views = [view("many", &[0, 5, 0, 7, 1]), view("one", &[0]), view("none", &[])];
        assert_eq!(kept(&most_active(&views, 4)), [vec!["1", "3", "4"], vec!["0"], vec![]]);
        assert_eq!(kept(&most_active(&views, 50)), [vec!["0", "1", "2", "3", "4"], vec!["0"], vec![]]);
        assert_eq!(kept(&most_active(&views, 0)), [vec![], vec![], Vec::<&str>::new()]);
    }
}
