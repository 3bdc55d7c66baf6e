//! One YAML file, applied to the settings key by key.
//!
//! The parser tells the place of an error, but only of one, and then it is over. So a document is walked again after each
//! error, passing over the keys reported before, until a walk reaches the end. Keys are told apart by their number in
//! document order, and within their element of a list, which no error changes. Files are small and errors few, so this costs less than a second parser,
//! which would have to agree with the first one on what YAML is.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::de::{
    self, Deserialize as _, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor,
    value::MapAccessDeserializer,
};
use serde_yaml::{
    Mapping, Value,
    value::{Tag, TaggedValue},
};

use crate::{
    critical,
    error::{ConfigError, Origin, Problem},
    kind::described,
    servers,
    tree::{Entry, Number, Setter, Tree, join},
};

const MAX_BYTES: usize = 1 << 20;
const MAX_ERRORS: usize = 100;
const MAX_DEPTH: usize = 128;

/// A file that was read.
#[derive(Debug)]
pub(crate) struct Document {
    path: PathBuf,
    text: String,
    /// Keys, and elements of lists of more than texts, with errors, to pass over.
    reported: BTreeSet<Number>,
}

impl Document {
    /// Reads a file and checks that it is YAML.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |place, problem| {
            let origin = Origin::File { path: path.to_owned(), place };
            ConfigError { origin, path: None, problem }
        };
        let mut bytes = Vec::new();
        let limit = MAX_BYTES as u64 + 1;
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(|io| error(None, Problem::Unreadable(io)))?;
        if bytes.len() > MAX_BYTES {
            return Err(error(None, Problem::TooLarge));
        }
        let text = String::from_utf8(bytes).map_err(|wrong| {
            let valid = &wrong.as_bytes()[..wrong.utf8_error().valid_up_to()];
            error(Some(place_after(valid)), Problem::NotUtf8(Some(wrong.utf8_error())))
        })?;
        if let Some(place) = too_deep(&text) {
            return Err(error(Some(place), Problem::TooDeep(MAX_DEPTH)));
        }
        // Broken syntax would otherwise surface in the middle of a walk, behind errors that only follow from it.
        match IgnoredAny::deserialize(serde_yaml::Deserializer::from_str(&text)) {
            Ok(_) => Ok(Self { path: path.to_owned(), text, reported: BTreeSet::new() }),
            Err(syntax) => Err(error(place_of(&syntax), Problem::Syntax(Box::new(syntax)))),
        }
    }

    /// Applies all keys to the settings, which remember this document by the number `file`.
    pub(crate) fn apply(&mut self, file: usize, tree: &mut Tree, errors: &mut Vec<ConfigError>) {
        while let Some((key, error)) = self.walk(file, tree, None) {
            if self.reported.len() == MAX_ERRORS {
                errors.push(self.error(None, None, Problem::More(MAX_ERRORS)));
                return;
            }
            errors.push(error);
            if key.is_none_or(|key| !self.reported.insert(key)) {
                return;
            }
        }
    }

    /// The error that an accepted key, given by its number, is at odds with another one.
    pub(crate) fn refuse(&self, key: Number, path: &str, message: &str) -> ConfigError {
        match self.walk(0, &mut Tree::new(), Some((key, message))) {
            Some((_, error)) => error,
            None => self.error(None, Some(path.to_owned()), Problem::Invalid(message.to_owned())),
        }
    }

    /// Walks to the end or the first error; with that comes the number of the key to pass over next time.
    fn walk(
        &self,
        file: usize,
        tree: &mut Tree,
        unwanted: Option<(Number, &str)>,
    ) -> Option<(Option<Number>, ConfigError)> {
        let (critical, servers) = (critical::List::default(), servers::List::default());
        let mut walk =
            Walk { file, tree, reported: &self.reported, unwanted, keys: 0, critical, servers, failure: None };
        let top = Node { walk: &mut walk, path: "", key: None, entry: Entry::Section };
        let error = top.deserialize(serde_yaml::Deserializer::from_str(&self.text)).err()?;
        let place = place_of(&error);
        Some(match walk.failure {
            Some(Failure { key, path, problem }) => (key, self.error(place, path, problem)),
            None => (None, self.error(place, None, Problem::Syntax(Box::new(error)))),
        })
    }

    fn error(&self, place: Option<(usize, usize)>, path: Option<String>, problem: Problem) -> ConfigError {
        ConfigError { origin: Origin::File { path: self.path.clone(), place }, path, problem }
    }
}

fn place_of(error: &serde_yaml::Error) -> Option<(usize, usize)> {
    error.location().map(|location| (location.line(), location.column()))
}

fn place_after(valid: &[u8]) -> (usize, usize) {
    let text = String::from_utf8_lossy(valid);
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    (1 + text.matches('\n').count(), 1 + last_line.chars().count())
}

