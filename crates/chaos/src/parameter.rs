//! Parameters: flat keys with values, which of them a scenario has, and what they may be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use mcpscope_core::Ratio;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Scenario;
use crate::catalogue;

/// The parameters of an experiment, by name. Values are JSON scalars; text that reads like a number or a duration is one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parameters(
    /// The values by name.
    pub BTreeMap<String, Value>,
);

impl Parameters {
    /// None given: everything is as by default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more; the last of a name counts.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// These, with those of `over` in their place where both have one.
    #[must_use]
    pub fn overridden_by(&self, over: &Self) -> Self {
        let mut all = self.0.clone();
        all.extend(over.0.clone());
        Self(all)
    }

    /// What a record of a mistake keeps of them, which may be anything.
    pub(crate) fn excerpt(&self) -> Self {
        let short = |value: &Value| match value {
            Value::String(text) => Value::from(excerpt(text)),
            Value::Array(_) | Value::Object(_) => Value::Null,
            scalar => scalar.clone(),
        };
        Self(self.0.iter().take(32).map(|(name, value)| (excerpt(name), short(value))).collect())
    }

    /// Reads `key=value` texts, as a command line has them.
    ///
    /// # Errors
    /// One of them has no `=`, or the same name comes twice.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = &'a str>) -> Result<Self, ParameterError> {
        let mut all = BTreeMap::new();
        for pair in pairs {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(ParameterError::NoPair { text: excerpt(pair) });
            };
            if all.insert(name.to_owned(), Value::from(value)).is_some() {
                return Err(ParameterError::Twice { name: excerpt(name) });
            }
        }
        Ok(Self(all))
    }
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A duration: text such as `300ms`, or a number of milliseconds.
    Duration {
        /// The shortest, in milliseconds.
        least_ms: u64,
        /// The longest, in milliseconds.
        most_ms: u64,
    },
    /// A share from 0 to 1.
    Share,
    /// Any number in a range.
    Number {
        /// The smallest.
        least: f64,
        /// The largest.
        most: f64,
    },
    /// A whole number in a range.
    Whole {
        /// The smallest.
        least: i64,
        /// The largest.
        most: i64,
    },
    /// A size: text such as `100MiB`, or a number of bytes.
    Size {
        /// The smallest, in bytes.
        least: u64,
        /// The largest, in bytes.
        most: u64,
    },
    /// One of some words.
    Choice(
        /// The words.
        &'static [&'static str],
    ),
    /// Text of 1 to 256 bytes.
    Text,
}

/// Longest text that a parameter may be, in bytes.
pub(crate) const MAX_TEXT: usize = 256;

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duration { least_ms, most_ms } => {
                let text = |ms: u64| humantime::format_duration(Duration::from_millis(ms)).to_string();
                write!(
                    f,
                    "a duration from {} to {}, such as 300ms or 8s, or milliseconds",
                    text(*least_ms),
                    text(*most_ms)
                )
            }
            Self::Share => f.write_str("a share from 0 to 1"),
            Self::Number { least, most } => write!(f, "a number from {least} to {most}"),
            Self::Whole { least, most } => write!(f, "a whole number from {least} to {most}"),
            Self::Size { least, most } => {
                let text = |bytes| bytesize::ByteSize(bytes).display().iec();
                write!(f, "a size from {} to {}, such as 100MiB, or bytes", text(*least), text(*most))
            }
            Self::Choice(words) => f.write_str(&words.join(", ")),
            Self::Text => write!(f, "a text of 1 to {MAX_TEXT} bytes"),
        }
    }
}

/// A parameter that a scenario has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Its value unless one is given; none: it is left out.
    pub default: Option<&'static str>,
    /// What it is for, in one sentence without a full stop.
    pub about: &'static str,
}

