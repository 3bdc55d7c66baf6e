//! `/ws`: pushes what is new, and answers commands.
//!
//! The sockets are our own, not warp's: warp runs each in a task that nobody waits for, and copies every text it sends.

mod command;
mod session;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_util::sync::CancellationToken;
use warp::reply::Response;

use crate::accept::{GRACE, ended};
use crate::problem::Problem;
use crate::publish::{Encoding, Publisher};
use session::Session;

pub(crate) use command::Topic;

/// When someone who found no place may try again, in seconds.
const RETRY_SECONDS: &str = "5";

/// What is counted as dropped here.
pub(crate) const REFUSED: &str = "websocket_refused";
pub(crate) const SILENT: &str = "websocket_silent";
pub(crate) const SLOW: &str = "websocket_slow";
pub(crate) const EVENT: &str = "websocket_event";

/// Both ends of the way from requests to sockets, for `max_sockets` of them at a time.
pub(crate) fn gate(publisher: Publisher, max_sockets: usize, silence: Duration) -> (Gate, Sockets) {
    let max_sockets = max_sockets.clamp(1, Semaphore::MAX_PERMITS);
    let (enter, entered) = mpsc::channel(max_sockets);
    let gate = Gate { publisher: publisher.clone(), places: Arc::new(Semaphore::new(max_sockets)), enter };
    (gate, Sockets { publisher, silence, entered })
}

/// Where requests become sockets. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    publisher: Publisher,
    places: Arc<Semaphore>,
    enter: mpsc::Sender<Entered>,
}

/// A connection that is about to become a socket.
#[derive(Debug)]
struct Entered {
    upgrade: OnUpgrade,
    encoding: Encoding,
    _place: OwnedSemaphorePermit,
}

impl Gate {
    /// The answer to a request for a socket, which it becomes once the answer is sent.
    pub(crate) fn enter(
        &self,
        method: Method,
        headers: HeaderMap,
        upgrade: Option<OnUpgrade>,
        encoding: Encoding,
    ) -> Response {
        let mut request = Request::new(());
        (*request.method_mut(), *request.headers_mut()) = (method, headers);
        let switched = create_response_with_body(&request, || warp::reply::Response::default().into_body());
        let (Ok(switched), Some(upgrade)) = (switched, upgrade) else { return no_upgrade() };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return self.full() };
        let entered = Entered { upgrade, encoding, _place: place };
        if self.enter.try_send(entered).is_ok() { switched } else { self.full() }
    }

    fn full(&self) -> Response {
        self.publisher.reader().dropped(REFUSED);
        let detail = "there are as many WebSockets as allowed; try again later";
        let mut response = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
        response
    }
}

fn no_upgrade() -> Response {
    let detail = "this path is a WebSocket: expected GET over HTTP/1.1 with Connection: Upgrade, Upgrade: websocket, \
                  Sec-WebSocket-Version: 13 and a Sec-WebSocket-Key";
    let mut response = Problem::new(StatusCode::UPGRADE_REQUIRED, detail).into_response();
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

/// All sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    publisher: Publisher,
    silence: Duration,
    entered: mpsc::Receiver<Entered>,
}

impl Sockets {
    /// Runs them until there is no gate any more and all have ended, or the time is up that they have after `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken, on_panic: impl Fn()) {
        let Self { publisher, silence, mut entered } = self;
        let mut sessions = JoinSet::new();
        let mut open = true;
        let mut overdue = pin!(async {
            stopping.cancelled().await;
            sleep(GRACE).await;
        });
        while open || !sessions.is_empty() {
            tokio::select! {
                () = &mut overdue => break,
                Some(result) = sessions.join_next() => ended(result, &on_panic),
                next = entered.recv(), if open => match next {
                    Some(next) => {
                        let (publisher, stopping) = (publisher.clone(), stopping.clone());
                        sessions.spawn(async move {
                            let Entered { upgrade, encoding, _place } = next;
                            // The connection may end before it becomes a socket.
                            let Ok(upgraded) = upgrade.await else { return };
                            Session::new(TokioIo::new(upgraded), publisher, encoding, silence).await.run(&stopping).await;
                        });
                    }
                    None => open = false,
                }
            }
        }
    }
}
