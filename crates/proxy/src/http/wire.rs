//! Reading from and writing to one side of the relay.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::Instant;

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
    /// What is allocated for them, of which they tell only what is behind their beginning.
    allocated: usize,
    /// How much is read at once.
    room: usize,
    /// When something last came while its sender was only watched for its end.
    last_ahead: Option<Instant>,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), allocated: 0, room: READ_BYTES, last_ahead: None }
    }
}

impl Input {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Since when what is here has waited, of a sender who was only watched for its end from `begun` on; and whether more of it
    /// did, for which there was no room.
    pub(super) fn waited(&self, begun: Instant) -> (Instant, bool) {
        (self.last_ahead.map_or(begun, |at| at.max(begun)), self.bytes.len() >= MAX_AHEAD_BYTES)
    }

    /// So many bytes are done with.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes.min(self.bytes.len()));
    }

    /// Reads what is there, at least a byte; 0 at the end. Loses nothing when it is given up.
    pub(super) async fn read<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> io::Result<usize> {
        self.read_some(from, || usize::MAX).await
    }

    /// The same, but no more than `most` bytes, as it is when there is something to read: that may be long after this is called.
    pub(super) async fn read_some<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        most: impl Fn() -> usize,
    ) -> io::Result<usize> {
        poll_fn(|cx| {
            let most = most();
            // Who may not read so much needs no buffer for it.
            let wanted = if most < self.room { READ_BYTES } else { self.room };
            if self.bytes.is_empty() && self.allocated != wanted {
                (self.bytes, self.allocated) = (BytesMut::with_capacity(wanted), wanted);
            } else {
                self.bytes.reserve(wanted);
                self.allocated = self.allocated.max(self.bytes.capacity());
            }
            let free = self.bytes.capacity() - self.bytes.len();
            let read = ready!(pin!(from.read_buf(&mut (&mut self.bytes).limit(free.min(most)))).poll(cx))?;
            self.room = if read == free { MAX_READ_BYTES } else { READ_BYTES };
            Poll::Ready(Ok(read))
        })
        .await
    }

    /// Waits until the peer is gone, and says how. What it sends until then is kept as far as there is room; more than that is
    /// left where it is.
    pub(super) async fn gone<R: Source>(&mut self, from: &mut R) -> io::Error {
        while self.bytes.len() < MAX_AHEAD_BYTES {
            let most = MAX_AHEAD_BYTES - self.bytes.len();
            match self.read_some(from, || most).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => self.last_ahead = Some(Instant::now()),
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_may_be_read_is_what_may_be_when_it_comes() {
        let (mut peer, mut from) = tokio::io::duplex(64 << 10);
        let (mut input, most) = (Input::default(), Cell::new(usize::MAX));
        let reading = input.read_some(&mut from, || most.get());
        let writing = async {
            // It waits already.
            most.set(1 << 10);
            peer.write_all(&[b'x'; 4 << 10]).await.unwrap();
        };
        let (read, ()) = tokio::join!(biased; reading, writing);
        assert_eq!(read.unwrap(), 1 << 10);
    }

    #[tokio::test]
    async fn who_may_read_little_has_a_small_buffer() {
        let mut from = tokio::io::repeat(b'x');
        let mut input = Input::default();
        for (most, expected, capacity) in [
            (1 << 10, 1 << 10, READ_BYTES),
            (1 << 10, 1 << 10, READ_BYTES),
            // Without a limit it grows, and shrinks again with the first that is below.
            (usize::MAX, READ_BYTES, READ_BYTES),
            (usize::MAX, MAX_READ_BYTES, MAX_READ_BYTES),
            (1 << 10, 1 << 10, READ_BYTES),
        ] {
            assert_eq!(input.read_some(&mut from, || most).await.unwrap(), expected);
            assert_eq!(input.bytes.capacity(), capacity);
            input.advance(usize::MAX);
        }
    }
}
