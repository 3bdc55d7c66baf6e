//! What there is under which path.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::ALLOW;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::upgrade::OnUpgrade;
use mcpscope_core::{TraceId, bounded};
use mcpscope_hub::{Off, Reader, Turn};
use warp::filters::BoxedFilter;
use warp::path::Tail;
use warp::reject::{MethodNotAllowed, Rejection};
use warp::reply::Response;
use warp::{Filter, path};

use crate::answer::{Answer, Text, json, respond};
use crate::assets::{Assets, PAGE};
use crate::chaos::{self, Engine};
use crate::problem::Problem;
use crate::publish::{Encoding, Publisher};
use crate::websocket::Gate;
use crate::{negotiate, query, views};

const ENDPOINTS: &str = "/, /static/..., /ws, /metrics, /healthz, /readyz, /api/v1/dashboard, /api/v1/health, \
                         /api/v1/metrics, /api/v1/metrics/summary, /api/v1/metrics/raw, /api/v1/traces, \
                         /api/v1/traces/{id}, /api/v1/instrumentation, /api/v1/chaos, /api/v1/chaos/history, \
                         /api/v1/chaos/scenarios, /api/v1/chaos/plan, /api/v1/chaos/experiments, \
                         /api/v1/chaos/experiments/{id}, /api/v1/chaos/emergency-stop, /api/v1/chaos/rearm";

const PROBE_ENDPOINTS: &str = "/metrics, /healthz, /readyz, and gRPC health over HTTP/2";

const METRICS_ENDPOINTS: &str = "/metrics";

/// One request.
struct Asked {
    reader: Reader,
    query: String,
    headers: HeaderMap,
}

impl From<Off> for Problem {
    fn from(off: Off) -> Self {
        Self::not_found(off.to_string())
    }
}

/// All endpoints. Never rejects: what does not exist is answered as well.
pub(crate) fn routes(publisher: &Publisher, turn: &Turn, gate: Gate, engine: Engine) -> BoxedFilter<(Response,)> {
    let reader = publisher.reader();
    let newest = publisher.clone();
    chaos::routes(engine)
        .or(probed(reader, turn))
        .unify()
        .or(light(path!("api" / "v1" / "health"), reader, health))
        .unify()
        .or(page())
        .unify()
        .or(socket(gate))
        .unify()
        .or(heavy(path!("api" / "v1" / "dashboard").map(move || dashboard(newest.clone())), reader, turn))
        .unify()
        .or(heavy(path!("api" / "v1" / "metrics").map(|| metrics), reader, turn))
        .unify()
        .or(heavy(path!("api" / "v1" / "metrics" / "summary").map(|| summary), reader, turn))
        .unify()
        .or(heavy(path!("api" / "v1" / "metrics" / "raw").map(|| raw), reader, turn))
        .unify()
        .or(heavy(path!("api" / "v1" / "traces").map(|| traces), reader, turn))
        .unify()
        .or(heavy(path!("api" / "v1" / "traces" / String).map(trace), reader, turn))
        .unify()
        .or(heavy(path!("api" / "v1" / "instrumentation").map(|| instrumentation), reader, turn))
        .unify()
        .recover(|rejection| rejected(rejection, ENDPOINTS))
        .unify()
        .boxed()
}

/// What the probe listener has. Never rejects either.
pub(crate) fn probe_routes(reader: &Reader, turn: &Turn) -> BoxedFilter<(Response,)> {
    probed(reader, turn).recover(|rejection| rejected(rejection, PROBE_ENDPOINTS)).unify().boxed()
}

/// What the metrics listener has. Never rejects either.
pub(crate) fn metrics_routes(reader: &Reader, turn: &Turn) -> BoxedFilter<(Response,)> {
    scraped(reader, turn).recover(|rejection| rejected(rejection, METRICS_ENDPOINTS)).unify().boxed()
}

fn probed(reader: &Reader, turn: &Turn) -> BoxedFilter<(Response,)> {
    light(path!("healthz"), reader, healthz)
        .or(light(path!("readyz"), reader, readyz))
        .unify()
        .or(scraped(reader, turn))
        .unify()
        .boxed()
}

fn scraped(reader: &Reader, turn: &Turn) -> BoxedFilter<(Response,)> {
    heavy(path!("metrics").map(|| exposition), reader, turn)
}

/// Answered at once, without waiting for a turn: who asks these wants to know now.
fn light(
    path: impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static,
    reader: &Reader,
    handler: fn(&Asked) -> Answer,
) -> BoxedFilter<(Response,)> {
    let reader = reader.clone();
    let handle = move |query: String, headers: HeaderMap| {
        let asked = Asked { reader: reader.clone(), query, headers };
        respond(handler(&asked), &asked.headers)
    };
    path.and(reading()).and(query()).and(warp::header::headers_cloned()).map(handle).boxed()
}

fn heavy<H: FnOnce(&Asked) -> Answer + Send + 'static>(
    path: impl Filter<Extract = (H,), Error = Rejection> + Clone + Send + Sync + 'static,
    reader: &Reader,
    turn: &Turn,
) -> BoxedFilter<(Response,)> {
    let (reader, turn) = (reader.clone(), turn.clone());
    let handle = move |handler: H, query: String, headers: HeaderMap| {
        let (asked, turn) = (Asked { reader: reader.clone(), query, headers }, turn.clone());
        async move { turn.work(move || respond(handler(&asked), &asked.headers)).await }
    };
    path.and(reading()).and(query()).and(warp::header::headers_cloned()).then(handle).boxed()
}

