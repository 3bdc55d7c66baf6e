//! Collectors that note what they get, and answer as they are told.

use std::collections::VecDeque;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::codec::CompressionEncoding;
use tower_service::Service as _;

/// What a collector answers to one request for traces.
#[derive(Debug)]
pub(crate) enum Answer {
    Http {
        status: StatusCode,
        retry_after: Option<&'static str>,
        body: Vec<u8>,
    },
    Grpc(Status),
    /// So many spans are rejected, for this reason.
    Partial(i64, &'static str),
    /// The connection ends.
    Cut,
}

#[derive(Default)]
struct Seen {
    heads: Vec<HeaderMap>,
    spans: usize,
    metrics: usize,
}

#[derive(Clone)]
struct Notes {
    seen: Arc<Mutex<Seen>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    /// Requests for traces.
    requests: Arc<watch::Sender<usize>>,
}

/// A collector; it ends when it is dropped.
pub(crate) struct Collector {
    addr: SocketAddr,
    notes: Notes,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
enum Speaks {
    Http,
    Grpc,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Collector {
    /// One that answers like this, and then that all is well.
    pub(crate) async fn http(answers: impl IntoIterator<Item = Answer>, tls: Option<&Certificates>) -> Self {
        Self::new(Speaks::Http, answers, tls).await
    }

    /// The same over gRPC.
    pub(crate) async fn grpc(answers: impl IntoIterator<Item = Answer>, tls: Option<&Certificates>) -> Self {
        Self::new(Speaks::Grpc, answers, tls).await
    }

    async fn new(speaks: Speaks, answers: impl IntoIterator<Item = Answer>, tls: Option<&Certificates>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let notes = Notes {
            seen: Arc::default(),
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            requests: Arc::new(watch::Sender::new(0)),
        };
        let (tls, accepting) = (tls.map(Certificates::acceptor), notes.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, notes) = (tls.clone(), accepting.clone());
                connections.spawn(async move {
                    let stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        // Who does not get in is refused.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                    };
                    match speaks {
                        Speaks::Http => serve_http(notes, stream).await,
                        Speaks::Grpc => serve_grpc(notes, stream).await,
                    }
                });
            }
        });
        Self { addr, notes, _tasks: tasks }
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        // The name in the certificate.
        format!("{scheme}://localhost:{}", self.addr.port())
    }

    /// Resolves when there were so many requests for traces.
    pub(crate) async fn until(&self, requests: usize) {
        self.notes.requests.subscribe().wait_for(|seen| *seen >= requests).await.unwrap();
    }

    pub(crate) fn requests(&self) -> usize {
        *self.notes.requests.borrow()
    }

    pub(crate) fn heads(&self) -> Vec<HeaderMap> {
        self.notes.seen.lock().unwrap().heads.clone()
    }

    /// How many spans were taken.
    pub(crate) fn spans(&self) -> usize {
        self.notes.seen.lock().unwrap().spans
    }

    /// How many metrics were taken.
    pub(crate) fn metrics(&self) -> usize {
        self.notes.seen.lock().unwrap().metrics
    }
}

impl Notes {
    /// Notes a request for traces, and says how to answer.
    fn traces(&self, request: &ExportTraceServiceRequest) -> Option<Answer> {
        let answer = self.answers.lock().unwrap().pop_front();
        if answer.is_none() {
            let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
            self.seen.lock().unwrap().spans += scopes.map(|scope| scope.spans.len()).sum::<usize>();
        }
        self.requests.send_modify(|requests| *requests += 1);
        answer
    }

    fn metrics(&self, request: &ExportMetricsServiceRequest) {
        let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
        self.seen.lock().unwrap().metrics += scopes.map(|scope| scope.metrics.len()).sum::<usize>();
    }
}

fn partial(rejected_spans: i64, message: &str) -> ExportTraceServiceResponse {
    let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message: message.to_owned() });
    ExportTraceServiceResponse { partial_success }
}

