//! What a span costs who records it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fastrace::collector::{Config as CollectorConfig, Reporter, SpanContext, SpanRecord};
use fastrace::local::LocalSpan;
use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, Method, Outcome, Protocol, Ratio, RequestId, Transport,
};
use mcpscope_test_support::bench::{self, Race, Report, Table};
use mcpscope_tracing::{Config, Tracer};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanProcessor};
use tracing::Dispatch;
use tracing_subscriber::Registry;
use tracing_subscriber::layer::SubscriberExt as _;

/// Traces kept, by ours and by the peers that leave it to us how.
const KEPT: usize = 1000;
const SHARE: f64 = 0.1;
const NAME: &str = "tools/call echo";
const METHOD: &str = "mcp.method.name";
const TOOL: &str = "gen_ai.tool.name";
const PROTOCOL: &str = "mcp.protocol.version";
const TRANSPORT: &str = "network.transport";
const VALUES: [(&str, &str); 4] =
    [(METHOD, "tools/call"), (TOOL, "echo"), (PROTOCOL, "2025-11-25"), (TRANSPORT, "tcp")];

fn main() -> Result<(), Box<dyn Error>> {
    if !bench::wanted() {
        return Ok(());
    }
    fastrace::set_reporter(Discard, CollectorConfig::default().report_interval(Duration::from_millis(10)));
    let mut report = Report::new("span");
    for threads in [1, 2] {
        report.add(one(threads, Ratio::ONE));
        report.add(one(threads, Ratio::new(SHARE)?));
        report.add(five(threads));
    }
    report.add(calls());
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

/// fastrace hands its spans to a thread, which hands them to this.
struct Discard;

impl Reporter for Discard {
    fn report(&mut self, spans: Vec<SpanRecord>) {
        black_box(spans);
    }
}

/// Keeps the newest spans of the OpenTelemetry SDK, as we do; its own processors hand them to a thread, or lose them.
struct Keep(Mutex<VecDeque<SpanData>>);

impl fmt::Debug for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keep")
    }
}

impl SpanProcessor for Keep {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

struct Peers {
    tracer: Tracer,
    otel: SdkTracer,
    dispatch: Dispatch,
    _provider: SdkTracerProvider,
}

impl Peers {
    fn new(share: Ratio) -> Self {
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let config = Config { max_traces: KEPT, sampling_rate: share, ..Config::default() };
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::TraceIdRatioBased(share.get()))
            .with_span_processor(Keep(Mutex::default()))
            .build();
        let otel = provider.tracer("bench");
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tracing"));
        Self {
            tracer: Tracer::new(&config, anchor, 7),
            otel,
            dispatch: Dispatch::new(Registry::default().with(layer)),
            _provider: provider,
        }
    }
}

fn properties() -> [(&'static str, &'static str); 4] {
    black_box(VALUES)
}

/// A span without parent or children, with four attributes.
fn one(threads: usize, share: Ratio) -> Table {
    let Peers { tracer, otel, dispatch, _provider } = &Peers::new(share);
    let share = share.get();
    let title =
        if share < 1.0 { "B6 root span, 4 attributes, 10 % sampled" } else { "B6 root span, 4 attributes, all kept" };
    Race::new(title, threads)
        .case("mcpscope", || {
            let mut span = tracer.span(Component::Tools, NAME, None);
            for (name, value) in properties() {
                span.attribute(name, value);
            }
        })
        .case("fastrace", || {
            let sampled = share >= 1.0 || fastrand::f64() < share;
            let span = fastrace::Span::root(NAME, SpanContext::random().sampled(sampled));
            span.add_properties(|| properties().map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value))));
        })
        .case("OpenTelemetry SDK", || {
            let mut span = otel.start(NAME);
            if span.is_recording() {
                span.set_attributes(properties().map(|(name, value)| KeyValue::new(name, value)));
            }
            span.end();
        })
        .case("tracing-opentelemetry", || {
            let [method, tool, protocol, transport] = properties().map(|(_, value)| value);
            tracing::dispatcher::with_default(dispatch, || {
                drop(tracing::info_span!(
                    "tools/call echo",
                    mcp.method.name = method,
                    gen_ai.tool.name = tool,
                    mcp.protocol.version = protocol,
                    network.transport = transport
                ));
            });
        })
        .case("two readings of the clock", || (Instant::now(), Instant::now()))
        .case("the same, a lock of its own, a copy of the record", floor)
        .run()
}

