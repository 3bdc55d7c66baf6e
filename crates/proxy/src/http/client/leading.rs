//! Connections to the server that faults lead through a network.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use mcpscope_hooks::Detour;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{interval, timeout};

use super::super::led::{LOOK, Led};
use super::super::stream::Stream;
use super::admission::Asked;
use super::{Client, LINGER, Peer};

/// How many of a relay's connections ask for one that leads through a network at the same time. Each takes a thread for it,
/// for up to two seconds if nobody answers, of those that others need for something else.
const MAX_ASKING: usize = 4;

/// Who asks for connections that lead through networks, of all connections of one relay.
#[derive(Clone, Debug)]
pub(in super::super) struct Asking(Arc<Semaphore>);

impl Default for Asking {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_ASKING)))
    }
}

impl Asking {
    /// Both ends of a connection that leads this way, unless the fault is over before there is one.
    async fn pair(&self, detour: &Detour) -> io::Result<[TcpStream; 2]> {
        let its = detour.clone();
        let asks = async {
            let place = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
            // It may take the system a while.
            let asks = move || {
                let _place = place;
                its.pair()
            };
            spawn_blocking(asks).await.map_err(io::Error::other)?
        };
        let [near, far] = tokio::select! {
            biased;
            pair = asks => pair?,
            () = over(detour) => return Err(io::ErrorKind::NotConnected.into()),
        };
        Ok([TcpStream::from_std(near)?, TcpStream::from_std(far)?])
    }
}

/// Waits until a fault leads nothing any more.
async fn over(detour: &Detour) {
    let mut looks = interval(LOOK);
    while detour.is_open(Instant::now()) {
        looks.tick().await;
    }
}

impl Client {
    /// The ways that this request and its answer are to take.
    pub(super) fn detours(&self, asked: &Asked) -> Vec<Detour> {
        let exchange = asked.exchange.as_ref().filter(|_| self.shared.relay.probe.leads());
        exchange.map_or_else(Vec::new, |exchange| exchange.conversation().detours(Instant::now()))
    }

    /// Whether the connection to the server is led through a network.
    pub(super) fn is_led(&self) -> bool {
        matches!(&self.upstream, Some(Peer { stream: Stream::Led(_), .. }))
    }

    /// Leaves networks of faults that are over, and a connection to the server that takes other ways than these.
    pub(super) async fn leave(&mut self, detours: &[Detour]) {
        let Some(Peer { stream, input }) = self.upstream.take() else { return };
        let stream = stream.freed();
        // Of another session, perhaps, which is to be left alone.
        let fits = stream.leaders().all(|leader| detours.iter().any(|detour| detour.fault() == leader));
        self.upstream = Some(Peer { stream, input });
        if !fits {
            let_go(self.upstream.take()).await;
        }
    }

    /// Leads the connection to the server these ways, as far as it does not take them already. Where a network is gone by now, its
    /// fault is over, or has failed. What a client has left behind that is gone meanwhile goes straight on.
    pub(super) async fn lead(&mut self, detours: Vec<Detour>, asked: &Asked) {
        for detour in detours {
            let Some(upstream) = &self.upstream else { return };
            let fault = detour.fault();
            if upstream.stream.leaders().all(|leader| leader != fault) {
                let Peer { stream, input } = &mut self.peer;
                let pair = tokio::select! {
                    biased;
                    pair = self.shared.asking.pair(&detour) => pair,
                    _ = input.gone(stream) => return,
                };
                let pair = match pair {
                    Ok(pair) => pair,
                    Err(error) => {
                        tracing::debug!(fault = fault.0, %error, "a connection was not led through a network");
                        continue;
                    }
                };
                let Some(Peer { stream, input }) = self.upstream.take() else { return };
                let stream = Stream::Led(Box::new(Led::new(stream, detour, pair)));
                self.upstream = Some(Peer { stream, input });
            }
            if let Some(exchange) = &asked.exchange {
                exchange.is_led_by(fault);
            }
        }
    }
}

/// Lets go of a connection to the server. What a network has not brought there yet arrives all the same, as what is in a socket
/// does.
pub(super) async fn let_go(upstream: Option<Peer>) {
    if let Some(Peer { stream: Stream::Led(mut led), .. }) = upstream {
        // Who takes nothing is left.
        let _ = timeout(LINGER, led.conclude()).await;
    }
}
