//! One client connection: its requests, one after the other, to the upstream connection that belongs to it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use mcpscope_core::{Component, Direction, ErrorType};

use super::body::{Body, Watched, unwatched};
use super::exchange::{Exchange, TRACEPARENT, is_signed};
use super::outbox::Outbox;
use super::upstream::{Connection, Driver, Failure};
use super::{HostHeader, Shared, reply};
use crate::MAX_HOLD;
use crate::framing::Framing;

/// One client connection and the upstream connection that belongs to it.
pub(super) struct ClientConnection {
    shared: Arc<Shared>,
    peer: SocketAddr,
    /// HTTP/1 has one exchange at a time, so nobody ever waits here.
    upstream: tokio::sync::Mutex<Connection>,
    driver: Driver,
    /// Of this connection (to the client) and of all that belong to it (to the server).
    to_client: Arc<Outbox>,
    to_server: Arc<Outbox>,
}

impl ClientConnection {
    pub(super) fn new(shared: Arc<Shared>, peer: SocketAddr) -> Self {
        let (to_client, to_server) = (Arc::default(), Arc::default());
        let upstream = tokio::sync::Mutex::new(Connection::new(Arc::clone(&to_server)));
        Self { shared, peer, upstream, driver: Driver::default(), to_client, to_server }
    }

    pub(super) fn outbox(&self, direction: Direction) -> Arc<Outbox> {
        Arc::clone(match direction {
            Direction::ToClient => &self.to_client,
            Direction::ToServer => &self.to_server,
        })
    }

    /// Drives the upstream connection, if there is one.
    pub(super) fn drive(&self, cx: &mut Context<'_>) {
        self.driver.drive(cx);
    }

    /// Relays one request and its answer.
    pub(super) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let config = &self.shared.config;
        let all = |name: HeaderName| request.headers().get_all(name).into_iter().map(HeaderValue::as_bytes);
        let authority = request.uri().authority().map(Authority::as_str);
        if let Err(refusal) = config.hosts.check(all(HOST), authority, all(ORIGIN)) {
            tracing::debug!(peer = %self.peer, %refusal, "request refused");
            return Ok(reply::refused(&refusal));
        }
        let (mut parts, body) = request.into_parts();
        let exchange = self
            .shared
            .relay
            .probe
            .is_on()
            .then(|| Arc::new(Exchange::new(&self.shared, self.peer, &parts.method, &parts.uri, &parts.headers)));
        let body = match &exchange {
            Some(exchange) => self.watched(body, exchange, &mut parts.headers).await,
            None => unwatched(body),
        };
        self.set_host(&mut parts.headers);
        refuse_upgrade(&mut parts.headers);
        let mut onward = Request::new(body);
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = origin_form(&parts.uri);
        *onward.headers_mut() = parts.headers;
        *onward.extensions_mut() = parts.extensions;

        let mut upstream = self.upstream.lock().await;
        match upstream.send(onward, &config.upstream, &self.driver, config.connect_timeout).await {
            Ok(response) => {
                if let Some(traffic) = &config.traffic {
                    traffic.works();
                }
                Ok(self.answer(response, exchange))
            }
            Err((failure, unsent)) => Ok(self.failed(&failure, unsent, exchange.as_deref()).await),
        }
    }

    /// The request's body as it goes on. Where our context is to be in it, it is read to its end first: the head, which
    /// goes before it, tells its length. One that takes too long goes on as it is, so that the server may refuse it.
    async fn watched(&self, body: Incoming, exchange: &Arc<Exchange>, headers: &mut HeaderMap) -> Body {
        let (direction, framing) = (Direction::ToServer, exchange.request_framing());
        let fits = body.size_hint().lower() <= self.shared.config.limits.max_message as u64;
        let propagates = framing.is_some() && fits && self.shared.relay.probe.propagates() && !is_signed(headers);
        let mut body = Watched::new(body, framing, direction, Arc::clone(exchange), self.outbox(direction), propagates);
        if propagates {
            if tokio::time::timeout(MAX_HOLD, body.complete()).await.is_err() {
                body.release();
            }
            if let Some(length) = body.changed_length().filter(|_| headers.contains_key(CONTENT_LENGTH)) {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            if let Some(value) = exchange.traceparent() {
                headers.insert(TRACEPARENT, value);
            }
        }
        body.into_body()
    }

    fn answer(&self, response: Response<Incoming>, exchange: Option<Arc<Exchange>>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        if parts.headers.contains_key(TRANSFER_ENCODING) {
            // Transfer-Encoding overrides Content-Length, and an intermediary must not pass both on (RFC 9112, 6.3).
            parts.headers.remove(CONTENT_LENGTH);
        }
        let Some(exchange) = exchange else { return Response::from_parts(parts, unwatched(body)) };
        let framing = exchange.answered(parts.status, &parts.headers);
        // The server's own requests come as events. A stream whose length was told must keep it.
        let propagates = framing == Some(Framing::Sse)
            && self.shared.relay.probe.propagates()
            && !parts.headers.contains_key(CONTENT_LENGTH)
            && !is_signed(&parts.headers);
        let direction = Direction::ToClient;
        let body = Watched::new(body, framing, direction, exchange, self.outbox(direction), propagates);
        Response::from_parts(parts, body.into_body())
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
        let config = &self.shared.config;
        let message = format!("upstream http://{} gave no answer: {failure}", config.upstream.authority());
        tracing::warn!("{message}");
        if let Some(request) = unsent {
            // Reading the body to its end shows the exchange which calls it holds, whose ids the answer repeats.
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
        }
        self.to_server.forget();
        let kind = match failure {
            Failure::Connect(_) => {
                if let Some(traffic) = &config.traffic {
                    traffic.fails(&message);
                }
                ErrorType::UpstreamUnreachable
            }
            Failure::Broken(_) => ErrorType::ConnectionLost,
        };
        self.shared.relay.probe.operation(Component::Transport, Some(kind), Instant::now());
        let id = exchange.and_then(|exchange| exchange.fail(kind));
        reply::bad_gateway(id.as_ref(), &message)
    }
}

/// MCP has no use for another protocol on the connection, and a relay of messages cannot follow one: an upgrade is not asked
/// for, so that the server answers in HTTP.
fn refuse_upgrade(headers: &mut HeaderMap) {
    if headers.remove(UPGRADE).is_some() {
        let is_upgrade = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"upgrade");
        if headers.get(CONNECTION).is_some_and(is_upgrade) {
            headers.remove(CONNECTION);
        }
    }
}

/// The target as an origin server expects it: path and query only.
fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
}
