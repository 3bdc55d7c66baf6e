//! An array that grows without moving: what was handed out once stays where it is.

use once_cell::race::OnceBox;

/// Entries of a chunk. It is made as a whole, so it is small: the thread that needs it first is recording.
const ENTRIES: usize = if LOOM { 2 } else { 32 };
/// Chunks of a directory.
const CHUNKS: usize = if LOOM { 2 } else { 512 };
const DIRECTORIES: usize = if LOOM { 2 } else { 256 };
/// Its threads have small stacks, and its atomics are large.
const LOOM: bool = cfg!(mcpscope_loom);

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

impl Place {
    /// Entries there can be: about four million.
    pub(crate) const CAPACITY: u32 = (DIRECTORIES * CHUNKS * ENTRIES) as u32;

    /// The place of the entry with this number, below [`Place::CAPACITY`].
    pub(crate) const fn of(number: u32) -> Self {
        Self(number)
    }

    const fn directory(self) -> usize {
        self.0 as usize / (CHUNKS * ENTRIES)
    }

    const fn chunk(self) -> usize {
        self.0 as usize / ENTRIES % CHUNKS
    }

    const fn entry(self) -> usize {
        self.0 as usize % ENTRIES
    }
}

type Chunk<T> = OnceBox<[T; ENTRIES]>;
type Directory<T> = OnceBox<[Chunk<T>; CHUNKS]>;

/// Entries by place: chunks behind directories, each made when it is first needed.
#[derive(Debug)]
pub(crate) struct Buckets<T>([Directory<T>; DIRECTORIES]);

impl<T> Default for Buckets<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| OnceBox::new()))
    }
}

impl<T: Default> Buckets<T> {
    /// The entry, if its chunk is there.
    #[inline]
    pub(crate) fn get(&self, place: Place) -> Option<&T> {
        self.0.get(place.directory())?.get()?.get(place.chunk())?.get()?.get(place.entry())
    }

    /// The entry, whose chunk is made if it is not there.
    #[inline]
    pub(crate) fn get_or_grow(&self, place: Place) -> Option<&T> {
        match self.get(place) {
            Some(entry) => Some(entry),
            None => self.grow(place),
        }
    }

    #[cold]
    fn grow(&self, place: Place) -> Option<&T> {
        let directory = get_or_make(self.0.get(place.directory())?).ok()?;
        get_or_make(directory.get(place.chunk())?).ok()?.get(place.entry())
    }
}

/// The content of a box, which is made if it is not there. As a slice first: an array would be made on the stack.
///
/// # Errors
/// Never, but nothing else says that there are as many entries as there are asked for.
fn get_or_make<T: Default, const N: usize>(cell: &OnceBox<[T; N]>) -> Result<&[T; N], Box<[T]>> {
    cell.get_or_try_init(|| (0..N).map(|_| T::default()).collect::<Box<[T]>>().try_into())
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::storage::cells::HistogramCell;

    #[test]
    fn every_number_has_a_place_of_its_own() {
        let parts = |place: Place| (place.directory(), place.chunk(), place.entry());
        let places: HashSet<_> = (0..100_000).map(Place::of).map(parts).collect();
        assert_eq!(places.len(), 100_000);
        let last = Place::of(Place::CAPACITY - 1);
        assert_eq!(parts(last), (DIRECTORIES - 1, CHUNKS - 1, ENTRIES - 1));
        assert!(Buckets::<u64>::default().get_or_grow(last).is_some());
        assert!(Buckets::<u64>::default().get_or_grow(Place::of(Place::CAPACITY)).is_none());
    }

    #[test]
    fn only_what_is_used_is_made() {
        for first in [0, 32, 10_016, Place::CAPACITY - 32] {
            let buckets = Buckets::<u64>::default();
            assert!(buckets.get(Place::of(first)).is_none());
            assert!(buckets.get_or_grow(Place::of(first + 8)).is_some());
            let made = (0..Place::CAPACITY).step_by(8).filter(|number| buckets.get(Place::of(*number)).is_some());
            assert!(made.eq((first..first + 32).step_by(8)), "the chunk of {first}, whatever its number");
        }
    }

    #[test]
    fn what_a_record_may_have_to_make_is_small() {
        assert!(ENTRIES * size_of::<HistogramCell>() <= 32 << 10);
        assert!(CHUNKS * size_of::<Chunk<HistogramCell>>() <= 32 << 10);
    }
}
