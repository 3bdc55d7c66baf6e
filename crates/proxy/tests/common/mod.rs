//! What the tests of both relays stand on: a probe whose counts can be read, faults, and a running HTTP relay.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_chaos::{Controller, Plan, Request};
use mcpscope_core::{CallRecord, ClockAnchor, Direction, FaultId, Transport};
use mcpscope_hooks::{Observer, Parts, Probe};
use mcpscope_metrics::{Desc, HistogramSnapshot, Metrics, Value, desc};
use mcpscope_proxy::http::{Config, Upstream, serve};
use mcpscope_test_support::{Wire, eventually, within};
use mcpscope_tracing::Tracer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// The server's name in every label.
pub(crate) const SERVER: &str = "s";

/// The counts of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    metrics: Metrics,
    pub(crate) tracer: Tracer,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let metrics = Metrics::new(&mcpscope_metrics::Config::default(), anchor);
        Self { metrics, tracer: Tracer::new(&mcpscope_tracing::Config::default(), anchor, 1) }
    }

    pub(crate) fn probe(&self, transport: Transport) -> Probe {
        Probe::new(self.parts(transport))
    }

    pub(crate) fn parts(&self, transport: Transport) -> Parts {
        let (metrics, tracer) = (Some(self.metrics.clone()), Some(self.tracer.clone()));
        Parts { metrics, tracer, ..Parts::new(SERVER, transport) }
    }

    pub(crate) fn text(&self) -> String {
        self.metrics.snapshot(Instant::now()).to_prometheus()
    }

    /// What has counted at all, for the message of a test that fails.
    pub(crate) fn counts(&self) -> Vec<String> {
        let counts = |line: &&str| !line.starts_with('#') && !line.contains("_bucket{") && !line.ends_with(" 0");
        self.text().lines().filter(counts).map(str::to_owned).collect()
    }

    /// The value of a series; 0 if it is not there.
    pub(crate) fn value(&self, series: &str) -> i64 {
        let text = self.text();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a whole number"))
    }

    /// The series of a histogram that carry these labels, and have any records.
    pub(crate) fn histograms(&self, family: &Desc, labels: &[(&str, &str)]) -> Vec<HistogramSnapshot> {
        let snapshot = self.metrics.snapshot(Instant::now());
        let wanted = snapshot
            .series(family)
            .filter(|series| labels.iter().all(|(name, value)| series.labels.get(name) == Some(value)));
        let values = wanted.filter_map(|series| match &series.value {
            Value::Histogram(values) if values.count > 0 => Some(HistogramSnapshot::clone(values)),
            _ => None,
        });
        values.collect()
    }

    /// Waits until so many records of a histogram carry these labels, and says what they add up to, in seconds.
    pub(crate) async fn records(&self, family: &Desc, labels: &[(&str, &str)], count: u64) -> f64 {
        eventually(|| {
            let found = self.histograms(family, labels);
            if found.iter().map(|values| values.count).sum::<u64>() == count {
                Ok(found.iter().map(|values| values.sum_ns as f64 / 1e9).sum())
            } else {
                Err(format!("{} {labels:?}: {found:?}", family.prometheus))
            }
        })
        .await
    }

    /// How many sessions are known to have ended, in whatever way.
    pub(crate) fn sessions_ended(&self) -> u64 {
        self.histograms(&desc::SERVER_SESSIONS, &[]).iter().map(|values| values.count).sum()
    }

    /// Waits until a series has this value; a relay counts beside the traffic, so the answer may be there first.
    pub(crate) async fn becomes(&self, series: &str, value: i64) {
        eventually(|| {
            let found = self.value(series);
            if found == value {
                Ok(())
            } else {
                Err(format!("{series} {found} instead of {value}; {:#?}", self.counts()))
            }
        })
        .await;
    }
}

/// The labels of messages that travel this way.
pub(crate) fn way(direction: Direction) -> [(&'static str, &'static str); 1] {
    [("direction", direction.as_str())]
}

/// The labels of sessions that ended like this; no error is an empty one.
pub(crate) fn ended<'a>(protocol: &'a str, network: &'a str, error: &'a str) -> [(&'a str, &'a str); 3] {
    [("mcp_protocol_version", protocol), ("network_transport", network), ("error_type", error)]
}

pub(crate) fn tool_calls(tool: &str, outcome: &str) -> String {
    format!(
        "mcpscope_tool_call_duration_seconds_count{{server=\"s\",tool=\"{tool}\",outcome=\"{outcome}\",injected=\"false\"}}"
    )
}

