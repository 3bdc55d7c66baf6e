//! The chaos engine: what it knows, and its commands.

use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use futures_util::{Stream, StreamExt as _};
use http::header::{
    ACCEPT, ALLOW, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION,
    TRANSFER_ENCODING, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mcpscope_core::bounded;
use mcpscope_hub::chaos::{Cause, Parameters, RearmError, Refusal, Report, Request, Scenario};
use mcpscope_hub::{Chaos, ChaosToken, Off, Turn};
use mediatype::MediaType;
use mediatype::names::{APPLICATION, JSON};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use warp::filters::BoxedFilter;
use warp::path::Tail;
use warp::reply::Response;
use warp::{Filter, path};

use crate::answer::{Text, json, respond};
use crate::problem::Problem;
use crate::{negotiate, query, views};

/// Longest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;

/// How long a body may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How long a body is waited for that nobody reads, and how much of it is taken, so that the connection can go on after the answer.
const UNREAD_LIMIT: Duration = Duration::from_millis(100);
const MAX_UNREAD_BYTES: usize = MAX_BODY_BYTES;

/// What no page of another origin can send without being allowed to.
const REQUEST: HeaderName = HeaderName::from_static("x-mcpscope-request");

const ENDPOINTS: &str = "/api/v1/chaos, and below it /history, /scenarios, /plan, /experiments, /experiments/{id}, \
                         /emergency-stop, /rearm";

/// The engine, where there is one, and who may command it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    chaos: Option<Chaos>,
    token: ChaosToken,
    turn: Turn,
    /// One at a time looks something up: however many ask, their answers do not fill the memory.
    looking: Arc<Semaphore>,
}

/// One request, without its body.
struct Asked {
    method: Method,
    path: Tail,
    query: String,
    headers: HeaderMap,
}

/// What there is.
enum Endpoint<'a> {
    Status,
    History,
    Scenarios,
    Plan,
    Experiments,
    Experiment(&'a str),
    EmergencyStop,
    Rearm,
}

/// An experiment as it is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    scenario: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Everything under `/api/v1/chaos`. Never rejects what is there.
pub(crate) fn routes(engine: Engine) -> BoxedFilter<(Response,)> {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    path!("api" / "v1" / "chaos" / ..)
        .and(path::tail())
        .and(warp::method())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |path, method, query, headers, body| {
            let engine = engine.clone();
            async move {
                let asked = Asked { method, path, query, headers };
                engine.answer_whole(&asked, body).await
            }
        })
        .boxed()
}

impl Endpoint<'_> {
    fn at(path: &Tail) -> Option<Endpoint<'_>> {
        Some(match path.as_str().split_once('/').unwrap_or((path.as_str(), "")) {
            ("", "") => Endpoint::Status,
            ("history", "") => Endpoint::History,
            ("scenarios", "") => Endpoint::Scenarios,
            ("plan", "") => Endpoint::Plan,
            ("experiments", "") => Endpoint::Experiments,
            ("experiments", id) => Endpoint::Experiment(id),
            ("emergency-stop", "") => Endpoint::EmergencyStop,
            ("rearm", "") => Endpoint::Rearm,
            _ => return None,
        })
    }

    const fn methods(&self) -> &'static str {
        match self {
            Self::Status | Self::History | Self::Scenarios => "GET, HEAD",
            Self::Experiment(_) => "GET, HEAD, DELETE",
            Self::Plan | Self::Experiments | Self::EmergencyStop | Self::Rearm => "POST",
        }
    }
}

impl Engine {
    pub(crate) fn new(chaos: Option<Chaos>, token: ChaosToken, turn: Turn) -> Self {
        Self { chaos, token, turn, looking: Arc::new(Semaphore::new(1)) }
    }

