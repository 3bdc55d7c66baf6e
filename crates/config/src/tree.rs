//! The settings while they are put together, layer by layer and key by key.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize as _;
use serde_yaml::Value;

use crate::{
    error::Problem,
    settings::{LATER, Settings, standard_variable},
};

/// What there is at a path.
pub(crate) enum Entry {
    Section,
    Leaf,
    /// Of the list of critical metrics.
    Element,
    /// Of the list of servers.
    Server,
    /// A key of one of them.
    Field(&'static str),
}

/// A key in document order; of a list of more than texts also the element, and of that the key, each from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number {
    pub(crate) key: usize,
    pub(crate) element: usize,
    pub(crate) field: usize,
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
pub(crate) struct Tree {
    pub(crate) settings: Settings,
    values: Value,
    setters: BTreeMap<String, Setter>,
    refused: BTreeSet<String>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self::of(Settings::default())
    }

    fn of(settings: Settings) -> Self {
        // Plain data serialises; were it otherwise, every key would be reported as unknown.
        let values = serde_yaml::to_value(&settings).unwrap_or_default();
        Self { settings, values, setters: BTreeMap::new(), refused: BTreeSet::new() }
    }

    /// Sets one key, or says what was expected of it.
    pub(crate) fn set(&mut self, path: &str, value: Value, setter: Setter) -> Result<(), Problem> {
        // All else in the tree is valid, so an error is about this value.
        self.settings = self.with(path, value).map_err(|error| {
            self.refused.insert(path.to_owned());
            Problem::Invalid(error.to_string())
        })?;
        self.setters.insert(path.to_owned(), setter);
        Ok(())
    }

    fn with(&mut self, path: &str, value: Value) -> Result<Settings, serde_yaml::Error> {
        let mut values = self.values.clone();
        if let Some(slot) = path.split('.').try_fold(&mut values, |at, name| at.get_mut(name)) {
            *slot = value;
        }
        let settings = Settings::deserialize(&values)?;
        self.values = serde_yaml::to_value(&settings)?;
        Ok(settings)
    }

    /// The value at a path, in the form in which it would be written.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.values, |at, name| at.get(name))
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
        if LATER.contains(&path.as_str()) {
            return Err(Problem::NotAvailable);
        }
        match self.get(&path) {
            Some(Value::Mapping(_)) if !name.contains('.') => Ok(Entry::Section),
            Some(_) if !name.contains('.') => Ok(Entry::Leaf),
            _ => Err(match standard_variable(name).filter(|_| section == "otel") {
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
pub(crate) fn differences(one: &Settings, other: &Settings) -> Vec<String> {
    let [one, other] = [one, other].map(|settings| Tree::of(settings.clone()));
    let mut paths: Vec<_> = one.leaves().into_iter().filter(|path| one.get(path) != other.get(path)).collect();
    paths.sort();
    paths
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
