//! The samples of an experiment, as many as there is room for.

use serde::{Deserialize, Serialize};

use crate::steady::{Sample, Touched};

/// The watched system in a second of an experiment; in an experiment of many minutes, in a few of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// When it ends, in ms since the fault began; before that, it is negative.
    pub at: i64,
    /// How long it is, in ms.
    pub duration: u64,
    /// The figures. Of several seconds: how much there was in all of them, and the worst percentiles and health of one.
    #[serde(flatten)]
    pub sample: Sample,
}

/// Points that are kept: a report has a bounded size.
const MOST: usize = 360;
const SECOND_MS: u64 = 1000;

/// Samples of a second in the order of time. Where there are too many, neighbours are put together.
#[derive(Debug)]
pub(crate) struct Series {
    points: Vec<Point>,
    /// How many seconds make a point.
    step: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::new(), step: 1 }
    }
}

impl Series {
    /// One more, of the second before `at`, in ms since the fault began.
    pub(crate) fn push(&mut self, at: i64, sample: Sample) {
        let point = Point { at, duration: SECOND_MS, sample: rounded(sample) };
        if let Some(last) = self.points.last_mut().filter(|last| last.duration < self.step * SECOND_MS) {
            *last = joined(*last, point);
            return;
        }
        if self.points.len() == MOST {
            self.points =
                self.points.chunks(2).map(|pair| if let [a, b] = pair { joined(*a, *b) } else { pair[0] }).collect();
            self.step *= 2;
        }
        self.points.push(point);
    }

    pub(crate) fn points(&self) -> &[Point] {
        &self.points
    }
}

fn joined(a: Point, b: Point) -> Point {
    Point { at: b.at, duration: a.duration + b.duration, sample: worst(a.sample, b.sample) }
}

fn worst(a: Sample, b: Sample) -> Sample {
    let touched = match (a.touched, b.touched) {
        (Some(a), Some(b)) => Some(Touched {
            calls: a.calls + b.calls,
            errors: a.errors + b.errors,
            p50_ms: highest(a.p50_ms, b.p50_ms),
            p95_ms: highest(a.p95_ms, b.p95_ms),
            p99_ms: highest(a.p99_ms, b.p99_ms),
        }),
        (a, b) => a.or(b),
    };
    let healthy = match (a.healthy, b.healthy) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Sample {
        calls: a.calls + b.calls,
        errors: a.errors + b.errors,
        p50_ms: highest(a.p50_ms, b.p50_ms),
        p95_ms: highest(a.p95_ms, b.p95_ms),
        p99_ms: highest(a.p99_ms, b.p99_ms),
        healthy,
        repeated: sum(a.repeated, b.repeated),
        duplicates: sum(a.duplicates, b.duplicates),
        touched,
    }
}

fn highest(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// More than microseconds nobody reads.
fn rounded(mut sample: Sample) -> Sample {
    let round = |value: &mut Option<f64>| *value = value.map(|value| (value * 1000.0).round() / 1000.0);
    [&mut sample.p50_ms, &mut sample.p95_ms, &mut sample.p99_ms, &mut sample.healthy].into_iter().for_each(round);
    if let Some(touched) = &mut sample.touched {
        [&mut touched.p50_ms, &mut touched.p95_ms, &mut touched.p99_ms].into_iter().for_each(round);
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample of each second, of which one is a bad one.
    fn series(seconds: u32, bad: u32) -> Series {
        let mut series = Series::default();
        for second in 1..=seconds {
            let p99_ms = Some(if second == bad { 1000.12345 } else { 1.0 });
            let touched = Some(Touched { calls: 1, ..Touched::default() });
            let sample = Sample { calls: 10, errors: u64::from(second == bad), p99_ms, touched, ..Sample::default() };
            series.push(i64::from(second) * 1000, sample);
        }
        series
    }

    #[test]
    fn however_long_it_is_there_are_not_more_points_and_nothing_is_lost() {
        for seconds in [1, 10, 359, 360, 361, 643, 720, 721, 4000] {
            let series = series(seconds, seconds.div_ceil(2));
            let points = series.points();
            assert!(points.len() <= MOST && points.len() >= (seconds as usize).min(MOST / 2), "{}", points.len());
            let sum = |of: fn(&Point) -> u64| points.iter().map(of).sum::<u64>();
            assert_eq!(sum(|point| point.sample.calls), u64::from(seconds) * 10);
            assert_eq!(sum(|point| point.sample.touched.unwrap().calls), u64::from(seconds));
            assert_eq!(sum(|point| point.duration), u64::from(seconds) * 1000);
            assert_eq!(points.last().unwrap().at, i64::from(seconds) * 1000);
            let bad: Vec<_> = points.iter().filter(|point| point.sample.p99_ms == Some(1000.123)).collect();
            assert_eq!((bad.len(), bad[0].sample.errors), (1, 1), "the worst second is still to be seen");
            let longest = points.iter().map(|point| point.duration).max().unwrap();
            assert!(points.iter().rev().skip(1).all(|point| point.duration == longest), "all are of one length");
        }
    }

    #[test]
    fn the_points_of_a_report_have_a_bounded_size() {
        let figure = Some(123_456.789);
        let touched = Touched { calls: 1 << 40, errors: 1 << 40, p50_ms: figure, p95_ms: figure, p99_ms: figure };
        let sample = Sample {
            calls: 1 << 40,
            errors: 1 << 40,
            p50_ms: figure,
            p95_ms: figure,
            p99_ms: figure,
            healthy: Some(1.0 / 3.0),
            repeated: Some(1 << 40),
            duplicates: Some(1 << 40),
            touched: Some(touched),
        };
        let mut series = Series::default();
        (0..1000).for_each(|second| series.push(second * 1000, sample));
        assert!(serde_json::to_vec(series.points()).unwrap().len() < 160 * 1024);
    }
}
