//! The settings while they are put together, layer by layer and key by key.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml::Value;

use crate::{error::Problem, records::Field, root::Root};

/// What there is at a path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    Section,
    Leaf,
    /// Of the list of critical metrics.
    Element,
    /// Of a list of mappings.
    Record,
    /// A key of one of them.
    Field(Field),
    /// What is inside of that key.
    Part(&'static str),
}

/// A key in document order; of a list of more than texts also the element, of that the key, and what is inside of it, each
/// from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number {
    pub(crate) key: usize,
    pub(crate) element: usize,
    pub(crate) field: usize,
    pub(crate) part: usize,
}

/// Who set a key last.
#[derive(Clone, Debug)]
pub(crate) enum Setter {
    /// The key with this number in the file with that one.
    File { file: usize, key: Number },
    /// The environment variable of this name.
    Variable(String),
}

/// The settings so far, typed and as values side by side.
#[derive(Debug)]
pub(crate) struct Tree<T> {
    pub(crate) settings: T,
    values: Value,
    setters: BTreeMap<String, Setter>,
    refused: BTreeSet<String>,
}

impl<T: Root> Tree<T> {
    pub(crate) fn new() -> Self {
        Self::of(T::default())
    }

    fn of(settings: T) -> Self {
        // Plain data serialises; were it otherwise, every key would be reported as unknown.
        let values = serde_yaml::to_value(&settings).unwrap_or_default();
        Self { settings, values, setters: BTreeMap::new(), refused: BTreeSet::new() }
    }

    /// Sets one key, or says what was expected of it.
    pub(crate) fn set(&mut self, path: &str, value: Value, setter: Setter) -> Result<(), Problem> {
        (self.settings, self.values) = self.with(path, value).inspect_err(|_| {
            self.refused.insert(path.to_owned());
        })?;
        self.note(path, setter);
        Ok(())
    }

    fn with(&self, path: &str, value: Value) -> Result<(T, Value), Problem> {
        // All else in the tree is valid, so an error is about this value.
        let wrong = |error: serde_yaml::Error| Problem::Invalid(error.to_string());
        let mut values = self.values.clone();
        if let Some(slot) = at_mut(&mut values, path) {
            *slot = value;
        }
        let settings = T::deserialize(&values).map_err(wrong)?;
        let values = serde_yaml::to_value(&settings).map_err(wrong)?;
        if T::FIXED.contains(&path) && at(&values, path) != self.get(path) {
            return Err(Problem::NotAvailable);
        }
        Ok((settings, values))
    }

    /// Notes who set what is inside of a list.
    pub(crate) fn note(&mut self, path: &str, setter: Setter) {
        self.setters.insert(path.to_owned(), setter);
    }

    /// Forgets who set what is inside of a list, which takes the place of an earlier one as a whole.
    pub(crate) fn forget(&mut self, list: &str) {
        self.setters.retain(|path, _| path.strip_prefix(list).is_none_or(|rest| !rest.starts_with('[')));
    }

    /// Whether the key is a list of mappings.
    pub(crate) fn is_records(path: &str) -> bool {
        T::records(path).is_some()
    }

    /// Two keys for one thing: where one alone is written, the other takes its value.
    pub(crate) fn pair_twins(&mut self) {
        for [one, other] in T::TWINS {
            let (from, to) = match (self.setters.get(*one), self.setters.get(*other)) {
                (Some(setter), None) => ((*one, setter.clone()), *other),
                (None, Some(setter)) => ((*other, setter.clone()), *one),
                _ => continue,
            };
            let (from, setter) = from;
            if let Some(value) = self.get(from).cloned().filter(|_| !self.was_refused(to)) {
                // Both take the same values.
                let _ = self.set(to, value, setter);
            }
        }
    }

    /// The value at a path, in the form in which it would be written.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        at(&self.values, path)
    }

    /// Who set a key last.
    pub(crate) fn setter(&self, path: &str) -> Option<&Setter> {
        self.setters.get(path)
    }

    /// Whether any layer had a value for this key that was refused.
    pub(crate) fn was_refused(&self, path: &str) -> bool {
        self.refused.contains(path)
    }

    /// What the key `name` in `section` is ("" is the top), or why it cannot be used.
    pub(crate) fn entry(&self, section: &str, name: &str) -> Result<Entry, Problem> {
        let path = join(section, name);
        if T::LATER.contains(&path.as_str()) {
            return Err(Problem::NotAvailable);
        }
        match self.get(&path) {
            Some(Value::Mapping(_)) if !name.contains('.') => Ok(Entry::Section),
            Some(_) if !name.contains('.') => Ok(Entry::Leaf),
            _ => Err(match T::standard_variable(section, name) {
                Some(standard) => Problem::Standard { what: "key", standard },
                None => Problem::Unknown { what: "key", likely: self.likely(section, name) },
            }),
        }
    }

    /// The names in a section.
    pub(crate) fn names(&self, section: &str) -> Vec<&str> {
        let values = if section.is_empty() { Some(&self.values) } else { self.get(section) };
        values.and_then(Value::as_mapping).into_iter().flat_map(|map| map.keys()).filter_map(Value::as_str).collect()
    }

    /// The paths of all keys that hold a value.
    pub(crate) fn leaves(&self) -> Vec<String> {
        let mut leaves = Vec::new();
        let mut sections = vec![String::new()];
        while let Some(section) = sections.pop() {
            for path in self.names(&section).into_iter().map(|name| join(&section, name)) {
                let is_section = self.get(&path).is_some_and(Value::is_mapping);
                if is_section { sections.push(path) } else { leaves.push(path) }
            }
        }
        leaves
    }

    /// The key that was meant: one of a similar name in the same section, else one of this name in another section.
    fn likely(&self, section: &str, name: &str) -> Option<String> {
        let elsewhere = || {
            let of_this_name = |path: &String| path.rsplit('.').next() == Some(name);
            let mut found = self.leaves().into_iter().filter(of_this_name);
            // `enabled` is everywhere: no help.
            found.next().filter(|_| found.next().is_none())
        };
        most_similar(name, self.names(section)).map(str::to_owned).or_else(elsewhere)
    }
}

/// The paths of the keys whose values are not the same, sorted.
pub(crate) fn differences<T: Root>(one: &T, other: &T) -> Vec<String> {
    let [one, other] = [one, other].map(|settings| Tree::of(settings.clone()));
    let mut paths: Vec<_> = one.leaves().into_iter().filter(|path| one.get(path) != other.get(path)).collect();
    paths.sort();
    paths
}

fn at<'a>(values: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(values, |at, name| at.get(name))
}

fn at_mut<'a>(values: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    path.split('.').try_fold(values, |at, name| at.get_mut(name))
}

pub(crate) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// The candidate that a misspelt name stands for, if one is near enough.
pub(crate) fn most_similar<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const NEAR: f64 = 0.6;
    // The distance takes time in proportion to the length, and no name is longer.
    const MAX_LEN: usize = 64;
    let similarity = |candidate| strsim::normalized_damerau_levenshtein(name, candidate);
    let candidates = candidates.into_iter().filter(|_| name.len() <= MAX_LEN);
    let scored = candidates.map(|candidate| (similarity(candidate), candidate));
    scored.filter(|(score, _)| *score >= NEAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}
