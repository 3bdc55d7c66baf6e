//! The standard variables, by the rules of the OpenTelemetry specification: an empty one is as good as none, and one that
//! makes no sense is told of and passed over.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use mcpscope_core::bounded;
use percent_encoding::percent_decode_str;

/// The longest time that a variable can give; as good as no limit.
const MAX_MILLIS: u64 = 365 * 24 * 60 * 60 * 1000;
/// Longest part of a value that a warning repeats, in bytes.
const MAX_EXCERPT_BYTES: usize = 80;

/// The variables of this process whose names begin with `OTEL_`, for [`Config::read`](super::Config::read).
///
/// What is not UTF-8 gets U+FFFD in its place.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    // Not `vars()`: that panics at the first variable that is not UTF-8, whoever set it.
    let variables = std::env::vars_os().map(|(name, value)| {
        let [name, value] = [name, value].map(|text| text.to_string_lossy().into_owned());
        (name, value)
    });
    variables.filter(|(name, _)| name.starts_with("OTEL_")).collect()
}

/// A standard variable, or a part of one, that is passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Its name.
    pub variable: String,
    /// What is wrong with it. Never says more of headers than their names: they carry secrets.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is passed over: {}", self.variable, self.message)
    }
}

/// Reads variables, and remembers what is wrong with them.
pub(super) struct Variables {
    values: BTreeMap<String, String>,
    warnings: Vec<Warning>,
}

impl Variables {
    pub(super) fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let values = variables.into_iter().map(|(name, value)| (name, value.trim().to_owned()));
        Self { values: values.filter(|(_, value)| !value.is_empty()).collect(), warnings: Vec::new() }
    }

    pub(super) fn into_warnings(self) -> Vec<Warning> {
        self.warnings
    }

    pub(super) fn warn(&mut self, variable: &str, message: impl Into<String>) {
        let warning = Warning { variable: variable.to_owned(), message: message.into() };
        // Two signals may ask for the same variable.
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned()
    }

    /// Only `true` is true, in whatever case.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        let is_true = |text: &str| text.eq_ignore_ascii_case("true");
        let read = |text: &str| (is_true(text) || text.eq_ignore_ascii_case("false")).then(|| is_true(text));
        self.parsed(name, "true or false", read).unwrap_or(false)
    }

    /// A value out of a list of them, in whatever case: `read` gets it in lower case.
    pub(super) fn choice<T>(&mut self, name: &str, expected: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.parsed(name, expected, |text| read(&text.to_ascii_lowercase()))
    }

    /// Several of them, with commas between; nothing if none is known.
    pub(super) fn list<T>(&mut self, name: &str, expected: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let text = self.text(name)?;
        let mut found = Vec::new();
        for element in text.split(',').map(str::trim).filter(|element| !element.is_empty()) {
            match read(&element.to_ascii_lowercase()) {
                Some(value) => found.push(value),
                None => self.warn(name, wrong(expected, element)),
            }
        }
        (!found.is_empty()).then_some(found)
    }

    /// A duration: milliseconds, so many at least.
    pub(super) fn millis(&mut self, name: &str, least: u64) -> Option<Duration> {
        let read = |text: &str| text.parse().ok().filter(|millis| (least..=MAX_MILLIS).contains(millis));
        self.parsed(name, &format!("a number of milliseconds from {least}"), read).map(Duration::from_millis)
    }

    /// A timeout: milliseconds, of which 0 are no limit.
    pub(super) fn timeout(&mut self, name: &str) -> Option<Duration> {
        let timeout = self.millis(name, 0)?;
        Some(if timeout.is_zero() { Duration::from_millis(MAX_MILLIS) } else { timeout })
    }

    pub(super) fn count(&mut self, name: &str) -> Option<usize> {
        let read = |text: &str| text.parse().ok().filter(|count| (1..=10_000_000).contains(count));
        self.parsed(name, "a whole number from 1 to 10000000", read)
    }

    /// `name=value` with commas between, values percent-encoded. With one that is wrong, all are passed over.
    pub(super) fn pairs(&mut self, name: &str) -> Option<Vec<(String, String)>> {
        let text = self.text(name)?;
        let elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
        let pairs: Option<Vec<_>> = elements
            .map(|element| {
                let (name, value) = element.split_once('=')?;
                let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
                let name = name.trim();
                (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
            })
            .collect();
        if pairs.is_none() {
            self.warn(name, "expected name=value,name=value with percent-encoded values");
        }
        pairs
    }

    fn parsed<T>(&mut self, name: &str, expected: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = read(&text);
        if value.is_none() {
            self.warn(name, wrong(expected, &text));
        }
        value
    }
}

pub(super) fn wrong(expected: &str, found: &str) -> String {
    format!("expected {expected}, found {:?}", bounded(found, MAX_EXCERPT_BYTES))
}
