//! `grpc.health.v1.Health`: serving or not, for probes and load balancers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use futures_util::stream::{StreamExt, unfold};
use mcpscope_core::bounded;
use mcpscope_hub::Reader;
use mcpscope_hub::health::{Overall, Report, State};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::until_stopped;

/// What a component's service name begins with; the empty name is the whole.
const PREFIX: &str = "mcpscope.";
/// How soon a watcher learns of a change that the hub gives no notice of, readiness above all.
const LOOK: Duration = Duration::from_secs(1);
/// Longest part of an unknown name that the answer repeats, in bytes.
const SHOWN_BYTES: usize = 128;

/// The service. A component is serving unless it is critical; the whole is serving if it is not critical either and the
/// instance is ready.
#[derive(Debug)]
pub(super) struct GrpcHealth {
    reader: Reader,
    /// Ends the watches.
    stop: Shared<BoxFuture<'static, ()>>,
}

impl GrpcHealth {
    pub(super) fn new(reader: Reader, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { reader, stop: stop.boxed().shared() }
    }
}

/// How `service` is; none if there is no such service now. Asked with every check: no report is made for it.
fn status(reader: &Reader, service: &str) -> Option<ServingStatus> {
    let serving = if service.is_empty() {
        reader.overall() != Overall::Critical && reader.is_ready()
    } else {
        reader.component_state(service.strip_prefix(PREFIX)?)? != State::Critical
    };
    Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

#[tonic::async_trait]
impl Health for GrpcHealth {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let status = status(&self.reader, service).ok_or_else(|| {
            let known: Vec<_> = self.reader.health().components.keys().map(|name| format!("{PREFIX}{name}")).collect();
            let service = bounded(service, SHOWN_BYTES);
            Status::not_found(format!("no service {service:?}: expected \"\" or one of {}", known.join(", ")))
        })?;
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher::new(self.reader.clone(), request.into_inner().service);
        let changes = unfold(watcher, |mut watcher| async { Some((watcher.next().await?, watcher)) });
        let response = |status: ServingStatus| HealthCheckResponse { status: status.into() };
        Ok(Response::new(until_stopped(changes.map(response).take_until(self.stop.clone()))))
    }
}

/// One who wants to know how a service is, and again when that changes.
struct Watcher {
    reader: Reader,
    service: String,
    notices: watch::Receiver<Arc<Report>>,
    look: Interval,
    told: Option<ServingStatus>,
}

impl Watcher {
    fn new(reader: Reader, service: String) -> Self {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { notices: reader.watch_health(), reader, service, look, told: None }
    }

    /// The status at once, then each other one; none once the hub has ended.
    async fn next(&mut self) -> Option<ServingStatus> {
        loop {
            // An unknown one may come to be known.
            let status = status(&self.reader, &self.service).unwrap_or(ServingStatus::ServiceUnknown);
            if self.told != Some(status) {
                self.told = Some(status);
                return Some(status);
            }
            tokio::select! {
                changed = self.notices.changed() => changed.ok()?,
                _ = self.look.tick() => {}
            }
        }
    }
}
