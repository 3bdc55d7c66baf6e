//! A server whose test is its script.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;

use crate::{Wire, within};

/// Listens on a free loopback port.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds a free port.
    ///
    /// # Panics
    /// There is none.
    pub async fn bind() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        Self { listener, address }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection.
    ///
    /// # Panics
    /// None comes within [`PATIENCE`](crate::PATIENCE).
    pub async fn accept(&self) -> Wire {
        within(self.next()).await
    }

    /// The next connection, whenever it comes.
    ///
    /// # Panics
    /// The listener is broken.
    pub async fn next(&self) -> Wire {
        let (stream, _) = self.listener.accept().await.expect("a connection");
        Wire::new(stream).expect("a live socket")
    }

    /// Makes sure that nobody has connected whose connection was not accepted.
    ///
    /// # Panics
    /// Somebody has.
    pub async fn expect_no_more(&self) {
        // Connections are accepted in the order in which they came: the next one must be this one.
        let own = within(tokio::net::TcpStream::connect(self.address)).await.expect("a connection");
        let (_, peer) = within(self.listener.accept()).await.expect("a connection");
        assert_eq!(peer, own.local_addr().expect("a live socket"), "somebody else has connected");
    }
}