async fn serve_http(notes: Notes, stream: Box<dyn Stream>) {
    let service = service_fn(|request| answer_http(request, notes.clone()));
    // Ends with an error where it is cut.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// The connection is cut.
#[derive(Debug, thiserror::Error)]
#[error("cut")]
struct Cut;

async fn answer_http(request: Request<Incoming>, notes: Notes) -> Result<Response<Full<Bytes>>, Cut> {
    let (head, body) = request.into_parts();
    let mut body = body.collect().await.unwrap().to_bytes();
    if head.headers.contains_key("content-encoding") {
        let mut plain = Vec::new();
        GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
        body = plain.into();
    }
    notes.seen.lock().unwrap().heads.push(head.headers);
    let mut response = Response::new(Full::default());
    response.headers_mut().insert("content-type", "application/x-protobuf".parse().unwrap());
    let answer = match head.uri.path() {
        "/v1/traces" => notes.traces(&ExportTraceServiceRequest::decode(body).unwrap()),
        "/v1/metrics" => {
            notes.metrics(&ExportMetricsServiceRequest::decode(body).unwrap());
            None
        }
        other => panic!("{other}"),
    };
    match answer {
        None => {}
        Some(Answer::Http { status, retry_after, body }) => {
            *response.status_mut() = status;
            *response.body_mut() = Bytes::from(body).into();
            if let Some(after) = retry_after {
                response.headers_mut().insert("retry-after", after.parse().unwrap());
            }
        }
        Some(Answer::Partial(rejected, message)) => {
            *response.body_mut() = Bytes::from(partial(rejected, message).encode_to_vec()).into();
        }
        Some(Answer::Cut) => return Err(Cut),
        Some(Answer::Grpc(status)) => panic!("{status}"),
    }
    Ok(response)
}

async fn serve_grpc(notes: Notes, stream: Box<dyn Stream>) {
    let traces = TraceServiceServer::new(notes.clone()).accept_compressed(CompressionEncoding::Gzip);
    let metrics = MetricsServiceServer::new(notes.clone()).accept_compressed(CompressionEncoding::Gzip);
    let service = service_fn(move |request: Request<Incoming>| {
        let (mut traces, mut metrics, notes) = (traces.clone(), metrics.clone(), notes.clone());
        async move {
            notes.seen.lock().unwrap().heads.push(request.headers().clone());
            match request.uri().path().contains("TraceService") {
                true => traces.call(request).await,
                false => metrics.call(request).await,
            }
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

#[tonic::async_trait]
impl TraceService for Notes {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        match self.traces(request.get_ref()) {
            None => Ok(tonic::Response::new(Default::default())),
            Some(Answer::Grpc(status)) => Err(status),
            Some(Answer::Partial(rejected, message)) => Ok(tonic::Response::new(partial(rejected, message))),
            Some(other) => panic!("{other:?}"),
        }
    }
}

#[tonic::async_trait]
impl MetricsService for Notes {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, Status> {
        self.metrics(request.get_ref());
        Ok(tonic::Response::new(Default::default()))
    }
}

/// An authority, and what it has signed: a server and a client.
pub(crate) struct Certificates {
    folder: tempfile::TempDir,
    paths: Vec<(&'static str, String)>,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = authority.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(authority, key);
        let mut certificates = Self { folder: tempfile::tempdir().unwrap(), paths: Vec::new() };
        certificates.write("ca.pem", &root);
        for (name, [pem, key_name]) in
            [("localhost", ["server.pem", "server.key"]), ("me", ["client.pem", "client.key"])]
        {
            let key = KeyPair::generate().unwrap();
            let signed = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
            certificates.write(pem, &signed.pem());
            certificates.write(key_name, &key.serialize_pem());
        }
        certificates
    }

    fn write(&mut self, name: &'static str, text: &str) {
        let path: PathBuf = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        self.paths.push((name, path.to_str().unwrap().to_owned()));
    }

    pub(crate) fn path(&self, name: &str) -> &str {
        &self.paths.iter().find(|(known, _)| *known == name).unwrap().1
    }

    /// Accepts only those that it has signed.
    fn acceptor(&self) -> TlsAcceptor {
        let read =
            |name| CertificateDer::pem_file_iter(self.path(name)).unwrap().map(Result::unwrap).collect::<Vec<_>>();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        read("ca.pem").into_iter().for_each(|certificate| roots.add(certificate).unwrap());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build().unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(read("server.pem"), PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}
