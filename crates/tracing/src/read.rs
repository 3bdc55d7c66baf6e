//! Traces that somebody has read and still holds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use foldhash::fast::FixedState;
use mcpscope_core::{ClockAnchor, SpanId};

use crate::packed::{self, Head};
use crate::record::Trace;

/// So that many readers of the same traces hold them once: a trace that is read takes several times as much memory as its record.
///
/// Only readers come here.
#[derive(Debug, Default)]
pub(crate) struct Read(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// By the id of the root, and when it ended: whoever records calls may give an id twice.
    traces: HashMap<(SpanId, i64), Weak<Trace>, FixedState>,
    /// How many there may be before those that nobody holds any more are looked for.
    enough: usize,
}

impl Read {
    /// The trace of a record, the same one for all who hold it.
    pub(crate) fn share(&self, record: &[u8], head: &Head, anchor: &ClockAnchor) -> Option<Arc<Trace>> {
        const FEW: usize = 1024;
        let key = (packed::root(record)?, head.ended_ns());
        // Traces go in and out whole.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trace) = held.traces.get(&key).and_then(Weak::upgrade) {
            return Some(trace);
        }
        if held.traces.len() >= held.enough {
            held.traces.retain(|_, trace| trace.strong_count() > 0);
            held.enough = (2 * held.traces.len()).max(FEW);
        }
        let trace = Arc::new(packed::read(record, anchor)?);
        held.traces.insert(key, Arc::downgrade(&trace));
        Some(trace)
    }
}