/// Why an experiment cannot be what was asked for. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// There is no such scenario.
    #[error("there is no scenario `{name}`: expected one of {}", names(Scenario::ALL.map(Scenario::as_str)))]
    UnknownScenario {
        /// What was asked for.
        name: String,
    },
    /// The scenario has no such parameter.
    #[error("{scenario} has no parameter `{name}`: expected one of {}", names(catalogue::of(*scenario).map(|p| p.name)))]
    UnknownParameter {
        /// The scenario.
        scenario: Scenario,
        /// What was asked for.
        name: String,
    },
    /// The value is not what the parameter may be.
    #[error("{scenario}: {name} is {found}: expected {expected}")]
    BadValue {
        /// The scenario.
        scenario: Scenario,
        /// The parameter.
        name: String,
        /// What was given.
        found: String,
        /// What may be given.
        expected: String,
    },
    /// Two values that cannot both hold.
    #[error("{scenario}: {what}: expected {expected}")]
    Contradiction {
        /// The scenario.
        scenario: Scenario,
        /// What contradicts what.
        what: String,
        /// What would make sense.
        expected: String,
    },
    /// The fault means nothing where it was asked for.
    #[error("{scenario} means nothing over {place}: expected {}", .scenario.meaningful())]
    Meaningless {
        /// The scenario.
        scenario: Scenario,
        /// Where it was asked for.
        place: String,
    },
    /// A text is not `key=value`.
    #[error("`{text}` is no parameter: expected NAME=VALUE, such as delay=300ms")]
    NoPair {
        /// What was given.
        text: String,
    },
    /// A name comes twice.
    #[error("{name} is given twice: expected each parameter once")]
    Twice {
        /// The name.
        name: String,
    },
    /// More than one mistake.
    #[error("{}", together(.0))]
    Several(
        /// Each of them, eight at most.
        Vec<Self>,
    ),
}

/// Mistakes that are told at once.
const MOST_MISTAKES: usize = 8;

impl ParameterError {
    /// Every mistake in parameters of which `check` tells one at a time, `first` first.
    pub(crate) fn all_of(first: Self, given: &Parameters, check: impl Fn(&Parameters) -> Option<Self>) -> Self {
        let (mut rest, mut mistakes, mut next) = (given.clone(), Vec::new(), Some(first));
        while let Some(error) = next.take() {
            // Without the parameter that the one is about, it tells the next.
            let is_left_out = error.parameter().is_some_and(|name| rest.0.remove(name).is_some());
            // What contradicts something may do so only for want of what was left out.
            if is_left_out || mistakes.is_empty() {
                mistakes.push(error);
            }
            if is_left_out && mistakes.len() < MOST_MISTAKES {
                next = check(&rest);
            }
        }
        match <[Self; 1]>::try_from(mistakes) {
            Ok([one]) => one,
            Err(several) => Self::Several(several),
        }
    }

    /// The mistakes one by one.
    #[must_use]
    pub fn each(&self) -> &[Self] {
        if let Self::Several(mistakes) = self { mistakes } else { std::slice::from_ref(self) }
    }

    /// The parameter that is wrong, if it is one.
    #[must_use]
    pub fn parameter(&self) -> Option<&str> {
        match self {
            Self::UnknownParameter { name, .. } | Self::BadValue { name, .. } | Self::Twice { name } => Some(name),
            Self::Meaningless { .. } => Some("transport"),
            _ => None,
        }
    }
}

fn together(mistakes: &[ParameterError]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// What a mistake shows of a text that may be of any length.
pub(crate) fn excerpt(text: &str) -> String {
    let short = mcpscope_core::bounded(text, 64);
    if short.len() < text.len() { format!("{short}...") } else { short.to_owned() }
}

/// The parameters of one scenario, to be taken one by one.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) scenario: Scenario,
    given: &'a Parameters,
}

