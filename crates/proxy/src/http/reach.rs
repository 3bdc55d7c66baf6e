//! Connecting to the server: one that we start is waited for.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::Config;
use super::stream::Stream;
use crate::SWEEP;
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
                ServerState::Starting | ServerState::Restarting { .. } | ServerState::RestartingAfter { .. } => {
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

/// Tells the traffic path of a server that we start, and its process, how the server is, for as long as this is polled.
pub(super) async fn follow(config: &Config, retries: &Retries) -> Infallible {
    let is_wanted = config.traffic.is_some() || config.child.is_some();
    let Some(server) = config.server.as_ref().filter(|_| is_wanted) else { return pending().await };
    let (mut server, traffic) = (server.clone(), config.traffic.as_deref());
    loop {
        let state = *server.borrow_and_update();
        match state {
            ServerState::Starting => traffic.into_iter().for_each(|it| it.awaits_server(&state.to_string())),
            ServerState::Serving(_) => tokio::select! {
                () = until_reached(config, retries) => {}
                changed = server.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return pending().await,
                },
            },
            ServerState::Restarting { .. }
            | ServerState::RestartingAfter { .. }
            | ServerState::GivenUp { .. }
            | ServerState::Ended { .. } => {
                traffic.into_iter().for_each(|it| it.lost_server(&state.to_string()));
            }
        }
        if server.changed().await.is_err() {
            return pending().await;
        }
    }
}

/// Tries a server that runs until it accepts, however long that takes, and tells so.
async fn until_reached(config: &Config, retries: &Retries) {
    loop {
        let reached = reach(config, retries).await;
        // What was the matter before still is, until it accepts or takes too long about it.
        config.traffic.iter().for_each(|traffic| traffic.has_server());
        match reached {
            Ok(_) => return config.traffic.iter().for_each(|traffic| traffic.works()),
            // It may at any moment.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => sleep(RETRY).await,
            // Something else is the matter, which is seldom over at once, and not that it does not listen.
            Err(_) => {
                config.child.iter().for_each(|child| child.accepts(child.id()));
                sleep(SWEEP).await;
            }
        }
    }
}

/// Connects, and tells the process of ours how far that came: before anybody can call it.
async fn connect(config: &Config) -> io::Result<Stream> {
    // Another one may be in its place by the time that it is told.
    let process = config.child.as_ref().map(|child| (child, child.id()));
    let accepted = || process.into_iter().for_each(|(child, id)| child.accepts(id));
    let stream = config.upstream.connect(config.tls.connect.as_ref(), config.connect_timeout, accepted).await?;
    process.into_iter().for_each(|(child, id)| child.ready(id));
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use futures_util::future::join_all;
    use mcpscope_chaos::Outage;
    use mcpscope_core::FaultId;
    use mcpscope_test_support::{eventually, within};
    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::Instant;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use crate::Traffic;
    use crate::child::ChildHandle;
    use crate::http::{Tls, Upstream};

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

    /// How long after its end a process that listens only once connections have been given up can be called, as its outage
    /// has it.
    async fn slow_to_listen(traffic: Option<Arc<Traffic>>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let (begun, outage) = (std::time::Instant::now(), Arc::new(Outage::new("demo")));
        let child = ChildHandle::new(None, false);
        child.crashes().follow(Some(&outage));
        child.crashes().ended(Some(FaultId(1)), begun);
        child.crashes().restarted(begun);
        let (_server, state) = watch::channel(ServerState::Serving(Some(1)));
        let config = Config {
            connect_timeout: Duration::from_millis(20),
            traffic,
            server: Some(state),
            child: Some(child),
            ..Config::new(Upstream::parse(&format!("http://{address}/mcp")).unwrap())
        };
        let retries = Retries::default();
        let listens = async {
            // Begun after that of whoever follows it.
            tokio::task::yield_now().await;
            for _ in 0..2 {
                let refused = reach(&config, &retries).await.unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::TimedOut, "{refused}");
            }
            let _listener = socket.listen(8).unwrap();
            eventually(|| outage.report(begun).and_then(|report| report.ready_after).ok_or("it cannot be called")).await
        };
        tokio::select! {
            biased;
            never = follow(&config, &retries) => match never {},
            never = retry(&config, &retries) => match never {},
            _ = listens => {}
        }
    }

    /// A relay to this address, before which a fault has ended its server's process, and another was started.
    fn restarted(address: SocketAddr, scheme: &str) -> (Config, Arc<Outage>) {
        let (begun, outage) = (std::time::Instant::now(), Arc::new(Outage::new("demo")));
        let child = ChildHandle::new(None, false);
        child.crashes().follow(Some(&outage));
        child.crashes().ended(Some(FaultId(1)), begun);
        child.crashes().restarted(begun);
        let upstream = Upstream::parse(&format!("{scheme}://localhost:{}/mcp", address.port())).unwrap();
        (Config { child: Some(child), ..Config::new(upstream) }, outage)
    }

    #[tokio::test]
    async fn a_server_is_ready_before_the_first_who_reaches_it_can_call_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut config, outage) = restarted(listener.local_addr().unwrap(), "http");
        let (_server, state) = watch::channel(ServerState::Serving(Some(1)));
        config.server = Some(state);
        reach(&config, &Retries::default()).await.unwrap();
        let ready_after = outage.report(std::time::Instant::now()).and_then(|report| report.ready_after);
        assert!(ready_after.is_some(), "nobody else has looked");
    }

    #[tokio::test]
    async fn a_server_listens_though_it_has_no_time_for_a_handshake() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut config, outage) = restarted(listener.local_addr().unwrap(), "https");
        let trusts_nobody =
            ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.tls = Tls::new(Some(trusts_nobody), None);
        let child = config.child.clone().unwrap();
        tokio::select! {
            result = connect(&config) => panic!("{result:?}"),
            () = within(child.accepting()) => {}
        }
        let ready_after = outage.report(std::time::Instant::now()).and_then(|report| report.ready_after);
        assert_eq!(ready_after, None, "it cannot be called yet");
    }

    #[tokio::test]
    async fn a_server_is_followed_until_it_accepts_however_long_that_takes() {
        let reporter = mcpscope_health::channel(std::time::Instant::now()).0;
        slow_to_listen(Some(Arc::new(Traffic::new(reporter)))).await;
    }

    #[tokio::test]
    async fn a_server_is_followed_though_nobody_is_told_of_its_traffic() {
        slow_to_listen(None).await;
    }
}
