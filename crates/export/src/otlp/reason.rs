//! What went wrong on the way to a collector, in plain words: what was seen, and what to check.

use std::error::Error;
use std::io::{self, ErrorKind};

use http::uri::Scheme;

use super::chain;
use crate::config::{Endpoint, Protocol};
use crate::delivery::{Again, Refusal};

/// Why a request did not get to an answer; that may go well later.
pub(super) fn refusal(error: &(dyn Error + 'static), endpoint: &Endpoint) -> Refusal {
    let all = chain(error);
    let plain = causes(error).find_map(|cause| in_plain_words(cause, endpoint));
    Refusal::new(plain.unwrap_or_else(|| all.clone()), Again::Later).with_details(all)
}

/// An error and its causes, also those that are wrapped as an error of input and output.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
        None => (*error).source(),
    })
}

fn in_plain_words(cause: &(dyn Error + 'static), endpoint: &Endpoint) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return mcpscope_tls::explain(error, "OTEL_EXPORTER_OTLP_CERTIFICATE");
    }
    if let Some(error) = cause.downcast_ref::<h2::Error>() {
        // What came could not be understood; what is received of an error, a collector said.
        return error.is_library().then(|| speaks_something_else(endpoint));
    }
    if let Some(error) = cause.downcast_ref::<hyper::Error>() {
        return match endpoint.protocol {
            _ if error.is_incomplete_message() => Some(closed()),
            // Bytes where there should be an answer, or before there could be one. The latter has no predicate.
            Protocol::HttpProtobuf if error.is_parse() || is_unexpected(error) => Some(speaks_something_else(endpoint)),
            _ => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return of_sockets(error);
    }
    // An error of the connector, which has no type to tell it by.
    let is_unknown = cause.to_string().starts_with("dns error");
    is_unknown.then(|| "the name of the host cannot be resolved; check it".to_owned())
}

fn is_unexpected(error: &hyper::Error) -> bool {
    let is_other = error.is_canceled() || error.is_closed() || error.is_timeout() || error.is_user();
    error.source().is_none() && !is_other
}

fn of_sockets(error: &io::Error) -> Option<String> {
    let words = match error.kind() {
        ErrorKind::ConnectionRefused => "nothing listens there; check that the collector runs, and the port".to_owned(),
        ErrorKind::TimedOut => "no connection comes about; check host, port and firewall".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => closed(),
        _ => return None,
    };
    Some(words)
}

fn closed() -> String {
    "it closes the connection without an answer; check protocol and port".to_owned()
}

fn speaks_something_else(endpoint: &Endpoint) -> String {
    let (spoken, other) = match endpoint.protocol {
        Protocol::Grpc => ("gRPC", "the HTTP port"),
        Protocol::HttpProtobuf => ("HTTP/1.1", "the gRPC port"),
    };
    let tls = if endpoint.url.scheme() == Some(&Scheme::HTTP) { ", or should it be https://" } else { "" };
    format!("it speaks no {spoken} on this port; is it {other}{tls}?")
}
