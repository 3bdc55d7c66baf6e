//! W3C `tracestate` (<https://www.w3.org/TR/trace-context/#tracestate-header>): what other tracing systems pass along.

/// Longest list that is passed on, in bytes: what the specification asks for at least.
const MAX_BYTES: usize = 512;
/// Most members of a list.
const MAX_MEMBERS: usize = 32;

/// A valid list of members, as it came but for spaces and empty members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracestate(Box<str>);

impl Tracestate {
    /// Reads a list, of which the parts that came apart (several headers) are joined by commas; nothing if it is empty or
    /// not valid: the specification asks to drop it as a whole, and to keep `traceparent`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut members: Vec<&str> = Vec::new();
        let blank = [' ', '\t'];
        for member in text.split(',').map(|member| member.trim_matches(blank)).filter(|member| !member.is_empty()) {
            let (key, value) = member.split_once('=')?;
            let is_new = !members.iter().any(|other| other.split_once('=').is_some_and(|(other, _)| other == key));
            if !is_key(key) || !is_value(value) || !is_new || members.len() == MAX_MEMBERS {
                return None;
            }
            members.push(member);
        }
        let text = members.join(",");
        (!text.is_empty() && text.len() <= MAX_BYTES).then(|| Self(text.into()))
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Tracestate> for Box<str> {
    fn from(state: Tracestate) -> Self {
        state.0
    }
}

/// `key` of the specification: 256 characters, or a tenant of 241 and a system of 14 around an `@`.
fn is_key(key: &str) -> bool {
    let part = |text: &str, max: usize, first: fn(&u8) -> bool| {
        let rest = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
        let starts_well = |(head, tail): (&u8, &[u8])| first(head) && tail.iter().all(rest);
        text.len() <= max && text.as_bytes().split_first().is_some_and(starts_well)
    };
    let alphanumeric = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    match key.split_once('@') {
        None => part(key, 256, alphanumeric),
        Some((tenant, system)) => part(tenant, 241, alphanumeric) && part(system, 14, u8::is_ascii_lowercase),
    }
}

/// `value` of the specification: up to 256 printable characters without `,` and `=`, the last no space.
fn is_value(value: &str) -> bool {
    let is_char = |b: u8| matches!(b, 0x20..=0x2b | 0x2d..=0x3c | 0x3e..=0x7e);
    (1..=256).contains(&value.len()) && value.bytes().all(is_char) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<String> {
        Tracestate::parse(text).map(|state| state.as_str().to_owned())
    }

    // The cases are those of the specification's own test suite (w3c/trace-context, test/test.py).

    #[test]
    fn reads_what_the_test_suite_wants_inherited() {
        for (text, expected) in [
            ("foo=1", "foo=1"),
            ("foo=1,bar=2", "foo=1,bar=2"),
            ("foo=1 \t , \t bar=2, \t baz=3", "foo=1,bar=2,baz=3"),
            ("foo=1\t \t,\t \tbar=2,\t \tbaz=3", "foo=1,bar=2,baz=3"),
            ("\t foo=1 \t", "foo=1"),
            // Two headers, one of which is empty.
            ("foo=1,", "foo=1"),
            (",foo=1", "foo=1"),
            // Three headers keep their order.
            ("foo=1,bar=2,rojo=1,congo=2,baz=3", "foo=1,bar=2,rojo=1,congo=2,baz=3"),
            ("foo= 1", "foo= 1"),
            ("3foo=1", "3foo=1"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn every_allowed_character_is_kept() {
        let key = "abcdefghijklmnopqrstuvwxyz0123456789_-*/";
        let value: String =
            (0x20..=0x7e_u8).map(char::from).filter(|character| !matches!(character, ',' | '=')).collect();
        for key in [key.to_owned(), format!("{key}@a-z0-9_-*/")] {
            let text = format!("{key}={value}");
            assert_eq!(read(&text), Some(text));
        }
    }

    #[test]
    fn drops_what_the_test_suite_wants_discarded() {
        for text in [
            "",
            " ",
            "foo=1,foo=1",
            "foo=1,foo=2",
            "foo =1",
            "FOO=1",
            "foo.bar=1",
            "foo@=1,bar=2",
            "@foo=1,bar=2",
            "foo@@bar=1,bar=2",
            "foo@bar@baz=1,bar=2",
            "foo=bar=baz",
            "foo=,bar=3",
            "foo",
            "foo=\u{e9}",
            "foo=a\u{7f}",
            "foo=a\tb",
            "foo@3bar=1",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn keeps_to_the_limits() {
        let members = |count: usize| (1..=count).map(|n| format!("bar{n:02}={n:02}")).collect::<Vec<_>>().join(",");
        assert_eq!(read(&members(32)), Some(members(32)));
        assert_eq!(read(&members(33)), None);
        let with_foo = |key: &str| read(&format!("foo=1,{key}=1")).is_some();
        for (key, is_good) in [
            ("z".repeat(256), true),
            ("z".repeat(257), false),
            (format!("{}@{}", "t".repeat(241), "v".repeat(14)), true),
            (format!("{}@v", "t".repeat(242)), false),
            (format!("t@{}", "v".repeat(15)), false),
        ] {
            assert_eq!(with_foo(&key), is_good, "{key}");
        }
        let value = |length: usize| read(&format!("foo={}", "x".repeat(length))).is_some();
        assert_eq!((value(256), value(257)), (true, false));
        let long = |length: usize| read(&format!("a={},b={}", "x".repeat(252), "x".repeat(length))).is_some();
        assert_eq!((long(255), long(256)), (true, false), "512 bytes and not one more");
    }

    proptest! {
        #[test]
        fn what_is_read_is_bounded_and_read_again_the_same(text in "[a-c@=, \t\"\\\\]{0,60}|.{0,700}") {
            if let Some(state) = Tracestate::parse(&text) {
                prop_assert!(state.as_str().len() <= MAX_BYTES);
                prop_assert!(state.as_str().split(',').count() <= MAX_MEMBERS);
                prop_assert_eq!(Tracestate::parse(state.as_str()), Some(state));
            }
        }
    }
}
