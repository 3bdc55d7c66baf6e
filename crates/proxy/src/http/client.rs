//! One client connection: its requests, one after the other, to the upstream connection that belongs to it.

mod admission;
mod breaks;
mod leading;

use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use mcpscope_core::ErrorType;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, timeout};

use self::admission::{Asked, Refused};
pub(super) use self::leading::Asking;
use self::leading::let_go;
use super::Shared;
use super::answers::{Answers, Failure};
use super::body::{Settled, Stopped};
use super::facts::{AnswerFacts, RequestFacts, TRACEPARENT};
use super::head::{self, BadHead};
use super::known::{Known, Whole};
use super::led::{keep_on, keep_quiet_on};
use super::rarely;
use super::reach::reach;
use super::reply::Reply;
use super::sessions::Outside;
use super::stream::Stream;
use super::wire::{Input, write};
use crate::{MAX_HOLD, Traffic};

/// How long a client may leave a connection unused between two requests. Servers mostly close theirs sooner, and pools of
/// clients, too.
const MAX_IDLE: Duration = Duration::from_secs(300);

/// How long a client may go on sending what nobody reads any more, so that it gets the answer and not a reset.
const LINGER: Duration = Duration::from_secs(2);

/// How long after the end of the relay a request that has begun to come, or the first one of a client that was let in before,
/// may take to send its head. Less than [`super::Config::DEFAULT_GRACE`], so that there is time to answer.
const LAST_HEAD: Duration = Duration::from_secs(2);

/// What names the method of a request, since 2026-07-28.
const METHOD: &str = "mcp-method";
/// The method that no request has.
const NO_METHOD: &str = "mcpscope/contradicts";

/// One side of the relay.
struct Peer {
    stream: Stream,
    input: Input,
}

impl Peer {
    fn new(stream: Stream) -> Self {
        Self { stream, input: Input::default() }
    }
}

/// One client connection and the upstream connection that belongs to it.
pub(super) struct Client {
    shared: Arc<Shared>,
    address: SocketAddr,
    outside: Outside,
    /// The host that was last asked for and may be, where that and no origin was said: it mostly stays the same.
    known_host: Vec<u8>,
    /// The heads that came last from either side.
    known_requests: Known<RequestFacts>,
    known_answers: Known<AnswerFacts>,
    peer: Peer,
    upstream: Option<Peer>,
    /// What is written next on either side.
    outgoing: [Vec<u8>; 2],
    /// Whether an answer is under way that the end of the connection would make look complete.
    ends_silently: AtomicBool,
    timer: Timer,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.relay.ear.close();
        if *self.ends_silently.get_mut() {
            self.peer.stream.reset();
        }
    }
}

