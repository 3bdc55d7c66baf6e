//! What is normal: samples of the watched system and checks on them.

use std::fmt;
use std::time::{Duration, Instant};

use mcpscope_core::{FaultId, Ratio};
use serde::{Deserialize, Serialize};

/// Tells how the watched system is doing. It is asked in the middle of the controller's commands, so it must not call it.
pub trait SteadyState: fmt::Debug + Send + Sync {
    /// What was seen in this time. Calls that a fault touched are told apart ([`Sample::touched`]): injected outcomes never
    /// count.
    fn sample(&self, window: &Window) -> Sample;
}

/// Which calls a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Those that ended after this, to a tenth of a second, in windows that follow each other each once,
    pub from: Instant,
    /// up to this,
    pub until: Instant,
    /// and began at this time or later; of those that a fault touched ([`Sample::touched`]) also those that began before.
    pub began_since: Option<Instant>,
    /// Of those that were touched: by this fault; none: by any.
    pub touched_by: Option<FaultId>,
}

impl Window {
    /// The second before `now`.
    pub(crate) fn second(now: Instant) -> Self {
        Self { from: now.checked_sub(SECOND).unwrap_or(now), until: now, began_since: None, touched_by: None }
    }
}

/// The watched system in some time. What nobody looks at is none, not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// Calls that ended and that no fault touched.
    pub calls: u64,
    /// Those of them that ended with an error of the server.
    pub errors: u64,
    /// The median of their durations, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// The 95th percentile, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<f64>,
    /// The 99th percentile, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// The share of the components that are healthy, 0..=1, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<f64>,
    /// Clients' requests with an id that another request of their session had had before, of the newest 256 since the beginning of
    /// the experiment, or of the first of those that run at the same time. A retry under an id of its own, which the protocol asks
    /// for, cannot be told from another call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeated: Option<u64>,
    /// Answers of servers to requests that had been answered before, of the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// The calls that a fault touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub touched: Option<Touched>,
}

/// Calls that ended and that a fault touched. Beside those that none touched in the same time they show what it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Touched {
    /// How many.
    pub calls: u64,
    /// Those of them that ended with an error, injected or not.
    pub errors: u64,
    /// The median of their durations, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// The 95th percentile, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95_ms: Option<f64>,
    /// The 99th percentile, in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
}

impl Touched {
    /// The share of them that ended with an error; none without calls.
    #[must_use]
    pub fn error_rate(&self) -> Option<f64> {
        rate(self.errors, self.calls)
    }
}

fn rate(errors: u64, calls: u64) -> Option<f64> {
    (calls > 0).then(|| errors as f64 / calls as f64)
}

impl Sample {
    /// The share of the calls that ended with an error; none without calls.
    #[must_use]
    pub fn error_rate(&self) -> Option<f64> {
        rate(self.errors, self.calls)
    }
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The share of the calls that end with an error.
    ErrorRate,
    /// A percentile of the durations of calls, in ms.
    P50,
    /// Likewise.
    P95,
    /// Likewise.
    P99,
    /// The share of the components that are healthy.
    Healthy,
}

impl Subject {
    const ALL: [Self; 5] = [Self::ErrorRate, Self::P50, Self::P95, Self::P99, Self::Healthy];

    const fn as_str(self) -> &'static str {
        match self {
            Self::ErrorRate => "error_rate",
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::Healthy => "healthy",
        }
    }

    fn of(self, sample: &Sample) -> Option<f64> {
        match self {
            Self::ErrorRate => sample.error_rate(),
            Self::P50 => sample.p50_ms,
            Self::P95 => sample.p95_ms,
            Self::P99 => sample.p99_ms,
            Self::Healthy => sample.healthy,
        }
    }
}

/// How a value is compared with a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

impl Comparison {
    // The longer ones first, so that they are found first.
    const ALL: [Self; 4] = [Self::AtMost, Self::AtLeast, Self::Less, Self::More];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::More => ">",
            Self::AtLeast => ">=",
        }
    }

    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::AtMost => value <= bound,
            Self::More => value > bound,
            Self::AtLeast => value >= bound,
        }
    }
}

