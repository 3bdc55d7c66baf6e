//! Connections to the server that faults lead through a network.

use std::time::Instant;

use mcpscope_hooks::Detour;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use super::super::led::Led;
use super::super::stream::Stream;
use super::admission::Asked;
use super::{Client, Peer};

impl Client {
    /// The ways that this request and its answer are to take. The connection to the server is left where it takes others.
    pub(super) fn detours(&mut self, asked: &Asked) -> Vec<Detour> {
        let exchange = asked.exchange.as_ref().filter(|_| self.shared.relay.probe.leads());
        let is_led = matches!(&self.upstream, Some(Peer { stream: Stream::Led(_), .. }));
        if exchange.is_none() && !is_led {
            return Vec::new();
        }
        let detours = exchange.map_or_else(Vec::new, |exchange| exchange.conversation().detours(Instant::now()));
        if is_led && let Some(Peer { stream, input }) = self.upstream.take() {
            let stream = stream.freed();
            // Of another session, perhaps, which is to be left alone.
            let fits = stream.leaders().all(|leader| detours.iter().any(|detour| detour.fault() == leader));
            self.upstream = fits.then_some(Peer { stream, input });
        }
        detours
    }

    /// Leads the connection to the server these ways, as far as it does not take them already. Where a network is gone by now, its
    /// fault is over, or has failed.
    pub(super) async fn lead(&mut self, detours: Vec<Detour>, asked: &Asked) {
        for detour in detours {
            let Some(upstream) = &self.upstream else { return };
            let fault = detour.fault();
            let is_new = upstream.stream.leaders().all(|leader| leader != fault);
            let its = detour.clone();
            let pair = if is_new {
                // It may take the system a while.
                match spawn_blocking(move || its.pair()).await.map_err(std::io::Error::other).flatten() {
                    Ok(pair) => Some(pair),
                    Err(error) => {
                        tracing::debug!(fault = fault.0, %error, "a connection was not led through a network");
                        continue;
                    }
                }
            } else {
                None
            };
            if let Some([near, far]) = pair {
                let (Ok(near), Ok(far)) = (TcpStream::from_std(near), TcpStream::from_std(far)) else { continue };
                let Some(Peer { stream, input }) = self.upstream.take() else { return };
                let stream = Stream::Led(Box::new(Led::new(stream, detour, [near, far])));
                self.upstream = Some(Peer { stream, input });
            }
            if let Some(exchange) = &asked.exchange {
                exchange.is_led_by(fault);
            }
        }
    }
}
