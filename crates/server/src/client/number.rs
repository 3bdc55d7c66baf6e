//! Numbers and times as people read them, the same way as the page shows them.

use std::time::{Duration, UNIX_EPOCH};

use super::text::UNKNOWN;

/// The last millisecond of the year 9999.
const LAST_MOMENT: i64 = 253_402_300_799_999;

fn known(value: f64, text: impl FnOnce(f64) -> String) -> String {
    // Minus zero becomes zero.
    if value.is_finite() { text(value + 0.0) } else { UNKNOWN.to_owned() }
}

/// Three significant digits.
fn three(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        // What would round up to a digit more already has it.
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A number of anything.
pub(super) fn count(value: f64) -> String {
    known(value, |value| {
        let (value, unit) = match value.abs() {
            size if size < 10_000.0 => (value, ""),
            size if size < 999_500.0 => (value / 1e3, "k"),
            size if size < 999_500_000.0 => (value / 1e6, "M"),
            _ => (value / 1e9, "G"),
        };
        if unit.is_empty() && value.fract() == 0.0 { format!("{value}") } else { format!("{}{unit}", three(value)) }
    })
}

/// Events per second.
pub(super) fn rate(value: f64) -> String {
    known(value, |value| format!("{}/s", count(value)))
}

/// A ratio, 0 to 1.
pub(super) fn percent(ratio: f64) -> String {
    known(ratio, |ratio| match ratio * 100.0 {
        value if value > 0.0 && value < 0.1 => "<0.1 %".to_owned(),
        value if value > 0.0 && value < 9.95 => format!("{value:.1} %"),
        value => format!("{value:.0} %"),
    })
}

/// A duration in ms.
pub(super) fn duration(ms: f64) -> String {
    known(ms, |ms| match ms {
        0.0 => "0 ms".to_owned(),
        ms if ms < 0.9995 => format!("{} µs", three(ms * 1e3)),
        ms if ms < 999.5 => format!("{} ms", three(ms)),
        ms if ms < 120_000.0 => format!("{} s", three(ms / 1e3)),
        // Saturates; longer than anything that runs.
        ms => span(ms as u64),
    })
}

/// A long time, given in ms, in its two largest units.
pub(super) fn span(ms: u64) -> String {
    let s = ms / 1000;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, min, s) => format!("{min} min {s} s"),
        (0, h, min, _) => format!("{h} h {min} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

/// A size in memory.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
    let value = bytes as f64 / 1024f64.powi(unit as i32);
    if unit == 0 { format!("{bytes} B") } else { format!("{} {}", three(value), UNITS[unit]) }
}

/// A value in its unit, as the metrics name it.
pub(super) fn in_unit(value: f64, unit: &str) -> String {
    match unit {
        "ms" => duration(value),
        "1/s" => rate(value),
        "ratio" => percent(value),
        _ => count(value),
    }
}

/// Date and time in UTC, from ms since the epoch.
pub(super) fn moment(timestamp: i64) -> String {
    match u64::try_from(timestamp) {
        Ok(ms) if timestamp <= LAST_MOMENT => {
            let moment = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string();
            moment.replace('T', " ").replace('Z', "")
        }
        _ => UNKNOWN.to_owned(),
    }
}

/// Time of day in UTC, from ms since the epoch.
pub(super) fn clock(timestamp: i64) -> String {
    let moment = moment(timestamp);
    moment.split_once(' ').map_or_else(|| moment.clone(), |(_, time)| time.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Copy + std::fmt::Debug>(show: impl Fn(T) -> String, cases: &[(T, &str)]) {
        for (value, expected) in cases {
            assert_eq!(show(*value), *expected, "{value:?}");
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        check(
            count,
            &[
                (0.0, "0"),
                (-0.0, "0"),
                (3.0, "3"),
                (0.5, "0.50"),
                (9.999, "10.0"),
                (1234.0, "1234"),
                (-2.0, "-2"),
                (12_345.0, "12.3k"),
                (1e6, "1.00M"),
                (5e12, "5000G"),
                (f64::NAN, "–"),
            ],
        );
        check(rate, &[(0.0, "0/s"), (1.25, "1.25/s"), (f64::INFINITY, "–")]);
        check(
            percent,
            &[(0.0, "0 %"), (0.0001, "<0.1 %"), (0.0123, "1.2 %"), (0.25, "25 %"), (1.0, "100 %"), (f64::NAN, "–")],
        );
        check(
            bytes,
            &[(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (25 << 20, "25.0 MiB"), (u64::MAX, "16777216 TiB")],
        );
    }

    #[test]
    fn times_are_in_the_unit_that_fits() {
        check(
            duration,
            &[
                (0.0, "0 ms"),
                (0.0123, "12.3 µs"),
                (1.0, "1.00 ms"),
                (999.4, "999 ms"),
                (999.9, "1.00 s"),
                (61_000.0, "61.0 s"),
                (200_000.0, "3 min 20 s"),
                (1e300, "213503982334 d 14 h"),
                (f64::NAN, "–"),
            ],
        );
        check(
            span,
            &[(0, "0 s"), (59_999, "59 s"), (61_000, "1 min 1 s"), (3_600_000, "1 h 0 min"), (90_000_000, "1 d 1 h")],
        );
    }

    #[test]
    fn moments_are_utc() {
        check(moment, &[(0, "1970-01-01 00:00:00.000"), (1_764_000_000_123, "2025-11-24 16:00:00.123"), (-1, "–")]);
        check(clock, &[(1_764_000_000_123, "16:00:00.123"), (i64::MAX, "–"), (LAST_MOMENT, "23:59:59.999")]);
    }
}