/// One condition on a sample: `error_rate < 0.05`, `p95 < 500` (ms), `healthy >= 0.7`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// What it is about.
    pub subject: Subject,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub bound: f64,
}

/// What checks are to look like.
pub(crate) const CHECKS: &str =
    "error_rate, p50, p95, p99 (ms) or healthy, then <, <=, > or >=, then a number; several are separated by commas";

/// A text is no list of checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no check: expected {CHECKS}")]
pub struct CheckError(
    /// What was given.
    pub String,
);

impl Check {
    /// Reads checks that are separated by commas.
    ///
    /// # Errors
    /// One of them is no check.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, CheckError> {
        text.split(',').map(|part| Self::parse(part.trim())).collect()
    }

    fn parse(text: &str) -> Result<Self, CheckError> {
        let comparison = Comparison::ALL.into_iter().find(|comparison| text.contains(comparison.as_str()));
        let parsed = comparison.and_then(|comparison| {
            let (name, bound) = text.split_once(comparison.as_str())?;
            let subject = Subject::ALL.into_iter().find(|subject| subject.as_str() == name.trim())?;
            let bound = bound.trim().parse().ok().filter(|bound: &f64| bound.is_finite())?;
            Some(Self { subject, comparison, bound })
        });
        parsed.ok_or_else(|| CheckError(crate::parameter::excerpt(text)))
    }

    /// Whether it holds; none if the sample does not say.
    #[must_use]
    pub fn holds(&self, sample: &Sample) -> Option<bool> {
        self.subject.of(sample).map(|value| self.comparison.holds(value, self.bound))
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.subject.as_str(), self.comparison.as_str(), self.bound)
    }
}

/// The first check that does not hold.
pub(crate) fn broken<'a>(checks: &'a [Check], sample: &Sample) -> Option<&'a Check> {
    checks.iter().find(|check| check.holds(sample) == Some(false))
}

/// The first check that holds.
pub(crate) fn met<'a>(checks: &'a [Check], sample: &Sample) -> Option<&'a Check> {
    checks.iter().find(|check| check.holds(sample) == Some(true))
}

/// How long a sample is.
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// How many good ones in a row mean that all is well again.
const IN_A_ROW: u32 = 3;

/// Watches samples after the end of a fault until enough of them are good.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovery {
    fault_end: Instant,
    limit: Duration,
    /// When the good ones in a row began, and how many there are.
    streak: Option<(Instant, u32)>,
    last_was_bad: bool,
    /// Since the end of the fault.
    was_ever_bad: bool,
}

/// What became of the watched system after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// So long after the end of the fault.
    After(Duration),
    /// There were too few calls to judge by.
    NotObserved,
    /// Not in time.
    TooLate,
}

impl Recovery {
    pub(crate) fn new(fault_end: Instant, limit: Duration) -> Self {
        Self { fault_end, limit, streak: None, last_was_bad: false, was_ever_bad: false }
    }

    /// When it must be decided.
    fn deadline(&self) -> Instant {
        self.fault_end + self.limit + SECOND * IN_A_ROW
    }

    /// Takes a sample of the second before `now`, over calls that began after the end of the fault.
    pub(crate) fn take(&mut self, checks: &[Check], sample: &Sample, now: Instant) -> Option<Recovered> {
        if broken(checks, sample).is_some() {
            self.last_was_bad = true;
            self.was_ever_bad = true;
            self.streak = None;
        } else if sample.calls > 0 {
            let began = now.checked_sub(SECOND).unwrap_or(now).max(self.fault_end);
            let (began, count) = self.streak.map_or((began, 1), |(began, count)| (began, count + 1));
            self.streak = Some((began, count));
            self.last_was_bad = false;
            let after = began - self.fault_end;
            if count >= IN_A_ROW {
                return Some(match after <= self.limit {
                    true => Recovered::After(after),
                    false if self.was_ever_bad => Recovered::TooLate,
                    // All was good from the first call on, but that came after the limit: nobody knows since when.
                    false => Recovered::NotObserved,
                });
            }
        }
        (now >= self.deadline()).then_some(if self.last_was_bad { Recovered::TooLate } else { Recovered::NotObserved })
    }
}

