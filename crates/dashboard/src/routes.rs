//! What there is under which path.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use mcpscope_core::{ClockAnchor, TraceId, bounded};
use mcpscope_health::View;
use mcpscope_metrics::Metrics;
use mcpscope_tracing::Tracer;
use serde::Serialize;
use tokio::sync::Semaphore;
use warp::filters::BoxedFilter;
use warp::reject::{MethodNotAllowed, Rejection};
use warp::reply::Response;
use warp::{Filter, path};

use crate::problem::Problem;
use crate::{query, views};

/// What is shown. What is left out is answered 404 with the reason.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The metrics, where they are on.
    pub metrics: Option<Metrics>,
    /// The traces, where tracing is on.
    pub tracer: Option<Tracer>,
    /// Health and readiness.
    pub health: View,
    /// The instance's start on both clocks.
    pub anchor: ClockAnchor,
}

impl Sources {
    fn metrics(&self) -> Result<&Metrics, Problem> {
        self.metrics.as_ref().ok_or_else(|| Problem::not_found("metrics are switched off"))
    }

    fn tracer(&self) -> Result<&Tracer, Problem> {
        self.tracer.as_ref().ok_or_else(|| Problem::not_found("tracing is switched off"))
    }

    fn timestamp(&self, now: Instant) -> u64 {
        views::ms_since_epoch(self.anchor.wall_at(now))
    }
}

const ENDPOINTS: &str = "/metrics, /healthz, /readyz, /api/v1/health, /api/v1/metrics, /api/v1/metrics/summary, \
                         /api/v1/metrics/raw, /api/v1/traces, /api/v1/traces/{id}";

/// One request: where from, when, and its query text.
struct Asked<'a> {
    sources: &'a Sources,
    now: Instant,
    query: &'a str,
}

type Answer = Result<Response, Problem>;

struct Shared {
    sources: Sources,
    /// One answer that takes work is made at a time, so that however many clients ask, the traffic keeps all threads of
    /// the runtime but one.
    turn: Semaphore,
}

/// All endpoints. Never rejects: what does not exist is answered as well.
pub(crate) fn routes(sources: Sources) -> BoxedFilter<(Response,)> {
    let shared = Arc::new(Shared { sources, turn: Semaphore::new(1) });
    // Before the others, and without waiting for a turn: who asks these wants to know at once.
    light(path!("healthz"), &shared, healthz)
        .or(light(path!("readyz"), &shared, readyz))
        .unify()
        .or(light(path!("api" / "v1" / "health"), &shared, health))
        .unify()
        .or(light(path::end(), &shared, index))
        .unify()
        .or(heavy(path!("metrics"), &shared, prometheus))
        .unify()
        .or(heavy(path!("api" / "v1" / "metrics"), &shared, metrics))
        .unify()
        .or(heavy(path!("api" / "v1" / "metrics" / "summary"), &shared, summary))
        .unify()
        .or(heavy(path!("api" / "v1" / "metrics" / "raw"), &shared, raw))
        .unify()
        .or(heavy(path!("api" / "v1" / "traces"), &shared, traces))
        .unify()
        .or(one_trace(&shared))
        .unify()
        .recover(rejected)
        .unify()
        .boxed()
}

