//! What a thread remembers of the names it recorded by: what they mean, without asking anybody.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering::Relaxed;

use crate::family::Pairs;
use crate::record::Target;

/// How many a thread remembers, a power of two.
const SLOTS: usize = 512;
/// Places for those that fall together, so that two that are in use at one time do not push each other out.
const WAYS: usize = 4;
/// Longest name and labels that are remembered, in bytes. Longer ones are looked up each time.
const MAX_BYTES: usize = 512;

/// A string of at most 16 bytes as three numbers, which tell it from every other; of a longer one, its ends.
///
/// Nearly all names and labels are that short, and comparing and hashing numbers takes a fraction of the time that it
/// takes for strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    bytes: usize,
    head: u64,
    tail: u64,
}

impl Word {
    const MAX_BYTES: usize = 16;

    #[inline]
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let (head, tail) = match (bytes.first_chunk(), bytes.last_chunk()) {
            (Some(head), Some(tail)) => (u64::from_le_bytes(*head), u64::from_le_bytes(*tail)),
            _ => match (bytes.first_chunk(), bytes.last_chunk()) {
                (Some(head), Some(tail)) => (u32::from_le_bytes(*head).into(), u32::from_le_bytes(*tail).into()),
                _ => (bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)), 0),
            },
        };
        Self { bytes: bytes.len(), head, tail }
    }
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    /// The name, then the names and values of the labels.
    words: Box<[Word]>,
    /// Those that are too long for a word, in order.
    long: Box<[Box<str>]>,
    target: Target,
}

impl Entry {
    #[inline]
    fn is(&self, name: &str, labels: &Pairs<'_>) -> bool {
        let Some((first, rest)) = self.words.split_first() else { return false };
        if rest.len() != 2 * labels.len() || *first != Word::new(name) {
            return false;
        }
        for (words, (name, value)) in rest.chunks_exact(2).zip(labels) {
            if *words != [Word::new(name), Word::new(value)] {
                return false;
            }
        }
        self.long.is_empty() || self.is_long(name, labels)
    }

    /// Whether it is the same in what is too long for words.
    fn is_long(&self, name: &str, labels: &Pairs<'_>) -> bool {
        let given = strings(name, labels).filter(|text| text.len() > Word::MAX_BYTES);
        given.eq(self.long.iter().map(|text| &**text))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.target.each_series(|series| {
            series.remembered.fetch_sub(1, Relaxed);
        });
    }
}

/// The names that a thread recorded by.
#[derive(Debug)]
pub(crate) struct Names {
    slots: Vec<Option<Entry>>,
    hasher: foldhash::fast::RandomState,
    /// Of the samples.
    pub(crate) random: fastrand::Rng,
}

impl Default for Names {
    fn default() -> Self {
        let hasher = foldhash::fast::RandomState::default();
        let random = fastrand::Rng::with_seed(hasher.hash_one(0));
        Self { slots: Vec::new(), hasher, random }
    }
}

/// Where the places for a hash begin.
const fn set(hash: u64) -> usize {
    hash as usize % (SLOTS / WAYS) * WAYS
}

/// The name, then the names and values of the labels.
fn strings<'a>(name: &'a str, labels: &'a Pairs<'a>) -> impl Iterator<Item = &'a str> {
    std::iter::once(name).chain(labels.iter().flat_map(|(name, value)| [*name, *value]))
}

impl Names {
    #[inline]
    fn hash(&self, name: &str, labels: &Pairs<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        let mut add = |text| {
            let word = Word::new(text);
            hasher.write_u64(word.head);
            hasher.write_u64(word.tail ^ word.bytes as u64);
        };
        add(name);
        for (_, value) in labels {
            // Not the labels' names: the same name of a metric goes with the same labels.
            add(value);
        }
        hasher.finish()
    }

    /// What it means, if the thread has recorded by it lately.
    #[inline]
    pub(crate) fn find(&self, name: &str, labels: &Pairs<'_>) -> Option<&Target> {
        let hash = self.hash(name, labels);
        let set = self.slots.get(set(hash)..)?.first_chunk::<WAYS>()?;
        let found = set.iter().flatten().find(|entry| entry.hash == hash && entry.is(name, labels));
        found.map(|entry| &entry.target)
    }

    pub(crate) fn remember(&mut self, name: &str, labels: &Pairs<'_>, target: Target) {
        let bytes: usize = strings(name, labels).map(str::len).sum();
        if bytes > MAX_BYTES {
            return;
        }
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, || None);
        }
        let hash = self.hash(name, labels);
        let words = strings(name, labels).map(Word::new).collect();
        let long = strings(name, labels).filter(|text| text.len() > Word::MAX_BYTES).map(Into::into).collect();
        let set = self.slots.get_mut(set(hash)..).and_then(|slots| slots.first_chunk_mut::<WAYS>());
        if let Some(set) = set {
            target.each_series(|series| {
                series.remembered.fetch_add(1, Relaxed);
            });
            // The oldest of them goes.
            set.rotate_right(1);
            set[0] = Some(Entry { hash, words, long, target });
        }
    }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn those_that_are_in_use_at_one_time_are_all_remembered() {
        const TOOLS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut names = Names::default();
        for tool in TOOLS {
            names.remember("calls", &[("tool", tool)], Target::General { families: 0 });
        }
        let found = TOOLS.iter().filter(|tool| names.find("calls", &[("tool", tool)]).is_some()).count();
        // Where one has no place, five of eight would have to share one of 128 sets.
        assert_eq!(found, TOOLS.len());
    }

    proptest! {
        #[test]
        fn short_strings_are_told_apart(a in "[ab\0é]{0,12}", b in "[ab\0é]{0,12}") {
            prop_assume!(a.len() <= Word::MAX_BYTES && b.len() <= Word::MAX_BYTES);
            prop_assert_eq!(Word::new(&a) == Word::new(&b), a == b);
        }

        #[test]
        fn only_what_was_remembered_is_found(
            given in prop::collection::vec((".{0,40}", prop::collection::vec(("[a-z]{1,20}", ".{0,40}"), 0..4)), 1..20),
        ) {
            let mut names = Names::default();
            for (name, labels) in &given {
                let labels: Vec<_> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                names.remember(name, &labels, Target::General { families: 0 });
                prop_assert!(names.find(name, &labels).is_some());
                let longer = format!("{name}x");
                prop_assert!(names.find(&longer, &labels).is_none());
                for at in 0..labels.len() {
                    let mut other = labels.clone();
                    let value = format!("{}\0", other[at].1);
                    other[at].1 = &value;
                    prop_assert!(names.find(name, &other).is_none());
                    other[at] = ("other", labels[at].1);
                    prop_assert_eq!(names.find(name, &other).is_some(), labels[at].0 == "other");
                }
            }
        }
    }
}
