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
    records::{Field, Records},
    root::Root,
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

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Applies all keys to the settings, which remember this document by the number `file`.
    pub(crate) fn apply<T: Root>(&mut self, file: usize, tree: &mut Tree<T>, errors: &mut Vec<ConfigError>) {
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
    pub(crate) fn refuse<T: Root>(&self, key: Number, path: &str, message: &str) -> ConfigError {
        match self.walk(0, &mut Tree::<T>::new(), Some((key, message))) {
            Some((_, error)) => error,
            None => self.error(None, Some(path.to_owned()), Problem::Invalid(message.to_owned())),
        }
    }

    /// Walks to the end or the first error; with that comes the number of the key to pass over next time.
    fn walk<T: Root>(
        &self,
        file: usize,
        tree: &mut Tree<T>,
        unwanted: Option<(Number, &str)>,
    ) -> Option<(Option<Number>, ConfigError)> {
        let critical = critical::List::default();
        let mut walk =
            Walk { file, tree, reported: &self.reported, unwanted, keys: 0, critical, records: None, failure: None };
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
struct Walk<'a, T> {
    file: usize,
    tree: &'a mut Tree<T>,
    reported: &'a BTreeSet<Number>,
    /// A key to fail at although its value is fine, and why.
    unwanted: Option<(Number, &'a str)>,
    keys: usize,
    /// The critical metrics that were read.
    critical: critical::List,
    /// The list of mappings that is read.
    records: Option<Box<dyn Records>>,
    /// Why the walk ended. It travels beside the parser's error, which carries the place.
    failure: Option<Failure>,
}

struct Failure {
    key: Option<Number>,
    path: Option<String>,
    problem: Problem,
}

impl<T: Root> Walk<'_, T> {
    /// Notes why the walk ends, unless something further inside did.
    fn failed(&mut self, key: Option<Number>, path: &str, problem: Problem) {
        let path = Some(path).filter(|path| !path.is_empty()).map(str::to_owned);
        self.failure.get_or_insert(Failure { key, path, problem });
    }

    /// Why this key is unwanted, if it is.
    fn unwanted(&self, key: Option<Number>) -> Option<Problem> {
        let (unwanted, why) = self.unwanted?;
        (Some(unwanted) == key).then(|| Problem::Invalid(why.to_owned()))
    }

    fn setter(&self, key: Number) -> Setter {
        Setter::File { file: self.file, key }
    }

    /// What a key is, which is inside of `above` unless it is one of a section.
    fn entry(&self, section: &str, above: Option<Entry>, name: &str) -> Result<Entry, Problem> {
        match (above, &self.records) {
            (Some(Entry::Field(Field::Parts(field))), Some(records)) => {
                records.part(field, name).map(|()| Entry::Part(field))
            }
            (Some(_), Some(records)) => records.field(name).map(Entry::Field),
            _ => self.tree.entry(section, name),
        }
    }

    /// Sets what is not a setting of its own.
    fn set_inside(&mut self, entry: Entry, path: &str, key: Number, value: &Value) -> Result<(), String> {
        let Some(records) = &mut self.records else { return Ok(()) };
        match entry {
            Entry::Field(Field::Value(field) | Field::Parts(field)) => records.set(field, value)?,
            Entry::Part(field) => {
                let name = path.split_once(&format!("].{field}.")).map_or(path, |(_, name)| name);
                records.set_part(field, name, value)?;
            }
            _ => return Err(records.no_record(value)),
        }
        self.tree.note(path, self.setter(key));
        Ok(())
    }

    fn fail<E: de::Error>(&mut self, key: Option<Number>, path: &str, problem: Problem) -> E {
        self.failed(key, path, problem);
        E::custom("refused")
    }
}

impl<T: Root> Walk<'_, T> {
    /// Reads a list of mappings, element by element.
    fn read_records<'de, A: SeqAccess<'de>>(
        &mut self,
        path: &str,
        mut key: Number,
        list: &mut A,
    ) -> Result<Value, A::Error> {
        self.records = T::records(path);
        self.tree.forget(path);
        // Those that come after it are too many, too, and are not looked at.
        let mut too_many = None;
        loop {
            let element = format!("{path}[{}]", key.element);
            key.element += 1;
            let begun = self.records.as_mut().map_or(Ok(()), |records| records.begin());
            let next = match begun {
                Ok(()) => {
                    let element = Element { walk: &mut *self, path: &element, key, entry: Entry::Record };
                    list.next_element_seed(element)?
                }
                Err(message) => list.next_element::<IgnoredAny>()?.map(|_| too_many = Some(message)),
            };
            if next.is_none() {
                break;
            }
        }
        match too_many {
            Some(message) => Err(self.fail(Some(Number { element: 0, ..key }), path, Problem::Invalid(message))),
            None => Ok(self.records.take().map(Records::into_value).unwrap_or_default()),
        }
    }
}

/// A key, judged while the parser stands on it, so that an error gets its place.
struct Key<'w, 'a, T> {
    walk: &'w mut Walk<'a, T>,
    section: &'w str,
    /// What it is inside of, unless that is a section.
    above: Option<Entry>,
    seen: &'w mut BTreeSet<String>,
    key: Number,
}

enum Step {
    /// Past the value of a key that was reported.
    Pass,
    /// Into the value of the key with this path.
    Enter(Entry, String),
}

