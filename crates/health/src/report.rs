//! The states of components, and the rule that makes one word of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

/// How one component is; ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It works, or has nothing to do.
    Healthy,
    /// It works, but not as it should.
    Warning,
    /// It does not work.
    Critical,
}

impl State {
    /// `healthy`, `warning` or `critical`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the whole instance is; ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Overall {
    /// All components are healthy, or there are none.
    Healthy,
    /// At least 80 % are.
    Degraded,
    /// At least half are.
    Warning,
    /// Fewer are.
    Critical,
}

impl Overall {
    /// `healthy`, `degraded`, `warning` or `critical`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The rule (behaviour HE2). In whole numbers, so that 4 of 5 is not a matter of rounding.
    pub(crate) const fn of(healthy: usize, total: usize) -> Self {
        if healthy >= total {
            Self::Healthy
        } else if healthy * 5 >= total * 4 {
            Self::Degraded
        } else if healthy * 2 >= total {
            Self::Warning
        } else {
            Self::Critical
        }
    }
}

impl fmt::Display for Overall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How one component is, and since when.
#[derive(Clone, Debug, PartialEq)]
pub struct ComponentReport {
    /// Its state: the worse of what its owner says and what was seen of it.
    pub state: State,
    /// What there is to say about it.
    pub message: String,
    /// When the state last changed; a new message alone does not change it.
    pub since: SystemTime,
    /// Operations per second, if known.
    pub rate: Option<f64>,
    /// How many there are of what the component keeps, such as sessions; if known.
    pub count: Option<u64>,
}

/// How the instance is at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The whole, by the rule of [`Overall`].
    pub overall: Overall,
    /// The share of healthy components, 0..=1; 1 if there are none.
    pub health_percentage: f64,
    /// The components by name.
    pub components: BTreeMap<String, ComponentReport>,
    /// How long the instance has been running.
    pub uptime: Duration,
    /// When the report was made.
    pub timestamp: SystemTime,
}

impl Report {
    pub(crate) fn new(components: BTreeMap<String, ComponentReport>, uptime: Duration, timestamp: SystemTime) -> Self {
        let total = components.len();
        let healthy = components.values().filter(|component| component.state == State::Healthy).count();
        let health_percentage = if total == 0 { 1.0 } else { healthy as f64 / total as f64 };
        Self { overall: Overall::of(healthy, total), health_percentage, components, uptime, timestamp }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(states: &[State]) -> Report {
        let at = SystemTime::UNIX_EPOCH;
        let component = |state: &State| ComponentReport {
            state: *state,
            message: String::new(),
            since: at,
            rate: None,
            count: None,
        };
        let components = states.iter().enumerate().map(|(n, state)| (n.to_string(), component(state))).collect();
        Report::new(components, Duration::ZERO, at)
    }

    fn state() -> impl Strategy<Value = State> {
        // Mostly healthy: the upper thresholds are where the rule has its corners.
        prop_oneof![4 => Just(State::Healthy), 1 => Just(State::Warning), 1 => Just(State::Critical)]
    }

    proptest! {
        #[test]
        fn overall_follows_from_the_share_of_healthy_components(states in prop::collection::vec(state(), 0..40)) {
            let report = report(&states);
            let expected = match report.health_percentage {
                1.0 => Overall::Healthy,
                share if share >= 0.8 => Overall::Degraded,
                share if share >= 0.5 => Overall::Warning,
                _ => Overall::Critical,
            };
            prop_assert!((0.0..=1.0).contains(&report.health_percentage));
            prop_assert_eq!(report.overall, expected);
        }

        #[test]
        fn a_component_that_recovers_never_makes_it_worse(states in prop::collection::vec(state(), 1..40), at in any::<prop::sample::Index>()) {
            let mut better = states.clone();
            better[at.index(states.len())] = State::Healthy;
            prop_assert!(report(&better).overall <= report(&states).overall);
        }
    }

    #[test]
    fn the_thresholds_belong_to_the_better_side() {
        for (healthy, total, expected) in [
            (0, 0, Overall::Healthy),
            (5, 5, Overall::Healthy),
            (4, 5, Overall::Degraded),
            (79, 100, Overall::Warning),
            (1, 2, Overall::Warning),
            (49, 100, Overall::Critical),
            (0, 1, Overall::Critical),
        ] {
            assert_eq!(Overall::of(healthy, total), expected, "{healthy} of {total}");
        }
    }
}
