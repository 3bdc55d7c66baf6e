//! Several listeners as one.

use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// How long to wait after accepting failed, most likely for want of file descriptors: only others can free some.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Where clients come in. Dropping it frees the ports.
#[derive(Debug)]
pub struct Door {
    what: &'static str,
    listeners: Vec<TcpListener>,
    /// The listener asked first, a different one each time, so that a busy one cannot shut the others out.
    first: usize,
    slots: Arc<Semaphore>,
    /// Whether the last attempt failed, so that a long want of descriptors is told once.
    failing: bool,
}

/// One of the connections that a [`Door`] lets in at a time; dropping it lets the next one in.
#[derive(Debug)]
#[must_use = "the next client is let in when it is dropped"]
pub struct Slot(#[expect(dead_code, reason = "counts as long as it lives")] OwnedSemaphorePermit);

impl Door {
    /// A door that lets in `max_connections` at a time, at least 1; `what` it leads to is named in the log.
    #[must_use]
    pub fn new(what: &'static str, listeners: Vec<TcpListener>, max_connections: usize) -> Self {
        let slots = Arc::new(Semaphore::new(max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        Self { what, listeners, first: 0, slots, failing: false }
    }

    /// The next connection, once there is a slot for it. Cancelling it loses no client.
    pub async fn next(&mut self) -> (TcpStream, SocketAddr, Slot) {
        // The slot comes first: who finds none waits in the system's queue.
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            // Nobody closes the semaphore.
            return pending().await;
        };
        let (stream, peer) = self.arrival().await;
        (stream, peer, Slot(slot))
    }

    /// The next connection, whether or not there is a slot for it.
    pub(crate) async fn arrival(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.accept().await {
                Ok((stream, peer)) => {
                    // Messages are small: holding them back gains nothing. A socket that refuses just works as before.
                    let _ = stream.set_nodelay(true);
                    self.failing = false;
                    return (stream, peer);
                }
                // That was this one client's connection; the next may be fine.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if !self.failing {
                        tracing::warn!(%error, "{} cannot accept connections; trying again", self.what);
                    }
                    self.failing = true;
                    sleep(BACK_OFF).await;
                }
            }
        }
    }

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let first = self.first;
        self.first = first.wrapping_add(1);
        poll_fn(|cx| {
            for n in 0..self.listeners.len() {
                let listener = &self.listeners[first.wrapping_add(n) % self.listeners.len()];
                if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn who_finds_no_slot_waits_for_one() {
        let (listener, addr) = listener().await;
        let mut door = Door::new("a test", vec![listener], 1);
        let _clients = (TcpStream::connect(addr).await.unwrap(), TcpStream::connect(addr).await.unwrap());
        let (_first, _, slot) = door.next().await;
        assert!(timeout(Duration::from_millis(50), door.next()).await.is_err());
        drop(slot);
        let _second = timeout(Duration::from_secs(10), door.next()).await.unwrap();
    }

    #[tokio::test]
    async fn a_busy_listener_does_not_shut_the_others_out() {
        let ((one, busy), (other, quiet)) = (listener().await, listener().await);
        let mut door = Door::new("a test", vec![one, other], 100);
        let mut clients = Vec::new();
        for addr in [busy, busy, busy, busy, quiet] {
            clients.push(TcpStream::connect(addr).await.unwrap());
        }
        let mut came = Vec::new();
        for _ in 0..3 {
            let (stream, _, _slot) = door.next().await;
            came.push(stream.local_addr().unwrap());
        }
        assert!(came.contains(&quiet), "{came:?}");
    }
}
