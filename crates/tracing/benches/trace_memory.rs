//! What 1000 traces of five spans take in memory.

use std::borrow::Cow;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fastrace::collector::{Config as CollectorConfig, Reporter, SpanContext, SpanRecord};
use fastrace::local::LocalSpan;
use mcpscope_core::{ClockAnchor, Component};
use mcpscope_test_support::bench::{self, Ratio, Report, Table};
use mcpscope_tracing::{Config, Tracer};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const TRACES: usize = 1000;
const NAME: &str = "tools/call echo";
const CHILDREN: [&str; 4] = ["decode", "route", "execute", "encode"];
const ATTRIBUTES: [&str; 4] = ["mcp.method.name", "gen_ai.tool.name", "mcp.protocol.version", "network.transport"];

fn main() -> Result<(), Box<dyn Error>> {
    if !bench::wanted() {
        return Ok(());
    }
    let mut report = Report::new("trace_memory");
    let table = Table::new("B7 a trace of 5 spans, 4 attributes, one of 1000", "bytes", Ratio::OursToPeer)
        .row("mcpscope", vec![ours()])
        .row("fastrace, its records", vec![fastrace_records()])
        .row("OpenTelemetry SDK, its SpanData", vec![otel()]);
    report.add(table);
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

/// A different tool each time, as on the wire: the text is nobody's constant.
fn values(n: usize) -> [(&'static str, String); 4] {
    let values = ["tools/call".to_owned(), format!("tool_{:04}", n % 50), "2025-11-25".to_owned(), "tcp".to_owned()];
    let mut names = ATTRIBUTES.into_iter();
    values.map(|value| (names.next().unwrap_or_default(), value))
}

/// Bytes per trace that `fill` leaves in what it returns.
fn held<T>(fill: impl FnOnce() -> T) -> f64 {
    let before = ALLOCATOR.current_usage();
    let filled = fill();
    let after = ALLOCATOR.current_usage();
    drop(filled);
    (after - before) as f64 / TRACES as f64
}

fn ours() -> f64 {
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    held(|| {
        let tracer = Tracer::new(&Config::default(), anchor, 7);
        // More than are kept, so that the store is as full as it gets, reserve included.
        for n in 0..2 * TRACES {
            let mut root = tracer.span(Component::JsonRpc, NAME, None);
            for (name, value) in &values(n) {
                root.attribute(name, value);
            }
            for child in CHILDREN {
                root.child(child).end();
            }
        }
        tracer
    })
}

struct Collected(Arc<Mutex<Vec<SpanRecord>>>);

impl Reporter for Collected {
    fn report(&mut self, spans: Vec<SpanRecord>) {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without what the vector has too much.
        collected.reserve_exact(spans.len());
        collected.extend(spans);
    }
}

fn fastrace_records() -> f64 {
    let collected = Arc::new(Mutex::new(Vec::new()));
    let interval = Duration::from_millis(10);
    fastrace::set_reporter(Collected(Arc::clone(&collected)), CollectorConfig::default().report_interval(interval));
    for n in 0..TRACES {
        let root = fastrace::Span::root(NAME, SpanContext::random());
        root.add_properties(|| values(n).map(|(name, value)| (Cow::Borrowed(name), Cow::<'static, str>::Owned(value))));
        let _guard = root.set_local_parent();
        for child in CHILDREN {
            drop(LocalSpan::enter_with_local_parent(child));
        }
    }
    fastrace::flush();
    // Copies of what it handed over: exactly what the records hold, without what its collector has on the way.
    let records = collected.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let copied = held(|| records.clone());
    copied * 5.0 * TRACES as f64 / records.len() as f64
}

fn otel() -> f64 {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let tracer = provider.tracer("bench");
    for n in 0..TRACES {
        let mut root = tracer.start(NAME);
        root.set_attributes(values(n).map(|(name, value)| KeyValue::new(name, value)));
        let context = opentelemetry::Context::new().with_remote_span_context(root.span_context().clone());
        for child in CHILDREN {
            tracer.start_with_context(child, &context).end();
        }
        root.end();
    }
    let spans = exporter.get_finished_spans().unwrap_or_default();
    held(|| spans.clone()) * 5.0 * TRACES as f64 / spans.len() as f64
}
