//! OTLP over gRPC: tonic's client over our connections.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use http::header::USER_AGENT;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use mcpscope_hub::Turn;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Status};
use tonic_types::StatusExt as _;

use super::{Client, Connection, Signal, excerpt};
use crate::config::Endpoint;
use crate::delivery::{Again, Refusal};

/// What takes tonic's requests.
#[derive(Clone)]
pub(crate) struct Service {
    connection: Connection,
    endpoint: Endpoint,
    turn: Turn,
}

impl Service {
    pub(super) fn origin(&self) -> Uri {
        self.endpoint.url.clone()
    }
}

impl tower_service::Service<Request<tonic::body::Body>> for Service {
    type Response = Response<Incoming>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let Self { connection, endpoint, turn } = self.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            head.headers.entry(USER_AGENT).or_insert(super::USER_AGENT);
            // The message is encoded, and compressed, where its body is read: that is work.
            let body = turn.work(move || body.collect().now_or_never()).await;
            let body = body.unwrap_or_else(|| Err(Status::internal("the message was not encoded at once")))?;
            let request = Request::from_parts(head, Full::new(body.to_bytes()));
            super::request(&connection, &endpoint, request).await.map_err(|refusal| {
                let mut status = Status::unavailable(&refusal.message);
                status.set_source(Arc::new(refusal));
                status
            })
        })
    }
}

impl<S: Signal> Client<S> {
    pub(super) async fn send_grpc(&self, message: S::Request) -> Result<S::Response, Refusal> {
        let endpoint = &self.endpoint;
        let service = Service { connection: self.connection()?, endpoint: endpoint.clone(), turn: self.turn.clone() };
        let metadata = MetadataMap::from_headers(endpoint.headers.0.clone());
        let mut request = tonic::Request::from_parts(metadata, Extensions::new(), message);
        request.set_timeout(endpoint.timeout);
        let answer = S::call(service, endpoint.gzip, request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refusal(&status, S::NAME))
    }
}

/// As the OTLP specification has it.
fn refusal(status: &Status, signal: &str) -> Refusal {
    // Our own, on its way through tonic.
    if let Some(refusal) = status.source().and_then(|source| source.downcast_ref::<Refusal>()) {
        return refusal.clone();
    }
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let may_again = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        // Only if the collector says that it will recover.
        Code::ResourceExhausted => asked.is_some(),
        _ => false,
    };
    let again = match (may_again, asked) {
        (false, _) => Again::Never,
        (true, Some(after)) => Again::After(after),
        (true, None) => Again::Later,
    };
    let told = match status.message() {
        "" => format!("{:?}", status.code()),
        message if status.code() == Code::Unavailable => excerpt(message),
        message => format!("{:?}: {}", status.code(), excerpt(message)),
    };
    let message = match status.code() {
        Code::Unimplemented => format!("Unimplemented: it takes no {signal} over gRPC; check the port"),
        _ => no_grpc(status.message()).unwrap_or_else(|| told.clone()),
    };
    Refusal::new(message, again).with_details(told)
}

/// What tonic says of answers that are HTTP/2 and no gRPC, in plain words; it has no other way to tell them.
fn no_grpc(told: &str) -> Option<String> {
    if let Some(status) = told.strip_prefix("grpc-status header missing, mapped from HTTP status code ") {
        return Some(format!("it answers with HTTP status {status} and no gRPC; check protocol and port"));
    }
    told.starts_with("protocol error: ").then(|| "what it answers is no gRPC; check protocol and port".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_grpc_is_said_in_plain_words() {
        let said = |status: &Status| (refusal(status, "metrics").message, refusal(status, "metrics").details.is_some());
        let words = "grpc-status header missing, mapped from HTTP status code 415";
        let plain = "it answers with HTTP status 415 and no gRPC; check protocol and port";
        assert_eq!(said(&Status::unknown(words)), (plain.to_owned(), true));
        let plain = "what it answers is no gRPC; check protocol and port";
        assert_eq!(said(&Status::unknown("protocol error: missing grpc-status trailer")), (plain.to_owned(), true));
        // What a collector says itself is left as it is.
        assert_eq!(said(&Status::unknown("no room")), ("Unknown: no room".to_owned(), false));
    }
}
