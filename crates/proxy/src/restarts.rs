//! When a crashed server is started again, and when no more.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use mcpscope_core::FaultId;

/// How a server that we start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It is to be started for the first time.
    Starting,
    /// It takes what the client sends, or it will in a moment. The number is the process id, if it still lives.
    Serving(Option<u32>),
    /// It crashed, and is started for the n-th time since it was healthy; or it was, and does not know of the session yet.
    Restarting {
        /// From 1.
        attempt: u32,
        /// If the process was ended because it accepted no connections: how long it had been given.
        start_timeout: Option<Duration>,
    },
    /// It was crashed by `process_crash`, and is started again.
    RestartingAfter {
        /// The experiment.
        fault: FaultId,
    },
    /// It crashed too often and is not started any more.
    GivenUp {
        /// How often.
        crashes: usize,
        /// Within what time, without that in which it was only waited for a process to accept connections, or for its answer to the
        /// replayed `initialize`.
        within: Duration,
        /// If the last process was ended because it accepted no connections: how long it had been given.
        start_timeout: Option<Duration>,
    },
    /// It ended and is not started again: it ended well, or crashes are none of our business.
    Ended {
        /// None if it could not even be started.
        status: Option<ExitStatus>,
    },
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("server starting"),
            Self::Serving(_) => f.write_str("server running"),
            Self::Restarting { attempt, start_timeout } => {
                write!(f, "server restarting, attempt {attempt}")?;
                let waited = start_timeout.map(NotListening);
                waited.map_or(Ok(()), |waited| write!(f, " ({waited})"))
            }
            Self::RestartingAfter { fault } => {
                write!(f, "server restarting after process_crash of experiment {}", fault.0)
            }
            Self::GivenUp { crashes, within, start_timeout: None } => {
                write!(f, "server given up after {crashes} crashes in {} s", within.as_secs_f64())
            }
            Self::GivenUp { crashes, start_timeout: Some(limit), .. } => {
                write!(f, "server given up after {crashes} crashes (the last: {})", NotListening(*limit))
            }
            Self::Ended { status: Some(status) } => write!(f, "server ended ({status})"),
            Self::Ended { status: None } => f.write_str("server cannot be started"),
        }
    }
}

/// Why a process that ran was ended: how long it had been given.
pub(crate) struct NotListening(pub(crate) Duration);

impl fmt::Display for NotListening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accepted no connections within {} s", self.0.as_secs_f64())
    }
}

/// How often and how soon a crashed server is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// The wait before the first restart; it doubles with each one that follows. Each crash by a fault is waited for as long as
    /// this: it says nothing of the server. Default: 200 ms.
    pub backoff_min: Duration,
    /// The longest wait. Default: 30 s.
    pub backoff_max: Duration,
    /// A server that ran for this long before it crashed is started as if it were the first time. Default: 60 s.
    pub healthy_after: Duration,
    /// With so many crashes within [`RestartPolicy::give_up_window`] it is not started any more. Those by a fault do not
    /// count. Default: 5.
    pub give_up: usize,
    /// Default: 60 s.
    pub give_up_window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            healthy_after: Duration::from_secs(60),
            give_up: 5,
            give_up_window: Duration::from_secs(60),
        }
    }
}

/// Tells of the end of a server that was not wanted, and of what follows it.
pub(crate) fn tell(
    server: &str,
    command: &OsStr,
    why: &dyn fmt::Display,
    decision: Option<Decision>,
    start_timeout: Option<Duration>,
) {
    match decision {
        None => tracing::warn!(server, ?command, %why, "the server ended and is not started again"),
        Some(Decision::GiveUp { crashes, within }) => {
            tracing::warn!(server, ?command, %why, "{}", ServerState::GivenUp { crashes, within, start_timeout });
        }
        Some(Decision::Restart { attempt, after }) => {
            tracing::warn!(server, ?command, %why, attempt, ?after, "the server crashed and will be started again");
        }
        Some(Decision::RestartAfter { fault: FaultId(experiment), after }) => tracing::warn!(
            server,
            ?command,
            %why,
            ?after,
            "process_crash of experiment {experiment} crashed the server, which will be started again"
        ),
    }
}

/// What to do about a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start it again, for the n-th time since it was healthy (from 1), after this wait.
    Restart { attempt: u32, after: Duration },
    /// Start it again after this wait: a fault crashed it.
    RestartAfter { fault: FaultId, after: Duration },
    /// Leave it: that were too many crashes.
    GiveUp { crashes: usize, within: Duration },
}

