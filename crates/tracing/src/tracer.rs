//! Starts, keeps and finds traces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mcpscope_core::{CallRecord, ClockAnchor, Component, Ratio, SpanId, TraceContext, TraceId};

use crate::filter::Filter;
use crate::ids::{Drawn, Sequence};
use crate::read::Read;
use crate::record::{Status, Trace};
use crate::sampling::{Export, Fate, Keep, Root, Sampler};
use crate::span::{Recording, SpanGuard};
use crate::store::{Cursor, NotStored, Records, Store};
use crate::value::ValueRef;
use crate::{call, packed};

/// The stores, as [`Sequence::turn`] knows them.
const KEPT: usize = 0;
const EXPORTED: usize = 1;

/// How traces are sampled and kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Number of traces kept. Default: [`Config::DEFAULT_MAX_TRACES`].
    pub max_traces: usize,
    /// Memory for traces, in bytes. Default: [`Config::DEFAULT_MAX_BYTES`]. A quarter of it is for those that had to make room
    /// and are kept all the same: the newest errors, and the five slowest of each operation.
    pub max_bytes: usize,
    /// Share of the roots kept that are on no critical path. Default: 0.1.
    pub sampling_rate: Ratio,
    /// Roots that are always kept. Default: [`Config::DEFAULT_CRITICAL_PATHS`].
    pub critical_paths: Vec<Component>,
    /// What is held for an exporter. Default: nothing.
    pub export: Option<Export>,
}

impl Config {
    /// 1000 traces.
    pub const DEFAULT_MAX_TRACES: usize = 1000;
    /// 4 MiB.
    pub const DEFAULT_MAX_BYTES: usize = 4 << 20;
    /// Requests, sessions, registry and server.
    pub const DEFAULT_CRITICAL_PATHS: [Component; 4] =
        [Component::JsonRpc, Component::SessionManager, Component::Registry, Component::Server];
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_traces: Self::DEFAULT_MAX_TRACES,
            max_bytes: Self::DEFAULT_MAX_BYTES,
            sampling_rate: Ratio::new(0.1).unwrap_or(Ratio::ONE),
            critical_paths: Self::DEFAULT_CRITICAL_PATHS.to_vec(),
            export: None,
        }
    }
}

/// Starts, keeps and finds traces. Cheap to clone; every clone is the same instance.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    anchor: ClockAnchor,
    clock: fn() -> Instant,
    keep: Keep,
    sequence: Sequence,
    store: Store,
    export: Option<(Sampler, Store)>,
    read: Read,
    lost: AtomicU64,
}

impl Tracer {
    /// Creates an instance whose spans take the time from the system. The ids follow from `seed`, which should be random unless
    /// a run is to be repeated.
    #[must_use]
    pub fn new(config: &Config, anchor: ClockAnchor, seed: u64) -> Self {
        Self::with_clock(config, anchor, seed, Instant::now)
    }

    /// Creates an instance whose spans take the time from `clock`.
    #[must_use]
    pub fn with_clock(config: &Config, anchor: ClockAnchor, seed: u64, clock: fn() -> Instant) -> Self {
        let export = |export: Export| (export.sampler, Store::new(usize::MAX, export.max_bytes, false));
        Self(Arc::new(Inner {
            anchor,
            clock,
            keep: Keep::new(&config.critical_paths, config.sampling_rate),
            sequence: Sequence::new(seed),
            store: Store::new(config.max_traces, config.max_bytes, true),
            export: config.export.map(export),
            read: Read::default(),
            lost: AtomicU64::new(0),
        }))
    }

    /// Starts a trace, or goes on with the one that the caller's message carries, and decides whether it is kept.
    #[must_use]
    pub fn start(&self, path: Component, context: Option<TraceContext>) -> Root {
        let (drawn, Fate { kept, exported }) = self.decide(path, context);
        let sequence = &self.0.sequence;
        let trace_id = context.map_or_else(|| sequence.trace_id(drawn), |context| context.trace_id);
        Root { trace_id, span_id: sequence.span_id(drawn), kept, exported }
    }

    #[inline]
    pub(crate) fn decide(&self, path: Component, context: Option<TraceContext>) -> (Drawn, Fate) {
        let drawn = self.0.sequence.draw_root();
        let id = match context {
            Some(context) => context.trace_id.0.get() as u64,
            None => self.0.sequence.trace_id_low(drawn),
        };
        let sampled = context.map(|context| context.sampled);
        let kept = self.0.keep.wants(path, id, sampled == Some(true));
        let exported = self.0.export.as_ref().is_some_and(|(sampler, _)| sampler.wants_half(id, sampled));
        (drawn, Fate { kept, exported })
    }

