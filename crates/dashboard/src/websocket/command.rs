//! What a client asks for.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest id, in bytes as it was sent.
const MAX_ID_BYTES: usize = 256;

/// What there is to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Dashboard,
    Health,
    Metrics,
    Chaos,
}

impl Topic {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Dashboard, Self::Health, Self::Metrics, Self::Chaos];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Dashboard => "dashboard",
            Self::Health => "health",
            Self::Metrics => "metrics",
            Self::Chaos => "chaos",
        }
    }

    fn of(command: &str) -> Option<Self> {
        let name = command.strip_prefix("get_")?;
        Self::ALL.into_iter().find(|topic| topic.as_str() == name)
    }
}

/// One command, with the id that the reply is to repeat, as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command<'a> {
    pub(crate) topic: Topic,
    pub(crate) id: Option<&'a str>,
}

/// Why there is no reply to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError<'a> {
    #[error("Malformed message")]
    Malformed,
    #[error("Unknown command")]
    Unknown { id: Option<&'a str> },
}

impl CommandError<'_> {
    /// As it is told to the client.
    pub(crate) fn to_json(self) -> String {
        match self {
            // An id is JSON already.
            Self::Unknown { id: Some(id) } => format!("{{\"error\":\"{self}\",\"id\":{id}}}"),
            _ => format!("{{\"error\":\"{self}\"}}"),
        }
    }
}

/// The form with an id.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object<'a> {
    #[serde(borrow)]
    command: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

impl<'a> Command<'a> {
    /// Understands `["get_health"]` and `{"command": "get_health", "id": 7}`.
    pub(crate) fn parse(text: &'a str) -> Result<Self, CommandError<'a>> {
        // Only whether it is JSON at all: nothing is built from it, however deep it goes.
        serde_json::from_str::<&RawValue>(text).map_err(|_| CommandError::Malformed)?;
        let unknown = |_| CommandError::Unknown { id: None };
        // By its bracket, because a list of two would do for the object as well.
        let (name, id) = if text.trim_start().starts_with('[') {
            let [name]: [Cow<'a, str>; 1] = serde_json::from_str(text).map_err(unknown)?;
            (name, None)
        } else {
            let Object { command, id } = serde_json::from_str(text).map_err(unknown)?;
            (command, id.map(RawValue::get))
        };
        if id.is_some_and(|id| !is_id(id)) {
            return Err(CommandError::Unknown { id: None });
        }
        Topic::of(&name).map(|topic| Self { topic, id }).ok_or(CommandError::Unknown { id })
    }
}

/// Whether this is a string or a number, and not too long.
fn is_id(json: &str) -> bool {
    json.len() <= MAX_ID_BYTES && json.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_are_understood() {
        for (text, topic, id) in [
            (r#"["get_dashboard"]"#, Topic::Dashboard, None),
            (r#" [ "get_health" ] "#, Topic::Health, None),
            (r#"["get_m\u0065trics"]"#, Topic::Metrics, None),
            (r#"{"command":"get_chaos"}"#, Topic::Chaos, None),
            (r#"{"command": "get_dashboard", "id": 7}"#, Topic::Dashboard, Some("7")),
            (r#"{"id":-1.50e3,"command":"get_health"}"#, Topic::Health, Some("-1.50e3")),
            (r#"{"command":"get_health","id":"a\"b"}"#, Topic::Health, Some(r#""a\"b""#)),
            (r#"{"command":"get_health","id":""}"#, Topic::Health, Some(r#""""#)),
        ] {
            assert_eq!(Command::parse(text), Ok(Command { topic, id }), "{text}");
        }
    }

    #[test]
    fn the_others_are_told_what_they_are() {
        let long = format!(r#"{{"command":"get_health","id":"{}"}}"#, "x".repeat(MAX_ID_BYTES));
        let deep = "[".repeat(30_000) + &"]".repeat(30_000);
        for (text, expected) in [
            ("", r#"{"error":"Malformed message"}"#),
            ("get_health", r#"{"error":"Malformed message"}"#),
            (r#"["get_health""#, r#"{"error":"Malformed message"}"#),
            (r#"["get_health"] x"#, r#"{"error":"Malformed message"}"#),
            (r#"{"command":"get_health","id":01}"#, r#"{"error":"Malformed message"}"#),
            ("7", r#"{"error":"Unknown command"}"#),
            (r#""get_health""#, r#"{"error":"Unknown command"}"#),
            ("[]", r#"{"error":"Unknown command"}"#),
            (r#"["get_health","get_health"]"#, r#"{"error":"Unknown command"}"#),
            (r#"["health"]"#, r#"{"error":"Unknown command"}"#),
            (r#"["get_"]"#, r#"{"error":"Unknown command"}"#),
            (r#"["GET_HEALTH"]"#, r#"{"error":"Unknown command"}"#),
            (r#"["\ud800"]"#, r#"{"error":"Unknown command"}"#),
            (r#"{"command":"reset","id":"a"}"#, r#"{"error":"Unknown command","id":"a"}"#),
            (r#"{"command":"reset","id":7}"#, r#"{"error":"Unknown command","id":7}"#),
            (r#"{"command":"get_health","id":null}"#, r#"{"type":"health"}"#),
            (r#"{"command":"get_health","id":true}"#, r#"{"error":"Unknown command"}"#),
            (r#"{"command":"get_health","id":[7]}"#, r#"{"error":"Unknown command"}"#),
            (r#"{"command":"get_health","x":1}"#, r#"{"error":"Unknown command"}"#),
            (r#"{"command":"get_health","command":"get_health"}"#, r#"{"error":"Unknown command"}"#),
            (r#"{"command":7}"#, r#"{"error":"Unknown command"}"#),
            (&long, r#"{"error":"Unknown command"}"#),
            (&deep, r#"{"error":"Unknown command"}"#),
        ] {
            let found = match Command::parse(text) {
                Ok(Command { topic, id: None }) => format!("{{\"type\":\"{}\"}}", topic.as_str()),
                Ok(command) => panic!("{command:?}"),
                Err(error) => error.to_json(),
            };
            assert_eq!(found, expected, "{text:.100}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_the_answer_is_json(text in r#"(\PC{0,40}|[\[{]?[\[{":,}\]a-z0-9. -]{0,40})"#) {
            if let Err(error) = Command::parse(&text) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&error.to_json()).is_ok(), "{}", error.to_json());
            }
        }
    }
}
