//! Heads of requests and answers: read strictly, passed on as they came but for the little that must be changed.
//!
//! What goes on is what came, byte by byte, so nothing may pass that a server could take apart differently than we do: a
//! request whose end is not beyond doubt is refused (RFC 9112, sections 2.2, 5, 6.1 and 6.3; request smuggling).

use std::mem::MaybeUninit;

use httparse::Status;

use super::decode::Length;

/// Longest head, in bytes; a request with a longer one is answered 431.
pub(super) const MAX_HEAD_BYTES: usize = 128 << 10;

/// Most fields of a head, five times what most servers take; a request with more is answered 431.
const MAX_FIELDS: usize = 512;

const CONTENT_LENGTH: &str = "content-length";

/// Why a head is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHead {
    #[error("the head is no HTTP/1.1: {0}")]
    Syntax(#[source] httparse::Error),
    #[error("a line of the head does not end with CR and LF")]
    LineEnd,
    #[error("more than {MAX_FIELDS} header fields")]
    TooManyFields,
    #[error("the head is longer than {MAX_HEAD_BYTES} bytes")]
    TooLong,
    #[error("the method CONNECT is not served here")]
    Connect,
    #[error("the target is neither a path nor an http URL")]
    Target,
    #[error("Transfer-Encoding is anything but one `chunked`, or is there in HTTP/1.0 or beside Content-Length")]
    TransferEncoding,
    #[error("Content-Length is no number, or is there more than once, or with several values in an answer")]
    ContentLength,
    #[error("no head within the time that is given for it")]
    TooSlow,
    #[error("this is no HTTP; if it is TLS, note that plain HTTP is spoken here")]
    NoHttp,
}

impl BadHead {
    /// The status that a request with such a head is answered with.
    pub(super) const fn status(self) -> u16 {
        match self {
            Self::TooManyFields | Self::TooLong => 431,
            Self::Connect => 405,
            Self::TooSlow => 408,
            _ => 400,
        }
    }
}

/// Where the head at the beginning of `bytes` ends, of which the first `seen` hold no end.
pub(super) fn end(bytes: &[u8], seen: usize) -> Option<usize> {
    const AT_ONCE: usize = 32;
    let may_be = |(this, next): (&u8, &u8)| (*this == b'\n') & ((*next == b'\n') | (*next == b'\r'));
    let mut at = seen.saturating_sub(3);
    loop {
        let rest = bytes.get(at..)?;
        if let Some(block @ [_, next @ ..]) = rest.first_chunk::<{ AT_ONCE + 1 }>()
            // Without an early end, so that many bytes are compared at a time.
            && !block.iter().zip(next).fold(false, |found, pair| found | may_be(pair))
        {
            at += AT_ONCE;
            continue;
        }
        for from in 0..rest.len().min(AT_ONCE) {
            match rest.get(from..)? {
                // Lines that end with LF alone are refused, but found.
                [b'\n', b'\n', ..] => return Some(at + from + 2),
                [b'\n', b'\r', b'\n', ..] => return Some(at + from + 3),
                _ => {}
            }
        }
        if rest.len() <= AT_ONCE {
            return None;
        }
        at += AT_ONCE;
    }
}

/// What the name of a method or field is made of (RFC 9110, section 5.6.2).
pub(super) const fn is_token(byte: u8) -> bool {
    matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        || byte.is_ascii_alphanumeric()
}

/// The fields of a head.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    fields: &'a [httparse::Header<'a>],
    /// How long their names are, as bits: most of what is looked for is not there, and found out by this.
    lengths: u64,
}