impl<'de, T: Root> DeserializeSeed<'de> for Key<'_, '_, T> {
    type Value = Step;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Step, D::Error> {
        let Self { walk, section, above, seen, key } = self;
        if walk.reported.contains(&key) {
            let records = walk.records.as_mut().filter(|_| key.field > 0 && key.part == 0);
            let Some(records) = records else {
                return IgnoredAny::deserialize(deserializer).map(|_| Step::Pass);
            };
            let name = Value::deserialize(deserializer)?;
            records.passed(name.as_str().unwrap_or_default());
            return Ok(Step::Pass);
        }
        let visited = deserializer.deserialize_str(Key { walk: &mut *walk, section, above, seen, key });
        visited.inspect_err(|_| {
            walk.failed(Some(key), section, Problem::Invalid("expected the name of a key".to_owned()));
        })
    }
}

impl<'de, T: Root> Visitor<'de> for Key<'_, '_, T> {
    type Value = Step;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a key")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Step, E> {
        let Self { walk, section, above, seen, key } = self;
        let path = join(section, name);
        let entry = match walk.entry(section, above, name) {
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
struct Element<'w, 'a, T> {
    walk: &'w mut Walk<'a, T>,
    path: &'w str,
    key: Number,
    entry: Entry,
}

impl<'de, T: Root> DeserializeSeed<'de> for Element<'_, '_, T> {
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
struct Node<'w, 'a, T> {
    walk: &'w mut Walk<'a, T>,
    path: &'w str,
    /// The number of the key; the document has none.
    key: Option<Number>,
    entry: Entry,
}

impl<T: Root> Node<'_, '_, T> {
    /// Takes a value that is no section.
    fn take<E: de::Error>(self, value: Value) -> Result<(), E> {
        let Self { walk, path, key, entry } = self;
        if let Some(problem) = walk.unwanted(key) {
            return Err(walk.fail(key, path, problem));
        }
        let problem = match (entry, key) {
            // An empty document, or a section with every key commented out. Not `is_null()`, which looks through tags:
            // the parser may go on only after a value that was read to its end, and what was tagged was not.
            (Entry::Section, _) if value == Value::Null => return Ok(()),
            (Entry::Leaf, Some(key)) => match walk.tree.set(path, value, walk.setter(key)) {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            },
            (Entry::Element, _) => match walk.critical.push(value) {
                Ok(()) => return Ok(()),
                Err(message) => Problem::Invalid(message),
            },
            (Entry::Field(_) | Entry::Part(_) | Entry::Record, Some(key)) => {
                match walk.set_inside(entry, path, key, &value) {
                    Ok(()) => return Ok(()),
                    Err(message) => Problem::Invalid(message),
                }
            }
            _ => {
                let names = walk.tree.names(path).join(", ");
                Problem::Invalid(format!("expected a section with keys out of {names}, found {}", described(&value)))
            }
        };
        Err(walk.fail(key, path, problem))
    }
}

impl<'de, T: Root> DeserializeSeed<'de> for Node<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { walk, path, key, entry } = self;
        let visited = deserializer.deserialize_any(Node { walk: &mut *walk, path, key, entry });
        // What the parser itself refuses, such as an alias that expands without end.
        visited.inspect_err(|error| walk.failed(key, path, Problem::Invalid(error.to_string())))
    }
}

impl<'de, T: Root> Visitor<'de> for Node<'_, '_, T> {
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
        let value = match (entry, key) {
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
            (Entry::Leaf, Some(key)) if Tree::<T>::is_records(path) => walk.read_records(path, key, &mut list)?,
            (Entry::Leaf | Entry::Field(Field::Value(_)), _) => {
                let mut values = Vec::new();
                while let Some(value) = list.next_element::<Value>()? {
                    values.push(value);
                }
                Value::Sequence(values)
            }
            _ => Value::Sequence(Vec::new()),
        };
        Node { walk, path, key, entry }.take(value)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        let tag = Tag::new("tag");
        self.take(Value::Tagged(Box::new(TaggedValue { tag, value: Value::Null })))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let above = match self.entry {
            Entry::Section => None,
            Entry::Record | Entry::Field(Field::Parts(_)) => Some(self.entry),
            Entry::Leaf | Entry::Field(Field::Value(_)) | Entry::Part(_) => {
                return self.take(Value::Mapping(Mapping::new()));
            }
            Entry::Element => return self.take(Value::deserialize(MapAccessDeserializer::new(map))?),
        };
        let Self { walk, path: section, key: within, .. } = self;
        let within = within.unwrap_or_default();
        let (mut seen, mut inside) = (BTreeSet::new(), 0);
        loop {
            let key = match above {
                None => Number { key: walk.keys, ..Number::default() },
                Some(Entry::Record) => Number { field: inside + 1, ..within },
                Some(_) => Number { part: inside + 1, ..within },
            };
            let Some(step) = map.next_key_seed(Key { walk: &mut *walk, section, above, seen: &mut seen, key })? else {
                break;
            };
            match above {
                Some(_) => inside += 1,
                None => walk.keys += 1,
            }
            match step {
                Step::Pass => map.next_value::<IgnoredAny>().map(|_| ())?,
                Step::Enter(entry, path) => {
                    map.next_value_seed(Node { walk: &mut *walk, path: &path, key: Some(key), entry })?;
                }
            }
        }
        let Some(above) = above else { return Ok(()) };
        if let Some(problem) = walk.unwanted(Some(within)) {
            return Err(walk.fail(Some(within), section, problem));
        }
        walk.tree.note(section, walk.setter(within));
        // Apart from the element itself, which is walked again: its keys are compared with those of others.
        let end = Number { field: usize::MAX, ..within };
        let ended = walk.records.as_mut().filter(|_| matches!(above, Entry::Record)).map_or(Ok(()), |list| list.end());
        match ended {
            Err(message) if !walk.reported.contains(&end) => {
                Err(walk.fail(Some(end), section, Problem::Invalid(message)))
            }
            _ => Ok(()),
        }
    }
}
