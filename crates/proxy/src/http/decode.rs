//! Where a body ends, and which of its bytes are its data.

use super::head::{MAX_HEAD_BYTES, is_token};

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// After so many bytes.
    Exact(u64),
    /// In chunks, the last of which is empty.
    Chunked,
    /// With the connection.
    UntilClosed,
}

/// What is wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadBody {
    #[error("no chunk where one is expected")]
    Chunk,
    #[error("chunk extensions or trailers are longer than {MAX_HEAD_BYTES} bytes")]
    TooLong,
    #[error("the connection ended within it")]
    BrokenOff,
}

/// What the next bytes of a body are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes of data.
    Data(usize),
    /// So many bytes that say where chunks begin and end.
    Framing(usize),
    /// So many bytes of trailers, with the empty line behind them.
    Trailers(usize),
}

/// Reads along with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoder(State);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Exact(u64),
    UntilClosed,
    /// At the size of a chunk, some of whose digits were seen.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind the size: in blanks, or in extensions, so many bytes of which were seen.
    Blank {
        size: u64,
        seen: usize,
    },
    Extension {
        size: u64,
        seen: usize,
    },
    SizeLf {
        size: u64,
    },
    /// So many bytes of a chunk are left.
    Data(u64),
    DataCr,
    DataLf,
    /// In the trailers, so many bytes of which were seen; at the beginning of a line, or not.
    Trailers {
        seen: usize,
        line: Line,
    },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Start,
    Name,
    Value,
    Lf,
    LastLf,
}

/// A size of a chunk has no more digits than this, so that it cannot overflow.
const MAX_DIGITS: u8 = 15;

