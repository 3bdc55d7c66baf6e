//! `parameters` and `match` of a scenario.

use std::collections::BTreeMap;

use serde_yaml::{Mapping, Value};

use crate::{error::Problem, kind::described, tree::most_similar};

const MAX_PARAMETERS: usize = 64;

pub(crate) const PARAMETERS: &str = "parameters";
pub(crate) const MATCH: &str = "match";

/// The keys of `match`.
pub const MATCHERS: [&str; 12] = [
    "server",
    "transport",
    "direction",
    "session",
    "kind",
    "method",
    "tool",
    "nth",
    "every",
    "after",
    "probability",
    "max_hits",
];

/// The value of a parameter, as it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// True or false.
    Switch(bool),
    /// A number without a fraction.
    Whole(i64),
    /// Another number, which is finite.
    Number(f64),
    /// Text of 1 to 256 bytes.
    Text(String),
}

impl Scalar {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(switch) => Some(Self::Switch(*switch)),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Some(Self::Whole(whole)),
                None => number.as_f64().filter(|number| number.is_finite()).map(Self::Number),
            },
            Value::String(text) => (1..=256).contains(&text.len()).then(|| Self::Text(text.clone())),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Switch(switch) => Value::from(*switch),
            Self::Whole(whole) => Value::from(*whole),
            Self::Number(number) => Value::from(*number),
            Self::Text(text) => Value::from(text.as_str()),
        }
    }
}

/// Both, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) parameters: BTreeMap<String, Scalar>,
    pub(crate) matching: BTreeMap<String, Scalar>,
    /// More than there may be, of which the last are left out.
    has_too_many: bool,
}

impl Parts {
    /// Whether this name can be used in `field`, which is one of the two.
    pub(crate) fn check(&self, field: &str, name: &str) -> Result<(), Problem> {
        if field == MATCH && !MATCHERS.contains(&name) {
            return Err(unknown(name, &MATCHERS));
        }
        if !(1..=128).contains(&name.len()) {
            return Err(Problem::Invalid("expected a name of 1 to 128 bytes".to_owned()));
        }
        let (other, called) = match field {
            MATCH => (&self.parameters, PARAMETERS),
            _ => (&self.matching, MATCH),
        };
        match other.contains_key(name) {
            true => Err(Problem::Invalid(format!("given in {called} already: expected it in one of them"))),
            false => Ok(()),
        }
    }

    pub(crate) fn set(&mut self, field: &str, name: &str, value: &Value) -> Result<(), String> {
        let scalar = Scalar::read(value).ok_or_else(|| {
            format!("expected a text of 1 to 256 bytes, a number, true or false, found {}", described(value))
        })?;
        let parts = if field == MATCH { &mut self.matching } else { &mut self.parameters };
        if parts.len() < MAX_PARAMETERS {
            parts.insert(name.to_owned(), scalar);
        } else {
            self.has_too_many = true;
        }
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<(), String> {
        if self.has_too_many { Err(format!("expected {MAX_PARAMETERS} parameters at most")) } else { Ok(()) }
    }
}

/// What is said of one of the two that is no mapping.
pub(crate) fn no_mapping(field: &str, found: &Value) -> Result<(), String> {
    match field {
        // With every key commented out.
        _ if *found == Value::Null => Ok(()),
        MATCH => Err(format!("expected a mapping of {}, found {}", MATCHERS.join(", "), described(found))),
        _ => Err(format!("expected a mapping of parameters, found {}", described(found))),
    }
}

/// One of the two as it is written, unless it is empty.
pub(crate) fn write(parts: &BTreeMap<String, Scalar>) -> Option<Value> {
    let parts = parts.iter().map(|(name, value)| (Value::from(name.as_str()), value.to_value()));
    let parts: Mapping = parts.collect();
    (!parts.is_empty()).then_some(Value::Mapping(parts))
}

pub(crate) fn unknown(name: &str, known: &[&str]) -> Problem {
    Problem::Unknown { what: "key", likely: most_similar(name, known.iter().copied()).map(str::to_owned) }
}