impl<'a> Fields<'a> {
    fn new(fields: &'a [httparse::Header<'a>]) -> Self {
        Self { fields, lengths: fields.iter().fold(0, |lengths, field| lengths | Self::length(field.name)) }
    }

    /// As a bit, which several have that are very long.
    fn length(name: &str) -> u64 {
        1 << (name.len() % 64)
    }

    /// The values of all fields with this name.
    pub(super) fn all(self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = if self.lengths & Self::length(name) == 0 { &[] } else { self.fields };
        let is_named = move |field: &&httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
        fields.iter().filter(is_named).map(|field| field.value)
    }

    /// The value of the first of them.
    pub(super) fn first(self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The same, if it is text.
    pub(super) fn text(self, name: &str) -> Option<&'a str> {
        as_text(self.first(name)?)
    }

    pub(super) fn contains(self, name: &str) -> bool {
        self.first(name).is_some()
    }

    /// Whether a list of tokens, such as that of `Connection`, has this one.
    fn lists(self, name: &str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether the connection may be used again after this message.
    fn keeps_alive(self, version: u8) -> bool {
        !self.lists("connection", "close") && (version > 0 || self.lists("connection", "keep-alive"))
    }

    /// The length that is told, once.
    fn content_length(self) -> Result<Option<u64>, BadHead> {
        let mut values = self.all(CONTENT_LENGTH);
        let Some(value) = values.next() else { return Ok(None) };
        match (number(value), values.next()) {
            (Some(number), None) => Ok(Some(number)),
            _ => Err(BadHead::ContentLength),
        }
    }

    /// The length that is told, and whether it is told several times: as often as one likes, if it is the same each time (RFC
    /// 9110, section 8.6).
    fn repeated_content_length(self) -> Result<Option<(u64, bool)>, BadHead> {
        let mut values = self.all(CONTENT_LENGTH).flat_map(|value| value.split(|byte| *byte == b','));
        let Some(first) = values.next() else { return Ok(None) };
        let length = number(first.trim_ascii()).ok_or(BadHead::ContentLength)?;
        let mut is_repeated = false;
        for value in values {
            if number(value.trim_ascii()) != Some(length) {
                return Err(BadHead::ContentLength);
            }
            is_repeated = true;
        }
        Ok(Some((length, is_repeated)))
    }
}

/// A number of nothing but digits.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    let append = |number: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    // None at all are none.
    if value.is_empty() { None } else { value.iter().try_fold(0, append) }
}

/// The value of a field, if it is text: anything but ASCII has no agreed meaning.
pub(super) fn as_text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|value| value.is_ascii())
}

/// Without its parameters.
fn media_type(content_type: &[u8]) -> &[u8] {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Whether it is this media type; mostly nothing stands behind it.
pub(super) fn is_media(content_type: &[u8], media: &[u8]) -> bool {
    content_type.eq_ignore_ascii_case(media) || media_type(content_type).eq_ignore_ascii_case(media)
}

/// Whether it is that of JSON, or one that is made of it.
pub(super) fn is_json(content_type: &[u8]) -> bool {
    const SUFFIX: &[u8] = b"+json";
    is_media(content_type, b"application/json") || {
        let media = media_type(content_type);
        let ends = media.len().checked_sub(SUFFIX.len()).and_then(|at| media.get(at..));
        ends.is_some_and(|end| end.eq_ignore_ascii_case(SUFFIX))
    }
}

/// A request's head.
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// Path and query, or `*`.
    pub(super) target: &'a str,
    /// The host and port of an absolute target.
    pub(super) authority: Option<&'a str>,
    /// Whether the target has to be written anew, as path and query only.
    pub(super) is_rewritten: bool,
    /// 0 or 1, of HTTP/1.
    pub(super) version: u8,
    pub(super) fields: Fields<'a>,
    pub(super) length: Length,
    /// The digits that alone tell it, if they do.
    pub(super) digits: Option<&'a [u8]>,
    /// Whether the client wants to use the connection again.
    pub(super) keeps_alive: bool,
}

