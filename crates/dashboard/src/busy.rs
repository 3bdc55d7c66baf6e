//! What a connection does, told to whoever gives out the places.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::{Body, Frame, SizeHint};
use hyper::service::Service;
use mcpscope_accept::{Activity, UnderWay};

/// A service that says of each request of its connection how long it is being answered.
#[derive(Clone, Debug)]
pub(crate) struct Busy<S> {
    inner: S,
    activity: Activity,
}

impl<S> Busy<S> {
    pub(crate) fn new(inner: S, activity: Activity) -> Self {
        Self { inner, activity }
    }
}

impl<S, R, B> Service<Request<R>> for Busy<S>
where
    S: Service<Request<R>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Given<B>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<R>) -> Self::Future {
        let under_way = self.activity.begin();
        let answer = self.inner.call(request);
        Box::pin(async { Ok(answer.await?.map(|body| Given { body, _under_way: under_way })) })
    }
}

/// The body of an answer, which is under way until it is dropped.
#[derive(Debug)]
pub(crate) struct Given<B> {
    body: B,
    _under_way: UnderWay,
}

impl<B: Body + Unpin> Body for Given<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
