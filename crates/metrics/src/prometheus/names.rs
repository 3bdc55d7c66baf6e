//! What the metrics of others are called where they are shown, and which of them cannot be shown.

use std::borrow::Cow;

use ::metrics::{Key, Label, Unit};
use mcpscope_core::bounded;

use crate::declared::{MAX_LABELS, MAX_NAME_BYTES, is_part, is_reserved};
use crate::facade::sanitized;
use crate::general::Refusal;
use crate::prometheus::Use;

/// Longest label value kept, in bytes.
pub(super) const MAX_VALUE_BYTES: usize = 256;

/// A series as it is shown.
#[derive(Debug)]
pub(super) struct Shown {
    /// Of the family, a counter's without `_total`: what others must not have.
    pub(super) base: Box<str>,
    /// With the name of the family, and labels that can be written as they are.
    pub(super) key: Key,
}

/// How a series of this name and these labels is shown.
///
/// # Errors
/// [`Refusal`]: it cannot be.
pub(super) fn shown(key: &Key, kind: Use, unit: Option<Unit>) -> Result<Shown, Refusal> {
    let mut name = sanitized(key.name()).into_owned();
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Refusal::Conflict("expected a name of 1 to 128 bytes"));
    }
    if kind == Use::Counter
        && let Some(base) = name.strip_suffix("_total")
    {
        name.truncate(base.len());
    }
    if name.is_empty() || name == "_total" {
        return Err(Refusal::Conflict("expected a name with something before _total"));
    }
    if let Some(unit) = unit.and_then(suffix).filter(|unit| !name.ends_with(unit)) {
        name.extend(["_", unit]);
    }
    if is_reserved(&name) {
        return Err(Refusal::ReservedName);
    }
    // Whoever reads it takes it for a part of another one.
    if is_part(&name) {
        return Err(Refusal::Conflict("expected a name that does not end in _bucket, _count, _sum or _created"));
    }
    let labels = labels(key)?;
    let base = name.strip_suffix("_total").unwrap_or(&name).into();
    if kind == Use::Counter {
        name.push_str("_total");
    }
    Ok(Shown { base, key: Key::from_parts(name, labels) })
}

/// As it is kept: with label values that are cut, and without those labels that do not matter. Whatever a library says, its
/// key is bounded then, or refused by [`shown`].
pub(super) fn cut(key: &Key) -> Cow<'_, Key> {
    let fits = |label: &Label| label.value().len() <= MAX_VALUE_BYTES && label.key().len() <= MAX_NAME_BYTES;
    if key.labels().len() <= MAX_LABELS && key.labels().all(fits) {
        return Cow::Borrowed(key);
    }
    let given = key.labels().filter(|label| !label.value().is_empty());
    let labels: Vec<_> = given
        .map(|label| Label::new(label.key().to_owned(), bounded(label.value(), MAX_VALUE_BYTES).to_owned()))
        .collect();
    Cow::Owned(Key::from_parts(key.name().to_owned(), labels))
}

/// The base units, which belong to a name. What is measured in another unit says so in its help.
pub(super) fn suffix(unit: Unit) -> Option<&'static str> {
    match unit {
        Unit::Seconds => Some("seconds"),
        Unit::Bytes => Some("bytes"),
        _ => None,
    }
}

/// The labels ordered by name, so that the same ones are the same series.
fn labels(key: &Key) -> Result<Vec<Label>, Refusal> {
    // Without a value it is the same as not to be there.
    let given = key.labels().filter(|label| !label.value().is_empty());
    let mut labels: Vec<(String, String)> = given
        .map(|label| (sanitized(label.key()).into_owned(), escaped(bounded(label.value(), MAX_VALUE_BYTES))))
        .collect();
    if labels.len() > MAX_LABELS {
        return Err(Refusal::Conflict("expected 16 labels at most"));
    }
    labels.sort_unstable();
    for (at, (name, _)) in labels.iter().enumerate() {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.starts_with("__") {
            return Err(Refusal::Conflict("expected names of labels of 1 to 128 bytes that do not begin with __"));
        }
        if ["le", "quantile"].contains(&name.as_str()) {
            return Err(Refusal::Conflict("expected no label le or quantile, which tell the parts of a metric apart"));
        }
        if labels.get(at + 1).is_some_and(|(next, _)| next == name) {
            return Err(Refusal::Conflict("expected each label once"));
        }
    }
    Ok(labels.into_iter().map(|(name, value)| Label::new(name, value)).collect())
}

