//! Streamable HTTP, both kinds of revision at one address.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::server::{PeerServer, Shared};

/// Serves until the process ends.
pub(crate) async fn serve(shared: Arc<Shared>) {
    let mcp = StreamableHttpService::new(
        move || Ok(PeerServer::new(Arc::clone(&shared))),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("http://{}/mcp", listener.local_addr().expect("a bound listener has an address"));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted.expect("a connection"),
        };
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mcp = mcp.clone();
        connections.spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Infallible>(mcp.handle(request).await) });
            // Clients may leave whenever they like.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
