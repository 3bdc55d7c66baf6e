//! What a thread remembers of the names it recorded by: what they mean, without asking anybody.

use std::array;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering::Relaxed;

use crate::family::Pairs;
use crate::record::Target;

/// Where a name can be: which of them, its hash says.
const SETS: usize = 128;
/// Places in each, so that names that fall together and are in use at one time do not push each other out.
const WAYS: usize = 4;
/// Longest name and labels, in bytes, that are remembered. Longer ones are looked up each time.
const MAX_BYTES: usize = 512;
/// Most bytes of a string that its [`Word`] tells from every other.
const SHORT_BYTES: usize = 16;

/// The ends and the length of a string: of nearly every name and label, all that there is to it. Comparing and hashing
/// numbers takes a fraction of the time that it takes for strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    first: u64,
    last: u64,
    bytes: usize,
}

impl Word {
    #[inline(always)]
    fn new(text: &str) -> Self {
        let text = text.as_bytes();
        let bytes = text.len();
        if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            return Self { first: u64::from_le_bytes(*first), last: u64::from_le_bytes(*last), bytes };
        }
        if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            return Self { first: u32::from_le_bytes(*first).into(), last: u32::from_le_bytes(*last).into(), bytes };
        }
        if let (Some(first), Some(last)) = (text.first_chunk(), text.last_chunk()) {
            return Self { first: u16::from_le_bytes(*first).into(), last: u16::from_le_bytes(*last).into(), bytes };
        }
        Self { first: text.first().map_or(0, |byte| u64::from(*byte)), last: 0, bytes }
    }
}

/// What a name with labels was found to mean.
#[derive(Debug)]
struct Entry {
    name: Word,
    /// Names and values.
    labels: Box<[[Word; 2]]>,
    /// The strings that are too long for their words to tell, by their numbers.
    long: Box<[(usize, Box<str>)]>,
    target: Target,
}

impl Entry {
    #[inline(always)]
    fn is(&self, name: &str, labels: &Pairs<'_>) -> bool {
        let same = |(words, (name, value)): (&[Word; 2], &(&str, &str))| *words == [Word::new(name), Word::new(value)];
        self.name == Word::new(name)
            && self.labels.len() == labels.len()
            && self.labels.iter().zip(labels).all(same)
            && self.long.iter().all(|(number, text)| string(*number, name, labels) == Some(text))
    }
}

/// Of the name, and the names and values of the labels, the one with this number.
#[inline]
fn string<'a>(number: usize, name: &'a str, labels: &'a Pairs<'a>) -> Option<&'a str> {
    let Some(number) = number.checked_sub(1) else { return Some(name) };
    let (name, value) = labels.get(number / 2)?;
    Some(if number % 2 == 0 { name } else { value })
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.target.each_series(|series| {
            series.remembered.fetch_sub(1, Relaxed);
        });
    }
}

/// Names that fall together, the newest first.
#[derive(Debug, Default)]
struct Set {
    hashes: [u64; WAYS],
    entries: [Option<Entry>; WAYS],
}

/// The names that a thread recorded by.
#[derive(Debug)]
pub(crate) struct Names {
    /// Made with the first name.
    sets: Option<Box<[Set; SETS]>>,
    hasher: foldhash::fast::RandomState,
    /// Of the samples.
    pub(crate) random: fastrand::Rng,
}

impl Default for Names {
    fn default() -> Self {
        let hasher = foldhash::fast::RandomState::default();
        let random = fastrand::Rng::with_seed(hasher.hash_one(0));
        Self { sets: None, hasher, random }
    }
}

impl Names {
    #[inline(always)]
    fn hash(&self, name: &str, labels: &Pairs<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        let mut add = |text| {
            let Word { first, last, .. } = Word::new(text);
            hasher.write_u128(u128::from(first) << 64 | u128::from(last));
        };
        add(name);
        // Not the labels' names: the same name of a metric goes with the same labels.
        labels.iter().for_each(|(_, value)| add(value));
        hasher.finish()
    }

    /// What it means, if the thread has recorded by it lately.
    #[inline(always)]
    pub(crate) fn find(&self, name: &str, labels: &Pairs<'_>) -> Option<&Target> {
        let sets = self.sets.as_ref()?;
        let hash = self.hash(name, labels);
        let Set { hashes, entries } = sets.get(hash as usize % SETS)?;
        for (of, entry) in hashes.iter().zip(entries) {
            if *of == hash
                && let Some(entry) = entry
                && entry.is(name, labels)
            {
                return Some(&entry.target);
            }
        }
        None
    }

    pub(crate) fn remember(&mut self, name: &str, labels: &Pairs<'_>, target: Target) {
        let strings: Vec<_> = (0..).map_while(|number| string(number, name, labels)).collect();
        if strings.iter().map(|text| text.len()).sum::<usize>() > MAX_BYTES {
            return;
        }
        let hash = self.hash(name, labels);
        let sets = self.sets.get_or_insert_with(|| Box::new(array::from_fn(|_| Set::default())));
        let Some(Set { hashes, entries }) = sets.get_mut(hash as usize % SETS) else { return };
        target.each_series(|series| {
            series.remembered.fetch_add(1, Relaxed);
        });
        let long = strings.iter().enumerate().filter(|(_, text)| text.len() > SHORT_BYTES);
        let long = long.map(|(number, text)| (number, (*text).into())).collect();
        let labels = labels.iter().map(|(name, value)| [Word::new(name), Word::new(value)]).collect();
        // The oldest of them goes.
        hashes.rotate_right(1);
        hashes[0] = hash;
        entries.rotate_right(1);
        entries[0] = Some(Entry { name: Word::new(name), labels, long, target });
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
        fn short_strings_are_told_apart(a in "[ab\0é]{0,17}", b in "[ab\0é]{0,17}") {
            prop_assume!(a.len() <= SHORT_BYTES || b.len() <= SHORT_BYTES);
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
                // `.` never makes a line's end, so that this is none of the others.
                let longer = format!("{name}\n");
                prop_assert!(names.find(&longer, &labels).is_none());
                for at in 0..labels.len() {
                    let mut other = labels.clone();
                    let value = format!("{}\n", other[at].1);
                    other[at].1 = &value;
                    prop_assert!(names.find(name, &other).is_none());
                    other[at] = ("other", labels[at].1);
                    prop_assert_eq!(names.find(name, &other).is_some(), labels[at].0 == "other");
                }
            }
        }
    }
}
