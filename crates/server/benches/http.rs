//! `mcpscope proxy` in front of an HTTP server, beside a bare copy of the bytes and nothing at all: whole processes that
//! speak over loopback, keep-alive connections, requests of 300 bytes and answers of 480.
//!
//! Linux only: it reads the processor time of the proxies from `/proc`.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

mod support;
use mcpscope_test_support::bench::{self, Ratio, Report, Table, median};
use support::{Children, FIRST_ID, Started, answer, mcpscope, request, role, this_program};

const ROUNDS: usize = 7;
const MANY: usize = 32;
const TIME_MANY: Duration = Duration::from_millis(800);
const TIME_ONE: Duration = Duration::from_millis(300);

const UPSTREAM: &str = "upstream";
const COPY: &str = "copy";

fn main() -> io::Result<()> {
    match role().as_deref() {
        Some(UPSTREAM) => serve(upstream()),
        Some(COPY) => serve(copy()),
        _ if bench::wanted() => measure(),
        _ => Ok(()),
    }
}

/// One way to the upstream; the proxy's process if there is one.
struct Route {
    name: &'static str,
    addr: SocketAddr,
    proxy: Option<Started>,
}

/// What one round of one way gives.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    p50_us: f64,
    proxy_cpu_us: f64,
}

fn measure() -> io::Result<()> {
    let mut report = Report::new("http");
    let children = Children::new();
    let (_upstream, direct) = announced(children.start(&mut this_program(UPSTREAM)?)?)?;
    let (copy, copied) = announced(children.start(this_program(COPY)?.arg(direct.to_string()))?)?;
    let (ours, proxied) = proxy(&children, direct)?;
    let routes = [
        Route { name: "mcpscope proxy", addr: proxied, proxy: Some(ours) },
        Route { name: "plain TCP copy", addr: copied, proxy: Some(copy) },
        Route { name: "direct", addr: direct, proxy: None },
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (connections, time) in [(MANY, TIME_MANY), (1, TIME_ONE)] {
        let mut rounds = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (route, rounds) in routes.iter().zip(&mut rounds) {
                rounds.push(runtime.block_on(route.load(connections, time))?);
            }
        }
        let plural = if connections == 1 { "" } else { "s" };
        let mut add = |title: &str, unit, rows: usize, of: fn(&Round) -> f64| {
            let table = Table::new(format!("{connections} connection{plural}, {title}"), unit, Ratio::OursToPeer);
            let rows = routes.iter().zip(&rounds).take(rows);
            report
                .add(rows.fold(table, |table, (route, rounds)| table.row(route.name, rounds.iter().map(of).collect())));
        };
        add("throughput", "requests/s", 3, |round| round.per_second);
        add("p50", "us", 3, |round| round.p50_us);
        // Direct there is no proxy.
        add("proxy CPU per request", "us", 2, |round| round.proxy_cpu_us);
    }
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

/// The child and the address that it prints.
fn announced(mut child: Started) -> io::Result<(Started, SocketAddr)> {
    let mut line = String::new();
    BufReader::new(&mut child.stdout).read_line(&mut line)?;
    let addr = line.trim().parse().map_err(io::Error::other)?;
    Ok((child, addr))
}

/// Our proxy and where it listens.
fn proxy(children: &Children, upstream: SocketAddr) -> io::Result<(Started, SocketAddr)> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let folder = tempfile::tempdir()?;
    let ready = folder.path().join("ready.json");
    let url = format!("http://{upstream}/mcp");
    let mut command = mcpscope();
    command.args(["proxy", "--dashboard", "off", "--listen", "127.0.0.1:0", "--upstream", &url, "--ready-file"]);
    let child = children.start(command.arg(&ready))?;
    let start = Instant::now();
    while !ready.exists() {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::other("mcpscope proxy does not become ready"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let ready: serde_json::Value = serde_json::from_str(&fs::read_to_string(&ready)?)?;
    let proxies = ready["proxy"].as_object().into_iter().flatten();
    let url = proxies.filter_map(|(_, url)| url.as_str()).next().unwrap_or_default();
    let authority = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    Ok((child, authority.parse().map_err(io::Error::other)?))
}

impl Route {
    async fn load(&self, connections: usize, time: Duration) -> io::Result<Round> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            let id = FIRST_ID + u32::try_from(clients.len()).map_err(io::Error::other)? * 100_000;
            let mut client = Client::connect(self.addr, id).await?;
            client.exchange().await?;
            clients.push(client);
        }
        let cpu_before = self.proxy_cpu()?;
        let start = Instant::now();
        let mut running = JoinSet::new();
        for mut client in clients {
            running.spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < time {
                    let sent = Instant::now();
                    client.exchange().await?;
                    times.push(sent.elapsed().as_secs_f64() * 1e6);
                }
                Ok(times)
            });
        }
        let times: io::Result<Vec<Vec<f64>>> = running.join_all().await.into_iter().collect();
        let took = start.elapsed().as_secs_f64();
        let cpu = self.proxy_cpu()?.saturating_sub(cpu_before);
        let times = times?.concat();
        let requests = times.len() as f64;
        Ok(Round {
            per_second: requests / took,
            p50_us: median(&times),
            proxy_cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        })
    }

    /// The processor time of the proxy so far, of all its threads.
    fn proxy_cpu(&self) -> io::Result<Duration> {
        let Some(proxy) = &self.proxy else { return Ok(Duration::ZERO) };
        let mut total = Duration::ZERO;
        for thread in fs::read_dir(Path::new("/proc").join(proxy.id.to_string()).join("task"))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            let on_cpu_ns = stat.split(' ').next().unwrap_or_default().parse().map_err(io::Error::other)?;
            total += Duration::from_nanos(on_cpu_ns);
        }
        Ok(total)
    }
}

