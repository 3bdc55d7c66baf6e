//! The heads that came last on one side of a connection: most say what one of them said, but for the length that they tell.

use std::ops::Range;
use std::sync::Arc;

use super::decode::Length;
use super::head::number;

/// How many are remembered: as many different calls as an agent makes in turn, roughly.
const KNOWN: usize = 4;

/// Longest one that is, in bytes.
const MAX_BYTES: usize = 2 << 10;

/// A head that is there as a whole.
#[derive(Debug)]
pub(super) struct Whole<T> {
    /// Where it ends.
    pub(super) end: usize,
    /// What it says, and the length that it tells, if that is known already.
    pub(super) known: Option<(Arc<T>, Length)>,
}

impl<T> Whole<T> {
    /// One that is still to be read.
    pub(super) const fn new(end: usize) -> Self {
        Self { end, known: None }
    }
}

/// The heads that came last, and what each said.
#[derive(Debug)]
pub(super) struct Known<T>(Vec<Head<T>>);

#[derive(Debug)]
struct Head<T> {
    /// As it came.
    raw: Vec<u8>,
    length: Length,
    /// Where the digits are that alone tell the length, if there are any.
    digits: Option<Range<usize>>,
    said: Arc<T>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Known<T> {
    /// The head that these bytes begin with, if it is the same as one of them but for the digits of its length.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<Whole<T>> {
        let mut found = self.0.iter().enumerate().filter_map(|(at, head)| Some((at, head.begins(bytes)?)));
        let (at, (length, end)) = found.next()?;
        // The last one that was used comes first, and the one that was used least lately makes room.
        self.0[..=at].rotate_right(1);
        let known = self.0.first().map(|head| (Arc::clone(&head.said), length));
        Some(Whole { end, known })
    }

    /// Remembers what was read in a head that is to be passed on. `digits` is the part of it that alone tells the length.
    pub(super) fn add(&mut self, raw: &[u8], (length, digits): (Length, Option<&[u8]>), said: &Arc<T>) {
        if raw.len() > MAX_BYTES {
            return;
        }
        let range = |part: &[u8]| {
            let start = part.as_ptr().addr().checked_sub(raw.as_ptr().addr())?;
            let range = start..start + part.len();
            raw.get(range.clone()).map(|_| range)
        };
        let digits = digits.and_then(range);
        let mut copy = if self.0.len() < KNOWN { None } else { self.0.pop() }.map_or_else(Vec::new, |head| head.raw);
        copy.clear();
        copy.extend_from_slice(raw);
        self.0.insert(0, Head { raw: copy, length, digits, said: Arc::clone(said) });
    }
}

impl<T> Head<T> {
    /// The length that the head tells which these bytes begin with, and where it ends, if it is no other in anything else.
    fn begins(&self, bytes: &[u8]) -> Option<(Length, usize)> {
        let Some(digits) = &self.digits else {
            return bytes.starts_with(&self.raw).then_some((self.length, self.raw.len()));
        };
        let (before, behind) = (self.raw.get(..digits.start)?, self.raw.get(digits.end..)?);
        let rest = bytes.strip_prefix(before)?;
        let (told, rest) = rest.split_at(rest.iter().take_while(|byte| byte.is_ascii_digit()).count());
        let length = if rest.starts_with(behind) { number(told) } else { None };
        length.map(|length| (Length::Exact(length), before.len() + told.len() + behind.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: &str, digits: &str) -> String {
        format!("POST /mcp HTTP/1.1\r\nmcp-name: {name}\r\ncontent-length: {digits}\r\nx: 12\r\n\r\n")
    }

    fn add(known: &mut Known<String>, name: &str) {
        let raw = head(name, "300").into_bytes();
        let at = raw.windows(3).position(|bytes| bytes == b"300").unwrap();
        known.add(&raw, (Length::Exact(300), Some(&raw[at..at + 3])), &Arc::new(name.to_owned()));
    }

    fn find(known: &mut Known<String>, raw: &str) -> Option<(String, Length)> {
        let whole = format!("{raw}0\r\n\r\n");
        let found = known.find(whole.as_bytes())?;
        assert_eq!(found.end, raw.len());
        found.known.map(|(said, length)| (said.to_string(), length))
    }

    #[test]
    fn a_head_is_known_whatever_length_it_tells_and_no_other_is() {
        let mut known = Known::default();
        add(&mut known, "a");
        for (digits, length) in [("300", 300), ("0", 0), ("007", 7), ("18446744073709551615", u64::MAX)] {
            assert_eq!(find(&mut known, &head("a", digits)), Some(("a".to_owned(), Length::Exact(length))), "{digits}");
        }
        for wrong in
            ["", " ", "+1", "-1", "0x1", "1 2", "1, 1", "1\r\ncontent-length: 1", "18446744073709551616", "1\n"]
        {
            assert_eq!(find(&mut known, &head("a", wrong)), None, "{wrong:?}");
        }
        let whole = head("a", "1");
        for at in 0..whole.len() {
            let mut changed = whole.clone().into_bytes();
            changed[at] ^= 0x20;
            assert!(known.find(&changed).is_none(), "{at}");
            assert!(known.find(&whole.as_bytes()[..at]).is_none(), "{at}");
        }
    }

    #[test]
    fn a_head_whose_length_is_told_otherwise_is_known_as_it_is() {
        let mut known = Known::default();
        let raw = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        known.add(raw.as_bytes(), (Length::Chunked, None), &Arc::new("chunked".to_owned()));
        assert_eq!(find(&mut known, raw), Some(("chunked".to_owned(), Length::Chunked)));
        assert_eq!(find(&mut known, &raw.replace("200", "201")), None);
    }

    #[test]
    fn those_are_forgotten_that_came_least_lately_and_long_ones_at_once() {
        let mut known = Known::default();
        ["a", "b", "c", "d"].iter().for_each(|name| add(&mut known, name));
        assert!(find(&mut known, &head("a", "1")).is_some());
        add(&mut known, "e");
        let mut is_known = |name: &str| find(&mut known, &head(name, "1")).is_some();
        assert!(is_known("a") && !is_known("b") && is_known("c") && is_known("d") && is_known("e"));
        let long = "x".repeat(MAX_BYTES);
        add(&mut known, &long);
        assert!(find(&mut known, &head(&long, "300")).is_none() && find(&mut known, &head("a", "1")).is_some());
    }
}
