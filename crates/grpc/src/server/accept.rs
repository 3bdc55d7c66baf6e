//! The accept loop: a limited number of connections, each in a task of its own.
//!
//! It is our own because tonic's leaves its connections behind when it is dropped, and has no limit on their number.

use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use mcpscope_hub::Reader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tonic::service::Routes;

use super::socket::Socket;
use super::{Config, Gate, PANIC, connection};

/// How long calls in flight may take to finish once the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// How long to wait after accepting failed, most likely for want of file descriptors: only others can free some.
const BACK_OFF: Duration = Duration::from_millis(100);

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
    let slots = Arc::new(Semaphore::new(max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let mut door = Door { listeners, first: 0, slots };
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
            (stream, slot) = door.next() => {
                let socket = Socket::new(stream, handshake_timeout, subscriber_timeout, reader.clone());
                let connection = connection::serve(socket, gate.clone(), subscriber_timeout, stopping.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    connection.await;
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

struct Door {
    listeners: Vec<TcpListener>,
    /// The listener asked first, a different one each time, so that a busy one cannot shut the others out.
    first: usize,
    slots: Arc<Semaphore>,
}

impl Door {
    /// The next connection, once there is a slot for it.
    async fn next(&mut self) -> (TcpStream, OwnedSemaphorePermit) {
        // The slot comes first: who finds none waits in the system's queue, at no cost to us.
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
            // Nobody closes the semaphore.
            return pending().await;
        };
        let mut failing = false;
        loop {
            match self.accept().await {
                Ok(stream) => {
                    // Answers are small: nothing is gained by holding them back.
                    let _ = stream.set_nodelay(true);
                    return (stream, slot);
                }
                // That was this one client's connection; the next may be fine.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "gRPC cannot accept connections; trying again");
                    }
                    failing = true;
                    sleep(BACK_OFF).await;
                }
            }
        }
    }

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let first = self.first;
        self.first = first.wrapping_add(1);
        poll_fn(|cx| {
            for n in 0..self.listeners.len() {
                let listener = &self.listeners[first.wrapping_add(n) % self.listeners.len()];
                if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                    return Poll::Ready(accepted.map(|(stream, _)| stream));
                }
            }
            Poll::Pending
        })
        .await
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
        let sources =
            Sources { metrics: Some(metrics.clone()), tracer: None, reporter, health, instrumentation: None, anchor };
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
