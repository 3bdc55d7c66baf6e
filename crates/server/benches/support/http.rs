//! A server that speaks HTTP, and a client of it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::{Started, renumber, request};

/// One keep-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    /// One for each tool, called in turn.
    requests: Vec<Vec<u8>>,
    /// The number of the next request.
    next: u64,
    buffer: Vec<u8>,
}

impl Client {
    /// A client that will call `tools` in turn; `first` is the number of its first request.
    pub(crate) async fn connect(addr: SocketAddr, tools: &[impl AsRef<str>], first: u64) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let requests = tools.iter().map(|tool| post(addr, tool.as_ref())).collect();
        Ok(Self { stream, requests, next: first, buffer: vec![0; 4096] })
    }

    /// Makes a request and checks the answer.
    pub(crate) async fn exchange(&mut self) -> io::Result<()> {
        let tool = (self.next % self.requests.len() as u64) as usize;
        let request = &mut self.requests[tool];
        renumber(request, self.next);
        self.next += 1;
        self.stream.write_all(request).await?;
        let mut length = 0;
        let end = loop {
            match self.stream.read(&mut self.buffer[length..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => length += read,
            }
            if let Some((_, end)) = message(&self.buffer[..length])? {
                break end;
            }
        };
        let answer = &self.buffer[..length];
        // Both end with the seven digits of the id and a brace.
        if length == end && answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&request[request.len() - 8..]) {
            return Ok(());
        }
        Err(io::Error::other(format!("not the answer to the request: {}", String::from_utf8_lossy(answer))))
    }
}

/// What a client sends to call `tool`; ends with the body, as [`request`] makes it.
pub(crate) fn post(addr: SocketAddr, tool: &str) -> Vec<u8> {
    let body = request(tool);
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n\
         mcp-method: tools/call\r\nmcp-name: {tool}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// Where the head of a message ends, and the message, once it is there as a whole.
pub(crate) fn message(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let Some(head) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let end = head + 4 + content_length(&bytes[..head])?;
    Ok((bytes.len() >= end).then_some((head + 4, end)))
}

fn content_length(head: &[u8]) -> io::Result<usize> {
    const NAME: &str = "content-length:";
    let head = std::str::from_utf8(head).map_err(io::Error::other)?;
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    });
    value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| io::Error::other("a message without a length"))
}

/// The child and the address that it prints.
pub(crate) fn announced(mut child: Started) -> io::Result<(Started, SocketAddr)> {
    let mut line = String::new();
    BufReader::new(&mut child.stdout).read_line(&mut line)?;
    let addr = line.trim().parse().map_err(io::Error::other)?;
    Ok((child, addr))
}

/// Plays a part until the benchmark, which holds the other end of our input, has ended.
pub(crate) fn serve(part: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    serve_on(Builder::new_current_thread(), part)
}

/// The same with a thread for each core, as mcpscope has.
pub(crate) fn serve_on_all_cores(part: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    serve_on(Builder::new_multi_thread(), part)
}

fn serve_on(mut runtime: Builder, part: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let runtime = runtime.enable_all().build()?;
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

/// A listener on a free port, announced on stdout.
pub(crate) async fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    Ok(listener)
}

/// The server, which does as little as it can: it looks for the end of a request and the id in it.
pub(crate) async fn upstream(answer: fn(&[u8], &mut Vec<u8>)) -> io::Result<()> {
    let listener = listen().await?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        connections.spawn(answer_each(stream, answer));
    }
}

async fn answer_each(mut stream: TcpStream, answer: fn(&[u8], &mut Vec<u8>)) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    let (mut body, mut whole) = (Vec::new(), Vec::new());
    loop {
        let mut length = 0;
        let (head, end) = loop {
            match stream.read(&mut buffer[length..]).await? {
                0 => return Ok(()),
                read => length += read,
            }
            if let Some(found) = message(&buffer[..length])? {
                break found;
            }
        };
        body.clear();
        answer(&buffer[head..end], &mut body);
        whole.clear();
        write!(whole, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len())?;
        whole.extend_from_slice(&body);
        stream.write_all(&whole).await?;
    }
}
