//! What a value may look like: one [`Kind`] for each sort of setting, used as `#[serde(with = "...")]`.

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de, ser};
use serde_yaml::Value;
use url::Url;

use crate::error::excerpt;

/// One sort of setting: how it is read, written and described.
pub(crate) trait Kind: Sized {
    /// The type in the settings tree.
    type Setting;

    /// What a person should have written.
    const EXPECTED: &str;

    /// The setting, or the part of the value that is wrong.
    fn read(value: &Value) -> Result<Self::Setting, &Value>;

    /// The value in the form that people write; reading it gives the same setting.
    fn write(setting: &Self::Setting) -> Value;

    fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self::Setting, D::Error> {
        accepted::<Self>(&Value::deserialize(deserializer)?).map_err(de::Error::custom)
    }

    fn serialize<S: Serializer>(setting: &Self::Setting, serializer: S) -> Result<S::Ok, S::Error> {
        Self::write(setting).serialize(serializer).map_err(ser::Error::custom)
    }
}

/// The setting, or what should have been written instead.
pub(crate) fn accepted<K: Kind>(value: &Value) -> Result<K::Setting, String> {
    K::read(value).map_err(|wrong| format!("expected {}, found {}", K::EXPECTED, described(wrong)))
}

/// A value as an error message names it.
pub(crate) fn described(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(bool) => bool.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("\"{}\"", excerpt(text)),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Tagged(_) => "a tag".to_owned(),
    }
}

pub(crate) enum Switch {}

impl Kind for Switch {
    type Setting = bool;
    const EXPECTED: &str = "true or false";

    fn read(value: &Value) -> Result<bool, &Value> {
        value.as_bool().ok_or(value)
    }

    fn write(setting: &bool) -> Value {
        Value::from(*setting)
    }
}

pub(crate) enum AutoSwitch {}

impl Kind for AutoSwitch {
    type Setting = Option<bool>;
    const EXPECTED: &str = "auto, true or false";

    fn read(value: &Value) -> Result<Option<bool>, &Value> {
        match value {
            Value::Bool(switch) => Ok(Some(*switch)),
            // An environment variable can say it as text only.
            Value::String(text) => match text.as_str() {
                "auto" => Ok(None),
                "true" => Ok(Some(true)),
                "false" => Ok(Some(false)),
                _ => Err(value),
            },
            _ => Err(value),
        }
    }

    fn write(setting: &Option<bool>) -> Value {
        setting.map_or_else(|| Value::from("auto"), Value::from)
    }
}

/// Whether a server that crashes is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It is.
    OnFailure,
    /// What ends stays ended.
    Never,
}

pub(crate) enum AutoRestart {}

impl Kind for AutoRestart {
    type Setting = Option<Restart>;
    const EXPECTED: &str = "auto, on-failure or never";

    fn read(value: &Value) -> Result<Option<Restart>, &Value> {
        match value.as_str() {
            Some("auto") => Ok(None),
            Some("on-failure") => Ok(Some(Restart::OnFailure)),
            Some("never") => Ok(Some(Restart::Never)),
            _ => Err(value),
        }
    }

    fn write(setting: &Option<Restart>) -> Value {
        Value::from(match setting {
            None => "auto",
            Some(Restart::OnFailure) => "on-failure",
            Some(Restart::Never) => "never",
        })
    }
}

/// Who may start experiments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChaosMode {
    /// Nobody.
    Off,
    /// People.
    Manual,
    /// People and the scheduler.
    Scheduled,
}

pub(crate) enum Modes {}

impl Kind for Modes {
    type Setting = ChaosMode;
    const EXPECTED: &str = "off, manual or scheduled";

    fn read(value: &Value) -> Result<ChaosMode, &Value> {
        match value {
            Value::String(text) if text == "off" => Ok(ChaosMode::Off),
            Value::String(text) if text == "manual" => Ok(ChaosMode::Manual),
            Value::String(text) if text == "scheduled" => Ok(ChaosMode::Scheduled),
            _ => Err(value),
        }
    }

