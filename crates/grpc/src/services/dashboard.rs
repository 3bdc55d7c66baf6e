//! `DashboardService`.

use futures_util::stream::unfold;
use mcpscope_hub::Reader;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::until_stopped;
use crate::proto::dashboard_service_server::DashboardService;
use crate::proto::{GetSnapshotRequest, GetSnapshotResponse, WatchSnapshotsRequest, WatchSnapshotsResponse};

#[derive(Debug)]
pub(super) struct Service {
    pub(super) reader: Reader,
}

#[tonic::async_trait]
impl DashboardService for Service {
    async fn get_snapshot(&self, _: Request<GetSnapshotRequest>) -> Result<Response<GetSnapshotResponse>, Status> {
        let dashboard = Some((&*self.reader.frame()).into());
        Ok(Response::new(GetSnapshotResponse { dashboard }))
    }

    type WatchSnapshotsStream = BoxStream<WatchSnapshotsResponse>;

    async fn watch_snapshots(
        &self,
        _: Request<WatchSnapshotsRequest>,
    ) -> Result<Response<Self::WatchSnapshotsStream>, Status> {
        let responses = unfold(self.reader.subscribe(), |mut frames| async {
            let frame = frames.next().await?;
            Some((WatchSnapshotsResponse { dashboard: Some((&*frame).into()) }, frames))
        });
        Ok(Response::new(until_stopped(responses)))
    }
}
