//! `servers`: what `mcpscope serve` stands in front of.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_yaml::Value;
use url::Url;

use crate::{
    error::{Problem, excerpt},
    kind::{Address, Kind, Name, Switch, accepted, described},
    place::Place,
    records::{Field, Records, read_record},
    tree::most_similar,
};

const MAX_SERVERS: usize = 256;

/// The key of the list.
pub(crate) const KEY: &str = "servers";

/// The keys of an element.
const FIELDS: [&str; 5] = ["name", "command", "upstream", "listen", "critical"];

const EXPECTED: &str = "a mapping of name, upstream and listen, and of command and critical where they are wanted";

/// One MCP server behind a listener of its own.
///
/// In a file it is a mapping of these fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Server {
    /// What it is called in labels and traces, 1 to 128 bytes; no other server's name.
    pub name: String,
    /// The program that serves HTTP at `upstream`, and its arguments: it is started, and started again when it crashes.
    /// Default: none, the server is run by somebody else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `http[s]://HOST[:PORT][/PATH]`.
    pub upstream: String,
    /// Address where clients connect instead; port 0 is any free one, every other address no other server's.
    pub listen: String,
    /// Whether the instance is no good without it. Default: false.
    pub critical: bool,
}

impl Server {
    /// Where `upstream` is.
    #[must_use]
    pub fn upstream_place(&self) -> Option<Place> {
        Place::of_url(&self.upstream)
    }
}

/// Reads a list of servers, no two of which have the same name or address.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Server>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    read(&value).map_err(de::Error::custom)
}

fn read(value: &Value) -> Result<Vec<Server>, String> {
    let Value::Sequence(elements) = value else {
        return Err(format!("expected a list of servers, each {EXPECTED}, found {}", described(value)));
    };
    let mut list = List::default();
    for element in elements {
        let Value::Mapping(fields) = element else { return Err(no_server(element)) };
        read_record(&mut list, fields)?;
    }
    Ok(list.servers())
}

/// What is said of an element that is no mapping.
fn no_server(found: &Value) -> String {
    format!("expected {EXPECTED}, found {}", described(found))
}

fn field(name: &str) -> Option<&'static str> {
    FIELDS.into_iter().find(|field| *field == name)
}

/// The list, element by element and key by key.
#[derive(Debug, Default)]
pub(crate) struct List {
    drafts: Vec<Draft>,
}

/// A server as far as it is known.
#[derive(Debug, Default)]
struct Draft {
    name: Option<String>,
    command: Option<Vec<String>>,
    upstream: Option<String>,
    listen: Option<String>,
    critical: Option<bool>,
    /// The keys that are there, right or wrong.
    given: BTreeSet<&'static str>,
    /// Its keys do not go together.
    is_refused: bool,
}

impl Records for List {
    fn begin(&mut self) -> Result<(), String> {
        if self.drafts.len() == MAX_SERVERS {
            return Err(format!("expected {MAX_SERVERS} servers at most"));
        }
        self.drafts.push(Draft::default());
        Ok(())
    }

    fn field(&self, name: &str) -> Result<Field, Problem> {
        let unknown = || Problem::Unknown { what: "key", likely: most_similar(name, FIELDS).map(str::to_owned) };
        field(name).map(Field::Value).ok_or_else(unknown)
    }

    fn passed(&mut self, name: &str) {
        let meant = field(name).or_else(|| most_similar(name, FIELDS));
        if let (Some(draft), Some(meant)) = (self.drafts.last_mut(), meant) {
            draft.given.insert(meant);
        }
    }

