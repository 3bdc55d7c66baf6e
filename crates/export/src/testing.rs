//! Records, traces and metrics for the tests of this crate.

use std::io::{self, Write};
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, Method, Outcome, Protocol, Ratio, RequestId, SpanId, TraceId,
    Transport,
};
use mcpscope_hub::{Config, Reader, Sources, hub};
use mcpscope_metrics::{Metrics, Value, desc};
use mcpscope_tracing::{Export, Exports, Sampler, Tracer};

/// What is observed, and how to look at it.
pub(crate) struct World {
    pub(crate) tracer: Tracer,
    pub(crate) reader: Reader,
    pub(crate) reporter: mcpscope_health::Reporter,
}

/// What is logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Collects what this thread logs, from this level on, until the guard is dropped.
    pub(crate) fn collect(&self, level: tracing::Level) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let to_log = tracing_subscriber::fmt().with_max_level(level).with_writer(move || log.clone()).with_ansi(false);
        tracing::subscriber::set_default(to_log.finish())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// When all of it began.
pub(crate) const BEGAN: Duration = Duration::from_secs(1_000_000);

impl World {
    /// One whose tracer holds so many bytes for the exporter.
    pub(crate) fn new(max_bytes: usize) -> Self {
        // On the runtime's clock, which tests stop.
        let anchor = ClockAnchor { mono: tokio::time::Instant::now().into_std(), wall: SystemTime::UNIX_EPOCH + BEGAN };
        let metrics = Metrics::new(&mcpscope_metrics::Config::default(), anchor);
        let sampler = Sampler { share: Ratio::ONE, parent_based: false };
        let export = Some(Export { sampler, max_bytes });
        let tracer =
            Tracer::new(&mcpscope_tracing::Config { export, ..mcpscope_tracing::Config::default() }, anchor, 7);
        let (reporter, health) = mcpscope_health::channel(anchor.mono);
        let sources = Sources {
            metrics: Some(metrics),
            tracer: Some(tracer.clone()),
            reporter: reporter.clone(),
            health,
            instrumentation: None,
            chaos: None,
            anchor,
        };
        let (_hub, reader, _admin) = hub(sources, Config::default());
        Self { tracer, reader, reporter }
    }

    pub(crate) fn exports(&self) -> Exports {
        self.tracer.exports().unwrap()
    }

    /// Records so many calls, each of one span.
    pub(crate) fn call(&self, times: u64) {
        for _ in 0..times {
            let root = self.tracer.start(Component::JsonRpc, None);
            let mut record = record("tools/call", Some("echo"), Outcome::Ok);
            (record.trace_id, record.span_id) = (root.trace_id, root.span_id);
            // What is kept here is another matter.
            let _ = self.tracer.record_call(&record, root);
        }
    }

    /// What was dropped by this name.
    pub(crate) fn dropped(&self, what: &str) -> u64 {
        let snapshot = self.reader.snapshot().unwrap();
        let mut series = snapshot.series(&desc::DROPPED).filter(|series| series.labels.get("what") == Some(what));
        match series.next().map(|series| &series.value) {
            Some(Value::Counter(dropped)) => *dropped,
            other => panic!("{other:?}"),
        }
    }

    /// How the component is that exporting belongs to: its state, and its message.
    pub(crate) fn health(&self) -> Option<(mcpscope_health::State, String)> {
        let report = self.reader.health();
        let component = report.components.get("observability")?;
        Some((component.state, component.message.clone()))
    }
}

/// A record of a call that took 5 ms.
pub(crate) fn record(method: &str, target: Option<&str>, outcome: Outcome) -> CallRecord {
    CallRecord {
        call: Call {
            server: "s".into(),
            transport: Transport::Stdio,
            direction: Direction::ToServer,
            protocol: Some(Protocol::V2025_11_25),
            method: Method::new(method),
            id: Some(RequestId::Integer(1)),
            target: target.map(Into::into),
            session: None,
            request_bytes: 10,
            context: None,
            tracestate: None,
        },
        started: tokio::time::Instant::now().into_std(),
        duration: Duration::from_millis(5),
        outcome,
        response_bytes: 20,
        injected: None,
        trace_id: TraceId(NonZeroU128::MIN),
        span_id: SpanId(NonZeroU64::MIN),
        forwarded: None,
        events: Vec::new(),
        dropped_events: 0,
    }
}
