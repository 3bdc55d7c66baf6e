//! How much the answers may hold: of memory, and of places for streams; all of them together, and those of one connection,
//! so that no client can take everything.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::codegen::Bytes;

use super::Config;

/// Longest piece of an answer that is not counted, in bytes: health fits, and always gets through.
const UNCOUNTED_BYTES: usize = 1 << 10;
/// The bytes that one permit stands for.
const UNIT_BYTES: usize = 1 << 10;
/// The part of everything that one connection may take: streams, and bytes.
const CONNECTION_PART: usize = 8;
/// Watches of `grpc.health.v1.Health` on one connection. They are small, and whether the instance is well can be watched
/// whatever else is: all connections together have no limit for them but their own number.
const WATCHES: usize = 16;

/// A number of permits, of which every connection may take a part.
#[derive(Clone, Debug)]
struct Pool {
    all: Arc<Semaphore>,
    size: usize,
    part: Arc<Semaphore>,
    part_size: usize,
}

/// Permits that were taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    _all: OwnedSemaphorePermit,
    _part: OwnedSemaphorePermit,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Not for anyone: of so many.
    All(usize),
    /// Not on this connection: of so many.
    Connection(usize),
}

impl Pool {
    fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        Self::with_part(size, (size / CONNECTION_PART).max(1))
    }

    fn with_part(size: usize, part_size: usize) -> Self {
        let semaphore = |size| Arc::new(Semaphore::new(size));
        Self { all: semaphore(size), size, part: semaphore(part_size), part_size }
    }

    /// The same pool for one more connection.
    fn for_connection(&self) -> Self {
        Self { part: Arc::new(Semaphore::new(self.part_size)), ..self.clone() }
    }

    /// Takes `number` permits. What is larger than the whole takes the whole.
    fn take(&self, number: usize) -> Result<Taken, Full> {
        let take = |from: &Arc<Semaphore>, size: usize| {
            let number = u32::try_from(number.min(size.max(1))).unwrap_or(u32::MAX);
            Arc::clone(from).try_acquire_many_owned(number).ok()
        };
        let part = take(&self.part, self.part_size).ok_or(Full::Connection(self.part_size))?;
        let all = take(&self.all, self.size).ok_or(Full::All(self.size))?;
        Ok(Taken { _all: all, _part: part })
    }
}

/// What the calls of one connection may take. Its clones share it.
#[derive(Clone, Debug)]
pub(super) struct Share {
    streams: Pool,
    watches: Pool,
    memory: Pool,
}

impl Share {
    pub(super) fn new(config: &Config) -> Self {
        let memory = Pool::new(config.max_held_bytes / UNIT_BYTES);
        let watches = Pool::with_part(Semaphore::MAX_PERMITS, WATCHES);
        Self { streams: Pool::new(config.max_streams), watches, memory }
    }

    /// That of one more connection.
    pub(super) fn for_connection(&self) -> Self {
        let Self { streams, watches, memory } = self;
        Self { streams: streams.for_connection(), watches: watches.for_connection(), memory: memory.for_connection() }
    }

    /// A place for a stream.
    pub(super) fn stream(&self) -> Result<Taken, Full> {
        self.streams.take(1)
    }

    /// A place for a watch of `grpc.health.v1.Health`.
    pub(super) fn watch(&self) -> Result<Taken, Full> {
        self.watches.take(1)
    }

    /// The same bytes, counted for as long as any part of them lies anywhere; none where there is no room for them.
    pub(super) fn hold(&self, bytes: Bytes) -> Option<Bytes> {
        if bytes.len() <= UNCOUNTED_BYTES {
            return Some(bytes);
        }
        let taken = self.memory.take(bytes.len().div_ceil(UNIT_BYTES)).ok()?;
        Some(Bytes::from_owner(Held { bytes, _taken: taken }))
    }
}

/// Bytes with what they take.
struct Held {
    bytes: Bytes,
    _taken: Taken,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(max_streams: usize, max_held_bytes: usize) -> Share {
        Share::new(&Config { max_streams, max_held_bytes, ..Config::default() })
    }

    #[test]
    fn one_connection_takes_its_part_and_all_together_the_whole() {
        let first = share(24, 1);
        let taken: Vec<_> = (0..3).map(|_| first.stream().unwrap()).collect();
        assert_eq!(first.stream().unwrap_err(), Full::Connection(3));
        let others: Vec<_> = (0..7).map(|_| first.for_connection()).collect();
        let more: Vec<_> = others.iter().flat_map(|other| (0..3).map(|_| other.stream().unwrap())).collect();
        assert_eq!(first.for_connection().stream().unwrap_err(), Full::All(24));
        drop(more);
        let _place = first.for_connection().stream().unwrap();
        drop(taken);
        first.stream().unwrap();
        share(0, 0).stream().unwrap_err();
        let watches: Vec<_> = (0..WATCHES).map(|_| first.watch().unwrap()).collect();
        assert_eq!(first.watch().unwrap_err(), Full::Connection(WATCHES));
        first.for_connection().watch().unwrap();
        drop(watches);
        first.watch().unwrap();
    }

    #[test]
    fn bytes_count_until_the_last_part_of_them_is_gone() {
        let first = share(1, 80 << 10);
        let answer = |length: usize| Bytes::from(vec![7; length]);
        let mut held = first.hold(answer(9 << 10)).unwrap();
        assert_eq!(first.hold(answer(1025)).as_deref(), None);
        let piece = held.split_to(10);
        drop(held);
        assert_eq!(first.hold(answer(1025)).as_deref(), None);
        assert_eq!(*piece, [7; 10]);
        // What is small, and other connections, have nothing to do with it.
        assert_eq!(first.hold(answer(1024)).unwrap().len(), 1024);
        assert_eq!(first.for_connection().hold(answer(9 << 10)).unwrap().len(), 9 << 10);
        drop(piece);
        assert_eq!(first.hold(answer(10 << 10)).unwrap().len(), 10 << 10);
    }

    #[test]
    fn what_is_larger_than_all_of_it_still_passes_alone() {
        let first = share(1, 80 << 10);
        let held = first.hold(Bytes::from(vec![7; 1 << 20])).unwrap();
        assert_eq!(first.hold(Bytes::from(vec![7; 1025])), None);
        assert_eq!(first.for_connection().hold(Bytes::from(vec![7; 1025])), None);
        drop(held);
        assert!(first.hold(Bytes::from(vec![7; 1 << 20])).is_some());
    }
}