    fn write(setting: &ChaosMode) -> Value {
        Value::from(match setting {
            ChaosMode::Off => "off",
            ChaosMode::Manual => "manual",
            ChaosMode::Scheduled => "scheduled",
        })
    }
}

pub(crate) enum Count {}

impl Kind for Count {
    type Setting = usize;
    const EXPECTED: &str = "a whole number from 1 to 1000000";

    fn read(value: &Value) -> Result<usize, &Value> {
        let count = value.as_u64().filter(|count| (1..=1_000_000).contains(count));
        count.and_then(|count| usize::try_from(count).ok()).ok_or(value)
    }

    fn write(setting: &usize) -> Value {
        Value::from(*setting)
    }
}

pub(crate) enum Port {}

impl Kind for Port {
    type Setting = u16;
    const EXPECTED: &str = "a port from 0 (any free one) to 65535";

    fn read(value: &Value) -> Result<u16, &Value> {
        value.as_u64().and_then(|port| u16::try_from(port).ok()).ok_or(value)
    }

    fn write(setting: &u16) -> Value {
        Value::from(*setting)
    }
}

pub(crate) enum Period {}

impl Kind for Period {
    type Setting = Duration;
    const EXPECTED: &str = "a duration from 1ms to 365d such as 200ms, 10s or 60m, or a number of milliseconds";

    fn read(value: &Value) -> Result<Duration, &Value> {
        // The upper bound keeps sums of instants and settings far from overflow.
        read_duration(value, Duration::from_millis(1)..=Duration::from_secs(365 * 24 * 60 * 60))
    }

    fn write(setting: &Duration) -> Value {
        write_duration(setting)
    }
}

pub(crate) fn read_duration(value: &Value, range: RangeInclusive<Duration>) -> Result<Duration, &Value> {
    let duration = match value {
        // An environment variable has no other form than text, so bare numbers arrive as text too.
        Value::String(text) => match text.parse() {
            Ok(millis) => Some(Duration::from_millis(millis)),
            Err(_) => humantime::parse_duration(text).ok(),
        },
        number => number.as_u64().map(Duration::from_millis),
    };
    duration.filter(|duration| range.contains(duration)).ok_or(value)
}

pub(crate) fn write_duration(setting: &Duration) -> Value {
    Value::from(humantime::format_duration(*setting).to_string())
}

pub(crate) enum Size {}

impl Kind for Size {
    type Setting = u64;
    const EXPECTED: &str = "a size from 1B to 1TiB such as 512KiB or 16MiB, or a number of bytes";

    fn read(value: &Value) -> Result<u64, &Value> {
        let bytes = match value {
            Value::String(text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
            number => number.as_u64(),
        };
        bytes.filter(|bytes| (1..=bytesize::TIB).contains(bytes)).ok_or(value)
    }

    // `ByteSize` rounds what it shows, so the largest unit that leaves no rest is chosen here.
    fn write(setting: &u64) -> Value {
        let units = [(bytesize::TIB, "TiB"), (bytesize::GIB, "GiB"), (bytesize::MIB, "MiB"), (bytesize::KIB, "KiB")];
        let (unit, name) = units.into_iter().find(|(unit, _)| setting.is_multiple_of(*unit)).unwrap_or((1, "B"));
        Value::from(format!("{}{name}", setting / unit))
    }
}

pub(crate) enum Share {}

impl Kind for Share {
    type Setting = Ratio;
    const EXPECTED: &str = "a number from 0 to 1";

    fn read(value: &Value) -> Result<Ratio, &Value> {
        value.as_f64().and_then(|ratio| Ratio::try_new(ratio).ok()).ok_or(value)
    }

    fn write(setting: &Ratio) -> Value {
        Value::from(setting.get())
    }
}

pub(crate) enum Host {}

impl Kind for Host {
    type Setting = String;
    const EXPECTED: &str = "a host name or an IP address, without port or brackets";

    fn read(value: &Value) -> Result<String, &Value> {
        value.as_str().filter(|text| is_host(text)).map(str::to_owned).ok_or(value)
    }

