//! An array that grows without moving: what was handed out once stays where it is.

use std::sync::OnceLock;

/// Entries of the first bucket; each further one has twice as many.
const FIRST: u32 = 32;
const BUCKETS: usize = 16;

/// Where an entry is. Worked out once, when a series is born.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    bucket: u32,
    offset: u32,
}

impl Place {
    /// Entries there can be: about two million.
    pub(crate) const CAPACITY: u32 = FIRST * ((1 << BUCKETS) - 1);

    /// The place of the entry with this number, below [`Place::CAPACITY`].
    pub(crate) const fn of(number: u32) -> Self {
        let from_first = number + FIRST;
        let bucket = from_first.ilog2() - FIRST.ilog2();
        Self { bucket, offset: from_first - (FIRST << bucket) }
    }
}

/// Entries by place.
#[derive(Debug)]
pub(crate) struct Buckets<T>([OnceLock<Box<[T]>>; BUCKETS]);

impl<T> Default for Buckets<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| OnceLock::new()))
    }
}

impl<T: Default> Buckets<T> {
    /// The entry, if its bucket is there.
    #[inline]
    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        self.0.get(place.bucket as usize)?.get()?.get(place.offset as usize)
    }

    /// The entry, whose bucket is made if it is not there.
    #[inline]
    pub(crate) fn get_or_grow(&self, place: Place) -> Option<&T> {
        match self.get(place) {
            Some(entry) => Some(entry),
            None => self.grow(place),
        }
    }

    #[cold]
    fn grow(&self, place: Place) -> Option<&T> {
        let entries = || (0..FIRST << place.bucket).map(|_| T::default()).collect();
        self.0.get(place.bucket as usize)?.get_or_init(entries).get(place.offset as usize)
    }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_has_a_place_of_its_own() {
        let places: HashSet<_> = (0..10_000).map(Place::of).map(|place| (place.bucket, place.offset)).collect();
        assert_eq!(places.len(), 10_000);
        let last = Place::of(Place::CAPACITY - 1);
        assert_eq!((last.bucket, last.offset), (BUCKETS as u32 - 1, (FIRST << (BUCKETS - 1)) - 1));
    }

    #[test]
    fn only_what_is_used_is_made() {
        let buckets = Buckets::<u64>::default();
        assert!(buckets.get(Place::of(40)).is_none());
        assert!(buckets.get_or_grow(Place::of(40)).is_some());
        assert!(buckets.get(Place::of(0)).is_none());
        assert!(buckets.get(Place::of(95)).is_some());
    }
}
