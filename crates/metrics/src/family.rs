//! All series of one metric: found by labels without a lock, bounded in number, and let go when nobody uses them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hashbrown::{Equivalent, HashMap, HashSet};
use mcpscope_core::{Labels, bounded};

use crate::members::{Member, Members, Shown};
use crate::places::Places;
use crate::schema::Desc;
use crate::series::{Activity, Series};
use crate::snapshot::FamilySnapshot;
use crate::storage::slab::{Slab, Slabs};

/// What a label value becomes that is over the limit of distinct values.
pub(crate) const OTHER: &str = "other";
/// Longest label value kept, in bytes.
const MAX_VALUE_BYTES: usize = 256;
/// Labels with no more distinct values than this keep them when there are too many series: it is not they that make many.
const FEW_VALUES: usize = 8;
/// Labels of ours whose values a client or a server makes up.
const FROM_THE_WIRE: [&str; 4] = ["tool", "mcp_method_name", "gen_ai_tool_name", "gen_ai_prompt_name"];
/// Distinct values that every other label of ours may have.
const MIN_OF_OURS: usize = 256;
/// Series that may still be made beyond the limit, so that those labels are told apart of which there are few values.
pub(crate) const MAX_OVERFLOW: usize = 64;
/// All series beyond the limit of a metric whose series bring labels of their own.
const OVERFLOW: (&str, &str) = ("overflow", "true");
/// Series that are kept without being shown, so that one that comes back goes on where it was. The oldest beyond are let
/// go, and would begin anew, as those of a program that was started again.
const MAX_RETIRED: usize = 1024;

/// Names and values of labels, as they are given.
pub(crate) type Pairs<'a> = [(&'a str, &'a str)];

/// Limits of each family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) label_values: usize,
    pub(crate) series: usize,
}

/// All series of one metric.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) desc: Arc<Desc>,
    limits: Limits,
    places: Arc<Places>,
    /// Replaced as a whole by whoever holds `members`; read without a lock.
    table: ArcSwap<Table>,
    members: Mutex<Members>,
}

/// Where series are found.
#[derive(Clone, Debug, Default)]
struct Table {
    settled: Arc<HashMap<Labels, Arc<Series>>>,
    /// Those that came last, so that a new one does not copy all others.
    recent: HashMap<Labels, Arc<Series>>,
    /// Distinct values by label.
    values: HashMap<Box<str>, Arc<HashSet<Box<str>>>>,
}

impl Table {
    fn find(&self, wanted: &Pairs<'_>) -> Option<&Arc<Series>> {
        self.settled.get(&Wanted(wanted)).or_else(|| self.recent.get(&Wanted(wanted)))
    }

    fn len(&self) -> usize {
        self.settled.len() + self.recent.len()
    }

    fn values(&self, label: &str) -> usize {
        self.values.get(label).map_or(0, |values| values.len())
    }

    fn insert(&mut self, series: &Arc<Series>) {
        self.recent.insert(series.labels.clone(), Arc::clone(series));
        // Copies as many of the settled ones for each as it copies of the recent ones, or so.
        if self.recent.len() > 32 + self.settled.len() / 64 {
            let recent = std::mem::take(&mut self.recent);
            Arc::make_mut(&mut self.settled).extend(recent);
        }
        self.note_values(&series.labels);
    }

    fn remove(&mut self, labels: &Labels) {
        if self.recent.remove(labels).is_none() {
            Arc::make_mut(&mut self.settled).remove(labels);
        }
    }

    fn note_values(&mut self, labels: &Labels) {
        for (name, value) in labels.iter().filter(|(_, value)| *value != OTHER) {
            let seen = self.values.entry(name.into()).or_default();
            if !seen.contains(value) {
                Arc::make_mut(seen).insert(value.into());
            }
        }
    }

    /// Leaves only those label values that are shown.
    fn forget_values(&mut self, members: &Members) {
        for (name, values) in &mut self.values {
            let shown: HashSet<&str> = members.active.iter().filter_map(|m| m.series.labels.get(name)).collect();
            Arc::make_mut(values).retain(|value| shown.contains(&**value));
        }
    }
}

/// A [`Labels`] to look for.
struct Wanted<'a>(&'a Pairs<'a>);

impl std::hash::Hash for Wanted<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<Labels> for Wanted<'_> {
    fn equivalent(&self, labels: &Labels) -> bool {
        self.0.iter().copied().eq(labels.iter())
    }
}

/// A series found.
pub(crate) struct Found {
    pub(crate) series: Arc<Series>,
    /// Whether a label value had to be replaced by `other`.
    pub(crate) replaced: bool,
    /// Whether a label value was too long.
    pub(crate) cut: bool,
}

