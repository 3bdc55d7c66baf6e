//! Host and Origin, looked at before anything else of a request.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use hyper::service::Service;
use mcpscope_core::{HostPolicy, Refusal};
use warp::reply::Response;

use crate::problem::Problem;

/// Lets only those requests through to the inner service that the policy allows, and marks every answer as private.
///
/// It stands outside of warp because warp's header filters see only the first of several headers of a name.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    policy: Arc<HostPolicy>,
    inner: S,
}

impl<S> Guarded<S> {
    pub(crate) fn new(policy: Arc<HostPolicy>, inner: S) -> Self {
        Self { policy, inner }
    }

    fn check<B>(&self, request: &Request<B>) -> Result<(), Refusal> {
        let all = |name: HeaderName| request.headers().get_all(name).into_iter().map(HeaderValue::as_bytes);
        self.policy.check(all(HOST), request.uri().authority().map(Authority::as_str), all(ORIGIN))
    }
}

impl<S, B> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<B>, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        match self.check(&request) {
            Ok(()) => {
                let answer = self.inner.call(request);
                Box::pin(async { answer.await.map(private) })
            }
            Err(refusal) => {
                let status = match &refusal {
                    Refusal::HostCount(_) => StatusCode::BAD_REQUEST,
                    Refusal::Host(_) | Refusal::Origin(..) => StatusCode::FORBIDDEN,
                };
                let answer = Problem::new(status, refusal.told("dashboard")).into_response();
                Box::pin(async { Ok(private(answer)) })
            }
        }
    }
}

/// What every answer says: no other site may use it, and nobody keeps it who was not told how.
fn private(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}
