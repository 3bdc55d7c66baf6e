//! Lists whose elements are mappings, read element by element and key by key, so that each mistake has its place.

use std::fmt::Debug;

use serde_yaml::{Mapping, Value};

use crate::error::{Problem, excerpt};

/// What a key of an element is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field {
    /// It has a value.
    Value(&'static str),
    /// It has keys of its own, which are no settings: any name goes that [`Records::part`] does not refuse.
    Parts(&'static str),
}

/// A list of mappings.
pub(crate) trait Records: Debug {
    /// The next element begins, unless there are too many.
    fn begin(&mut self) -> Result<(), String>;

    /// What a key of an element is, or why it cannot be used.
    fn field(&self, name: &str) -> Result<Field, Problem>;

    /// A key of this element is there, though what it says is wrong, or it is spelt wrong.
    fn passed(&mut self, name: &str);

    /// Sets a key of this element, or says what is wrong with the value.
    fn set(&mut self, field: &'static str, value: &Value) -> Result<(), String>;

    /// Whether this name can be used inside of that key.
    fn part(&self, _field: &'static str, _name: &str) -> Result<(), Problem> {
        Ok(())
    }

    /// Sets what is inside of a key, or says what is wrong with the value.
    fn set_part(&mut self, _field: &'static str, _name: &str, _value: &Value) -> Result<(), String> {
        Ok(())
    }

    /// This element ends: nothing may be missing, and where it is must be its own.
    fn end(&mut self) -> Result<(), String>;

    /// What is said of an element that is no mapping.
    fn no_record(&self, found: &Value) -> String;

    /// Those that are complete, in the form in which they are written.
    fn into_value(self: Box<Self>) -> Value;
}

/// Reads an element that was not read key by key.
pub(crate) fn read_record(list: &mut impl Records, fields: &Mapping) -> Result<(), String> {
    list.begin()?;
    for (name, value) in fields {
        let name = key(name)?;
        let wrong = |problem: String| format!("{}: {problem}", excerpt(name));
        match (list.field(name).map_err(|problem| wrong(problem.to_string()))?, value) {
            (Field::Parts(field), Value::Mapping(parts)) => {
                for (part, value) in parts {
                    let part = key(part)?;
                    let wrong = |problem: String| wrong(format!("{}: {problem}", excerpt(part)));
                    list.part(field, part).map_err(|problem| wrong(problem.to_string()))?;
                    list.set_part(field, part, value).map_err(wrong)?;
                }
            }
            (Field::Value(field) | Field::Parts(field), value) => list.set(field, value).map_err(wrong)?,
        }
    }
    list.end()
}

fn key(name: &Value) -> Result<&str, String> {
    match name {
        Value::String(name) => Ok(name),
        _ => Err("expected the name of a key".to_owned()),
    }
}
