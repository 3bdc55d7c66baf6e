//! `mcpscope run` in front of a stdio server, recording everything, beside bare relays and no relay at all: whole processes and
//! real pipes. Requests of 300 bytes, answers of 500.
//!
//! Sequential: one message at a time. Pipelined: always 64 messages under way.

use std::io::{self, Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

mod support;
use mcpscope_test_support::bench::{self, Ratio, Report, Table, median};
use support::stdio::{respond, unbuffered};
use support::{Children, Started, answer, config, observed, renumber, request, role, this_program};
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _};

const ROUNDS: usize = 9;
const SEQUENTIAL: Duration = Duration::from_millis(500);
const PIPELINED: Duration = Duration::from_millis(300);
const WINDOW: usize = 64;

const RESPOND: &str = "respond";
const RELAY: &str = "relay";
const TOKIO_LINES: &str = "tokio-lines";
const TOKIO_COPY: &str = "tokio-copy";

fn main() -> io::Result<()> {
    match role().as_deref() {
        Some(RESPOND) => respond(answer),
        Some(RELAY) => relay(),
        Some(TOKIO_LINES) => tokio_relay(true),
        Some(TOKIO_COPY) => tokio_relay(false),
        _ if bench::wanted() => measure(),
        _ => Ok(()),
    }
}

fn measure() -> io::Result<()> {
    let mut report = Report::new("stdio");
    let children = Children::new();
    let (on, off) = (config("{}")?, config("observability_enabled: false\n")?);
    let wrapped = |config: &NamedTempFile| {
        let mut arguments = observed(config.path().as_os_str());
        arguments.extend(["--".into(), std::env::current_exe()?.into_os_string(), RESPOND.into()]);
        children.start_mcpscope("run", arguments).map(|started| Client::new(started.process))
    };
    let part = |role| children.start(&mut this_program(role)?).map(Client::new);
    let mut paths = [
        ("mcpscope run", wrapped(&on)?),
        ("mcpscope run, observability off", wrapped(&off)?),
        ("raw relay, two threads", part(RELAY)?),
        ("tokio stdin/stdout, line by line", part(TOKIO_LINES)?),
        ("tokio stdin/stdout, copied", part(TOKIO_COPY)?),
        ("direct", part(RESPOND)?),
    ];
    let relays = paths.len() - 1;
    let mut p50 = vec![Vec::new(); paths.len()];
    let mut added = vec![Vec::new(); relays];
    let mut pipelined = vec![Vec::new(); paths.len()];
    for _ in 0..ROUNDS {
        for (at, (_, client)) in paths.iter_mut().enumerate() {
            p50[at].push(client.sequential()?);
            pipelined[at].push(client.pipelined()?);
        }
        let direct = p50[relays].last().copied().unwrap_or(f64::NAN);
        for (added, p50) in added.iter_mut().zip(&p50) {
            added.extend(p50.last().map(|p50| p50 - direct));
        }
    }
    let table = |title, unit, values: &[Vec<f64>]| {
        let table = Table::new(title, unit, Ratio::OursToPeer);
        paths.iter().zip(values).fold(table, |table, ((name, _), rounds)| table.row(*name, rounds.clone()))
    };
    report.add(table("sequential, p50", "us", &p50));
    // Direct adds nothing: there is no ratio to it.
    report.add(table("sequential, p50 added to direct", "us", &added));
    report.add(table("pipelined, 64 under way", "messages/s", &pipelined));
    report.finish(env!("CARGO_TARGET_TMPDIR"))
}

/// The client of one server, which may be a wrapped one.
struct Client {
    server: Started,
    /// Requests so far.
    made: u64,
    /// The request made last, as a line.
    line: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn new(server: Started) -> Self {
        let line = format!("{}\n", request("echo")).into_bytes();
        Self { server, made: 0, line, buffer: vec![0; 64 * 1024] }
    }

    /// The median time of an exchange, in microseconds.
    fn sequential(&mut self) -> io::Result<f64> {
        let mut times = Vec::new();
        let start = Instant::now();
        while start.elapsed() < SEQUENTIAL {
            self.next_line();
            let sent = Instant::now();
            self.server.stdin.write_all(&self.line)?;
            let mut length = 0;
            while length == 0 || self.buffer[length - 1] != b'\n' {
                length += read_some(&mut self.server.stdout, &mut self.buffer[length..])?;
            }
            times.push(sent.elapsed().as_secs_f64() * 1e6);
            // Both end with the seven digits of the id, a brace and the line feed.
            if !self.buffer[..length].ends_with(&self.line[self.line.len() - 9..]) {
                return Err(io::Error::other("not the answer to the request"));
            }
        }
        Ok(median(&times))
    }

    /// Messages per second.
    fn pipelined(&mut self) -> io::Result<f64> {
        let mut more = WINDOW;
        let mut sent = 0;
        let mut answered = 0;
        let mut batch = Vec::new();
        let start = Instant::now();
        loop {
            batch.clear();
            (0..more).for_each(|_| batch.extend_from_slice(self.next_line()));
            self.server.stdin.write_all(&batch)?;
            sent += more;
            let read = read_some(&mut self.server.stdout, &mut self.buffer)?;
            let lines = self.buffer[..read].iter().filter(|byte| **byte == b'\n').count();
            answered += lines;
            more = if start.elapsed() < PIPELINED { lines } else { 0 };
            if answered == sent {
                return Ok(answered as f64 / start.elapsed().as_secs_f64());
            }
        }
    }

    fn next_line(&mut self) -> &[u8] {
        self.made += 1;
        let end = self.line.len() - 1;
        renumber(&mut self.line[..end], self.made);
        &self.line
    }
}

fn read_some(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    match from.read(into)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => Ok(read),
    }
}

/// The floor of every relay: two threads that move bytes.
fn relay() -> io::Result<()> {
    let (input, output) = unbuffered()?;
    let mut server = this_program(RESPOND)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (stdin, stdout) = (server.stdin.take(), server.stdout.take());
    let back = thread::spawn(move || stdout.map_or(Ok(()), |stdout| pump(stdout, output)));
    stdin.map_or(Ok(()), |stdin| pump(input, stdin))?;
    server.wait()?;
    back.join().map_err(|_| io::Error::other("a relay thread panicked"))?
}

fn pump(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read])?;
    }
}

/// What asynchronous programs do at first: with `lines`, a line at a time.
fn tokio_relay(lines: bool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut command = tokio::process::Command::from(this_program(RESPOND)?);
        let mut server = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (server.stdin.take(), server.stdout.take()) else {
            return Err(io::Error::other("a child has no pipes"));
        };
        let back = tokio_pump(stdout, tokio::io::stdout(), lines);
        tokio::try_join!(tokio_pump(tokio::io::stdin(), stdin, lines), back)?;
        server.wait().await.map(drop)
    });
    runtime.shutdown_background();
    done
}

async fn tokio_pump(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, lines: bool) -> io::Result<()> {
    let mut from = tokio::io::BufReader::new(from);
    if !lines {
        return tokio::io::copy_buf(&mut from, &mut to).await.map(drop);
    }
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).await? > 0 {
        to.write_all(&line).await?;
        to.flush().await?;
        line.clear();
    }
    Ok(())
}