fn page() -> BoxedFilter<(Response,)> {
    let assets = Arc::new(Assets::new());
    let answer = move |path: &str, headers: &HeaderMap| {
        assets.answer(path, headers).unwrap_or_else(|| Problem::not_found("there is no such file").into_response())
    };
    let file = answer.clone();
    path::end()
        .and(reading())
        .and(warp::header::headers_cloned())
        .map(move |headers: HeaderMap| answer(PAGE, &headers))
        .or(path("static")
            .and(path::tail())
            .and(reading())
            .and(warp::header::headers_cloned())
            .map(move |path: Tail, headers: HeaderMap| file(path.as_str(), &headers)))
        .unify()
        .boxed()
}

fn socket(gate: Gate) -> BoxedFilter<(Response,)> {
    let handle = move |method: Method, query: String, headers: HeaderMap, upgrade: Option<OnUpgrade>| {
        let encoding = query::gzip_socket(&query).map(|gzip| if gzip { Encoding::Gzip } else { Encoding::Text });
        encoding.map_or_else(Problem::into_response, |encoding| gate.enter(method, headers, upgrade, encoding))
    };
    path!("ws")
        .and(reading())
        .and(warp::method())
        .and(query())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional())
        .map(handle)
        .boxed()
}

/// GET, or HEAD, whose answer hyper sends without its body.
fn reading() -> impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static {
    warp::get().or(warp::head()).unify()
}

fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Clone + Send + Sync + 'static {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

async fn rejected(rejection: Rejection, endpoints: &'static str) -> Result<Response, Infallible> {
    if rejection.find::<MethodNotAllowed>().is_some() {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path can only be read: expected GET or HEAD");
        return Ok(problem.with(ALLOW, HeaderValue::from_static("GET, HEAD")).into_response());
    }
    Ok(Problem::not_found(format!("there is nothing under this path; there is {endpoints}")).into_response())
}

fn healthz(asked: &Asked) -> Answer {
    let uptime = views::whole_ms(asked.reader.uptime());
    json(StatusCode::OK, &views::Alive { status: "ok", uptime, timestamp: timestamp(asked) })
}

fn readyz(asked: &Asked) -> Answer {
    let readiness = asked.reader.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &views::Ready::new(&readiness, timestamp(asked)))
}

fn health(asked: &Asked) -> Answer {
    query::none(&asked.query)?;
    json(StatusCode::OK, &views::Health::from(&asked.reader.health()))
}

fn exposition(asked: &Asked) -> Answer {
    let format = negotiate::format(&asked.headers);
    let text = asked.reader.exposition(format)?;
    Ok(Text { status: StatusCode::OK, content_type: format.content_type(), negotiated: true, body: text.into() })
}

/// The newest frame, in the bytes that all sockets get.
fn dashboard(publisher: Publisher) -> impl FnOnce(&Asked) -> Answer + Send + 'static {
    move |asked| {
        query::none(&asked.query)?;
        let body = publisher.newest().dashboard();
        Ok(Text { status: StatusCode::OK, content_type: "application/json", negotiated: false, body })
    }
}

fn metrics(asked: &Asked) -> Answer {
    query::none(&asked.query)?;
    let reader = &asked.reader;
    let views = reader.views()?;
    json(StatusCode::OK, &views::Metrics::new(&views, reader.timestamp(), reader.uptime(), Some(reader.usage())))
}

fn summary(asked: &Asked) -> Answer {
    query::none(&asked.query)?;
    json(StatusCode::OK, &views::Summary::from(&asked.reader.summary()?))
}

fn raw(asked: &Asked) -> Answer {
    query::none(&asked.query)?;
    let records = asked.reader.raw_records()?;
    json(StatusCode::OK, &records.iter().map(views::Raw::from).collect::<Vec<_>>())
}

fn traces(asked: &Asked) -> Answer {
    let filter = query::traces(&asked.query)?;
    let found = asked.reader.traces(&filter)?;
    let traces: Vec<_> = found.iter().map(|trace| views::Trace::from(&**trace)).collect();
    json(StatusCode::OK, &traces)
}

fn trace(id: String) -> impl FnOnce(&Asked) -> Answer + Send + 'static {
    move |asked| {
        query::none(&asked.query)?;
        let Some(id) = TraceId::parse(&id) else {
            let found = bounded(&id, 128);
            let detail = format!("{found:?} is no trace id: expected 32 lower-case hexadecimal digits, not all zero");
            return Err(Problem::bad_request(detail));
        };
        match asked.reader.trace(id)? {
            Some(trace) => json(StatusCode::OK, &views::Trace::from(&trace)),
            None => {
                Err(Problem::not_found(format!("there is no trace {id}: it is unknown, or newer ones took its place")))
            }
        }
    }
}

fn instrumentation(asked: &Asked) -> Answer {
    query::none(&asked.query)?;
    json(StatusCode::OK, &views::Instrumentation::from(&asked.reader.instrumentation()?))
}

fn timestamp(asked: &Asked) -> u64 {
    views::ms_since_epoch(asked.reader.timestamp())
}
