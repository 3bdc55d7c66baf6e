//! `ChaosService`.

use std::collections::VecDeque;
use std::error::Error;
use std::iter::successors;
use std::panic::resume_unwind;
use std::sync::Arc;

use futures_util::stream::unfold;
use mcpscope_hub::chaos::{Cause, Divergence, Event, Recording, Refusal, ReplayError, Request as Wanted};
use mcpscope_hub::{Admin, Change, Chaos, ChaosToken, Events, Reader};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::spawn_blocking;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status};

use super::{off, until_stopped};
use crate::convert::{self, Invalid};
use crate::mistakes;
use crate::proto::chaos_service_server::ChaosService;
use crate::proto::{
    ChaosServiceGetStatusRequest, ChaosServiceGetStatusResponse, ChaosTest, EmergencyStopRequest,
    EmergencyStopResponse, GetReportRequest, GetReportResponse, ListHistoryRequest, ListHistoryResponse, PlanRequest,
    PlanResponse, RearmRequest, RearmResponse, ReplayRequest, ReplayResponse, StartExperimentRequest,
    StartExperimentResponse, StopExperimentRequest, StopExperimentResponse, WatchEventsRequest, WatchEventsResponse,
};

/// How many experiments are listed when the request does not say.
const DEFAULT_LIMIT: usize = 100;
/// Most ids in the error that there is no such experiment.
const SHOWN_IDS: usize = 10;

#[derive(Debug)]
pub(super) struct Service {
    reader: Reader,
    admin: Admin,
    token: ChaosToken,
    /// Who only looks waits for the others who do, so that a crowd of them does not stand before one who stops something.
    looking: Mutex<()>,
    /// One journal is worked through at a time.
    replaying: Arc<Semaphore>,
}

impl Service {
    pub(super) fn new(reader: Reader, admin: Admin, token: ChaosToken) -> Self {
        Self { reader, admin, token, looking: Mutex::default(), replaying: Arc::new(Semaphore::new(1)) }
    }

    fn chaos(&self) -> Result<&Chaos, Status> {
        self.admin.chaos().map_err(off)
    }

    /// Whether the caller may disturb the traffic.
    fn authorize<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let shown = request.metadata().get("authorization").map(|value| value.as_encoded_bytes());
        if self.token.admits(shown) {
            return Ok(());
        }
        let what = if shown.is_some() { "this is not the chaos token" } else { "this needs the chaos token" };
        Err(Status::unauthenticated(format!(
            "{what}: expected the metadata `authorization: Bearer TOKEN` with the one that the instance has by its \
             configuration or printed at its start; `mcpscope chaos` takes it from --token-file, and from an instance \
             of the same user on the same machine by itself"
        )))
    }

    /// An experiment that is known to be there.
    async fn test(chaos: &Chaos, id: u64) -> Option<ChaosTest> {
        chaos.experiment(id).await.map(|test| (&test).into())
    }

    /// Why there is nothing that an experiment leaves when it has ended.
    async fn not_ended(chaos: &Chaos, id: u64, what: &str) -> Status {
        if let Some(test) = chaos.experiment(id).await {
            return Status::failed_precondition(if test.status.is_final() {
                format!("experiment {id} has ended, and what it has left over is being looked at: ask again, {what}")
            } else {
                format!("experiment {id} has not ended: expected one that has, {what}")
            });
        }
        let status = chaos.status().await;
        let running = status.active_tests_details.iter().map(|test| test.id);
        let newest = chaos.history(SHOWN_IDS).await;
        let ids: Vec<_> = running.chain(newest.iter().map(|test| test.id)).map(|id| id.to_string()).collect();
        Status::not_found(match ids.as_slice() {
            [] => format!("there is no experiment {id}: there was none yet"),
            ids => format!("there is no experiment {id}: the newest are {}", ids.join(", ")),
        })
    }

    async fn journal(&self, chaos: &Chaos, id: u64) -> Result<String, Status> {
        let _looking = self.looking.lock().await;
        match chaos.journal(id).await {
            Some(journal) => Ok(journal),
            None => Err(Self::not_ended(chaos, id, "to decide it again").await),
        }
    }

    /// Works through a journal, or two, where it may take its time.
    async fn replayed(&self, id: u64, journal: String, other: Option<(u64, String)>) -> Result<Replayed, Status> {
        let place = Arc::clone(&self.replaying).acquire_owned().await.ok();
        let work = spawn_blocking(move || {
            // Kept until the work is done, even if nobody waits for it any more.
            let _place = place;
            Replayed::new(id, &journal, other)
        });
        match work.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(replayed) => replayed,
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_)) => Err(Status::unavailable("the instance is stopping")),
        }
    }
}

