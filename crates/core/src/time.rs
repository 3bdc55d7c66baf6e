//! Monotonic time inside, wall time at the edge.

use std::time::{Instant, SystemTime};

/// One moment on both clocks, taken once, so that every monotonic time has one wall time.
#[derive(Clone, Copy, Debug)]
pub struct ClockAnchor {
    /// The moment on the monotonic clock.
    pub mono: Instant,
    /// The same moment on the wall clock.
    pub wall: SystemTime,
}

impl ClockAnchor {
    /// The wall time of a monotonic time.
    #[must_use]
    pub fn wall_at(&self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.mono) {
            Some(after) => self.wall + after,
            None => self.wall - self.mono.duration_since(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::ClockAnchor;

    #[test]
    fn maps_before_and_after_the_anchor() {
        let anchor = ClockAnchor { mono: Instant::now() + Duration::from_secs(10), wall: SystemTime::UNIX_EPOCH };
        let second = Duration::from_secs(1);
        assert_eq!(anchor.wall_at(anchor.mono + second), anchor.wall + second);
        assert_eq!(anchor.wall_at(anchor.mono - second), anchor.wall - second);
    }
}