impl Decision {
    /// How the server is then, and how long until it is started again, if it is. `start_timeout` is how long it had been given if it
    /// was ended because it accepted no connections.
    pub(crate) const fn outcome(self, start_timeout: Option<Duration>) -> (ServerState, Option<Duration>) {
        match self {
            Self::Restart { attempt, after } => (ServerState::Restarting { attempt, start_timeout }, Some(after)),
            Self::RestartAfter { fault, after } => (ServerState::RestartingAfter { fault }, Some(after)),
            Self::GiveUp { crashes, within } => (ServerState::GivenUp { crashes, within, start_timeout }, None),
        }
    }
}

/// Decides about the crashes of one server. It knows no clock: who asks says when.
#[derive(Debug)]
pub(crate) struct Restarts {
    policy: RestartPolicy,
    /// Before the next restart.
    wait: Duration,
    attempt: u32,
    /// The latest crashes that were by no fault, at most as many as it takes to give up.
    crashes: VecDeque<Instant>,
}

impl Restarts {
    pub(crate) fn new(policy: RestartPolicy) -> Self {
        Self { policy, wait: policy.backoff_min, attempt: 0, crashes: VecDeque::new() }
    }

    /// The server that was `started` then accepted no connections, or did not answer the replayed `initialize`, and has been ended for
    /// that `now`. It was not healthy, however
    /// long it ran; and as nothing else could become of it in that time, the crashes before are no longer ago than when it was started.
    pub(crate) fn did_not_listen(&mut self, started: Instant, by: Option<FaultId>, now: Instant) -> Decision {
        let waited = now.saturating_duration_since(started);
        for crash in &mut self.crashes {
            *crash = crash.checked_add(waited).unwrap_or(now);
        }
        self.crashed(now, by, now)
    }

