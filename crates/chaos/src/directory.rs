//! Which servers and connections there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use mcpscope_core::{Era, Transport};

use crate::ProtectedNames;
use crate::matcher::Matcher;

/// A server whose messages can be touched.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: Arc<str>,
    pub(crate) transport: Transport,
    critical: AtomicBool,
    /// Marked as critical, or of a protected name: nothing is ever done to it.
    protected: AtomicBool,
    eras: AtomicU8,
}

const ERAS: [(Era, u8); 2] = [(Era::Legacy, 1), (Era::Modern, 2)];

impl Server {
    pub(crate) fn is_protected(&self) -> bool {
        self.protected.load(Ordering::SeqCst)
    }

    pub(crate) fn saw(&self, era: Era) {
        let bit = ERAS.into_iter().find(|(known, _)| *known == era).map_or(0, |(_, bit)| bit);
        if self.eras.load(Ordering::Relaxed) & bit == 0 {
            self.eras.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// The eras of the revisions that it was seen to speak.
    pub(crate) fn eras(&self) -> impl Iterator<Item = Era> {
        let seen = self.eras.load(Ordering::Relaxed);
        ERAS.into_iter().filter(move |(_, bit)| seen & bit != 0).map(|(era, _)| era)
    }
}

#[derive(Debug)]
struct Open {
    server: Arc<Server>,
    session: Option<Arc<str>>,
}

/// The servers and their open connections.
#[derive(Debug)]
pub(crate) struct Directory {
    protected: ProtectedNames,
    servers: BTreeMap<u64, Arc<Server>>,
    connections: BTreeMap<u64, Open>,
    /// Marked as critical since it was asked for.
    marked: Vec<Arc<Server>>,
    next: u64,
}

impl Directory {
    pub(crate) fn new(protected: &[String]) -> Self {
        let protected = ProtectedNames::new(protected);
        Self { protected, servers: BTreeMap::new(), connections: BTreeMap::new(), marked: Vec::new(), next: 0 }
    }

    pub(crate) fn is_protected(&self, name: &str) -> bool {
        self.protected.covers(name)
    }

    pub(crate) fn protected(&self) -> &ProtectedNames {
        &self.protected
    }

    /// These names are protected, and no others. The servers that are now and were not before.
    pub(crate) fn protect(&mut self, names: &[String]) -> Vec<Arc<Server>> {
        self.protected = ProtectedNames::new(names);
        let is_new = |server: &&Arc<Server>| {
            let protected = server.critical.load(Ordering::SeqCst) || self.is_protected(&server.name);
            let was_protected = server.protected.swap(protected, Ordering::SeqCst);
            protected && !was_protected
        };
        self.servers.values().filter(is_new).cloned().collect()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn add_server(&mut self, name: &str, transport: Transport, critical: bool) -> (u64, Arc<Server>) {
        let (protected, critical) = (AtomicBool::new(critical || self.is_protected(name)), AtomicBool::new(critical));
        let server = Arc::new(Server { name: name.into(), transport, critical, protected, eras: AtomicU8::new(0) });
        let number = self.number();
        self.servers.insert(number, server.clone());
        (number, server)
    }

    /// Whether it is marked as critical from here on.
    pub(crate) fn mark(&mut self, server: &Arc<Server>, critical: bool) {
        server.critical.store(critical, Ordering::SeqCst);
        let protected = critical || self.is_protected(&server.name);
        let was_protected = server.protected.swap(protected, Ordering::SeqCst);
        self.marked.retain(|marked| !Arc::ptr_eq(marked, server));
        self.marked.extend((critical && !was_protected).then(|| server.clone()));
    }

    /// The servers that were marked as critical since this was asked last, and still are.
    pub(crate) fn take_marked(&mut self) -> Vec<Arc<Server>> {
        std::mem::take(&mut self.marked)
    }

    pub(crate) fn remove_server(&mut self, number: u64) {
        self.servers.remove(&number);
    }

    pub(crate) fn open(&mut self, server: &Arc<Server>, session: Option<&Arc<str>>) -> u64 {
        let number = self.number();
        self.connections.insert(number, Open { server: server.clone(), session: session.cloned() });
        number
    }

    pub(crate) fn close(&mut self, number: u64) {
        self.connections.remove(&number);
    }

    pub(crate) fn servers(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.values()
    }

    /// The open connections that a fault is about, in the order in which they were opened.
    pub(crate) fn connections(&self, matcher: &Matcher) -> Vec<u64> {
        let taken = self.connections.iter().filter(|(_, open)| takes(matcher, &open.server, open.session.as_deref()));
        taken.map(|(number, _)| *number).collect()
    }
}

/// Whether a fault is about the connections of this session to this server.
pub(crate) fn takes(matcher: &Matcher, server: &Server, session: Option<&str>) -> bool {
    !server.is_protected() && matcher.takes_server(&server.name, server.transport) && matcher.takes_session(session)
}
