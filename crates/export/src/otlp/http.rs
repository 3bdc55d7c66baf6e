//! OTLP over HTTP, as protobuf.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use prost::Message;

use super::{Client, MAX_ANSWER_BYTES, Signal, excerpt};
use crate::delivery::{Again, Refusal};

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");

impl<S: Signal> Client<S> {
    pub(super) async fn send_http(&self, message: S::Request) -> Result<S::Response, Refusal> {
        let (endpoint, connection) = (&self.endpoint, self.connection()?);
        let gzip = endpoint.gzip;
        let body = self.turn.work(move || if gzip { compressed(&message) } else { message.encode_to_vec() }).await;
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = endpoint.url.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, super::USER_AGENT);
        // Also in place of ours, but what the body is, it is.
        headers.extend(endpoint.headers.0.clone());
        headers.insert(CONTENT_TYPE, PROTOBUF);
        if gzip {
            headers.insert(CONTENT_ENCODING, GZIP);
        }
        let (head, body) = super::request(&connection, endpoint, request).await?.into_parts();
        let body = read(body).await;
        if head.status.is_success() {
            // It took them, whatever else it says.
            return Ok(body.and_then(|body| S::Response::decode(body).ok()).unwrap_or_default());
        }
        let told = match body.and_then(|body| told(&head.headers, &body)) {
            Some(message) => format!("{}: {message}", head.status),
            None => head.status.to_string(),
        };
        let message = match head.status {
            // Whatever a server of something else says, or one for another signal.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                format!("{}: it takes no {} at this path; check path and port", head.status, S::NAME)
            }
            _ => told.clone(),
        };
        let again = again(head.status, &head.headers, self.reader.timestamp());
        Err(Refusal::new(message, again).with_details(told))
    }
}

/// The answer, if it is one that is not too long.
async fn read(body: Incoming) -> Option<Bytes> {
    Some(Limited::new(body, MAX_ANSWER_BYTES).collect().await.ok()?.to_bytes())
}

/// What a collector says went wrong; the body should be a `google.rpc.Status`.
fn told(headers: &HeaderMap, body: &Bytes) -> Option<String> {
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let message = match kind.split(';').next()?.trim() {
        "application/x-protobuf" => excerpt(&tonic_types::Status::decode(body.clone()).ok()?.message),
        "text/plain" => excerpt(std::str::from_utf8(body).ok()?),
        _ => return None,
    };
    (!message.is_empty()).then_some(message)
}

/// As the OTLP specification has it.
fn again(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Again {
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => retry_after(headers, now).map_or(Again::Later, Again::After),
        _ => Again::Never,
    }
}

/// In seconds, or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

fn compressed(message: &impl Message) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(&message.encode_to_vec());
    encoder.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_collector_wants_to_be_left_alone() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for (text, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 09 Sep 2001 01:47:40 GMT", Some(60)),
            // Past by our clock.
            ("Sun, 09 Sep 2001 01:46:39 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            let expected = seconds.map_or(Again::Later, |seconds| Again::After(Duration::from_secs(seconds)));
            assert_eq!(again(StatusCode::TOO_MANY_REQUESTS, &headers, now), expected, "{text}");
            assert_eq!(again(StatusCode::INTERNAL_SERVER_ERROR, &headers, now), Again::Never);
        }
    }
}
