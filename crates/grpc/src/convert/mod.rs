//! What the hub knows, as messages; one module for each `.proto` file. Pure functions.

mod chaos;
mod dashboard;
mod health;
mod instrumentation;
mod metrics;
mod trace;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mcpscope_core::Labels;
use mcpscope_hub::tracing;

pub(crate) use chaos::{request as chaos_request, tests as chaos_tests};
pub(crate) use health::health;
pub(crate) use metrics::metrics;
pub(crate) use trace::{WantedTrace, filter, wanted_trace};

/// A request that cannot be meant, and what was expected instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}; found {found}")]
pub(crate) struct Invalid {
    pub(crate) field: &'static str,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Invalid {
    pub(crate) fn new(field: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { field, expected: expected.into(), found: found.into() }
    }
}

/// Milliseconds since the epoch; negative before it.
pub(crate) fn ms_since_epoch(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

/// The inverse of [`ms_since_epoch`]; nothing where this system's clock does not reach.
fn time_at(ms: i64) -> Option<SystemTime> {
    let distance = Duration::from_millis(ms.unsigned_abs());
    if ms < 0 { SystemTime::UNIX_EPOCH.checked_sub(distance) } else { SystemTime::UNIX_EPOCH.checked_add(distance) }
}

pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn whole_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn by_name(attributes: &[tracing::Attribute]) -> BTreeMap<String, String> {
    attributes.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn labels(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_come_back(ms in -10_000_000_000_000_i64..10_000_000_000_000) {
            prop_assert_eq!(time_at(ms).map(ms_since_epoch), Some(ms));
        }
    }
}
