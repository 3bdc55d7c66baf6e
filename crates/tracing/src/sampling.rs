//! Which traces are kept, and which are exported.

use mcpscope_core::{Component, Ratio, SpanId, TraceContext, TraceId};

/// A trace as it starts: its ids, and what will become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The trace.
    pub trace_id: TraceId,
    /// The root span.
    pub span_id: SpanId,
    /// Whether it is kept here. Decided at the root, once, for all parts of the trace.
    pub kept: bool,
    /// Whether it is exported, likewise.
    pub exported: bool,
}

impl Root {
    /// Whether anyone will see it.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        self.kept || self.exported
    }
}

/// What will become of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) kept: bool,
    pub(crate) exported: bool,
}

impl Fate {
    pub(crate) const fn is_recorded(self) -> bool {
        self.kept || self.exported
    }
}

/// What is held for an exporter until it fetches it ([`Tracer::exports`](crate::Tracer::exports)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Export {
    /// Which traces are exported, whether they are kept here or not.
    pub sampler: Sampler,
    /// Memory for traces that wait, in bytes. Where it is full, the oldest make room, and are counted.
    pub max_bytes: usize,
}

/// Which traces are exported; `OTEL_TRACES_SAMPLER` of the OpenTelemetry specification has the names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Share of the traces that begin here: `always_on`, `always_off` and `traceidratio`.
    pub share: Ratio,
    /// Whether a caller's decision goes before (`parentbased_...`).
    pub parent_based: bool,
}

impl Sampler {
    /// Whether a trace is exported.
    #[must_use]
    pub fn wants(&self, id: TraceId, context: Option<TraceContext>) -> bool {
        self.wants_half(id.0.get() as u64, context.map(|context| context.sampled))
    }

    /// Of the id the lower half decides.
    pub(crate) fn wants_half(&self, id: u64, parent: Option<bool>) -> bool {
        match parent {
            Some(sampled) if self.parent_based => sampled,
            _ => random(id) < below(self.share),
        }
    }
}

/// Which traces are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// A bit for each component of which all are kept.
    critical: u32,
    below: u64,
}

impl Keep {
    pub(crate) fn new(critical_paths: &[Component], share: Ratio) -> Self {
        let critical = critical_paths.iter().fold(0, |bits, component| bits | bit(*component));
        Self { critical, below: below(share) }
    }

    /// Of the id the lower half decides.
    #[inline]
    pub(crate) fn wants(&self, path: Component, id: u64, asked_for: bool) -> bool {
        asked_for || self.critical & bit(path) != 0 || random(id) < self.below
    }
}

const fn bit(component: Component) -> u32 {
    1 << component as u32
}

/// Bits of an id that W3C wants to be random.
const RANDOM_BITS: u32 = 56;

/// The random part of the lower half of an id. It falls into a share if it is [`below`] its limit: every part of a trace that asks gets the same
/// answer.
const fn random(id: u64) -> u64 {
    id & ((1 << RANDOM_BITS) - 1)
}

fn below(share: Ratio) -> u64 {
    (share.get() * (1_u64 << RANDOM_BITS) as f64) as u64
}