#[tonic::async_trait]
impl ChaosService for Service {
    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let PlanRequest { scenario, parameters } = request.into_inner();
        let chaos = self.chaos()?;
        let _looking = self.looking.lock().await;
        let outlook =
            chaos.plan(convert::chaos_request(scenario, parameters)).await.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new(PlanResponse { outlook: Some((&outlook).into()) }))
    }

    async fn start_experiment(
        &self,
        request: Request<StartExperimentRequest>,
    ) -> Result<Response<StartExperimentResponse>, Status> {
        self.authorize(&request)?;
        let StartExperimentRequest { scenario, parameters } = request.into_inner();
        let chaos = self.chaos()?;
        let id =
            chaos.start(convert::chaos_request(scenario, parameters)).await.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new(StartExperimentResponse { test: Self::test(chaos, id.0).await }))
    }

    async fn stop_experiment(
        &self,
        request: Request<StopExperimentRequest>,
    ) -> Result<Response<StopExperimentResponse>, Status> {
        let stopped = self.chaos()?.stop(request.get_ref().id).await;
        stopped.map_err(|error| Status::not_found(error.to_string()))?;
        Ok(Response::new(StopExperimentResponse {}))
    }

    async fn get_status(
        &self,
        _: Request<ChaosServiceGetStatusRequest>,
    ) -> Result<Response<ChaosServiceGetStatusResponse>, Status> {
        let chaos = self.chaos()?;
        let _looking = self.looking.lock().await;
        let status = chaos.status().await;
        Ok(Response::new(ChaosServiceGetStatusResponse { status: Some((&status).into()) }))
    }

    async fn list_history(
        &self,
        request: Request<ListHistoryRequest>,
    ) -> Result<Response<ListHistoryResponse>, Status> {
        let limit = convert::chaos_tests(request.get_ref().limit, DEFAULT_LIMIT)?;
        let chaos = self.chaos()?;
        let _looking = self.looking.lock().await;
        let tests = chaos.history(limit).await.iter().map(Into::into).collect();
        Ok(Response::new(ListHistoryResponse { tests }))
    }

    async fn get_report(&self, request: Request<GetReportRequest>) -> Result<Response<GetReportResponse>, Status> {
        let GetReportRequest { id, html } = *request.get_ref();
        let chaos = self.chaos()?;
        let _looking = self.looking.lock().await;
        let Some(report) = chaos.report(id).await else {
            return Err(Self::not_ended(chaos, id, "for a report").await);
        };
        Ok(Response::new(GetReportResponse {
            report: Some((&report).into()),
            verdict: report.verdict(),
            held: report.held(),
            html: html.then(|| report.to_html()),
        }))
    }

    async fn replay(&self, request: Request<ReplayRequest>) -> Result<Response<ReplayResponse>, Status> {
        let ReplayRequest { id, other_id, start } = *request.get_ref();
        if start {
            self.authorize(&request)?;
        }
        if start && other_id.is_some() {
            return Err(Invalid::new("start", "it without other_id, whose experiment has been", "both").into());
        }
        let chaos = self.chaos()?;
        let journal = self.journal(chaos, id).await?;
        let other = match other_id {
            Some(other) => Some((other, self.journal(chaos, other).await?)),
            None => None,
        };
        let replayed = self.replayed(id, journal, other).await?;
        let started = match replayed.divergence {
            None if start => {
                let id = chaos.start(replayed.request).await.map_err(|refusal| refused(&refusal))?;
                Self::test(chaos, id.0).await
            }
            _ => None,
        };
        Ok(Response::new(ReplayResponse {
            hits: replayed.hits,
            divergence: replayed.divergence.as_ref().map(Into::into),
            other_hits: replayed.other_hits,
            started,
        }))
    }

    async fn emergency_stop(
        &self,
        _: Request<EmergencyStopRequest>,
    ) -> Result<Response<EmergencyStopResponse>, Status> {
        // Nothing may come before it that waits for anything.
        self.chaos()?.emergency_stop(Cause::Person);
        Ok(Response::new(EmergencyStopResponse {}))
    }

    async fn rearm(&self, request: Request<RearmRequest>) -> Result<Response<RearmResponse>, Status> {
        self.authorize(&request)?;
        let rearmed = self.chaos()?.rearm().await;
        rearmed.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(RearmResponse {}))
    }

    type WatchEventsStream = BoxStream<WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let chaos = self.chaos()?.clone();
        // First, so that nothing falls between what is kept and what comes.
        let events = self.reader.events();
        let kept = chaos.events_since(0).await;
        let newest = kept.last().map_or(0, |event| event.sequence);
        let seen = match request.get_ref().since {
            None => newest,
            Some(since) if since <= newest => since,
            Some(since) => {
                return Err(
                    Invalid::new("since", format!("at most {newest}, the newest event"), since.to_string()).into()
                );
            }
        };
        let queue = kept.into_iter().filter(|event| event.sequence > seen).collect();
        let watch = Watch { chaos, events, queue, seen };
        let responses = unfold(watch, |mut watch| async { Some((watch.next().await?, watch)) });
        Ok(Response::new(until_stopped(responses)))
    }
}

