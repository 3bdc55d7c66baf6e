//! Connections that faults break as a whole.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use mcpscope_core::{Break, Effect, Injection};

use super::super::{Shared, rarely};
use super::admission::Admission;
use super::leading::let_go;
use super::{Client, End, Next, Peer};
use crate::conversation::Conversation;

impl Client {
    /// Relays one request and its answer, unless a fault breaks the connection meanwhile. `conversation` is what the last
    /// request belongs to.
    pub(super) async fn unbroken(
        &mut self,
        shared: &Shared,
        conversation: &mut Option<Arc<Conversation>>,
        is_first: bool,
        end: &mut End,
    ) -> Result<Next, Break> {
        let head = {
            let breaks = breaks(shared, conversation.as_ref());
            tokio::select! {
                biased;
                head = self.head(is_first, end) => match head {
                    Ok(None) => return Ok(Next::Close),
                    Ok(Some(head)) => head,
                    Err(bad) => return Ok(rarely(self.refuse(self.unread(bad))).await),
                },
                broken = breaks => return Err(broken),
            }
        };
        let asked = match self.admit(head) {
            Admission::Onward(asked) => asked,
            Admission::Refused(refused) => return Ok(rarely(self.refuse(*refused)).await),
        };
        let is_new = conversation.is_none();
        let its_own = asked.exchange.as_ref().map(|exchange| exchange.conversation());
        // It mostly is the same.
        if its_own.map(Arc::as_ptr) != conversation.as_ref().map(Arc::as_ptr) {
            *conversation = its_own.cloned();
        }
        if shared.relay.probe.holds()
            && let Some(standing) = standing(conversation.as_ref(), is_new)
            && let Some(broken) = breaks_what(&standing, is_new)
        {
            return Err(broken);
        }
        let breaks = breaks(shared, conversation.as_ref());
        tokio::select! {
            biased;
            next = self.exchange(asked) => Ok(next),
            broken = breaks => Err(broken),
        }
    }

    /// A fault breaks the connection, which carries this conversation.
    pub(super) async fn break_off(&mut self, broken: Break, conversation: Option<&Arc<Conversation>>) -> Next {
        if broken != Break::Reset {
            let_go(self.upstream.take()).await;
        } else if let Some(upstream) = self.upstream.take() {
            upstream.stream.reset();
        }
        match broken {
            Break::Refuse | Break::Reset => self.peer.stream.reset(),
            Break::Stream => {}
            Break::HalfOpen => {
                // It carries nothing until the fault is over, and then it is of no use.
                let relay = Arc::clone(&self.shared.relay);
                let Peer { stream, input } = &mut self.peer;
                let mut gone = pin!(input.gone(stream));
                loop {
                    let rung = relay.rung();
                    let Some(standing) = standing(conversation, false) else { break };
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
async fn breaks(shared: &Shared, conversation: Option<&Arc<Conversation>>) -> Break {
    let relay = &shared.relay;
    if conversation.is_none() || !relay.probe.has_faults() {
        return pending().await;
    }
    loop {
        let rung = relay.rung();
        if relay.probe.holds()
            && let Some(standing) = standing(conversation, false)
            && let Some(broken) = breaks_what(&standing, false)
        {
            return broken;
        }
        rung.await;
    }
}

/// What a fault does to a connection that carries this conversation as a whole.
fn standing(conversation: Option<&Arc<Conversation>>, is_new: bool) -> Option<Injection> {
    conversation?.broken(is_new, Instant::now())
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
