//! What the server answers to one request, on its way to the client.

use std::future::pending;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mcpscope_core::{Direction, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Shared;
use super::body::{Body, Settled, Stopped};
use super::decode::Length;
use super::exchange::Exchange;
use super::facts::AnswerFacts;
use super::head::{self, BadHead};
use super::known::{Known, Whole};
use super::rarely;
use super::stream::Source;
use super::wire::{Input, write};
use crate::framing::Framing;
use crate::restarts::ServerState;
use crate::{INTERNAL_ERROR, answer};

/// How long after its connections have broken a process may take to be seen to have ended: the system tells of both at once.
const GONE: Duration = Duration::from_millis(500);

/// Why no answer came, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No connection; the request was not sent.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke before the answer's head.
    #[error("the connection broke before an answer: {0}")]
    Broken(#[source] io::Error),
    /// What came is no answer.
    #[error("what it sent is no answer: {0}")]
    BadAnswer(#[source] BadHead),
    /// It wants to speak another protocol, for which it was not asked.
    #[error("it switches to another protocol unasked")]
    Switched,
    /// The answer was broken off.
    #[error("the answer was broken off: {0}")]
    CutOff(#[source] io::Error),
    /// The client takes no more of it.
    #[error("the client is gone: {0}")]
    Client(#[source] io::Error),
    /// A fault broke it off.
    #[error("a fault broke it off")]
    Fault,
}

/// Relays what the server answers to one request.
pub(super) struct Answers<'a> {
    pub(super) shared: &'a Shared,
    pub(super) exchange: Option<&'a Arc<Exchange>>,
    /// Of the request.
    pub(super) version: u8,
    pub(super) to_head: bool,
    /// Whether the client was sent anything.
    pub(super) has_begun: &'a AtomicBool,
    /// Whether nothing but a reset would tell it that the answer was broken off.
    pub(super) ends_silently: &'a AtomicBool,
}

/// Whether the process that was asked is gone: its connections may tell a moment sooner.
async fn is_gone(mut server: watch::Receiver<ServerState>, asked: ServerState) -> bool {
    let changed = server.wait_for(|state| *state != asked || !matches!(asked, ServerState::Serving(_)));
    // Whoever ends it has dropped the other end.
    timeout(GONE, changed).await.is_ok()
}

impl Answers<'_> {
    /// Relays interim answers and the answer proper. Returns whether the server wants to use the connection again.
    pub(super) async fn relay<R: Source, W: AsyncWrite + Unpin>(
        &self,
        from: &mut R,
        input: &mut Input,
        to: &mut W,
        outgoing: &mut Vec<u8>,
        known: &mut Known<AnswerFacts>,
    ) -> Result<bool, Failure> {
        let asked = self.shared.config.server.as_ref().map(|server| (*server.borrow(), Instant::now()));
        loop {
            // The length that an answer to HEAD tells is not that of its body.
            let find = |bytes: &[u8]| if self.to_head { None } else { known.find(bytes) };
            let Whole { end, known: found } = Self::head(from, input, find).await?;
            let raw = input.bytes().get(..end).unwrap_or_default();
            let (facts, length) = match found {
                Some(found) => found,
                None => self.read_head(raw, known)?,
            };
            let status = facts.status;
            let exchange = self.exchange.filter(|_| !facts.is_interim());
            let framing = exchange.and_then(|exchange| exchange.answered(&facts));
            // The server's own requests come as events. A stream whose length was told must keep it.
            let propagates = framing == Some(Framing::Sse)
                && self.shared.relay.probe.propagates()
                && !matches!(length, Length::Exact(_))
                && !facts.is_signed;
            if let Some(traffic) = &self.shared.config.traffic {
                traffic.works();
            }
            outgoing.clear();
            let mut edits = facts.told.edits();
            // Its length may become another with what a fault does to it, so it is kept until that is known.
            let held = self.exchange.filter(|exchange| framing == Some(Framing::Body) && exchange.holds());
            let kept = if held.is_some() { raw.to_vec() } else { Vec::new() };
            if held.is_none() {
                edits.write(raw, outgoing);
            }
            input.advance(end);
            if status == 101 {
                return Err(Failure::Switched);
            }
            if status < 200 {
                // HTTP/1.0 knows no interim answers.
                if self.version > 0 {
                    write(to, &mut [IoSlice::new(outgoing)]).await.map_err(Failure::Client)?;
                }
                continue;
            }
            let mut body = Body::new(length, framing, Direction::ToClient, self.exchange.cloned(), propagates);
            if held.is_some() {
                match rarely(body.settle(from, input)).await {
                    // To its request there never is an answer.
                    Ok(Settled::Lost) => pending().await,
                    Ok(Settled::Breaks(_)) => return Err(Failure::Fault),
                    Ok(Settled::Goes | Settled::Answered(_)) => {}
                    Err(Stopped::Source(error)) => return Err(Failure::Broken(error)),
                    Err(Stopped::Sink(_) | Stopped::Fault) => return Err(Failure::Fault),
                }
                if let Some(length) = body.changed_length().filter(|_| matches!(length, Length::Exact(_))) {
                    edits.with.retain(|(name, _)| *name != "content-length");
                    edits.with.push(("content-length", length.to_string()));
                }
                edits.write(&kept, outgoing);
            }
            self.has_begun.store(true, Ordering::Relaxed);
            let is_silent = length == Length::UntilClosed;
            self.ends_silently.store(is_silent, Ordering::Relaxed);
            return match body.relay(from, input, to, outgoing, &self.shared.relay.queue).await {
                Ok(()) => {
                    self.ends_silently.store(false, Ordering::Relaxed);
                    Ok(facts.keeps_alive)
                }
                Err(Stopped::Source(source)) => {
                    match rarely(self.last_events(&body, asked)).await.filter(|_| outgoing.is_empty()) {
                        Some(last) => {
                            write(to, &mut [IoSlice::new(&last)]).await.map_err(Failure::Client)?;
                            self.ends_silently.store(false, Ordering::Relaxed);
                            Ok(false)
                        }
                        None => Err(Failure::CutOff(source)),
                    }
                }
                Err(Stopped::Sink(error)) => Err(Failure::Client(error)),
                Err(Stopped::Fault) => Err(Failure::Fault),
            };
        }
    }

    /// What ends an event stream that was broken off because the process at its other end, which was `asked`, is gone: an
    /// error for each call without an answer. Nothing if the client is better served by the stream's being broken off.
    async fn last_events(&self, body: &Body, asked: Option<(ServerState, Instant)>) -> Option<Vec<u8>> {
        let (server, (asked, since), exchange) = (self.shared.config.server.clone()?, asked?, self.exchange?);
        // Anything else is refused before anything is waited for.
        body.last_events(b"")?;
        if !exchange.is_unanswered() || !is_gone(server, asked).await {
            return None;
        }
        let message = "mcpscope: the server crashed before it answered";
        let relay = &self.shared.relay;
        let fault = relay.broken_by(since).or_else(|| relay.held_up_by(since, Instant::now()));
        let event = |id| {
            self.shared.relay.probe.broke_off(ErrorType::ConnectionLost, fault, Instant::now());
            format!("event: message\ndata: {}\n\n", answer::error(INTERNAL_ERROR, Some(&id), message))
        };
        let events: String = exchange.give_up().into_iter().map(event).collect();
        if events.is_empty() { None } else { body.last_events(events.as_bytes()) }
    }

    /// Waits for the head of an answer. `find` finds the one that these bytes begin with, if it is known.
    pub(super) async fn head<R: AsyncRead + Unpin>(
        from: &mut R,
        input: &mut Input,
        mut find: impl FnMut(&[u8]) -> Option<Whole<AnswerFacts>>,
    ) -> Result<Whole<AnswerFacts>, Failure> {
        let mut seen = 0;
        loop {
            let bytes = input.bytes();
            if let Some(whole) = find(bytes) {
                return Ok(whole);
            }
            match head::end(bytes, seen) {
                Some(end) if end <= head::MAX_HEAD_BYTES => return Ok(Whole::new(end)),
                None if bytes.len() < head::MAX_HEAD_BYTES => {}
                _ => return Err(Failure::BadAnswer(BadHead::TooLong)),
            }
            seen = bytes.len();
            match input.read(from).await {
                Ok(0) => return Err(Failure::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(Failure::Broken(error)),
            }
        }
    }

    /// What the head of an answer says, and how long its body is.
    fn read_head(&self, raw: &[u8], known: &mut Known<AnswerFacts>) -> Result<(Arc<AnswerFacts>, Length), Failure> {
        let read = head::read_answer(raw, self.to_head, |answer| {
            let facts = Arc::new(AnswerFacts::new(&answer));
            if !self.to_head && !facts.is_interim() {
                known.add(raw, (answer.length, answer.digits), &facts);
            }
            (facts, answer.length)
        });
        read.map_err(Failure::BadAnswer)
    }
}