/// One keep-alive connection.
struct Client {
    stream: TcpStream,
    next_id: u32,
    /// The request made last.
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(addr: SocketAddr, first_id: u32) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let body = request(first_id);
        let head = format!(
            "POST /mcp HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\n\
             accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n\
             mcp-method: tools/call\r\nmcp-name: echo\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        Ok(Self { stream, next_id: first_id, request: (head + &body).into_bytes(), buffer: vec![0; 4096] })
    }

    async fn exchange(&mut self) -> io::Result<()> {
        let at = self.request.len() - 8;
        write!(&mut self.request[at..], "{}", self.next_id)?;
        self.next_id += 1;
        self.stream.write_all(&self.request).await?;
        let mut length = 0;
        let end = loop {
            match self.stream.read(&mut self.buffer[length..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => length += read,
            }
            let answer = &self.buffer[..length];
            if let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let end = head + 4 + content_length(&answer[..head])?;
                if length >= end {
                    break end;
                }
            }
        };
        let answer = &self.buffer[..length];
        // Both end with the seven digits of the id and a brace.
        if length == end && answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&self.request[at..]) {
            return Ok(());
        }
        Err(io::Error::other(format!("not the answer to the request: {}", String::from_utf8_lossy(answer))))
    }
}

fn content_length(head: &[u8]) -> io::Result<usize> {
    const NAME: &str = "content-length:";
    let head = std::str::from_utf8(head).map_err(io::Error::other)?;
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    });
    value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| io::Error::other("an answer without a length"))
}

/// Plays a part until the benchmark, which holds the other end of our input, has ended.
fn serve(part: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let end = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
        tokio::select! {
            result = part => result,
            _ = end => Ok(()),
        }
    });
    runtime.shutdown_background();
    result
}

async fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    Ok(listener)
}

/// The server.
async fn upstream() -> io::Result<()> {
    let listener = listen().await?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(call));
        connections.spawn(connection);
    }
}

async fn call(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let request = request.into_body().collect().await?.to_bytes();
    let mut body = Vec::new();
    answer(&request, &mut body);
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The floor of every proxy.
async fn copy() -> io::Result<()> {
    let upstream: SocketAddr = std::env::args().nth(2).unwrap_or_default().parse().map_err(io::Error::other)?;
    let listener = listen().await?;
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        connections.spawn(async move {
            let mut server = TcpStream::connect(upstream).await?;
            server.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut server).await
        });
    }
}
