//! What arrives in the place of a message that faults have touched.

use std::borrow::Cow;
use std::collections::BTreeMap;

use mcpscope_core::{Answer, Break, Change, Effect, Injection, ToolsList};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::touch::Touch;

/// What a line says that is no message.
const NOISE: &[u8] = b"mcpscope: this line is noise that was asked for";

/// What arrives in the place of a message.
#[derive(Debug)]
pub struct Altered<'m> {
    /// The message as it arrives.
    pub message: Cow<'m, [u8]>,
    /// A line in front of it that is no message.
    pub noise: Option<&'static [u8]>,
    /// It arrives twice.
    pub is_doubled: bool,
    /// It arrives no faster than so many bytes a second.
    pub bytes_per_second: Option<u32>,
    /// The headers that go with it contradict it.
    pub contradicts: bool,
    /// It does not arrive at all: this does.
    pub instead: Option<Instead>,
    /// What was acted on.
    pub acted: Vec<Injection>,
}

/// What happens instead of a message's arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Its sender gets an answer.
    Answer(Answer),
    /// Something breaks.
    Break(Break),
}

/// What can be done where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// It can arrive twice, and other bytes in front of it: it is one of a stream.
    pub is_in_stream: bool,
    /// Lines of a stdio server: what is no message can be among them.
    pub takes_noise: bool,
    /// Its sender can be answered.
    pub takes_answer: bool,
    /// It has headers of its own.
    pub has_headers: bool,
    /// What is beneath it can be broken.
    pub breaks: bool,
    /// It alone is in these bytes: of a batch none is taken out or changed.
    pub is_alone: bool,
}

impl Touch {
    /// What arrives in the place of `message`, with the injections that `lives` says are still active. What cannot be done to
    /// it, or not there, is not done, and not in [`Altered::acted`]; nor is what is done by [waiting](Self::waits).
    #[must_use]
    pub fn alter<'m>(&self, message: &'m [u8], place: Place, lives: impl Fn(&Injection) -> bool) -> Altered<'m> {
        let mut altered = Altered {
            message: Cow::Borrowed(message),
            noise: None,
            is_doubled: false,
            bytes_per_second: None,
            contradicts: false,
            instead: None,
            acted: Vec::new(),
        };
        for injection in &self.injections {
            if lives(injection) && altered.apply(&injection.effect, place) {
                altered.acted.push(injection.clone());
            }
        }
        altered
    }
}

impl Altered<'_> {
    /// Applies one effect to what those before have left. Returns whether it could be.
    fn apply(&mut self, effect: &Effect, place: Place) -> bool {
        match effect {
            Effect::Delay { .. } | Effect::Hold { .. } | Effect::Drop | Effect::Network => false,
            Effect::Duplicate => {
                self.is_doubled |= place.is_in_stream;
                place.is_in_stream
            }
            Effect::Answer(answer) => {
                let can = place.takes_answer && place.is_alone;
                self.instead = can.then(|| Instead::Answer(answer.clone())).or(self.instead.take());
                can
            }
            Effect::Break(broken) => {
                self.instead = place.breaks.then_some(Instead::Break(*broken)).or(self.instead.take());
                place.breaks
            }
            Effect::Slow { bytes_per_second } => {
                let slowest = self.bytes_per_second.map_or(*bytes_per_second, |other| other.min(*bytes_per_second));
                self.bytes_per_second = Some(slowest);
                true
            }
            Effect::Change(Change::Noise) => {
                self.noise = place.takes_noise.then_some(NOISE).or(self.noise);
                place.takes_noise
            }
            Effect::Change(Change::HeaderMismatch) => {
                self.contradicts |= place.has_headers;
                place.has_headers
            }
            Effect::Change(change) if place.is_alone => match changed(&self.message, change) {
                Some(message) => {
                    self.message = Cow::Owned(message);
                    true
                }
                None => false,
            },
            Effect::Change(_) => false,
        }
    }
}

/// The members of an object, each as it came.
type Members = BTreeMap<String, Box<RawValue>>;

