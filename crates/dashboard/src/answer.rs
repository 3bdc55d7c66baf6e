//! Answers that may be compressed.

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use warp::reply::Response;

use crate::compress::{self, Compression, MIN_BYTES, wants_gzip};
use crate::problem::Problem;

/// An answer that may be compressed.
pub(crate) struct Text {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    /// Whether another [`ACCEPT`] might have made another answer.
    pub(crate) negotiated: bool,
    pub(crate) body: Bytes,
}

pub(crate) type Answer = Result<Text, Problem>;

/// The answer to who asks with these headers.
pub(crate) fn respond(answer: Answer, asked: &HeaderMap) -> Response {
    let Text { status, content_type, negotiated, body } = match answer {
        Ok(text) => text,
        Err(problem) => return problem.into_response(),
    };
    let worth_it = body.len() > MIN_BYTES && wants_gzip(asked);
    // Writing to memory does not fail.
    let compressed = worth_it.then(|| compress::gzip(&body, Compression::fast()).ok()).flatten();
    let is_compressed = compressed.is_some();
    let mut response = Response::new(compressed.unwrap_or(body).into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(VARY, HeaderValue::from(ACCEPT_ENCODING));
    if negotiated {
        headers.append(VARY, HeaderValue::from(ACCEPT));
    }
    if is_compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

pub(crate) fn json(status: StatusCode, view: &impl Serialize) -> Answer {
    let text = serde_json::to_string(view)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Text { status, content_type: "application/json", negotiated: false, body: text.into() })
}
