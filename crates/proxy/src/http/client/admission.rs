//! Which requests are passed on, and how.

use std::sync::Arc;

use mcpscope_core::{Component, Direction, ErrorType, HostPolicy, Refusal};

use super::super::body::Body;
use super::super::decode::Length;
use super::super::exchange::Exchange;
use super::super::facts::RequestFacts;
use super::super::head::{self, BadHead, Edits, Request};
use super::super::known::Whole;
use super::super::reply::Reply;
use super::super::sessions::Outside;
use super::super::{Config, HostHeader, Shared};
use super::Client;
use crate::framing::Framing;

/// Longest host that is remembered, in bytes.
const MAX_KNOWN_HOST: usize = 256;

/// A request as it goes on.
pub(super) struct Asked {
    pub(super) facts: Arc<RequestFacts>,
    pub(super) exchange: Option<Arc<Exchange>>,
    pub(super) body: Body,
    /// Its head as it came, if it is not known yet how it goes on.
    pub(super) raw: Vec<u8>,
    pub(super) has_length: bool,
    pub(super) propagates: bool,
    /// Whether a fault may touch it before anything of it goes on.
    pub(super) is_exposed: bool,
}

/// What becomes of a request.
pub(super) enum Admission {
    Onward(Box<Asked>),
    Refused(Box<Refused>),
}

/// A request that is answered here.
pub(super) struct Refused {
    pub(super) reply: Reply,
    /// What is still to come of it; nothing if nobody knows where it ends, or nothing may follow it.
    pub(super) body: Option<Body>,
    pub(super) to_head: bool,
}

impl Refused {
    pub(super) fn unread(reply: Reply) -> Self {
        Self { reply, body: None, to_head: false }
    }
}

impl Client {
    /// Decides whether the request that has this head is passed on, and how.
    pub(super) fn admit(&mut self, Whole { end, known }: Whole<RequestFacts>) -> Admission {
        let raw = self.peer.input.bytes().get(..end).unwrap_or_default();
        let (shared, outside) = (&self.shared, &mut self.outside);
        let mut admission = match known {
            Some((facts, length)) => Admission::Onward(ask(shared, outside, facts, length)),
            None => {
                let (known, known_host, address) = (&mut self.known_requests, &mut self.known_host, self.address);
                let read = head::read_request(raw, |request| {
                    match is_answered_to(&shared.config.hosts, known_host, &request) {
                        Ok(()) => {
                            let facts = Arc::new(RequestFacts::new(&request, edits(&shared.config, &request)));
                            known.add(raw, (request.length, request.digits), &facts);
                            Admission::Onward(ask(shared, outside, facts, request.length))
                        }
                        Err(refusal) => {
                            tracing::debug!(peer = %address, refusal = refusal.told("proxy"), "request refused");
                            shared.refused();
                            let body = Body::new(request.length, None, Direction::ToServer, None, false);
                            Admission::Refused(Box::new(Refused {
                                reply: Reply::refused(&refusal),
                                body: Some(body).filter(|_| request.keeps_alive),
                                to_head: request.method == "HEAD",
                            }))
                        }
                    }
                });
                read.unwrap_or_else(|bad| Admission::Refused(Box::new(self.unread(bad))))
            }
        };
        if let Admission::Onward(asked) = &mut admission {
            let [onward, _] = &mut self.outgoing;
            onward.clear();
            if asked.propagates || asked.is_exposed {
                asked.raw.extend_from_slice(raw);
            } else {
                asked.facts.edits.write(raw, onward);
            }
        }
        self.peer.input.advance(end);
        admission
    }

    /// What becomes of a request whose head cannot be passed on.
    pub(super) fn unread(&self, bad: BadHead) -> Refused {
        tracing::debug!(peer = %self.address, %bad, "request refused");
        if bad == BadHead::TooSlow {
            let probe = &self.shared.relay.probe;
            probe.operation(Component::Transport, Some(ErrorType::Timeout), std::time::Instant::now());
        } else {
            self.shared.refused();
        }
        Refused::unread(Reply::bad_request(bad.status(), &bad))
    }
}

