//! HTTP/1.1 as bytes: heads taken apart and put together.

/// The last chunk of a chunked body, without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The head of a request or an answer, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Every byte up to and including the empty line.
    pub raw: Vec<u8>,
}

/// A head and the body that followed it, without its framing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The head.
    pub head: Head,
    /// The body; empty if there was none.
    pub body: Vec<u8>,
}

impl Head {
    /// The first line, without its end.
    #[must_use]
    pub fn start_line(&self) -> String {
        String::from_utf8_lossy(self.lines().next().unwrap_or_default()).into_owned()
    }

    /// The status of an answer.
    ///
    /// # Panics
    /// It is no answer's head.
    #[must_use]
    pub fn status(&self) -> u16 {
        let line = self.start_line();
        line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {line:?}"))
    }

    /// Names and values in their order, the names as they are written, the values without surrounding blanks.
    #[must_use]
    pub fn headers(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let field = |line: &[u8]| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((line.get(..colon)?.to_vec(), line.get(colon + 1..)?.trim_ascii().to_vec()))
        };
        self.lines().skip(1).filter_map(field).collect()
    }

    /// The values of a header, whatever the case of its name.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<Vec<u8>> {
        let named = |(found, _): &(Vec<u8>, Vec<u8>)| found.eq_ignore_ascii_case(name.as_bytes());
        self.headers().into_iter().filter(named).map(|(_, value)| value).collect()
    }

    /// The first value of a header as text.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<String> {
        self.values(name).first().map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Whether it is an answer's head rather than a request's.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.raw.starts_with(b"HTTP/")
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.raw.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// A request to `localhost` with a body of known length.
#[must_use]
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = request_head(method, target, headers);
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    bytes.truncate(bytes.len() - 2);
    bytes.extend_from_slice(length.as_bytes());
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// The head of a request to `localhost` that says nothing of a body unless `headers` do.
#[must_use]
pub fn request_head(method: &str, target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    head(&format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n"), headers)
}

/// An answer with a body of known length; `status` is code and reason, such as `200 OK`.
#[must_use]
pub fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = head(&format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len()), headers);
    bytes.extend_from_slice(body);
    bytes
}

/// The head of an answer that says nothing of a body unless `headers` do.
#[must_use]
pub fn answer_head(status: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    head(&format!("HTTP/1.1 {status}\r\n"), headers)
}

/// The head of an event stream in chunks.
#[must_use]
pub fn stream_head(status: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    head(&format!("HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"), headers)
}

/// One chunk of a chunked body. Without data there is none: an empty chunk would be the last.
#[must_use]
pub fn chunk(data: &[u8]) -> Vec<u8> {
    if data.is_empty() {
        return Vec::new();
    }
    let mut bytes = format!("{:x}\r\n", data.len()).into_bytes();
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn head(start: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let fields = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    std::iter::once(start.to_owned()).chain(fields).chain(["\r\n".to_owned()]).collect::<String>().into_bytes()
}