/// Reads the head of a request, which `raw` is from its first byte to its empty line.
pub(super) fn read_request<R>(raw: &[u8], see: impl FnOnce(Request<'_>) -> R) -> Result<R, BadHead> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let status = parsed.parse_with_uninit_headers(raw, &mut fields).map_err(bad)?;
    check_lines(raw)?;
    let (Status::Complete(_), Some(method), Some(target), Some(version)) =
        (status, parsed.method, parsed.path, parsed.version)
    else {
        return Err(BadHead::LineEnd);
    };
    if method == "CONNECT" {
        return Err(BadHead::Connect);
    }
    let fields = Fields::new(parsed.headers);
    let length = match fields.content_length()? {
        length if fields.contains("transfer-encoding") => {
            let mut codings = fields.all("transfer-encoding");
            let is_chunked = codings.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
            if !is_chunked || codings.next().is_some() || length.is_some() || version == 0 {
                return Err(BadHead::TransferEncoding);
            }
            Length::Chunked
        }
        length => Length::Exact(length.unwrap_or(0)),
    };
    let (authority, path) = split_target(target).ok_or(BadHead::Target)?;
    Ok(see(Request {
        method,
        target: path,
        authority,
        is_rewritten: path.len() != target.len(),
        version,
        fields,
        length,
        digits: fields.first(CONTENT_LENGTH),
        keeps_alive: fields.keeps_alive(version),
    }))
}

/// Authority, and path and query without a fragment.
fn split_target(target: &str) -> Option<(Option<&str>, &str)> {
    let target = target.split('#').next().unwrap_or_default();
    if target.starts_with('/') || target == "*" {
        return Some((None, target));
    }
    let scheme = |scheme: &&str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let rest = target.get(["http://", "https://"].iter().find(|found| scheme(found))?.len()..)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    match path {
        "" => Some((Some(authority), "/")),
        // A query right after the host has no path to go on with.
        path => path.starts_with('/').then_some((Some(authority), path)),
    }
}

/// The head of an answer.
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) fields: Fields<'a>,
    pub(super) length: Length,
    /// The digits that alone tell it, if they do.
    pub(super) digits: Option<&'a [u8]>,
    /// What becomes of the length that is told.
    pub(super) told: Told,
    /// Whether the server wants to use the connection again.
    pub(super) keeps_alive: bool,
}

/// The length that an answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It goes on as it is, if it is there.
    AsItIs,
    /// It is overridden, and must not be passed on (RFC 9112, section 6.3).
    Overridden,
    /// It is there several times, and goes on once (RFC 9110, section 8.6).
    Repeated(u64),
}

impl Told {
    /// What is changed in the head for it.
    pub(super) fn edits(self) -> Edits {
        match self {
            Self::AsItIs => Edits::default(),
            Self::Overridden => Edits { without: vec!["content-length"], ..Edits::default() },
            Self::Repeated(length) => Edits { with: vec![("content-length", length.to_string())], ..Edits::default() },
        }
    }
}