impl Family {
    pub(crate) fn new(desc: Desc, limits: Limits, places: Arc<Places>) -> Self {
        Self { desc: Arc::new(desc), limits, places, table: ArcSwap::default(), members: Mutex::default() }
    }

    /// The series with these labels, which are in the order of the family's, or ordered by name where it has none.
    pub(crate) fn with(&self, given: &Pairs<'_>) -> Found {
        let wanted: Vec<_> = given.iter().map(|(name, value)| (*name, bounded(value, MAX_VALUE_BYTES))).collect();
        let cut = given.iter().any(|(_, value)| value.len() > MAX_VALUE_BYTES);
        let (series, replaced) = self.find(&wanted).unwrap_or_else(|| self.add(&wanted));
        Found { series, replaced, cut }
    }

    /// A series that is there already, and whether a label value was replaced.
    fn find(&self, wanted: &Pairs<'_>) -> Option<(Arc<Series>, bool)> {
        let table = self.table.load();
        if let Some(series) = table.find(wanted) {
            return Some((Arc::clone(series), false));
        }
        // Once a label is full it stays full, so a flood of new values ends here and never takes the lock.
        let (limited, replaced) = self.limited(&table, wanted);
        if replaced && let Some(series) = table.find(&limited) {
            return Some((Arc::clone(series), replaced));
        }
        if table.len() < self.limits.series {
            return None;
        }
        let overflow = self.overflow(&table, &limited);
        overflow.iter().find_map(|labels| table.find(labels)).map(|series| (Arc::clone(series), true))
    }

