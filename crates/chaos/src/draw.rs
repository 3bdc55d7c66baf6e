//! Random numbers that depend on nothing but what they are for.
//!
//! A ChaCha8 stream whose 256-bit key is what the numbers are for, and of which the n-th block belongs to the n-th message:
//! no state, no order of asking, no sharing. The key is not hashed into place, it is the key, so no two purposes collide.

use std::fmt;

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};
use mcpscope_core::Direction;

use crate::Scenario;

/// What a stream of draws is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key([u64; 4]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

// Distinct from every scenario's number.
const EXPERIMENT: u64 = 1 << 32;
const SCHEDULER: u64 = 2 << 32;
const CONNECTIONS: u64 = 3 << 32;
const CRASHES: u64 = 4 << 32;

impl Key {
    /// The messages that travel this way on the so-many-th connection that an experiment saw.
    pub(crate) fn messages(seed: u64, rule: Scenario, connection: u64, direction: Direction) -> Self {
        Self([seed, rule as u64, connection, direction as u64])
    }

    /// The choice among the connections that are there when an experiment starts.
    pub(crate) fn connections(seed: u64) -> Self {
        Self([seed, CONNECTIONS, 0, 0])
    }

    /// The crashes of the so-many-th target of an experiment.
    pub(crate) fn crashes(seed: u64, target: u64) -> Self {
        Self([seed, CRASHES, target, 0])
    }

    /// The ticks of a scheduler.
    pub(crate) fn scheduler(seed: u64) -> Self {
        Self([seed, SCHEDULER, 0, 0])
    }

    /// The numbers in the n-th block.
    pub(crate) fn block(self, ordinal: u64) -> Draws {
        let mut key = [0; 32];
        for (bytes, number) in key.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        let mut stream = ChaCha8Rng::from_seed(key);
        stream.set_block_pos(ordinal);
        Draws(stream)
    }
}

/// The seed of the so-many-th experiment of an engine with this seed. It is shown with the experiment, and starting one
/// with it repeats its decisions.
pub(crate) fn experiment_seed(engine: u64, ordinal: u64) -> u64 {
    // What JSON readers keep exactly.
    Key([engine, EXPERIMENT, ordinal, 0]).block(0).0.next_u64() >> 11
}

/// Numbers drawn one after the other. One block of the stream has eight; what needs more must have its blocks to itself.
#[derive(Debug)]
pub(crate) struct Draws(ChaCha8Rng);

impl Draws {
    /// A number in 0..1, from 53 bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number in 0..bound; `bound` is at least 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((self.unit() * bound as f64) as usize).min(bound.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(key: Key, ordinal: u64) -> Vec<f64> {
        let mut draws = key.block(ordinal);
        (0..8).map(|_| draws.unit()).collect()
    }

    #[test]
    fn a_draw_depends_on_its_key_and_ordinal_only() {
        let key = |seed, rule, connection, direction| Key::messages(seed, rule, connection, direction);
        let one = key(7, Scenario::PacketLoss, 0, Direction::ToServer);
        assert_eq!(draws(one, 5), draws(one, 5));
        let others = [
            draws(one, 4),
            draws(one, 6),
            draws(key(8, Scenario::PacketLoss, 0, Direction::ToServer), 5),
            draws(key(7, Scenario::LatencyInjection, 0, Direction::ToServer), 5),
            draws(key(7, Scenario::PacketLoss, 1, Direction::ToServer), 5),
            draws(key(7, Scenario::PacketLoss, 0, Direction::ToClient), 5),
        ];
        for other in others {
            assert!(draws(one, 5).iter().all(|draw| !other.contains(draw)));
        }
    }

    /// The stream must be the same in every version: journals are replayed with it.
    #[test]
    fn the_stream_is_chacha8() {
        let first = Key::messages(0, Scenario::LatencyInjection, 0, Direction::ToServer).block(0).0.next_u64();
        // First eight bytes of the keystream of ChaCha8 with key and nonce zero (draft-strombergson-chacha-test-vectors).
        assert_eq!(first.to_le_bytes(), [0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]);
    }

    #[test]
    fn draws_are_even() {
        let key = Key::messages(1, Scenario::PacketLoss, 0, Direction::ToServer);
        let mut cells = [0_u32; 10];
        (0..20_000).for_each(|ordinal| cells[key.block(ordinal).below(10)] += 1);
        let square: f64 = cells.iter().map(|cell| (f64::from(*cell) - 2000.0).powi(2) / 2000.0).sum();
        // 99.99 % point of chi-square with 9 degrees of freedom.
        assert!(square < 33.72, "{square}: {cells:?}");
    }
}