impl Decoder {
    pub(super) fn new(length: Length) -> Self {
        Self(match length {
            Length::Exact(0) => State::Done,
            Length::Exact(left) => State::Exact(left),
            Length::UntilClosed => State::UntilClosed,
            Length::Chunked => CHUNK,
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// Whether nothing is between this place and the next chunk, if there are chunks.
    pub(super) fn is_between_chunks(&self) -> bool {
        self.0 == CHUNK || matches!(self.0, State::Exact(_) | State::UntilClosed | State::Done)
    }

    /// Reads on; of `input`, which is not empty, so many bytes as it says.
    pub(super) fn next(&mut self, input: &[u8]) -> Result<Step, BadBody> {
        match &mut self.0 {
            State::Done => Ok(Step::Data(0)),
            State::UntilClosed => Ok(Step::Data(input.len())),
            State::Exact(left) => {
                let read = take(left, input);
                if *left == 0 {
                    self.0 = State::Done;
                }
                Ok(Step::Data(read))
            }
            State::Data(left) => {
                let read = take(left, input);
                if *left == 0 {
                    self.0 = State::DataCr;
                }
                Ok(Step::Data(read))
            }
            State::Trailers { .. } => self.trailers(input).map(Step::Trailers),
            _ => self.framing(input).map(Step::Framing),
        }
    }

    fn framing(&mut self, input: &[u8]) -> Result<usize, BadBody> {
        for (at, byte) in input.iter().enumerate() {
            self.0 = match (self.0, *byte) {
                (State::Size { size, digits }, byte) if byte.is_ascii_hexdigit() && digits < MAX_DIGITS => {
                    let digit = char::from(byte).to_digit(16).unwrap_or_default();
                    State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
                }
                (State::Size { size, digits: 1.. } | State::Extension { size, .. }, b'\r') => State::SizeLf { size },
                (State::Size { size, digits: 1.. } | State::Blank { size, .. }, b';') => {
                    State::Extension { size, seen: 0 }
                }
                (State::Size { size, digits: 1.. }, b' ' | b'\t') => State::Blank { size, seen: 1 },
                (State::Blank { size, seen }, b' ' | b'\t') if seen < MAX_HEAD_BYTES => {
                    State::Blank { size, seen: seen + 1 }
                }
                (State::Blank { .. } | State::Extension { .. }, _) if !is_text(*byte) => return Err(BadBody::Chunk),
                (State::Extension { seen: MAX_HEAD_BYTES, .. } | State::Blank { seen: MAX_HEAD_BYTES, .. }, _) => {
                    return Err(BadBody::TooLong);
                }
                (State::Extension { size, seen }, _) => State::Extension { size, seen: seen + 1 },
                (State::SizeLf { size: 0 }, b'\n') => State::Trailers { seen: 0, line: Line::Start },
                (State::SizeLf { size }, b'\n') => State::Data(size),
                (State::DataCr, b'\r') => State::DataLf,
                (State::DataLf, b'\n') => CHUNK,
                _ => return Err(BadBody::Chunk),
            };
            if matches!(self.0, State::Data(_) | State::Trailers { .. }) || self.0 == CHUNK {
                return Ok(at + 1);
            }
        }
        Ok(input.len())
    }

    fn trailers(&mut self, input: &[u8]) -> Result<usize, BadBody> {
        let State::Trailers { mut seen, mut line } = self.0 else { return Ok(0) };
        for (at, byte) in input.iter().enumerate() {
            seen += 1;
            line = match (line, *byte) {
                (Line::LastLf, b'\n') => {
                    self.0 = State::Done;
                    return Ok(at + 1);
                }
                (Line::Lf, b'\n') => Line::Start,
                (Line::Start, b'\r') => Line::LastLf,
                (Line::Start | Line::Name, byte) if is_token(byte) => Line::Name,
                (Line::Name, b':') => Line::Value,
                (Line::Value, b'\r') => Line::Lf,
                (Line::Value, byte) if is_text(byte) => Line::Value,
                _ => return Err(BadBody::Chunk),
            };
            if seen > MAX_HEAD_BYTES {
                return Err(BadBody::TooLong);
            }
        }
        self.0 = State::Trailers { seen, line };
        Ok(input.len())
    }

    /// The connection has ended.
    pub(super) fn end(&mut self) -> Result<(), BadBody> {
        match self.0 {
            State::Done | State::UntilClosed => {
                self.0 = State::Done;
                Ok(())
            }
            _ => Err(BadBody::BrokenOff),
        }
    }
}

const CHUNK: State = State::Size { size: 0, digits: 0 };

fn take(left: &mut u64, input: &[u8]) -> usize {
    let read = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= read as u64;
    read
}

/// What may stand in a field or an extension (RFC 9110, section 5.5).
const fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data, the trailers, and what is left behind the body.
    type Decoded = Result<(Vec<u8>, Vec<u8>, usize), BadBody>;

    fn decode<'a>(length: Length, pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
        let (mut decoder, mut data, mut trailers, mut left) = (Decoder::new(length), Vec::new(), Vec::new(), 0);
        for mut piece in pieces {
            while !piece.is_empty() && !decoder.is_done() {
                let bytes = match decoder.next(piece)? {
                    Step::Data(bytes) => {
                        data.extend_from_slice(&piece[..bytes]);
                        bytes
                    }
                    Step::Trailers(bytes) => {
                        trailers.extend_from_slice(&piece[..bytes]);
                        bytes
                    }
                    Step::Framing(bytes) => bytes,
                };
                assert!(bytes > 0, "it goes on");
                piece = &piece[bytes..];
            }
            left += piece.len();
        }
        decoder.end()?;
        Ok((data, trailers, left))
    }

    #[test]
    fn bodies_in_doubt_are_refused() {
        for body in [
            "5 \r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-1\r\n\r\n",
            "\r\n",
            ";a\r\n",
            "g\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5;a\nhello\r\n0\r\n\r\n",
            "5;a\rx\r\nhello\r\n0\r\n\r\n",
            "5;\0\r\nhello\r\n0\r\n\r\n",
            "5\r\rhello\r\n0\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\r\n\n",
            "0\r\n\n",
            "0\r\n\r\r",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
            "0\r\nX: y\r\n z\r\n\r\n",
            "0\r\n: y\r\n\r\n",
            "10000000000000000\r\n",
            "5\r\nhello\r\n\r\n0\r\n\r\n",
            "5 a\r\nhello\r\n0\r\n\r\n",
        ] {
            assert_eq!(decode(Length::Chunked, [body.as_bytes()]), Err(BadBody::Chunk), "{body:?}");
        }
        for body in ["", "5", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0\r\nX: y\r\n"] {
            assert_eq!(decode(Length::Chunked, [body.as_bytes()]), Err(BadBody::BrokenOff), "{body:?}");
        }
        assert_eq!(decode(Length::Exact(4), [b"abc".as_slice()]), Err(BadBody::BrokenOff));
        let long = "x".repeat(MAX_HEAD_BYTES + 1);
        for body in [format!("5;{long}\r\n"), format!("5{}", " ".repeat(long.len())), format!("0\r\nX:{long}\r\n\r\n")]
        {
            assert_eq!(decode(Length::Chunked, [body.as_bytes()]), Err(BadBody::TooLong));
        }
    }

    #[test]
    fn a_body_ends_where_it_says() {
        let body = b"5 ; a=\"b\"\r\nhello\r\n00A;\r\n0123456789\r\n000\r\nX: y\r\nZ:\r\n\r\nGET /";
        let whole = (b"hello0123456789".to_vec(), b"X: y\r\nZ:\r\n\r\n".to_vec(), 5);
        assert_eq!(decode(Length::Chunked, [body.as_slice()]), Ok(whole.clone()));
        assert_eq!(decode(Length::Chunked, body.chunks(1)), Ok(whole), "byte by byte");
        assert_eq!(decode(Length::Exact(2), [b"abc".as_slice()]), Ok((b"ab".to_vec(), Vec::new(), 1)));
        assert_eq!(decode(Length::UntilClosed, [b"abc".as_slice()]), Ok((b"abc".to_vec(), Vec::new(), 0)));
        assert_eq!(decode(Length::Exact(0), [b"abc".as_slice()]), Ok((Vec::new(), Vec::new(), 3)));
    }

    proptest! {
        #[test]
        fn pieces_are_read_like_the_whole(
            body in prop_oneof!["[0-9a-f\r\n;: \tx]{0,40}".prop_map(String::into_bytes), proptest::collection::vec(any::<u8>(), 0..40)],
            cut in 0_usize..40,
        ) {
            let cut = cut.min(body.len());
            prop_assert_eq!(
                decode(Length::Chunked, [&body[..cut], &body[cut..]]),
                decode(Length::Chunked, [body.as_slice()])
            );
        }

        #[test]
        fn what_was_put_into_chunks_comes_out(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..30), 0..6)) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(decode(Length::Chunked, [body.as_slice()]), Ok((chunks.concat(), b"\r\n".to_vec(), 0)));
        }
    }
}
