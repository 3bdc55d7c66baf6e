//! Numbers by position, packed.

use std::fmt;

/// How many values are at each position of a scale; positions without values take no room.
///
/// Packed, because it is the largest part of a snapshot, of which there are several at a time, and grows as rare durations
/// come: each position is its distance from the one before it and its number, both as LEB128. That is three bytes for most.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sparse(Box<[u8]>);

impl Sparse {
    /// Positions, in ascending order, and the number of values at each.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let (mut bytes, mut next) = (&*self.0, 0);
        std::iter::from_fn(move || {
            let (distance, n) = (read(&mut bytes)?, read(&mut bytes)?);
            let position = u16::try_from(next + distance).ok()?;
            next = u64::from(position) + 1;
            Some((position, n))
        })
    }

    /// Whether there are no values.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What there is in this one or in the other, each number of both by `with`.
    pub(crate) fn join(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        let both = std::iter::from_fn(|| {
            let at = match (ours.peek(), theirs.peek()) {
                (Some((our, _)), Some((their, _))) => *our.min(their),
                (Some((at, _)), None) | (None, Some((at, _))) => *at,
                (None, None) => return None,
            };
            let our = ours.next_if(|(our, _)| *our == at).map_or(0, |(_, n)| n);
            let their = theirs.next_if(|(their, _)| *their == at).map_or(0, |(_, n)| n);
            Some((at, with(our, their)))
        });
        both.collect()
    }
}

impl FromIterator<(u16, u64)> for Sparse {
    /// Positions come in ascending order, each once.
    fn from_iter<I: IntoIterator<Item = (u16, u64)>>(positions: I) -> Self {
        let (mut bytes, mut next) = (Vec::new(), 0);
        for (position, n) in positions.into_iter().filter(|(_, n)| *n > 0) {
            let position = u64::from(position);
            debug_assert!(position >= next, "in ascending order");
            write(position.saturating_sub(next), &mut bytes);
            write(n, &mut bytes);
            next = position + 1;
        }
        Self(bytes.into())
    }
}

impl fmt::Debug for Sparse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Seven bits to a byte, the lowest first; the highest bit says that there is another.
fn write(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn numbers() -> impl Strategy<Value = BTreeMap<u16, u64>> {
        let number = (any::<u64>(), 0_u32..64).prop_map(|(n, bits)| (n >> bits).max(1));
        prop::collection::btree_map(any::<u16>(), number, 0..50)
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(numbers in numbers()) {
            let sparse: Sparse = numbers.iter().map(|(at, n)| (*at, *n)).collect();
            prop_assert_eq!(sparse.iter().collect::<BTreeMap<_, _>>(), numbers);
        }

        #[test]
        fn joining_sees_every_position_once(a in numbers(), b in numbers()) {
            let sparse = |numbers: &BTreeMap<u16, u64>| numbers.iter().map(|(at, n)| (*at, *n)).collect::<Sparse>();
            let mut expected = a.clone();
            for (at, n) in &b {
                let sum = expected.entry(*at).or_default();
                *sum = sum.saturating_add(*n);
            }
            prop_assert_eq!(sparse(&a).join(&sparse(&b), u64::saturating_add), sparse(&expected));
        }
    }

    #[test]
    fn what_is_nothing_takes_no_room() {
        let sparse: Sparse = [(0, 0), (7, 1), (8, 0), (65_535, 3)].into_iter().collect();
        assert_eq!(format!("{sparse:?}"), "{7: 1, 65535: 3}");
        assert_eq!(sparse.join(&sparse, u64::saturating_sub), Sparse::default());
        assert!(Sparse::default().is_empty() && !sparse.is_empty());
    }

    #[test]
    fn neighbours_take_a_byte_and_their_number() {
        let sparse: Sparse = (100..300).map(|at| (at, 1_000)).collect();
        assert_eq!(sparse.0.len(), 200 * 3);
    }
}
