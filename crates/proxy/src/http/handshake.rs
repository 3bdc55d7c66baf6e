//! TLS with clients, and who hears of it when none comes about.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mcpscope_hooks::{Loss, Probe};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::{AlertDescription, Error, ServerConfig};
use tokio_rustls::{TlsAcceptor, server};

use super::failures::Failures;

/// The handshakes with all clients of a relay.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    failures: Failures,
}

impl Handshakes {
    /// TLS with a client, within this time. If none comes about it is counted and told; but not of who sends nothing, as those
    /// do who only look whether somebody listens.
    pub(super) async fn accept(
        &self,
        (stream, peer): (TcpStream, SocketAddr),
        tls: &Arc<ServerConfig>,
        limit: Duration,
        probe: &Probe,
    ) -> Option<server::TlsStream<TcpStream>> {
        let until = Instant::now() + limit;
        let begun = timeout_at(until, stream.peek(&mut [0])).await;
        if !matches!(begun, Ok(Ok(1..))) {
            return None;
        }
        let why = match timeout_at(until, TlsAcceptor::from(Arc::clone(tls)).accept(stream)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => explained(&error),
            Err(_) => format!("no handshake within {} s", limit.as_secs_f64()),
        };
        let now = Instant::now();
        probe.lost(Loss::Handshake, now.into_std());
        match self.failures.tell(now) {
            Some(0) => tracing::warn!(%peer, why, "no TLS with a client"),
            Some(untold) => {
                tracing::warn!(%peer, why, "no TLS with a client, nor with {untold} others since this was last said");
            }
            None => tracing::debug!(%peer, why, "no TLS with a client"),
        }
        None
    }
}

/// In plain words, where there are any.
fn explained(error: &io::Error) -> String {
    let words = match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::InvalidMessage(_)) => "it speaks no TLS, which is spoken here",
        Some(Error::NoApplicationProtocol) => "it does not want to speak HTTP/1.1",
        Some(Error::NoCertificatesPresented) => "it shows no certificate, which tls.client_ca_file asks for",
        Some(Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::CertificateUnknown,
        )) => "it does not trust the certificate of tls.cert_file",
        _ if error.kind() == io::ErrorKind::UnexpectedEof => "it left in the midst of the handshake",
        _ => return error.to_string(),
    };
    words.to_owned()
}
