//! Charts as SVG. Nothing in them is scaled but lines, so that they are as easy to read narrow as wide.

use std::ops::RangeInclusive;

use super::html::milliseconds;
use super::{Report, duration};
use crate::series::Point;
use crate::steady::{Sample, Touched};

/// What a chart is drawn in: time from left to right, the fault's span in it.
#[derive(Debug)]
struct Frame<'a> {
    points: &'a [Point],
    /// The time that is shown, in ms since the fault began.
    span: RangeInclusive<i64>,
    fault_ms: i64,
    /// By when all was to be well again, if it is shown.
    limit: Option<i64>,
}

impl<'a> Frame<'a> {
    fn new(report: &'a Report) -> Option<Self> {
        let points = &report.samples[..];
        let start = points.iter().map(|point| point.at.saturating_sub_unsigned(point.duration)).min()?;
        let fault_ms = i64::try_from(report.end_time.saturating_sub(report.start_time)).ok()?;
        let end = points.iter().map(|point| point.at).max()?.max(fault_ms);
        let limit = report.recovery.observed.then(|| fault_ms.saturating_add_unsigned(report.recovery.limit));
        let limit = limit.filter(|limit| *limit <= end);
        (start < end).then_some(Self { points, span: start..=end, fault_ms, limit })
    }

    /// Where on the way from left to right, 0..=1.
    fn x(&self, at: f64) -> f64 {
        let (start, end) = (*self.span.start() as f64, *self.span.end() as f64);
        ((at - start) / (end - start)).clamp(0.0, 1.0)
    }

    fn middle(&self, point: &Point) -> f64 {
        self.x(point.at as f64 - point.duration as f64 / 2.0)
    }