fn light(
    path: impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static,
    shared: &Arc<Shared>,
    handler: fn(&Asked<'_>) -> Answer,
) -> BoxedFilter<(Response,)> {
    let shared = Arc::clone(shared);
    let handle =
        move |query: String| respond(handler(&Asked { sources: &shared.sources, now: Instant::now(), query: &query }));
    path.and(reading()).and(query()).map(handle).boxed()
}

fn heavy(
    path: impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static,
    shared: &Arc<Shared>,
    handler: fn(&Asked<'_>) -> Answer,
) -> BoxedFilter<(Response,)> {
    let shared = Arc::clone(shared);
    let handle = move |query: String| {
        let shared = Arc::clone(&shared);
        async move {
            let _turn = shared.turn.acquire().await;
            respond(handler(&Asked { sources: &shared.sources, now: Instant::now(), query: &query }))
        }
    };
    path.and(reading()).and(query()).then(handle).boxed()
}

fn one_trace(shared: &Arc<Shared>) -> BoxedFilter<(Response,)> {
    let shared = Arc::clone(shared);
    let handle = move |id: String, query: String| {
        let shared = Arc::clone(&shared);
        async move {
            let _turn = shared.turn.acquire().await;
            respond(trace(&id, &Asked { sources: &shared.sources, now: Instant::now(), query: &query }))
        }
    };
    path!("api" / "v1" / "traces" / String).and(reading()).and(query()).then(handle).boxed()
}

/// GET, or HEAD, whose answer hyper sends without its body.
fn reading() -> impl Filter<Extract = (), Error = Rejection> + Clone + Send + Sync + 'static {
    warp::get().or(warp::head()).unify()
}

fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Clone + Send + Sync + 'static {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

async fn rejected(rejection: Rejection) -> Result<Response, Infallible> {
    if rejection.find::<MethodNotAllowed>().is_some() {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path can only be read: expected GET or HEAD");
        let mut response = problem.into_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(Problem::not_found(format!("there is nothing under this path; there is {ENDPOINTS}")).into_response())
}

fn respond(answer: Answer) -> Response {
    answer.unwrap_or_else(Problem::into_response)
}

fn json(status: StatusCode, view: &impl Serialize) -> Answer {
    let text = serde_json::to_string(view)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let mut response = typed(text, "application/json");
    *response.status_mut() = status;
    Ok(response)
}

fn typed(text: String, content_type: &'static str) -> Response {
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What there is, for a person who opens the address: a page comes with a later version.
fn index(_: &Asked<'_>) -> Answer {
    Ok(typed(format!("mcpscope\n\n{}\n", ENDPOINTS.replace(", ", "\n")), "text/plain; charset=utf-8"))
}

fn healthz(asked: &Asked<'_>) -> Answer {
    let uptime = views::whole_ms(asked.sources.health.uptime(asked.now));
    json(StatusCode::OK, &views::Alive { status: "ok", uptime, timestamp: asked.sources.timestamp(asked.now) })
}

fn readyz(asked: &Asked<'_>) -> Answer {
    let readiness = asked.sources.health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &views::Ready::new(&readiness, asked.sources.timestamp(asked.now)))
}

fn health(asked: &Asked<'_>) -> Answer {
    query::none(asked.query)?;
    let sources = asked.sources;
    let report = sources.health.report(asked.now, sources.anchor.wall_at(asked.now));
    json(StatusCode::OK, &views::Health::from(&report))
}

fn prometheus(asked: &Asked<'_>) -> Answer {
    let text = asked.sources.metrics()?.snapshot(asked.now).to_prometheus();
    Ok(typed(text, "text/plain; version=0.0.4; charset=utf-8"))
}

fn metrics(asked: &Asked<'_>) -> Answer {
    query::none(asked.query)?;
    let sources = asked.sources;
    let views = sources.metrics()?.views(asked.now);
    let uptime = views::whole_ms(sources.health.uptime(asked.now));
    json(
        StatusCode::OK,
        &views::Metrics::new(&views, sources.timestamp(asked.now), uptime, sources.health.usage(asked.now)),
    )
}

fn summary(asked: &Asked<'_>) -> Answer {
    query::none(asked.query)?;
    json(StatusCode::OK, &views::Summary::from(&asked.sources.metrics()?.summary(asked.now)))
}

fn raw(asked: &Asked<'_>) -> Answer {
    query::none(asked.query)?;
    let records = asked.sources.metrics()?.critical_metrics();
    json(StatusCode::OK, &records.iter().map(views::Raw::from).collect::<Vec<_>>())
}

fn traces(asked: &Asked<'_>) -> Answer {
    let filter = query::traces(asked.query)?;
    let found = asked.sources.tracer()?.traces(&filter);
    let traces: Vec<_> = found.iter().map(|trace| views::Trace::from(&**trace)).collect();
    json(StatusCode::OK, &traces)
}

fn trace(id: &str, asked: &Asked<'_>) -> Answer {
    query::none(asked.query)?;
    let tracer = asked.sources.tracer()?;
    let Some(id) = TraceId::parse(id) else {
        let found = bounded(id, 128);
        let detail = format!("{found:?} is no trace id: expected 32 lower-case hexadecimal digits, not all zero");
        return Err(Problem::bad_request(detail));
    };
    match tracer.trace(id) {
        Some(trace) => json(StatusCode::OK, &views::Trace::from(&trace)),
        None => Err(Problem::not_found(format!("there is no trace {id}: it is unknown, or newer ones took its place"))),
    }
}
