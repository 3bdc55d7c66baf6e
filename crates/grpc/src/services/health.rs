//! `HealthService`.

use std::sync::Arc;

use futures_util::stream::unfold;
use mcpscope_hub::Reader;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::until_stopped;
use crate::convert;
use crate::proto::health_service_server::HealthService;
use crate::proto::{GetHealthRequest, GetHealthResponse, WatchHealthRequest, WatchHealthResponse};

#[derive(Debug)]
pub(super) struct Service {
    pub(super) reader: Reader,
}

#[tonic::async_trait]
impl HealthService for Service {
    async fn get_health(&self, _: Request<GetHealthRequest>) -> Result<Response<GetHealthResponse>, Status> {
        let health = convert::health(&self.reader.health(), &self.reader.frame().children);
        Ok(Response::new(GetHealthResponse { health: Some(health) }))
    }

    type WatchHealthStream = BoxStream<WatchHealthResponse>;

    async fn watch_health(&self, _: Request<WatchHealthRequest>) -> Result<Response<Self::WatchHealthStream>, Status> {
        let notices = self.reader.watch_health();
        let responses = unfold((notices, self.reader.clone()), |(mut notices, reader)| async {
            notices.changed().await.ok()?;
            let report = Arc::clone(&notices.borrow_and_update());
            let health = convert::health(&report, &reader.frame().children);
            Some((WatchHealthResponse { health: Some(health) }, (notices, reader)))
        });
        Ok(Response::new(until_stopped(responses)))
    }
}
