//! Identifiers: JSON-RPC request ids and W3C trace ids.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};

/// A JSON-RPC request id. `1` and `"1"` are different ids; `"a"` and `"\u0061"` are the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequestId {
    /// An integer.
    Integer(i64),
    /// A number that is no 64-bit integer, as it was written.
    Number(Box<str>),
    /// A string, unescaped.
    Text(Box<str>),
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Number(text) | Self::Text(text) => f.write_str(text),
        }
    }
}

/// A 128-bit W3C trace id; displayed as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(
    /// The id, never zero.
    pub NonZeroU128,
);

impl TraceId {
    /// Reads exactly 32 lower-case hexadecimal digits that are not all zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = lower_hex(text, 32)?;
        NonZeroU128::new(number).map(Self)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A 64-bit W3C span (parent) id; displayed as 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(
    /// The id, never zero.
    pub NonZeroU64,
);

impl SpanId {
    /// Reads exactly 16 lower-case hexadecimal digits that are not all zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = u64::try_from(lower_hex(text, 16)?).ok()?;
        NonZeroU64::new(number).map(Self)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The position in a distributed trace that a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The sender's span.
    pub parent: SpanId,
    /// Whether the sender records this trace.
    pub sampled: bool,
}

/// W3C trace context allows lower-case digits only, which `from_str_radix` alone would not insist on.
fn lower_hex(text: &str, digits: usize) -> Option<u128> {
    let ok = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if ok { u128::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_ids_round_trip_and_refuse_what_w3c_refuses() {
        let text = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(TraceId::parse(text).unwrap().to_string(), text);
        for bad in [
            "",
            "0AF7651916CD43DD8448EB211C80319C",
            "00000000000000000000000000000000",
            "+af7651916cd43dd8448eb211c80319c",
            "0af7",
        ] {
            assert_eq!(TraceId::parse(bad), None, "{bad}");
        }
        assert_eq!(SpanId::parse("b7ad6b7169203331").unwrap().to_string(), "b7ad6b7169203331");
        assert_eq!(SpanId::parse("0000000000000000"), None);
    }

    #[test]
    fn string_and_integer_ids_differ() {
        assert_ne!(RequestId::Integer(1), RequestId::Text("1".into()));
    }
}
