//! Connecting to the server: one that we start is waited for.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::Config;
use super::stream::Stream;
use crate::child::ChildHandle;
use crate::restarts::ServerState;

/// How often a server that has only just been started is tried.
const RETRY: Duration = Duration::from_millis(50);

/// Who tries a server that refuses connections, for everyone who waits for it.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// Somebody was refused.
    wanted: Notify,
    /// It refuses no more. Whoever waits has a receiver.
    accepts: watch::Sender<()>,
}

/// Connects to the server, within [`Config::connect_timeout`]. One that we start is waited for until it accepts, and while it
/// is started again; nothing was sent to it yet.
pub(super) async fn reach(config: &Config, retries: &Retries) -> io::Result<Stream> {
    let limit = config.connect_timeout;
    let Some(server) = &config.server else { return connect(config).await };
    let mut last = String::new();
    let reached = timeout(limit, retries.until_it_accepts(server.clone(), || connect(config), &mut last)).await;
    reached.unwrap_or_else(|_| {
        let waited = format!("{last}, and no connection within {} s", limit.as_secs_f64());
        Err(io::Error::new(io::ErrorKind::TimedOut, waited))
    })
}

/// Tries a server that has refused somebody, for as long as this is polled.
pub(super) async fn retry(config: &Config, retries: &Retries) -> Infallible {
    retries.run(|| connect(config)).await
}

impl Retries {
    async fn run<T, F: Future<Output = io::Result<T>>>(&self, connect: impl Fn() -> F) -> Infallible {
        loop {
            self.wanted.notified().await;
            loop {
                sleep(RETRY).await;
                // They have given up, or were told before they asked.
                if self.accepts.receiver_count() == 0 {
                    break;
                }
                if !connect().await.as_ref().is_err_and(is_refusal) {
                    self.accepts.send_replace(());
                    break;
                }
            }
        }
    }

    async fn until_it_accepts<T, F: Future<Output = io::Result<T>>>(
        &self,
        mut server: watch::Receiver<ServerState>,
        connect: impl Fn() -> F,
        last: &mut String,
    ) -> io::Result<T> {
        loop {
            let state = *server.borrow_and_update();
            let changed = match state {
                ServerState::GivenUp { .. } | ServerState::Ended { .. } => {
                    return Err(io::Error::other(state.to_string()));
                }
                ServerState::Starting | ServerState::Restarting { .. } => {
                    *last = state.to_string();
                    server.changed().await
                }
                ServerState::Serving(_) => match connect().await {
                    // It does not listen yet, or it has only just crashed.
                    Err(error) if is_refusal(&error) => {
                        *last = error.to_string();
                        let mut accepts = self.accepts.subscribe();
                        self.wanted.notify_one();
                        tokio::select! {
                            _ = accepts.changed() => Ok(()),
                            changed = server.changed() => changed,
                        }
                    }
                    result => return result,
                },
            };
            if changed.is_err() {
                return Err(io::Error::other("the server was ended"));
            }
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Tells the traffic path of a server that we start how the server is, for as long as this is polled.
pub(super) async fn follow(config: &Config, retries: &Retries) -> Infallible {
    let (Some(server), Some(traffic)) = (&config.server, &config.traffic) else { return pending().await };
    let mut server = server.clone();
    loop {
        let state = *server.borrow_and_update();
        match state {
            ServerState::Starting => traffic.awaits_server(&state.to_string()),
            // What was the matter before still is, until it accepts or takes too long about it.
            ServerState::Serving(_) => tokio::select! {
                reached = reach(config, retries) => {
                    traffic.has_server();
                    if reached.is_ok() {
                        traffic.works();
                        config.child.iter().for_each(ChildHandle::ready);
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_is_tried_by_one_for_all_who_wait() {
        const WAITING: u64 = 100;
        let (_server, state) = watch::channel(ServerState::Serving(Some(1)));
        let (retries, tries, begun) = (Retries::default(), Cell::new(0), Instant::now());
        // A second after its start it listens.
        let connect = || {
            tries.set(tries.get() + 1);
            let is_up = begun.elapsed() >= Duration::from_secs(1);
            std::future::ready(if is_up { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) })
        };
        let waiter = async |after| {
            sleep(Duration::from_millis(after)).await;
            retries.until_it_accepts(state.clone(), connect, &mut String::new()).await
        };
        tokio::select! {
            never = retries.run(connect) => match never {},
            reached = join_all((0..WAITING).map(waiter)) => assert!(reached.iter().all(Result::is_ok)),
        }
        // Each of them at the beginning and at the end.
        let by_one = tries.get() - 2 * WAITING;
        assert!((1..=20).contains(&by_one), "{by_one}");
    }
}