    fn write(setting: &String) -> Value {
        Value::from(setting.as_str())
    }
}

pub(crate) enum Address {}

impl Kind for Address {
    type Setting = String;
    const EXPECTED: &str = "an address HOST:PORT such as 127.0.0.1:50051, localhost:0 or [::1]:50051";

    fn read(value: &Value) -> Result<String, &Value> {
        value.as_str().filter(|text| is_address(text)).map(str::to_owned).ok_or(value)
    }

    fn write(setting: &String) -> Value {
        Value::from(setting.as_str())
    }
}

pub(crate) enum OptionalAddress {}

impl Kind for OptionalAddress {
    type Setting = Option<String>;
    const EXPECTED: &str = "null, or an address HOST:PORT such as 0.0.0.0:9464 or [::]:9464";

    fn read(value: &Value) -> Result<Option<String>, &Value> {
        match value {
            // An environment variable can say it as text only.
            Value::Null => Ok(None),
            Value::String(text) if text == "null" => Ok(None),
            other => Address::read(other).map(Some),
        }
    }

    fn write(setting: &Option<String>) -> Value {
        setting.as_ref().map_or(Value::Null, Address::write)
    }
}

pub(crate) enum OptionalFile {}

impl Kind for OptionalFile {
    type Setting = Option<PathBuf>;
    const EXPECTED: &str = "null, or the name of a file";

    fn read(value: &Value) -> Result<Option<PathBuf>, &Value> {
        match value {
            Value::Null => Ok(None),
            // An environment variable can say it as text only.
            Value::String(text) if text.is_empty() || text == "null" => Ok(None),
            Value::String(text) => Ok(Some(PathBuf::from(text))),
            _ => Err(value),
        }
    }

    fn write(setting: &Option<PathBuf>) -> Value {
        setting.as_ref().map_or(Value::Null, |path| Value::from(path.to_string_lossy().into_owned()))
    }
}

pub(crate) enum File {}

impl Kind for File {
    type Setting = PathBuf;
    const EXPECTED: &str = "the name of a file";

    fn read(value: &Value) -> Result<PathBuf, &Value> {
        match value {
            Value::String(text) if !text.is_empty() && !text.contains('\0') => Ok(PathBuf::from(text)),
            _ => Err(value),
        }
    }

    fn write(setting: &PathBuf) -> Value {
        Value::from(setting.to_string_lossy().into_owned())
    }
}

pub(crate) enum Name {}

impl Kind for Name {
    type Setting = String;
    const EXPECTED: &str = "a name of 1 to 128 bytes";

    fn read(value: &Value) -> Result<String, &Value> {
        match value {
            Value::String(text) if (1..=128).contains(&text.len()) => Ok(text.clone()),
            _ => Err(value),
        }
    }

    fn write(setting: &String) -> Value {
        Value::from(setting.as_str())
    }
}

pub(crate) enum Sampling {}

impl Kind for Sampling {
    type Setting = String;
    const EXPECTED: &str =
        "always_on, always_off or traceidratio:SHARE such as traceidratio:0.1, also after parentbased_";

    fn read(value: &Value) -> Result<String, &Value> {
        let is_share = |text: &str| text.parse().is_ok_and(|share| Ratio::try_new(share).is_ok());
        let is_sampling = |text: &str| match text.strip_prefix("parentbased_").unwrap_or(text) {
            "always_on" | "always_off" => true,
            other => other.strip_prefix("traceidratio:").is_some_and(is_share),
        };
        match value {
            Value::String(text) if is_sampling(text) => Ok(text.clone()),
            _ => Err(value),
        }
    }

    fn write(setting: &String) -> Value {
        Value::from(setting.as_str())
    }
}

pub(crate) enum Exporters {}

impl Kind for Exporters {
    type Setting = Vec<String>;
    const EXPECTED: &str = "a list out of otlp, console";

    fn read(value: &Value) -> Result<Vec<String>, &Value> {
        texts(value, |name| matches!(name, "otlp" | "console"))
    }

