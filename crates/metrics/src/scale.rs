//! The log-linear scale of histograms: 32 sub-buckets per octave over integer nanoseconds.

/// Values below 2^10 ns (about 1 us) share one cell.
const FIRST_OCTAVE: u32 = 10;
/// Values from 2^39 ns (about 550 s) on share one cell; the scale must reach past the highest exposed bound, 300 s.
const LAST_OCTAVE: u32 = 38;
/// Sub-buckets per octave, as a power of two: a sub-bucket is at most 1/32 of its value wide, so that its middle is at
/// most 1/64 = 1.6 % off.
const SUB_BITS: u32 = 5;

/// Sub-buckets per octave.
pub(crate) const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Octaves on the scale.
pub(crate) const OCTAVES: usize = (LAST_OCTAVE - FIRST_OCTAVE + 1) as usize;

/// A position on the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Under,
    In { octave: usize, sub: usize },
    Over,
}

pub(crate) fn position(value_ns: u64) -> Position {
    if value_ns < 1 << FIRST_OCTAVE {
        return Position::Under;
    }
    let octave = value_ns.ilog2();
    if octave > LAST_OCTAVE {
        return Position::Over;
    }
    let sub = (value_ns >> (octave - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
    Position::In { octave: (octave - FIRST_OCTAVE) as usize, sub }
}

/// A single number for a position, in the order of the values: the key of sparse buckets.
pub(crate) fn index(position: Position) -> u16 {
    match position {
        Position::Under => 0,
        Position::In { octave, sub } => (1 + octave * SUB_BUCKETS + sub) as u16,
        Position::Over => (1 + OCTAVES * SUB_BUCKETS) as u16,
    }
}

/// The middle of a bucket, in nanoseconds.
pub(crate) fn middle_ns(index: u16) -> u64 {
    let index = usize::from(index);
    if index == 0 {
        return 1 << (FIRST_OCTAVE - 1);
    }
    let cell = index - 1;
    let octave = (cell / SUB_BUCKETS) as u32 + FIRST_OCTAVE;
    let width = 1_u64 << (octave - SUB_BITS);
    (1_u64 << octave) + (cell % SUB_BUCKETS) as u64 * width + width / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_middle_is_within_1_6_percent(value in 1_u64 << FIRST_OCTAVE..300_000_000_000) {
            let middle = middle_ns(index(position(value)));
            let error = middle.abs_diff(value) as f64 / value as f64;
            prop_assert!(error <= 1.0 / 64.0 + 1e-9, "{value}: {middle}, off by {error}");
        }

        #[test]
        fn the_order_is_kept(a in any::<u64>(), b in any::<u64>()) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(index(position(low)) <= index(position(high)));
        }
    }

    #[test]
    fn the_ends_have_cells_of_their_own() {
        assert_eq!(position(0), Position::Under);
        assert_eq!(position(1023), Position::Under);
        assert_eq!(position(1024), Position::In { octave: 0, sub: 0 });
        assert_eq!(position((1 << 39) - 1), Position::In { octave: OCTAVES - 1, sub: SUB_BUCKETS - 1 });
        assert_eq!(position(1 << 39), Position::Over);
        assert_eq!(position(u64::MAX), Position::Over);
    }
}
