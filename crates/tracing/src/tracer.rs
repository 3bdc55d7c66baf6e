//! Sampling, identifiers and the store.

use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use mcpscope_core::{
    CallRecord, ClockAnchor, Component, Cursor, NotStored, Ratio, Ring, SpanId, TraceContext, TraceId,
};

use crate::record::{Status, Trace};

/// How traces are sampled and kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Number of traces kept. Default: [`Config::DEFAULT_MAX_TRACES`].
    pub max_traces: usize,
    /// Memory for traces, in bytes. Default: [`Config::DEFAULT_MAX_BYTES`].
    pub max_bytes: usize,
    /// Share of the roots kept that are on no critical path. Default: 0.1.
    pub sampling_rate: Ratio,
    /// Roots that are always kept. Default: [`Config::DEFAULT_CRITICAL_PATHS`].
    pub critical_paths: Vec<Component>,
    /// What is held for an exporter. Default: nothing.
    pub export: Option<Export>,
}

/// What is held for an exporter until it fetches it ([`Tracer::exports`]).
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
        match context {
            Some(context) if self.parent_based => context.sampled,
            _ => chosen(id, self.share),
        }
    }
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
    sampling_rate: Ratio,
    critical_paths: Vec<Component>,
    seed: u64,
    drawn: AtomicU64,
    store: Ring<Arc<Trace>>,
    export: Option<(Sampler, Ring<Arc<Trace>>)>,
}

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

/// What is held for one exporter.
#[derive(Debug)]
pub struct Exports {
    tracer: Tracer,
    cursor: Cursor,
}

/// What [`Exports::take`] found.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Traces, oldest first, each with the spans of one call.
    pub traces: Vec<Arc<Trace>>,
    /// Spans that had to make room before they were taken.
    pub lost_spans: u64,
}

impl Exports {
    /// Takes about `max_spans` spans, or fewer if there are no more: whole traces, and at least one if there is one.
    pub fn take(&mut self, _max_spans: usize) -> Taken {
        let Some((_, ring)) = &self.tracer.0.export else { return Taken::default() };
        let (traces, lost) = ring.newer(&mut self.cursor);
        Taken { traces, lost_spans: lost }
    }
}

/// Which traces are wanted; the default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this operation, exactly.
    pub operation: Option<String>,
    /// Of this method.
    pub method: Option<String>,
    /// That ended like this.
    pub status: Option<Status>,
    /// Of this tool.
    pub tool: Option<String>,
    /// Of this server.
    pub server: Option<String>,
    /// Of this session.
    pub session: Option<String>,
    /// That took at least this long.
    pub min_duration: Option<Duration>,
    /// That began at or after this time.
    pub since: Option<SystemTime>,
    /// That began before this time.
    pub until: Option<SystemTime>,
    /// No more than this many.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether it wants this trace; how many it wants is not looked at.
    #[must_use]
    pub fn wants(&self, trace: &Trace) -> bool {
        fn same<T: PartialEq + ?Sized>(wanted: Option<&T>, found: Option<&T>) -> bool {
            wanted.is_none() || wanted == found
        }
        same(self.operation.as_deref(), Some(&trace.operation))
            && same(self.method.as_deref(), Some(&trace.method))
            && same(self.status.as_ref(), Some(&trace.status))
            && same(self.tool.as_deref(), trace.tool.as_deref())
            && same(self.server.as_deref(), Some(&trace.server))
            && same(self.session.as_deref(), trace.session.as_deref())
            && self.min_duration.is_none_or(|min| trace.duration >= min)
            && self.since.is_none_or(|since| trace.timestamp >= since)
            && self.until.is_none_or(|until| trace.timestamp < until)
    }
}

impl Tracer {
    /// Creates an instance. The ids follow from `seed`, which should be random unless a run is to be repeated.
    #[must_use]
    pub fn new(config: &Config, anchor: ClockAnchor, seed: u64) -> Self {
        Self(Arc::new(Inner {
            anchor,
            sampling_rate: config.sampling_rate,
            critical_paths: config.critical_paths.clone(),
            seed,
            drawn: AtomicU64::new(0),
            store: Ring::new(config.max_traces, config.max_bytes),
            export: config.export.map(|export| (export.sampler, Ring::new(usize::MAX, export.max_bytes))),
        }))
    }

    /// Starts a trace, or goes on with the one that the caller's message carries, and decides whether it is kept.
    #[must_use]
    pub fn start(&self, path: Component, context: Option<TraceContext>) -> Root {
        let trace_id = context.map_or_else(|| self.new_trace_id(), |context| context.trace_id);
        let asked_for = context.is_some_and(|context| context.sampled);
        let kept = asked_for || self.0.critical_paths.contains(&path) || chosen(trace_id, self.0.sampling_rate);
        let exported = self.0.export.as_ref().is_some_and(|(sampler, _)| sampler.wants(trace_id, context));
        Root { trace_id, span_id: self.new_span_id(), kept, exported }
    }

