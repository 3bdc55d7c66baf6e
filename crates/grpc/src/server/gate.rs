//! What every call passes first: who asks, how long it may take, and whether there is room for one more stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode};
use mcpscope_core::HostPolicy;
use mcpscope_hub::Reader;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;

use super::answer::{self, Answer, End, ends};
use super::share::{Full, Share};
use super::{Config, REFUSED, STREAMS};

/// Longest time for a call that is no stream, whatever its deadline says: until its request has come it holds memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Needs no place among the other streams.
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// The calls that may last: only so many are open at a time.
const STREAMING: [&str; 8] = [
    HEALTH_WATCH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/mcpscope.v1.ChaosService/WatchEvents",
    "/mcpscope.v1.DashboardService/WatchSnapshots",
    "/mcpscope.v1.HealthService/WatchHealth",
    "/mcpscope.v1.MetricsService/RecordMetrics",
    "/mcpscope.v1.TraceService/WatchTraces",
];

/// Lets through to the services what may pass. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    routes: Routes,
    policy: Arc<HostPolicy>,
    share: Share,
    reader: Reader,
    stopping: watch::Receiver<()>,
}

impl Gate {
    pub(super) fn new(routes: Routes, config: Config, reader: Reader, stopping: watch::Receiver<()>) -> Self {
        let share = Share::new(&config);
        let policy = HostPolicy { allowed_hosts: config.allowed_hosts, ..HostPolicy::default() };
        Self { routes, policy: Arc::new(policy), share, reader, stopping }
    }

    /// The same for one more connection, which has a share of its own.
    pub(super) fn for_connection(&self) -> Self {
        Self { share: self.share.for_connection(), ..self.clone() }
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Whether this is a gRPC call, of a program that asks for us by a name of ours.
    fn check<B>(&self, request: &Request<B>) -> Result<(), Refused> {
        let headers = request.headers();
        if request.method() != Method::POST {
            return Err(Refused::NotGrpc(StatusCode::METHOD_NOT_ALLOWED, "expected POST"));
        }
        if !headers.get(CONTENT_TYPE).is_some_and(is_grpc) {
            let expected = "expected content-type: application/grpc";
            return Err(Refused::NotGrpc(StatusCode::UNSUPPORTED_MEDIA_TYPE, expected));
        }
        // Only browsers send it, and no page has any business here.
        if headers.contains_key(ORIGIN) {
            return Err(Refused::Denied("expected no Origin header: gRPC is not for web pages".to_owned()));
        }
        let hosts = || headers.get_all(HOST).into_iter().map(HeaderValue::as_bytes);
        let authority = request.uri().authority().map(Authority::as_str);
        let checked = match authority {
            Some(authority) if hosts().next().is_none() => self.policy.check([authority.as_bytes()], None, []),
            _ => self.policy.check(hosts(), authority, []),
        };
        // Their names are those of the dashboard.
        checked.map_err(|refusal| Refused::Denied(refusal.told("dashboard")))
    }
}

/// Why a request is no call.
#[derive(Debug)]
enum Refused {
    /// It is something else, which would not understand a gRPC status.
    NotGrpc(StatusCode, &'static str),
    /// It comes from where no call should come from.
    Denied(String),
}

impl Refused {
    fn into_response(self) -> Response<Body> {
        match self {
            Self::NotGrpc(status, text) => {
                let mut response = Response::new(Body::new(text.to_owned()));
                *response.status_mut() = status;
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                response
            }
            Self::Denied(why) => Status::permission_denied(why).into_http(),
        }
    }
}

impl Service<Request<Incoming>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if let Err(refusal) = self.check(&request) {
            self.reader.dropped(REFUSED);
            return Box::pin(async { Ok(refusal.into_response()) });
        }
        let Self { routes, share, reader, stopping, .. } = self.clone();
        Box::pin(async move { Ok(pass(routes, request, share, reader, stopping).await) })
    }
}

/// Has a call answered that may pass.
async fn pass(
    mut routes: Routes,
    request: Request<Incoming>,
    share: Share,
    reader: Reader,
    stopping: watch::Receiver<()>,
) -> Response<Body> {
    let path = request.uri().path();
    let is_stream = STREAMING.contains(&path);
    let deadline = match deadline(request.headers()) {
        Ok(deadline) => deadline,
        Err(refusal) => return refusal.into_http(),
    };
    let mut place = None;
    if is_stream {
        let taken = if path == HEALTH_WATCH { share.watch() } else { share.stream() };
        match taken {
            Ok(taken) => place = Some(taken),
            Err(full) => {
                reader.dropped(STREAMS);
                return no_place(full).into_http();
            }
        }
    }
    let limit = if is_stream { deadline } else { Some(deadline.unwrap_or(CALL_TIMEOUT).min(CALL_TIMEOUT)) };
    let mut end: End = Box::pin(ends(limit));
    let response = tokio::select! {
        biased;
        answer = routes.call(request) => answer.unwrap_or_else(|never| match never {}),
        status = &mut end => return status.into_http(),
    };
    let end = if is_stream { until_stopped(end, stopping) } else { end };
    let (head, mut body) = response.into_parts();
    if !is_stream {
        body = answer::whole(body).await;
    }
    Response::from_parts(head, Body::new(Answer::new(body, end, share, reader, place)))
}

fn no_place(full: Full) -> Status {
    Status::resource_exhausted(match full {
        Full::All(streams) => format!("all places for streams are taken ({streams}); end one first"),
        Full::Connection(streams) => {
            format!("this connection has all streams that it may have ({streams}); end one first")
        }
    })
}

/// What a stream ends with that does not end by itself.
fn until_stopped(end: End, mut stopping: watch::Receiver<()>) -> End {
    Box::pin(async move {
        tokio::select! {
            status = end => status,
            _ = stopping.changed() => Status::unavailable("the instance is stopping"),
        }
    })
}

/// The deadline of a call, by its header `grpc-timeout`.
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(header) = headers.get("grpc-timeout") else { return Ok(None) };
    let deadline = header.to_str().ok().and_then(parse_timeout);
    let expected = || Status::invalid_argument("grpc-timeout: expected 1 to 8 digits and one of H, M, S, m, u, n");
    deadline.map(Some).ok_or_else(expected)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// `application/grpc`, with a subtype or parameters, but not the one of browsers, `application/grpc-web`.
fn is_grpc(content_type: &HeaderValue) -> bool {
    let rest = content_type.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_streaming_call_is_limited() {
        let sets = [
            crate::proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut streams = Vec::new();
        for file in sets.iter().flat_map(|set| FileDescriptorSet::decode(*set).unwrap().file) {
            for service in &file.service {
                let streaming = service.method.iter().filter(|m| m.client_streaming() || m.server_streaming());
                streams.extend(streaming.map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
            }
        }
        streams.sort();
        assert_eq!(streams, STREAMING);
    }

    #[test]
    fn deadlines_are_read_as_the_protocol_says() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(parse_timeout(text), Some(expected), "{text}");
        }
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "999999999S", "1 S", "1é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_grpc_is_taken_for_grpc() {
        for fine in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(is_grpc(&HeaderValue::from_static(fine)), "{fine}");
        }
        for other in ["application/grpc-web", "application/grpc-web+proto", "text/plain", "application/json", ""] {
            assert!(!is_grpc(&HeaderValue::from_static(other)), "{other}");
        }
    }
}
