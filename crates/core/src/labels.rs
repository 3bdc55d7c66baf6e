//! Label sets.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The labels of one series or record: names and values in the family's order. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Labels(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pairs: Box<[(Cow<'static, str>, Box<str>)]>,
    text: Box<str>,
}

impl Labels {
    /// Pairs names with values.
    pub fn new<'a, N: Into<Cow<'static, str>>>(pairs: impl IntoIterator<Item = (N, &'a str)>) -> Self {
        let pairs: Box<[_]> = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let text = rendered(&pairs).into();
        Self(Arc::new(Inner { pairs, text }))
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.pairs.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// The value of a label.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The values alone, in order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.pairs.iter().map(|(_, value)| value.as_ref())
    }

    /// `a="1",b="2"`, escaped as Prometheus' text formats want it. Made once.
    #[must_use]
    pub fn as_text(&self) -> &str {
        &self.0.text
    }
}

fn rendered(pairs: &[(Cow<'static, str>, Box<str>)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                _ => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.as_text())
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.pairs == other.0.pairs
    }
}

impl Eq for Labels {}

/// As a slice of pairs of `str` hashes, so that a table can be searched without making one of these.
impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.pairs.hash(state);
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.pairs.cmp(&other.0.pairs) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        let labels = Labels::new([("tool", "a\"b\\c\nd"), ("outcome", "ok")]);
        assert_eq!(labels.as_text(), r#"tool="a\"b\\c\nd",outcome="ok""#);
        assert_eq!((Labels::default().as_text(), labels.get("outcome")), ("", Some("ok")));
    }

    #[test]
    fn equality_and_order_are_those_of_the_pairs() {
        let one = |value| Labels::new([("a", value)]);
        assert_eq!(one("x"), one("x"));
        assert!(one("x") < one("y"));
        assert_ne!(one("x"), Labels::new([("b", "x")]));
    }
}
