//! One frame to a hundred WebSocket clients, beside a server that encodes and compresses it for each of them.
//!
//! The servers are processes of their own, so the clients, all in this one, do not count. Both run the same hub over the same
//! data, so the work of its ticks is in both; the first table of each encoding has it, the second has it taken off.

use std::future::pending;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures_util::future::try_join_all;
use futures_util::{SinkExt as _, StreamExt as _};
use mcpscope_core::{
    Call, CallRecord, ClockAnchor, Component, Direction, ErrorType, Method, Outcome, Protocol, RequestId, Transport,
};
use mcpscope_dashboard::serve;
use mcpscope_hub::health::State;
use mcpscope_hub::metrics::Metrics;
use mcpscope_hub::tracing::Tracer;
use mcpscope_hub::{Admin, Config, Frame, Hub, Reader, Sources, hub};
use mcpscope_test_support::bench::{self, Ratio, Report, Table};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

/// The dashboard's own, so that the peer writes the same JSON with the same code.
#[allow(dead_code, reason = "only one of them is used")]
#[path = "../src/views.rs"]
mod views;

const ROUNDS: usize = 5;
const CLIENTS: usize = 100;
/// So long that the peer, too, has sent a frame before the next one comes.
const UPDATE_INTERVAL: Duration = Duration::from_millis(500);
/// Frames in one round.
const FRAMES: u32 = 3;
/// More than a round takes; a server that does not send in time ends the benchmark.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a round may be repeated in which a server did not keep up with the frames.
const ATTEMPTS: usize = 5;

const SERIES_SHOWN: usize = Config::DEFAULT_MAX_SERIES;
const TRACES_SHOWN: usize = Config::DEFAULT_MAX_TRACES;
/// Tools of the instance; each has one series, or two where a call failed.
const TOOLS: u64 = 240;
const CALLS: u64 = 3000;

const OURS: &str = "mcpscope";
const PEER_TEXT: &str = "peer-text";
const PEER_GZIP: &str = "peer-gzip";

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    match std::env::args().nth(1).as_deref() {
        Some(part @ (OURS | PEER_TEXT | PEER_GZIP)) => Ok(play(part)?),
        _ if bench::wanted() => measure(),
        _ => Ok(()),
    }
}

fn measure() -> Result<(), Error> {
    let mut report = Report::new("fanout");
    let clients = Builder::new_current_thread().enable_all().build()?;
    let mut ours = Server::start(OURS)?;
    for (encoding, peer, path) in [("gzip", PEER_GZIP, "/ws?encoding=gzip"), ("text", PEER_TEXT, "/ws")] {
        let mut peer = Server::start(peer)?;
        let (mut costs, mut bytes) = ([const { Vec::new() }; 3], [const { Vec::new() }; 2]);
        for _ in 0..ROUNDS {
            for (at, server) in [&mut ours, &mut peer].into_iter().enumerate() {
                let (cost, size) = server.round(&clients, path)?;
                costs[at].push(cost);
                bytes[at].push(size as f64);
            }
            costs[2].push(ours.alone()?);
        }
        let title = |what: &str| format!("{encoding}, {CLIENTS} clients: {what}");
        let [our_cost, peer_cost, hub] = costs;
        let less = |costs: &[f64]| costs.iter().zip(&hub).map(|(cost, hub)| cost - hub).collect();
        let (our_rest, peer_rest) = (less(&our_cost), less(&peer_cost));
        report.add(
            Table::new(title("server CPU per frame"), "ms", Ratio::PeerToOurs)
                .row("mcpscope", our_cost)
                .row("encoded per client", peer_cost)
                .row("the hub alone, no clients", hub),
        );
        report.add(
            Table::new(title("the same less the hub"), "ms", Ratio::PeerToOurs)
                .row("mcpscope", our_rest)
                .row("encoded per client", peer_rest),
        );
        let [our_bytes, peer_bytes] = bytes;
        report.add(
            Table::new(title("one message"), "bytes", Ratio::PeerToOurs)
                .row("mcpscope", our_bytes)
                .row("encoded per client", peer_bytes),
        );
    }
    Ok(report.finish(env!("CARGO_TARGET_TMPDIR"))?)
}

/// A server's process. It ends with its input, so never after us.
struct Server {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    addr: SocketAddr,
}

