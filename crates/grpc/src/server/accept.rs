//! The accept loop: a limited number of connections, each in a task of its own.
//!
//! It is our own because tonic's leaves its connections behind when it is dropped, and has no limit on their number.

use std::pin::pin;
use std::time::Duration;

use mcpscope_accept::{OpenDoor, StallLimit, StallLimits};
use mcpscope_hub::Reader;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tonic::service::Routes;

use super::{Config, EVICTED, Gate, PANIC, SLOW, connection};

/// How long calls in flight may take to finish once the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// Accepts and serves until `stop` ends, then finishes what is in flight.
pub(super) async fn run(
    listeners: Vec<TcpListener>,
    routes: Routes,
    reader: &Reader,
    config: Config,
    stop: impl Future<Output = ()>,
) {
    // Nothing is ever sent: dropping it is the signal.
    let (running, stopping) = watch::channel(());
    let Config { max_connections, handshake_timeout, subscriber_timeout, .. } = config;
    let gate = Gate::new(routes, config, reader.clone(), stopping.clone());
    let counting = reader.clone();
    let mut door = OpenDoor::new("gRPC", listeners, max_connections, move || counting.dropped(EVICTED));
    let stall = StallLimits { beginning: handshake_timeout, write: subscriber_timeout };
    let mut connections = JoinSet::new();
    let ended = |result: Result<(), JoinError>| {
        if let Err(error) = result
            && error.is_panic()
        {
            tracing::error!("a gRPC call panicked; its connection is closed");
            reader.dropped(PANIC);
        }
    };
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(result) = connections.join_next() => ended(result),
            (stream, _, place) = door.next() => {
                let reader = reader.clone();
                let stream = StallLimit::new(stream, stall, move || reader.dropped(SLOW));
                let (gate, activity) = (gate.for_connection(), place.activity());
                let connection = connection::serve(stream, gate, activity, subscriber_timeout, stopping.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = connection => {}
                        () = place.evicted() => tracing::debug!("a gRPC connection made room for a newer one"),
                    }
                });
            }
        }
    }
    // From here on the ports are free, and a client that comes now is told so.
    drop(door);
    drop(running);
    let in_flight = async {
        while let Some(result) = connections.join_next().await {
            ended(result);
        }
    };
    if timeout(GRACE, in_flight).await.is_err() {
        tracing::debug!("gRPC connections that did not end in time are cut off");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use mcpscope_core::ClockAnchor;
    use mcpscope_hub::Sources;
    use mcpscope_hub::metrics::Metrics;
    use tonic::codegen::BoxStream;
    use tonic::{Code, Request, Response, Status};
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::health_server::{Health, HealthServer};
    use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

    use super::*;

    struct Panics;

    #[tonic::async_trait]
    impl Health for Panics {
        async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
            assert_ne!(request.get_ref().service, "panic", "provoked");
            Ok(Response::new(HealthCheckResponse::default()))
        }

        type WatchStream = BoxStream<HealthCheckResponse>;

        async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    #[tokio::test]
    async fn a_call_that_panics_ends_its_own_connection_only() {
        let anchor = ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        let metrics = Metrics::new(&Default::default(), anchor);
        let (reporter, health) = mcpscope_hub::health::channel(anchor.mono);
        let sources = Sources {
            metrics: Some(metrics.clone()),
            tracer: None,
            reporter,
            health,
            instrumentation: None,
            chaos: None,
            anchor,
        };
        let (_hub, reader, _admin) = mcpscope_hub::hub(sources, Default::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let client = async {
            let ask = async |service: &str| {
                let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
                let mut client = HealthClient::new(endpoint.connect().await.unwrap());
                client.check(HealthCheckRequest { service: service.into() }).await
            };
            for _ in 0..5 {
                let panicked = ask("panic").await.unwrap_err();
                assert_ne!(panicked.code(), Code::Ok);
                ask("").await.unwrap();
            }
        };
        // Fewer slots than panics: each gave its own back.
        let config = Config { max_connections: 2, ..Config::default() };
        run(vec![listener], Routes::new(HealthServer::new(Panics)), &reader, config, client).await;
        let text = metrics.snapshot(Instant::now()).to_prometheus();
        assert!(text.contains("mcpscope_dropped_total{what=\"grpc_panic\"} 5"), "{text}");
    }
}
