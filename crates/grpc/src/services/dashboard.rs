//! `DashboardService`.
//!
//! By hand instead of [`crate::proto::dashboard_service_server`]: that one has every answer encoded anew, on the thread that
//! serves everyone.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::stream::unfold;
use mcpscope_hub::Frames;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, BoxFuture, BoxStream, Service as TowerService, StdError, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};

use super::snapshots::{Encoded, Snapshots};
use super::{MAX_REQUEST_BYTES, until_stopped};
use crate::proto::dashboard_service_server::SERVICE_NAME;
use crate::proto::{GetSnapshotRequest, WatchSnapshotsRequest};

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Snapshots);

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> TowerService<http::Request<B>> for Service
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let snapshots = self.0.clone();
        let max = Some(MAX_REQUEST_BYTES);
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next();
            Ok(match method {
                Some("GetSnapshot") => {
                    let mut grpc = Grpc::new(Encoded::new()).apply_max_message_size_config(max, None);
                    grpc.unary(Get(snapshots), request).await
                }
                Some("WatchSnapshots") => {
                    let mut grpc = Grpc::new(Encoded::new()).apply_max_message_size_config(max, None);
                    grpc.server_streaming(Watch(snapshots), request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

/// `GetSnapshot`.
struct Get(Snapshots);

impl UnaryService<GetSnapshotRequest> for Get {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, _: Request<GetSnapshotRequest>) -> Self::Future {
        let snapshots = self.0.clone();
        Box::pin(async move { Ok(Response::new(snapshots.newest().await.message)) })
    }
}

/// `WatchSnapshots`.
struct Watch(Snapshots);

impl ServerStreamingService<WatchSnapshotsRequest> for Watch {
    type Response = Bytes;
    type ResponseStream = BoxStream<Bytes>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, _: Request<WatchSnapshotsRequest>) -> Self::Future {
        let frames = self.0.reader().subscribe();
        let watcher = Watcher { snapshots: self.0.clone(), frames, told: None };
        let responses = unfold(watcher, |mut watcher| async { Some((watcher.next().await?, watcher)) });
        Box::pin(async { Ok(Response::new(until_stopped(responses))) })
    }
}

/// One who wants every frame.
struct Watcher {
    snapshots: Snapshots,
    frames: Frames,
    told: Option<u64>,
}

impl Watcher {
    /// The newest frame, once; none once the hub has ended.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.frames.next().await?;
            // It may be newer than the one that was announced, whose successor is then announced for nothing.
            let snapshot = self.snapshots.newest().await;
            if self.told != Some(snapshot.sequence) {
                self.told = Some(snapshot.sequence);
                return Some(snapshot.message);
            }
        }
    }
}
