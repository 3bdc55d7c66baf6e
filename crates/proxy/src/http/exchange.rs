//! One request and its answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, ORIGIN};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mcpscope_core::{Component, Direction, ErrorType, Outcome, Protocol, RequestId};
use mcpscope_hooks::{Connection as Counted, Lane, Loss, Passage, Queued};

use super::body::{Body, End, unwatched, watched};
use super::upstream::{Connection, Failure};
use super::{HostHeader, Shared, reply};
use crate::conversation::{Conversation, Observed, Travel};
use crate::framing::{Framing, Seen};

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// Longest session name followed, in bytes.
const MAX_SESSION_BYTES: usize = 1024;

/// One client connection and the upstream connection that belongs to it.
pub(super) struct ClientConnection {
    shared: Arc<Shared>,
    peer: SocketAddr,
    /// HTTP/1 has one exchange at a time, so nobody ever waits here.
    upstream: tokio::sync::Mutex<Connection>,
}

impl ClientConnection {
    pub(super) fn new(shared: Arc<Shared>, peer: SocketAddr) -> Self {
        Self { shared, peer, upstream: tokio::sync::Mutex::default() }
    }

    /// Relays one request and its answer.
    pub(super) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let hosts = values(request.headers(), &HOST).chain(request.uri().authority().map(|a| a.as_str().as_bytes()));
        // The authority of an absolute target takes the place of Host; they must be one and the same.
        let mut hosts: Vec<&[u8]> = hosts.collect();
        if request.uri().authority().is_some() {
            hosts.dedup();
        }
        if let Err(refusal) = self.shared.config.hosts.check(hosts, values(request.headers(), &ORIGIN)) {
            tracing::debug!(peer = %self.peer, %refusal, "request refused");
            return Ok(reply::refused(&refusal));
        }
        let (parts, body) = request.into_parts();
        let probe = &self.shared.probe;
        let exchange = probe.is_on().then(|| Arc::new(Exchange::new(&self, &parts.method, &parts.uri, &parts.headers)));
        let mut headers = parts.headers;
        self.set_host(&mut headers);
        let body = match &exchange {
            Some(exchange) => watched(body, Framing::Body, Direction::ToServer, Arc::clone(exchange)),
            None => unwatched(body),
        };
        let mut onward = Request::new(body);
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = origin_form(&parts.uri);
        *onward.headers_mut() = headers;
        *onward.extensions_mut() = parts.extensions;

        let mut upstream = self.upstream.lock().await;
        let config = &self.shared.config;
        match upstream.send(onward, &config.upstream, config.connect_timeout).await {
            Ok(response) => Ok(answer(response, exchange)),
            Err((failure, unsent)) => Ok(self.failed(&failure, unsent, exchange.as_deref()).await),
        }
    }

    fn set_host(&self, headers: &mut HeaderMap) {
        let upstream = &self.shared.config.upstream;
        let replace = match self.shared.config.host_header {
            HostHeader::Keep => false,
            HostHeader::Upstream => true,
            HostHeader::Auto => !upstream.is_loopback(),
        };
        if replace {
            headers.insert(HOST, upstream.host_header());
        }
    }

    /// Answers for a server that did not.
    async fn failed(
        &self,
        failure: &Failure,
        unsent: Option<Request<Body>>,
        exchange: Option<&Exchange>,
    ) -> Response<Body> {
        let authority = self.shared.config.upstream.authority();
        tracing::warn!(upstream = authority, error = %failure, "no answer from the upstream");
        if let Some(request) = unsent {
            // Reading the body to its end shows the exchange which calls it holds, whose ids the answer repeats.
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
        }
        let kind = match failure {
            Failure::Connect(_) => ErrorType::UpstreamUnreachable,
            Failure::Broken(_) => ErrorType::ConnectionLost,
        };
        self.shared.probe.operation(Component::Transport, Some(kind), Instant::now());
        let id = exchange.and_then(|exchange| exchange.fail(kind));
        reply::bad_gateway(id.as_ref(), &format!("upstream http://{authority} gave no answer: {failure}"))
    }
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).into_iter().map(http::HeaderValue::as_bytes)
}

/// The target as an origin server expects it: path and query only.
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
}

fn answer(response: Response<Incoming>, exchange: Option<Arc<Exchange>>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let Some(exchange) = exchange else { return Response::from_parts(parts, unwatched(body)) };
    let framing = exchange.answered(parts.status, &parts.headers);
    Response::from_parts(parts, watched(body, framing, Direction::ToClient, exchange))
}

/// What is known of an exchange while its bodies pass.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    conversation: Arc<Conversation>,
    /// The session that the request names.
    named: Option<Box<str>>,
    /// Whether the request belongs to a session that is followed.
    known: bool,
    is_delete: bool,
    /// The revision in the request's header.
    protocol: Option<Protocol>,
    /// The answer's status; 0 before its head has come.
    status: AtomicU16,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The requests that this exchange began.
    begun: Vec<RequestId>,
    /// An event stream is a connection of its own.
    stream: Option<Counted>,
    /// The HTTP+SSE session that this stream is.
    endpoint: Option<Box<str>>,
}

impl Exchange {
    fn new(client: &ClientConnection, method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let shared = Arc::clone(&client.shared);
        let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let endpoint = uri.path_and_query().map(PathAndQuery::as_str);
        let named = header(SESSION_ID).filter(|name| name.len() <= MAX_SESSION_BYTES);
        let found = match named {
            Some(name) => shared.sessions.get(name),
            None => endpoint.and_then(|endpoint| shared.sessions.get(endpoint)),
        };
        let known = found.is_some();
        let conversation = found.unwrap_or_else(|| {
            let clients = Arc::clone(&shared.clients);
            let peer = client.peer.ip().to_string();
            Arc::new(Conversation::new(shared.probe.clone(), clients, &peer, false, Instant::now()))
        });
        Self {
            conversation,
            named: named.map(Into::into),
            known,
            is_delete: method == Method::DELETE,
            protocol: header(PROTOCOL_VERSION).map(Protocol::parse),
            status: AtomicU16::new(0),
            state: Mutex::default(),
            shared,
        }
    }

