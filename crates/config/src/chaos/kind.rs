//! What the values of the chaos file may look like.

use std::time::Duration;

use serde_yaml::Value;
use url::Url;

use crate::kind::{Kind, read_duration, write_duration};

/// Kinds of durations, each with its range in milliseconds.
macro_rules! durations {
    ($($name:ident = $least:literal..=$most:literal, $expected:literal;)+) => {$(
        pub(crate) enum $name {}

        impl Kind for $name {
            type Setting = Duration;
            const EXPECTED: &str = concat!("a duration from ", $expected, ", or a number of milliseconds");

            fn read(value: &Value) -> Result<Duration, &Value> {
                read_duration(value, Duration::from_millis($least)..=Duration::from_millis($most))
            }

            fn write(setting: &Duration) -> Value {
                write_duration(setting)
            }
        }
    )+};
}

durations! {
    FaultTime = 1_000..=600_000, "1s to 10m such as 60s";
    Delay = 0..=86_400_000, "0s to 24h such as 5s";
    Interval = 1_000..=86_400_000, "1s to 24h such as 30s";
    Cooldown = 0..=86_400_000, "0s to 24h such as 5m";
    Pause = 0..=3_600_000, "0s to 1h such as 5s";
    RecoveryTime = 1..=3_600_000, "1ms to 1h such as 30s";
}

/// Kinds of whole numbers, each with its range.
macro_rules! numbers {
    ($($name:ident: $setting:ty = $least:literal..=$most:literal, $expected:literal;)+) => {$(
        pub(crate) enum $name {}

        impl Kind for $name {
            type Setting = $setting;
            const EXPECTED: &str = concat!("a whole number from ", $expected);

            fn read(value: &Value) -> Result<$setting, &Value> {
                let number = value.as_u64().and_then(|number| <$setting>::try_from(number).ok());
                number.filter(|number| ($least..=$most).contains(number)).ok_or(value)
            }

            fn write(setting: &$setting) -> Value {
                Value::from(*setting)
            }
        }
    )+};
}

numbers! {
    Few: usize = 1..=100, "1 to 100";
    Threshold: u32 = 1..=1_000, "1 to 1000";
    Kills: usize = 0..=1_000_000, "0 to 1000000";
}

/// Kinds that are one of some words.
macro_rules! words {
    ($($kind:ident: $setting:ident = $($variant:ident $word:literal),+; $expected:literal;)+) => {$(
        pub(crate) enum $kind {}

        impl Kind for $kind {
            type Setting = $setting;
            const EXPECTED: &str = $expected;

            fn read(value: &Value) -> Result<$setting, &Value> {
                match value {
                    $(Value::String(text) if text == $word => Ok($setting::$variant),)+
                    _ => Err(value),
                }
            }

            fn write(setting: &$setting) -> Value {
                Value::from(match setting {
                    $($setting::$variant => $word,)+
                })
            }
        }
    )+};
}

words! {
    Rearms: Rearm = Manual "manual", Auto "auto"; "manual or auto";
    Impacts: Impact = Low "low", Medium "medium", High "high"; "low, medium or high";
    Expectation: Expected = Completed "completed", Held "held", Failed "failed", Aborted "aborted";
        "completed, held, failed or aborted";
}

/// How experiments become possible again after an emergency stop that no person caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rearm {
    /// A person says so.
    Manual,
    /// By themselves.
    Auto,
}

/// How much an experiment can hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impact {
    /// Hardly.
    Low,
    /// Noticeably.
    Medium,
    /// Calls fail.
    High,
}

/// How an experiment is expected to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// The fault ended, and nothing says that all was not well again.
    #[default]
    Completed,
    /// The same, and calls have shown it.
    Held,
    /// It was not well again in time.
    Failed,
    /// Its guard ended it.
    Aborted,
}

pub(crate) enum OptionalSeed {}

impl Kind for OptionalSeed {
    type Setting = Option<u64>;
    const EXPECTED: &str = "null, or a whole number from 0 to 9223372036854775807";

    fn read(value: &Value) -> Result<Option<u64>, &Value> {
        let seed = match value {
            Value::Null => return Ok(None),
            // An environment variable can say it as text only.
            Value::String(text) if text == "null" => return Ok(None),
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        };
        seed.filter(|seed| i64::try_from(*seed).is_ok()).map(Some).ok_or(value)
    }

    fn write(setting: &Option<u64>) -> Value {
        setting.map_or(Value::Null, Value::from)
    }
}

pub(crate) enum OptionalUrl {}

impl Kind for OptionalUrl {
    type Setting = Option<String>;
    const EXPECTED: &str = "\"\", or a URL http[s]://HOST[:PORT][/PATH] such as https://hooks.example/alerts";

    fn read(value: &Value) -> Result<Option<String>, &Value> {
        let is_url = |text: &str| {
            Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
        };
        match value {
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) if is_url(text) => Ok(Some(text.clone())),
            _ => Err(value),
        }
    }

    fn write(setting: &Option<String>) -> Value {
        Value::from(setting.as_deref().unwrap_or_default())
    }
}

pub(crate) enum Description {}

impl Kind for Description {
    type Setting = String;
    const EXPECTED: &str = "a text of one line, 1 to 256 bytes";

    fn read(value: &Value) -> Result<String, &Value> {
        match value {
            Value::String(text) if (1..=256).contains(&text.len()) && !text.contains(char::is_control) => {
                Ok(text.clone())
            }
            _ => Err(value),
        }
    }

    fn write(setting: &String) -> Value {
        Value::from(setting.as_str())
    }
}