    fn write(setting: &Vec<String>) -> Value {
        setting.iter().map(String::as_str).collect()
    }
}

pub(crate) enum Names {}

impl Kind for Names {
    type Setting = Vec<String>;
    const EXPECTED: &str = "a list of names of 1 to 128 bytes each";

    fn read(value: &Value) -> Result<Vec<String>, &Value> {
        texts(value, |name| (1..=128).contains(&name.len()))
    }

    fn write(setting: &Vec<String>) -> Value {
        setting.iter().map(String::as_str).collect()
    }
}

pub(crate) enum Hosts {}

impl Kind for Hosts {
    type Setting = Vec<String>;
    const EXPECTED: &str = "a list of host names or IP addresses, without port or brackets";

    fn read(value: &Value) -> Result<Vec<String>, &Value> {
        texts(value, is_host)
    }

    fn write(setting: &Vec<String>) -> Value {
        setting.iter().map(String::as_str).collect()
    }
}

pub(crate) enum Origins {}

impl Kind for Origins {
    type Setting = Vec<String>;
    const EXPECTED: &str = "a list of origins such as https://inspector.example, without default port or path";

    fn read(value: &Value) -> Result<Vec<String>, &Value> {
        texts(value, is_origin)
    }

    fn write(setting: &Vec<String>) -> Value {
        setting.iter().map(String::as_str).collect()
    }
}

pub(crate) enum Components {}

impl Kind for Components {
    type Setting = Vec<String>;
    const EXPECTED: &str = "a list out of json_rpc, session_manager, registry, server, transport, tools";

    fn read(value: &Value) -> Result<Vec<String>, &Value> {
        texts(value, |name| {
            matches!(name, "json_rpc" | "session_manager" | "registry" | "server" | "transport" | "tools")
        })
    }

    fn write(setting: &Vec<String>) -> Value {
        setting.iter().map(String::as_str).collect()
    }
}

/// All elements of a list, or the first one that is not accepted.
fn texts(value: &Value, accepted: impl Fn(&str) -> bool) -> Result<Vec<String>, &Value> {
    let elements = value.as_sequence().ok_or(value)?.iter();
    // Not `as_str()`, which looks through tags.
    let checked = elements.map(|element| match element {
        Value::String(text) if accepted(text) => Ok(text.clone()),
        wrong => Err(wrong),
    });
    checked.collect()
}

/// Whether a `Host` header could name this: ASCII only, since internationalised names arrive in their ASCII form.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A name that ends in a number is an address with a mistake in it.
    let is_name = text.len() <= 253
        && text.split('.').all(label)
        && text.rsplit('.').next().is_some_and(|last| !last.bytes().all(|b| b.is_ascii_digit()));
    is_name || text.parse::<IpAddr>().is_ok()
}

/// Whether it is a host and a port, an IPv6 address in brackets.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_fits = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => is_host(host) && !host.contains(':'),
    };
    host_fits && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Whether a browser would send exactly this as `Origin`, apart from upper and lower case.
fn is_origin(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let Some(host) = url.host_str() else { return false };
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}", url.scheme()).eq_ignore_ascii_case(text)
        && is_host(host.trim_start_matches('[').trim_end_matches(']'))
}

/// A share from 0 to 1, both included.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

impl Ratio {
    /// One tenth.
    pub const TENTH: Self = Self(0.1);

    /// Checks a share.
    ///
    /// # Errors
    /// The number is below 0, above 1 or not a number.
    pub fn try_new(ratio: f64) -> Result<Self, InvalidRatio> {
        if (0.0..=1.0).contains(&ratio) { Ok(Self(ratio)) } else { Err(InvalidRatio(ratio)) }
    }

    /// A share that is known to be one.
    pub(crate) const fn of(ratio: f64) -> Self {
        Self(ratio)
    }

    /// The share, 0 to 1.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

/// Not a share.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("expected a number from 0 to 1, found {0}")]
pub struct InvalidRatio(pub f64);