/// What became of a journal.
struct Replayed {
    /// The same again.
    request: Wanted,
    hits: u64,
    other_hits: Option<u64>,
    divergence: Option<Divergence>,
}

impl Replayed {
    fn new(id: u64, journal: &str, other: Option<(u64, String)>) -> Result<Self, Status> {
        let parse = |id: u64, journal: &str| Recording::parse(journal).map_err(|error| no_replay(id, &error));
        let recording = parse(id, journal)?;
        let other = other.map(|(id, journal)| parse(id, &journal)).transpose()?;
        let divergence = match &other {
            Some(other) => recording.first_divergence(other),
            None => recording.verify(),
        };
        let hits = |recording: &Recording| recording.hits().len() as u64;
        Ok(Self {
            request: recording.request(),
            hits: hits(&recording),
            other_hits: other.as_ref().map(hits),
            divergence,
        })
    }
}

/// One who wants to know what happens.
struct Watch {
    chaos: Chaos,
    /// Tells that there is something new; what it is, the engine knows, which forgets later than this does.
    events: Events,
    /// Not yet told, oldest first.
    queue: VecDeque<Event>,
    /// The number of the last one that was told.
    seen: u64,
}

impl Watch {
    /// The next event; none once the hub has ended.
    async fn next(&mut self) -> Option<WatchEventsResponse> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                let missed = event.sequence.saturating_sub(self.seen.saturating_add(1));
                self.seen = event.sequence;
                return Some(WatchEventsResponse { event: Some((&event).into()), missed });
            }
            let (event, missed) = self.events.next().await?;
            if missed > 0 || matches!(&event.change, Change::Chaos(event) if event.sequence > self.seen) {
                self.queue = self.chaos.events_since(self.seen).await.into();
            }
        }
    }
}

/// What an error says, and what caused it.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let all = successors(Some(error), |error| (**error).source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What is wrong with the request is in the details, too, one by one.
fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Parameters(_) | Refusal::Target(_) => Code::InvalidArgument,
        Refusal::TooMany { .. } | Refusal::TooManyKills { .. } => Code::ResourceExhausted,
        Refusal::Journal(_) => Code::Internal,
        _ => Code::FailedPrecondition,
    };
    mistakes::status(code, &with_causes(refusal), &refusal.mistakes())
}