    pub(crate) fn sequence(&self) -> &Sequence {
        &self.0.sequence
    }

    /// An id for a span that is not the root.
    #[must_use]
    pub fn new_span_id(&self) -> SpanId {
        self.0.sequence.span_id(self.0.sequence.draw())
    }

    /// Begins a trace with its root span, or goes on with the one that the caller's message carries.
    #[inline]
    pub fn span(&self, path: Component, name: &str, context: Option<TraceContext>) -> SpanGuard<'_> {
        SpanGuard::root(self, path, name, context)
    }

    /// Begins the trace of a request, which the caller knows by `id` (`jsonrpc.request.id`).
    pub fn trace_request(&self, id: &str, details: &[(&str, ValueRef<'_>)]) -> SpanGuard<'_> {
        self.begin(Component::JsonRpc, "mcp.request", ("jsonrpc.request.id", id), details)
    }

    /// Begins the trace of a session (`mcp.session.id`).
    pub fn trace_session(&self, id: &str, details: &[(&str, ValueRef<'_>)]) -> SpanGuard<'_> {
        self.begin(Component::SessionManager, "mcp.session", ("mcp.session.id", id), details)
    }

    /// Begins the trace of a connection or stream (`mcpscope.transport.id`).
    pub fn trace_transport(&self, id: &str, details: &[(&str, ValueRef<'_>)]) -> SpanGuard<'_> {
        self.begin(Component::Transport, "mcp.transport", ("mcpscope.transport.id", id), details)
    }

    fn begin(
        &self,
        path: Component,
        name: &str,
        (attribute, id): (&str, &str),
        details: &[(&str, ValueRef<'_>)],
    ) -> SpanGuard<'_> {
        let mut span = self.span(path, name, None);
        span.attribute(attribute, id);
        for (name, value) in details {
            span.detail(name, *value);
        }
        span
    }

    /// Records an operation that has just ended, after `duration`. Returns its trace, if it was recorded: it is an embedding
    /// program's, and so sampled.
    pub fn record_trace(
        &self,
        operation: &str,
        duration: Duration,
        status: Status,
        details: &[(&str, ValueRef<'_>)],
    ) -> Option<TraceId> {
        let ended = self.now();
        let started = ended.checked_sub(duration).unwrap_or(ended);
        let mut span = SpanGuard::root_at(self, Component::Tools, operation, None, || started);
        for (name, value) in details {
            span.detail(name, *value);
        }
        span.status(status);
        let trace_id = span.is_recorded().then(|| span.trace_id());
        span.end_at(ended);
        trace_id
    }

    /// Keeps and exports the trace of a call that has ended, as was decided when it began. Returns how many older ones had to
    /// make room.
    ///
    /// # Errors
    /// [`NotStored`]: the caller counts the loss.
    pub fn record_call(&self, record: &CallRecord, root: Root) -> Result<usize, NotStored> {
        let mut recording = Recording::take(record.started, record.started, true);
        call::write(&mut recording.bytes, record, &self.0.anchor);
        let fate = Fate { kept: root.kept, exported: root.exported };
        let kept = self.keep(recording.bytes.written_mut(), fate);
        recording.give_back();
        kept
    }

    fn keep(&self, record: &mut [u8], fate: Fate) -> Result<usize, NotStored> {
        let is_trace = !packed::Head::is_late(record);
        let mut push = |store: &Store, number| {
            let turn = self.0.sequence.turn(number, is_trace);
            packed::Head::set_turn(record, turn);
            store.push(turn, record)
        };
        if let Some((_, store)) = self.0.export.as_ref().filter(|_| fate.exported) {
            // What found no place is counted there, for the exporter to tell.
            let _ = push(store, EXPORTED);
        }
        if fate.kept { push(&self.0.store, KEPT) } else { Ok(0) }
    }

    pub(crate) fn keep_or_count(&self, record: &mut [u8], fate: Fate) {
        if self.keep(record, fate).is_err() {
            self.0.lost.fetch_add(packed::Head::spans(record).into(), Ordering::Relaxed);
        }
    }

    /// Counts a span that is too much for its trace.
    #[cold]
    pub(crate) fn count_lost(&self, fate: Fate) {
        if let Some((_, store)) = self.0.export.as_ref().filter(|_| fate.exported) {
            store.refuse(1);
        }
        if fate.kept {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What a message that belongs to the trace says of it: that it is exported, where that is done, or else that it is kept.
    #[must_use]
    pub fn is_sampled(&self, root: &Root) -> bool {
        self.says_sampled(Fate { kept: root.kept, exported: root.exported })
    }

    pub(crate) fn says_sampled(&self, fate: Fate) -> bool {
        if self.0.export.is_some() { fate.exported } else { fate.kept }
    }

    /// Spans that ended and found no place here.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn now(&self) -> Instant {
        (self.0.clock)()
    }

    pub(crate) fn since_anchor(&self, at: Instant) -> i64 {
        call::since(&self.0.anchor, at)
    }

    /// The traces that `filter` wants, newest first: the newest, and those of the reserve.
    #[must_use]
    pub fn traces(&self, filter: &Filter) -> Vec<Arc<Trace>> {
        let records = self.0.store.records();
        let traces = self.whole(&records).rev().filter(|trace| filter.wants(trace));
        traces.take(filter.limit.unwrap_or(usize::MAX)).collect()
    }

    /// One trace; where several calls belong to it, all of their spans.
    #[must_use]
    pub fn trace(&self, id: TraceId) -> Option<Trace> {
        let records = self.0.store.records();
        let part = |record| packed::Head::read(record).filter(|head| head.trace_id == id).map(|head| (head, record));
        let mut parts: Vec<_> = records.oldest_first().filter_map(part).collect();
        // A root first, if there is one.
        parts.sort_by_key(|(head, _)| (head.late, head.started_ns));
        let mut parts = parts.into_iter().filter_map(|(_, record)| packed::read(record, &self.0.anchor));
        let mut trace = parts.next()?;
        parts.for_each(|part| trace.absorb(part));
        Some(trace)
    }

    /// Where a reader stands who wants the traces that are kept from now on.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.0.store.cursor()
    }

    /// The traces kept since the last call with this cursor, in the order in which they ended, and how many were gone already.
    pub fn newer(&self, cursor: &mut Cursor) -> (Vec<Arc<Trace>>, u64) {
        let (records, missed, _) = self.0.store.newer(cursor, u64::MAX);
        (self.whole(&records).collect(), missed.records)
    }

    /// What begins with a root: a span that ended late is found with its trace, by the trace's id.
    fn whole(&self, records: &Records) -> impl DoubleEndedIterator<Item = Arc<Trace>> {
        records.oldest_first().filter_map(|record| {
            let head = packed::Head::read(record).filter(|head| !head.late)?;
            self.0.read.share(record, &head, &self.0.anchor)
        })
    }

    /// What is held for an exporter from now on; nothing unless [`Config::export`] says so.
    #[must_use]
    pub fn exports(&self) -> Option<Exports> {
        let (_, store) = self.0.export.as_ref()?;
        Some(Exports { cursor: store.cursor(), tracer: self.clone() })
    }

    /// Number of traces held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.store.len()
    }

    /// Whether no trace is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all traces. What waits for an exporter stays.
    pub fn clear(&self) {
        self.0.store.clear();
    }
}

/// What is held for one exporter.
#[derive(Debug)]
pub struct Exports {
    tracer: Tracer,
    cursor: Cursor,
}

/// What [`Exports::take`] found.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Traces in about the order in which they ended, each with the spans of one call; a span that ended later than the rest of
    /// its trace comes alone.
    pub traces: Vec<Arc<Trace>>,
    /// Spans that had to make room before they were taken, or found none.
    pub lost_spans: u64,
    /// Whether there was more than was to be taken.
    pub more: bool,
}

impl Exports {
    /// Takes about `max_spans` spans, or fewer if there are no more: whole traces, and at least one if there is one.
    pub fn take(&mut self, max_spans: usize) -> Taken {
        let Inner { anchor, export, .. } = &*self.tracer.0;
        let Some((_, store)) = export else { return Taken::default() };
        let (records, missed, more) = store.newer(&mut self.cursor, max_spans as u64);
        let traces = records.oldest_first().filter_map(|record| packed::read(record, anchor)).map(Arc::new).collect();
        Taken { traces, lost_spans: missed.spans, more }
    }

    /// How many spans had to make room, or found none, since this or [`take`](Self::take) was last asked. Takes nothing, and
    /// costs next to nothing: for whoever has no use for more spans yet.
    pub fn lost(&mut self) -> u64 {
        let export = self.tracer.0.export.as_ref();
        export.map_or(0, |(_, store)| store.lost(&mut self.cursor))
    }
}