    pub(super) fn max_message(&self) -> usize {
        self.shared.config.limits.max_message
    }

    pub(super) fn holds(&self) -> bool {
        self.shared.probe.holds()
    }

    pub(super) fn queued(&self, direction: Direction, messages: usize, at: Instant) -> Queued {
        self.shared.probe.queued(direction, messages, at)
    }

    /// Looks at a message of either body.
    pub(super) fn observe(&self, seen: Seen<'_>, direction: Direction, lane: &mut Lane, at: Instant) -> Passage {
        let observe = || match seen {
            Seen::Oversized => {
                self.shared.probe.lost(Loss::OversizedMessage, at);
                Observed::NOTHING
            }
            Seen::Message(bytes) if direction == Direction::ToClient && self.is_endpoint(bytes) => Observed::NOTHING,
            Seen::Message(bytes) => {
                self.conversation.observe(bytes, Travel { direction, at, protocol: self.protocol }, lane)
            }
        };
        let observed = self.shared.probe.guarded(observe).unwrap_or(Observed::NOTHING);
        if direction == Direction::ToServer {
            self.state().begun.extend(observed.begun);
        }
        observed.passage
    }

    /// Whether this event announces the endpoint of an HTTP+SSE session: a path or URL where JSON is expected otherwise.
    fn is_endpoint(&self, data: &[u8]) -> bool {
        let mut state = self.state();
        if state.stream.is_none() || self.named.is_some() || data.len() > MAX_SESSION_BYTES {
            return false;
        }
        if !data.starts_with(b"/") && !data.starts_with(b"http") {
            return false;
        }
        let Some(endpoint) = Uri::try_from(data).ok().as_ref().and_then(Uri::path_and_query).cloned() else {
            return false;
        };
        self.conversation.name(endpoint.as_str());
        if self.shared.sessions.open(endpoint.as_str(), &self.conversation) {
            state.endpoint = Some(endpoint.as_str().into());
        } else {
            self.shared.probe.lost(Loss::UntrackedSession, Instant::now());
        }
        true
    }

    /// Learns from the answer's head; says how its body is made up.
    fn answered(&self, status: StatusCode, headers: &HeaderMap) -> Framing {
        self.status.store(status.as_u16(), Ordering::Relaxed);
        let now = Instant::now();
        let media = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_stream =
            media.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"));
        if is_stream {
            self.state().stream = Some(self.shared.probe.connection(now));
        }
        self.shared.probe.guarded(|| self.follow_session(status, headers, now));
        if is_stream { Framing::Sse } else { Framing::Body }
    }

    fn follow_session(&self, status: StatusCode, headers: &HeaderMap, now: Instant) {
        let sessions = &self.shared.sessions;
        match &self.named {
            Some(name) if status == StatusCode::NOT_FOUND || (self.is_delete && status.is_success()) => {
                sessions.close(name);
            }
            Some(name) if !self.known && status.is_success() => {
                if sessions.open(name, &self.conversation) {
                    self.conversation.adopt(name, self.protocol, now);
                } else {
                    self.shared.probe.lost(Loss::UntrackedSession, now);
                }
            }
            Some(_) => {}
            None => {
                let name = headers.get(&SESSION_ID).and_then(|value| value.to_str().ok());
                let Some(name) = name.filter(|name| name.len() <= MAX_SESSION_BYTES) else { return };
                self.conversation.name(name);
                if !sessions.open(name, &self.conversation) {
                    self.shared.probe.lost(Loss::UntrackedSession, now);
                }
            }
        }
    }

    /// A body has ended, one way or another.
    pub(super) fn ended(&self, direction: Direction, end: End) {
        if direction == Direction::ToServer {
            return;
        }
        let endpoint = {
            let mut state = self.state();
            state.stream = None;
            state.endpoint.take()
        };
        if let Some(endpoint) = endpoint {
            self.shared.sessions.close(&endpoint);
        }
        let status = self.status.load(Ordering::Relaxed);
        if status >= 400 {
            self.end_begun(&Outcome::error(ErrorType::HttpStatus(status)));
            return;
        }
        // In a session the answer may still come: on another stream, or on this one resumed.
        if self.known || self.is_session() {
            return;
        }
        match end {
            End::Abandoned => self.end_begun(&Outcome::Cancelled),
            End::Complete | End::Broken => self.end_begun(&Outcome::error(ErrorType::ConnectionLost)),
        }
    }

    /// Ends the calls of this exchange because no answer will come; returns the id of the first.
    fn fail(&self, kind: ErrorType) -> Option<RequestId> {
        let first = self.state().begun.first().cloned();
        self.end_begun(&Outcome::error(kind));
        first
    }

    fn end_begun(&self, outcome: &Outcome) {
        let begun = std::mem::take(&mut self.state().begun);
        let now = Instant::now();
        for id in begun {
            self.conversation.end(Direction::ToServer, &id, outcome.clone(), now);
        }
    }

    fn is_session(&self) -> bool {
        self.conversation.is_named()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // The client went away before an answer's head: outside of a session that cancels its calls.
        if !self.known && !self.is_session() {
            self.end_begun(&Outcome::Cancelled);
        }
    }
}
