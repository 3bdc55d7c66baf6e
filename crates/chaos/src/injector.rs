//! The data path: asks the leases what becomes of messages and connections.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mcpscope_core::{Direction, Era, FaultId, Injection, Transport};

use crate::Message;
use crate::directory::{self, Server};
use crate::lease::{Lease, Member, Place, Seen, Shared, Watch};
use crate::network::Detour;

/// Decides what becomes of messages. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Injector(pub(crate) Arc<Shared>);

impl Injector {
    /// Whether any fault of messages may be active: one relaxed load. While none is, nothing needs to be asked of them.
    #[inline]
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.0.is_active()
    }

    /// Whether any fault may lead connections through a network: one relaxed load.
    #[inline]
    #[must_use]
    pub fn leads(&self) -> bool {
        self.0.leads()
    }

    /// Whether this fault is still active at `now`. What it holds goes on when it is not.
    #[must_use]
    pub fn is_live(&self, fault: FaultId, now: Instant) -> bool {
        self.0.is_live(fault, now)
    }

    /// `watcher` is told whenever faults begin or end, as long as it lives. That one has expired it must find out itself, by
    /// [`Injection::ends`].
    pub fn watch(&self, watcher: &Arc<dyn Watch>) {
        self.0.watch(watcher);
    }

    /// An effect was acted on: what the report calls observed.
    pub fn acted(&self, injection: &Injection) {
        self.0.count_observed(injection.fault);
    }

    /// A server whose messages pass here, until the value is dropped. Nothing is ever done to a `critical` one.
    #[must_use]
    pub fn endpoint(&self, server: &str, transport: Transport, critical: bool) -> Endpoint {
        let (number, server) = self.0.directory().add_server(server, transport, critical);
        Endpoint(Arc::new(EndpointInner { shared: self.0.clone(), number, server }))
    }
}

/// A server whose messages pass here. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<EndpointInner>);

#[derive(Debug)]
struct EndpointInner {
    shared: Arc<Shared>,
    number: u64,
    server: Arc<Server>,
}

impl Drop for EndpointInner {
    fn drop(&mut self) {
        self.shared.directory().remove_server(self.number);
    }
}

impl Endpoint {
    /// It speaks a revision of this era. An experiment that means nothing in any era that a server speaks is refused.
    pub fn saw(&self, era: Era) {
        self.0.server.saw(era);
    }

    /// Marks it as critical, or takes the mark away. From here on nothing is done to a critical one, and an experiment that could
    /// touch it ends when the controller is driven next; what a fault holds there already goes on when that ends.
    pub fn set_critical(&self, critical: bool) {
        self.0.shared.directory().mark(&self.0.server, critical);
    }

    /// Whether an experiment wants to know what becomes of its calls: one relaxed load.
    #[inline]
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.0.shared.is_followed()
    }

    /// The experiment since whose beginning that is so: of those that run at the same time, the first. As cheap.
    #[inline]
    #[must_use]
    pub fn followed_since(&self) -> Option<FaultId> {
        self.0.shared.followed_since()
    }

    /// A client's call of it, which began and ended then, ended well or with an error of the server: how long after a crash it is
    /// of use again. To be told if it [is followed](Self::is_followed).
    pub fn call_ended(&self, is_good: bool, began: Instant, ended: Instant) {
        self.0.shared.call_ended(&self.0.server.name, is_good, began, ended);
    }

    /// A connection, until the value is dropped: a stdio pair; over HTTP a session, where the revision has them, else a
    /// client's connection. Shares of connections, and the blast radius, count these.
    #[must_use]
    pub fn connect(&self, session: Option<&str>) -> Connection {
        let session = session.map(Arc::from);
        let number = self.0.shared.directory().open(&self.0.server, session.as_ref());
        let inner = Inner { endpoint: self.clone(), number, session, members: Mutex::default() };
        Connection(Arc::new(inner))
    }
}

/// A connection. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    number: u64,
    session: Option<Arc<str>>,
    /// What the leases that it has met make of it; shared by its two directions, and asked by each once per lease.
    members: Mutex<Vec<(FaultId, Known)>>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// None: the lease is not about it.
    member: Option<Member>,
    /// Whether what happens to it as a whole has been said.
    said: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.endpoint.0.shared.directory().close(self.number);
    }
}

