//! A running dashboard, and a client that sends exactly the bytes it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, Era, ErrorType, Method, Outcome, Protocol, RequestId,
    Transport,
};
use mcpscope_dashboard::{Config, DashboardError, serve};
use mcpscope_hub::chaos::{Endpoint, Injector, Parts, Plan};
use mcpscope_hub::health::Reporter;
use mcpscope_hub::hooks::Instrumentation;
use mcpscope_hub::metrics::Metrics;
use mcpscope_hub::tracing::Tracer;
use mcpscope_hub::{Admin, Calls, ChaosSource, Hub, Reader, Sources, hub};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes, shorter than a test may hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An instance, and its dashboard on a free port.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) tracer: Tracer,
    pub(crate) reporter: Reporter,
    pub(crate) anchor: ClockAnchor,
    pub(crate) reader: Reader,
    /// Where chaos is on: what decides on the traffic.
    pub(crate) injector: Option<Injector>,
    /// The servers that it knows.
    servers: Vec<Endpoint>,
    /// Makes frames once it runs.
    hub: Option<Hub>,
    background: JoinSet<()>,
    stop: Option<oneshot::Sender<()>>,
    tasks: JoinSet<Result<(), DashboardError>>,
}

/// What is switched on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observe {
    /// But chaos.
    Everything,
    EverythingAndChaos,
    Nothing,
}

impl Running {
    pub(crate) async fn start(config: Config) -> Self {
        Self::with(config, Observe::Everything).await
    }

    pub(crate) async fn with(config: Config, observe: Observe) -> Self {
        // 2027-01-15 08:00:00 UTC
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let anchor = ClockAnchor { mono: Instant::now(), wall };
        let metrics = Metrics::new(&mcpscope_hub::metrics::Config::default(), anchor);
        let tracer = Tracer::new(&mcpscope_hub::tracing::Config::default(), anchor, 7);
        let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
        let on = observe != Observe::Nothing;
        let (chaos, injector) = (observe == Observe::EverythingAndChaos)
            .then(|| {
                let calls = Arc::new(Calls::new(anchor.mono, health.clone()));
                let (controller, injector) = mcpscope_hub::chaos::new(Parts::new(Plan::default(), 7, anchor)).unwrap();
                (ChaosSource::new(controller, calls), injector)
            })
            .unzip();
        let sources = Sources {
            metrics: on.then(|| metrics.clone()),
            tracer: on.then(|| tracer.clone()),
            reporter: reporter.clone(),
            health,
            instrumentation: on.then(|| Instrumentation::new(true)),
            chaos,
            anchor,
        };
        let frames = mcpscope_hub::Config { update_interval: Duration::from_millis(100), ..Default::default() };
        let (hub, reader, admin) = hub(sources, frames);
        let mut background = JoinSet::new();
        if let Ok(chaos) = admin.chaos() {
            background.spawn(chaos.clone().run());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(vec![listener], reader.clone(), admin, config, async {
            let _ = stopped.await;
        }));
        Self {
            addr,
            metrics,
            tracer,
            reporter,
            anchor,
            reader,
            injector,
            servers: Vec::new(),
            hub: Some(hub),
            background,
            stop: Some(stop),
            tasks,
        }
    }

    /// Tells the chaos engine of a server over HTTP, where faults of the older revisions mean something.
    pub(crate) fn serves(&mut self, name: &str) {
        let server = self.injector.as_ref().expect("chaos is on").endpoint(name, Transport::Http, false);
        server.saw(Era::Legacy);
        self.servers.push(server);
    }

    /// Lets frames be made, ten a second, and waits for the first.
    pub(crate) async fn make_frames(&mut self) {
        let mut frames = self.reader.subscribe();
        self.background.spawn(self.hub.take().unwrap().run());
        while frames.next().await.unwrap().sequence == 0 {}
    }

