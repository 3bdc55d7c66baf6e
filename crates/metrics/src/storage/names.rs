//! What a thread remembers of the names it recorded by: what they mean, without asking anybody.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering::Relaxed;

use crate::family::Pairs;
use crate::record::Target;

/// How many a thread remembers, a power of two.
const SLOTS: usize = 512;
/// Places for those that fall together, so that two that are in use at one time do not push each other out.
const WAYS: usize = 4;
/// The expected is looked at first while it came more often than half of this, of the last few times.
const MAX_TRUST: u8 = 8;
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
    hash: u64,
    name: Word,
    /// Names and values.
    labels: Box<[[Word; 2]]>,
    /// The strings that are too long for their words to tell, by their numbers.
    long: Box<[(usize, Box<str>)]>,
    target: Target,
    /// Where that is which came after it, the last time.
    next: usize,
}

impl Entry {
    #[inline(always)]
    fn is(&self, name: &str, labels: &Pairs<'_>) -> bool {
        if self.name != Word::new(name) || self.labels.len() != labels.len() {
            return false;
        }
        for (words, (name, value)) in self.labels.iter().zip(labels) {
            if *words != [Word::new(name), Word::new(value)] {
                return false;
            }
        }
        for (number, text) in &self.long {
            if string(*number, name, labels) != Some(text) {
                return false;
            }
        }
        true
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

/// The names that a thread recorded by.
#[derive(Debug)]
pub(crate) struct Names {
    /// Made with the first name.
    slots: Vec<Option<Entry>>,
    /// Where that is which was recorded by last, and that which is expected now. Many programs record the same things in
    /// the same order again and again, and to look at one place takes less time than to find it.
    last: usize,
    next: usize,
    /// How often of late the expected came; in vain, to look takes longer.
    trust: u8,
    hasher: foldhash::fast::RandomState,
    /// Of the samples.
    pub(crate) random: fastrand::Rng,
}

impl Default for Names {
    fn default() -> Self {
        let hasher = foldhash::fast::RandomState::default();
        let random = fastrand::Rng::with_seed(hasher.hash_one(0));
        Self { slots: Vec::new(), last: 0, next: 0, trust: 0, hasher, random }
    }
}

/// Where the places for a hash begin.
const fn set(hash: u64) -> usize {
    hash as usize % (SLOTS / WAYS) * WAYS
}

impl Names {
    #[inline(always)]
    fn hash(&self, name: &str, labels: &Pairs<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        let mut add = |text: &str| {
            let Word { first, last, bytes } = Word::new(text);
            hasher.write_u128(u128::from(first) << 64 | u128::from(last ^ bytes as u64));
            if bytes > SHORT_BYTES {
                // Names of one kind often differ only in the middle, and must not push each other out.
                hasher.write(text.as_bytes());
            }
        };
        add(name);
        // Not the labels' names: the same name of a metric goes with the same labels.
        labels.iter().for_each(|(_, value)| add(value));
        hasher.finish()
    }

    /// What it means, if the thread has recorded by it lately.
    pub(crate) fn find(&self, name: &str, labels: &Pairs<'_>) -> Option<&Target> {
        let entry = self.slots.get(self.look(name, labels)?)?.as_ref()?;
        Some(&entry.target)
    }

    /// As [`Names::find`], for a record: faster where it comes after the one that it came after the last time.
    #[inline(always)]
    pub(crate) fn find_next(&mut self, name: &str, labels: &Pairs<'_>) -> Option<&Target> {
        let expected = self.slots.get(self.next)?.as_ref().filter(|_| self.trust > MAX_TRUST / 2);
        if !expected.is_some_and(|entry| entry.is(name, labels)) {
            self.learn(name, labels)?;
        }
        let entry = self.slots.get(self.next)?.as_ref()?;
        self.last = self.next;
        self.next = entry.next;
        Some(&entry.target)
    }

    /// Expects what has come.
    #[inline(never)]
    fn learn(&mut self, name: &str, labels: &Pairs<'_>) -> Option<()> {
        let found = self.look(name, labels)?;
        self.trust = if found == self.next { (self.trust + 1).min(MAX_TRUST) } else { self.trust.saturating_sub(1) };
        self.next = found;
        if let Some(last) = self.slots.get_mut(self.last)?.as_mut() {
            last.next = found;
        }
        Some(())
    }

    #[inline(always)]
    fn look(&self, name: &str, labels: &Pairs<'_>) -> Option<usize> {
        let hash = self.hash(name, labels);
        let set = set(hash);
        let entries = self.slots.get(set..)?.first_chunk::<WAYS>()?;
        let is_it = |entry: &Option<Entry>| entry.as_ref().is_some_and(|it| it.hash == hash && it.is(name, labels));
        Some(set + entries.iter().position(is_it)?)
    }

    pub(crate) fn remember(&mut self, name: &str, labels: &Pairs<'_>, target: Target) {
        let strings: Vec<_> = (0..).map_while(|number| string(number, name, labels)).collect();
        if strings.iter().map(|text| text.len()).sum::<usize>() > MAX_BYTES {
            return;
        }
        let hash = self.hash(name, labels);
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, || None);
        }
        let set = set(hash);
        let Some(entries) = self.slots.get_mut(set..).and_then(|slots| slots.first_chunk_mut::<WAYS>()) else { return };
        target.each_series(|series| {
            series.remembered.fetch_add(1, Relaxed);
        });
        let long = strings.iter().enumerate().filter(|(_, text)| text.len() > SHORT_BYTES);
        let long = long.map(|(number, text)| (number, (*text).into())).collect();
        let labels = labels.iter().map(|(name, value)| [Word::new(name), Word::new(value)]).collect();
        // The oldest of them goes.
        entries.rotate_right(1);
        entries[0] = Some(Entry { hash, name: Word::new(name), labels, long, target, next: set });
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

    #[test]
    fn long_names_that_differ_in_the_middle_are_told_apart_and_all_remembered() {
        let tools: Vec<String> = (0..8).map(|server| format!("mcp__server_{server}__list_issues")).collect();
        let mut names = Names::default();
        for (families, tool) in tools.iter().enumerate() {
            names.remember("calls", &[("tool", tool)], Target::General { families });
        }
        for (number, tool) in tools.iter().enumerate() {
            let found = names.find("calls", &[("tool", tool)]);
            assert!(matches!(found, Some(Target::General { families }) if *families == number), "{tool}: {found:?}");
        }
        // Of the same ends and length as one that is remembered, and with its hash.
        let other = "mcp__server_X__list_issues";
        let entry = names.slots.iter().flatten().next().unwrap();
        assert!(entry.name == Word::new("calls") && entry.labels[0][1] == Word::new(other));
        assert!(!entry.is("calls", &[("tool", other)]));
    }

    #[test]
    fn a_series_knows_how_many_remember_it() {
        let now = std::time::Instant::now();
        let anchor = mcpscope_core::ClockAnchor { mono: now, wall: std::time::SystemTime::UNIX_EPOCH };
        let metrics = crate::Metrics::new(&crate::Config::default(), anchor);
        let series = metrics.registry_operations("s", "list").0.series;
        let target = metrics.target(
            "registry_operations_per_second",
            crate::Kind::Counter,
            &[("server", "s"), ("operation", "list")],
        );
        let here = series.remembered.load(Relaxed);
        let mut names = Names::default();
        names.remember("a", &[], target.unwrap());
        assert_eq!(series.remembered.load(Relaxed), here + 1);
        drop(names);
        assert_eq!(series.remembered.load(Relaxed), here);
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
                prop_assert!(names.find(name, &labels).is_some() && names.find_next(name, &labels).is_some());
                // `.` never makes a line's end, so that this is none of the others.
                let longer = format!("{name}\n");
                prop_assert!(names.find(&longer, &labels).is_none() && names.find_next(&longer, &labels).is_none());
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

        #[test]
        fn whatever_is_expected_what_comes_is_found(order in prop::collection::vec(0_usize..40, 1..300)) {
            let tools: Vec<String> = (0..30).map(|tool| tool.to_string()).collect();
            let mut names = Names::default();
            for (families, tool) in tools.iter().enumerate() {
                names.remember("calls", &[("tool", tool)], Target::General { families });
            }
            for wanted in order {
                let tool = wanted.to_string();
                let labels = [("tool", tool.as_str())];
                let is = |found: Option<&Target>| matches!(found, Some(Target::General { families }) if *families == wanted);
                let (found, is_known) = (is(names.find("calls", &labels)), names.find("calls", &labels).is_some());
                prop_assert_eq!(is(names.find_next("calls", &labels)), found);
                prop_assert_eq!(found, is_known);
            }
        }
    }
}
