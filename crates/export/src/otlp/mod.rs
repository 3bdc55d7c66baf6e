//! Speaks OTLP with a collector, over gRPC or HTTP.

mod grpc;
mod http;
mod reason;

use std::error::Error;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

use ::http::{HeaderValue, Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mcpscope_core::bounded;
use mcpscope_hub::{Reader, Turn};
use mcpscope_tls::{Identity, TlsError};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tonic::Status;
use tonic::codec::CompressionEncoding;

use crate::config::{Endpoint, Protocol, Tls};
use crate::delivery::{Accepted, Again, Collector, Refusal};

/// What we are called.
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("mcpscope/", env!("CARGO_PKG_VERSION")));
/// How often a connection for gRPC is asked whether it is alive while something is under way, and how long it may take to
/// say so. Without this, all requests would go into a connection whose other end is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Longest message of a collector that is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 512;
/// Largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// What is exported.
pub(crate) trait Signal: Send + Sync + 'static {
    type Request: prost::Message + Send + 'static;
    type Response: prost::Message + Default;
    /// Its name, as people are told.
    const NAME: &str;

    /// Calls the collector's service.
    fn call(
        service: grpc::Service,
        gzip: bool,
        request: tonic::Request<Self::Request>,
    ) -> impl Future<Output = Result<tonic::Response<Self::Response>, Status>> + Send;

    fn accepted(response: Self::Response) -> Accepted;
}

/// Traces.
pub(crate) struct Spans;

/// Metrics.
pub(crate) struct Points;

impl Signal for Spans {
    type Request = ExportTraceServiceRequest;
    type Response = ExportTraceServiceResponse;
    const NAME: &str = "traces";

    async fn call(
        service: grpc::Service,
        gzip: bool,
        request: tonic::Request<Self::Request>,
    ) -> Result<tonic::Response<Self::Response>, Status> {
        let origin = service.origin();
        let mut client = TraceServiceClient::with_origin(service, origin).max_decoding_message_size(MAX_ANSWER_BYTES);
        if gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        client.export(request).await
    }

    fn accepted(response: Self::Response) -> Accepted {
        let partial = response.partial_success.unwrap_or_default();
        accepted(partial.rejected_spans, &partial.error_message)
    }
}

impl Signal for Points {
    type Request = ExportMetricsServiceRequest;
    type Response = ExportMetricsServiceResponse;
    const NAME: &str = "metrics";

    async fn call(
        service: grpc::Service,
        gzip: bool,
        request: tonic::Request<Self::Request>,
    ) -> Result<tonic::Response<Self::Response>, Status> {
        let origin = service.origin();
        let mut client = MetricsServiceClient::with_origin(service, origin).max_decoding_message_size(MAX_ANSWER_BYTES);
        if gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        client.export(request).await
    }

    fn accepted(response: Self::Response) -> Accepted {
        let partial = response.partial_success.unwrap_or_default();
        accepted(partial.rejected_data_points, &partial.error_message)
    }
}

fn accepted(rejected: i64, message: &str) -> Accepted {
    Accepted { rejected: u64::try_from(rejected).unwrap_or(0), message: excerpt(message) }
}

/// One collector for one signal. It connects when it is needed, and again when it has to.
pub(crate) struct Client<S> {
    endpoint: Endpoint,
    reader: Reader,
    turn: Turn,
    connection: OnceLock<Connection>,
    signal: PhantomData<S>,
}

type Connection = HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>;

impl<S> Client<S> {
    pub(crate) fn new(endpoint: Endpoint, reader: Reader) -> Self {
        let turn = reader.turn();
        Self { endpoint, reader, turn, connection: OnceLock::new(), signal: PhantomData }
    }

    /// What holds the connections, made at the first call that works: its files may come later than we do, which is told.
    fn connection(&self) -> Result<Connection, Refusal> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection.clone());
        }
        let connection = connect(&self.endpoint).map_err(|error| Refusal::new(chain(&error), Again::Later))?;
        Ok(self.connection.get_or_init(|| connection).clone())
    }
}

impl<S: Signal> Collector for Client<S> {
    type Request = S::Request;

    async fn send(&self, request: S::Request) -> Result<Accepted, Refusal> {
        let response: S::Response = match self.endpoint.protocol {
            Protocol::Grpc => self.send_grpc(request).await?,
            Protocol::HttpProtobuf => self.send_http(request).await?,
        };
        Ok(S::accepted(response))
    }

    fn ready(&self) -> Result<(), Refusal> {
        self.connection().map(|_| ())
    }
}

fn connect(endpoint: &Endpoint) -> Result<Connection, TlsError> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(endpoint.timeout));
    let is_tls = endpoint.url.scheme() == Some(&::http::uri::Scheme::HTTPS);
    // Where there is no TLS, no certificates are read for it.
    let tls = if is_tls {
        let Tls { certificate, client } = &endpoint.tls;
        let identity = client.clone().map(|(chain, key)| Identity { chain, key });
        mcpscope_tls::client(certificate.as_deref(), identity.as_ref())?
    } else {
        mcpscope_tls::no_client()?
    };
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let mut client = HttpClient::builder(TokioExecutor::new());
    client.timer(TokioTimer::new()).pool_timer(TokioTimer::new()).pool_max_idle_per_host(1);
    Ok(match endpoint.protocol {
        Protocol::Grpc => {
            client.http2_only(true).http2_keep_alive_interval(KEEP_ALIVE).http2_keep_alive_timeout(KEEP_ALIVE);
            client.build(connector.enable_http2().wrap_connector(http))
        }
        Protocol::HttpProtobuf => client.build(connector.enable_all_versions().wrap_connector(http)),
    })
}

/// Sends one request; what goes wrong on the way to an answer may go well later.
async fn request(
    connection: &Connection,
    endpoint: &Endpoint,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Refusal> {
    connection.request(request).await.map_err(|error| {
        // The error itself says least: `client error (Connect)`.
        reason::refusal(error.source().unwrap_or(&error), endpoint)
    })
}

/// An error with its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let all: Vec<_> = std::iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect();
    // Several layers repeat their cause's words.
    let is_repeated = |at: usize, text: &str| all.iter().skip(at + 1).any(|cause| text.contains(&**cause));
    let told = all.iter().enumerate().filter(|(at, text)| !is_repeated(*at, text)).map(|(_, text)| text.as_str());
    excerpt(&told.collect::<Vec<_>>().join(": "))
}

/// Foreign text for people: bounded, and without what could be taken for more lines.
fn excerpt(text: &str) -> String {
    let text = bounded(text.trim(), MAX_MESSAGE_BYTES);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
