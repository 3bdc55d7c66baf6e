//! What a component's figures say about it (behaviour HE3).

use crate::component::Observation;
use crate::report::State;

/// What a component did over the last 60 s.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Activity {
    /// Operations per second; nothing as long as it is not known.
    pub rate: Option<f64>,
    /// How many there are, of sessions or of connections; nothing as long as it is not known.
    pub count: Option<u64>,
    /// Operations over the last 60 s, those left out into which a fault was injected.
    pub operations: u64,
    /// How many of the `operations` failed.
    pub errors: u64,
}

/// The shares of failing operations above which a component is not healthy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    warning: f64,
    critical: f64,
    min_operations: u64,
}

/// Thresholds that are none: both are shares (0..=1), and the one for warning is not above the one for critical.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("expected error thresholds with 0 <= warning <= critical <= 1, got warning {warning} and critical {critical}")]
pub struct InvalidThresholds {
    /// The threshold given for warning.
    pub warning: f64,
    /// The threshold given for critical.
    pub critical: f64,
}

impl Thresholds {
    /// Warning and critical each strictly above their share of failing operations (0..=1), if there were at least
    /// `min_operations`.
    ///
    /// # Errors
    /// [`InvalidThresholds`] unless `0 <= warning <= critical <= 1`.
    pub fn new(warning: f64, critical: f64, min_operations: u64) -> Result<Self, InvalidThresholds> {
        if 0.0 <= warning && warning <= critical && critical <= 1.0 {
            Ok(Self { warning, critical, min_operations })
        } else {
            Err(InvalidThresholds { warning, critical })
        }
    }

    /// The share of failing operations above which a component is in warning, 0..=1.
    #[must_use]
    pub const fn warning(&self) -> f64 {
        self.warning
    }

    /// The share of failing operations above which a component is critical, 0..=1.
    #[must_use]
    pub const fn critical(&self) -> f64 {
        self.critical
    }

    /// How many operations there must be for their failures to say anything.
    #[must_use]
    pub const fn min_operations(&self) -> u64 {
        self.min_operations
    }

    fn state(&self, activity: &Activity) -> State {
        let share = activity.error_ratio();
        if activity.operations < self.min_operations || share <= self.warning {
            State::Healthy
        } else if share <= self.critical {
            State::Warning
        } else {
            State::Critical
        }
    }
}

impl Default for Thresholds {
    /// Warning above 10 %, critical above 50 %, of at least 20 operations.
    fn default() -> Self {
        Self { warning: 0.1, critical: 0.5, min_operations: 20 }
    }
}

impl Activity {
    /// The share of operations that failed, 0..=1; 0 if there were none.
    fn error_ratio(&self) -> f64 {
        // Counted at different moments, there can be an error more than operations.
        if self.operations == 0 { 0.0 } else { self.errors.min(self.operations) as f64 / self.operations as f64 }
    }
}

/// How the registry is, by its rate.
#[must_use]
pub fn registry(activity: &Activity, thresholds: &Thresholds) -> Observation {
    let message = match activity.rate {
        None => "Registry running",
        Some(rate) if rate > 0.0 => "Registry active",
        Some(_) => "Registry idle",
    };
    observation("Registry", message, activity, thresholds)
}

/// How the session manager is, by the count of sessions.
#[must_use]
pub fn sessions(activity: &Activity, thresholds: &Thresholds) -> Observation {
    let message = match activity.count {
        None => "Sessions running",
        Some(0) => "No active sessions",
        Some(_) => "Active sessions",
    };
    observation("Sessions", message, activity, thresholds)
}

/// How the transports are, by the count of connections.
#[must_use]
pub fn transports(activity: &Activity, thresholds: &Thresholds) -> Observation {
    let message = match activity.count {
        None => "Transports running",
        Some(0) => "No connections",
        Some(_) => "Active connections",
    };
    observation("Transports", message, activity, thresholds)
}

