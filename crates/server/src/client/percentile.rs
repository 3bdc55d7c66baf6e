//! Percentiles of several series together.

use mcpscope_grpc::proto::MetricWindow;

/// Enough for the three digits that are shown.
const STEPS: usize = 32;

/// The percentiles that are shown for several series together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Percentile {
    P50,
    P95,
}

/// A percentile over several windows, each weighed by its number of values; none without values.
///
/// Percentiles cannot be added: this mixes the distributions that they outline. Of one window it is the instance's own figure.
pub(super) fn percentile(windows: &[&MetricWindow], wanted: Percentile) -> Option<f64> {
    let some: Vec<_> = windows.iter().filter(|window| window.count > 0).collect();
    let share = match (some.as_slice(), wanted) {
        ([], _) => return None,
        ([one], Percentile::P50) => return Some(one.p50),
        ([one], Percentile::P95) => return Some(one.p95),
        (_, Percentile::P50) => 0.5,
        (_, Percentile::P95) => 0.95,
    };
    let total: f64 = some.iter().map(|window| window.count as f64).sum();
    let mut low = some.iter().map(|window| window.min).fold(f64::INFINITY, f64::min);
    let mut high = some.iter().map(|window| window.max).fold(0.0, f64::max);
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        let below: f64 = some.iter().map(|window| window.count as f64 * share_up_to(window, middle)).sum();
        if below < share * total {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(high)
}

/// The share of a window's values up to `value`, straight between the points that are known.
fn share_up_to(window: &MetricWindow, value: f64) -> f64 {
    let MetricWindow { min, p50, p90, p95, p99, max, .. } = *window;
    if value < min {
        return 0.0;
    }
    let (mut below, mut share) = (min, 0.0);
    for (point, at) in [(min, 0.0), (p50, 0.5), (p90, 0.9), (p95, 0.95), (p99, 0.99), (max, 1.0)] {
        if value < point {
            return share + (at - share) * ((value - below) / (point - below));
        }
        (below, share) = (below.max(point), at);
    }
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(count: u64, scale: f64) -> MetricWindow {
        let [min, p50, p90, p95, p99, max] = [0.0, 0.5, 0.9, 0.95, 0.99, 1.0].map(|share| share * scale);
        MetricWindow { min, max, p50, p90, p95, p99, count, ..MetricWindow::default() }
    }

    #[test]
    fn of_one_window_it_is_the_window_s_own() {
        let one = window(3, 100.0);
        assert_eq!(percentile(&[&one, &window(0, 9.0)], Percentile::P95), Some(95.0));
        assert_eq!(percentile(&[&one], Percentile::P50), Some(50.0));
        assert_eq!(percentile(&[], Percentile::P50), None);
        assert_eq!(percentile(&[&window(0, 1.0)], Percentile::P50), None);
    }

    #[test]
    fn of_several_it_is_that_of_all_their_values() {
        // Uniform from 0 to 100 and from 0 to 200, as many of each: up to 80 there are 80 % and 40 %, that is 60 %.
        let (a, b) = (window(10, 100.0), window(10, 200.0));
        let near = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 0.1, "{found:?}");
        near(percentile(&[&a, &b], Percentile::P50), 200.0 / 3.0);
        near(percentile(&[&a, &b], Percentile::P95), 180.0);
        // The many outweigh the few.
        near(percentile(&[&window(1_000_000, 100.0), &b], Percentile::P50), 50.0);
    }
}