/// Reads the head of an answer to a request of which is known whether it was `HEAD`.
pub(super) fn read_answer<R>(raw: &[u8], to_head: bool, see: impl FnOnce(Answer<'_>) -> R) -> Result<R, BadHead> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    // What clients and servers have always let pass.
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    let status = config.parse_response_with_uninit_headers(&mut parsed, raw, &mut fields).map_err(bad)?;
    // The parser and who looked for the end must mean the same one.
    let (Status::Complete(length), Some(code), Some(version)) = (status, parsed.code, parsed.version) else {
        return Err(BadHead::LineEnd);
    };
    if length != raw.len() {
        return Err(BadHead::LineEnd);
    }
    let fields = Fields::new(parsed.headers);
    let is_encoded = fields.contains("transfer-encoding");
    let mut told = if is_encoded && fields.contains(CONTENT_LENGTH) { Told::Overridden } else { Told::AsItIs };
    let mut digits = None;
    let length = if to_head || matches!(code, 100..=199 | 204 | 304) {
        Length::Exact(0)
    } else if is_encoded {
        let last = fields.all("transfer-encoding").last().unwrap_or_default();
        let last = last.rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
        if last.eq_ignore_ascii_case(b"chunked") { Length::Chunked } else { Length::UntilClosed }
    } else {
        match fields.repeated_content_length()? {
            None => Length::UntilClosed,
            Some((length, is_repeated)) => {
                if is_repeated {
                    told = Told::Repeated(length);
                } else {
                    digits = fields.first(CONTENT_LENGTH);
                }
                Length::Exact(length)
            }
        }
    };
    Ok(see(Answer {
        status: code,
        fields,
        length,
        digits,
        told,
        keeps_alive: fields.keeps_alive(version) && length != Length::UntilClosed,
    }))
}

const fn bad(error: httparse::Error) -> BadHead {
    match error {
        httparse::Error::TooManyHeaders => BadHead::TooManyFields,
        error => BadHead::Syntax(error),
    }
}

/// Every line ends with CR and LF: some servers take one of them for an end, and others do not.
fn check_lines(raw: &[u8]) -> Result<(), BadHead> {
    // Without an early end, so that many bytes are compared at a time.
    let bare = |bare, (before, byte): (&u8, &u8)| bare | ((*byte == b'\n') & (*before != b'\r'));
    let begins_bare = raw.first() == Some(&b'\n');
    let is_bare = raw.iter().zip(raw.get(1..).unwrap_or_default()).fold(begins_bare, bare);
    if is_bare { Err(BadHead::LineEnd) } else { Ok(()) }
}

/// What is changed in a head.
#[derive(Clone, Debug, Default)]
pub(super) struct Edits {
    /// The target, in a request.
    pub(super) target: Option<String>,
    /// Fields that are left out.
    pub(super) without: Vec<&'static str>,
    /// Fields that get another value, or are added at the end.
    pub(super) with: Vec<(&'static str, String)>,
}

impl Edits {
    /// Writes the head with the changes; all else as it is.
    pub(super) fn write(&self, raw: &[u8], into: &mut Vec<u8>) {
        if self.target.is_none() && self.without.is_empty() && self.with.is_empty() {
            return into.extend_from_slice(raw);
        }
        let mut lines = raw.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        match &self.target {
            Some(target) => write_target(first, target, into),
            None => into.extend_from_slice(first),
        }
        let mut written = vec![false; self.with.len()];
        for line in lines {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            let is_named = |other: &str| other.as_bytes().eq_ignore_ascii_case(name);
            if self.without.iter().any(|without| is_named(without)) {
                continue;
            }
            if line.trim_ascii().is_empty() {
                for ((name, value), _) in self.with.iter().zip(&written).filter(|(_, written)| !**written) {
                    write_field(name.as_bytes(), value, into);
                }
                into.extend_from_slice(line);
            } else if let Some(at) = self.with.iter().position(|(with, _)| is_named(with)) {
                // Of several there is one.
                if let (Some((_, value)), Some(written @ false)) = (self.with.get(at), written.get_mut(at)) {
                    *written = true;
                    write_field(name, value, into);
                }
            } else {
                into.extend_from_slice(line);
            }
        }
    }
}

fn write_target(line: &[u8], target: &str, into: &mut Vec<u8>) {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (method, version) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
    for part in [method, b" ", target.as_bytes(), b" ", version] {
        into.extend_from_slice(part);
    }
}

fn write_field(name: &[u8], value: &str, into: &mut Vec<u8>) {
    for part in [name, b": ", value.as_bytes(), b"\r\n"] {
        into.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(head: &str) -> Option<BadHead> {
        read_request(head.as_bytes(), |_| ()).err()
    }

    #[test]
    fn a_head_ends_with_an_empty_line_however_it_comes() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\r\n\r\n";
        for seen in 0..26 {
            assert_eq!(end(head, seen), Some(27), "{seen}");
        }
        assert_eq!(end(b"GET / HTTP/1.1\r\nHost: a\r\n\r", 0), None);
        assert_eq!(end(b"GET / HTTP/1.1\nHost: a\n\nbody", 0), Some(24), "to be refused, not waited for");
        assert_eq!(end(b"HTTP/1.1 200 OK\nX: a\n\r\nbody", 0), Some(23));
        for before in 0..100 {
            let head = format!("{}\n\rx\r\n\r\n", "x".repeat(before)).into_bytes();
            assert_eq!(end(&head, 0), Some(before + 7));
            assert!((0..head.len()).all(|length| end(&head[..length], 0).is_none()), "{before}");
            assert_eq!(end(&[&head, &head[..]].concat(), 0), Some(before + 7));
        }
    }

    #[test]
    fn media_types_are_known_with_and_without_parameters() {
        for json in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;a"] {
            assert!(is_json(json.as_bytes()), "{json}");
        }
        assert!(is_json(b"application/vnd.x+json;v=1") && is_json(b" application/json"));
        for other in ["", "application/jsonx", "application/json/x", "application/jso", "text/event-stream", "+jso"] {
            assert!(!is_json(other.as_bytes()), "{other}");
        }
        assert!(is_media(b"text/event-stream;charset=utf-8", b"text/event-stream"));
        assert!(!is_media(b"text/event-streams", b"text/event-stream"));
    }

    #[test]
    fn a_field_is_found_however_long_its_name_is() {
        let long = "x".repeat(68);
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{long}: 1\r\nAbcd: 2\r\nhost: b\r\n\r\n");
        let found = read_request(head.as_bytes(), |request| {
            let fields = request.fields;
            assert_eq!(fields.first(&long), Some(b"1".as_slice()));
            assert_eq!(fields.all("HOST").collect::<Vec<_>>(), [b"a", b"b"]);
            assert!(fields.contains("abcd") && !fields.contains("abce") && !fields.contains("abcde"));
        });
        assert_eq!(found, Ok(()));
    }

    #[test]
    fn requests_whose_end_is_in_doubt_are_refused() {
        use BadHead::{ContentLength, LineEnd, TransferEncoding};
        for (fields, expected) in [
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", TransferEncoding),
            ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-encoding: identity\r\n", TransferEncoding),
            ("Transfer-Encoding: gzip, chunked\r\n", TransferEncoding),
            ("Transfer-Encoding: chunked, identity\r\n", TransferEncoding),
            ("Transfer-Encoding: xchunked\r\n", TransferEncoding),
            ("Transfer-Encoding: \"chunked\"\r\n", TransferEncoding),
            ("Transfer-Encoding: \u{b}chunked\r\n", BadHead::Syntax(httparse::Error::HeaderValue)),
            ("Transfer-Encoding:\r\n", TransferEncoding),
            ("Transfer-Encoding : chunked\r\n", BadHead::Syntax(httparse::Error::HeaderName)),
            ("Transfer-Encoding\r\n : chunked\r\n", BadHead::Syntax(httparse::Error::HeaderName)),
            ("X: y\r\n Transfer-Encoding: chunked\r\n", BadHead::Syntax(httparse::Error::HeaderName)),
            ("X: y\nTransfer-Encoding: chunked\r\n", LineEnd),
            ("X: y\rTransfer-Encoding: chunked\r\n", BadHead::Syntax(httparse::Error::HeaderValue)),
            ("X: y\0\r\n", BadHead::Syntax(httparse::Error::HeaderValue)),
            ("Content-Length: 3\r\nContent-Length: 3\r\n", ContentLength),
            ("Content-Length: 3\r\nContent-Length: 4\r\n", ContentLength),
            ("Content-Length: 3, 3\r\n", ContentLength),
            ("Content-Length: +3\r\n", ContentLength),
            ("Content-Length: -3\r\n", ContentLength),
            ("Content-Length: 0x3\r\n", ContentLength),
            ("Content-Length: 3 4\r\n", ContentLength),
            ("Content-Length:\r\n", ContentLength),
            ("Content-Length: 18446744073709551616\r\n", ContentLength),
        ] {
            let head = format!("POST /mcp HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            assert_eq!(refusal(&head), Some(expected), "{fields:?}");
        }
        assert_eq!(refusal("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(TransferEncoding));
        assert_eq!(refusal("POST / HTTP/1.1\nHost: a\n\n"), Some(LineEnd));
        assert_eq!(refusal("CONNECT a:1 HTTP/1.1\r\n\r\n"), Some(BadHead::Connect));
        for target in ["a:1", "ftp://a/b", "http://a?b", "//a", "mailto:a"] {
            let expected = if target.starts_with('/') { None } else { Some(BadHead::Target) };
            assert_eq!(refusal(&format!("GET {target} HTTP/1.1\r\n\r\n")), expected, "{target}");
        }
        for start in
            ["PRI * HTTP/2.0", "GET / HTTP/1.2", "GET /", "GET  / HTTP/1.1", "GET /\u{7f} HTTP/1.1", ": HTTP/1.1"]
        {
            assert!(matches!(refusal(&format!("{start}\r\n\r\n")), Some(BadHead::Syntax(_))), "{start}");
        }
    }

    #[test]
    fn tells_how_long_a_request_is_and_whether_another_may_follow() {
        let read = |fields: &str, version: u8| {
            let head = format!("POST /mcp HTTP/1.{version}\r\n{fields}\r\n");
            read_request(head.as_bytes(), |request| (request.length, request.keeps_alive)).unwrap()
        };
        assert_eq!(read("", 1), (Length::Exact(0), true));
        assert_eq!(read("", 0), (Length::Exact(0), false));
        assert_eq!(read("connection: Keep-Alive\r\n", 0), (Length::Exact(0), true));
        assert_eq!(read("content-LENGTH: 007\r\nConnection: x, Close\r\n", 1), (Length::Exact(7), false));
        assert_eq!(read("transfer-encoding: CHUNKED\r\n", 1), (Length::Chunked, true));
    }

    #[test]
    fn tells_how_long_an_answer_is() {
        let read = |status: u16, fields: &str, to_head: bool| {
            let head = format!("HTTP/1.1 {status} \r\n{fields}\r\n");
            read_answer(head.as_bytes(), to_head, |answer| (answer.length, answer.keeps_alive, answer.told))
        };
        use Told::{AsItIs, Overridden, Repeated};
        assert_eq!(read(200, "", false), Ok((Length::UntilClosed, false, AsItIs)));
        assert_eq!(read(200, "Content-Length: 5\r\n", false), Ok((Length::Exact(5), true, AsItIs)));
        assert_eq!(read(200, "Content-Length: 5\r\n", true), Ok((Length::Exact(0), true, AsItIs)));
        for status in [100, 103, 204, 304] {
            assert_eq!(read(status, "Content-Length: 5\r\n", false), Ok((Length::Exact(0), true, AsItIs)));
        }
        let both = "Content-Length: 5\r\nTransfer-Encoding: gzip, chunked\r\n";
        assert_eq!(read(200, both, false), Ok((Length::Chunked, true, Overridden)));
        assert_eq!(read(200, "Transfer-Encoding: gzip\r\n", false), Ok((Length::UntilClosed, false, AsItIs)));
        for fields in ["Content-Length: 5\r\nContent-Length: 5\r\n", "Content-Length: 5, 05\r\n"] {
            assert_eq!(read(200, fields, false), Ok((Length::Exact(5), true, Repeated(5))), "{fields:?}");
        }
        for fields in [
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 6\r\n",
            "Content-Length: 5,\r\n",
            "Content-Length: 5\r\nContent-Length:\r\n",
            "Content-Length: +5\r\n",
            "Content-Length:\r\n",
        ] {
            assert_eq!(read(200, fields, false), Err(BadHead::ContentLength), "{fields:?}");
        }
    }

    #[test]
    fn changes_nothing_but_what_is_named() {
        let raw = b"POST http://a/b?c HTTP/1.1\r\nhOST:  a\r\nX: 1\r\nUpgrade: h2c\r\nx:2\r\nhost: b\r\n\r\n";
        let edits = Edits {
            target: Some("/b?c".to_owned()),
            without: vec!["upgrade"],
            with: vec![("host", "c".to_owned()), ("traceparent", "00".to_owned())],
        };
        let mut written = Vec::new();
        edits.write(raw, &mut written);
        let expected = "POST /b?c HTTP/1.1\r\nhOST: c\r\nX: 1\r\nx:2\r\ntraceparent: 00\r\n\r\n";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
        let mut same = Vec::new();
        Edits::default().write(raw, &mut same);
        assert_eq!(same, raw);
    }
}
