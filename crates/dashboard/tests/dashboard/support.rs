//! A running dashboard, and a client that sends exactly the bytes it is told to.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, Method, Outcome, Protocol, RequestId, Transport,
};
use mcpscope_dashboard::{Config, DashboardError, Sources, serve};
use mcpscope_health::Reporter;
use mcpscope_metrics::Metrics;
use mcpscope_tracing::Tracer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything here takes, shorter than a test may hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An instance and its dashboard on a free port.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) tracer: Tracer,
    pub(crate) reporter: Reporter,
    pub(crate) anchor: ClockAnchor,
    stop: Option<oneshot::Sender<()>>,
    tasks: JoinSet<Result<(), DashboardError>>,
}

/// What is switched on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observe {
    Everything,
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
        let metrics = Metrics::new(&mcpscope_metrics::Config::default(), anchor);
        let tracer = Tracer::new(&mcpscope_tracing::Config::default(), anchor, 7);
        let (reporter, health) = mcpscope_health::channel(anchor.mono);
        let on = observe == Observe::Everything;
        let sources =
            Sources { metrics: on.then(|| metrics.clone()), tracer: on.then(|| tracer.clone()), health, anchor };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(vec![listener], sources, config, async {
            let _ = stopped.await;
        }));
        Self { addr, metrics, tracer, reporter, anchor, stop: Some(stop), tasks }
    }

    /// Records a tool call that began `at_ms` after the start and took `duration_ms`.
    pub(crate) fn tool_call(&self, tool: &str, at_ms: u64, duration_ms: u64, outcome: Outcome) {
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
        };
        let record = CallRecord {
            call,
            started,
            duration,
            outcome,
            response_bytes: 200,
            injected: None,
            trace_id: root.trace_id,
            span_id: root.span_id,
        };
        self.tracer.record_call(&record).unwrap();
    }

    /// A GET with nothing unusual about it.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.addr)).await
    }

    /// These bytes, and everything that comes back until the connection is closed.
    pub(crate) async fn send(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Answer::read(&mut stream).await
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

/// An answer as it came.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an answer in time").unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_owned(), body: body.to_owned() }
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