/// The exporter takes a backslash that is before another one for its escape.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\")
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use super::*;

    fn of(name: &str, labels: &[(&str, &str)]) -> Key {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| Label::new((*name).to_owned(), (*value).to_owned())).collect();
        Key::from_parts(name.to_owned(), labels)
    }

    fn name(given: &str, kind: Use, unit: Option<Unit>) -> String {
        shown(&of(given, &[]), kind, unit).unwrap().key.name().to_owned()
    }

    #[test]
    fn names_are_the_recommended_ones() {
        assert_eq!(name("http.requests", Use::Counter, None), "http_requests_total");
        assert_eq!(name("requests_total", Use::Counter, None), "requests_total");
        assert_eq!(name("sent_total", Use::Counter, Some(Unit::Bytes)), "sent_bytes_total");
        assert_eq!(name("subtotal", Use::Counter, None), "subtotal_total");
        assert_eq!(name("wait", Use::Histogram, Some(Unit::Seconds)), "wait_seconds");
        assert_eq!(name("wait_seconds", Use::Histogram, Some(Unit::Seconds)), "wait_seconds");
        assert_eq!(name("wait", Use::Histogram, Some(Unit::Milliseconds)), "wait");
        assert_eq!(name("load", Use::Gauge, Some(Unit::Percent)), "load");
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for bad in ["", &long, "x_sum", "x_count", "x.bucket", "x_count_total", "x_created", "_total", ".total"] {
            let refused = shown(&of(bad, &[]), Use::Counter, None).unwrap_err();
            assert!(matches!(refused, Refusal::Conflict(_)), "{bad} {refused}");
        }
        for bad in ["mcp.x", "mcp-x", "mcpscope:x", "process_x", "mcp", "process"] {
            assert_eq!(shown(&of(bad, &[]), Use::Counter, None).unwrap_err(), Refusal::ReservedName, "{bad}");
        }
        let many: Vec<_> = (0..=MAX_LABELS).map(|n| format!("l{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), "x")).collect();
        for bad in
            [&[("le", "1")][..], &[("quantile", "1")], &[("a.b", "1"), ("a_b", "2")], &[("__name__", "x")], &many]
        {
            assert!(shown(&of("x", bad), Use::Gauge, None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_gauge_may_not_be_called_total() {
        assert!(shown(&of("_total", &[]), Use::Gauge, None).is_err());
    }

    #[test]
    fn keys_are_cut() {
        let (long, many) = ("x".repeat(1_000_000), (0..1000).map(|n| format!("l{n}")).collect::<Vec<_>>());
        let mut labels = vec![("a", &*long), (&*long, ""), ("b", "1")];
        labels.extend(many.iter().map(|name| (&**name, "")));
        let given = of("x", &labels);
        let key = cut(&given);
        let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value().len())).collect();
        assert_eq!(labels, [("a", MAX_VALUE_BYTES), ("b", 1)]);
        assert_eq!(shown(&given, Use::Gauge, None).unwrap().key, shown(&key, Use::Gauge, None).unwrap().key);
        assert!(shown(&cut(&of("x", &[(&long, "1")])), Use::Gauge, None).is_err());
        let small = of("x", &[("a", "1"), ("b", "")]);
        assert!(matches!(cut(&small), Cow::Borrowed(_)));
    }

    #[test]
    fn the_same_labels_are_the_same_series() {
        let one = shown(&of("x", &[("a", "1"), ("b", "2"), ("c", "")]), Use::Gauge, None).unwrap();
        let two = shown(&of("x", &[("b", "2"), ("a", "1")]), Use::Gauge, None).unwrap();
        assert_eq!(one.key, two.key);
    }
}
