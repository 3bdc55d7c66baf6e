//! The `MCPSCOPE_*` environment variables.

use serde_yaml::Value;

use crate::{
    error::{ConfigError, Origin, Problem},
    settings::{LATER, standard_variable},
    tree::{Setter, Tree, most_similar},
};

const PREFIX: &str = "MCPSCOPE_";

/// What Kubernetes puts into the environment of every container beside a Service of the name `mcpscope`
/// (`MCPSCOPE_SERVICE_HOST`, `MCPSCOPE_PORT_8080_TCP`, ...). No section of ours begins like that.
const SERVICE_LINKS: [&str; 2] = ["MCPSCOPE_SERVICE_", "MCPSCOPE_PORT"];

/// The `MCPSCOPE_*` variables of this process, for [`Settings::load`](crate::Settings::load), without those named in
/// `others`: variables with a meaning elsewhere in the program.
///
/// What is not UTF-8 gets U+FFFD in its place, which no setting accepts.
#[must_use]
pub fn environment(others: &[&str]) -> Vec<(String, String)> {
    // Not `vars()`: that panics at the first variable that is not UTF-8, whoever set it.
    let variables = std::env::vars_os().map(|(name, value)| {
        let [name, value] = [name, value].map(|text| text.to_string_lossy().into_owned());
        (name, value)
    });
    let is_setting = |name: &str| {
        name.starts_with(PREFIX) && !others.contains(&name) && !SERVICE_LINKS.iter().any(|p| name.starts_with(p))
    };
    variables.filter(|(name, _)| is_setting(name)).collect()
}

/// Applies the variables that are ours; the rest of an environment is none of our business.
pub(crate) fn apply(
    variables: impl IntoIterator<Item = (String, String)>,
    tree: &mut Tree,
    errors: &mut Vec<ConfigError>,
) {
    let paths = tree.leaves();
    let names: Vec<String> = paths.iter().map(|path| variable(path)).collect();
    // Sorted, since the order of an environment is anyone's guess and that of errors should not be.
    let mut ours: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    ours.sort();
    for (name, text) in ours {
        let known = names.iter().zip(&paths).find(|(known, _)| **known == name).map(|(_, path)| path);
        let result = match known {
            Some(_) if text.contains(char::REPLACEMENT_CHARACTER) => Err(Problem::NotUtf8(None)),
            Some(path) => tree.set(path, value(&text, tree.get(path)), Setter::Variable(name.clone())),
            None if is_later(&name) => Err(Problem::NotAvailable),
            None => Err(match standard(&name) {
                Some(standard) => Problem::Standard { what: "variable", standard },
                None => {
                    let likely = most_similar(&name, names.iter().map(String::as_str)).map(str::to_owned);
                    Problem::Unknown { what: "variable", likely }
                }
            }),
        };
        if let Err(problem) = result {
            errors.push(ConfigError { origin: Origin::Variable(name), path: known.cloned(), problem });
        }
    }
}

/// The variable for a key: `MCPSCOPE_TRACING_MAX_TRACES` for `tracing.max_traces`.
pub(crate) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

/// The standard variable that says what this one looks as if it did.
fn standard(name: &str) -> Option<String> {
    standard_variable(&name.strip_prefix(&variable("otel."))?.to_ascii_lowercase())
}

fn is_later(name: &str) -> bool {
    LATER.iter().map(|path| variable(path)).any(|later| {
        let rest = name.strip_prefix(&later);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    })
}

/// The text as a value of the kind that the setting has now; what does not fit stays text and is refused as such.
fn value(text: &str, now: Option<&Value>) -> Value {
    let parsed = match now {
        Some(Value::Bool(_)) => text.parse().ok().map(Value::Bool),
        Some(Value::Number(_)) => {
            text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from)).ok()
        }
        Some(Value::Sequence(_)) => {
            Some(text.split(',').map(str::trim).filter(|element| !element.is_empty()).collect())
        }
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::from(text))
}