/// The message with this change; nothing if it has not what is to be changed.
fn changed(message: &[u8], change: &Change) -> Option<Vec<u8>> {
    match change {
        Change::WrongId => {
            let mut members: Members = serde_json::from_slice(message).ok()?;
            let id = members.get_mut("id")?;
            *id = raw(&other_id(id.get()))?;
            serde_json::to_vec(&members).ok()
        }
        Change::MalformedJson => Some([b"{malformed", message.get(1..)?].concat()),
        Change::Truncate { keep } => {
            let left = (message.len() as f64 * keep.get()).floor() as usize;
            // What is cut is never whole, whatever the share is rounded to.
            message.get(..left.min(message.len().saturating_sub(1))).map(<[u8]>::to_vec)
        }
        Change::Oversize { bytes } => padded(message, usize::try_from(*bytes).unwrap_or(usize::MAX)),
        Change::Schema => with_result(message, |members| {
            let content: BTreeMap<String, Value> = serde_json::from_str(members.get("structuredContent")?.get())
                .ok()
                .filter(|all: &BTreeMap<_, _>| !all.is_empty())?;
            let wrong = content.into_iter().map(|(name, value)| (name, of_another_type(&value))).collect();
            members.insert("structuredContent".into(), raw(&Value::Object(wrong))?);
            Some(())
        }),
        Change::ToolsList(change) => with_result(message, |members| {
            let mut tools: Vec<Box<RawValue>> = serde_json::from_str(members.get("tools")?.get()).ok()?;
            match change {
                ToolsList::Drop if !tools.is_empty() => drop(tools.remove(0)),
                ToolsList::Rename => {
                    let first = tools.first_mut()?;
                    let mut tool: Members = serde_json::from_str(first.get()).ok()?;
                    let name: String = serde_json::from_str(tool.get("name")?.get()).ok()?;
                    tool.insert("name".into(), raw(&Value::from(name + "_renamed"))?);
                    *first = serde_json::value::to_raw_value(&tool).ok()?;
                }
                ToolsList::Reorder if tools.len() > 1 => tools.reverse(),
                ToolsList::Drop | ToolsList::Reorder => return None,
            }
            members.insert("tools".into(), serde_json::value::to_raw_value(&tools).ok()?);
            Some(())
        }),
        // They are beside the message.
        Change::Noise | Change::HeaderMismatch => None,
    }
}

/// The message with a change to the members of its result.
fn with_result(message: &[u8], change: impl FnOnce(&mut Members) -> Option<()>) -> Option<Vec<u8>> {
    let mut members: Members = serde_json::from_slice(message).ok()?;
    let result = members.get_mut("result")?;
    let mut inside: Members = serde_json::from_str(result.get()).ok()?;
    change(&mut inside)?;
    *result = serde_json::value::to_raw_value(&inside).ok()?;
    serde_json::to_vec(&members).ok()
}

/// The message with so much in front of the members of its result that it has this length. What is there is not written
/// anew: a message that is to be large takes no longer than its bytes take to be copied.
fn padded(message: &[u8], length: usize) -> Option<Vec<u8>> {
    const NAME: &str = "mcpscope_padding";
    let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(message).ok()?;
    let result = members.get("result")?.get();
    let inside: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(result).ok()?;
    if inside.contains_key(NAME) {
        return None;
    }
    let (begin, end) = (format!("\"{NAME}\":\""), if inside.is_empty() { "\"" } else { "\"," });
    let padding = length.checked_sub(message.len() + begin.len() + end.len())?;
    // Behind the opening brace.
    let at = result.as_ptr().addr().checked_sub(message.as_ptr().addr())? + 1;
    let (before, after) = message.split_at_checked(at)?;
    let mut padded = Vec::with_capacity(length);
    padded.extend_from_slice(before);
    padded.extend_from_slice(begin.as_bytes());
    padded.resize(padded.len() + padding, b'x');
    padded.extend_from_slice(end.as_bytes());
    padded.extend_from_slice(after);
    Some(padded)
}

fn raw(value: &Value) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(value).ok()
}

/// An id that no request of the connection has: numbers of clients do not come near it, and nobody names one so.
fn other_id(id: &str) -> Value {
    const FAR: i64 = 1 << 52;
    match id.parse::<i64>() {
        Ok(number) => Value::from(FAR + number.rem_euclid(FAR)),
        Err(_) => {
            Value::from(format!("mcpscope.wrong-id.{}", id.trim_matches('"').chars().take(64).collect::<String>()))
        }
    }
}