/// The least that it takes to keep a span such that it can be found when it has ended: what it is written as, behind a lock
/// that nobody else wants.
fn floor() -> (Instant, Instant) {
    const RECORD_BYTES: usize = 218;
    thread_local! {
        static RING: Mutex<(usize, Vec<u8>)> = Mutex::new((0, vec![0; RECORD_BYTES * KEPT]));
    }
    let started = Instant::now();
    RING.with(|ring| {
        let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, block) = &mut *ring;
        *next = (*next + 1) % KEPT;
        block[*next * RECORD_BYTES..][..RECORD_BYTES].copy_from_slice(&black_box([7; RECORD_BYTES]));
    });
    (started, Instant::now())
}

/// A root with four children and four attributes of its own.
fn five(threads: usize) -> Table {
    let Peers { tracer, otel, dispatch, _provider } = &Peers::new(Ratio::ONE);
    Race::new("root span with 4 attributes and 4 children, all kept", threads)
        .case("mcpscope", || {
            let mut root = tracer.span(Component::Tools, NAME, None);
            for (name, value) in properties() {
                root.attribute(name, value);
            }
            for child in ["decode", "route", "execute", "encode"] {
                root.child(child).end();
            }
        })
        .case("fastrace", || {
            let root = fastrace::Span::root(NAME, SpanContext::random());
            root.add_properties(|| properties().map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value))));
            let _guard = root.set_local_parent();
            for child in ["decode", "route", "execute", "encode"] {
                drop(LocalSpan::enter_with_local_parent(child));
            }
        })
        .case("OpenTelemetry SDK", || {
            let mut root = otel.start(NAME);
            root.set_attributes(properties().map(|(name, value)| KeyValue::new(name, value)));
            let context = opentelemetry::Context::new();
            let context =
                opentelemetry::trace::TraceContextExt::with_remote_span_context(&context, root.span_context().clone());
            for child in ["decode", "route", "execute", "encode"] {
                otel.start_with_context(child, &context).end();
            }
            root.end();
        })
        .case("tracing-opentelemetry", || {
            let [method, tool, protocol, transport] = properties().map(|(_, value)| value);
            tracing::dispatcher::with_default(dispatch, || {
                let root = tracing::info_span!(
                    "tools/call echo",
                    mcp.method.name = method,
                    gen_ai.tool.name = tool,
                    mcp.protocol.version = protocol,
                    network.transport = transport
                );
                drop(tracing::info_span!(parent: &root, "decode"));
                drop(tracing::info_span!(parent: &root, "route"));
                drop(tracing::info_span!(parent: &root, "execute"));
                drop(tracing::info_span!(parent: &root, "encode"));
            });
        })
        .run()
}

/// What the proxy does for each call that it sent on: both spans, with all attributes of the conventions and the times that it
/// has already.
fn calls() -> Table {
    let Peers { tracer, .. } = &Peers::new(Ratio::ONE);
    let started = Instant::now();
    let call = Call {
        server: "everything".into(),
        transport: Transport::Http,
        direction: Direction::ToServer,
        protocol: Some(Protocol::V2025_11_25),
        method: Method::new("tools/call"),
        id: Some(RequestId::Integer(7)),
        target: Some("echo".into()),
        session: Some(Arc::from("2b1f6c54-1f4f-4d52-9f5d-6f0d1c9e4f11")),
        request_bytes: 300,
        context: None,
        tracestate: None,
    };
    let root = tracer.start(Component::JsonRpc, None);
    let record = |forwarded| CallRecord {
        call: call.clone(),
        started,
        duration: Duration::from_millis(3),
        outcome: Outcome::Ok,
        response_bytes: 500,
        injected: None,
        trace_id: root.trace_id,
        span_id: root.span_id,
        forwarded,
        events: Vec::new(),
        dropped_events: 0,
    };
    let sent = started + Duration::from_micros(20);
    let forwarded = mcpscope_core::Forwarded { span_id: tracer.new_span_id(), queued: sent, sent };
    let (alone, forwarded) = (record(None), record(Some(forwarded)));
    Race::new("a call as it is recorded, times given", 1)
        .case("server and client span, 9 and 8 attributes", || tracer.record_call(black_box(&forwarded), root))
        .case("server span only", || tracer.record_call(black_box(&alone), root))
        .case("start of a trace", || tracer.start(Component::JsonRpc, None))
        .run()
}
