//! Every text is read as serde_json reads it, on every level of SIMD that this machine has.

use fearless_simd::Level;
use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::*;

/// What the outline is told of everything.
#[derive(Debug, Default, PartialEq)]
struct All(String);

impl Outline for All {
    fn open(&mut self, at: usize, is_object: bool) -> bool {
        self.0 += &format!("{at}{}", if is_object { '{' } else { '[' });
        true
    }

    fn close(&mut self, at: usize) {
        self.0 += &format!("{at}]");
    }

    fn colon(&mut self, at: usize) {
        self.0 += &format!("{at}:");
    }

    fn comma(&mut self, at: usize) {
        self.0 += &format!("{at},");
    }
}

/// All that this machine can do.
fn levels() -> Vec<Level> {
    let best = Level::new();
    let mut levels = vec![best, Level::baseline()];
    #[cfg(target_arch = "x86_64")]
    levels.extend([best.as_sse4_2().map(Level::Sse4_2), best.as_avx2().map(Level::Avx2)].into_iter().flatten());
    levels
}

/// Whether it is JSON; all levels and serde_json agree on it.
#[track_caller]
fn is_json(text: &str) -> bool {
    let expected = serde_json::from_str::<IgnoredAny>(text).is_ok();
    let read: Vec<_> = levels()
        .into_iter()
        .map(|level| {
            let mut all = All::default();
            (read_at(level, text, &mut all), all)
        })
        .collect();
    assert!(read.iter().all(|(result, _)| result.is_ok() == expected), "{text:?} should be {expected}");
    if expected {
        assert!(read.iter().all(|(_, all)| *all == read[0].1), "{text:?}");
    }
    expected
}

/// It is JSON, or it is not, wherever in a block it stands.
#[track_caller]
fn anywhere(text: &str, expected: bool) {
    for before in 56..66 {
        assert_eq!(is_json(&format!("{}{text}", " ".repeat(before))), expected, "{text:?} after {before}");
        assert_eq!(is_json(&format!("[\"{}\",{text}]", "x".repeat(before))), expected, "{text:?} after {before}");
        assert_eq!(
            is_json(&format!("{{\"k\" :{} {text} }}", "\n".repeat(before))),
            expected,
            "{text:?} after {before}"
        );
    }
    assert_eq!(is_json(text), expected);
}

#[test]
fn what_is_json() {
    for text in [
        "0",
        "-0",
        "7",
        "-12.50e+3",
        "1E9",
        "0.0",
        "true",
        "false",
        "null",
        r#""""#,
        r#""a\"b\\""#,
        r#""\u00e9\ud800""#,
        "[]",
        "[ ]",
        "{}",
        "{ }",
        "[[],{}]",
        r#"{"a":[1,{"b":null}],"c":{}}"#,
        r#"{"a" : 1 , "a" : "é:,{}[]"}"#,
        "[true,false ,null]",
        "[1, 2 ,3]",
        r#"["\\","\\\\\"",""]"#,
        "18446744073709551616",
        r#"[{"a":0}, {"b":-1}]"#,
    ] {
        anywhere(text, true);
    }
}

#[test]
fn a_long_text_is_read_to_its_end() {
    for at in 0..200 {
        let with = |inside: &str| format!("[\"{}{inside}{}\",1]", "x".repeat(at), "y".repeat(200 - at));
        for inside in ["é", "\\n", "\\\\", "\\u00e9", "\",\"", "\":\"", "\u{7f}"] {
            assert_eq!(is_json(&with(inside)), inside != "\":\"", "{inside} at {at}");
        }
        for wrong in ["\n", "\u{1f}", "\"", "\\x", "\\u00g9"] {
            assert!(!is_json(&with(wrong)), "{wrong:?} at {at}");
        }
    }
}

