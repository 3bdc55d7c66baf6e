//! The client against a server, and against what is none.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::future::pending;
use std::time::Duration;

use mcpscope_grpc::proto::health_service_server::{HealthService, HealthServiceServer};
use mcpscope_grpc::proto::{
    GetHealthRequest, GetHealthResponse, GetSummaryRequest, Health, HealthState, WatchHealthRequest,
    WatchHealthResponse,
};
use mcpscope_grpc::tonic::transport::Server;
use mcpscope_grpc::tonic::transport::server::TcpIncoming;
use mcpscope_grpc::tonic::{Code, Request, Response, Status, Streaming};
use mcpscope_grpc::{Client, ClientError};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic_health::pb::HealthCheckRequest;

struct Degraded;

#[tonic::async_trait]
impl HealthService for Degraded {
    async fn get_health(&self, _: Request<GetHealthRequest>) -> Result<Response<GetHealthResponse>, Status> {
        let health = Health { overall: HealthState::Degraded.into(), uptime: 7, ..Health::default() };
        Ok(Response::new(GetHealthResponse { health: Some(health) }))
    }

    type WatchHealthStream = Streaming<WatchHealthResponse>;

    async fn watch_health(&self, _: Request<WatchHealthRequest>) -> Result<Response<Self::WatchHealthStream>, Status> {
        Err(Status::unimplemented("only one answer here"))
    }
}

async fn local_listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

#[tokio::test]
async fn one_connection_carries_every_service() {
    let (listener, addr) = local_listener().await;
    let (_reporter, grpc_health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .add_service(HealthServiceServer::new(Degraded))
        .add_service(grpc_health)
        .serve_with_incoming(TcpIncoming::from(listener));
    let calls = async {
        let mut client = Client::connect(&addr).await.unwrap();
        let health = client.health.get_health(GetHealthRequest {}).await.unwrap().into_inner().health.unwrap();
        assert_eq!((health.overall(), health.uptime), (HealthState::Degraded, 7));
        client.grpc_health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
        let absent = client.metrics.get_summary(GetSummaryRequest {}).await.unwrap_err();
        assert_eq!(absent.code(), Code::Unimplemented);
    };
    tokio::select! {
        ended = server => panic!("the server ended: {ended:?}"),
        () = calls => {}
    }
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_named() {
    let (listener, addr) = local_listener().await;
    drop(listener);
    let error = Client::connect(&addr).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot connect to {addr}"));
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

/// Linux leaves the connections that a full queue has no place for unanswered; other systems refuse them.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn connecting_takes_5_seconds_at_most() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let _fills_the_queue = TcpStream::connect(addr).await.unwrap();
    tokio::time::pause();
    let error = Client::connect(&addr.to_string()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no connection to {addr} within 5s"));
}

#[tokio::test]
async fn calls_on_a_peer_that_never_answers_fail() {
    let (listener, addr) = local_listener().await;
    let mut client = Client::connect(&addr).await.unwrap();
    let silent = async {
        let _open = listener.accept().await.unwrap();
        pending::<()>().await;
    };
    tokio::time::pause();
    let call = tokio::time::timeout(Duration::from_millis(10_100), client.health.get_health(GetHealthRequest {}));
    tokio::select! {
        () = silent => {}
        answer = call => assert_eq!(answer.unwrap().unwrap_err().code(), Code::Unavailable),
    }
}
