//! A file of experiments, which are run one after the other.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_yaml::{Mapping, Value};

use super::{
    kind::{Description, Expectation, Expected, Pause},
    parts::{self, MATCH, PARAMETERS, Parts, Scalar, unknown},
};
use crate::{
    document::Document,
    error::{ConfigError, ConfigErrors, Origin, Problem, excerpt},
    kind::{Kind, Name, accepted, described},
    load::Side,
    records::{Field, Records, read_record},
    root::Root,
    settings::Conflict,
};

const MAX_EXPERIMENTS: usize = 256;

/// The key of the list.
const KEY: &str = "experiments";

/// The keys of an element.
const FIELDS: [&str; 6] = ["name", "scenario", PARAMETERS, MATCH, "expect", "pause"];

const EXPECTED: &str = "a mapping of scenario, and of name, parameters, match, expect and pause where they are wanted";

/// A file of experiments, checked as far as it can be without the instance that is to run them.
#[derive(Debug)]
pub struct Suite {
    path: PathBuf,
    side: Side<Keys>,
}

impl Suite {
    /// What this file says, of 1 MiB at most.
    ///
    /// # Errors
    /// Everything that is wrong in it at once, each with its place: up to 100 errors, but one only where it cannot be read, is not
    /// YAML, or has no experiment.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        match Self::read(path) {
            (Some(suite), errors) if errors.is_empty() => Ok(suite),
            (_, errors) => Err(ConfigErrors { errors, files: Vec::new() }),
        }
    }

    /// The same, with the experiments that are right beside everything that is wrong, for who may know of more and tells all at
    /// once; none where those cannot be told from elements of the list that are none.
    #[must_use]
    pub fn read(path: &Path) -> (Option<Self>, Vec<ConfigError>) {
        let (mut side, mut errors) = (Side::new(), Vec::new());
        side.read(Document::read(path), &mut errors);
        let suite = Self { path: path.to_owned(), side };
        // A refused list leaves none either.
        if errors.is_empty() && suite.experiments().is_empty() {
            errors.push(suite.refuse_key(KEY, &format!("expected a list of at least one, each {EXPECTED}")));
        }
        let is_known = errors.is_empty() || suite.elements().count() == suite.experiments().len();
        (is_known.then_some(suite), errors)
    }

    /// In their order; one at least.
    #[must_use]
    pub fn experiments(&self) -> &[Experiment] {
        &self.side.tree.settings.experiments
    }

    /// What turned out to be wrong with one of the experiments later on, by its place among them from 0, and with one of its parameters if
    /// there is one of that name: an error like any other, with its place.
    #[must_use]
    pub fn refuse(&self, at: usize, parameter: Option<&str>, message: &str) -> ConfigError {
        // Where something is wrong, there may be elements of the list that are no experiments.
        let element = self.elements().nth(at).unwrap_or_else(|| format!("{KEY}[{at}]"));
        let parts = [PARAMETERS, MATCH].into_iter().filter_map(|part| Some(format!("{element}.{part}.{}", parameter?)));
        let mut keys: Vec<_> = parts.collect();
        keys.push(format!("{element}.scenario"));
        let given = keys.iter().find(|key| self.is_given(key)).unwrap_or(&keys[keys.len() - 1]);
        self.refuse_key(given, message)
    }

    /// The keys of those elements of the list that are experiments.
    fn elements(&self) -> impl Iterator<Item = String> {
        let elements = (0..MAX_EXPERIMENTS).map(|at| format!("{KEY}[{at}]"));
        elements.filter(|element| self.is_given(&format!("{element}.scenario")))
    }

    fn is_given(&self, key: &str) -> bool {
        self.side.refuse(&[key], "").is_some()
    }

    fn refuse_key(&self, key: &str, message: &str) -> ConfigError {
        self.side.refuse(&[key], message).unwrap_or_else(|| ConfigError {
            origin: Origin::File { path: self.path.clone(), place: None },
            path: Some(key.to_owned()),
            problem: Problem::Invalid(message.to_owned()),
        })
    }
}

/// An experiment, and how it is expected to end.
///
/// In a file it is a mapping of these fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// What it is called, in one line of 1 to 256 bytes; no other one's. Default: its scenario.
    pub name: String,
    /// What is injected, 1 to 128 bytes. Which there are is not known here.
    pub scenario: String,
    /// Its parameters by name, 64 at most. Which there are, and what they may be, is not known here.
    pub parameters: BTreeMap<String, Scalar>,
    /// What it is about, by those names out of [`MATCHERS`](super::MATCHERS) that are not among the parameters. The key is `match`.
    pub matching: BTreeMap<String, Scalar>,
    /// How it is expected to end. Default: it is completed.
    pub expect: Expected,
    /// How long to wait before it is started, 0 to 1 h. Default: not at all.
    pub pause: Duration,
}

impl Serialize for Experiment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, scenario, parameters, matching, expect, pause } = self;
        let fields = [
            ("name", Some(Description::write(name))),
            ("scenario", Some(Name::write(scenario))),
            (PARAMETERS, parts::write(parameters)),
            (MATCH, parts::write(matching)),
            ("expect", Some(Expectation::write(expect))),
            ("pause", Some(Pause::write(pause))),
        ];
        let given = fields.into_iter().filter_map(|(field, value)| Some((Value::from(field), value?)));
        Mapping::serialize(&given.collect(), serializer)
    }
}

