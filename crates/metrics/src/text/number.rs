//! Numbers as the text formats have them.

/// A whole number.
#[inline]
pub(super) fn whole(out: &mut String, value: u64) {
    out.push_str(itoa::Buffer::new().format(value));
}

/// Any number, as short as can be: whole ones without a point.
pub(super) fn float(out: &mut String, value: f64) {
    // Below 2^53 every whole number is exact.
    if value.fract() == 0.0 && value.abs() < 9e15 {
        out.push_str(itoa::Buffer::new().format(value as i64));
    } else if value.is_finite() {
        out.push_str(ryu::Buffer::new().format_finite(value));
    } else {
        out.push_str(if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        });
    }
}

/// Nanoseconds as seconds, exactly, with a point.
pub(super) fn seconds(out: &mut String, ns: u64) {
    whole(out, ns / NS);
    out.push('.');
    fraction(out, ns % NS, NS);
}

/// Milliseconds as seconds, exactly, with a point.
pub(super) fn seconds_of_ms(out: &mut String, ms: u64) {
    whole(out, ms / 1000);
    out.push('.');
    fraction(out, ms % 1000, 1000);
}

/// The digits behind the point of `part / unit`, at least one; `unit` is a power of ten, `part` less.
fn fraction(out: &mut String, part: u64, unit: u64) {
    // With a digit before them, so that zeros at their beginning stay.
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(part + unit).get(1..).unwrap_or_default().trim_end_matches('0');
    out.push_str(if digits.is_empty() { "0" } else { digits });
}

/// An upper bound in nanoseconds as the value of `le` in seconds, in OpenMetrics' canonical form: `0.001`, `1.0`, `2e-06`.
pub(super) fn bound(ns: u64) -> String {
    let mut out = String::new();
    if ns == 0 || ns >= NS / 10_000 {
        seconds(&mut out, ns);
        return out;
    }
    let exponent = NS.ilog10() - ns.ilog10();
    let digits = ns.to_string();
    let (first, rest) = digits.split_at(1);
    let rest = rest.trim_end_matches('0');
    let point = if rest.is_empty() { "" } else { "." };
    format!("{first}{point}{rest}e-{exponent:02}")
}

/// Nanoseconds in a second.
const NS: u64 = 1_000_000_000;

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn bounds_are_canonical() {
        let bounds = [1_000, 2_500, 50_000, 99_999, 100_000, 1_000_000, 500_000_000, NS, 10 * NS, 300 * NS];
        let expected = ["1e-06", "2.5e-06", "5e-05", "9.9999e-05", "0.0001", "0.001", "0.5", "1.0", "10.0", "300.0"];
        assert_eq!(bounds.map(bound), expected);
    }

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0, -0.0, 1.0, -3.0, 0.5, 1e15, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
        let expected = ["0", "0", "1", "-3", "0.5", "1000000000000000", "1e300", "+Inf", "-Inf", "NaN"];
        assert_eq!(numbers.map(|number| text(|out| float(out, number))), expected);
        assert_eq!(text(|out| seconds(out, 1_500_000)), "0.0015");
        assert_eq!(text(|out| seconds(out, u64::MAX)), "18446744073.709551615");
        assert_eq!(text(|out| seconds_of_ms(out, 1_700_000_000_020)), "1700000000.02");
    }

    proptest! {
        #[test]
        fn numbers_are_read_back(value in any::<f64>(), ns in any::<u64>(), bits in 0_u32..64) {
            let ns = ns >> bits;
            prop_assert_eq!(text(|out| float(out, value)).parse::<f64>().unwrap(), value);
            let found = text(|out| seconds(out, ns));
            let (whole, fraction) = found.split_once('.').unwrap();
            prop_assert_eq!(format!("{whole}{fraction:0<9}").parse::<u64>().unwrap(), ns);
            prop_assert_eq!(bound(ns).parse::<f64>().unwrap(), found.parse::<f64>().unwrap());
        }
    }
}