fn no_replay(id: u64, error: &ReplayError) -> Status {
    Status::failed_precondition(format!("experiment {id} cannot be replayed: {}", with_causes(error)))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Instant, SystemTime};

    use futures_util::future::poll_immediate;
    use mcpscope_core::ClockAnchor;
    use mcpscope_hub::chaos::{JournalError, ParameterError, Parts, Plan, Scenario, TargetError};
    use mcpscope_hub::{Calls, ChaosSource, Sources, hub};

    use super::*;

    fn service() -> Service {
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
        let calls = Arc::new(Calls::new(anchor.mono, health.clone()));
        let (controller, _injector) = mcpscope_hub::chaos::new(Parts::new(Plan::default(), 7, anchor)).unwrap();
        let chaos = Some(ChaosSource::new(controller, calls));
        let sources = Sources { metrics: None, tracer: None, reporter, health, instrumentation: None, chaos, anchor };
        let (_hub, reader, admin) = hub(sources, Default::default());
        Service::new(reader, admin, ChaosToken::new(""))
    }

    #[test]
    fn an_emergency_stop_waits_for_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let service = service();
            // The one thread for what may wait is taken, and whoever looks waits.
            let (end, ended) = mpsc::channel::<()>();
            let busy = spawn_blocking(move || ended.recv());
            let mut looks = Box::pin(service.get_status(Request::new(ChaosServiceGetStatusRequest {})));
            assert!(poll_immediate(&mut looks).await.is_none());
            let (looking, replaying) = (service.looking.try_lock(), service.replaying.try_acquire());
            assert!(looking.is_err() && replaying.is_ok());
            let stopped = poll_immediate(service.emergency_stop(Request::new(EmergencyStopRequest {}))).await;
            stopped.expect("it waits").unwrap();
            drop(end);
            busy.await.unwrap().unwrap_err();
            assert!(looks.await.unwrap().into_inner().status.unwrap().emergency_stop);
        });
    }

    #[test]
    fn every_refusal_has_its_code_and_says_why() {
        let scenario = Scenario::MemoryPressure;
        let journal = JournalError {
            path: "/j".into(),
            what: "written",
            source: std::io::Error::from(std::io::ErrorKind::StorageFull),
        };
        for (refusal, code) in [
            (ParameterError::UnknownScenario { name: "x".into() }.into(), Code::InvalidArgument),
            (Refusal::NotAvailable { scenario }, Code::FailedPrecondition),
            (Refusal::NoNetwork, Code::FailedPrecondition),
            (Refusal::Target(TargetError("x".into())), Code::InvalidArgument),
            (Refusal::Off { why: "x".into() }, Code::FailedPrecondition),
            (Refusal::Stopped { by: "x".into(), wait_ms: 0 }, Code::FailedPrecondition),
            (Refusal::TooMany { running: 3, most: 3 }, Code::ResourceExhausted),
            (
                Refusal::NothingMatched { scenario, reason: "x", there: Vec::new(), place: None, parameter: None },
                Code::FailedPrecondition,
            ),
            (Refusal::Unhealthy { healthy: 1.0, least: 2.0 }, Code::FailedPrecondition),
            (Refusal::TooManyKills { most: 1 }, Code::ResourceExhausted),
            (Refusal::Journal(journal), Code::Internal),
        ] {
            let said = refusal.to_string();
            let status = refused(&refusal);
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().starts_with(&said), "{status}");
            // The cause of it is told as well.
            assert!(code != Code::Internal || status.message().contains("written: "), "{status}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_request_is_in_the_details() {
        let scenario = Scenario::Hang;
        let unknown = |name: &str| ParameterError::UnknownParameter { scenario, name: name.to_owned() };
        let several = Refusal::from(ParameterError::Several(vec![unknown("a"), unknown("b")]));
        let told = mistakes::of(&refused(&several));
        assert_eq!(told.iter().map(|mistake| mistake.parameter.as_deref()).collect::<Vec<_>>(), [Some("a"), Some("b")]);
        assert!(told[1].told.starts_with("hang has no parameter `b`: "), "{told:?}");
        let there = Vec::new();
        let nobody = Refusal::NothingMatched { scenario, reason: "x", there, place: None, parameter: Some("server") };
        let told = mistakes::of(&refused(&nobody));
        assert_eq!(told[0].parameter.as_deref(), Some("server"));
        let elsewhere = ParameterError::UnknownScenario { name: "x".into() }.into();
        assert_eq!(mistakes::of(&refused(&elsewhere))[0].parameter, None);
        assert_eq!(mistakes::of(&refused(&Refusal::Stopping)), []);
    }

    #[test]
    fn a_journal_that_cannot_be_replayed_says_what_can() {
        for (journal, why) in [
            ("", "this is no journal of an experiment: expected a first line with"),
            (r#"{"record":"experiment","version":99}"#, "this journal has version 99: expected version 1"),
        ] {
            let status = Replayed::new(3, journal, None).map(|replayed| replayed.hits).unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().starts_with(&format!("experiment 3 cannot be replayed: {why}")), "{status}");
        }
    }
}
