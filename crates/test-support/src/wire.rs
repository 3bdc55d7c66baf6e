//! One HTTP/1.1 connection as bytes, from either side.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::http::{Head, Message};
use crate::{PATIENCE, within};

/// A connection. Dropping it closes it.
///
/// Both halves are open to use, so that a test can write and read at once.
#[derive(Debug)]
pub struct Wire {
    /// What comes in.
    pub reader: WireReader,
    /// What goes out.
    pub writer: WireWriter,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// It is refused.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::new(within(TcpStream::connect(address)).await?)
    }

    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader: WireReader { stream: reader, buffer: Vec::new() }, writer: WireWriter(writer) })
    }

    /// Writes.
    ///
    /// # Errors
    /// The peer is gone, or takes nothing for [`PATIENCE`].
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write(bytes).await
    }

    /// Resets the connection, so that the peer sees an error and no end.
    ///
    /// # Panics
    /// The system refuses.
    pub fn reset(self) {
        let stream = self.reader.stream.reunite(self.writer.0).expect("two halves of one");
        stream.set_zero_linger().expect("a socket");
    }

    /// Writes a whole request while it reads the answer.
    ///
    /// # Errors
    /// No whole answer comes.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Message> {
        self.exchange_parts([request]).await
    }

    /// Writes a request part by part while it reads the answer.
    ///
    /// # Errors
    /// No whole answer comes.
    pub async fn exchange_parts(&mut self, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> io::Result<Message> {
        let Self { reader, writer } = self;
        let write = async {
            for part in parts {
                writer.write(part.as_ref()).await?;
            }
            Ok::<_, io::Error>(())
        };
        let (written, answer) = tokio::join!(write, reader.message());
        let answer = answer?.ok_or(io::ErrorKind::UnexpectedEof)?;
        written?;
        Ok(answer)
    }
}

/// The writing half.
#[derive(Debug)]
pub struct WireWriter(OwnedWriteHalf);

impl WireWriter {
    /// Writes.
    ///
    /// # Errors
    /// The peer is gone, or takes nothing for [`PATIENCE`].
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(PATIENCE, self.0.write_all(bytes)).await?
    }
}

/// The reading half.
#[derive(Debug)]
pub struct WireReader {
    stream: OwnedReadHalf,
    /// What came and was not asked for yet.
    buffer: Vec<u8>,
}

impl WireReader {
    /// The next head; none if the peer closes instead.
    ///
    /// # Errors
    /// The connection breaks, ends within the head, or nothing comes for [`PATIENCE`].
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(Some(Head { raw: self.buffer.drain(..end + 4).collect() }));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The next head and its whole body; none if the peer closes instead.
    ///
    /// # Errors
    /// As [`WireReader::head`], or the body is broken off.
    pub async fn message(&mut self) -> io::Result<Option<Message>> {
        let Some(head) = self.head().await? else { return Ok(None) };
        let mut reader = BodyReader::of(&head);
        let mut body = Vec::new();
        while let Some(part) = reader.part(self).await? {
            body.extend_from_slice(&part);
        }
        Ok(Some(Message { head, body }))
    }

    /// Waits until the peer closes or resets the connection; returns what it sent before.
    ///
    /// # Errors
    /// It stays open for [`PATIENCE`].
    pub async fn closed(mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.fill().await {
                Ok(0) => return Ok(self.buffer),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(_) => return Ok(self.buffer),
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await?
    }

    /// At most `most` bytes of what is there or comes next; none at the end.
    async fn some(&mut self, most: usize) -> io::Result<Vec<u8>> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        let length = self.buffer.len().min(most);
        Ok(self.buffer.drain(..length).collect())
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(line.trim_ascii_end().to_vec());
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Where in a body a reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyReader {
    /// So many bytes are left.
    Length(usize),
    /// In chunks, with so many bytes left of the chunk under way.
    Chunked(usize),
    /// As long as the connection lasts.
    UntilClosed,
    /// It has ended.
    Ended,
}

impl BodyReader {
    /// How the body after this head is framed. An answer to `HEAD` is not told apart.
    #[must_use]
    pub fn of(head: &Head) -> Self {
        if head.is_answer() && matches!(head.status(), 100..=199 | 204 | 304) {
            return Self::Ended;
        }
        if head.value("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Self::Chunked(0);
        }
        match head.value("content-length").map(|length| length.parse()) {
            Some(Ok(length)) => Self::Length(length),
            Some(Err(error)) => panic!("no length: {error}"),
            None if head.is_answer() => Self::UntilClosed,
            None => Self::Ended,
        }
    }

    /// The next bytes of the body as they come; none at its end.
    ///
    /// # Errors
    /// The connection breaks or ends within the body, or nothing comes for [`PATIENCE`].
    pub async fn part(&mut self, from: &mut WireReader) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Ended | Self::Length(0) => Ok(None),
            Self::UntilClosed => {
                let part = from.some(usize::MAX).await?;
                Ok((!part.is_empty()).then_some(part))
            }
            Self::Length(left) => {
                let part = from.some(*left).await?;
                *left -= part.len();
                if part.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(Some(part)) }
            }
            Self::Chunked(left) => {
                if *left == 0 {
                    let line = from.line().await?;
                    let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
                    let size = std::str::from_utf8(size).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
                    *left = size.ok_or_else(|| io::Error::other(format!("no chunk size: {line:?}")))?;
                    if *left == 0 {
                        // Trailers, up to an empty line.
                        while !from.line().await?.is_empty() {}
                        *self = Self::Ended;
                        return Ok(None);
                    }
                }
                let part = from.some(*left).await?;
                if part.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= part.len();
                if *left == 0 && !from.line().await?.is_empty() {
                    return Err(io::Error::other("a chunk is longer than it says"));
                }
                Ok(Some(part))
            }
        }
    }
}
