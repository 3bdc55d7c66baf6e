//! The client: one connection, and a typed client of each service on it.

use std::time::Duration;

use tonic::Request;
use tonic::codegen::http::uri::Authority;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;

use crate::proto::chaos_service_client::ChaosServiceClient;
use crate::proto::dashboard_service_client::DashboardServiceClient;
use crate::proto::health_service_client::HealthServiceClient;
use crate::proto::instrumentation_service_client::InstrumentationServiceClient;
use crate::proto::metrics_service_client::MetricsServiceClient;
use crate::proto::trace_service_client::TraceServiceClient;

/// How long an idle connection goes unasked, and how long the answer may take: with both over, all calls on it fail.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A client of each service, all on one connection. Its clones share the connection.
///
/// Calls have no deadline of their own, because streams have no end: give one to those that should, with
/// [`tonic::Request::set_timeout`]. On a peer that does not answer at all, every call fails within 10 s.
#[derive(Clone, Debug)]
pub struct Client {
    /// `grpc.health.v1.Health`: serving or not, overall and by component.
    pub grpc_health: HealthClient<Channel>,
    /// Health in detail.
    pub health: HealthServiceClient<Channel>,
    /// The critical metrics.
    pub metrics: MetricsServiceClient<Channel>,
    /// Traces.
    pub traces: TraceServiceClient<Channel>,
    /// Everything that the dashboard shows.
    pub dashboard: DashboardServiceClient<Channel>,
    /// Which components are observed.
    pub instrumentation: InstrumentationServiceClient<Channel>,
    /// The chaos engine. To start something needs the token: [`authorized`].
    pub chaos: ChaosServiceClient<Channel>,
}

/// A token has characters that cannot be sent, which no token has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a token of visible ASCII characters")]
pub struct InvalidToken;

/// A request that shows the chaos token.
///
/// # Errors
///
/// [`InvalidToken`].
pub fn authorized<T>(message: T, token: &str) -> Result<Request<T>, InvalidToken> {
    let mut value: AsciiMetadataValue = format!("Bearer {token}").parse().map_err(|_| InvalidToken)?;
    value.set_sensitive(true);
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("expected an address HOST:PORT, such as 127.0.0.1:50051; found {addr:?}")]
    InvalidAddress {
        /// What was given.
        addr: String,
    },
    /// Nobody listens there, or the way there is closed.
    #[error("cannot connect to {addr}")]
    Unreachable {
        /// The address.
        addr: String,
        /// What the system said.
        #[source]
        source: tonic::transport::Error,
    },
    /// Nobody answers there.
    #[error("no connection to {addr} within {timeout:?}")]
    Timeout {
        /// The address.
        addr: String,
        /// [`Client::CONNECT_TIMEOUT`].
        timeout: Duration,
    },
}

impl Client {
    /// How long connecting may take, the name's resolution included.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// The largest message that is accepted, in bytes.
    pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

    /// Connects to the instance whose gRPC listener is at `addr`, in plain text (h2c).
    ///
    /// # Errors
    ///
    /// If `addr` is not `HOST:PORT`, nobody listens there, or nobody answers in time.
    pub async fn connect(addr: &str) -> Result<Self, ClientError> {
        let channel = tokio::time::timeout(Self::CONNECT_TIMEOUT, endpoint(addr)?.connect())
            .await
            .map_err(|_| ClientError::Timeout { addr: addr.into(), timeout: Self::CONNECT_TIMEOUT })?
            .map_err(|source| ClientError::Unreachable { addr: addr.into(), source })?;
        Ok(Self::on(&channel))
    }

    fn on(channel: &Channel) -> Self {
        let max = Self::MAX_MESSAGE_BYTES;
        Self {
            grpc_health: HealthClient::new(channel.clone()),
            health: HealthServiceClient::new(channel.clone()).max_decoding_message_size(max),
            metrics: MetricsServiceClient::new(channel.clone()).max_decoding_message_size(max),
            traces: TraceServiceClient::new(channel.clone()).max_decoding_message_size(max),
            dashboard: DashboardServiceClient::new(channel.clone()).max_decoding_message_size(max),
            instrumentation: InstrumentationServiceClient::new(channel.clone()).max_decoding_message_size(max),
            chaos: ChaosServiceClient::new(channel.clone()).max_decoding_message_size(max),
        }
    }
}

fn endpoint(addr: &str) -> Result<Endpoint, ClientError> {
    let invalid = || ClientError::InvalidAddress { addr: addr.into() };
    let authority: Authority = addr.parse().map_err(|_| invalid())?;
    if authority.port_u16().is_none() || authority.host().is_empty() || addr.contains('@') {
        return Err(invalid());
    }
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|_| invalid())?;
    Ok(endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port() {
        for addr in ["127.0.0.1:50051", "localhost:1", "[::1]:50051", "metrics.example:50051"] {
            assert_eq!(endpoint(addr).unwrap().uri().to_string(), format!("http://{addr}/"));
        }
        for addr in ["", "localhost", ":50051", "127.0.0.1:", "127.0.0.1:99999", "http://127.0.0.1:1", "a:1/b", "u@a:1"]
        {
            let error = endpoint(addr).map(|endpoint| endpoint.uri().clone()).unwrap_err().to_string();
            assert_eq!(error, format!("expected an address HOST:PORT, such as 127.0.0.1:50051; found {addr:?}"));
        }
    }
}
