//! `TraceService`.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::unfold;
use mcpscope_core::TraceId;
use mcpscope_hub::tracing::{Filter, Trace};
use mcpscope_hub::{Admin, Off, Reader, TraceFollower, Turn};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{off, refused, until_stopped};
use crate::convert::{self, WantedTrace};
use crate::proto;
use crate::proto::trace_service_server::TraceService;
use crate::proto::{
    ClearTracesRequest, ClearTracesResponse, GetTraceRequest, GetTraceResponse, ListTracesRequest, ListTracesResponse,
    WatchTracesRequest, WatchTracesResponse,
};

/// How many traces are listed when the request does not say.
const DEFAULT_LIMIT: usize = 100;
/// Most traces in one response of a stream, so that it stays far from the 4 MiB that clients take.
const BATCH: usize = 100;
/// Most ids in the error that several begin as the one that was asked for.
const SHOWN_IDS: usize = 10;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) reader: Reader,
    pub(super) admin: Admin,
    pub(super) turn: Turn,
}

#[tonic::async_trait]
impl TraceService for Service {
    async fn list_traces(&self, request: Request<ListTracesRequest>) -> Result<Response<ListTracesResponse>, Status> {
        let filter = convert::filter(request.into_inner().filter, DEFAULT_LIMIT)?;
        let reader = self.reader.clone();
        let traces = self.turn.work(move || Ok(reader.traces(&filter)?.iter().map(|t| (&**t).into()).collect()));
        Ok(Response::new(ListTracesResponse { traces: traces.await.map_err(off)? }))
    }

    async fn get_trace(&self, request: Request<GetTraceRequest>) -> Result<Response<GetTraceResponse>, Status> {
        let wanted = convert::wanted_trace(&request.get_ref().id)?;
        let reader = self.reader.clone();
        let trace = self.turn.work(move || find(&reader, wanted)).await.map_err(off)??;
        Ok(Response::new(GetTraceResponse { trace: Some(trace) }))
    }

    type WatchTracesStream = BoxStream<WatchTracesResponse>;

    async fn watch_traces(
        &self,
        request: Request<WatchTracesRequest>,
    ) -> Result<Response<Self::WatchTracesStream>, Status> {
        let filter = convert::filter(request.into_inner().filter, 0)?;
        let reader = self.reader.clone();
        let watch = self.turn.work(move || Watch::new(&reader, filter)).await.map_err(off)?;
        let responses = unfold(watch, |mut watch| async { Some((watch.next().await?, watch)) });
        Ok(Response::new(until_stopped(responses)))
    }

    async fn clear_traces(&self, _: Request<ClearTracesRequest>) -> Result<Response<ClearTracesResponse>, Status> {
        self.admin.clear_traces().map_err(refused)?;
        Ok(Response::new(ClearTracesResponse {}))
    }
}

/// The one trace that is wanted, or why there is none.
fn find(reader: &Reader, wanted: WantedTrace) -> Result<Result<proto::Trace, Status>, Off> {
    let id = match wanted {
        WantedTrace::Id(id) => id,
        WantedTrace::Beginning(digits) => {
            let filter = Filter { text: Some(digits.clone()), ..Filter::default() };
            let mut ids: Vec<_> = reader.traces(&filter)?.iter().map(|trace| trace.id).collect();
            ids.retain(|id| id.to_string().starts_with(&digits));
            ids.sort_unstable();
            ids.dedup();
            match ids[..] {
                [] => return Ok(Err(Status::not_found(format!("no trace is held whose id begins with {digits}")))),
                [id] => id,
                _ => return Ok(Err(ambiguous(&digits, &ids))),
            }
        }
    };
    let found = reader.trace(id)?.map(|trace| (&trace).into());
    Ok(found.ok_or_else(|| Status::not_found(format!("no trace {id} is held"))))
}

fn ambiguous(digits: &str, ids: &[TraceId]) -> Status {
    let shown: Vec<_> = ids.iter().take(SHOWN_IDS).map(ToString::to_string).collect();
    let more = match ids.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Status::invalid_argument(format!(
        "{} traces have ids that begin with {digits}: {}{more}",
        ids.len(),
        shown.join(", ")
    ))
}

/// One who wants the traces as they end.
struct Watch {
    follower: TraceFollower,
    filter: Filter,
    /// Not yet told, oldest first.
    queue: VecDeque<Arc<Trace>>,
    /// Told at the beginning, and perhaps to come again.
    twice: Vec<Arc<Trace>>,
}

impl Watch {
    fn new(reader: &Reader, filter: Filter) -> Result<Self, Off> {
        if filter.limit == Some(0) {
            return Ok(Self { follower: reader.follow_traces()?, filter, queue: VecDeque::new(), twice: Vec::new() });
        }
        // What ends between the two lists is in the second one, and the follower may bring it too.
        let before = reader.traces(&filter)?;
        let follower = reader.follow_traces()?;
        let mut queue: VecDeque<_> = reader.traces(&filter)?.into();
        let known = |trace: &Arc<Trace>| before.iter().any(|known| Arc::ptr_eq(known, trace));
        let twice = queue.iter().filter(|trace| !known(trace)).cloned().collect();
        queue.make_contiguous().reverse();
        Ok(Self { follower, filter, queue, twice })
    }

    /// The next response; none once the hub has ended.
    async fn next(&mut self) -> Option<WatchTracesResponse> {
        let mut missed = 0;
        while self.queue.is_empty() && missed == 0 {
            let (traces, unseen) = self.follower.next().await?;
            missed = unseen;
            let told = |trace: &Arc<Trace>| self.twice.iter().any(|twice| Arc::ptr_eq(twice, trace));
            self.queue.extend(traces.into_iter().filter(|trace| self.filter.wants(trace) && !told(trace)));
        }
        let batch = self.queue.drain(..self.queue.len().min(BATCH));
        Some(WatchTracesResponse { traces: batch.map(|trace| (&*trace).into()).collect(), missed })
    }
}
