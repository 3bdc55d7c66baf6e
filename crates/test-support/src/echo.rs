//! A server that answers with what it is told.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

use crate::http::{Head, LAST_CHUNK, Message, answer_head, chunk};
use crate::{BodyReader, Listener, Wire, WireReader, WireWriter};

/// Answers every request with status 200 and the request's own body, in the framing that the client used, while the body
/// still arrives. Dropping it closes all connections.
///
/// The request header `Echo-Split: 3,100` makes it answer in parts of 3, 100, 3, 100, ... bytes. The answer has the
/// request's `Content-Type`, and its number on the connection as `Echo-Number`, counted from 1.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    connections: AtomicUsize,
    seen: Mutex<Vec<Message>>,
}

impl EchoServer {
    /// Starts on a free loopback port.
    pub async fn start() -> Self {
        let listener = Listener::bind().await;
        let address = listener.address();
        let shared = Arc::new(Shared::default());
        let mut accepting = JoinSet::new();
        let state = Arc::clone(&shared);
        accepting.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                tokio::select! {
                    wire = listener.next() => {
                        state.connections.fetch_add(1, Ordering::Relaxed);
                        let state = Arc::clone(&state);
                        // A client that breaks off is no failure of the server.
                        serving.spawn(async move { drop(serve(wire, &state).await) });
                    }
                    Some(_) = serving.join_next() => {}
                }
            }
        });
        Self { address, shared, _accepting: accepting }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The requests whose body came to its end, in the order of their ends.
    #[must_use]
    pub fn seen(&self) -> Vec<Message> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(wire: Wire, shared: &Shared) -> io::Result<()> {
    let Wire { mut reader, mut writer } = wire;
    let mut number = 0;
    while let Some(head) = reader.head().await? {
        number += 1;
        let body = echo(&head, number, &mut reader, &mut writer).await?;
        shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(Message { head, body });
    }
    Ok(())
}

async fn echo(head: &Head, number: usize, reader: &mut WireReader, writer: &mut WireWriter) -> io::Result<Vec<u8>> {
    let mut from = BodyReader::of(head);
    let chunked = matches!(from, BodyReader::Chunked(_));
    let framing = match from {
        BodyReader::Length(length) => ("Content-Length", length.to_string()),
        BodyReader::Chunked(_) => ("Transfer-Encoding", "chunked".to_owned()),
        BodyReader::UntilClosed | BodyReader::Ended => ("Content-Length", "0".to_owned()),
    };
    let media = head.value("content-type").unwrap_or_else(|| "application/octet-stream".to_owned());
    let number = number.to_string();
    let headers = [(framing.0, framing.1.as_str()), ("Content-Type", &media), ("Echo-Number", &number)];
    writer.write(&answer_head("200 OK", &headers)).await?;

    let split = head.value("echo-split").unwrap_or_default();
    let mut sizes = split.split(',').filter_map(|size| size.parse().ok()).filter(|size| *size > 0).cycle();
    let mut body = Vec::new();
    while let Some(part) = from.part(reader).await? {
        let mut rest = part.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(sizes.next().unwrap_or(usize::MAX).min(rest.len()));
            rest = later;
            if chunked {
                writer.write(&chunk(now)).await?;
            } else {
                writer.write(now).await?;
            }
        }
        body.extend_from_slice(&part);
    }
    if chunked {
        writer.write(LAST_CHUNK).await?;
    }
    Ok(body)
}
