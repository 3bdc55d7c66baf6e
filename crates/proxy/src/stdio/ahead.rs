//! What the client writes while there is no server that it can be passed on to: read all the same, so that it is known since
//! when it waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::pump::retried;

/// So much of it at most, in bytes. More is left where it is, and counts from when it is read.
const MAX_BYTES: usize = 1 << 20;

/// The same in pieces.
const MAX_PIECES: usize = 1024;

/// What was read ahead, in order.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

/// What was read at once.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) at: Instant,
    pub(super) bytes: Vec<u8>,
}

impl Ahead {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Reads of these `there` bytes what there is room for, and waits for nothing. Returns how many those were.
    pub(super) fn read(&mut self, from: &OwnedFd, there: u64) -> io::Result<usize> {
        let room = if self.pieces.len() < MAX_PIECES { MAX_BYTES - self.bytes } else { 0 };
        let mut bytes = vec![0; usize::try_from(there).unwrap_or(usize::MAX).min(room)];
        if bytes.is_empty() {
            return Ok(0);
        }
        let read = retried(|| rustix::io::read(from, &mut bytes))?;
        bytes.truncate(read);
        if read > 0 {
            self.bytes += read;
            self.pieces.push_back(Piece { at: Instant::now(), bytes });
        }
        Ok(read)
    }

    /// What came first.
    pub(super) fn next(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.bytes.len();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_was_read_ahead_comes_in_order_with_its_time_and_no_more_than_there_is_room_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (from, mut ahead) = (OwnedFd::from(reader), Ahead::default());
        let begun = Instant::now();
        for piece in [&b"one"[..], b"two"] {
            writer.write_all(piece).unwrap();
            assert_eq!(ahead.read(&from, 3).unwrap(), 3);
        }
        let pieces: Vec<_> = std::iter::from_fn(|| ahead.next()).collect();
        assert_eq!(pieces.iter().map(|piece| &*piece.bytes).collect::<Vec<_>>(), [b"one", b"two"]);
        assert!(pieces.iter().map(|piece| piece.at).is_sorted() && pieces[0].at >= begun && ahead.is_empty());
        let mut read = 0;
        loop {
            writer.write_all(&[b'x'; 4096]).unwrap();
            match ahead.read(&from, 4096).unwrap() {
                0 => break,
                more => read += more,
            }
        }
        assert_eq!(read, MAX_BYTES);
        assert!(ahead.next().is_some_and(|piece| piece.bytes.len() == 4096));
        assert_eq!(ahead.read(&from, 4096).unwrap(), 4096, "there is room again");
        while ahead.next().is_some() {}
        for _ in 0..MAX_PIECES {
            writer.write_all(b"x").unwrap();
            assert_eq!(ahead.read(&from, 1).unwrap(), 1);
        }
        assert_eq!(ahead.read(&from, 1).unwrap(), 0);
    }
}