/// Whether a request is for one of these hosts; `known` is the one that the last was for.
fn is_answered_to(hosts: &HostPolicy, known: &mut Vec<u8>, request: &Request<'_>) -> Result<(), Refusal> {
    let fields = request.fields;
    let mut named = fields.all("host");
    let only = named.next().filter(|_| named.next().is_none());
    let is_plain =
        |host: &&[u8]| host.len() <= MAX_KNOWN_HOST && request.authority.is_none() && !fields.contains("origin");
    let plain = only.filter(is_plain);
    if plain.is_some_and(|host| !host.is_empty() && host == known) {
        return Ok(());
    }
    hosts.check(fields.all("host"), request.authority, fields.all("origin"))?;
    if let Some(host) = plain {
        known.clear();
        known.extend_from_slice(host);
    }
    Ok(())
}

/// How a request goes on whose head says this.
fn ask(shared: &Arc<Shared>, outside: &mut Outside, facts: Arc<RequestFacts>, length: Length) -> Box<Asked> {
    let probe = &shared.relay.probe;
    let exchange = probe.is_on().then(|| Arc::new(Exchange::new(shared, outside, Arc::clone(&facts))));
    let framing = exchange.as_ref().filter(|_| facts.is_message).map(|_| Framing::Body);
    let fits = match length {
        Length::Exact(bytes) => bytes <= shared.config.limits.max_message as u64,
        Length::Chunked | Length::UntilClosed => true,
    };
    // A client that waits for leave to send its body waits for the server's.
    let waits_for_leave = facts.waits_for_leave;
    let propagates = framing.is_some() && fits && probe.propagates() && !facts.is_signed && !waits_for_leave;
    Box::new(Asked {
        body: Body::new(length, framing, Direction::ToServer, exchange.clone(), propagates),
        exchange,
        raw: Vec::new(),
        has_length: length != Length::Chunked,
        propagates,
        // Not one whose headers vouch for it only: what a fault does to it may well be found out.
        is_exposed: framing.is_some() && probe.holds() && !waits_for_leave,
        facts,
    })
}

/// What is changed in the head of every such request.
fn edits(config: &Config, request: &Request<'_>) -> Edits {
    let fields = request.fields;
    let mut edits = Edits::default();
    if request.is_rewritten {
        edits.target = Some(request.target.to_owned());
    }
    let is_upstreams_host = match config.host_header {
        HostHeader::Keep => false,
        HostHeader::Upstream => true,
        HostHeader::Auto => !config.upstream.is_loopback(),
    };
    if is_upstreams_host {
        edits.with.push(("host", config.upstream.authority().to_owned()));
    }
    // MCP has no use for another protocol on the connection, and a relay of messages cannot follow one: an upgrade is not
    // asked for, so that the server answers in HTTP.
    if fields.contains("upgrade") {
        edits.without.push("upgrade");
        if fields.first("connection").is_some_and(|value| value.eq_ignore_ascii_case(b"upgrade")) {
            edits.without.push("connection");
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_known_lets_no_other_pass() {
        let mut known = Vec::new();
        let mut ask = |head: &str| {
            let head = format!("{head}\r\n\r\n");
            let asked = |request: Request<'_>| is_answered_to(&HostPolicy::default(), &mut known, &request).is_ok();
            head::read_request(head.as_bytes(), asked).unwrap()
        };
        for _ in 0..2 {
            assert!(ask("GET / HTTP/1.1\r\nHost: localhost:1"));
            assert!(ask("GET / HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://localhost"));
            for refused in [
                "GET / HTTP/1.1",
                "GET / HTTP/1.1\r\nHost: ",
                "GET / HTTP/1.1\r\nHost: evil.example",
                "GET / HTTP/1.1\r\nHost: localhost:1\r\nHost: localhost:1",
                "GET / HTTP/1.1\r\nHost: localhost:1\r\nOrigin: http://evil.example",
                "GET http://evil.example/ HTTP/1.1\r\nHost: localhost:1",
            ] {
                assert!(!ask(refused), "{refused}");
            }
        }
    }
}