/// Where brackets are nested deeper than any configuration needs, if they are.
///
/// The parser's time grows with length times depth: minutes for a file full of opening braces. Brackets in quotes and
/// comments count here too, which is wrong, but only matters to a file with over a hundred of them left open.
fn too_deep(text: &str) -> Option<(usize, usize)> {
    let mut depth = 0_usize;
    let (at, _) = text.bytes().enumerate().find(|(_, byte)| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })?;
    Some(place_after(&text.as_bytes()[..at]))
}

/// One pass over a document.
struct Walk<'a> {
    file: usize,
    tree: &'a mut Tree,
    reported: &'a BTreeSet<Number>,
    /// A key to fail at although its value is fine, and why.
    unwanted: Option<(Number, &'a str)>,
    keys: usize,
    /// The critical metrics that were read.
    critical: critical::List,
    /// The servers that were read.
    servers: servers::List,
    /// Why the walk ended. It travels beside the parser's error, which carries the place.
    failure: Option<Failure>,
}

struct Failure {
    key: Option<Number>,
    path: Option<String>,
    problem: Problem,
}

impl Walk<'_> {
    /// Notes why the walk ends, unless something further inside did.
    fn failed(&mut self, key: Option<Number>, path: &str, problem: Problem) {
        let path = Some(path).filter(|path| !path.is_empty()).map(str::to_owned);
        self.failure.get_or_insert(Failure { key, path, problem });
    }

    fn fail<E: de::Error>(&mut self, key: Option<Number>, path: &str, problem: Problem) -> E {
        self.failed(key, path, problem);
        E::custom("refused")
    }
}

/// A key, judged while the parser stands on it, so that an error gets its place.
struct Key<'w, 'a> {
    walk: &'w mut Walk<'a>,
    section: &'w str,
    seen: &'w mut BTreeSet<String>,
    key: Number,
}

enum Step {
    /// Past the value of a key that was reported.
    Pass,
    /// Into the value of the key with this path.
    Enter(Entry, String),
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Step;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Step, D::Error> {
        let Self { walk, section, seen, key } = self;
        if walk.reported.contains(&key) {
            if key.field == 0 {
                return IgnoredAny::deserialize(deserializer).map(|_| Step::Pass);
            }
            let name = Value::deserialize(deserializer)?;
            walk.servers.passed(name.as_str().unwrap_or_default());
            return Ok(Step::Pass);
        }
        let visited = deserializer.deserialize_str(Key { walk: &mut *walk, section, seen, key });
        visited.inspect_err(|_| {
            walk.failed(Some(key), section, Problem::Invalid("expected the name of a key".to_owned()));
        })
    }
}

impl<'de> Visitor<'de> for Key<'_, '_> {
    type Value = Step;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a key")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Step, E> {
        let Self { walk, section, seen, key } = self;
        let path = join(section, name);
        let known = match key.field {
            0 => walk.tree.entry(section, name),
            _ => servers::field(name).map(Entry::Field),
        };
        let entry = match known {
            Ok(_) if !seen.insert(name.to_owned()) => Err(Problem::Duplicate),
            entry => entry,
        };
        match entry {
            Ok(entry) => Ok(Step::Enter(entry, path)),
            Err(problem) => Err(walk.fail(Some(key), &path, problem)),
        }
    }
}

/// An element of a list of more than texts, each of which has errors of its own.
struct Element<'w, 'a> {
    walk: &'w mut Walk<'a>,
    path: &'w str,
    key: Number,
    entry: Entry,
}

impl<'de> DeserializeSeed<'de> for Element<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { walk, path, key, entry } = self;
        if walk.reported.contains(&key) {
            return IgnoredAny::deserialize(deserializer).map(|_| ());
        }
        Node { walk, path, key: Some(key), entry }.deserialize(deserializer)
    }
}

/// What follows a key, and the document as a whole.
struct Node<'w, 'a> {
    walk: &'w mut Walk<'a>,
    path: &'w str,
    /// The number of the key; the document has none.
    key: Option<Number>,
    entry: Entry,
}

