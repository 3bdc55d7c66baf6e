//! `scenarios`: what the scheduler chooses from, and what is different about scenarios.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_yaml::{Mapping, Value};

use super::{
    kind::{Description, Impact, Impacts, RecoveryTime},
    parts::{self, MATCH, PARAMETERS, Parts, Scalar, unknown},
};
use crate::{
    error::{Problem, excerpt},
    kind::{Kind, Name, Ratio, Share, Switch, accepted, described},
    records::{Field, Records, read_record},
    tree::most_similar,
};

const MAX_SCENARIOS: usize = 64;

/// The key of the list.
pub(crate) const KEY: &str = "scenarios";

/// The keys of an element.
const FIELDS: [&str; 8] =
    ["name", "probability", "description", "impact", "recovery_time", "enabled", PARAMETERS, MATCH];

const EXPECTED: &str = "a mapping of name, and of probability, description, impact, recovery_time, enabled, parameters and \
                        match where they are wanted";

/// A scenario as the chaos file has it. What is left out is the scenario's own default.
///
/// In a file it is a mapping of these fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name, 1 to 128 bytes; no other one's.
    pub name: String,
    /// The chance that the scheduler starts it when it has chosen it.
    pub probability: Option<Ratio>,
    /// What it does, in one line of 1 to 256 bytes.
    pub description: Option<String>,
    /// How much it can hurt.
    pub impact: Option<Impact>,
    /// Within which time after its end everything is to be well again, 1 ms to 1 h.
    pub recovery_time: Option<Duration>,
    /// Whether the scheduler may choose it.
    pub enabled: Option<bool>,
    /// Its parameters by name, 64 at most. Which there are, and what they may be, is not known here.
    pub parameters: BTreeMap<String, Scalar>,
    /// What it is about, by those names out of [`MATCHERS`](super::MATCHERS) that are not among the parameters. The key is `match`.
    pub matching: BTreeMap<String, Scalar>,
}

/// The six that the scheduler chooses from, with everything that can be said of them.
pub(crate) fn scheduled() -> Vec<Scenario> {
    let scenario = |name: &str, probability, description: &str, impact, recovery_secs, enabled| Scenario {
        probability: Some(Ratio::of(probability)),
        description: Some(description.to_owned()),
        impact: Some(impact),
        recovery_time: Some(Duration::from_secs(recovery_secs)),
        enabled: Some(enabled),
        ..Scenario::new(name)
    };
    let partition = "Simulate network partition between nodes";
    let crash = "Inject random non-critical process crashes";
    vec![
        scenario("network_partition", 0.10, partition, Impact::High, 30, true),
        scenario("process_crash", 0.05, crash, Impact::High, 5, true),
        scenario("memory_pressure", 0.02, "Simulate memory pressure scenarios", Impact::Medium, 15, true),
        scenario("cpu_overload", 0.01, "Simulate CPU overload conditions", Impact::Medium, 10, true),
        scenario("latency_injection", 0.15, "Inject random network latency", Impact::Low, 1, true),
        scenario("packet_loss", 0.0, "Simulate network packet loss", Impact::Medium, 2, false),
    ]
}

impl Scenario {
    /// The scenario of this name, of which nothing is said.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            probability: None,
            description: None,
            impact: None,
            recovery_time: None,
            enabled: None,
            parameters: BTreeMap::new(),
            matching: BTreeMap::new(),
        }
    }
}

impl Serialize for Scenario {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, probability, description, impact, recovery_time, enabled, parameters, matching } = self;
        let fields = [
            ("name", Some(Name::write(name))),
            ("probability", probability.as_ref().map(Share::write)),
            ("description", description.as_ref().map(Description::write)),
            ("impact", impact.as_ref().map(Impacts::write)),
            ("recovery_time", recovery_time.as_ref().map(RecoveryTime::write)),
            ("enabled", enabled.as_ref().map(Switch::write)),
            (PARAMETERS, parts::write(parameters)),
            (MATCH, parts::write(matching)),
        ];
        let given = fields.into_iter().filter_map(|(field, value)| Some((Value::from(field), value?)));
        Mapping::serialize(&given.collect(), serializer)
    }
}

/// Reads a list of scenarios, no two of which have the same name.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Scenario>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    read(&value).map_err(de::Error::custom)
}

fn read(value: &Value) -> Result<Vec<Scenario>, String> {
    let Value::Sequence(elements) = value else {
        return Err(format!("expected a list of scenarios, each {EXPECTED}, found {}", described(value)));
    };
    let mut list = List::default();
    for element in elements {
        let Value::Mapping(fields) = element else { return Err(list.no_record(element)) };
        read_record(&mut list, fields)?;
    }
    Ok(list.scenarios())
}

/// The list, element by element and key by key.
#[derive(Debug, Default)]
pub(crate) struct List {
    drafts: Vec<Draft>,
}

/// A scenario as far as it is known.
#[derive(Debug)]
struct Draft {
    scenario: Scenario,
    parts: Parts,
    /// It has a name, right or wrong.
    is_named: bool,
}

impl Records for List {
    fn begin(&mut self) -> Result<(), String> {
        if self.drafts.len() == MAX_SCENARIOS {
            return Err(format!("expected {MAX_SCENARIOS} scenarios at most"));
        }
        self.drafts.push(Draft { scenario: Scenario::new(""), parts: Parts::default(), is_named: false });
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
        if let Some(draft) = self.drafts.last_mut()
            && (name == "name" || most_similar(name, FIELDS) == Some("name"))
        {
            draft.is_named = true;
        }
    }

    fn set(&mut self, field: &'static str, value: &Value) -> Result<(), String> {
        let Some((Draft { scenario, is_named, .. }, others)) = self.drafts.split_last_mut() else { return Ok(()) };
        match field {
            "name" => {
                *is_named = true;
                let name = accepted::<Name>(value)?;
                if let Some(at) = others.iter().position(|other| other.scenario.name == name) {
                    return Err(format!("\"{}\" is {KEY}[{at}] already", excerpt(&name)));
                }
                scenario.name = name;
            }
            "probability" => scenario.probability = Some(accepted::<Share>(value)?),
            "description" => scenario.description = Some(accepted::<Description>(value)?),
            "impact" => scenario.impact = Some(accepted::<Impacts>(value)?),
            "recovery_time" => scenario.recovery_time = Some(accepted::<RecoveryTime>(value)?),
            "enabled" => scenario.enabled = Some(accepted::<Switch>(value)?),
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
        match self.drafts.last() {
            Some(Draft { is_named: false, .. }) => Err(format!("expected {EXPECTED}; missing: name")),
            Some(Draft { parts, .. }) => parts.end(),
            None => Ok(()),
        }
    }

    fn no_record(&self, found: &Value) -> String {
        format!("expected {EXPECTED}, found {}", described(found))
    }

    fn into_value(self: Box<Self>) -> Value {
        // Plain data serialises; were it otherwise, the list would be refused.
        serde_yaml::to_value(self.scenarios()).unwrap_or_default()
    }
}

impl List {
    /// Those that have a name.
    fn scenarios(self) -> Vec<Scenario> {
        let scenarios =
            self.drafts.into_iter().map(|Draft { scenario, parts: Parts { parameters, matching, .. }, .. }| Scenario {
                parameters,
                matching,
                ..scenario
            });
        scenarios.filter(|scenario| !scenario.name.is_empty()).collect()
    }
}
