//! What the fuzz target of the HTTP relay drives: one side of a connection, read as the relay reads it.

use super::decode::{Decoder, Length, Step};
use super::head::{self, Edits};

/// Whose messages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Requests.
    Client,
    /// Answers, none of them to `HEAD`.
    Server,
}

/// A message as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Line ends that are none of it.
    pub before: Vec<u8>,
    /// To its empty line.
    pub head: Vec<u8>,
    /// As it goes on with a host of our choice, and without an upgrade or a length that must not be passed on.
    pub edited: Vec<u8>,
    /// Everything behind the head.
    pub body: Vec<u8>,
    /// What of that is data, and trailers with their empty line.
    pub data: Vec<u8>,
    /// See there.
    pub trailers: Vec<u8>,
    /// The length of the body, if it is told; of what comes in chunks it is not.
    pub told: Option<u64>,
    /// Whether the body comes in chunks.
    pub is_chunked: bool,
    /// Whether its end is known and was reached.
    pub is_complete: bool,
}

/// Reads messages from bytes that come in pieces.
#[derive(Debug)]
pub struct Messages {
    side: Side,
    /// What came and is not read yet.
    input: Vec<u8>,
    /// Line ends before the next message.
    before: Vec<u8>,
    /// Bytes of the input that hold no end of a head.
    seen: usize,
    body: Option<Decoder>,
    found: Vec<Found>,
    /// Why nothing more is read.
    bad: Option<String>,
}

impl Messages {
    /// Nothing yet.
    #[must_use]
    pub fn new(side: Side) -> Self {
        Self { side, input: Vec::new(), before: Vec::new(), seen: 0, body: None, found: Vec::new(), bad: None }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, piece: &[u8]) {
        self.input.extend_from_slice(piece);
        while self.bad.is_none() && self.step() {}
    }

    /// The messages, of which the last one may not be complete; why reading stopped, if it did; and what is left.
    #[must_use]
    pub fn end(self) -> (Vec<Found>, Option<String>, Vec<u8>) {
        (self.found, self.bad, [self.before, self.input].concat())
    }

    /// Returns whether there may be more to read.
    fn step(&mut self) -> bool {
        let Some(decoder) = &mut self.body else { return self.head() };
        let Some(found) = self.found.last_mut() else { return false };
        if decoder.is_done() {
            found.is_complete = true;
            self.body = None;
            return true;
        }
        if self.input.is_empty() {
            return false;
        }
        let (length, into) = match decoder.next(&self.input) {
            Ok(Step::Data(length)) => (length, Some(&mut found.data)),
            Ok(Step::Trailers(length)) => (length, Some(&mut found.trailers)),
            Ok(Step::Framing(length)) => (length, None),
            Err(bad) => {
                self.bad = Some(bad.to_string());
                return false;
            }
        };
        let read: Vec<u8> = self.input.drain(..length).collect();
        into.into_iter().for_each(|into| into.extend_from_slice(&read));
        found.body.extend_from_slice(&read);
        true
    }

    fn head(&mut self) -> bool {
        while self.side == Side::Client && self.input.starts_with(b"\r\n") {
            self.before.extend(self.input.drain(..2));
            self.seen = 0;
        }
        let Some(end) = head::end(&self.input, self.seen) else {
            self.seen = self.input.len();
            return false;
        };
        let raw: Vec<u8> = self.input.drain(..end).collect();
        self.seen = 0;
        let read = match self.side {
            Side::Client => head::read_request(&raw, |request| {
                let target = request.is_rewritten.then(|| request.target.to_owned());
                (request.length, Edits { target, ..Edits::default() })
            }),
            Side::Server => head::read_answer(&raw, false, |answer| (answer.length, answer.told.edits())),
        };
        match read {
            Ok((length, mut edits)) => {
                edits.without.push("upgrade");
                edits.with.push(("host", "fuzz.example".to_owned()));
                let mut edited = Vec::new();
                edits.write(&raw, &mut edited);
                let told = if let Length::Exact(told) = length { Some(told) } else { None };
                let is_chunked = length == Length::Chunked;
                let before = std::mem::take(&mut self.before);
                self.found.push(Found { before, head: raw, edited, told, is_chunked, ..Found::default() });
                self.body = Some(Decoder::new(length));
                true
            }
            Err(bad) => {
                self.bad = Some(bad.to_string());
                self.input.splice(..0, raw);
                false
            }
        }
    }
}
