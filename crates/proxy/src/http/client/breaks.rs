//! Connections that faults break as a whole.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use mcpscope_core::{Break, Effect, Injection};

use super::super::Shared;
use super::admission::Admission;
use super::{Client, End, Next, Peer};
use crate::conversation::Conversation;

impl Client {
    /// Relays one request and its answer, unless a fault breaks the connection meanwhile.
    pub(super) async fn unbroken(&mut self, is_first: bool, end: &mut End) -> Result<Next, Break> {
        let end = {
            let breaks = breaks(&self.shared, self.conversation.as_ref());
            tokio::select! {
                biased;
                head = self.head(is_first, end) => match head {
                    Ok(None) => return Ok(Next::Close),
                    Ok(Some(end)) => end,
                    Err(bad) => return Ok(self.refuse(self.unread(bad)).await),
                },
                broken = breaks => return Err(broken),
            }
        };
        let asked = match self.admit(end) {
            Admission::Onward(asked) => asked,
            Admission::Refused(refused) => return Ok(self.refuse(*refused).await),
        };
        let is_new = self.conversation.is_none();
        self.conversation = asked.exchange.as_ref().map(|exchange| Arc::clone(exchange.conversation()));
        if self.shared.relay.probe.holds()
            && let Some(broken) = self.standing(is_new).and_then(|standing| breaks_what(&standing, is_new))
        {
            return Err(broken);
        }
        let breaks = breaks(&self.shared, self.conversation.as_ref());
        tokio::select! {
            biased;
            next = self.exchange(asked) => Ok(next),
            broken = breaks => Err(broken),
        }
    }

    /// What a fault does to the connection as a whole.
    fn standing(&self, is_new: bool) -> Option<Injection> {
        self.conversation.as_ref()?.broken(is_new, std::time::Instant::now())
    }

    /// A fault breaks the connection.
    pub(super) async fn break_off(&mut self, broken: Break) -> Next {
        if let Some(upstream) = self.upstream.take()
            && broken == Break::Reset
        {
            upstream.stream.reset();
        }
        match broken {
            Break::Refuse | Break::Reset => self.peer.stream.reset(),
            Break::Stream => {}
            Break::HalfOpen => {
                // It carries nothing until the fault is over, and then it is of no use.
                let (relay, conversation) = (Arc::clone(&self.shared.relay), self.conversation.clone());
                let Peer { stream, input } = &mut self.peer;
                let mut gone = pin!(input.gone(stream));
                loop {
                    let rung = relay.rung();
                    let standing =
                        |conversation: Arc<Conversation>| conversation.broken(false, std::time::Instant::now());
                    let Some(standing) = conversation.clone().and_then(standing) else { break };
                    tokio::select! {
                        _ = &mut gone => break,
                        () = rung => {}
                        () = relay.alarm.until(standing.ends) => {}
                    }
                }
            }
        }
        Next::CutOff
    }
}

/// Waits until a fault breaks a connection that carries this conversation, and says what breaks.
fn breaks(shared: &Shared, conversation: Option<&Arc<Conversation>>) -> impl Future<Output = Break> + use<> {
    let watched = conversation.filter(|_| shared.relay.probe.has_faults());
    let watched = watched.map(|conversation| (Arc::clone(conversation), Arc::clone(&shared.relay)));
    async move {
        let Some((conversation, relay)) = watched else { return pending().await };
        loop {
            let rung = relay.rung();
            if relay.probe.holds()
                && let Some(standing) = conversation.broken(false, std::time::Instant::now())
                && let Some(broken) = breaks_what(&standing, false)
            {
                return broken;
            }
            rung.await;
        }
    }
}

/// What breaks of a connection, which may be new.
fn breaks_what(standing: &Injection, is_new: bool) -> Option<Break> {
    match standing.effect {
        // Those that are there hang, message by message.
        Effect::Break(Break::Refuse) if !is_new => None,
        Effect::Break(broken) => Some(broken),
        _ => None,
    }
}