    /// An id for a span that is not the root.
    #[must_use]
    pub fn new_span_id(&self) -> SpanId {
        SpanId(self.draw())
    }

    /// Keeps and exports the trace of a call that has ended, as was decided when it `root`ed. Returns how many older ones had to make room.
    ///
    /// # Errors
    /// [`NotStored`]: the caller counts the loss.
    pub fn record_call(&self, record: &CallRecord, root: Root) -> Result<usize, NotStored> {
        let trace = Arc::new(Trace::of_call(record, &self.0.anchor));
        let weight = trace.weight();
        if let Some((_, ring)) = self.0.export.as_ref().filter(|_| root.exported) {
            ring.push(Arc::clone(&trace), weight)?;
        }
        if root.kept { self.0.store.push(trace, weight) } else { Ok(0) }
    }

    /// What is held for an exporter from now on; nothing unless [`Config::export`] says so.
    #[must_use]
    pub fn exports(&self) -> Option<Exports> {
        let (_, ring) = self.0.export.as_ref()?;
        Some(Exports { cursor: ring.cursor(), tracer: self.clone() })
    }

    /// The traces that `filter` wants, newest first.
    #[must_use]
    pub fn traces(&self, filter: &Filter) -> Vec<Arc<Trace>> {
        let mut traces = self.0.store.newest_first();
        traces.retain(|trace| filter.wants(trace));
        traces.truncate(filter.limit.unwrap_or(usize::MAX));
        traces
    }

    /// One trace; where several calls belong to it, all of their spans.
    #[must_use]
    pub fn trace(&self, id: TraceId) -> Option<Trace> {
        let mut parts =
            self.0.store.newest_first().into_iter().rev().filter(|trace| trace.id == id).collect::<Vec<_>>();
        parts.sort_by_key(|part| part.timestamp);
        let (first, rest) = parts.split_first()?;
        let mut trace = Trace::clone(first);
        rest.iter().for_each(|part| trace.absorb(part));
        Some(trace)
    }

    /// Where a reader stands who wants the traces that are kept from now on.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.0.store.cursor()
    }

    /// The traces kept since the last call with this cursor, oldest first, and how many were gone already; see
    /// [`Ring::newer`].
    pub fn newer(&self, cursor: &mut Cursor) -> (Vec<Arc<Trace>>, u64) {
        self.0.store.newer(cursor)
    }

    /// Number of traces held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.store.len()
    }

    /// Whether no trace is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.store.is_empty()
    }

    /// Forgets all traces.
    pub fn clear(&self) {
        self.0.store.clear();
    }

    fn new_trace_id(&self) -> TraceId {
        let (high, low) = (self.draw(), self.draw());
        TraceId(NonZeroU128::from(low) | (u128::from(high.get()) << 64))
    }

    /// The next number of a splitmix64 sequence (Steele, Lea and Flood, 2014), which is as good as random and, unlike a
    /// generator with more state, needs no lock between threads.
    fn draw(&self) -> NonZeroU64 {
        loop {
            let n = self.0.drawn.fetch_add(1, Ordering::Relaxed);
            let mut z = self.0.seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            if let Some(id) = NonZeroU64::new(z ^ (z >> 31)) {
                return id;
            }
        }
    }
}