    fn set(&mut self, field: &'static str, value: &Value) -> Result<(), String> {
        let Some((draft, others)) = self.drafts.split_last_mut() else { return Ok(()) };
        draft.given.insert(field);
        let other = |is_same: &dyn Fn(&Draft) -> bool| others.iter().position(is_same);
        match field {
            "name" => {
                let name = accepted::<Name>(value)?;
                if let Some(at) = other(&|other| other.name.as_ref() == Some(&name)) {
                    return Err(format!("\"{}\" is the name of {KEY}[{at}] already", excerpt(&name)));
                }
                draft.name = Some(name);
            }
            "command" => draft.command = Some(accepted::<Command>(value)?),
            "upstream" => draft.upstream = Some(accepted::<Upstream>(value)?),
            "listen" => {
                let listen = accepted::<Address>(value)?;
                let is_any_port = listen.ends_with(":0");
                let taken = other(&|other| other.listen.as_ref().is_some_and(|at| at.eq_ignore_ascii_case(&listen)));
                if let Some(at) = taken.filter(|_| !is_any_port) {
                    return Err(format!("\"{listen}\" is the address of {KEY}[{at}] already"));
                }
                draft.listen = Some(listen);
            }
            _ => draft.critical = Some(accepted::<Switch>(value)?),
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some((draft, others)) = self.drafts.split_last_mut() else { return Ok(()) };
        let checked = draft.check(others);
        draft.is_refused = checked.is_err();
        checked
    }

    fn no_record(&self, found: &Value) -> String {
        no_server(found)
    }

    fn into_value(self: Box<Self>) -> Value {
        // Plain data serialises; were it otherwise, the list would be refused.
        serde_yaml::to_value(self.servers()).unwrap_or_default()
    }
}

impl List {
    fn servers(self) -> Vec<Server> {
        self.drafts.into_iter().filter_map(Draft::into_server).collect()
    }
}

impl Draft {
    /// Whether it is complete and where no other one is.
    fn check(&self, others: &[Self]) -> Result<(), String> {
        let is_missing = |field: &&str| !self.given.contains(field);
        let missing: Vec<&str> = ["name", "upstream", "listen"].into_iter().filter(is_missing).collect();
        if !missing.is_empty() {
            return Err(format!("expected {EXPECTED}; missing: {}", missing.join(", ")));
        }
        let (Some(upstream), Some(listen)) = (&self.upstream, &self.listen) else { return Ok(()) };
        let (Some(to), Some(at)) = (self.leads_to(), self.is_at()) else { return self.is_alone(upstream, others) };
        let back = "clients would be passed on to where they came from";
        if to == at {
            return Err(format!("upstream {upstream} and listen {listen} are the same place: {back}"));
        }
        match way(&to, &at, others, &mut BTreeSet::new()) {
            Some(way) => {
                let way: Vec<String> = way.into_iter().map(|at| format!("{KEY}[{at}]")).collect();
                Err(format!("upstream {upstream} leads back to listen {listen} by way of {}: {back}", way.join(", ")))
            }
            None => self.is_alone(upstream, others),
        }
    }

    /// Whether no other one is started where this one is to be.
    fn is_alone(&self, upstream: &str, others: &[Self]) -> Result<(), String> {
        let is_there = |other: &Draft| other.command.is_some() && other.leads_to() == self.leads_to();
        match others.iter().position(is_there).filter(|_| self.command.is_some()) {
            Some(at) => Err(format!("{KEY}[{at}] is started there already, at {upstream}")),
            None => Ok(()),
        }
    }

    fn leads_to(&self) -> Option<Place> {
        Place::of_url(self.upstream.as_deref()?)
    }

    fn is_at(&self) -> Option<Place> {
        Place::of_listener(self.listen.as_deref()?)
    }

    fn into_server(self) -> Option<Server> {
        let Self { name, command, upstream, listen, critical, given: _, is_refused } = self;
        (!is_refused).then_some(Server {
            name: name?,
            command: command.unwrap_or_default(),
            upstream: upstream?,
            listen: listen?,
            critical: critical.unwrap_or(false),
        })
    }
}

/// The servers by way of which a request to `from` comes to `to`, if it does; those of `seen` are known not to lead there.
fn way(from: &Place, to: &Place, drafts: &[Draft], seen: &mut BTreeSet<usize>) -> Option<Vec<usize>> {
    drafts.iter().enumerate().filter(|(_, draft)| draft.is_at().as_ref() == Some(from)).find_map(|(at, draft)| {
        let next = draft.leads_to().filter(|_| seen.insert(at))?;
        let further = if next == *to { Vec::new() } else { way(&next, to, drafts, seen)? };
        Some([vec![at], further].concat())
    })
}

enum Command {}

impl Kind for Command {
    type Setting = Vec<String>;
    const EXPECTED: &str = "a list, not an empty one, of a program and its arguments such as [npx, -y, my-server]";

    fn read(value: &Value) -> Result<Vec<String>, &Value> {
        let Value::Sequence(words) = value else { return Err(value) };
        // Not `as_str()`, which looks through tags.
        let words = words.iter().map(|word| match word {
            Value::String(text) if !text.contains('\0') => Ok(text.clone()),
            wrong => Err(wrong),
        });
        let words: Vec<String> = words.collect::<Result<_, _>>()?;
        if words.first().is_some_and(|program| !program.is_empty()) { Ok(words) } else { Err(value) }
    }

    fn write(setting: &Vec<String>) -> Value {
        setting.iter().map(String::as_str).collect()
    }
}

enum Upstream {}

impl Kind for Upstream {
    type Setting = String;
    const EXPECTED: &str = "a URL http[s]://HOST[:PORT][/PATH] such as http://127.0.0.1:3001/mcp";

    fn read(value: &Value) -> Result<String, &Value> {
        match value {
            Value::String(text) if is_upstream(text) => Ok(text.clone()),
            _ => Err(value),
        }
    }

    fn write(setting: &String) -> Value {
        Value::from(setting.as_str())
    }
}

/// Whether it names a server and nothing that requests have of their own.
fn is_upstream(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host().is_some()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    })
}