impl<'a> Reader<'a> {
    /// All names are those of the scenario.
    pub(crate) fn new(scenario: Scenario, given: &'a Parameters) -> Result<Self, ParameterError> {
        let is_known = |name: &str| catalogue::of(scenario).any(|parameter| parameter.name == name);
        match given.0.keys().find(|name| !is_known(name)) {
            Some(name) => Err(ParameterError::UnknownParameter { scenario, name: excerpt(name) }),
            None => Ok(Self { scenario, given }),
        }
    }

    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.given.0.contains_key(name)
    }

    /// A mistake in this parameter.
    pub(crate) fn bad(&self, name: &str, expected: impl fmt::Display) -> ParameterError {
        let found = match self.given.0.get(name) {
            Some(Value::String(text)) => format!("\"{}\"", excerpt(text)),
            Some(Value::Array(_)) => "a list".to_owned(),
            Some(Value::Object(_)) => "an object".to_owned(),
            Some(scalar) => scalar.to_string(),
            None => "not given".to_owned(),
        };
        let (name, expected) = (name.to_owned(), expected.to_string());
        ParameterError::BadValue { scenario: self.scenario, name, found, expected }
    }

    pub(crate) fn contradiction(&self, what: impl Into<String>, expected: impl Into<String>) -> ParameterError {
        ParameterError::Contradiction { scenario: self.scenario, what: what.into(), expected: expected.into() }
    }

    fn read<T>(
        &self,
        name: &'static str,
        take: impl Fn(&Value, Kind) -> Option<T>,
    ) -> Result<Option<T>, ParameterError> {
        let Some(parameter) = catalogue::of(self.scenario).find(|parameter| parameter.name == name) else {
            return Ok(None);
        };
        let value = match (self.given.0.get(name), parameter.default) {
            (Some(value), _) => value.clone(),
            (None, Some(default)) => Value::from(default),
            (None, None) => return Ok(None),
        };
        take(&value, parameter.kind).map(Some).ok_or_else(|| self.bad(name, parameter.kind))
    }

    pub(crate) fn duration(&self, name: &'static str) -> Result<Option<Duration>, ParameterError> {
        self.read(name, |value, kind| {
            let Kind::Duration { least_ms, most_ms } = kind else { return None };
            let duration = match value {
                Value::String(text) => match text.parse() {
                    Ok(millis) => Some(Duration::from_millis(millis)),
                    Err(_) => humantime::parse_duration(text).ok(),
                },
                number => number.as_u64().map(Duration::from_millis),
            };
            let range = Duration::from_millis(least_ms)..=Duration::from_millis(most_ms);
            duration.filter(|duration| range.contains(duration))
        })
    }

    pub(crate) fn share(&self, name: &'static str) -> Result<Option<Ratio>, ParameterError> {
        self.read(name, |value, _| number(value).and_then(|number| Ratio::new(number).ok()))
    }

    pub(crate) fn number(&self, name: &'static str) -> Result<Option<f64>, ParameterError> {
        self.read(name, |value, kind| {
            let Kind::Number { least, most } = kind else { return None };
            number(value).filter(|number| (least..=most).contains(number))
        })
    }

    pub(crate) fn whole(&self, name: &'static str) -> Result<Option<i64>, ParameterError> {
        self.read(name, |value, kind| {
            let Kind::Whole { least, most } = kind else { return None };
            let whole = match value {
                Value::String(text) => text.parse().ok(),
                number => number.as_i64(),
            };
            whole.filter(|whole| (least..=most).contains(whole))
        })
    }

    /// In bytes.
    pub(crate) fn size(&self, name: &'static str) -> Result<Option<u64>, ParameterError> {
        self.read(name, |value, kind| {
            let Kind::Size { least, most } = kind else { return None };
            let bytes = match value {
                Value::String(text) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
                number => number.as_u64(),
            };
            bytes.filter(|bytes| (least..=most).contains(bytes))
        })
    }

    pub(crate) fn choice(&self, name: &'static str) -> Result<Option<&'static str>, ParameterError> {
        self.read(name, |value, kind| {
            let Kind::Choice(words) = kind else { return None };
            words.iter().find(|word| value.as_str() == Some(word)).copied()
        })
    }

    pub(crate) fn text(&self, name: &'static str) -> Result<Option<String>, ParameterError> {
        self.read(name, |value, _| {
            value.as_str().filter(|text| (1..=MAX_TEXT).contains(&text.len())).map(str::to_owned)
        })
    }

    /// Whether resources are to be taken in the control group of a server.
    pub(crate) fn aims_at_target(&self) -> Result<bool, ParameterError> {
        Ok(self.choice("cgroup")? == Some("target"))
    }

    /// One that has a default in the catalogue.
    pub(crate) fn required<T>(&self, name: &'static str, value: Option<T>) -> Result<T, ParameterError> {
        value.ok_or_else(|| self.bad(name, "a value"))
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.parse().ok(),
        number => number.as_f64(),
    }
}