    /// The server that was `started` then has crashed `now`, by itself or by a fault; one that could not be started crashed
    /// at once.
    pub(crate) fn crashed(&mut self, started: Instant, by: Option<FaultId>, now: Instant) -> Decision {
        let RestartPolicy { backoff_min, backoff_max, healthy_after, give_up, give_up_window } = self.policy;
        if now.saturating_duration_since(started) >= healthy_after {
            self.wait = backoff_min;
            self.attempt = 0;
        }
        self.crashes.retain(|crash| now.saturating_duration_since(*crash) < give_up_window);
        if let Some(fault) = by {
            // Whoever measures how long a recovery takes measures the same each time.
            return Decision::RestartAfter { fault, after: backoff_min.min(backoff_max) };
        }
        self.crashes.push_back(now);
        if self.crashes.len() >= give_up {
            return Decision::GiveUp { crashes: self.crashes.len(), within: give_up_window };
        }
        self.attempt = self.attempt.saturating_add(1);
        // Without jitter: there is one server behind one client, and nobody to keep out of step with.
        let after = self.wait.min(backoff_max);
        self.wait = after.saturating_mul(2);
        Decision::Restart { attempt: self.attempt, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn restart(attempt: u32, millis: u64) -> Decision {
        Decision::Restart { attempt, after: Duration::from_millis(millis) }
    }

    /// What is decided about servers that crash so long after their start, each started after the wait for it.
    fn decisions(policy: RestartPolicy, lives: &[u64]) -> Vec<Decision> {
        let mut restarts = Restarts::new(policy);
        let mut now = Instant::now();
        let decide = |life: &u64| {
            let started = now;
            now += Duration::from_millis(*life);
            let decision = restarts.crashed(started, None, now);
            if let Decision::Restart { after, .. } = decision {
                now += after;
            }
            decision
        };
        lives.iter().map(decide).collect()
    }

    #[test]
    fn five_crashes_within_a_minute_are_too_many() {
        let give_up = Decision::GiveUp { crashes: 5, within: Duration::from_secs(60) };
        let expected = [restart(1, 200), restart(2, 400), restart(3, 800), restart(4, 1600), give_up];
        assert_eq!(decisions(RestartPolicy::default(), &[0; 5]), expected);
    }

    #[test]
    fn crashes_further_apart_are_waited_for_longer_and_longer() {
        let found = decisions(RestartPolicy::default(), &[20_000; 11]);
        let waits = [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000];
        let expected: Vec<_> = (1..).zip(waits).map(|(attempt, wait)| restart(attempt, wait)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_server_that_was_healthy_begins_anew() {
        let found = decisions(RestartPolicy::default(), &[0, 59_999, 60_000, 0]);
        assert_eq!(found, [restart(1, 200), restart(2, 400), restart(1, 200), restart(2, 400)]);
    }

    #[test]
    fn who_never_listens_is_given_up_however_long_it_was_waited_for() {
        let mut restarts = Restarts::new(RestartPolicy::default());
        let mut now = Instant::now();
        for (attempt, wait) in [(1, 200), (2, 400), (3, 800), (4, 1600)] {
            // Longer than it takes to be healthy, and than crashes count.
            let started = now;
            now += Duration::from_secs(90);
            assert_eq!(restarts.did_not_listen(started, None, now), restart(attempt, wait));
            now += Duration::from_millis(wait);
        }
        let give_up = Decision::GiveUp { crashes: 5, within: Duration::from_secs(60) };
        assert_eq!(restarts.did_not_listen(now, None, now + Duration::from_secs(90)), give_up);
    }

    #[test]
    fn what_could_be_called_in_between_lets_the_crashes_before_be_over() {
        let policy = RestartPolicy { give_up: 2, ..RestartPolicy::default() };
        let (mut restarts, start) = (Restarts::new(policy), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(restarts.did_not_listen(at(0), None, at(90)), restart(1, 200));
        assert_eq!(restarts.crashed(at(90), None, at(150)), restart(1, 200));
        let give_up = Decision::GiveUp { crashes: 2, within: Duration::from_secs(60) };
        assert_eq!(restarts.did_not_listen(at(150), None, at(240)), give_up);
    }

    #[test]
    fn a_state_says_why_in_plain_words() {
        let (start_timeout, within) = (Some(Duration::from_secs(90)), Duration::from_secs(60));
        for (state, said) in [
            (ServerState::Restarting { attempt: 2, start_timeout: None }, "server restarting, attempt 2"),
            (
                ServerState::Restarting { attempt: 2, start_timeout },
                "server restarting, attempt 2 (accepted no connections within 90 s)",
            ),
            (
                ServerState::GivenUp { crashes: 5, within, start_timeout: None },
                "server given up after 5 crashes in 60 s",
            ),
            (
                ServerState::GivenUp { crashes: 5, within, start_timeout },
                "server given up after 5 crashes (the last: accepted no connections within 90 s)",
            ),
        ] {
            assert_eq!(state.to_string(), said);
        }
    }

    #[test]
    fn crashes_by_a_fault_are_none_of_too_many_and_make_no_wait_longer() {
        let policy = RestartPolicy { give_up: 3, ..RestartPolicy::default() };
        let (mut restarts, now) = (Restarts::new(policy), Instant::now());
        let fault = FaultId(1);
        let at_once = Decision::RestartAfter { fault, after: Duration::from_millis(200) };
        for _ in 0..20 {
            assert_eq!(restarts.crashed(now, Some(fault), now), at_once);
        }
        assert_eq!(restarts.crashed(now, None, now), restart(1, 200), "the first by itself");
        assert_eq!(restarts.crashed(now, Some(fault), now), at_once, "not the second");
        assert_eq!(restarts.crashed(now, None, now), restart(2, 400));
        assert_eq!(restarts.crashed(now, Some(fault), now), at_once);
        let give_up = Decision::GiveUp { crashes: 3, within: Duration::from_secs(60) };
        assert_eq!(restarts.crashed(now, None, now), give_up);
    }

    #[test]
    fn a_crash_leaves_the_window_when_its_time_is_up() {
        let policy = RestartPolicy { give_up: 2, give_up_window: Duration::from_secs(1), ..RestartPolicy::default() };
        assert_eq!(decisions(policy, &[0, 800]), [restart(1, 200), restart(2, 400)], "exactly a second after");
        let give_up = Decision::GiveUp { crashes: 2, within: Duration::from_secs(1) };
        assert_eq!(decisions(policy, &[0, 799]), [restart(1, 200), give_up]);
        let never = RestartPolicy { give_up: 1, ..policy };
        assert_eq!(decisions(never, &[5000]), [Decision::GiveUp { crashes: 1, within: Duration::from_secs(1) }]);
    }
}
