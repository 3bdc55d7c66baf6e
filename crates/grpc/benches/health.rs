//! `grpc.health.v1.Health/Check`, asked of our server and of tonic's own with tonic-health, by the same client.
//!
//! The servers are processes of their own and say themselves how much processor time they have used. The client speaks HTTP/2
//! itself: it has to be cheaper than the servers, or it would be all that is measured.

use std::future::pending;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use mcpscope_core::ClockAnchor;
use mcpscope_grpc::{health_service, serve};
use mcpscope_hub::hooks::Instrumentation;
use mcpscope_hub::metrics::Metrics;
use mcpscope_hub::tracing::Tracer;
use mcpscope_hub::{Admin, Hub, Reader, Sources, hub};
use mcpscope_test_support::bench::{self, Ratio, Report, Table, median};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;

const ROUNDS: usize = 11;
const TIME: Duration = Duration::from_millis(500);
/// Connections, and calls under way on each.
const LOADS: [(u32, u32); 3] = [(8, 8), (8, 1), (1, 1)];
/// How long the servers may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);

const OURS: &str = "mcpscope";
const PEER: &str = "tonic";
const MIXED: &str = "mixed";

/// `HealthCheckRequest` for the whole: empty, not compressed.
const REQUEST: &[u8] = &[0, 0, 0, 0, 0];
/// `HealthCheckResponse`: SERVING.
const SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    match std::env::args().nth(1).as_deref() {
        Some(part @ (OURS | PEER | MIXED)) => Ok(play(part)?),
        _ if bench::wanted() => measure(),
        _ => Ok(()),
    }
}

/// What one round of one server gives.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    p50_us: f64,
    cpu_us: f64,
}

fn measure() -> Result<(), Error> {
    let mut report = Report::new("health");
    let client = Builder::new_current_thread().enable_all().build()?;
    let mut servers = [
        ("mcpscope", Server::start(OURS)?),
        ("tonic and tonic-health", Server::start(PEER)?),
        ("tonic and our health service", Server::start(MIXED)?),
    ];
    for (connections, calls) in LOADS {
        let mut rounds = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for ((_, server), rounds) in servers.iter_mut().zip(&mut rounds) {
                rounds.push(server.round(&client, connections, calls)?);
            }
        }
        let plural = |n, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let load = format!("{}, {} on each", plural(connections, "connection"), plural(calls, "call"));
        let mut add = |what: &str, unit, ratio, of: fn(&Round) -> f64| {
            let table = Table::new(format!("{load}: {what}"), unit, ratio);
            let rows = servers.iter().zip(&rounds);
            report
                .add(rows.fold(table, |table, ((name, _), rounds)| table.row(*name, rounds.iter().map(of).collect())));
        };
        add("throughput", "calls/s", Ratio::OursToPeer, |round| round.per_second);
        add("p50", "us", Ratio::PeerToOurs, |round| round.p50_us);
        add("server CPU per call", "us", Ratio::PeerToOurs, |round| round.cpu_us);
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

    /// The processor time used so far.
    fn cpu(&mut self) -> Result<Duration, Error> {
        writeln!(self.stdin)?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(Duration::from_nanos(line.trim().parse()?))
    }

    fn round(&mut self, client: &Runtime, connections: u32, calls: u32) -> Result<Round, Error> {
        let addr = self.addr;
        let (mut sessions, _connections) = client.block_on(async {
            let (mut sessions, mut running) = (Vec::new(), JoinSet::new());
            for _ in 0..connections {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                let (session, connection) = h2::client::handshake(stream).await?;
                running.spawn(connection);
                sessions.extend((0..calls).map(|_| session.clone()));
            }
            check(&mut sessions[0], addr).await?;
            Ok::<_, Error>((sessions, running))
        })?;
        let before = self.cpu()?;
        let start = Instant::now();
        let times = client.block_on(async {
            let mut working = JoinSet::new();
            for mut session in sessions.drain(..) {
                working.spawn(async move {
                    let mut times = Vec::new();
                    while start.elapsed() < TIME {
                        let sent = Instant::now();
                        check(&mut session, addr).await?;
                        times.push(sent.elapsed().as_secs_f64() * 1e6);
                    }
                    Ok(times)
                });
            }
            let all = tokio::time::timeout(PATIENCE, working.join_all()).await?;
            all.into_iter().collect::<Result<Vec<Vec<f64>>, Error>>()
        })?;
        let took = start.elapsed().as_secs_f64();
        let cpu = self.cpu()? - before;
        let times = times.concat();
        let calls = times.len() as f64;
        Ok(Round { per_second: calls / took, p50_us: median(&times), cpu_us: cpu.as_secs_f64() * 1e6 / calls })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One call, whose answer has to be right.
async fn check(session: &mut SendRequest<Bytes>, addr: SocketAddr) -> Result<(), Error> {
    let request = Request::post(format!("http://{addr}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut body) = session.send_request(request, false)?;
    body.send_data(Bytes::from_static(REQUEST), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut data = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        data.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await?;
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    if head.status == StatusCode::OK && data == SERVING && status.is_some_and(|status| status == "0") {
        return Ok(());
    }
    Err(format!("not the answer: {head:?}, {data:?}, {trailers:?}").into())
}

/// Plays a server until our input ends; says how much processor time it has used whenever a line comes.
fn play(part: &str) -> io::Result<()> {
    // As the program itself has it.
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    let (hub, reader, admin) = instance();
    if part != PEER {
        runtime.spawn(hub.run());
    }
    match part {
        OURS => drop(runtime.spawn(serve(vec![listener], reader, admin, Default::default(), pending()))),
        PEER => drop(runtime.spawn(tonic_server(listener, Routes::new(tonic_health::server::health_reporter().1)))),
        _ => drop(runtime.spawn(tonic_server(listener, health_service(reader, pending())))),
    }
    for line in io::stdin().lines() {
        line?;
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        writeln!(io::stdout(), "{}", cpu.tv_sec * 1_000_000_000 + cpu.tv_nsec)?;
    }
    runtime.shutdown_background();
    Ok(())
}

async fn tonic_server(listener: TcpListener, routes: Routes) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await
}

/// An instance with everything on, without traffic.
fn instance() -> (Hub, Reader, Admin) {
    let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
    let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
    let metrics = Some(Metrics::new(&Default::default(), anchor));
    let tracer = Some(Tracer::new(&Default::default(), anchor, 7));
    let instrumentation = Some(Instrumentation::new(true));
    hub(Sources { metrics, tracer, reporter, health, instrumentation, chaos: None, anchor }, Default::default())
}