fn of_another_type(value: &Value) -> Value {
    match value {
        Value::String(_) => Value::from(0),
        _ => Value::from("mcpscope: not what the schema says"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mcpscope_core::{FaultId, Ratio};

    use super::*;

    const ANYWHERE: Place = Place {
        is_in_stream: true,
        takes_noise: true,
        takes_answer: true,
        has_headers: true,
        breaks: true,
        is_alone: true,
    };

    fn touch(effects: Vec<Effect>) -> Touch {
        let at = Instant::now();
        let injection = |effect| Injection { fault: FaultId(1), effect, ends: at };
        Touch { at, injections: effects.into_iter().map(injection).collect() }
    }

    /// The message with this change; nothing if it was not acted on.
    fn with(change: Change, message: &str) -> Option<String> {
        let touch = touch(vec![Effect::Change(change)]);
        let altered = touch.alter(message.as_bytes(), ANYWHERE, |_| true);
        (!altered.acted.is_empty()).then(|| String::from_utf8(altered.message.into_owned()).unwrap())
    }

    #[test]
    fn what_a_change_is_not_about_stays_as_it_came() {
        let answer = r#"{"jsonrpc":"2.0","id":7,"result":{"a":1.10,"b":12345678901234567890123}}"#;
        let wrong = with(Change::WrongId, answer).unwrap();
        assert!(wrong.contains(r#"{"a":1.10,"b":12345678901234567890123}"#), "{wrong}");
        let id = serde_json::from_str::<Value>(&wrong).unwrap()["id"].clone();
        assert!(id.is_i64() && id != 7, "{id}");
        let wrong = with(Change::WrongId, r#"{"id":"seven","result":{}}"#).unwrap();
        assert!(
            serde_json::from_str::<Value>(&wrong).unwrap()["id"].as_str().is_some_and(|id| id != "seven"),
            "{wrong}"
        );
        assert_eq!(with(Change::WrongId, r#"{"result":{}}"#), None);
    }

    #[test]
    fn what_is_no_json_or_not_all_of_it_cannot_be_read() {
        let answer = r#"{"id":1,"result":{}}"#;
        let malformed = with(Change::MalformedJson, answer).unwrap();
        assert!(serde_json::from_str::<Value>(&malformed).is_err() && malformed.ends_with(r#"{}}"#), "{malformed}");
        let keep = Ratio::new(0.5).unwrap();
        assert_eq!(with(Change::Truncate { keep }, answer).unwrap(), r#"{"id":1,"r"#);
    }

    #[test]
    fn an_oversized_message_is_as_large_as_was_asked_for() {
        let answer = r#"{"id":1,"result":{"a":2}}"#;
        let large = with(Change::Oversize { bytes: 1000 }, answer).unwrap();
        assert_eq!(
            (large.len(), serde_json::from_str::<Value>(&large).unwrap()["result"]["a"].clone()),
            (1000, 2.into())
        );
        assert_eq!(with(Change::Oversize { bytes: 10 }, answer), None, "it is larger already");
        let large = with(Change::Oversize { bytes: 100 }, r#"{ "result" : { } , "id":1}"#).unwrap();
        assert_eq!((large.len(), serde_json::from_str::<Value>(&large).unwrap()["id"].clone()), (100, 1.into()));
        let padded = r#"{"id":1,"result":{"mcpscope_padding":1}}"#;
        assert_eq!(with(Change::Oversize { bytes: 1000 }, padded), None, "no name is there twice");
    }

    #[test]
    fn what_is_over_changes_nothing() {
        let mut touch = touch(vec![Effect::Duplicate, Effect::Change(Change::WrongId)]);
        touch.injections[1].fault = FaultId(2);
        let altered = touch.alter(br#"{"id":1,"result":{}}"#, ANYWHERE, |injection| injection.fault == FaultId(1));
        assert_eq!((&*altered.message, altered.is_doubled), (&br#"{"id":1,"result":{}}"#[..], true));
        assert_eq!(altered.acted, touch.injections[..1]);
    }

    #[test]
    fn a_structured_result_gets_values_of_other_types() {
        let answer = r#"{"id":1,"result":{"structuredContent":{"n":1,"s":"x"},"content":[]}}"#;
        let wrong: Value = serde_json::from_str(&with(Change::Schema, answer).unwrap()).unwrap();
        let content = &wrong["result"]["structuredContent"];
        assert!(content["n"].is_string() && content["s"].is_number(), "{wrong}");
        assert_eq!(with(Change::Schema, r#"{"id":1,"result":{"content":[]}}"#), None, "it has none");
    }

    #[test]
    fn a_list_of_tools_is_not_the_one_of_before() {
        let answer = r#"{"id":1,"result":{"tools":[{"name":"a"},{"name":"b"}]}}"#;
        let names = |change| {
            let changed: Value = serde_json::from_str(&with(Change::ToolsList(change), answer).unwrap()).unwrap();
            let tools = changed["result"]["tools"].as_array().unwrap().clone();
            tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(ToolsList::Drop), ["b"]);
        assert_eq!(names(ToolsList::Rename), ["a_renamed", "b"]);
        assert_eq!(names(ToolsList::Reorder), ["b", "a"]);
    }

    #[test]
    fn what_cannot_be_done_there_is_not_acted_on() {
        let nowhere = Place {
            is_in_stream: false,
            takes_noise: false,
            takes_answer: false,
            has_headers: false,
            breaks: false,
            is_alone: false,
        };
        let answer = Answer::StaleSession;
        let effects = vec![
            Effect::Duplicate,
            Effect::Change(Change::Noise),
            Effect::Change(Change::HeaderMismatch),
            Effect::Change(Change::WrongId),
            Effect::Answer(answer.clone()),
        ];
        let touch = touch(effects);
        assert_eq!(touch.alter(br#"{"id":1,"result":{}}"#, nowhere, |_| true).acted, []);
        let altered = touch.alter(br#"{"id":1,"result":{}}"#, ANYWHERE, |_| true);
        assert_eq!((altered.acted.len(), altered.instead), (5, Some(Instead::Answer(answer))));
    }
}
