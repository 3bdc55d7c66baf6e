//! Why something is not recorded.

use std::borrow::Cow;

use crate::general::Refusal;
use crate::metrics::Metrics;

/// Longest name that an error repeats, in bytes.
pub(crate) const SHOWN_BYTES: usize = 64;

/// Why a record or a metric was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The name can be no metric's.
    #[error("{name:?} cannot be a metric's name: expected {expected}")]
    BadName {
        /// The name that was given.
        name: String,
        /// What is one.
        expected: &'static str,
    },
    /// The label can be no metric's.
    #[error("{label:?} cannot be a label: expected {expected}")]
    BadLabel {
        /// The label that was given.
        label: String,
        /// What is one.
        expected: &'static str,
    },
    /// The name belongs to another metric.
    #[error("there is another metric {name:?}, or one that looks like it in Prometheus: expected a name of its own")]
    Taken {
        /// The name that was given.
        name: String,
    },
    /// There are more metrics than anybody looks at.
    #[error("there are too many metrics: expected 256 declared ones at most")]
    TooMany,
    /// There is no critical metric of this name, and nobody keeps others.
    #[error("there is no critical metric {name:?}: expected one that is declared, or one of {}", Metrics::CRITICAL_NAMES.join(", "))]
    UnknownMetric {
        /// The name that was given.
        name: String,
    },
    /// The metric has no such label.
    #[error("{metric} has no label {label:?}: expected some of {}", expected.join(", "))]
    UnknownLabel {
        /// The metric.
        metric: Cow<'static, str>,
        /// The label that was given.
        label: String,
        /// The labels that it has.
        expected: &'static [&'static str],
    },
    /// The label of one of the seven has only so many values, and this is none.
    #[error("{metric} does not take {label} {value:?}: expected one of {}", expected.join(", "))]
    UnknownLabelValue {
        /// The metric.
        metric: Cow<'static, str>,
        /// The label.
        label: &'static str,
        /// The value that was given.
        value: String,
        /// The values that there are.
        expected: Vec<&'static str>,
    },
    /// The gauge belongs to a relay, which counts up and down from what it knows.
    #[error("{metric} of server {server:?} is counted by a relay: record it for a server of your own")]
    Counted {
        /// The metric.
        metric: Cow<'static, str>,
        /// The server.
        server: String,
    },
    /// The metric is not critical, and whoever keeps such does not keep this one.
    #[error("{name:?} is not recorded: {refusal}")]
    NotKept {
        /// The name that was given.
        name: String,
        /// Why not.
        #[source]
        refusal: Refusal,
    },
    /// The metric does not take such a value.
    #[error("{metric} does not take {value}: expected {expected}")]
    BadValue {
        /// The metric.
        metric: Cow<'static, str>,
        /// The value that was given.
        value: f64,
        /// What it takes.
        expected: &'static str,
    },
}