pub(crate) fn errors(component: &str, kind: &str) -> String {
    format!("mcpscope_component_errors_total{{component=\"{component}\",error_type=\"{kind}\",injected=\"false\"}}")
}

pub(crate) fn operations(component: &str) -> String {
    format!("mcpscope_component_operations_total{{component=\"{component}\",injected=\"false\"}}")
}

pub(crate) fn sessions(protocol: &str) -> String {
    format!("mcpscope_active_sessions{{server=\"s\",protocol=\"{protocol}\"}}")
}

pub(crate) fn connections(transport: Transport) -> String {
    format!("mcpscope_transport_connections{{server=\"s\",transport=\"{transport}\"}}")
}

pub(crate) fn dropped(what: &str) -> String {
    format!("mcpscope_dropped_total{{what=\"{what}\"}}")
}

pub(crate) fn queued(direction: &str) -> String {
    format!("mcpscope_message_queue_depth{{server=\"s\",direction=\"{direction}\"}}")
}

/// An engine, with the probe that asks it.
#[derive(Debug)]
pub(crate) struct Chaos {
    pub(crate) controller: Controller,
    pub(crate) probe: Probe,
}

impl Chaos {
    /// Without a fault yet.
    pub(crate) fn new(parts: Parts) -> Self {
        let clock = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        // A leak is a test's to find, and stops nothing.
        let plan = Plan { test_duration: Duration::from_secs(600), automatic_stop: false, ..Plan::default() };
        let engine = mcpscope_chaos::Parts::new(plan, 42, clock);
        let (controller, injector) = mcpscope_chaos::new(engine).expect("a plan");
        Self { controller, probe: Probe::new(Parts { injector: Some(injector), ..parts }) }
    }

    /// Starts a fault, for ten minutes unless told otherwise. Parameters are written as `name=value`.
    pub(crate) fn start(&self, scenario: &str, parameters: &[&str]) -> FaultId {
        let request = parameters.iter().fold(Request::new(scenario), |request, parameter| {
            let (name, value) = parameter.split_once('=').expect("name=value");
            request.with(name, value)
        });
        let lasts = parameters.iter().any(|parameter| parameter.starts_with("duration="));
        let request = if lasts { request } else { request.with("duration", "10m") };
        self.controller.start(&request, Instant::now()).expect("it can be started")
    }

    /// A probe with this fault.
    pub(crate) fn with(parts: Parts, scenario: &str, parameters: &[&str]) -> Probe {
        let chaos = Self::new(parts);
        chaos.start(scenario, parameters);
        chaos.probe
    }

    /// Ends a fault, which leaves nothing over; says how often it hit, and how much of that was acted on.
    pub(crate) async fn stop(&self, fault: FaultId) -> (u64, u64) {
        self.controller.stop(fault.0, Instant::now()).expect("it is running");
        self.ended(fault).await
    }

    /// Waits until it has hit so often.
    pub(crate) async fn hits(&self, fault: FaultId, times: u64) {
        eventually(|| {
            let hits = self.controller.experiment(fault.0, Instant::now()).expect("it is running").details.injected;
            if hits == times { Ok(()) } else { Err(hits) }
        })
        .await;
    }

    /// The same of one that has ended, or will soon.
    pub(crate) async fn ended(&self, fault: FaultId) -> (u64, u64) {
        // The time until its end is made up. What lets go of what it held needs real time.
        let is_over = |seconds| {
            let now = Instant::now() + Duration::from_secs(seconds);
            self.controller.drive(now);
            self.controller.experiment(fault.0, now).expect("it was started").status.is_final()
        };
        assert!((0..100).any(is_over), "it has no end");
        self.no_leak(fault).await;
        let report = self.controller.report(fault.0, Instant::now()).expect("it is decided");
        (report.injection.injected, report.injection.observed)
    }

    /// What is left over at this time of a fault that has ended, and where it was looked for, once it is decided.
    pub(crate) fn left_over(&self, fault: FaultId, at: Instant) -> Option<(Option<String>, Vec<String>)> {
        self.controller.drive(at);
        let report = self.controller.report(fault.0, at)?;
        Some((report.leak, report.audit.looked_at)).filter(|(_, looked_at)| !looked_at.is_empty())
    }

    /// Waits until it is decided that nothing is left over of a fault that has ended, in the queues of a relay either.
    pub(crate) async fn lets_go(&self, fault: FaultId) {
        let looked_at = self.no_leak(fault).await;
        assert!(looked_at.iter().any(|place| place == "queues"), "{looked_at:?}");
    }

