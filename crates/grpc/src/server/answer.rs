//! The body of an answer: counted, in small pieces, with an end that may come from outside.

use std::future::{pending, ready as now};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::HeaderMap;
use hyper::body::Frame;
use mcpscope_hub::Reader;
use tokio::time::sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes};

use super::HELD;
use super::share::{Share, Taken};
use super::stall::Stall;

/// Largest piece, in bytes. HTTP/2 takes a piece whole as soon as there is room for one byte, so this is about how much of an
/// answer that nobody takes lies where nothing limits the time.
const PIECE_BYTES: usize = 16 << 10;

/// Ends, if ever, with the status that the call ends with then.
pub(super) type End = Pin<Box<dyn Future<Output = Status> + Send>>;

/// The end of a call that may take this long.
pub(super) async fn ends(limit: Option<Duration>) -> Status {
    let Some(limit) = limit else { return pending().await };
    sleep(limit).await;
    Status::deadline_exceeded(format!("the call took longer than {limit:?}"))
}

/// The body of an answer that is made at once: as large as it is, while what it is encoded in has 8 KiB at least.
pub(super) async fn whole(body: Body) -> Body {
    if body.is_end_stream() {
        return body;
    }
    match body.collect().await {
        Ok(whole) => {
            let trailers = whole.trailers().cloned().map(Ok);
            Body::new(Full::new(Bytes::copy_from_slice(&whole.to_bytes())).with_trailers(now(trailers)))
        }
        Err(status) => {
            let end = trailers(&status).ok().and_then(|frame| frame.into_trailers().ok()).map(Ok);
            Body::new(Full::<Bytes>::default().with_trailers(now(end)))
        }
    }
}

/// The body of one answer.
pub(super) struct Answer {
    body: Body,
    /// Of a piece of `body` that was too large.
    rest: Bytes,
    /// None once it has come.
    end: Option<End>,
    stall: Arc<Stall>,
    share: Share,
    reader: Reader,
    _place: Option<Taken>,
}

impl Answer {
    /// What it holds is counted in `share`; `place` is given back with the answer's end.
    pub(super) fn new(body: Body, end: End, share: Share, reader: Reader, place: Option<Taken>) -> Self {
        Self { body, rest: Bytes::new(), end: Some(end), stall: Stall::current(), share, reader, _place: place }
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => match self.share.hold(data) {
                        Some(data) => self.rest = data,
                        None => return Poll::Ready(Some(self.refused())),
                    },
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Poll::Pending => {
                    // What is there already is given out first.
                    let status = ready!(end.as_mut().poll(cx));
                    return Poll::Ready(Some(self.ended(&status)));
                }
                other => return other,
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// The end of an answer for which there is no room.
    fn refused(&mut self) -> Result<Frame<Bytes>, Status> {
        self.reader.dropped(HELD);
        self.ended(&Status::resource_exhausted("too many answers were asked for and not taken; take those first"))
    }

    fn ended(&mut self, status: &Status) -> Result<Frame<Bytes>, Status> {
        self.end = None;
        self.body = Body::empty();
        trailers(status)
    }
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut headers = HeaderMap::new();
    status.add_header(&mut headers)?;
    Ok(Frame::trailers(headers))
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = self.next(cx);
        match &frame {
            Poll::Ready(_) => self.stall.begin(),
            Poll::Pending => self.stall.end(),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || (self.rest.is_empty() && self.body.is_end_stream())
    }
}
