//! The log-linear scale of histograms: 32 sub-buckets per octave over integer nanoseconds, with the exposed bounds on it.

/// Values below 2^10 ns (about 1 us) share one position.
const FIRST_OCTAVE: u32 = 10;
/// Values from 2^47 ns (39 h) on share one position; the scale must reach past the longest duration accepted, a day.
const LAST_OCTAVE: u32 = 46;
/// Sub-buckets per octave, as a power of two: a sub-bucket is at most 1/32 of its value wide, so that its middle is at
/// most 1/64 = 1.6 % off.
const SUB_BITS: u32 = 5;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
const OCTAVES: usize = (LAST_OCTAVE - FIRST_OCTAVE + 1) as usize;

/// Chunks of the scale: what is below, one per octave, what is above.
pub(crate) const CHUNKS: usize = OCTAVES + 2;
/// Cells of a chunk: one per sub-bucket, and one more because an exposed bound may divide one of them.
pub(crate) const CELLS: usize = SUB_BUCKETS + 1;

/// The chunk and the sub-bucket of a value.
#[inline]
const fn position(value_ns: u64) -> (usize, usize) {
    if value_ns < 1 << FIRST_OCTAVE {
        return (0, 0);
    }
    let octave = value_ns.ilog2();
    if octave > LAST_OCTAVE {
        return (CHUNKS - 1, 0);
    }
    let sub = (value_ns >> (octave - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
    ((octave - FIRST_OCTAVE) as usize + 1, sub)
}

/// A single number for a position, in the order of the values: the key of sparse buckets.
const fn index(chunk: usize, sub: usize) -> u16 {
    (match chunk {
        0 => 0,
        chunk => 1 + (chunk - 1) * SUB_BUCKETS + sub,
    }) as u16
}

/// The lowest and the highest value of a position, in nanoseconds.
pub(crate) fn edges_ns(index: u16) -> (u64, u64) {
    let Some(cell) = index.checked_sub(1) else { return (0, (1 << FIRST_OCTAVE) - 1) };
    let (octave, sub) = (u32::from(cell) / SUB_BUCKETS as u32 + FIRST_OCTAVE, u64::from(cell) % SUB_BUCKETS as u64);
    let width = 1_u64 << (octave - SUB_BITS);
    let low = (1_u64 << octave) + sub * width;
    (low, if octave > LAST_OCTAVE { u64::MAX } else { low + (width - 1) })
}

/// The middle of a position, in nanoseconds; the lowest value of the last one, which has no end.
pub(crate) fn middle_ns(index: u16) -> u64 {
    match edges_ns(index) {
        (low, u64::MAX) => low,
        (low, high) => low + (high - low).div_ceil(2),
    }
}

/// The exposed upper bounds of a histogram, and where on the scale they lie.
///
/// They are no bounds of the scale, so each divides the sub-bucket it falls into. A value thus needs one cell only, and
/// the exposed buckets are exact all the same.
#[derive(Debug)]
pub(crate) struct Bounds {
    bounds_ns: &'static [u64],
    /// The bound within each chunk; the highest number where there is none.
    edges: [u64; CHUNKS],
    /// The exposed bucket that each chunk begins in.
    firsts: [u8; CHUNKS],
}

impl Bounds {
    /// # Panics
    /// At compile time: unless the bounds ascend, at most one to a chunk.
    pub(crate) const fn new(bounds_ns: &'static [u64]) -> Self {
        let mut edges = [u64::MAX; CHUNKS];
        let mut at = 0;
        while at < bounds_ns.len() {
            assert!(at == 0 || bounds_ns[at - 1] < bounds_ns[at], "bounds ascend");
            let (chunk, _) = position(bounds_ns[at]);
            assert!(edges[chunk] == u64::MAX, "two bounds in one octave");
            edges[chunk] = bounds_ns[at];
            at += 1;
        }
        let mut firsts = [0; CHUNKS];
        let (mut chunk, mut first) = (1, 0);
        while chunk < CHUNKS {
            if edges[chunk - 1] != u64::MAX {
                first += 1;
            }
            firsts[chunk] = first;
            chunk += 1;
        }
        Self { bounds_ns, edges, firsts }
    }

    pub(crate) const fn as_ns(&self) -> &'static [u64] {
        self.bounds_ns
    }

    /// The chunk and the cell of a value.
    #[inline]
    pub(crate) fn cell(&self, value_ns: u64) -> (usize, usize) {
        let (chunk, sub) = position(value_ns);
        let edge = self.edges.get(chunk).copied().unwrap_or(u64::MAX);
        (chunk, sub + usize::from(value_ns > edge))
    }

    /// The exposed bucket that a value falls into; one more than there are bounds if it is above all.
    pub(crate) fn bucket(&self, value_ns: u64) -> usize {
        self.bounds_ns.partition_point(|bound| *bound < value_ns)
    }

    /// Adds the cells of one chunk to exposed buckets.
    #[inline]
    pub(crate) fn add<T>(&self, chunk: usize, cells: &[T; CELLS], read: impl Fn(&T) -> u64, buckets: &mut [u64]) {
        let (below, above) = cells.split_at(self.divided(chunk).min(CELLS));
        let first = self.firsts.get(chunk).map_or(0, |first| usize::from(*first));
        for (bucket, cells) in buckets.iter_mut().skip(first).zip([below, above]) {
            *bucket += cells.iter().map(&read).sum::<u64>();
        }
    }

    /// Turns the cells of one chunk into positions on the scale. Chunks come in ascending order.
    pub(crate) fn read(&self, chunk: usize, cells: &[u64; CELLS], scale: &mut Vec<(u16, u64)>) {
        let divided = self.divided(chunk);
        for (cell, n) in cells.iter().enumerate().filter(|(_, n)| **n > 0) {
            let position = index(chunk, cell - usize::from(cell >= divided));
            match scale.last_mut() {
                Some((last, count)) if *last == position => *count += n,
                _ => scale.push((position, *n)),
            }
        }
    }

    /// How many cells of a chunk are below the exposed bound in it; more than there are if there is none.
    fn divided(&self, chunk: usize) -> usize {
        match self.edges.get(chunk) {
            None | Some(&u64::MAX) => usize::MAX,
            Some(edge) => position(*edge).1 + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index_of(value_ns: u64) -> u16 {
        let (chunk, sub) = position(value_ns);
        index(chunk, sub)
    }

    proptest! {
        #[test]
        fn the_middle_is_within_1_6_percent(value in 1_u64 << FIRST_OCTAVE..1 << (LAST_OCTAVE + 1), bits in 0_u32..=LAST_OCTAVE - FIRST_OCTAVE) {
            let value = (value >> bits).max(1 << FIRST_OCTAVE);
            let middle = middle_ns(index_of(value));
            let error = middle.abs_diff(value) as f64 / value as f64;
            prop_assert!(error <= 1.0 / 64.0 + 1e-9, "{value}: {middle}, off by {error}");
        }

        #[test]
        fn a_value_is_between_the_edges_of_its_position(value in any::<u64>(), bits in 0_u32..64) {
            let index = index_of(value >> bits);
            let (low, high) = edges_ns(index);
            prop_assert!((low..=high).contains(&(value >> bits)));
            prop_assert!((low..=high).contains(&middle_ns(index)));
            prop_assert_eq!((index_of(low), index_of(high)), (index, index));
        }

        #[test]
        fn the_order_is_kept(a in any::<u64>(), b in any::<u64>()) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(index_of(low) <= index_of(high));
        }

        #[test]
        fn a_cell_is_read_back_as_what_was_put_into_it(value in any::<u64>(), bits in 0_u32..64) {
            static BOUNDS: Bounds = Bounds::new(&[1_000, 2_000_000, 5_000_000, 300_000_000_000]);
            let near = [value >> bits, 1_000, 1_001, 5_000_000, 5_000_001, 300_000_000_000, 300_000_000_001];
            for value in near {
                let (chunk, cell) = BOUNDS.cell(value);
                let mut cells = [0; CELLS];
                cells[cell] = 1;
                let (mut buckets, mut scale) = ([0; 5], Vec::new());
                BOUNDS.add(chunk, &cells, |n| *n, &mut buckets);
                BOUNDS.read(chunk, &cells, &mut scale);
                let mut expected = [0; 5];
                expected[BOUNDS.bucket(value)] = 1;
                prop_assert_eq!(buckets, expected, "{}", value);
                prop_assert_eq!(scale, [(index_of(value), 1)], "{}", value);
            }
        }
    }

    #[test]
    fn the_ends_have_positions_of_their_own() {
        assert_eq!(position(0), (0, 0));
        assert_eq!(position(1023), (0, 0));
        assert_eq!(position(1024), (1, 0));
        assert_eq!(position((1 << 47) - 1), (OCTAVES, SUB_BUCKETS - 1));
        assert_eq!(position(1 << 47), (CHUNKS - 1, 0));
        assert_eq!(position(u64::MAX), (CHUNKS - 1, 0));
    }
}