    /// Rules, the fault's span and the times below; `inside` lies between them and what shows a point's figures.
    fn draw(&self, about: &str, height: u32, rules: u32, inside: &str) -> String {
        let mut svg = format!("<svg class=\"plot\" role=\"img\" aria-label=\"{about}\">");
        let (from, to) = (self.x(0.0) * 100.0, self.x(self.fault_ms as f64) * 100.0);
        let width = to - from;
        svg += &format!("<rect class=\"fault\" x=\"{from:.3}%\" width=\"{width:.3}%\" y=\"0\" height=\"{height}\"/>");
        for rule in 0..=rules {
            let y = f64::from(height) * f64::from(rule) / f64::from(rules);
            svg += &format!("<line class=\"rule\" x1=\"0\" x2=\"100%\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        }
        svg += inside;
        let vertical = |class: &str, x: f64| {
            format!("<line class=\"{class}\" x1=\"{x:.3}%\" x2=\"{x:.3}%\" y1=\"0\" y2=\"{height}\"/>")
        };
        svg += &[vertical("edge", from), vertical("edge", to)].concat();
        let below = height + 17;
        let mut label = |class: &str, x: f64, text: &str| {
            let anchor = if x < 4.0 {
                "start"
            } else if x > 96.0 {
                "end"
            } else {
                "middle"
            };
            svg +=
                &format!("<text class=\"{class}\" x=\"{x:.3}%\" y=\"{below}\" text-anchor=\"{anchor}\">{text}</text>");
        };
        label("in-fault", from, "0");
        if width > 9.0 {
            label("in-fault", to, &duration(self.fault_ms.unsigned_abs()));
        }
        let (start, end) = (*self.span.start(), *self.span.end());
        if from > 12.0 {
            label("", 0.0, &format!("\u{2212}{}", duration(start.unsigned_abs())));
        }
        if to < 86.0 {
            label("", 100.0, &duration(end.unsigned_abs()));
        }
        if let Some(limit) = self.limit {
            let x = self.x(limit as f64) * 100.0;
            if x > to + 9.0 && x < 88.0 {
                label("in-limit wide", x, "limit");
            }
            svg += &vertical("limit", x);
        }
        for point in self.points {
            let from = self.x(point.at as f64 - point.duration as f64) * 100.0;
            let width = self.x(point.at as f64) * 100.0 - from;
            svg += &format!(
                "<rect class=\"hover\" x=\"{from:.3}%\" width=\"{width:.3}%\" y=\"0\" height=\"{height}\"><title>{}\
                 </title></rect>",
                figures(point)
            );
        }
        svg + "</svg>"
    }
}

/// What a point says, in words.
fn figures(point: &Point) -> String {
    let time = |at: i64| format!("{}{}", if at < 0 { "\u{2212}" } else { "" }, duration(at.unsigned_abs()));
    let sample = &point.sample;
    let start = point.at.saturating_sub_unsigned(point.duration);
    let mut text = format!("{} to {}: {} calls", time(start), time(point.at), sample.calls);
    let shown = |name: &str, value: Option<f64>| {
        value
            .filter(|value| value.is_finite())
            .map(|value| format!(", {name} {}", milliseconds(value)))
            .unwrap_or_default()
    };
    let mut add = |name: &str, value: Option<f64>| text += &shown(name, value);
    add("p50", sample.p50_ms);
    add("p95", sample.p95_ms);
    add("p99", sample.p99_ms);
    text += &format!(", {} errors", sample.errors);
    if let Some(touched) = &sample.touched {
        text += &format!("; touched by the fault: {} calls", touched.calls);
        for (name, value) in [("p50", touched.p50_ms), ("p99", touched.p99_ms)] {
            text += &shown(name, value);
        }
        text += &format!(", {} errors", touched.errors);
    }
    text
}

type Figure = fn(&Sample) -> Option<f64>;
type TouchedFigure = fn(&Touched) -> Option<f64>;

/// The percentiles: of the calls that no fault touched, and of those that one did.
const LINES: [(&str, Figure, TouchedFigure); 3] = [
    ("p99", |sample| sample.p99_ms, |touched| touched.p99_ms),
    ("p95", |sample| sample.p95_ms, |touched| touched.p95_ms),
    ("p50", |sample| sample.p50_ms, |touched| touched.p50_ms),
];

/// Percentiles of each second, with the fault's span; none where nothing was measured.
pub(super) fn latency(report: &Report) -> Option<String> {
    let frame = Frame::new(report)?;
    let touched = |point: &Point, of: TouchedFigure| point.sample.touched.as_ref().and_then(of);
    let highest = LINES
        .iter()
        .flat_map(|(_, untouched, of)| frame.points.iter().flat_map(|p| [untouched(&p.sample), touched(p, *of)]))
        .flatten()
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    if highest <= 0.0 {
        return None;
    }
    let top = round_up(highest);
    let mut inside = format!("<svg width=\"100%\" height=\"200\" {STRETCHED}>");
    let mut has_touched = false;
    for (class, untouched, of) in LINES {
        let mut line = |class: &str, value: &dyn Fn(&Point) -> Option<f64>| {
            let path = path(&frame, top, value);
            if !path.is_empty() {
                inside += &format!("<path class=\"{class}\" d=\"{path}\"/>");
            }
            !path.is_empty()
        };
        has_touched |= line(&format!("{class} touched"), &|point| touched(point, of));
        line(class, &|point| untouched(&point.sample));
    }
    inside += "</svg>";
    let keys = LINES.map(|(name, ..)| key(&format!("<line class=\"{name}\" x2=\"18\" y1=\"5\" y2=\"5\"/>"), 18, name));
    let dots = key("<line class=\"dots\" x1=\"1\" x2=\"18\" y1=\"5\" y2=\"5\"/>", 18, "calls that the fault touched");
    let caption = [
        "<b>Latency of each second</b>",
        &keys.iter().rev().cloned().collect::<String>(),
        if has_touched { &dots } else { "" },
        &shade(),
    ]
    .concat();
    let svg = frame.draw("Percentiles of the duration of calls, by second", 200, 4, &inside);
    let ys = (0..=4).rev().map(|rule| milliseconds(top * f64::from(rule) / 4.0));
    Some(chart("tall", &caption, ys, &svg))
}

/// How many calls ended in each second, and how.
pub(super) fn calls(report: &Report) -> Option<String> {
    let frame = Frame::new(report)?;
    let parts = |point: &Point| {
        let sample = &point.sample;
        let touched = sample.touched.map_or(0, |touched| touched.calls);
        let per_second = |count: u64| count as f64 * 1000.0 / point.duration.max(1) as f64;
        [
            ("err", per_second(sample.errors)),
            ("hit", per_second(touched)),
            ("ok", per_second(sample.calls.saturating_sub(sample.errors))),
        ]
    };
    let total = |point: &Point| parts(point).iter().map(|(_, count)| count).sum::<f64>();
    let highest = frame.points.iter().map(total).fold(0.0, f64::max);
    if highest <= 0.0 {
        return None;
    }
    let top = round_up(highest.max(2.0));
    // Between bars that are thinner than a few pixels there is no room for gaps.
    let gap = if frame.points.len() > 120 { 0.0 } else { 0.08 };
    let mut inside = format!("<svg width=\"100%\" height=\"90\" {STRETCHED}>");
    for point in frame.points {
        let from = frame.x(point.at as f64 - point.duration as f64) * 1000.0;
        let width = frame.x(point.at as f64) * 1000.0 - from;
        let mut y = 1000.0;
        for (class, count) in parts(point).into_iter().filter(|(_, count)| *count > 0.0) {
            let height = count / top * 1000.0;
            y -= height;
            let (x, width) = (from + width * gap, width * (1.0 - 2.0 * gap));
            inside += &format!(
                "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\"/>"
            );
        }
    }
    inside += "</svg>";
    let square =
        |class: &str, name: &str| key(&format!("<rect class=\"{class}\" width=\"10\" height=\"10\"/>"), 10, name);
    let has = |class: &str| {
        let mut all = frame.points.iter().flat_map(parts);
        all.any(|(part, count)| part == class && count > 0.0)
    };
    let mut caption = format!("<b>Calls per second</b>{}", square("ok", "good"));
    if has("hit") {
        caption += &square("hit", "touched by the fault");
    }
    if has("err") {
        caption += &square("err", "errors of others");
    }
    let svg = frame.draw("Calls that ended, by second", 90, 2, &inside);
    let ys = (0..=2).rev().map(|rule| number(top * f64::from(rule) / 2.0));
    Some(chart("flat", &caption, ys, &svg))
}

/// Lines and bars have 1000 units each way, whatever the size is on the page.
const STRETCHED: &str = "viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" overflow=\"visible\"";

fn chart(class: &str, caption: &str, ys: impl Iterator<Item = String>, svg: &str) -> String {
    let ys: String = ys.map(|y| format!("<span>{y}</span>")).collect();
    format!(
        "<figure class=\"chart {class}\"><figcaption>{caption}</figcaption><div class=\"ys\" aria-hidden=\"true\">{ys}\
         </div>{svg}</figure>"
    )
}

fn key(drawing: &str, width: u32, name: &str) -> String {
    format!(
        "<span class=\"key\"><svg width=\"{width}\" height=\"10\" aria-hidden=\"true\">{drawing}</svg>{name}</span>"
    )
}

fn shade() -> String {
    key("<rect class=\"shade\" width=\"18\" height=\"10\"/>", 18, "the fault")
}

/// A line through the points that have a value; where one has none, it begins anew.
fn path(frame: &Frame<'_>, top: f64, value: &dyn Fn(&Point) -> Option<f64>) -> String {
    let mut path = String::new();
    let mut before: Option<&Point> = None;
    for point in frame.points {
        let Some(value) = value(point).filter(|value| value.is_finite()) else {
            before = None;
            continue;
        };
        let (x, y) = (frame.middle(point) * 1000.0, (1.0 - value / top) * 1000.0);
        let gap = |before: &Point| point.at.abs_diff(before.at) > 2 * point.duration.max(before.duration);
        if before.is_some_and(|before| !gap(before)) {
            path += &format!("L{x:.1} {y:.1}");
        } else {
            // A line of no length is a dot, if nothing follows.
            path += &format!("M{x:.1} {y:.1}h0");
        }
        before = Some(point);
    }
    path
}

/// The next number that is easy to divide by four.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let step = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].into_iter().find(|step| step * power >= value * 0.999);
    step.unwrap_or(10.0) * power
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_the_next_easy_number() {
        for (value, top) in [(0.3, 0.4), (1.0, 1.0), (1.2, 2.0), (37.0, 40.0), (401.0, 600.0), (999.0, 1000.0)] {
            assert!((round_up(value) - top).abs() < 1e-9, "{value}: {}", round_up(value));
        }
    }

    #[test]
    fn a_line_begins_anew_where_something_is_missing() {
        let point =
            |at: i64, p50_ms: Option<f64>| Point { at, duration: 1000, sample: Sample { p50_ms, ..Sample::default() } };
        let points = [point(1000, Some(1.0)), point(2000, Some(2.0)), point(3000, None), point(4000, Some(4.0))];
        let frame = Frame { points: &points, span: 0..=4000, fault_ms: 1000, limit: None };
        let path = path(&frame, 4.0, &|point| point.sample.p50_ms);
        assert_eq!(path, "M125.0 750.0h0L375.0 500.0M875.0 0.0h0");
    }
}
