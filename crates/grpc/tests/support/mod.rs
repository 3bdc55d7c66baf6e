//! A server over a hub, for the tests of both halves.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, Method, Outcome, Protocol, RequestId, Transport,
};
use mcpscope_grpc::{Client, Config, serve};
use mcpscope_hub::chaos::{Injector, Parts, Plan};
use mcpscope_hub::health::{Reporter, channel};
use mcpscope_hub::hooks::Instrumentation;
use mcpscope_hub::metrics::Metrics;
use mcpscope_hub::tracing::{self, Tracer};
use mcpscope_hub::{Admin, Calls, ChaosSource, ChaosToken, Hub, Reader, Sources, hub};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub(crate) struct Bench {
    pub(crate) metrics: Metrics,
    pub(crate) tracer: Tracer,
    pub(crate) reporter: Reporter,
    pub(crate) reader: Reader,
    pub(crate) admin: Admin,
    pub(crate) config: Config,
    pub(crate) hub: Option<Hub>,
}

/// What a test has while the server runs.
pub(crate) struct Running<'a> {
    pub(crate) bench: &'a Bench,
    pub(crate) addr: SocketAddr,
}

impl Bench {
    /// With everything switched on.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With what `change` leaves of it.
    pub(crate) fn with(change: impl FnOnce(&mut Sources)) -> Self {
        let anchor = ClockAnchor { mono: Instant::now().into_std(), wall: SystemTime::now() };
        let metrics = Metrics::new(&mcpscope_hub::metrics::Config::default(), anchor);
        let tracer = Tracer::new(&tracing::Config { max_traces: 64, ..tracing::Config::default() }, anchor, 1);
        let (reporter, health) = channel(anchor.mono);
        let mut sources = Sources {
            metrics: Some(metrics.clone()),
            tracer: Some(tracer.clone()),
            reporter: reporter.clone(),
            health,
            instrumentation: Some(Instrumentation::new(true)),
            chaos: None,
            anchor,
        };
        change(&mut sources);
        let settings = mcpscope_hub::Config { update_interval: Duration::from_millis(50), ..Default::default() };
        let (hub, reader, admin) = hub(sources, settings);
        Self { metrics, tracer, reporter, reader, admin, config: Config::default(), hub: Some(hub) }
    }

    /// With an engine that starts what is asked for with the token `token`, and what its data path asks.
    pub(crate) fn with_chaos() -> (Self, Injector) {
        let mut injector = None;
        let mut bench = Self::with(|sources| {
            let calls = Arc::new(Calls::new(sources.anchor.mono, sources.health.clone()));
            let parts = Parts { steady_state: Some(calls.clone()), ..Parts::new(Plan::default(), 7, sources.anchor) };
            let (controller, decides) = mcpscope_hub::chaos::new(parts).unwrap();
            sources.chaos = Some(ChaosSource::new(controller, calls));
            injector = Some(decides);
        });
        bench.config.chaos_token = ChaosToken::new("token");
        (bench, injector.unwrap())
    }

    /// Drives the engine, where there is one.
    async fn chaos(&self) {
        match self.admin.chaos() {
            Ok(chaos) => chaos.clone().run().await,
            Err(_) => pending().await,
        }
    }

    /// Runs hub and server beside `test`.
    pub(crate) async fn run<T>(mut self, test: impl AsyncFnOnce(&Running<'_>) -> T) -> T {
        let hub = self.hub.take().unwrap();
        let (listener, addr) = listen().await;
        let server =
            serve(vec![listener], self.reader.clone(), self.admin.clone(), self.config.clone(), std::future::pending());
        let running = Running { bench: &self, addr };
        tokio::select! {
            () = hub.run() => panic!("the hub ended"),
            () = self.chaos() => panic!("the engine ended"),
            ended = server => panic!("the server ended: {ended:?}"),
            result = test(&running) => result,
        }
    }

    /// Runs hub and server beside `test`, which has the server stopped by the sender, until both have ended.
    pub(crate) async fn run_to_the_end(mut self, test: impl AsyncFnOnce(&Running<'_>, oneshot::Sender<()>)) {
        let hub = self.hub.take().unwrap();
        let (listener, addr) = listen().await;
        let (stop, stopped) = oneshot::channel();
        let config = self.config.clone();
        let server = serve(vec![listener], self.reader.clone(), self.admin.clone(), config, async {
            let _ = stopped.await;
        });
        let running = Running { bench: &self, addr };
        tokio::select! {
            () = hub.run() => panic!("the hub ended"),
            (ended, ()) = async { tokio::join!(server, test(&running, stop)) } => ended.unwrap(),
        }
    }

    /// A tool call that took 5 ms, as metrics and as a trace.
    pub(crate) fn call(&self, tool: &str) {
        let at = Instant::now().into_std();
        self.metrics.tool_calls("s", tool, "ok", false).record(Duration::from_millis(5), at);
        let root = self.tracer.start(Component::JsonRpc, None);
        let call = Call {
            server: "s".into(),
            transport: Transport::Stdio,
            direction: Direction::ToServer,
            protocol: Some(Protocol::V2025_11_25),
            method: Method::new("tools/call"),
            id: Some(RequestId::Integer(1)),
            target: Some(tool.into()),
            session: None,
            request_bytes: 1,
            context: None,
            tracestate: None,
        };
        let record = CallRecord {
            call,
            started: at,
            duration: Duration::from_millis(5),
            outcome: Outcome::Ok,
            response_bytes: 1,
            injected: None,
            trace_id: root.trace_id,
            span_id: root.span_id,
            forwarded: None,
            events: Vec::new(),
            dropped_events: 0,
        };
        self.tracer.record_call(&record, root).unwrap();
    }

    /// What was dropped of a kind.
    pub(crate) fn dropped(&self, what: &str) -> u64 {
        let text = self.metrics.snapshot(Instant::now().into_std()).to_prometheus();
        let prefix = format!("mcpscope_dropped_total{{what=\"{what}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).expect("no such counter").parse().unwrap()
    }
}

impl Running<'_> {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.addr.to_string()).await.unwrap()
    }
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}
