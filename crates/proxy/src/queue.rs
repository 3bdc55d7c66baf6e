//! What was read and waits to be written on, in all connections of a relay.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use mcpscope_core::Direction;

use crate::{Limits, Traffic};

/// What a connection reads at once while too much waits, in bytes. No connection is stopped altogether: those that nobody
/// takes anything from would stop all others with them.
const LEAST_READ: usize = 1 << 10;

/// What waits to be written on. A connection reads no more before it has written what it has read; this bounds all of them
/// together.
#[derive(Debug)]
pub(crate) struct Queue {
    max_messages: usize,
    max_bytes: usize,
    /// By direction.
    waiting: [Count; 2],
    is_crowded: AtomicBool,
}

/// Apart from its neighbour in memory: of a stdio relay each direction is written for every message.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queue {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            max_messages: limits.queue_messages,
            max_bytes: limits.queue_bytes,
            waiting: Default::default(),
            is_crowded: AtomicBool::new(false),
        }
    }

    /// So much waits as long as what is returned lives.
    pub(crate) fn wait(&self, direction: Direction, messages: usize, bytes: usize) -> Waiting<'_> {
        let Count { messages: all_messages, bytes: all_bytes } = self.count(direction);
        all_messages.fetch_add(messages, Ordering::Relaxed);
        all_bytes.fetch_add(bytes, Ordering::Relaxed);
        Waiting { queue: self, direction, messages, bytes }
    }

    /// So much waits this way, where there is one connection and one thread for each way: cheaper, for every message.
    pub(crate) fn set(&self, direction: Direction, messages: usize, bytes: usize) {
        let count = self.count(direction);
        count.messages.store(messages, Ordering::Relaxed);
        count.bytes.store(bytes, Ordering::Relaxed);
    }

    /// How much a connection may read at once, in bytes. A stdio relay, of which there is one, need not ask.
    pub(crate) fn room(&self) -> usize {
        let (messages, bytes) = self.total();
        if messages >= self.max_messages || bytes >= self.max_bytes {
            LEAST_READ
        } else {
            self.max_bytes.max(LEAST_READ)
        }
    }

    /// Says so if a limit is close, once until it is not any more.
    pub(crate) fn look(&self, traffic: Option<&Traffic>) {
        let (messages, bytes) = self.total();
        // Four fifths.
        let is_close = |used: usize, limit: usize| used >= limit - limit / 5;
        let is_crowded = is_close(messages, self.max_messages) || is_close(bytes, self.max_bytes);
        if self.is_crowded.swap(is_crowded, Ordering::Relaxed) == is_crowded {
            return;
        }
        let reason = is_crowded.then(|| {
            let [to_server, to_client] = [Direction::ToServer, Direction::ToClient]
                .map(|direction| self.count(direction).messages.load(Ordering::Relaxed));
            format!(
                "{messages} of {} messages and {bytes} of {} bytes wait to be written on: \
                 {to_server} messages to the server, {to_client} to clients",
                self.max_messages, self.max_bytes
            )
        });
        match &reason {
            Some(reason) => tracing::warn!("the queue is nearly full: {reason}"),
            None => tracing::info!("the queue is not full any more"),
        }
        if let Some(traffic) = traffic {
            traffic.is_crowded(reason);
        }
    }

    fn total(&self) -> (usize, usize) {
        let sum =
            |of: fn(&Count) -> &AtomicUsize| self.waiting.iter().map(|count| of(count).load(Ordering::Relaxed)).sum();
        (sum(|count| &count.messages), sum(|count| &count.bytes))
    }

    fn count(&self, direction: Direction) -> &Count {
        let [to_server, to_client] = &self.waiting;
        match direction {
            Direction::ToServer => to_server,
            Direction::ToClient => to_client,
        }
    }
}

/// Messages and bytes that wait as long as this lives.
#[derive(Debug)]
#[must_use = "dropping it takes them out of the queue"]
pub(crate) struct Waiting<'a> {
    queue: &'a Queue,
    direction: Direction,
    messages: usize,
    bytes: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Count { messages, bytes } = self.queue.count(self.direction);
        messages.fetch_sub(self.messages, Ordering::Relaxed);
        bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use mcpscope_health::State;

    use super::*;

    #[test]
    fn a_queue_that_is_nearly_full_is_told_of_until_it_is_not_and_a_full_one_lets_little_in() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let traffic = Traffic::new(reporter);
        traffic.works();
        let queue = Queue::new(&Limits { queue_messages: 10, queue_bytes: 1 << 20, ..Limits::default() });
        let transports = || {
            queue.look(Some(&traffic));
            let mut report = view.report(Instant::now(), SystemTime::now());
            let component = report.components.remove("transports").unwrap();
            (component.state, component.message)
        };
        let running = (State::Healthy, "Transports running".to_owned());
        let seven = queue.wait(Direction::ToClient, 7, 100);
        assert_eq!((transports(), queue.room()), (running.clone(), 1 << 20));
        let eighth = queue.wait(Direction::ToServer, 1, 100);
        let reason =
            "8 of 10 messages and 200 of 1048576 bytes wait to be written on: 1 messages to the server, 7 to clients";
        assert_eq!((transports(), queue.room()), ((State::Warning, reason.to_owned()), 1 << 20));
        assert!(view.readiness().ready, "it still works");
        let full = queue.wait(Direction::ToServer, 2, 100);
        assert_eq!((transports().0, queue.room()), (State::Warning, LEAST_READ));
        traffic.fails("connection refused");
        assert_eq!(transports(), (State::Critical, "connection refused".to_owned()), "the worse of both");
        traffic.works();
        assert_eq!(transports(), (State::Warning, reason.to_owned()), "it is still so");
        drop((full, eighth));
        assert_eq!((transports(), queue.room()), (running.clone(), 1 << 20));
        drop(seven);
        queue.set(Direction::ToServer, 0, 1 << 20);
        assert_eq!((transports().0, queue.room()), (State::Warning, LEAST_READ), "bytes count, too");
        queue.set(Direction::ToServer, 0, 0);
        assert_eq!(transports(), running);
    }
}