/// Whether the lower 56 bits of the id, which W3C wants to be random, fall into the share: every part of a trace that
/// asks gets the same answer.
fn chosen(id: TraceId, share: Ratio) -> bool {
    const RANDOM: u128 = (1 << 56) - 1;
    ((id.0.get() & RANDOM) as f64) < share.get() * (RANDOM + 1) as f64
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mcpscope_core::{Call, Direction, ErrorType, Method, Outcome, Protocol, RequestId, Transport};

    use super::*;

    fn tracer(config: &Config) -> Tracer {
        Tracer::new(config, ClockAnchor { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH }, 7)
    }

    fn record(
        tracer: &Tracer,
        tool: &str,
        duration_ms: u64,
        outcome: Outcome,
        context: Option<TraceContext>,
    ) -> TraceId {
        let root = tracer.start(Component::JsonRpc, context);
        let call = Call {
            server: "s".into(),
            transport: Transport::Stdio,
            direction: Direction::ToServer,
            protocol: Some(Protocol::V2025_11_25),
            method: Method::new("tools/call"),
            id: Some(RequestId::Integer(1)),
            target: Some(tool.into()),
            session: None,
            request_bytes: 10,
            context,
            tracestate: None,
        };
        let record = CallRecord {
            call,
            started: tracer.0.anchor.mono + Duration::from_secs(duration_ms),
            duration: Duration::from_millis(duration_ms),
            outcome,
            response_bytes: 20,
            injected: None,
            trace_id: root.trace_id,
            span_id: root.span_id,
            forwarded: None,
            events: Vec::new(),
        };
        tracer.record_call(&record, root).unwrap();
        root.trace_id
    }

    #[test]
    fn finds_by_every_filter() {
        let tracer = tracer(&Config::default());
        record(&tracer, "echo", 1, Outcome::Ok, None);
        let failed = record(&tracer, "add", 50, Outcome::error(ErrorType::Tool), None);
        record(&tracer, "slow", 500, Outcome::Timeout, None);
        let found = |filter: &Filter| tracer.traces(filter).iter().map(|t| t.tool.clone().unwrap()).collect::<Vec<_>>();
        let all = Filter::default();
        assert_eq!(found(&all), ["slow".into(), "add".into(), "echo".into()] as [Box<str>; 3]);
        assert_eq!(found(&Filter { tool: Some("echo".into()), ..all.clone() }), ["echo".into()] as [Box<str>; 1]);
        assert_eq!(
            found(&Filter { operation: Some("tools/call add".into()), ..all.clone() }),
            ["add".into()] as [Box<str>; 1]
        );
        assert_eq!(found(&Filter { status: Some(Status::Timeout), ..all.clone() }), ["slow".into()] as [Box<str>; 1]);
        assert_eq!(found(&Filter { min_duration: Some(Duration::from_millis(50)), ..all.clone() }).len(), 2);
        assert_eq!(found(&Filter { limit: Some(1), ..all.clone() }), ["slow".into()] as [Box<str>; 1]);
        assert_eq!(found(&Filter { server: Some("other".into()), ..all.clone() }).len(), 0);
        let second_10 = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        assert_eq!(found(&Filter { since: Some(second_10), ..all.clone() }).len(), 2);
        assert_eq!(found(&Filter { until: Some(second_10), ..all }), ["echo".into()] as [Box<str>; 1]);

        let trace = tracer.trace(failed).unwrap();
        assert_eq!((trace.status, &*trace.operation, trace.spans.len()), (Status::Error, "tools/call add", 1));
        let attribute = |name| trace.spans[0].attributes.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        assert_eq!(attribute("gen_ai.tool.name").as_deref(), Some("add"));
        assert_eq!(attribute("error.type").as_deref(), Some("tool_error"));
        assert_eq!(attribute("jsonrpc.request.id").as_deref(), Some("1"));
        tracer.clear();
        assert!(tracer.trace(failed).is_none());
    }

    #[test]
    fn calls_of_one_incoming_trace_are_found_together() {
        let tracer = tracer(&Config::default());
        let context = crate::parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let id = record(&tracer, "echo", 1, Outcome::Ok, context);
        assert_eq!(record(&tracer, "add", 2, Outcome::error(ErrorType::Tool), context), id);
        let trace = tracer.trace(id).unwrap();
        assert_eq!((trace.spans.len(), trace.status), (2, Status::Error));
        assert!(trace.spans.iter().all(|span| span.parent == context.map(|c| c.parent)));
        assert_eq!(trace.spans[1].start, Duration::from_secs(1));
    }

    #[test]
    fn only_critical_paths_and_incoming_flags_escape_sampling() {
        let none = Config { sampling_rate: Ratio::ZERO, ..Config::default() };
        let tracer = tracer(&none);
        assert!(tracer.start(Component::JsonRpc, None).kept);
        assert!(!tracer.start(Component::Transport, None).kept);
        let context = crate::parse_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert!(tracer.start(Component::Transport, Some(context)).kept);
        assert!(!tracer.start(Component::Transport, Some(TraceContext { sampled: false, ..context })).kept);
    }

    #[test]
    fn the_share_sampled_is_the_one_asked_for() {
        let tracer = tracer(&Config::default());
        let kept = (0..100_000).filter(|_| tracer.start(Component::Transport, None).kept).count();
        // 99.99 % of the binomial distribution of 100,000 draws at 0.1: 10,000 +- 3.89 * 94.9.
        assert!((9_630..=10_370).contains(&kept), "{kept}");
    }

    #[test]
    fn memory_is_bounded_in_bytes() {
        let tracer = tracer(&Config { max_bytes: 64 * 1024, ..Config::default() });
        for _ in 0..1000 {
            record(&tracer, &"x".repeat(250), 1, Outcome::Ok, None);
        }
        let held: usize = tracer.traces(&Filter::default()).iter().map(|t| t.weight()).sum();
        assert!((32 * 1024..=64 * 1024).contains(&held), "{held}");
    }
}