impl Inner {
    fn with_known<T>(&self, lease: &Lease, use_it: impl FnOnce(&mut Known) -> T) -> T {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = members.iter_mut().find(|(id, _)| *id == lease.id) {
            return use_it(known);
        }
        let table = self.endpoint.0.shared.table();
        members.retain(|(id, _)| table.iter().any(|lease| lease.id == *id));
        let taken = directory::takes(&lease.experiment.matcher, &self.endpoint.0.server, self.session.as_deref())
            && lease.takes_connection(self.number);
        let mut known = Known { member: taken.then(|| lease.meet(self.number)), said: false };
        let result = use_it(&mut known);
        members.push((lease.id, known));
        result
    }
}

impl Connection {
    /// One way on it. There is to be one for each, whose messages are asked about in their order.
    #[must_use]
    pub fn lane(&self, direction: Direction) -> Lane {
        Lane { connection: self.clone(), direction, seen: Vec::new() }
    }

    /// What is to happen to it as a whole, said once for each fault: to be asked when it opens (`is_new`), and whenever the
    /// faults have changed.
    #[must_use]
    pub fn standing(&self, is_new: bool, now: Instant) -> Option<Injection> {
        let shared = &self.0.endpoint.0.shared;
        if !shared.is_active() || self.0.endpoint.0.server.is_protected() {
            return None;
        }
        let table = shared.table();
        table.iter().find_map(|lease| {
            self.0.with_known(lease, |known| {
                let member = known.member.filter(|member| member.chosen && !known.said)?;
                let injection = lease.decide_connection(shared, member, is_new, now)?;
                known.said = true;
                Some(injection)
            })
        })
    }
}

impl Connection {
    /// The ways that what it carries takes now, one within the other in the order in which their faults were started. None,
    /// almost always.
    #[must_use]
    pub fn detours(&self, now: Instant) -> Vec<Detour> {
        let Inner { endpoint, .. } = &*self.0;
        let shared = &endpoint.0.shared;
        if !shared.leads() || endpoint.0.server.is_protected() {
            return Vec::new();
        }
        let table = shared.table();
        let detour = |lease: &Arc<Lease>| {
            let network = lease.network.get()?.clone();
            let member = self.0.with_known(lease, |known| known.member).filter(|member| member.chosen)?;
            Some(Detour { shared: shared.clone(), lease: lease.clone(), network, member })
        };
        table.iter().filter_map(detour).filter(|detour| detour.is_open(now)).collect()
    }
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Lane {
    connection: Connection,
    direction: Direction,
    seen: Vec<(FaultId, Option<Member>, Seen)>,
}

impl Lane {
    /// The way its messages travel.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// What becomes of a message that arrived at `now`: all of these, in order. Nothing, almost always.
    ///
    /// The faults stand behind one another in the order in which they were started: what one does away with, the next does
    /// not see.
    #[inline]
    pub fn decide(&mut self, message: &Message<'_>, now: Instant) -> Vec<Injection> {
        if self.connection.0.endpoint.0.shared.is_active() { self.ask(message, now) } else { Vec::new() }
    }

    #[inline(never)]
    fn ask(&mut self, message: &Message<'_>, now: Instant) -> Vec<Injection> {
        let Inner { endpoint, .. } = &*self.connection.0;
        let (shared, server) = (&endpoint.0.shared, &endpoint.0.server);
        if let Some(protocol) = message.protocol {
            server.saw(protocol.era());
        }
        if server.is_protected() {
            return Vec::new();
        }
        let table = shared.table();
        let mut injections = Vec::new();
        for lease in table.iter() {
            let at = self.seen.iter().position(|(id, ..)| *id == lease.id).unwrap_or_else(|| {
                let member = self.connection.0.with_known(lease, |known| known.member);
                self.seen.retain(|(id, ..)| table.iter().any(|lease| lease.id == *id));
                self.seen.push((lease.id, member, Seen::default()));
                self.seen.len() - 1
            });
            let Some((_, Some(member), seen)) = self.seen.get_mut(at) else { continue };
            if !member.chosen {
                continue;
            }
            let place = Place { transport: server.transport, direction: self.direction, member };
            if let Some(injection) = lease.decide(shared, seen, &place, message, now) {
                let is_final = injection.effect.is_final();
                injections.push(injection);
                if is_final {
                    break;
                }
            }
        }
        injections
    }
}