#[test]
fn what_is_none() {
    for text in [
        "01",
        "-",
        "+1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x1",
        "-01",
        "1 2",
        "tru",
        "truee",
        "True",
        "nul",
        "nan",
        "'a'",
        r#""a"#,
        r#"""""#,
        "\"\t\"",
        r#""\x""#,
        r#""\u12g4""#,
        r#""\u12"#,
        r#"\""#,
        "[",
        "]",
        "[1",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1:2]",
        r#"["a":1]"#,
        "{",
        "}",
        "{]",
        "[}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{,"a":1}"#,
        r#"{"a" 1}"#,
        r#"{"a"::1}"#,
        r#"{"a":1:2}"#,
        r#"{"a":1 "b":2}"#,
        "{1:2}",
        "{[]:1}",
        r#"{"a",1}"#,
        r#"{"a":1,2}"#,
        r#"{"a":1,[]}"#,
        "{{}}",
        "{[]}",
        r#"{"a":1}}"#,
        "[1]]",
        "[][]",
        "{}1",
        r#""a""b""#,
        r#""a":1"#,
        "[1,2",
        "é",
        "\u{a0}1",
        "[1\u{c}]",
        "-a",
        "1-",
        "[1-2]",
        "[--1]",
        "\\",
        "[,]",
        "{,}",
        "[:]",
        "{:}",
        r#"{"a":,"b":1}"#,
        r#"[{"a":1,"b"}]"#,
        "tru e",
        "[1\\]",
        r#"{"a":1,"b":[}"#,
        "",
        "\u{0}",
    ] {
        anywhere(text, false);
    }
    // In an array this is some.
    for text in ["1,2", "[],1", ","] {
        assert!(!is_json(text), "{text:?}");
    }
}

#[test]
fn depth_costs_no_stack() {
    for depth in [1, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 192, 1000, 100_000] {
        // An array and an object in turn, to see that each level is remembered.
        let open: String = (0..depth).map(|level| if level % 3 == 0 { "[" } else { "{\"k\":" }).collect();
        let close: String = (0..depth).rev().map(|level| if level % 3 == 0 { "]" } else { "}" }).collect();
        let whole = format!("{open}1{close}");
        assert!(is_json(&whole), "{depth}");
        assert!(!is_json(&whole[..whole.len() - 1]), "{depth}");
        assert!(!is_json(&format!("{whole}]")), "{depth}");
        let (last, others) = close.split_at(close.len() / 2);
        let wrong = if others.starts_with(']') { "}" } else { "]" };
        assert!(!is_json(&format!("{open}1{last}{wrong}{}", &others[1..])), "{depth}");
        // Up and down across the places where levels are put away.
        let inner = format!("{open}[]{close}");
        assert!(is_json(&format!("{open}{inner}{close}")) && is_json(&format!("[{inner},{inner}]")), "{depth}");
    }
}

fn json() -> impl Strategy<Value = String> {
    let blank = || prop_oneof![6 => Just(""), 1 => Just(" "), 1 => Just("\r\n\t")];
    let string = prop_oneof![
        "\"[a-z ,:\\[\\]{}é]{0,12}\"",
        "\"([a-z]|\\\\\\\\|\\\\\"|\\\\n|\\\\u00e9){0,40}\"",
        Just(format!("\"{}\"", "x".repeat(130))),
    ];
    let scalar = prop_oneof![
        4 => string.clone(),
        2 => any::<i64>().prop_map(|number| number.to_string()),
        1 => any::<f64>().prop_filter("JSON has no others", |number| number.is_finite()).prop_map(|number| format!("{number:e}")),
        1 => prop::sample::select(vec!["true", "false", "null", "0", "-0.0"]).prop_map(str::to_owned),
    ];
    scalar.prop_recursive(6, 64, 6, move |inner| {
        let value = (blank(), inner, blank()).prop_map(|(before, value, behind)| format!("{before}{value}{behind}"));
        let member = (blank(), string.clone(), blank(), value.clone())
            .prop_map(|(before, key, behind, value)| format!("{before}{key}{behind}:{value}"));
        prop_oneof![
            (blank(), prop::collection::vec(value, 0..6))
                .prop_map(|(blank, values)| format!("[{blank}{}]", values.join(","))),
            (blank(), prop::collection::vec(member, 0..6))
                .prop_map(|(blank, members)| format!("{{{blank}{}}}", members.join(","))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn serde_json_agrees(text in json()) {
        prop_assert!(is_json(&text));
    }

    /// One character less, or another in its place, is still JSON or not: on that they agree too.
    #[test]
    fn serde_json_agrees_on_what_is_nearly_json(
        text in json(), at in any::<prop::sample::Index>(), with in prop::sample::select("\"\\,:{}[] 0-.eu\n".chars().collect::<Vec<_>>())
    ) {
        let at = text.floor_char_boundary(at.index(text.len()));
        let (before, from) = text.split_at(at);
        let mut behind = from.chars();
        behind.next();
        for changed in [format!("{before}{}", behind.as_str()), format!("{before}{with}{}", behind.as_str()), format!("{before}{with}{from}")] {
            is_json(&changed);
        }
    }

    #[test]
    fn serde_json_agrees_on_heaps_of_characters(text in "[\"\\\\,:{}\\[\\] 0-9tue.é-]{0,140}") {
        is_json(&text);
    }
}