/// The observation with its figures; `working` is what there is to say as long as it is not `what` that fails.
fn observation(what: &str, working: &str, activity: &Activity, thresholds: &Thresholds) -> Observation {
    let state = thresholds.state(activity);
    let message = match state {
        State::Healthy => working.to_owned(),
        State::Warning | State::Critical => format!(
            "{what} failing: {:.0} % of {} operations in the last 60 s",
            activity.error_ratio() * 100.0,
            activity.operations
        ),
    };
    Observation { state, message, rate: activity.rate, count: activity.count }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rule = fn(&Activity, &Thresholds) -> Observation;
    const RULES: [Rule; 3] = [registry, sessions, transports];

    fn thresholds() -> impl Strategy<Value = Thresholds> {
        (0.0..=1.0, 0.0..=1.0, 0..50_u64)
            .prop_map(|(a, b, least): (f64, f64, u64)| Thresholds::new(a.min(b), a.max(b), least).unwrap())
    }

    fn activity() -> impl Strategy<Value = Activity> {
        let operations = prop_oneof![0..60_u64, any::<u64>()];
        (prop::option::of(0.0..1e9), prop::option::of(0..3_u64), operations, 0.0..=1.2).prop_map(
            |(rate, count, operations, share): (Option<f64>, Option<u64>, u64, f64)| Activity {
                rate,
                count,
                operations,
                errors: (operations as f64 * share) as u64,
            },
        )
    }

    proptest! {
        #[test]
        fn more_errors_never_make_it_better(activity in activity(), more in 0..1000_u64, thresholds in thresholds()) {
            let worse = Activity { errors: activity.errors.saturating_add(more), ..activity };
            for rule in RULES {
                prop_assert!(rule(&activity, &thresholds).state <= rule(&worse, &thresholds).state);
            }
        }

        #[test]
        fn too_few_operations_never_fail(activity in activity(), thresholds in thresholds()) {
            let few = Activity { operations: activity.operations.min(thresholds.min_operations().saturating_sub(1)), ..activity };
            for rule in RULES {
                prop_assert_eq!(rule(&few, &thresholds).state, State::Healthy);
            }
        }

        #[test]
        fn no_errors_never_fail(activity in activity(), thresholds in thresholds()) {
            let clean = Activity { errors: 0, ..activity };
            for rule in RULES {
                prop_assert_eq!(rule(&clean, &thresholds).state, State::Healthy);
            }
        }

        #[test]
        fn the_state_is_that_of_the_thresholds(activity in activity(), thresholds in thresholds()) {
            let share = activity.errors.min(activity.operations) as f64 / activity.operations.max(1) as f64;
            let counts = activity.operations >= thresholds.min_operations();
            for rule in RULES {
                let seen = rule(&activity, &thresholds);
                prop_assert_eq!(seen.state == State::Critical, counts && share > thresholds.critical());
                prop_assert_eq!(seen.state != State::Healthy, counts && share > thresholds.warning());
                prop_assert_eq!(seen.message.contains("failing"), seen.state != State::Healthy);
                prop_assert_eq!((seen.rate, seen.count), (activity.rate, activity.count));
            }
        }

        #[test]
        fn only_shares_in_order_are_thresholds(warning in -0.5..1.5, critical in -0.5..1.5) {
            let valid = (0.0..=1.0).contains(&warning) && (0.0..=1.0).contains(&critical) && warning <= critical;
            prop_assert_eq!(Thresholds::new(warning, critical, 20).is_ok(), valid);
        }
    }

    #[test]
    fn what_is_no_number_is_no_threshold() {
        for (warning, critical) in [(f64::NAN, 0.5), (0.1, f64::NAN), (0.1, f64::INFINITY), (-f64::INFINITY, 0.5)] {
            assert!(Thresholds::new(warning, critical, 20).is_err(), "{warning} {critical}");
        }
        assert_eq!(
            Thresholds::new(0.5, 0.1, 20).unwrap_err().to_string(),
            "expected error thresholds with 0 <= warning <= critical <= 1, got warning 0.5 and critical 0.1"
        );
        assert!(Thresholds::new(0.0, 0.0, 0).is_ok() && Thresholds::new(1.0, 1.0, u64::MAX).is_ok());
    }

    #[test]
    fn what_works_says_how_much_it_does() {
        let healthy = |rule: Rule, rate, count| {
            let seen = rule(&Activity { rate, count, operations: 100, errors: 10 }, &Thresholds::default());
            assert_eq!(seen.state, State::Healthy);
            seen.message
        };
        assert_eq!(healthy(registry, None, None), "Registry running");
        assert_eq!(healthy(registry, Some(0.1), None), "Registry active");
        assert_eq!(healthy(registry, Some(0.0), None), "Registry idle");
        assert_eq!(healthy(sessions, None, None), "Sessions running");
        assert_eq!(healthy(sessions, None, Some(2)), "Active sessions");
        assert_eq!(healthy(sessions, None, Some(0)), "No active sessions");
        assert_eq!(healthy(transports, None, None), "Transports running");
        assert_eq!(healthy(transports, None, Some(1)), "Active connections");
        assert_eq!(healthy(transports, None, Some(0)), "No connections");
    }

    #[test]
    fn what_fails_says_how_much() {
        let failing = |rule: Rule, operations, errors| {
            let seen = rule(&Activity { rate: Some(2.0), count: Some(3), operations, errors }, &Thresholds::default());
            (seen.state, seen.message)
        };
        let message = "Registry failing: 34 % of 120 operations in the last 60 s".to_owned();
        assert_eq!(failing(registry, 120, 41), (State::Warning, message));
        let message = "Sessions failing: 55 % of 20 operations in the last 60 s".to_owned();
        assert_eq!(failing(sessions, 20, 11), (State::Critical, message));
        let message = "Transports failing: 100 % of 20 operations in the last 60 s".to_owned();
        assert_eq!(failing(transports, 20, 21), (State::Critical, message), "an error more than operations");
        // A threshold itself belongs to the better side.
        assert_eq!(failing(registry, 30, 3).0, State::Healthy);
        assert_eq!(failing(registry, 20, 10).0, State::Warning);
        assert_eq!(failing(registry, 19, 19).0, State::Healthy);
    }
}