/// The share of the components that must be healthy for an experiment to start.
pub(crate) fn is_healthy_enough(sample: &Sample, least: Ratio) -> bool {
    sample.healthy.is_none_or(|healthy| healthy >= least.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(calls: u64, errors: u64) -> Sample {
        Sample { calls, errors, ..Sample::default() }
    }

    #[test]
    fn checks_are_read_as_people_write_them() {
        let checks = Check::parse_all("error_rate < 0.05, p95<=500,healthy >= 0.7").unwrap();
        let texts: Vec<_> = checks.iter().map(Check::to_string).collect();
        assert_eq!(texts, ["error_rate < 0.05", "p95 <= 500", "healthy >= 0.7"]);
        for bad in ["", "error_rate", "error_rate < x", "p42 < 1", "error_rate < NaN", "p95 < 5,"] {
            assert!(Check::parse_all(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sample_that_does_not_say_breaks_nothing() {
        let checks = Check::parse_all("error_rate < 0.05, p95 < 500").unwrap();
        assert_eq!(broken(&checks, &sample(0, 0)), None);
        assert_eq!(broken(&checks, &sample(100, 4)), None);
        assert_eq!(broken(&checks, &sample(100, 5)), Some(&checks[0]));
    }

    /// One sample each second after the end of a fault: (calls, errors).
    #[track_caller]
    fn check_recovery(limit: u64, samples: &[(u64, u64)], expected: Recovered) {
        let end = Instant::now();
        let checks = Check::parse_all("error_rate < 0.05").unwrap();
        let mut recovery = Recovery::new(end, Duration::from_secs(limit));
        for (second, (calls, errors)) in (1..).zip(samples) {
            if let Some(recovered) = recovery.take(&checks, &sample(*calls, *errors), end + SECOND * second) {
                assert_eq!((recovered, second as usize), (expected, samples.len()));
                return;
            }
        }
        panic!("undecided after {} samples", samples.len());
    }

    #[test]
    fn three_good_samples_in_a_row_are_a_recovery() {
        let seconds = |n| Recovered::After(Duration::from_secs(n));
        let (good, bad, none) = ((10, 0), (10, 10), (0, 0));
        check_recovery(1, &[good, good, good], seconds(0));
        check_recovery(1, &[bad, good, good, good], seconds(1));
        check_recovery(5, &[good, bad, good, none, good, good], seconds(2));
        check_recovery(1, &[bad, bad, good, good], Recovered::NotObserved);
        check_recovery(1, &[bad, bad, bad, bad], Recovered::TooLate);
        check_recovery(2, &[good, good, bad, bad, bad], Recovered::TooLate);
        check_recovery(1, &[none, none, none, none], Recovered::NotObserved);
    }

    #[test]
    fn a_recovery_that_nobody_could_have_seen_in_time_is_not_observed() {
        let (end, limit) = (Instant::now(), 2 * SECOND);
        let checks = Check::parse_all("error_rate < 0.05").unwrap();
        let judged = |first: Sample| {
            let mut recovery = Recovery::new(end, limit);
            let samples = [first, sample(0, 0), sample(10, 0), sample(10, 0), sample(10, 0)];
            let mut at = end + SECOND / 2;
            samples.iter().find_map(|sample| {
                at += SECOND;
                recovery.take(&checks, sample, at)
            })
        };
        // All was good from the first call on, which came after the limit.
        assert_eq!(judged(sample(0, 0)), Some(Recovered::NotObserved));
        // That it was not well had been seen.
        assert_eq!(judged(sample(10, 10)), Some(Recovered::TooLate));
    }
}
