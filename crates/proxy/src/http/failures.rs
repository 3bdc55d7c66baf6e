//! Failures that may come again and again, told now and then.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// From one warning to the next: whoever tries again and again shall not fill the log.
const QUIET: Duration = Duration::from_secs(60);

/// Failures of one kind, of which only some are told.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    /// Failures since then.
    untold: u64,
}

impl Failures {
    /// Whether one at `now` is to be told, and how many were not since the last that was.
    pub(super) fn tell(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            told.untold += 1;
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_then_one_a_minute_with_how_many_there_were() {
        let (failures, begun) = (Failures::default(), Instant::now());
        let tell = |seconds| failures.tell(begun + Duration::from_secs(seconds));
        assert_eq!([0, 1, 59, 60, 61, 119].map(tell), [Some(0), None, None, Some(2), None, None]);
        assert_eq!([1000, 1001, 5000, 6000].map(tell), [Some(2), None, Some(1), Some(0)]);
    }
}