/// What becomes of the client's connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It may ask again.
    Another,
    /// It is closed.
    Close,
    /// It ends where it is, within what tells its length.
    CutOff,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, stream: Stream, address: SocketAddr) -> Self {
        Self {
            timer: Timer(Box::pin(sleep(shared.config.header_timeout))),
            outside: Outside::new(&shared.sessions, address.ip()),
            shared,
            address,
            peer: Peer::new(stream),
            upstream: None,
            outgoing: [Vec::new(), Vec::new()],
            ends_silently: AtomicBool::new(false),
            known_host: Vec::new(),
            known_requests: Known::default(),
            known_answers: Known::default(),
        }
    }

    /// Relays requests and answers until either side ends it, or until there is no request under way once `stopped`. The first one
    /// always is: who was let in is answered.
    pub(super) async fn serve(mut self, stopped: watch::Receiver<bool>) {
        let mut end = End::new(stopped);
        let mut is_first = true;
        // What the last request belongs to, which faults can break.
        let (shared, mut conversation) = (Arc::clone(&self.shared), None);
        loop {
            let next = match self.unbroken(&shared, &mut conversation, is_first, &mut end).await {
                Ok(next) => next,
                Err(broken) => rarely(self.break_off(broken, conversation.as_ref())).await,
            };
            match next {
                Next::Another => is_first = false,
                Next::Close => {
                    rarely(self.close()).await;
                    break;
                }
                Next::CutOff => break,
            }
        }
        let upstream = self.upstream.take();
        // The client is told first.
        drop(self);
        rarely(let_go(upstream)).await;
    }

    /// Says that this is the end, where that has to be said and is not what a whole answer would end with.
    async fn close(&mut self) {
        if self.peer.stream.says_its_end() && !*self.ends_silently.get_mut() {
            // Who is gone, or takes nothing, is not told.
            let _ = timeout(LINGER, self.peer.stream.shutdown()).await;
        }
    }

    /// Waits for the head of a request; nothing if there is none to come.
    async fn head(&mut self, is_first: bool, end: &mut End) -> Result<Option<Whole<RequestFacts>>, BadHead> {
        let limit = if is_first { self.shared.config.header_timeout } else { MAX_IDLE };
        let (idle, mut begun) = (Instant::now() + limit, None);
        let mut seen = 0;
        loop {
            // Some clients end a body with a line end of its own (RFC 9112, section 2.2).
            while self.peer.input.bytes().starts_with(b"\r\n") {
                self.peer.input.advance(2);
            }
            let bytes = self.peer.input.bytes();
            if let Some(whole) = self.known_requests.find(bytes) {
                return Ok(Some(whole));
            }
            if bytes.first().is_some_and(|first| *first != b'\r' && !head::is_token(*first)) {
                return Err(BadHead::NoHttp);
            }
            match head::end(bytes, seen) {
                Some(end) if end <= head::MAX_HEAD_BYTES => return Ok(Some(Whole::new(end))),
                None if bytes.len() < head::MAX_HEAD_BYTES => {}
                _ => return Err(BadHead::TooLong),
            }
            seen = bytes.len();
            if seen > 0 {
                begun.get_or_insert_with(|| Instant::now() + self.shared.config.header_timeout);
            }
            let deadline = begun.unwrap_or(idle);
            let deadline = end.last_head.map_or(deadline, |last| last.min(deadline));
            let is_idle = seen == 0 && !is_first;
            let Peer { stream, input } = &mut self.peer;
            tokio::select! {
                biased;
                read = input.read(stream) => match read {
                    Ok(0) | Err(_) => return Ok(None),
                    Ok(_) => {}
                },
                () = unasked(&mut self.upstream) => self.upstream = None,
                () = end.comes(), if is_idle || end.last_head.is_none() => if is_idle { return Ok(None) },
                () = self.timer.until(deadline) => return if seen == 0 { Ok(None) } else { Err(BadHead::TooSlow) },
            }
        }
    }

    /// What becomes of a request whose body is none.
    fn broken(&self, error: &io::Error) -> Refused {
        self.shared.refused();
        Refused::unread(Reply::bad_request(400, error))
    }

    /// Answers a request that is not passed on.
    async fn refuse(&mut self, refused: Refused) -> Next {
        let Refused { mut reply, body, to_head } = refused;
        reply.closes |= body.is_none();
        let bytes = reply.to_bytes(to_head);
        let mut slices = [io::IoSlice::new(&bytes)];
        let written = timeout(LINGER, write(&mut self.peer.stream, &mut slices)).await;
        if !matches!(written, Ok(Ok(()))) {
            return Next::CutOff;
        }
        if let Some(mut body) = body {
            let Peer { stream, input } = &mut self.peer;
            if let Ok(Ok(())) = timeout(LINGER, body.drain(stream, input)).await {
                return Next::Another;
            }
        }
        self.linger().await
    }

    /// Closes in such a way that the client gets what it was sent, whatever it still sends.
    async fn linger(&mut self) -> Next {
        let Peer { stream, input } = &mut self.peer;
        let read_all = async {
            stream.shutdown().await?;
            while input.read(stream).await? > 0 {
                input.advance(usize::MAX);
            }
            Ok::<_, io::Error>(())
        };
        // Who takes nothing, or never ends, is left.
        let _ = timeout(LINGER, read_all).await;
        Next::CutOff
    }

    /// Relays a request and its answer.
    async fn exchange(&mut self, mut asked: Box<Asked>) -> Next {
        if asked.is_exposed {
            let Peer { stream, input } = &mut self.peer;
            let settled = tokio::select! {
                settled = rarely(asked.body.settle(stream, input)) => settled,
                never = keep_quiet_on(self.upstream.as_mut().map(|upstream| &mut upstream.stream)) => match never {},
            };
            match settled {
                Ok(Settled::Goes) => {}
                Ok(Settled::Lost) => {
                    rarely(let_go(self.upstream.take())).await;
                    // Until the client gives up.
                    input.gone(stream).await;
                    return Next::Close;
                }
                Ok(Settled::Answered(reply)) => {
                    let body = Some(asked.body).filter(|_| asked.facts.keeps_alive);
                    // What is no mere status is an answer on the session's stream where it has one.
                    let conversation = asked.exchange.as_ref().map(|exchange| exchange.conversation());
                    let mailbox =
                        conversation.map(|conversation| &conversation.mailbox).filter(|_| reply.status == 200);
                    let is_posted = mailbox.is_some_and(|mailbox| mailbox.post(&reply.body));
                    let reply = if is_posted { Reply::accepted() } else { Reply::of_fault(&reply) };
                    return rarely(self.refuse(Refused { reply, body, to_head: asked.facts.to_head })).await;
                }
                Ok(Settled::Breaks(broken)) => {
                    let conversation = asked.exchange.as_ref().map(|exchange| Arc::clone(exchange.conversation()));
                    return rarely(self.break_off(broken, conversation.as_ref())).await;
                }
                Err(Stopped::Source(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    return rarely(self.refuse(self.broken(&error))).await;
                }
                Err(_) => return Next::Close,
            }
        }
        let detours = self.detours(&asked);
        if self.is_led() {
            rarely(self.leave(&detours)).await;
        }
        let config = &self.shared.config;
        // To know whether a fault ended its process meanwhile.
        let begun = config.child.as_ref().map(|_| std::time::Instant::now());
        if let Some(upstream) = &mut self.upstream
            && is_over(upstream).await
        {
            self.upstream = None;
        }
        if self.upstream.is_none() {
            let Peer { stream, input } = &mut self.peer;
            let waits = std::time::Instant::now();
            let connected = tokio::select! {
                biased;
                connected = rarely(reach(config, &self.shared.retries)) => Some(connected),
                _ = input.gone(stream) => None,
            };
            asked.body.has_waited(input.waited(waits));
            let Some(connected) = connected else {
                // So that calls which are given up while there is no server are seen.
                asked.body.gone(input);
                return Next::Close;
            };
            match connected {
                Ok(stream) => self.upstream = Some(Peer::new(stream)),
                Err(error) => return rarely(self.failed(&Failure::Connect(error), begun, asked)).await,
            }
        }
        if !detours.is_empty() {
            rarely(self.lead(detours, &asked)).await;
        }
        // Not before there is somebody to send it to, so that to connect is not taken for the time that it is held.
        if asked.propagates {
            match rarely(self.hold(&mut asked)).await {
                Ok(()) => {}
                Err(Stopped::Source(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    return rarely(self.refuse(self.broken(&error))).await;
                }
                Err(_) => return Next::Close,
            }
        }
        if asked.propagates || asked.is_exposed {
            self.write_head(&mut asked);
        }
        let Some(upstream) = &mut self.upstream else { return Next::Close };
        let [onward, back] = &mut self.outgoing;
        let (mut from_client, mut to_client) = self.peer.stream.split();
        let (mut from_server, mut to_server) = upstream.stream.split();
        let keeps_on = keep_on(from_server.led());
        let (is_sent, has_begun) = (AtomicBool::new(false), AtomicBool::new(false));
        let is_refused = AtomicBool::new(false);
        let queue = &self.shared.relay.queue;
        let upload = async {
            match asked.body.relay(&mut from_client, &mut self.peer.input, &mut to_server, onward, queue).await {
                Ok(()) => is_sent.store(true, Ordering::Relaxed),
                // It reads no more; it may have answered.
                Err(Stopped::Sink(_) | Stopped::Fault) => is_refused.store(true, Ordering::Relaxed),
                Err(Stopped::Source(error)) => return error,
            }
            self.peer.input.gone(&mut from_client).await
        };
        let answers = Answers {
            shared: &self.shared,
            exchange: asked.exchange.as_ref(),
            version: asked.facts.version,
            to_head: asked.facts.to_head,
            has_begun: &has_begun,
            ends_silently: &self.ends_silently,
        };
        let ended = {
            let mut upload = pin!(upload);
            let mut keeps_on = pin!(keeps_on);
            let ended = {
                let download = pin!(answers.relay(
                    &mut from_server,
                    &mut upstream.input,
                    &mut to_client,
                    back,
                    &mut self.known_answers
                ));
                tokio::select! {
                    biased;
                    answered = download => Ok(answered),
                    gone = &mut upload => Err(gone),
                    never = &mut keeps_on => match never {},
                }
            };
            if matches!(ended, Ok(Ok(_))) && !is_sent.load(Ordering::Relaxed) {
                // A server that answers before it has read the request may still read it; or it closes, and nobody does.
                let no_more = poll_fn(|cx| {
                    let gone = upload.as_mut().poll(cx).is_ready();
                    let is_over = gone || is_sent.load(Ordering::Relaxed) || is_refused.load(Ordering::Relaxed);
                    if is_over { Poll::Ready(()) } else { Poll::Pending }
                });
                tokio::select! {
                    biased;
                    () = no_more => {}
                    _ = upstream.input.gone(&mut from_server) => {}
                }
            }
            ended
        };
        let is_sent = is_sent.load(Ordering::Relaxed);
        match ended {
            Ok(Ok(keeps_alive)) => {
                // What nobody asked for is no answer to what is asked next.
                if !keeps_alive || !is_sent || !upstream.input.bytes().is_empty() {
                    rarely(let_go(self.upstream.take())).await;
                }
                match (keeps_alive && asked.facts.keeps_alive, is_sent) {
                    (true, true) => Next::Another,
                    (false, true) => Next::Close,
                    (_, false) => rarely(self.linger()).await,
                }
            }
            Ok(Err(Failure::Client(_))) => Next::Close,
            Ok(Err(Failure::Fault)) => {
                rarely(let_go(self.upstream.take())).await;
                Next::CutOff
            }
            Ok(Err(Failure::CutOff(error))) => {
                tracing::debug!(peer = %self.address, %error, "an answer was broken off");
                Next::CutOff
            }
            Ok(Err(failure)) => rarely(self.failed(&failure, begun, asked)).await,
            Err(error) => {
                rarely(let_go(self.upstream.take())).await;
                if error.kind() == io::ErrorKind::InvalidData && !has_begun.load(Ordering::Relaxed) {
                    return rarely(self.refuse(self.broken(&error))).await;
                }
                Next::Close
            }
        }
    }

    /// Reads the body to its end, so that our context can be put into it: the head, which goes before it, tells its length.
    /// One that takes too long goes on as it is, so that the server may refuse it.
    async fn hold(&mut self, asked: &mut Asked) -> Result<(), Stopped> {
        let Peer { stream, input } = &mut self.peer;
        match timeout(MAX_HOLD, asked.body.gather(stream, input)).await {
            Ok(gathered) => gathered?,
            Err(_) => asked.body.release(),
        }
        Ok(())
    }

    /// The head of a request that was held, with what is changed in it.
    fn write_head(&mut self, asked: &mut Asked) {
        let mut edits = asked.facts.edits.clone();
        if asked.body.contradicts() {
            edits.with.push((METHOD, NO_METHOD.to_owned()));
        }
        if let Some(length) = asked.body.changed_length().filter(|_| asked.has_length) {
            edits.with.push(("content-length", length.to_string()));
        }
        if let Some(value) = asked.exchange.as_ref().and_then(|exchange| exchange.traceparent()) {
            edits.with.push((TRACEPARENT, value));
        }
        let [onward, _] = &mut self.outgoing;
        edits.write(&asked.raw, onward);
    }

    /// Answers for a server that did not, to what had `begun` then to be relayed.
    async fn failed(&mut self, failure: &Failure, begun: Option<std::time::Instant>, mut asked: Box<Asked>) -> Next {
        self.upstream = None;
        let config = &self.shared.config;
        let message = format!("upstream {} gave no answer: {failure}", config.upstream.origin());
        let server = &**self.shared.relay.probe.server();
        match self.shared.unanswered.tell(Instant::now()) {
            Some(0) => tracing::warn!(server, "{message}"),
            Some(untold) => {
                tracing::warn!(server, "{message}; {untold} others got none since this was last said");
            }
            None => tracing::debug!(server, "{message}"),
        }
        // The rest of the request tells which calls it holds, whose ids the answer repeats.
        let Peer { stream, input } = &mut self.peer;
        // A client that waits for leave to send it waits for this answer.
        let patience = if asked.facts.waits_for_leave { Duration::ZERO } else { config.header_timeout };
        let is_read = match timeout(patience, asked.body.drain(stream, input)).await {
            Ok(Ok(())) => true,
            Ok(Err(_)) => return Next::Close,
            Err(_) => false,
        };
        let (kind, tell): (_, fn(&Traffic, &str)) = match failure {
            Failure::Connect(_) => (ErrorType::UpstreamUnreachable, Traffic::fails),
            _ => (ErrorType::ConnectionLost, Traffic::unanswered),
        };
        let (relay, now) = (&self.shared.relay, std::time::Instant::now());
        let fault = begun.and_then(|begun| relay.broken_by(begun).or_else(|| relay.held_up_by(begun, now)));
        // What a fault does says nothing of the path.
        if let Some(traffic) = config.traffic.as_ref().filter(|_| fault.is_none()) {
            tell(traffic, &message);
        }
        relay.probe.broke_off(kind, fault, now);
        let ids = asked.exchange.as_ref().map_or_else(Vec::new, |exchange| exchange.fail(kind, &message));
        let body = is_read.then_some(asked.body);
        let (body, to_head) = (body.filter(|_| asked.facts.keeps_alive), asked.facts.to_head);
        self.refuse(Refused { reply: Reply::bad_gateway(&ids, &message), body, to_head }).await
    }
}

/// Waits until an upstream connection that was asked nothing says something, most likely that it ends.
async fn unasked(upstream: &mut Option<Peer>) {
    match upstream {
        Some(Peer { stream, input }) => drop(input.read(stream).await),
        None => pending().await,
    }
}

/// Whether an upstream connection is known to have ended while it was asked nothing, or said something unasked.
async fn is_over(upstream: &mut Peer) -> bool {
    let Peer { stream, input } = upstream;
    if !input.bytes().is_empty() {
        return true;
    }
    let mut read = pin!(input.read(stream));
    poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx).is_ready())).await
}

/// The end of the relay, as a connection is told of it.
struct End {
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// By when the head of the last request has to be there; nothing before the relay ends.
    last_head: Option<Instant>,
}

impl End {
    fn new(mut stopped: watch::Receiver<bool>) -> Self {
        let stopped = Box::pin(async move { drop(stopped.wait_for(|stopped| *stopped).await) });
        Self { stopped, last_head: None }
    }

    /// Waits for it, if it has not come yet.
    async fn comes(&mut self) {
        if self.last_head.is_none() {
            self.stopped.as_mut().await;
            self.last_head = Some(Instant::now() + LAST_HEAD);
        }
    }
}

/// A timer that is set anew only when it has run out: it mostly never does.
struct Timer(Pin<Box<Sleep>>);

impl Timer {
    async fn until(&mut self, deadline: Instant) {
        loop {
            if self.0.is_elapsed() || self.0.deadline() > deadline {
                self.0.as_mut().reset(deadline);
            }
            self.0.as_mut().await;
            if Instant::now() >= deadline {
                return;
            }
        }
    }
}