impl Node<'_, '_> {
    /// Takes a value that is no section.
    fn take<E: de::Error>(self, value: Value) -> Result<(), E> {
        let Self { walk, path, key, entry } = self;
        let problem = match (entry, key) {
            // An empty document, or a section with every key commented out. Not `is_null()`, which looks through tags:
            // the parser may go on only after a value that was read to its end, and what was tagged was not.
            (Entry::Section, _) if value == Value::Null => return Ok(()),
            (Entry::Leaf, Some(key)) => match walk.unwanted {
                Some((unwanted, why)) if unwanted == key => Problem::Invalid(why.to_owned()),
                _ => match walk.tree.set(path, value, Setter::File { file: walk.file, key }) {
                    Ok(()) => return Ok(()),
                    Err(problem) => problem,
                },
            },
            (Entry::Element, _) => match walk.critical.push(value) {
                Ok(()) => return Ok(()),
                Err(message) => Problem::Invalid(message),
            },
            (Entry::Field(field), _) => match walk.servers.set(field, &value) {
                Ok(()) => return Ok(()),
                Err(message) => Problem::Invalid(message),
            },
            (Entry::Server, _) => Problem::Invalid(servers::no_server(&value)),
            _ => {
                let names = walk.tree.names(path).join(", ");
                Problem::Invalid(format!("expected a section with keys out of {names}, found {}", described(&value)))
            }
        };
        Err(walk.fail(key, path, problem))
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { walk, path, key, entry } = self;
        let visited = deserializer.deserialize_any(Node { walk: &mut *walk, path, key, entry });
        // What the parser itself refuses, such as an alias that expands without end.
        visited.inspect_err(|error| walk.failed(key, path, Problem::Invalid(error.to_string())))
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.take(Value::from(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.take(Value::from(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.take(Value::from(value))
    }

    // Too large for any setting; as a float it is refused as such.
    fn visit_i128<E: de::Error>(self, value: i128) -> Result<(), E> {
        self.take(Value::from(value as f64))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<(), E> {
        self.take(Value::from(value as f64))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.take(Value::from(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.take(Value::from(value))
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.take(Value::Null)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.take(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { walk, path, key, entry } = self;
        let value = match (&entry, key) {
            (Entry::Leaf, Some(mut key)) if path == critical::KEY => {
                walk.critical = critical::List::default();
                loop {
                    key.element += 1;
                    let element = Element { walk: &mut *walk, path, key, entry: Entry::Element };
                    if list.next_element_seed(element)?.is_none() {
                        break;
                    }
                }
                std::mem::take(&mut walk.critical).into_value()
            }
            (Entry::Leaf, Some(mut key)) if path == servers::KEY => {
                walk.servers = servers::List::default();
                let mut too_many = None;
                loop {
                    let path = format!("{path}[{}]", key.element);
                    key.element += 1;
                    // Those that come after are too many, too, and are not looked at.
                    too_many = too_many.or_else(|| walk.servers.begin().err());
                    let next = match &too_many {
                        None => {
                            let element = Element { walk: &mut *walk, path: &path, key, entry: Entry::Server };
                            list.next_element_seed(element)?
                        }
                        Some(_) => list.next_element::<IgnoredAny>()?.map(|_| ()),
                    };
                    if next.is_none() {
                        break;
                    }
                }
                if let Some(message) = too_many.filter(|_| key.element > servers::MAX_SERVERS + 1) {
                    return Err(walk.fail(Some(Number { element: 0, ..key }), path, Problem::Invalid(message)));
                }
                std::mem::take(&mut walk.servers).into_value()
            }
            (Entry::Leaf | Entry::Field(_), _) => {
                let mut values = Vec::new();
                while let Some(value) = list.next_element::<Value>()? {
                    values.push(value);
                }
                Value::Sequence(values)
            }
            (Entry::Section | Entry::Element | Entry::Server, _) => Value::Sequence(Vec::new()),
        };
        Node { walk, path, key, entry }.take(value)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        let tag = Tag::new("tag");
        self.take(Value::Tagged(Box::new(TaggedValue { tag, value: Value::Null })))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match self.entry {
            Entry::Section | Entry::Server => {}
            Entry::Leaf | Entry::Field(_) => return self.take(Value::Mapping(Mapping::new())),
            Entry::Element => return self.take(Value::deserialize(MapAccessDeserializer::new(map))?),
        }
        let Self { walk, path: section, key: above, .. } = self;
        let server = above.filter(|above| above.element > 0);
        let (mut seen, mut fields) = (BTreeSet::new(), 0);
        loop {
            let key = match server {
                Some(server) => Number { field: fields + 1, ..server },
                None => Number { key: walk.keys, ..Number::default() },
            };
            let Some(step) = map.next_key_seed(Key { walk: &mut *walk, section, seen: &mut seen, key })? else {
                break;
            };
            match server {
                Some(_) => fields += 1,
                None => walk.keys += 1,
            }
            match step {
                Step::Pass => map.next_value::<IgnoredAny>().map(|_| ())?,
                Step::Enter(entry, path) => {
                    map.next_value_seed(Node { walk: &mut *walk, path: &path, key: Some(key), entry })?;
                }
            }
        }
        let Some(server) = server else { return Ok(()) };
        // Apart from the element itself, which is walked again: its keys are compared with those of others.
        let end = Number { field: usize::MAX, ..server };
        match walk.servers.end() {
            Err(message) if !walk.reported.contains(&end) => {
                Err(walk.fail(Some(end), section, Problem::Invalid(message)))
            }
            _ => Ok(()),
        }
    }
}