    fn limited<'a>(&self, table: &Table, wanted: &[(&'a str, &'a str)]) -> (Vec<(&'a str, &'a str)>, bool) {
        replace(wanted, |label, value| {
            // Of what does not come from the wire there is only so much, and a low limit must not do away with it.
            let is_wild = self.desc.labels.is_none() || FROM_THE_WIRE.contains(&label);
            let limit = if is_wild { self.limits.label_values } else { self.limits.label_values.max(MIN_OF_OURS) };
            let values = table.values.get(label);
            values.is_some_and(|values| values.len() >= limit && !values.contains(value))
        })
    }

    fn add(&self, wanted: &Pairs<'_>) -> (Arc<Series>, bool) {
        let mut members = self.members();
        let mut table = Table::clone(&self.table.load());
        let (mut labels, mut replaced) = self.limited(&table, wanted);
        if table.len() >= self.limits.series && table.find(&labels).is_none() {
            let [fewer, all] = self.overflow(&table, &labels);
            let is_there = table.find(&fewer).is_some() || table.len() < self.limits.series + MAX_OVERFLOW;
            (labels, replaced) = (if is_there { fewer } else { all }, true);
        }
        if let Some(series) = table.find(&labels) {
            return (Arc::clone(series), replaced);
        }
        let labels = match self.desc.labels {
            // The names that live as long as the program.
            Some(names) => Labels::new(names.iter().copied().zip(labels.iter().map(|(_, value)| *value))),
            None => Labels::new(labels.iter().map(|(name, value)| ((*name).to_owned(), *value))),
        };
        let (number, cell) = self.places.take(self.desc.kind);
        let series = Arc::new(Series::new(number, Arc::clone(&self.desc), labels, cell));
        table.insert(&series);
        self.table.store(Arc::new(table));
        members.born.push(Arc::clone(&series));
        (series, replaced)
    }

    /// What a series becomes that is one too many: without what makes many of them, or, beyond even that, without anything.
    fn overflow<'a>(&self, table: &Table, labels: &[(&'a str, &'a str)]) -> [Vec<(&'a str, &'a str)>; 2] {
        if self.desc.labels.is_none() {
            // Whatever names it brings.
            return [vec![OVERFLOW], vec![OVERFLOW]];
        }
        let is_one_of_many = |label: &str, value: &str| value != OTHER && table.values(label) > FEW_VALUES;
        [replace(labels, is_one_of_many).0, replace(labels, |_, _| true).0]
    }

    /// The series that are shown, ordered by labels.
    pub(crate) fn shown(&self, slabs: &[Arc<Slab>], at: Instant) -> Arc<Vec<Shown>> {
        let mut members = self.members();
        self.welcome(&mut members, slabs, at);
        Arc::clone(&members.shown)
    }

    pub(crate) fn snapshot(&self, slabs: &[Arc<Slab>], at: Instant) -> FamilySnapshot {
        let (shown, hidden) = {
            let mut members = self.members();
            self.welcome(&mut members, slabs, at);
            let hidden = members.retired.iter().map(|Member { series, .. }| series.snapshot(series.value(slabs)));
            (Arc::clone(&members.shown), hidden.collect())
        };
        let series = shown.iter().map(|Shown { series, .. }| series.snapshot(series.value(slabs))).collect();
        FamilySnapshot { desc: Arc::clone(&self.desc), series, hidden }
    }

    /// Every series that can still have raw records.
    pub(crate) fn all(&self, mut with: impl FnMut(&Arc<Series>)) {
        let members = self.members();
        let listed = members.active.iter().chain(&members.retired).map(|member| &member.series);
        listed.chain(&members.born).for_each(&mut with);
    }

    /// Shows what was born or has come back.
    fn welcome(&self, members: &mut Members, slabs: &[Arc<Slab>], at: Instant) {
        let is_back = |member: &Member| Activity::of(&member.series.value(slabs)) != member.activity;
        let (back, retired): (VecDeque<_>, _) = std::mem::take(&mut members.retired).into_iter().partition(is_back);
        members.retired = retired;
        if !back.is_empty() {
            self.change_table(|table| back.iter().for_each(|member| table.note_values(&member.series.labels)));
        }
        if members.born.is_empty() && back.is_empty() {
            return;
        }
        let born = std::mem::take(&mut members.born).into_iter().map(|series| (series.text(), series));
        let back = back.into_iter().map(|member| (member.text, member.series));
        let new = born.chain(back).map(|(text, series)| {
            let activity = Activity::of(&series.value(slabs));
            Member { series, text, activity, since: at }
        });
        members.show(new.collect());
    }

    /// Retires the series in which nothing was recorded for `idle`, and of which nobody holds a handle. They are no longer
    /// shown, and make room for other label values. What is recorded in one of them all the same, now or later, brings it
    /// back with all that it counted.
    pub(crate) fn retire(&self, slabs: &Slabs, at: Instant, idle: Duration) {
        let now = slabs.all();
        let mut members = self.members();
        self.welcome(&mut members, &now, at);
        let is_idle = |member: &mut Member| {
            let activity = Activity::of(&member.series.value(&now));
            if activity != member.activity {
                (member.activity, member.since) = (activity, at);
            }
            let is_idle = at.saturating_duration_since(member.since) >= idle;
            is_idle && activity.may_retire() && !member.series.is_held(HELD_WHILE_SHOWN)
        };
        let idle: Vec<_> = members.active.extract_if(.., is_idle).collect();
        if !idle.is_empty() {
            members.list();
            members.retired.extend(idle);
            self.change_table(|table| table.forget_values(&members));
        }
        let excess = members.retired.len().saturating_sub(MAX_RETIRED);
        if excess > 0 {
            self.let_go(&mut members, excess, slabs);
        }
    }

    /// Lets go of the oldest retired series that nobody can write to any more.
    fn let_go(&self, members: &mut Members, number: usize, slabs: &Slabs) {
        let is_free = |member: &Member| !member.series.is_held(HELD_WHILE_RETIRED) && !member.series.is_remembered();
        let (mut leaving, mut kept) = (Vec::new(), VecDeque::new());
        for member in members.retired.drain(..) {
            if leaving.len() < number && is_free(&member) { leaving.push(member) } else { kept.push_back(member) }
        }
        self.change_table(|table| leaving.iter().for_each(|member| table.remove(&member.series.labels)));
        let mut found = Vec::new();
        for mut member in leaving {
            // Somebody may have found it just before; and then it stays where it is found.
            match Arc::get_mut(&mut member.series) {
                Some(series) => {
                    // Listed only now: whoever had it until then had a slab before.
                    let slabs = slabs.all();
                    if Activity::of(&series.value(&slabs)) == member.activity {
                        self.places.give_back(&series.cell, &slabs);
                    } else {
                        found.push(member);
                    }
                }
                None => found.push(member),
            }
        }
        self.change_table(|table| found.iter().for_each(|member| table.insert(&member.series)));
        kept.extend(found);
        members.retired = kept;
    }

    /// Called with `members` held.
    fn change_table(&self, change: impl FnOnce(&mut Table)) {
        let mut table = Table::clone(&self.table.load());
        change(&mut table);
        self.table.store(Arc::new(table));
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who holds a series without meaning to write to it: its member, the table in which it is found, and the list of those
/// that are shown.
const HELD_WHILE_SHOWN: usize = 3;
const HELD_WHILE_RETIRED: usize = 2;

fn replace<'a>(
    pairs: &[(&'a str, &'a str)],
    is_too_many: impl Fn(&str, &str) -> bool,
) -> (Vec<(&'a str, &'a str)>, bool) {
    let mut replaced = false;
    let limited = pairs.iter().map(|(name, value)| {
        let other = is_too_many(name, value);
        replaced |= other;
        (*name, if other { OTHER } else { value })
    });
    (limited.collect(), replaced)
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use super::*;
    use crate::schema::desc;
    use crate::series::Cell;
    use crate::snapshot::Value;
    use crate::storage::Store;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Harness {
        family: Family,
        store: Arc<Store>,
        now: Instant,
    }

    impl Harness {
        fn new(label_values: usize, series: usize) -> Self {
            let limits = Limits { label_values, series };
            // As of a declared metric, whose labels are all limited.
            let desc = Desc { labels: None, ..desc::REGISTRY_OPERATIONS.clone() };
            let family = Family::new(desc, limits, Arc::default());
            Self { family, store: Store::for_tests(), now: Instant::now() }
        }

        fn count(&self, server: &str, operation: &str) -> bool {
            let found = self.family.with(&[("operation", operation), ("server", server)]);
            let Cell::Counter(place) = found.series.cell else { panic!("a counter") };
            self.store.write(|slab| slab.count(place, 1));
            found.replaced
        }

        fn counts(&self, server: &str, operation: &str) {
            let _replaced = self.count(server, operation);
        }

        fn shown(&self) -> Vec<(String, u64)> {
            let mut shown = Vec::new();
            let slabs = self.store.slabs.all();
            for Shown { series, .. } in self.family.shown(&slabs, self.now).iter() {
                let Value::Counter(n) = series.value(&slabs) else { panic!("a counter") };
                shown.push((series.labels.get("operation").unwrap_or_default().to_owned(), n));
            }
            shown
        }

        fn wait(&mut self, time: Duration) {
            self.now += time;
            self.family.retire(&self.store.slabs, self.now, HOUR);
        }
    }

    fn owned(shown: &[(&str, u64)]) -> Vec<(String, u64)> {
        shown.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    }

    #[test]
    fn the_same_labels_are_the_same_series() {
        let harness = Harness::new(256, 1000);
        harness.count("a", "list");
        harness.count("a", "list");
        harness.count("a", "read");
        assert_eq!(harness.shown(), owned(&[("list", 2), ("read", 1)]));
    }

    #[test]
    fn a_million_names_make_a_bounded_number_of_series() {
        let harness = Harness::new(3, 1000);
        let replaced = (0..1_000_000).filter(|n| harness.count("a", &format!("tool{n}"))).count();
        assert_eq!(replaced, 999_997);
        assert_eq!(harness.shown(), owned(&[("other", 999_997), ("tool0", 1), ("tool1", 1), ("tool2", 1)]));
    }

    #[test]
    fn many_values_of_many_labels_make_a_bounded_number_of_series() {
        let harness = Harness::new(256, 100);
        for n in 0..10_000 {
            harness.count(&format!("server{}", n % 5), &format!("tool{}", n / 5 % 200));
        }
        let shown = harness.shown();
        assert_eq!(shown.iter().map(|(_, n)| n).sum::<u64>(), 10_000);
        // As many as may be, and one for all others.
        assert_eq!(shown.len(), 101);
    }

    #[test]
    fn labels_with_few_values_are_still_told_apart_beyond_the_limit() {
        let (now, store) = (Instant::now(), Store::for_tests());
        let family = Family::new(desc::TOOL_CALLS.clone(), Limits { label_values: 256, series: 100 }, Arc::default());
        for n in 0..2000 {
            let (tool, outcome) = (format!("tool{}", n / 4), ["ok", "error", "timeout", "cancelled"][n % 4]);
            family.with(&[("server", "s"), ("tool", &tool), ("outcome", outcome), ("injected", "false")]);
        }
        let shown = family.shown(&store.slabs.all(), now);
        let others = shown.iter().map(|shown| &shown.series).filter(|series| series.labels.get("tool") == Some(OTHER));
        let outcomes: HashSet<_> = others.map(|series| series.labels.get("outcome")).collect();
        assert_eq!((shown.len(), outcomes.len()), (104, 4));
        for n in 0..2000 {
            family.with(&[("server", "s"), ("tool", "x"), ("outcome", &n.to_string()), ("injected", "false")]);
        }
        let shown = family.shown(&store.slabs.all(), now);
        assert!(shown.len() <= 100 + MAX_OVERFLOW + 1, "{}", shown.len());
    }

    #[test]
    fn many_names_of_labels_make_a_bounded_number_of_series() {
        let harness = Harness::new(256, 100);
        for n in 0..10_000 {
            let (name, value) = (format!("label{n}"), (n % 5).to_string());
            harness.family.with(&[(&name, &value)]);
        }
        assert_eq!(harness.shown().len(), 101);
    }

    #[test]
    fn a_low_limit_is_none_for_what_does_not_come_from_the_wire() {
        let limits = Limits { label_values: 2, series: 1000 };
        let family = Family::new(desc::TOOL_CALLS.clone(), limits, Arc::default());
        for n in 0..10 {
            let (tool, outcome) = (format!("tool{n}"), format!("outcome{n}"));
            let found = family.with(&[("server", "s"), ("tool", &tool), ("outcome", &outcome), ("injected", "false")]);
            let shown = (found.series.labels.get("tool"), found.series.labels.get("outcome"));
            assert_eq!(shown, (Some(if n < 2 { tool.as_str() } else { OTHER }), Some(outcome.as_str())));
        }
    }

    #[test]
    fn threads_that_add_the_same_series_share_it() {
        let harness = Harness::new(256, 1000);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..100).for_each(|n| harness.counts("a", &format!("op{}", n % 10))));
            }
        });
        let shown = harness.shown();
        assert_eq!(shown.len(), 10);
        assert_eq!(shown.iter().map(|(_, n)| *n).sum::<u64>(), 800);
    }

    #[test]
    fn what_is_idle_for_an_hour_is_retired_and_goes_on_where_it_was() {
        let mut harness = Harness::new(2, 1000);
        (0..5).for_each(|_| harness.counts("s", "old"));
        harness.count("s", "busy");
        assert!(harness.count("s", "third"), "there is no place for it");
        harness.wait(Duration::ZERO);
        for _ in 0..6 {
            harness.count("s", "busy");
            harness.wait(HOUR / 6);
        }
        assert_eq!(harness.shown(), owned(&[("busy", 7)]));
        assert!(!harness.count("s", "third"), "now there is");
        harness.count("s", "old");
        assert_eq!(harness.shown(), owned(&[("busy", 7), ("old", 6), ("third", 1)]));
    }

    #[test]
    fn what_somebody_holds_is_not_retired() {
        let mut harness = Harness::new(256, 1000);
        let handle = harness.family.with(&[("operation", "list"), ("server", "s")]).series;
        harness.count("s", "list");
        harness.wait(Duration::ZERO);
        harness.wait(HOUR);
        assert_eq!(harness.shown(), owned(&[("list", 1)]));
        drop(handle);
        harness.wait(Duration::ZERO);
        assert_eq!(harness.shown(), []);
    }

    #[test]
    fn what_is_written_while_it_is_retired_brings_the_series_back() {
        let mut harness = Harness::new(256, 1000);
        harness.count("s", "list");
        harness.wait(Duration::ZERO);
        harness.wait(HOUR);
        let found = harness.family.with(&[("operation", "list"), ("server", "s")]).series;
        assert_eq!(harness.shown(), [], "to be found is not to be used");
        let Cell::Counter(place) = found.cell else { panic!("a counter") };
        harness.store.write(|slab| slab.count(place, 1));
        assert_eq!(harness.shown(), owned(&[("list", 2)]));
    }

    #[test]
    fn what_was_let_go_leaves_nothing_to_the_next() {
        let mut harness = Harness::new(usize::MAX, usize::MAX);
        let names = 3 * MAX_RETIRED;
        (0..names).for_each(|n| harness.counts("s", &n.to_string()));
        harness.wait(Duration::ZERO);
        harness.wait(HOUR);
        assert_eq!(harness.family.members().retired.len(), MAX_RETIRED);
        assert_eq!(harness.family.table.load().len(), MAX_RETIRED);
        (0..names).for_each(|n| harness.counts("s", &format!("new{n}")));
        assert!(harness.shown().iter().all(|(_, n)| *n == 1));
        assert!((harness.family.places.counters() as usize) < 2 * names, "places are used again");
    }

    #[test]
    fn what_somebody_found_before_it_was_let_go_counts_all_the_same() {
        let mut harness = Harness::new(usize::MAX, usize::MAX);
        harness.count("s", "mine");
        harness.wait(Duration::ZERO);
        harness.wait(HOUR);
        let found = harness.family.with(&[("operation", "mine"), ("server", "s")]).series;
        (0..2 * MAX_RETIRED).for_each(|n| harness.counts("s", &n.to_string()));
        harness.wait(Duration::ZERO);
        harness.wait(HOUR);
        let Cell::Counter(place) = found.cell else { panic!("a counter") };
        harness.store.write(|slab| slab.count(place, 1000));
        assert_eq!(harness.shown(), owned(&[("mine", 1001)]));
    }
}
