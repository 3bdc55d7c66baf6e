//! Reading from and writing to one side of the relay.

use std::io::{self, IoSlice};

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::stream::Source;

/// What is read at once: the messages of MCP are small.
const READ_BYTES: usize = 8 << 10;
/// The same of a body that has filled that.
const MAX_READ_BYTES: usize = 64 << 10;
/// What is read ahead of a peer that is only watched for its end.
const MAX_AHEAD_BYTES: usize = 64 << 10;

/// What came and has not gone on yet.
#[derive(Debug)]
pub(super) struct Input {
    bytes: BytesMut,
    /// How much is read at once.
    room: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), room: READ_BYTES }
    }
}

impl Input {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// So many bytes are done with.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes.min(self.bytes.len()));
    }

    /// Reads what is there, at least a byte; 0 at the end. Loses nothing when it is given up.
    pub(super) async fn read<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> io::Result<usize> {
        self.read_some(from, usize::MAX).await
    }

    /// The same, but no more than `most` bytes.
    pub(super) async fn read_some<R: AsyncRead + Unpin>(&mut self, from: &mut R, most: usize) -> io::Result<usize> {
        if self.bytes.is_empty() && self.bytes.capacity() > self.room {
            self.bytes = BytesMut::new();
        }
        self.bytes.reserve(self.room);
        let room = (self.bytes.capacity() - self.bytes.len()).min(most);
        let read = from.read_buf(&mut (&mut self.bytes).limit(room)).await?;
        self.room = if read == room { MAX_READ_BYTES } else { READ_BYTES };
        Ok(read)
    }

    /// Waits until the peer is gone, and says how. What it sends until then is kept as far as there is room; more than that is
    /// left where it is.
    pub(super) async fn gone<R: Source>(&mut self, from: &mut R) -> io::Error {
        while self.bytes.len() < MAX_AHEAD_BYTES {
            match self.read_some(from, MAX_AHEAD_BYTES - self.bytes.len()).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
        from.until_ended().await
    }
}

/// Writes all of them, together if the system takes them together.
pub(super) async fn write<W: AsyncWrite + Unpin>(to: &mut W, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Leaves out what is empty.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match to.write_vectored(slices).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut slices, written),
        }
    }
    to.flush().await
}