/// The keys of the file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Keys {
    #[serde(deserialize_with = "deserialize")]
    experiments: Vec<Experiment>,
}

impl Root for Keys {
    fn records(path: &str) -> Option<Box<dyn Records>> {
        (path == KEY).then(|| Box::<List>::default() as Box<dyn Records>)
    }

    fn conflicts(&self) -> Vec<Conflict> {
        Vec::new()
    }
}

fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Experiment>, D::Error> {
    read(&Value::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn read(value: &Value) -> Result<Vec<Experiment>, String> {
    let Value::Sequence(elements) = value else {
        return Err(format!("expected a list of experiments, each {EXPECTED}, found {}", described(value)));
    };
    let mut list = List::default();
    for element in elements {
        let Value::Mapping(fields) = element else { return Err(list.no_record(element)) };
        read_record(&mut list, fields)?;
    }
    Ok(list.experiments())
}

/// The list, element by element and key by key.
#[derive(Debug, Default)]
struct List {
    drafts: Vec<Draft>,
}

/// An experiment as far as it is known.
#[derive(Debug, Default)]
struct Draft {
    name: Option<String>,
    scenario: Option<String>,
    parts: Parts,
    expect: Expected,
    pause: Duration,
    /// It has a scenario, right or wrong.
    has_scenario: bool,
}

impl Draft {
    /// What it is called, if that is known.
    fn called(&self) -> Option<&str> {
        self.name.as_deref().or(self.scenario.as_deref())
    }
}

impl Records for List {
    fn begin(&mut self) -> Result<(), String> {
        if self.drafts.len() == MAX_EXPERIMENTS {
            return Err(format!("expected {MAX_EXPERIMENTS} experiments at most"));
        }
        self.drafts.push(Draft::default());
        Ok(())
    }

    fn field(&self, name: &str) -> Result<Field, Problem> {
        match FIELDS.into_iter().find(|field| *field == name) {
            Some(field @ (PARAMETERS | MATCH)) => Ok(Field::Parts(field)),
            Some(field) => Ok(Field::Value(field)),
            None => Err(unknown(name, &FIELDS)),
        }
    }

    fn passed(&mut self, name: &str) {
        let is_scenario = name == "scenario" || crate::tree::most_similar(name, FIELDS) == Some("scenario");
        if let Some(draft) = self.drafts.last_mut().filter(|_| is_scenario) {
            draft.has_scenario = true;
        }
    }

    fn set(&mut self, field: &'static str, value: &Value) -> Result<(), String> {
        let Some(draft) = self.drafts.last_mut() else { return Ok(()) };
        match field {
            "name" => draft.name = Some(accepted::<Description>(value)?),
            "scenario" => {
                draft.has_scenario = true;
                draft.scenario = Some(accepted::<Name>(value)?);
            }
            "expect" => draft.expect = accepted::<Expectation>(value)?,
            "pause" => draft.pause = accepted::<Pause>(value)?,
            _ => parts::no_mapping(field, value)?,
        }
        Ok(())
    }

    fn part(&self, field: &'static str, name: &str) -> Result<(), Problem> {
        self.drafts.last().map_or(Ok(()), |draft| draft.parts.check(field, name))
    }

    fn set_part(&mut self, field: &'static str, name: &str, value: &Value) -> Result<(), String> {
        self.drafts.last_mut().map_or(Ok(()), |draft| draft.parts.set(field, name, value))
    }

    fn end(&mut self) -> Result<(), String> {
        let Some((draft, others)) = self.drafts.split_last() else { return Ok(()) };
        if !draft.has_scenario {
            return Err(format!("expected {EXPECTED}; missing: scenario"));
        }
        draft.parts.end()?;
        // They are told apart by name wherever their results are shown.
        let called = draft.called();
        match called.zip(others.iter().position(|other| called.is_some() && other.called() == called)) {
            Some((name, at)) => {
                Err(format!("\"{}\" is {KEY}[{at}] already: expected a name of its own", excerpt(name)))
            }
            None => Ok(()),
        }
    }

    fn no_record(&self, found: &Value) -> String {
        format!("expected {EXPECTED}, found {}", described(found))
    }

    fn into_value(self: Box<Self>) -> Value {
        // Plain data serialises; were it otherwise, the list would be refused.
        serde_yaml::to_value(self.experiments()).unwrap_or_default()
    }
}

impl List {
    /// Those that have a scenario, and a name that no other one has.
    fn experiments(self) -> Vec<Experiment> {
        let mut experiments: Vec<Experiment> = Vec::new();
        for Draft { name, scenario, parts: Parts { parameters, matching, .. }, expect, pause, .. } in self.drafts {
            let Some(scenario) = scenario else { continue };
            let name = name.unwrap_or_else(|| scenario.clone());
            if experiments.iter().all(|other| other.name != name) {
                experiments.push(Experiment { name, scenario, parameters, matching, expect, pause });
            }
        }
        experiments
    }
}
