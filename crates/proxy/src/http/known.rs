//! The heads that came last on one side of a connection: most say what one of them said, but for the length that they tell.

use std::ops::Range;
use std::sync::Arc;

use super::decode::Length;
use super::head::number;

/// How many are remembered: as many different calls as an agent makes in turn, roughly.
const KNOWN: usize = 4;

/// Longest one that is, in bytes.
const MAX_BYTES: usize = 2 << 10;

/// As many digits as the highest length has. With more of them a head is read anew: they may be without end.
const MAX_DIGITS: usize = 20;

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
        // No more than that, so that what is kept is bounded.
        copy.reserve_exact(raw.len());
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
        let digits = rest.iter().take(MAX_DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
        let (told, rest) = rest.split_at(digits);
        let length = if rest.starts_with(behind) { number(told) } else { None };
        length.map(|length| (Length::Exact(length), before.len() + told.len() + behind.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::super::facts::{AnswerFacts, RequestFacts};
    use super::super::head::{self, BadHead, Edits};
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
        for (digits, length) in
            [("300", 300), ("0", 0), ("007", 7), ("18446744073709551615", u64::MAX), ("00000000000000000001", 1)]
        {
            assert_eq!(find(&mut known, &head("a", digits)), Some(("a".to_owned(), Length::Exact(length))), "{digits}");
        }
        for wrong in [
            "",
            " ",
            "+1",
            "-1",
            "0x1",
            "1 2",
            "1, 1",
            "1\r\ncontent-length: 1",
            "1\r\n content-length: 1",
            "1\r\ntransfer-encoding: chunked",
            "18446744073709551616",
            "000000000000000000001",
            &"0".repeat(head::MAX_HEAD_BYTES),
            "1\n",
        ] {
            assert_eq!(find(&mut known, &head("a", wrong)), None, "{wrong:.99?}");
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

    #[test]
    fn what_is_kept_of_a_connection_is_bounded() {
        let mut known = Known::default();
        for bytes in (0..2 * MAX_BYTES).step_by(7) {
            add(&mut known, &"x".repeat(bytes));
        }
        let allocated: usize = known.0.iter().map(|head| head.raw.capacity()).sum();
        assert!(known.0.len() == KNOWN && allocated <= KNOWN * MAX_BYTES, "{allocated}");
    }

    /// Reads a head and remembers it, as the relay does; says what it says.
    type Read<T> = fn(&mut Known<T>, &[u8]) -> Result<(String, Length), BadHead>;

    fn request(known: &mut Known<RequestFacts>, raw: &[u8]) -> Result<(String, Length), BadHead> {
        head::read_request(raw, |request| {
            let facts = Arc::new(RequestFacts::new(&request, Edits::default()));
            known.add(raw, (request.length, request.digits), &facts);
            (format!("{facts:?}"), request.length)
        })
    }

    fn answer(known: &mut Known<AnswerFacts>, raw: &[u8]) -> Result<(String, Length), BadHead> {
        head::read_answer(raw, false, |answer| {
            let facts = Arc::new(AnswerFacts::new(&answer));
            known.add(raw, (answer.length, answer.digits), &facts);
            (format!("{facts:?}"), answer.length)
        })
    }

    /// What is known says the same as what is read, for each of these that follow each other on a connection. Returns how many
    /// were known.
    fn same<T: Debug>(read: Read<T>, heads: &[Vec<u8>]) -> usize {
        let mut known = Known::default();
        let mut found = 0;
        for bytes in heads {
            let end = head::end(bytes, 0);
            let anew = end.map(|end| read(&mut Known::default(), &bytes[..end]));
            match known.find(bytes) {
                Some(whole) => {
                    assert_eq!(Some(whole.end), end);
                    let said = whole.known.map(|(facts, length)| Ok((format!("{facts:?}"), length)));
                    assert_eq!(said, anew);
                    found += 1;
                }
                None => drop(end.map(|end| read(&mut known, &bytes[..end]))),
            }
        }
        found
    }

    /// What changes how long a message is, who may ask again, or what is passed on; and what only looks like it.
    const PIECES: [&str; 30] = [
        "",
        "content-length: 5",
        "Content-Length: 0",
        "content-length: 0005",
        "content-length:5 ",
        "content-length: \t5\t",
        "content-length: 5, 5",
        "content-length: 5,6",
        "content-length: +5",
        "content-length: 18446744073709551616",
        "content-length:",
        "content-length : 5",
        "content-length: 5\r\n 6",
        "x-content-length: 5",
        "transfer-encoding: chunked",
        "Transfer-Encoding: Chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: identity",
        "transfer-encoding:\tchunked",
        " transfer-encoding: chunked",
        "connection: close",
        "Connection: keep-alive, x",
        "connection: upgrade\r\nupgrade: h2c",
        "expect: 100-continue",
        "trailer: content-digest",
        "mcp-session-id: a",
        "content-type: text/event-stream",
        "x: 1\nx: 2",
        "x: 1\rx: 2",
        "x: content-length: 5",
    ];

    /// Heads of which many are alike.
    fn heads(starts: &'static [&'static str]) -> impl Strategy<Value = Vec<Vec<u8>>> {
        let fields = prop::collection::vec(select(&PIECES[..]), 0..4);
        let raw = |(start, fields): (&str, Vec<&str>)| {
            let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
            format!("{start}\r\n{fields}\r\n0\r\n\r\n").into_bytes()
        };
        let drawn = prop::collection::vec((select(starts), fields).prop_map(raw), 1..4);
        // The same ones over again, some of them with a byte that is another, is missing or is there twice.
        let changed =
            prop::collection::vec((any::<Index>(), any::<Index>(), 0..8u8, select(&b"0159,: \t\r\nx"[..])), 0..12);
        (drawn, changed).prop_map(|(drawn, changed)| {
            let mut heads = drawn.clone();
            for (which, at, how, byte) in changed {
                let mut head = which.get(&drawn).clone();
                let at = at.index(head.len());
                match how {
                    0 => head[at] = byte,
                    1 => head.insert(at, byte),
                    2 => drop(head.remove(at)),
                    // Where a length is told, mostly.
                    3..6 => {
                        let digit = head.iter().position(u8::is_ascii_digit).filter(|_| how == 3);
                        let last = head.windows(4).rposition(|bytes| bytes[0] == b':' && bytes[2].is_ascii_digit());
                        if let Some(at) = last.map(|at| at + 2).or(digit) {
                            head.insert(at, byte);
                        }
                    }
                    _ => {}
                }
                heads.push(head);
            }
            heads
        })
    }

    const REQUESTS: [&str; 4] =
        ["POST /mcp HTTP/1.1\r\nhost: a", "POST /mcp HTTP/1.0", "HEAD / HTTP/1.1", "DELETE /mcp HTTP/1.1\r\nx:y"];
    const ANSWERS: [&str; 5] = [
        "HTTP/1.1 200 OK",
        "HTTP/1.1 204 No Content",
        "HTTP/1.1 100 Continue",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 304 Not Modified\r\nx: y",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_request_that_is_known_says_what_it_would_if_it_were_read(heads in heads(&REQUESTS)) {
            same(request, &heads);
        }

        #[test]
        fn an_answer_that_is_known_says_what_it_would_if_it_were_read(heads in heads(&ANSWERS)) {
            same(answer, &heads);
        }
    }

    #[test]
    fn those_that_are_alike_are_known() {
        let request_of = |digits: &str| head("a", digits).into_bytes();
        assert_eq!(
            same(request, &[request_of("1"), request_of("22"), request_of("1"), b"GET / HTTP/1.1\r\n\r\n".into()]),
            2
        );
        let answer_of =
            |status: u16, length: u32| format!("HTTP/1.1 {status} \r\ncontent-length: {length}\r\n\r\n").into();
        // What a status without a body tells is not how long its body is.
        let answers = [answer_of(200, 5), answer_of(200, 7), answer_of(204, 5), answer_of(204, 7), answer_of(204, 5)];
        assert_eq!(same(answer, &answers), 2);
    }
}
