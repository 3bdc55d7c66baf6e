//! Connecting to the server: one that we start is waited for.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Config;
use super::stream::Stream;
use crate::restarts::ServerState;

/// How often a server that has only just been started is tried.
const RETRY: Duration = Duration::from_millis(50);

/// A connection to the server, within [`Config::connect_timeout`]. One that we start is tried until it accepts, and waited
/// for while it is started again; nothing was sent to it yet.
pub(super) async fn reach(config: &Config) -> io::Result<Stream> {
    let limit = config.connect_timeout;
    let Some(server) = &config.server else { return connect(config).await };
    let mut last = String::new();
    let reached = timeout(limit, until_it_accepts(config, server.clone(), &mut last)).await;
    reached.unwrap_or_else(|_| {
        let waited = format!("{last}, and no connection within {} s", limit.as_secs_f64());
        Err(io::Error::new(io::ErrorKind::TimedOut, waited))
    })
}

async fn until_it_accepts(
    config: &Config,
    mut server: watch::Receiver<ServerState>,
    last: &mut String,
) -> io::Result<Stream> {
    loop {
        let state = *server.borrow_and_update();
        match state {
            ServerState::GivenUp { .. } | ServerState::Ended { .. } => return Err(io::Error::other(state.to_string())),
            ServerState::Starting | ServerState::Restarting { .. } => {
                *last = state.to_string();
                if server.changed().await.is_err() {
                    return Err(io::Error::other("the server was ended"));
                }
            }
            ServerState::Serving(_) => match connect(config).await {
                // It does not listen yet, or it has only just crashed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    *last = error.to_string();
                    sleep(RETRY).await;
                }
                result => return result,
            },
        }
    }
}

/// Tells the traffic path of a server that we start how the server is, for as long as this is polled.
pub(super) async fn follow(config: &Config) -> Infallible {
    let (Some(server), Some(traffic)) = (&config.server, &config.traffic) else { return pending().await };
    let mut server = server.clone();
    loop {
        let state = *server.borrow_and_update();
        match state {
            ServerState::Starting => traffic.awaits_server(&state.to_string()),
            // What was the matter before still is, until it accepts or takes too long about it.
            ServerState::Serving(_) => tokio::select! {
                reached = reach(config) => {
                    traffic.has_server();
                    if reached.is_ok() {
                        traffic.works();
                    }
                }
                changed = server.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return pending().await,
                },
            },
            ServerState::Restarting { .. } | ServerState::GivenUp { .. } | ServerState::Ended { .. } => {
                traffic.lost_server(&state.to_string());
            }
        }
        if server.changed().await.is_err() {
            return pending().await;
        }
    }
}

async fn connect(config: &Config) -> io::Result<Stream> {
    config.upstream.connect(config.tls.connect.as_ref(), config.connect_timeout).await
}