/// What a server says of itself.
#[derive(Clone, Copy)]
struct Reading {
    cpu: Duration,
    /// The number of the newest frame.
    sequence: u64,
}

impl Server {
    fn start(part: &str) -> Result<Self, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(part).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a child has no pipes".into());
        };
        let mut stdout = BufReader::new(stdout);
        let mut addr = String::new();
        stdout.read_line(&mut addr)?;
        Ok(Self { child, stdin, stdout, addr: addr.trim().parse()? })
    }

    fn read(&mut self) -> Result<Reading, Error> {
        writeln!(self.stdin)?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let (cpu_ns, sequence) = line.trim().split_once(' ').ok_or("the server is gone")?;
        Ok(Reading { cpu: Duration::from_nanos(cpu_ns.parse()?), sequence: sequence.parse()? })
    }

    /// The CPU time of a frame to all clients, in ms, and the size of its message.
    fn round(&mut self, clients: &Runtime, path: &str) -> Result<(f64, usize), Error> {
        let url = format!("ws://{}{path}", self.addr);
        let opened = async {
            let mut sockets = try_join_all((0..CLIENTS).map(|_| connect(self.addr, &url))).await?;
            // The first one is that of the moment, whenever that is; the next is that of a tick, and once it has been sent
            // there is time until the one after.
            all(&mut sockets, 1).await?;
            let size = all(&mut sockets, 1).await?;
            Ok::<_, Error>((sockets, size))
        };
        let (mut sockets, size) = clients.block_on(async { timeout(PATIENCE, opened).await })??;
        for _ in 0..ATTEMPTS {
            let before = self.read()?;
            clients.block_on(async { timeout(PATIENCE, all(&mut sockets, FRAMES)).await })??;
            let after = self.read()?;
            if after.sequence - before.sequence == u64::from(FRAMES) {
                return Ok((per_frame(before, after), size));
            }
        }
        Err(format!("the server cannot send a frame every {UPDATE_INTERVAL:?} here").into())
    }

    /// The CPU time of a frame that nobody gets, in ms.
    fn alone(&mut self) -> Result<f64, Error> {
        let before = self.read()?;
        std::thread::sleep(UPDATE_INTERVAL * FRAMES);
        Ok(per_frame(before, self.read()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn per_frame(before: Reading, after: Reading) -> f64 {
    (after.cpu - before.cpu).as_secs_f64() * 1e3 / (after.sequence - before.sequence) as f64
}

type Socket = WebSocketStream<TcpStream>;

async fn connect(addr: SocketAddr, url: &str) -> Result<Socket, Error> {
    Ok(client_async(url, TcpStream::connect(addr).await?).await?.0)
}

/// Has every client take so many frames. Returns how long the last message was.
async fn all(sockets: &mut [Socket], frames: u32) -> Result<usize, Error> {
    let taken = sockets.iter_mut().enumerate().map(|(at, socket)| async move {
        let mut size = 0;
        for _ in 0..frames {
            let message = next_frame(socket).await?;
            size = message.len();
            // One looks whether it is what it should be: the others have the same, or as many bytes.
            if at == 0 {
                check(&message)?;
            }
        }
        Ok::<_, Error>(size)
    });
    Ok(try_join_all(taken).await?.into_iter().max().unwrap_or_default())
}

async fn next_frame(socket: &mut Socket) -> Result<Message, Error> {
    // Events are shorter.
    const SHORTEST: usize = 2 << 10;
    loop {
        let message = socket.next().await.ok_or("the server closed a socket")??;
        if (message.is_text() || message.is_binary()) && message.len() > SHORTEST {
            return Ok(message);
        }
    }
}

fn check(message: &Message) -> Result<(), Error> {
    let frame: Value = match message {
        Message::Text(text) => serde_json::from_str(text)?,
        other => serde_json::from_reader(GzDecoder::new(&*other.clone().into_data()))?,
    };
    let data = &frame["data"];
    let length = |value: &Value| value.as_array().map_or(0, Vec::len);
    let series = data["metrics"].as_object().into_iter().flatten().map(|(_, metric)| length(&metric["series"]));
    let shown = (series.sum::<usize>(), length(&data["traces"]));
    let components = data["system_health"]["components"].as_object().map_or(0, serde_json::Map::len);
    if shown == (SERIES_SHOWN, TRACES_SHOWN) && components > 0 && frame["type"] == "dashboard" {
        return Ok(());
    }
    Err(format!("not the frame: {shown:?} series and traces, {components} components").into())
}

/// Plays a server until our input ends; says what it has used whenever a line comes.
fn play(part: &str) -> io::Result<()> {
    // As the program itself has it.
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let (hub, reader, admin) = instance();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    runtime.spawn(hub.run());
    match part {
        OURS => drop(runtime.spawn(serve(vec![listener], reader.clone(), admin, Default::default(), pending()))),
        _ => drop(runtime.spawn(per_client(listener, reader.clone(), part == PEER_GZIP))),
    }
    for line in io::stdin().lines() {
        line?;
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_ns = cpu.tv_sec * 1_000_000_000 + cpu.tv_nsec;
        writeln!(io::stdout(), "{cpu_ns} {}", reader.frame().sequence)?;
    }
    runtime.shutdown_background();
    Ok(())
}

/// The peer: each client's task makes and sends its own message of every frame.
async fn per_client(listener: TcpListener, reader: Reader, gzip: bool) -> io::Result<()> {
    let mut clients = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut frames = reader.subscribe();
        clients.spawn(async move {
            // Until the client is gone.
            let Ok(mut socket) = accept_async(stream).await else { return };
            while let Some(frame) = frames.next().await {
                let Ok(message) = encoded(&frame, gzip) else { return };
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn encoded(frame: &Arc<Frame>, gzip: bool) -> io::Result<Message> {
    let text =
        format!(r#"{{"type":"dashboard","data":{}}}"#, serde_json::to_string(&views::Dashboard::from(&**frame))?);
    if !gzip {
        return Ok(Message::text(text));
    }
    // The level of the dashboard.
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 4), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    Ok(Message::binary(encoder.finish()?))
}

/// A busy instance at the end of its first window.
fn instance() -> (Hub, Reader, Admin) {
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let metrics = Metrics::new(&Default::default(), anchor);
    let tracer = Tracer::new(&Default::default(), anchor, 7);
    let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
    (0..CALLS).for_each(|n| call(&metrics, &tracer, n, anchor.mono));
    metrics.close_window(anchor.mono + Duration::from_secs(10));
    for component in ["server:everything", "listener:proxy", "listener:dashboard"] {
        reporter.set(component, State::Healthy, "running", anchor.wall);
    }
    let (metrics, tracer) = (Some(metrics), Some(tracer));
    let sources = Sources { metrics, tracer, reporter, health, instrumentation: None, chaos: None, anchor };
    // No further window closes, so that all frames have the same in them.
    let never = Duration::from_secs(24 * 3600);
    let config = Config { update_interval: UPDATE_INTERVAL, aggregation_interval: never, ..Config::default() };
    hub(sources, config)
}

/// A tool call; one in 47 fails, so that many tools have had both outcomes.
fn call(metrics: &Metrics, tracer: &Tracer, n: u64, start: Instant) {
    let (tool, duration) =
        (format!("search_documents_{:03}", n * 131 % TOOLS), Duration::from_micros(800 + n * 7919 % 90_000));
    let outcome = if n.is_multiple_of(47) { Outcome::error(ErrorType::Tool) } else { Outcome::Ok };
    let started = start + Duration::from_millis(n * 3);
    metrics.tool_calls("everything", &tool, outcome.as_label(), false).record(duration, started + duration);
    metrics.component_operations(Component::Tools, false).increment(started + duration);
    if let Some(error) = outcome.server_error() {
        metrics.component_errors(Component::Tools, &error.as_label(), false).increment(started + duration);
    }
    let root = tracer.start(Component::JsonRpc, None);
    let call = Call {
        server: "everything".into(),
        transport: Transport::Http,
        direction: Direction::ToServer,
        protocol: Some(Protocol::V2025_11_25),
        method: Method::new("tools/call"),
        id: Some(RequestId::Integer(n as i64)),
        target: Some(tool.into()),
        session: None,
        request_bytes: 300,
        context: None,
        tracestate: None,
    };
    let (trace_id, span_id) = (root.trace_id, root.span_id);
    let record = CallRecord {
        call,
        started,
        duration,
        outcome,
        response_bytes: 480,
        injected: None,
        trace_id,
        span_id,
        forwarded: None,
        events: Vec::new(),
        dropped_events: 0,
    };
    // The store is made for it: what it does not keep is missed by the clients.
    let _ = tracer.record_call(&record, root);
}
