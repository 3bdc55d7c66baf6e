//! The newest raw records of the critical metrics, for inspection.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mcpscope_core::{ClockAnchor, Labels, Ring};

use crate::cell::CounterCell;
use crate::family::Series;

/// How many are kept (behaviour M4).
pub(crate) const MAX_RAW: usize = 1000;

/// One record of a critical metric.
#[derive(Clone, Debug)]
pub struct RawRecord {
    /// The critical metric's name.
    pub name: &'static str,
    /// The value, in the metric's unit.
    pub value: f64,
    /// The labels of its series.
    pub labels: Labels,
    /// When it was recorded.
    pub timestamp: SystemTime,
}

#[derive(Debug)]
pub(crate) struct RawLog {
    ring: Ring<RawRecord>,
    anchor: ClockAnchor,
    lost: Arc<Series<CounterCell>>,
}

impl RawLog {
    pub(crate) fn new(anchor: ClockAnchor, lost: Arc<Series<CounterCell>>) -> Self {
        Self { ring: Ring::new(MAX_RAW, usize::MAX), anchor, lost }
    }

    pub(crate) fn push(&self, name: &'static str, value: f64, labels: &Labels, at: Instant) {
        let record = RawRecord { name, value, labels: labels.clone(), timestamp: self.anchor.wall_at(at) };
        if self.ring.push(record, 0).is_err() {
            self.lost.cell.add(1);
        }
    }

    pub(crate) fn newest_first(&self) -> Vec<RawRecord> {
        self.ring.newest_first()
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    pub(crate) fn clear(&self) {
        self.ring.clear();
    }
}
