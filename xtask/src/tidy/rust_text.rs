//! Just enough of Rust's lexical structure to tell code from comments, strings and tests.

use std::ops::Range;

/// A Rust file taken apart. Both texts have the length and the lines of the original; what does not belong is spaces.
pub(super) struct RustText {
    /// Without comments and without the contents of strings.
    pub(super) code: String,
    /// Nothing but comments.
    pub(super) comments: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    String,
}

impl RustText {
    pub(super) fn new(text: &str) -> Self {
        let kinds = kinds(text.as_bytes());
        let only = |wanted: Kind| {
            let bytes = text.bytes().zip(&kinds);
            let kept = bytes.map(|(byte, kind)| match byte {
                b'\n' => b'\n',
                _ if *kind == wanted => byte,
                _ => b' ',
            });
            String::from_utf8_lossy(&kept.collect::<Vec<_>>()).into_owned()
        };
        Self { code: only(Kind::Code), comments: only(Kind::Comment) }
    }

    /// The code that is not only for tests.
    pub(super) fn code_without_tests(&self) -> String {
        let mut code = self.code.clone();
        let tests: Vec<_> = ["#[cfg(test)]", "#[cfg(all(test"]
            .iter()
            .flat_map(|start| self.code.match_indices(start))
            .map(|(at, _)| at..item_end(&self.code, at))
            .collect();
        for range in tests {
            let blank: String = code[range.clone()]
                .chars()
                .flat_map(|c| std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8()))
                .collect();
            code.replace_range(range, &blank);
        }
        code
    }
}

/// The places where `word` stands in `code` as a word of its own.
pub(super) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part_of_word = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = code.as_bytes();
    let open_end = !word.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        let after = bytes.get(at + word.len());
        !part_of_word(before) && (open_end || !part_of_word(after))
    })
}

/// The range from `at` to the end of the braces that open next.
pub(super) fn braces(code: &str, at: usize) -> Range<usize> {
    at..item_end(code, at)
}

/// The end of the item at `at`: of its braces, or its semicolon where that comes first.
fn item_end(code: &str, at: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return offset + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return offset + 1,
            _ => {}
        }
    }
    code.len()
}

fn kinds(text: &[u8]) -> Vec<Kind> {
    let mut kinds = Vec::with_capacity(text.len());
    while kinds.len() < text.len() {
        let at = kinds.len();
        let rest = &text[at..];
        let after_word = at > 0 && (text[at - 1].is_ascii_alphanumeric() || text[at - 1] == b'_');
        let (kind, length) = if rest.starts_with(b"//") {
            (Kind::Comment, until(rest, b"\n"))
        } else if rest.starts_with(b"/*") {
            (Kind::Comment, block_comment(rest))
        } else if let Some(length) = raw_string(rest).filter(|_| !after_word) {
            (Kind::String, length)
        } else if rest[0] == b'"' {
            (Kind::String, quoted(rest, b'"'))
        } else if let Some(length) = char_literal(rest) {
            (Kind::String, length)
        } else {
            (Kind::Code, 1)
        };
        kinds.extend(std::iter::repeat_n(kind, length.clamp(1, rest.len())));
    }
    kinds
}

fn until(text: &[u8], end: &[u8]) -> usize {
    text.windows(end.len()).position(|window| window == end).unwrap_or(text.len())
}

/// Block comments nest.
fn block_comment(text: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// `r"…"`, `r#"…"#`, `br"…"`, `cr"…"`.
fn raw_string(text: &[u8]) -> Option<usize> {
    let prefix = [&b"r"[..], b"br", b"cr"].into_iter().find(|prefix| text.starts_with(prefix))?;
    let hashes = text[prefix.len()..].iter().take_while(|byte| **byte == b'#').count();
    let open = prefix.len() + hashes + 1;
    if text.get(open - 1) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    Some(open + until(&text[open..], &close) + close.len())
}

/// The length of a literal in `quote`s, with escapes.
fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `'x'`, `'\n'`, `'\u{1f600}'`; not the lifetime `'x`.
fn char_literal(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'\'') {
        return None;
    }
    if text.get(1) == Some(&b'\\') {
        return Some(quoted(text, b'\''));
    }
    // A character has at most four bytes.
    let text = text[1..text.len().min(6)].utf8_chunks().next()?.valid();
    let c = text.chars().next()?;
    text[c.len_utf8()..].starts_with('\'').then_some(c.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        for (text, code) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"f("un\"safe") + g"#, "f( ) + g"),
            (r##"f(r#"a"b"#, br"\") + g"##, "f( , ) + g"),
            ("let x: &'static str = 'y';", "let x: &'static str = ;"),
            (r"('\'', '\u{e4}', 'ä', '/', '') + g", "( , , , , '') + g"),
            ("'\"' + for\"x\" + g", "+ for + g"),
        ] {
            let left = RustText::new(text).code;
            assert_eq!(left.len(), text.len(), "{text}");
            assert_eq!(left.split_whitespace().collect::<Vec<_>>().join(" "), code, "{text}");
        }
    }

    #[test]
    fn comments_are_kept_apart() {
        assert_eq!(RustText::new("a // b\nc").comments, "  // b\n ");
        assert_eq!(RustText::new("\"// no\"").comments.trim(), "");
    }

    #[test]
    fn test_items_are_left_out() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() { c() }\n}\nfn d() {}\n#[cfg(test)]\nuse e;\nfn f() {}";
        let code = RustText::new(text).code_without_tests();
        assert_eq!(code.len(), text.len());
        let left: Vec<_> = code.split_whitespace().collect();
        assert_eq!(left.join(" "), "fn a() {} fn d() {} fn f() {}");
    }

    #[test]
    fn words_stand_alone() {
        let places = |code, word| words(code, word).collect::<Vec<_>>();
        assert_eq!(places("unsafe_code unsafe my_unsafe", "unsafe"), [12]);
        assert_eq!(places("std::env::var my_env::x", "env::"), [5]);
    }
}