    /// Answers a request and sees to what it has not read of its body, which would stand before the next one.
    async fn answer_whole(&self, asked: &Asked, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Response {
        let mut body = pin!(body);
        let mut answer = self.answer(asked, body.as_mut()).await.unwrap_or_else(Problem::into_response);
        if !is_over(body).await {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    async fn answer(
        &self,
        asked: &Asked,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Response, Problem> {
        let endpoint = Endpoint::at(&asked.path).ok_or_else(nothing)?;
        // HEAD is GET whose answer hyper sends without its body.
        let method = if asked.method == Method::HEAD { &Method::GET } else { &asked.method };
        match (endpoint, method) {
            // Before anything that could be wrong with the request besides.
            (Endpoint::EmergencyStop, &Method::POST) => {
                asked.is_meant()?;
                let stopped = self.chaos()?.emergency_stop(Cause::Person);
                tracing::warn!("emergency stop by a person, over HTTP");
                Ok(respond(json(StatusCode::OK, &json!({ "emergency_stop": stopped })), &asked.headers))
            }
            (Endpoint::Status, &Method::GET) => {
                query::none(&asked.query)?;
                let status = self.chaos()?.status().await;
                Ok(respond(json(StatusCode::OK, &status), &asked.headers))
            }
            (Endpoint::Scenarios, &Method::GET) => {
                query::none(&asked.query)?;
                self.chaos()?;
                self.show(asked, async || Ok(Scenario::ALL.map(views::Scenario::from))).await
            }
            (Endpoint::History, &Method::GET) => {
                let (most, chaos) = (query::history(&asked.query)?, self.chaos()?);
                self.show(asked, async || Ok(chaos.history(most).await)).await
            }
            (Endpoint::Experiment(id), &Method::GET) => {
                let (format, id, chaos) = (query::report(&asked.query)?, number(id)?, self.chaos()?);
                let is_page =
                    format.map_or_else(|| negotiate::prefers_html(&asked.headers), |f| f == query::Format::Html);
                if is_page && let Some(report) = chaos.report(id).await {
                    return Ok(self.page(asked, report).await);
                }
                let mut answer =
                    self.show(asked, async || chaos.experiment(id).await.ok_or_else(|| unknown(id))).await?;
                if format == Some(query::Format::Html) {
                    let detail = format!("experiment {id} has not ended: there is a report once it has");
                    return Err(Problem::new(StatusCode::CONFLICT, detail));
                }
                answer.headers_mut().append(VARY, HeaderValue::from(ACCEPT));
                Ok(answer)
            }
            (Endpoint::Experiment(id), &Method::DELETE) => {
                query::none(&asked.query)?;
                asked.is_ours()?;
                if asked.has_body() {
                    asked.is_json()?;
                }
                self.stop(asked, number(id)?).await
            }
            (Endpoint::Plan, &Method::POST) => {
                query::none(&asked.query)?;
                asked.is_meant()?;
                let chaos = self.chaos()?;
                let wanted = wanted(body).await?;
                self.show(asked, async || Ok(chaos.plan(wanted).await?)).await
            }
            (Endpoint::Experiments, &Method::POST) => {
                query::none(&asked.query)?;
                asked.is_meant()?;
                let chaos = self.chaos()?;
                self.admits(asked)?;
                let id = chaos.start(wanted(body).await?).await?.0;
                let mut answer = respond(json(StatusCode::ACCEPTED, &json!({ "id": id })), &asked.headers);
                if let Ok(place) = HeaderValue::from_str(&format!("/api/v1/chaos/experiments/{id}")) {
                    answer.headers_mut().insert(LOCATION, place);
                }
                Ok(answer)
            }
            (Endpoint::Rearm, &Method::POST) => {
                query::none(&asked.query)?;
                asked.is_meant()?;
                let chaos = self.chaos()?;
                self.admits(asked)?;
                chaos.rearm().await?;
                Ok(respond(json(StatusCode::OK, &json!({ "emergency_stop": false })), &asked.headers))
            }
            (endpoint, _) => {
                let methods = endpoint.methods();
                let detail = format!("this path does not take {}: expected {methods}", bounded(method.as_str(), 32));
                let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail);
                Err(problem.with(ALLOW, HeaderValue::from_static(methods)))
            }
        }
    }

    fn chaos(&self) -> Result<&Chaos, Off> {
        self.chaos.as_ref().ok_or(Off::Chaos)
    }

    /// Whether the request has the token.
    fn admits(&self, asked: &Asked) -> Result<(), Problem> {
        let mut shown = asked.headers.get_all(AUTHORIZATION).iter();
        let (first, second) = (shown.next(), shown.next());
        if second.is_none() && self.token.admits(first.map(HeaderValue::as_bytes)) {
            return Ok(());
        }
        let found =
            if first.is_some() { "this chaos token is not the right one" } else { "this needs the chaos token" };
        let detail = format!("{found}: expected the header Authorization: Bearer TOKEN");
        let problem = Problem::new(StatusCode::UNAUTHORIZED, detail);
        Err(problem.with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
    }

    /// Looks something up when it is its turn, and shows it.
    async fn show<T: Serialize + Send + 'static>(
        &self,
        asked: &Asked,
        look: impl AsyncFnOnce() -> Result<T, Problem>,
    ) -> Result<Response, Problem> {
        // Nobody closes it.
        let _looking = self.looking.acquire().await.ok();
        let found = look().await?;
        let headers = asked.headers.clone();
        Ok(self.turn.work(move || respond(json(StatusCode::OK, &found), &headers)).await)
    }

    /// A report for people.
    async fn page(&self, asked: &Asked, report: Report) -> Response {
        let headers = asked.headers.clone();
        let page = move || {
            let body = report.to_html().into();
            let page =
                Text { status: StatusCode::OK, content_type: "text/html; charset=utf-8", negotiated: true, body };
            respond(Ok(page), &headers)
        };
        let mut answer = self.turn.work(page).await;
        let policy = HeaderValue::from_static(Report::CONTENT_SECURITY_POLICY);
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        answer
    }

    async fn stop(&self, asked: &Asked, id: u64) -> Result<Response, Problem> {
        let chaos = self.chaos()?;
        let stopped = chaos.stop(id).await;
        let test = chaos.experiment(id).await.ok_or_else(|| unknown(id))?;
        stopped.map_err(|error| Problem::new(StatusCode::CONFLICT, error.to_string()))?;
        Ok(respond(json(StatusCode::OK, &test), &asked.headers))
    }
}

impl Asked {
    /// Whether it is of a kind that a page of another origin cannot make without being allowed to.
    fn is_ours(&self) -> Result<(), Problem> {
        match only(&self.headers, &REQUEST).map(HeaderValue::as_bytes) {
            Some(b"1") => Ok(()),
            _ => {
                let detail = "a request that changes something needs the header X-Mcpscope-Request: 1";
                Err(Problem::new(StatusCode::FORBIDDEN, detail))
            }
        }
    }

    fn is_json(&self) -> Result<(), Problem> {
        let found = only(&self.headers, &CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let parsed = found.and_then(|found| MediaType::parse(found).ok());
        if parsed.is_some_and(|parsed| parsed.essence() == MediaType::new(APPLICATION, JSON)) {
            return Ok(());
        }
        let found = found.map_or("none".to_owned(), |found| format!("{:?}", bounded(found, 128)));
        let detail = format!("expected Content-Type: application/json; found {found}");
        Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
    }

    /// Both.
    fn is_meant(&self) -> Result<(), Problem> {
        self.is_ours()?;
        self.is_json()
    }

    fn has_body(&self) -> bool {
        let length = self.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
        length || self.headers.contains_key(TRANSFER_ENCODING)
    }
}

/// The header of this name, unless there are several.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none())
}

/// Takes what is left of a body, if that is not too much: whether it ended.
async fn is_over(mut body: Pin<&mut impl Stream<Item = Result<impl Buf, warp::Error>>>) -> bool {
    let taken = async {
        let mut bytes = 0;
        while let Some(part) = body.next().await {
            match part {
                Ok(part) if bytes + part.remaining() <= MAX_UNREAD_BYTES => bytes += part.remaining(),
                _ => return false,
            }
        }
        true
    };
    timeout(UNREAD_LIMIT, taken).await.unwrap_or(false)
}

/// The experiment that a body asks for.
async fn wanted(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<Request, Problem> {
    let read = async {
        let (mut body, mut bytes) = (pin!(body), Vec::new());
        while let Some(part) = body.next().await {
            let mut part = part.map_err(|_| Problem::bad_request("the body broke off"))?;
            if bytes.len() + part.remaining() > MAX_BODY_BYTES {
                let detail = format!("the body is too large: expected at most {} KiB", MAX_BODY_BYTES >> 10);
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
            while part.has_remaining() {
                bytes.extend_from_slice(part.chunk());
                part.advance(part.chunk().len());
            }
        }
        Ok(bytes)
    };
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let bytes = timeout(BODY_LIMIT, read).await.map_err(late)??;
    let Wanted { scenario, parameters } = serde_json::from_slice(&bytes).map_err(|error| {
        let expected = r#"{"scenario": NAME, "parameters": {NAME: VALUE, ...}}"#;
        Problem::bad_request(format!("the body is no experiment: {error}; expected {expected}"))
    })?;
    Ok(Request { scenario, parameters })
}

fn number(id: &str) -> Result<u64, Problem> {
    id.parse().map_err(|_| {
        Problem::bad_request(format!("{:?} is no experiment: expected its id, a whole number", bounded(id, 128)))
    })
}

fn unknown(id: u64) -> Problem {
    Problem::not_found(format!("there is no experiment {id}: it is unknown, or newer ones took its place"))
}

fn nothing() -> Problem {
    Problem::not_found(format!("there is nothing under this path; there is {ENDPOINTS}"))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::Parameters(_) | Refusal::Target(_) => StatusCode::BAD_REQUEST,
            Refusal::Journal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            // It may be possible another time.
            _ => StatusCode::CONFLICT,
        };
        let mut detail = refusal.to_string();
        // The parameters' error is the refusal itself.
        if let Refusal::Journal(error) = &refusal {
            let mut cause: Option<&dyn Error> = Some(error);
            while let Some(error) = cause {
                detail.push_str(&format!(": {error}"));
                cause = error.source();
            }
        }
        Self::new(status, detail)
    }
}

impl From<RearmError> for Problem {
    fn from(error: RearmError) -> Self {
        Self::new(StatusCode::CONFLICT, error.to_string())
    }
}
