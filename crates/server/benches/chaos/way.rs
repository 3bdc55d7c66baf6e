//! The ways through mcpscope from a client to a server and back, each side with the clock in its hand.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use crate::support::http::{message, post};
use crate::support::{Started, now, renumber, request, stamp};

/// A way on which requests are sent without waiting for their answers, which are read in the order of the requests.
pub(crate) trait Way {
    /// Sends a request.
    fn send(&mut self) -> io::Result<()>;

    /// Waits for the answer to the first request that was not answered yet.
    fn receive(&mut self) -> io::Result<Trip>;
}

/// When a request was where, and its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trip {
    /// The client began to write it.
    pub(crate) sent: Duration,
    /// The server had read it.
    pub(crate) arrived: Duration,
    /// The client had read the answer.
    pub(crate) answered: Duration,
}

/// The client of `mcpscope run`.
pub(crate) struct Stdio {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    line: Vec<u8>,
    answer: Vec<u8>,
    next: u64,
    under_way: VecDeque<(u64, Duration)>,
}

impl Stdio {
    pub(crate) fn new(Started { stdin, stdout, .. }: Started) -> Self {
        Self {
            stdin,
            stdout: BufReader::with_capacity(64 * 1024, stdout),
            line: format!("{}\n", request("echo")).into_bytes(),
            answer: Vec::new(),
            next: 0,
            under_way: VecDeque::new(),
        }
    }
}

impl Way for Stdio {
    fn send(&mut self) -> io::Result<()> {
        let end = self.line.len() - 1;
        renumber(&mut self.line[..end], self.next);
        self.under_way.push_back((self.next, now()?));
        self.next += 1;
        self.stdin.write_all(&self.line)
    }

    fn receive(&mut self) -> io::Result<Trip> {
        let (number, sent) = self.under_way.pop_front().ok_or_else(nothing)?;
        self.answer.clear();
        self.stdout.read_until(b'\n', &mut self.answer)?;
        let answered = now()?;
        let answer = self.answer.strip_suffix(b"\n").unwrap_or(&self.answer);
        Ok(Trip { sent, arrived: stamp(answer, number)?, answered })
    }
}

/// The client of `mcpscope proxy`: connections with one request each.
pub(crate) struct Http {
    request: Vec<u8>,
    idle: Vec<TcpStream>,
    under_way: VecDeque<(TcpStream, u64, Duration)>,
    next: u64,
    buffer: Vec<u8>,
    /// Their pipes: they end with us.
    _processes: [Started; 2],
}

impl Http {
    /// With so many connections, all of which have been used.
    pub(crate) fn new(addr: SocketAddr, processes: [Started; 2], connections: usize) -> io::Result<Self> {
        let connect = || {
            let stream = TcpStream::connect(addr)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let mut http = Self {
            request: post(addr, "echo"),
            idle: (0..connections).map(|_| connect()).collect::<io::Result<_>>()?,
            under_way: VecDeque::new(),
            next: 0,
            buffer: vec![0; 4096],
            _processes: processes,
        };
        for _ in 0..connections {
            http.send()?;
        }
        for _ in 0..connections {
            http.receive()?;
        }
        Ok(http)
    }
}

impl Way for Http {
    fn send(&mut self) -> io::Result<()> {
        let mut stream =
            self.idle.pop().ok_or_else(|| io::Error::other("all connections wait for their answers already"))?;
        renumber(&mut self.request, self.next);
        let sent = now()?;
        stream.write_all(&self.request)?;
        self.under_way.push_back((stream, self.next, sent));
        self.next += 1;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Trip> {
        let (mut stream, number, sent) = self.under_way.pop_front().ok_or_else(nothing)?;
        let mut length = 0;
        let (head, end) = loop {
            match stream.read(&mut self.buffer[length..])? {
                0 => return Err(io::Error::other("the proxy closed a connection that waits for an answer")),
                read => length += read,
            }
            if let Some(found) = message(&self.buffer[..length])? {
                break found;
            }
        };
        let answered = now()?;
        let arrived = stamp(&self.buffer[head..end], number)?;
        self.idle.push(stream);
        Ok(Trip { sent, arrived, answered })
    }
}

fn nothing() -> io::Error {
    io::Error::other("an answer is awaited that nothing was asked for")
}
