//! The `MCPSCOPE_*` environment variables.

use serde_yaml::Value;

use crate::{
    chaos::ChaosSettings,
    error::{ConfigError, Origin, Problem},
    root::Root,
    settings::Settings,
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

/// The variables that are ours; the rest of an environment is none of our business.
pub(crate) struct Variables(Vec<(String, String)>);

impl Variables {
    pub(crate) fn new(all: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(all.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect())
    }

    /// Applies those that are keys of this tree; of each that is wrong the name, and why.
    pub(crate) fn apply<T: Root>(&self, tree: &mut Tree<T>) -> Vec<(String, ConfigError)> {
        let paths = tree.leaves();
        let known = self.0.iter().filter_map(|(name, text)| {
            let path = paths.iter().find(|path| variable(path) == *name)?;
            let problem = set(tree, path, name, text).err()?;
            Some((name.clone(), error(name, Some(path), problem)))
        });
        known.collect()
    }

    /// Those that are no keys of these trees.
    pub(crate) fn unknown<A: Root, B: Root>(&self, one: &Tree<A>, other: &Tree<B>) -> Vec<(String, ConfigError)> {
        let paths = one.leaves().into_iter().chain(other.leaves());
        let names: Vec<String> = paths.map(|path| variable(&path)).collect();
        let unknown = self.0.iter().filter(|(name, _)| !names.contains(name));
        unknown.map(|(name, _)| (name.clone(), error(name, None, no_variable(name, &names)))).collect()
    }
}

fn error(name: &str, path: Option<&String>, problem: Problem) -> ConfigError {
    ConfigError { origin: Origin::Variable(name.to_owned()), path: path.cloned(), problem }
}

fn set<T: Root>(tree: &mut Tree<T>, path: &str, name: &str, text: &str) -> Result<(), Problem> {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(Problem::NotUtf8(None));
    }
    tree.forget(path);
    tree.set(path, value(text, tree.get(path)), Setter::Variable(name.to_owned()))
}

/// Why there is no such variable.
fn no_variable(name: &str, names: &[String]) -> Problem {
    if is_later(name) {
        return Problem::NotAvailable;
    }
    match standard(name) {
        Some(standard) => Problem::Standard { what: "variable", standard },
        None => {
            let likely = most_similar(name, names.iter().map(String::as_str)).map(str::to_owned);
            Problem::Unknown { what: "variable", likely }
        }
    }
}

/// The variable for a key: `MCPSCOPE_TRACING_MAX_TRACES` for `tracing.max_traces`.
pub(crate) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

/// The standard variable that says what this one looks as if it did.
fn standard(name: &str) -> Option<String> {
    Settings::standard_variable("otel", &name.strip_prefix(&variable("otel."))?.to_ascii_lowercase())
}

fn is_later(name: &str) -> bool {
    Settings::LATER.iter().chain(ChaosSettings::LATER).map(|path| variable(path)).any(|later| {
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