    /// How often this was dropped, once it was at least as often as `expected`.
    pub(crate) async fn dropped(&self, what: &str, expected: u64) -> u64 {
        let line = format!("mcpscope_dropped_total{{what=\"{what}\"}} ");
        let count = async {
            loop {
                let page = self.metrics.snapshot(Instant::now()).to_prometheus();
                let count = page.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap());
                if count >= expected {
                    return count;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, count).await.expect("it is counted")
    }

    /// Records a tool call that began `at_ms` after the start and took `duration_ms`.
    pub(crate) fn tool_call(&self, tool: &str, at_ms: u64, duration_ms: u64, outcome: Outcome) {
        self.tool_call_with(tool, at_ms, duration_ms, outcome, |_| ());
    }

    /// The same, of which `change` knows more.
    pub(crate) fn tool_call_with(
        &self,
        tool: &str,
        at_ms: u64,
        duration_ms: u64,
        outcome: Outcome,
        change: impl FnOnce(&mut CallRecord),
    ) {
        let (started, duration) = (self.anchor.mono + Duration::from_millis(at_ms), Duration::from_millis(duration_ms));
        self.metrics.tool_calls("everything", tool, outcome.as_label(), false).record(duration, started + duration);
        self.metrics.component_operations(Component::Tools, false).increment(started + duration);
        if let Some(error) = outcome.server_error() {
            self.metrics.component_errors(Component::Tools, &error.as_label(), false).increment(started + duration);
        }
        let root = self.tracer.start(Component::JsonRpc, None);
        let call = Call {
            server: "everything".into(),
            transport: Transport::Stdio,
            direction: Direction::ToServer,
            protocol: Some(Protocol::V2025_11_25),
            method: Method::new("tools/call"),
            id: Some(RequestId::Integer(1)),
            target: Some(tool.into()),
            session: None,
            request_bytes: 100,
            context: None,
            tracestate: None,
        };
        let mut record = CallRecord {
            call,
            started,
            duration,
            outcome,
            response_bytes: 200,
            injected: None,
            trace_id: root.trace_id,
            span_id: root.span_id,
            forwarded: None,
            events: Vec::new(),
            dropped_events: 0,
        };
        change(&mut record);
        self.tracer.record_call(&record, root).unwrap();
    }

    /// A GET with nothing unusual about it.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_with(path, "").await
    }

    /// A GET with these header lines, each of which ends with `\r\n`.
    pub(crate) async fn get_with(&self, path: &str, headers: &str) -> Answer {
        let host = self.addr;
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n")).await
    }

    /// These bytes, and everything that comes back until the connection is closed.
    pub(crate) async fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(&mut stream).await
    }

    /// A request of this method, with these header lines and this body.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let (host, length) = (self.addr, body.len());
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
        .await
    }

    /// Asks the dashboard to end.
    pub(crate) fn stop(&mut self) {
        self.stop.take();
    }

    /// Asks the dashboard to end and waits until it has.
    pub(crate) async fn ended(&mut self) -> Result<(), DashboardError> {
        self.stop();
        timeout(PATIENCE, self.tasks.join_next()).await.expect("it ends in time").unwrap().expect("it does not panic")
    }
}

/// One window with an echo that worked and an add that failed.
pub(crate) async fn with_two_calls() -> Running {
    let running = Running::start(Config::default()).await;
    running.tool_call("echo", 1000, 12, Outcome::Ok);
    running.tool_call("add", 2000, 30, Outcome::error(ErrorType::Tool));
    running.metrics.registry_operations("everything", "list").increment(running.anchor.mono + Duration::from_secs(3));
    running.metrics.close_window(running.anchor.mono + Duration::from_secs(10));
    running
}

/// The JSON under a path, with everything that follows from the time left out.
pub(crate) async fn json(running: &Running, path: &str) -> String {
    let answer = running.get(path).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{}", answer.body);
    answer.json()
}

/// What a hub with nothing to observe gives out. The hub must be kept.
pub(crate) fn nothing() -> (Hub, Reader, Admin) {
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
    let sources = Sources { metrics: None, tracer: None, reporter, health, instrumentation: None, chaos: None, anchor };
    hub(sources, mcpscope_hub::Config::default())
}

/// An answer as it came.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    /// As text; what is no text is in `bytes`.
    pub(crate) body: String,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) async fn read(stream: &mut TcpStream) -> Self {
        let mut whole = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut whole)).await.expect("an answer in time").unwrap();
        let end = whole.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer but {:?}", String::from_utf8_lossy(&whole)));
        let head = String::from_utf8(whole[..end].to_vec()).unwrap();
        let bytes = whole.split_off(end + 4);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find_map(|(n, value)| n.eq_ignore_ascii_case(name).then_some(value))
    }

    /// The body as JSON, indented, with what the clock decides replaced.
    pub(crate) fn json(&self) -> String {
        let mut value: serde_json::Value =
            serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body));
        for clock in ["timestamp", "uptime", "system_uptime", "memory_usage", "cpu_usage"] {
            if let Some(field) = value.get_mut(clock) {
                assert!(field.is_u64() || clock == "cpu_usage" && field.is_f64(), "{clock} is {field}");
                *field = format!("<{clock}>").into();
            }
        }
        serde_json::to_string_pretty(&value).unwrap() + "\n"
    }

    /// Checks that it is problem JSON of this status, and gives its detail.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        let value: serde_json::Value =
            serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body));
        assert_eq!(self.status, status, "{value}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!((&value["type"], &value["status"]), (&"about:blank".into(), &status.into()));
        assert!(value["title"].is_string());
        assert_eq!(value.as_object().unwrap().len(), 4);
        value["detail"].as_str().unwrap().to_owned()
    }
}