    /// Waits until it is decided that nothing is left over of a fault that has ended; where it was looked for.
    async fn no_leak(&self, fault: FaultId) -> Vec<String> {
        let decided = || self.left_over(fault, Instant::now()).ok_or("it is looked for");
        let (leak, looked_at) = within(eventually(decided)).await;
        assert_eq!(leak, None, "{looked_at:?}");
        looked_at
    }
}

/// A clock that stands still as long as this lives, but for [`tokio::time::advance`]: a test without progress fails after a
/// minute.
#[derive(Debug)]
pub(crate) struct Frozen {
    _held: mpsc::Sender<()>,
}

impl Frozen {
    pub(crate) fn clock() -> Self {
        tokio::time::pause();
        let (held, let_go) = mpsc::channel();
        // A paused clock goes on by itself when there is nothing to do, but not while anything blocks.
        tokio::task::spawn_blocking(move || let_go.recv_timeout(Duration::from_secs(60)));
        Self { _held: held }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        tokio::time::resume();
    }
}

/// Lets everything pass, but makes the relay hold messages, as while a fault is active.
pub(crate) fn holds(parts: Parts) -> Probe {
    Chaos::with(parts, "lost_request", &["tool=no such tool"])
}

/// Instrumentation that is broken through and through.
#[derive(Debug)]
pub(crate) struct Panics;

impl Observer for Panics {
    fn on_call(&self, _: &CallRecord) {
        panic!("provoked inside recording");
    }
}

/// Counts what came again.
#[derive(Debug, Default)]
pub(crate) struct Again {
    pub(crate) repeated: AtomicU64,
    pub(crate) duplicates: AtomicU64,
}

impl Observer for Again {
    fn on_call(&self, _: &CallRecord) {}

    fn on_repeated(&self, _: Instant) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    fn on_duplicate(&self, _: Instant) {
        self.duplicates.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running HTTP relay. Dropping it ends it at once.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr, probe: Probe) -> Self {
        Self::start_with(upstream, probe, |_| ()).await
    }

    pub(crate) async fn start_with(upstream: SocketAddr, probe: Probe, change: impl FnOnce(&mut Config)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let upstream = Upstream::parse(&format!("http://{upstream}/mcp")).expect("a URL");
        let mut config = Config::new(upstream);
        change(&mut config);
        let (stop, stopped) = oneshot::channel::<()>();
        let mut serving = JoinSet::new();
        serving.spawn(serve(vec![listener], config, probe, async { drop(stopped.await) }));
        Self { address, stop: Some(stop), serving }
    }

    pub(crate) async fn connect(&self) -> Wire {
        Wire::connect(self.address).await.expect("it listens")
    }

    /// Asks it to end gracefully.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) {
        self.stop();
        within(self.serving.join_next()).await.expect("it was started").expect("no panic");
    }
}

/// The trace of [`THEIRS`].
pub(crate) const TRACE: &str = "12345678901234567890123456789012";
/// A client's context.
pub(crate) const THEIRS: &str = "00-12345678901234567890123456789012-1234567890123456-00";

/// What a relay that propagates made of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Proxied {
    AsItWas,
    WithContext,
}

/// Checks that a message is what it was, but for our context.
#[track_caller]
pub(crate) fn proxied(before: &str, after: &str) -> Proxied {
    if before == after {
        return Proxied::AsItWas;
    }
    let [mut before, mut after] = [before, after]
        .map(|message| serde_json::from_str::<serde_json::Value>(message).expect("only JSON is changed"));
    let theirs = before.pointer_mut("/params/_meta").and_then(|meta| meta.as_object_mut()?.remove("traceparent"));
    let meta = after.pointer_mut("/params/_meta").and_then(|meta| meta.as_object_mut()).expect("it has our context");
    let ours = meta.remove("traceparent").expect("it has our context");
    assert!(mcpscope_tracing::parse_traceparent(ours.as_str().expect("text")).is_some(), "{ours}");
    assert_ne!(Some(ours), theirs);
    // What was put around it goes with it.
    for (outer, name) in [("/params", "_meta"), ("", "params")] {
        let is_new = before.pointer(&format!("{outer}/{name}")).is_none();
        let object = after.pointer_mut(outer).and_then(|outer| outer.as_object_mut()).expect("an object");
        if is_new && object.get(name).is_some_and(|inner| inner.as_object().is_some_and(serde_json::Map::is_empty)) {
            object.remove(name);
        }
    }
    assert_eq!(before, after);
    Proxied::WithContext
}
