//! Leases: faults that are active, each with its end, in a table that is swapped as a whole.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use mcpscope_core::{Direction, Effect, FaultId, Injection, Ratio};

use crate::Message;
use crate::directory::Directory;
use crate::draw::Key;
use crate::experiment::Experiment;
use crate::fault::{Chain, Fault};
use crate::journal::Hit;
use crate::network::Network;
use crate::outage::Outage;
use crate::status::Cause;

/// Is told when a fault begins or ends, by the thread that does it: to be quick, never to wait, and not to call the controller.
pub trait Watch: std::fmt::Debug + Send + Sync {
    /// The faults are not those of before: what is held may have to go on.
    fn changed(&self);

    /// How many messages it still holds back because of this fault; none if it does not know. After the end of a fault
    /// anything but zero is a leak.
    fn holds(&self, fault: FaultId) -> Option<u64> {
        let _ = fault;
        None
    }
}

/// An emergency stop as it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    pub(crate) cause: Cause,
    pub(crate) at: Instant,
}

/// What the data path and the controller share. The data path takes no lock of it but the directory's, and that only when
/// a connection opens or closes; an emergency stop takes none at all.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Whether the table may have something in it that messages are to be shown to, and something that connections are led by.
    active: AtomicBool,
    leads: AtomicBool,
    table: ArcSwap<Vec<Arc<Lease>>>,
    /// Leases of an earlier epoch are void: what ends every fault at once.
    epoch: AtomicU64,
    /// Not yet taken note of by the controller.
    pub(crate) stop: ArcSwapOption<Stop>,
    watchers: ArcSwap<Vec<Weak<dyn Watch>>>,
    /// The first of the experiments that run, as long as there is one that is not closed; else [`NOBODY`].
    followed_since: AtomicU64,
    /// Those of experiments that are not closed, and for which it matters what becomes of calls.
    outages: ArcSwap<Vec<Arc<Outage>>>,
    pub(crate) directory: Mutex<Directory>,
    hits: SyncSender<Hit>,
}

/// A fault that is active until it expires or is ended.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: FaultId,
    pub(crate) experiment: Arc<Experiment>,
    pub(crate) seed: u64,
    epoch: u64,
    pub(crate) started: Instant,
    pub(crate) expires_at: Instant,
    ended: AtomicBool,
    /// Decisions that are being made now.
    deciding: AtomicU32,
    members: Members,
    /// What connections are led through, once it is there.
    pub(crate) network: OnceLock<Arc<dyn Network>>,
    pub(crate) counters: Counters,
}

/// What a lease has counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Messages that matched, on chosen connections.
    pub(crate) matched: AtomicU64,
    /// Those that were given an effect, and connections that were as a whole.
    pub(crate) injected: AtomicU64,
    /// Hits of messages alone: what `max_hits` limits.
    hits: AtomicU64,
    /// Effects that were acted on.
    pub(crate) observed: AtomicU64,
    /// Hits that found no place in the journal.
    pub(crate) unjournalled: AtomicU64,
    /// Connections that were seen and those of them that are chosen.
    pub(crate) connections: AtomicU64,
    pub(crate) chosen: AtomicU64,
}

/// A connection as a lease sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The so-many-th that the lease saw.
    pub(crate) ordinal: u64,
    pub(crate) chosen: bool,
}

/// Which connections are chosen: of any number from the first on, the share rounded up.
#[derive(Debug)]
struct Members {
    share: Ratio,
    /// Those that were there from the start.
    first: HashMap<u64, Member>,
    next: AtomicU64,
}

impl Members {
    /// `connections` are the numbers of those that are there, in order; which of them are chosen is drawn.
    fn new(share: Ratio, connections: &[u64], seed: u64) -> Self {
        let mut ranks: Vec<_> = (0..connections.len()).collect();
        let mut draws = Key::connections(seed).block(0);
        for last in (1..ranks.len()).rev() {
            ranks.swap(last, draws.below(last + 1));
        }
        let member =
            |(ordinal, rank): (usize, usize)| Member { ordinal: ordinal as u64, chosen: is_chosen(share, rank as u64) };
        let members = ranks.into_iter().enumerate().map(member);
        let first = connections.iter().copied().zip(members).collect();
        Self { share, first, next: AtomicU64::new(connections.len() as u64) }
    }

    fn of(&self, connection: u64) -> Member {
        self.first.get(&connection).copied().unwrap_or_else(|| {
            let ordinal = self.next.fetch_add(1, Ordering::Relaxed);
            Member { ordinal, chosen: is_chosen(self.share, ordinal) }
        })
    }
}

fn is_chosen(share: Ratio, rank: u64) -> bool {
    // What a product is above a whole number by rounding alone is not rounded up.
    let chosen = |connections: u64| (share.get() * connections as f64 - 1e-9).ceil();
    chosen(rank + 1) > chosen(rank)
}

/// What one direction of a connection has seen of a lease.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Messages so far.
    ordinal: u64,
    chain: Chain,
}

/// Counts down when a decision has been made, also by a panic.
struct Deciding<'a>(&'a AtomicU32);

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a new lease is of.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) id: FaultId,
    pub(crate) experiment: Arc<Experiment>,
    pub(crate) seed: u64,
    /// The largest share of the connections that it may touch.
    pub(crate) scope: Ratio,
}

impl Lease {
    pub(crate) fn new(shared: &Shared, terms: Terms, epoch: u64, now: Instant) -> Self {
        let Terms { id, experiment, seed, scope } = terms;
        let share = if experiment.fault.connections() < scope { experiment.fault.connections() } else { scope };
        let connections = shared.directory().connections(&experiment.matcher);
        Self {
            id,
            seed,
            epoch,
            started: now,
            expires_at: now + experiment.duration,
            ended: AtomicBool::new(false),
            deciding: AtomicU32::new(0),
            members: Members::new(share, &connections, seed),
            network: OnceLock::new(),
            counters: Counters::default(),
            experiment,
        }
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Whether no decision can come from it any more, nor one be on its way into the journal.
    pub(crate) fn is_quiet(&self) -> bool {
        self.deciding.load(Ordering::SeqCst) == 0
    }

    /// Whether it can be about a connection that it has not met; what it takes is known from the start in some cases.
    pub(crate) fn takes_connection(&self, connection: u64) -> bool {
        !self.experiment.matcher.takes_known_only() || self.members.first.contains_key(&connection)
    }

    pub(crate) fn is_alive(&self, shared: &Shared, now: Instant) -> bool {
        now < self.expires_at && !self.ended.load(Ordering::SeqCst) && self.epoch == shared.epoch.load(Ordering::SeqCst)
    }

    /// A connection that it has not seen before; none if it is not about it.
    pub(crate) fn meet(&self, connection: u64) -> Member {
        let member = self.members.of(connection);
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        self.counters.chosen.fetch_add(u64::from(member.chosen), Ordering::Relaxed);
        member
    }

    /// What becomes of a message on a chosen connection.
    pub(crate) fn decide(
        &self,
        shared: &Shared,
        seen: &mut Seen,
        place: &Place<'_>,
        message: &Message<'_>,
        now: Instant,
    ) -> Option<Injection> {
        let (matcher, fault) = (&self.experiment.matcher, &self.experiment.fault);
        if matches!(fault, Fault::Network(_)) {
            // Which messages its packets are of nobody knows.
            return None;
        }
        if !self.is_alive(shared, now) || !matcher.takes_direction(place.direction) {
            return None;
        }
        let key = Key::messages(self.seed, self.experiment.scenario, place.member.ordinal, place.direction);
        let ordinal = seen.ordinal;
        seen.ordinal += 1;
        seen.chain = fault.advanced(key, ordinal, seen.chain);
        if !matcher.takes_message(place.transport, message) {
            return None;
        }
        self.deciding.fetch_add(1, Ordering::SeqCst);
        let _deciding = Deciding(&self.deciding);
        // From here on whoever ended it waits for us, or we see that it was ended.
        if !self.is_alive(shared, now) {
            return None;
        }
        let number = self.counters.matched.fetch_add(1, Ordering::Relaxed) + 1;
        if !matcher.count.takes(number) {
            return None;
        }
        let drawn = fault.drawn(key, ordinal, seen.chain);
        let effect = drawn.effect?;
        let most = matcher.count.max_hits.unwrap_or(u64::MAX);
        let one_more = |hits| (hits < most).then_some(hits + 1);
        self.counters.hits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        self.journal(shared, || Hit {
            experiment: self.id,
            at: now.saturating_duration_since(self.started),
            rule: self.experiment.scenario,
            connection: place.member.ordinal,
            direction: Some(place.direction),
            ordinal,
            number,
            kind: Some(message.kind),
            method: message.method.map(|method| mcpscope_core::bounded(method, MAX_NAME).into()),
            tool: message.tool.map(|tool| mcpscope_core::bounded(tool, MAX_NAME).into()),
            draw: drawn.draw,
            effect: effect.clone(),
        });
        Some(Injection { fault: self.id, effect, ends: self.expires_at })
    }

    /// What becomes of a chosen connection as a whole.
    pub(crate) fn decide_connection(
        &self,
        shared: &Shared,
        member: Member,
        is_new: bool,
        now: Instant,
    ) -> Option<Injection> {
        let effect = self.experiment.fault.on_connection(is_new)?;
        self.deciding.fetch_add(1, Ordering::SeqCst);
        let _deciding = Deciding(&self.deciding);
        if !self.is_alive(shared, now) {
            return None;
        }
        self.journal(shared, || self.hit(member, effect.clone(), now));
        Some(Injection { fault: self.id, effect, ends: self.expires_at })
    }

    /// Leads a connection to the server through the network of this fault, for a chosen connection.
    pub(crate) fn leads<T>(
        &self,
        shared: &Shared,
        member: Member,
        now: Instant,
        lead: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.deciding.fetch_add(1, Ordering::SeqCst);
        let _deciding = Deciding(&self.deciding);
        if !self.is_alive(shared, now) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.journal(shared, || self.hit(member, Effect::Network, now));
        let led = lead()?;
        self.counters.observed.fetch_add(1, Ordering::Relaxed);
        Ok(led)
    }

    /// What is done to a connection as a whole, as a journal has it.
    fn hit(&self, member: Member, effect: Effect, now: Instant) -> Hit {
        Hit {
            experiment: self.id,
            at: now.saturating_duration_since(self.started),
            rule: self.experiment.scenario,
            connection: member.ordinal,
            direction: None,
            ordinal: 0,
            number: 0,
            kind: None,
            method: None,
            tool: None,
            draw: 0.0,
            effect,
        }
    }

    fn journal(&self, shared: &Shared, hit: impl FnOnce() -> Hit) {
        self.counters.injected.fetch_add(1, Ordering::Relaxed);
        if shared.hits.try_send(hit()).is_err() {
            self.counters.unjournalled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// No experiment has this number.
const NOBODY: u64 = 0;

/// Longest name that a journal keeps, in bytes.
const MAX_NAME: usize = 128;

/// Where a message is.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) transport: mcpscope_core::Transport,
    pub(crate) direction: Direction,
    pub(crate) member: &'a Member,
}

impl Shared {
    pub(crate) fn new(hits: SyncSender<Hit>, directory: Directory) -> Self {
        Self {
            active: AtomicBool::new(false),
            leads: AtomicBool::new(false),
            table: ArcSwap::default(),
            epoch: AtomicU64::new(0),
            stop: ArcSwapOption::empty(),
            watchers: ArcSwap::default(),
            followed_since: AtomicU64::new(NOBODY),
            outages: ArcSwap::default(),
            directory: Mutex::new(directory),
            hits,
        }
    }

    /// The one load that a message costs while nothing is active.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// The one load that a connection costs while none is led.
    #[inline]
    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn table(&self) -> arc_swap::Guard<Arc<Vec<Arc<Lease>>>> {
        self.table.load()
    }

    pub(crate) fn is_live(&self, fault: FaultId, now: Instant) -> bool {
        self.table.load().iter().any(|lease| lease.id == fault && lease.is_alive(self, now))
    }

    /// These are the leases from now on. For the controller, one thread at a time.
    pub(crate) fn publish(&self, leases: Vec<Arc<Lease>>) {
        let leads = |lease: &Arc<Lease>| matches!(lease.experiment.fault, Fault::Network(_));
        let (is_leading, is_active) = (leases.iter().any(leads), leases.iter().any(|lease| !leads(lease)));
        self.table.store(Arc::new(leases));
        self.active.store(is_active, Ordering::SeqCst);
        self.leads.store(is_leading, Ordering::SeqCst);
        self.changed();
    }

    /// Ends every fault: no decision begins after this returns but by leases made later.
    pub(crate) fn end_all(&self, stop: Stop) {
        self.stop.store(Some(Arc::new(stop)));
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.table.store(Arc::default());
        self.active.store(false, Ordering::SeqCst);
        self.leads.store(false, Ordering::SeqCst);
        self.changed();
    }

    fn changed(&self) {
        self.watchers.load().iter().filter_map(Weak::upgrade).for_each(|watcher| watcher.changed());
    }

    /// How many messages are held back because of this fault, as far as whoever holds them says so.
    pub(crate) fn held(&self, fault: FaultId) -> Option<u64> {
        let watchers = self.watchers.load();
        watchers.iter().filter_map(Weak::upgrade).filter_map(|watcher| watcher.holds(fault)).reduce(u64::saturating_add)
    }

    pub(crate) fn watch(&self, watcher: &Arc<dyn Watch>) {
        self.watchers.rcu(|watchers| {
            let kept = watchers.iter().filter(|watcher| watcher.strong_count() > 0).cloned();
            kept.chain([Arc::downgrade(watcher)]).collect::<Vec<_>>()
        });
    }

    /// Whether anybody wants to know what becomes of calls: one load of each call while nobody does.
    #[inline]
    pub(crate) fn is_followed(&self) -> bool {
        self.followed_since().is_some()
    }

    /// Since the beginning of which experiment; the same single load.
    #[inline]
    pub(crate) fn followed_since(&self) -> Option<FaultId> {
        Some(self.followed_since.load(Ordering::Relaxed)).filter(|number| *number != NOBODY).map(FaultId)
    }

    /// An experiment begins, which wants to know; `is_first` says that no other runs. For the controller, one thread at a time.
    pub(crate) fn follow(&self, fault: FaultId, is_first: bool) {
        if is_first || !self.is_followed() {
            self.followed_since.store(fault.0, Ordering::Relaxed);
        }
    }

    /// The calls of its server are of interest from now on. Those before it are over. For the controller, one thread at a time.
    pub(crate) fn add_outage(&self, outage: &Arc<Outage>) {
        let there = self.outages.load();
        there.iter().filter(|other| other.target() == outage.target()).for_each(|other| other.supersede());
        let open = there.iter().filter(|other| other.is_open());
        self.outages.store(Arc::new(open.chain([outage]).cloned().collect()));
    }

    /// Of these outages, and of nothing if there is no experiment any more, it is of interest. For the controller, one thread at a time.
    pub(crate) fn keep_following<'o>(&self, is_wanted: bool, outages: impl Iterator<Item = &'o Arc<Outage>>) {
        if self.is_followed() {
            if !is_wanted {
                self.followed_since.store(NOBODY, Ordering::Relaxed);
            }
            self.outages.store(Arc::new(outages.filter(|outage| outage.is_open()).cloned().collect()));
        }
    }

    /// A call of this server has ended.
    pub(crate) fn call_ended(&self, server: &str, is_good: bool, began: Instant, ended: Instant) {
        let outages = self.outages.load();
        let its = outages.iter().filter(|outage| outage.target() == server);
        its.for_each(|outage| outage.saw(is_good, began, ended));
    }

    /// Opening and closing a connection, and starting an experiment, look in here; a message does not.
    pub(crate) fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_observed(&self, fault: FaultId) {
        if let Some(lease) = self.table.load().iter().find(|lease| lease.id == fault) {
            lease.counters.observed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_number_of_connections_the_share_rounded_up_is_chosen() {
        for percent in 0..=100_u64 {
            let share = Ratio::new(percent as f64 / 100.0).unwrap();
            let mut chosen = 0;
            for connections in 1..=300_u64 {
                chosen += u64::from(is_chosen(share, connections - 1));
                assert_eq!(chosen, (percent * connections).div_ceil(100), "{percent} % of {connections}");
            }
        }
    }

    #[test]
    fn who_is_chosen_among_those_that_are_there_is_drawn() {
        let share = Ratio::new(0.3).unwrap();
        let connections: Vec<_> = (100..110).collect();
        let chosen = |seed| {
            let members = Members::new(share, &connections, seed);
            connections.iter().filter(|number| members.of(**number).chosen).copied().collect::<Vec<_>>()
        };
        assert!((0..100).all(|seed| chosen(seed).len() == 3));
        assert_eq!(chosen(1), chosen(1));
        assert!((0..100).any(|seed| chosen(seed) != chosen(0)));
        let members = Members::new(share, &connections, 1);
        assert_eq!(members.of(500), Member { ordinal: 10, chosen: true }, "the fourth of eleven");
        assert_eq!(members.of(501).ordinal, 11);
    }

    fn shared() -> Shared {
        Shared::new(std::sync::mpsc::sync_channel(10).0, Directory::new(&[]))
    }

    fn lease(shared: &Shared, now: Instant) -> Arc<Lease> {
        let request = crate::Request::new("lost_request");
        let experiment = Arc::new(Experiment::read(&request, std::time::Duration::from_secs(60), None).unwrap());
        let terms = Terms { id: FaultId(1), experiment, seed: 1, scope: Ratio::ONE };
        Arc::new(Lease::new(shared, terms, shared.epoch(), now))
    }

    /// As a thread asks that has the table of before.
    fn decides(lease: &Lease, shared: &Shared, now: Instant) -> bool {
        let message = Message { kind: crate::MessageKind::Request, method: Some("ping"), tool: None, protocol: None };
        let member = &Member { ordinal: 0, chosen: true };
        let place = Place { transport: mcpscope_core::Transport::Stdio, direction: Direction::ToServer, member };
        let decided = lease.decide(shared, &mut Seen::default(), &place, &message, now).is_some();
        assert!(lease.is_quiet());
        decided
    }

    #[test]
    fn a_lease_that_has_ended_decides_nothing_even_for_those_who_still_have_it() {
        let (shared, now) = (shared(), Instant::now());
        let one = lease(&shared, now);
        assert!(decides(&one, &shared, now));
        one.end();
        assert!(!decides(&one, &shared, now), "it was ended");
        let two = lease(&shared, now);
        assert!(decides(&two, &shared, now) && !decides(&two, &shared, two.expires_at), "it expires");
        shared.end_all(Stop { cause: Cause::Person, at: now });
        assert!(!decides(&two, &shared, now), "all were ended");
        shared.publish(vec![two]);
        assert!(!shared.is_live(FaultId(1), now), "it was made before the stop, and came into the table after it");
        let three = lease(&shared, now);
        assert!(decides(&three, &shared, now), "it was made after the stop");
    }

    #[test]
    fn calls_see_only_the_outages_that_are_not_over() {
        let (shared, at) = (shared(), Instant::now());
        let seen = || shared.outages.load().iter().map(|outage| outage.target().to_owned()).collect::<Vec<_>>();
        shared.follow(FaultId(1), true);
        let outages = ["a", "b", "a"].map(|target| Arc::new(Outage::new(target)));
        outages.iter().for_each(|outage| shared.add_outage(outage));
        assert_eq!(seen(), ["b", "a"], "the second crash of a went over the first");
        outages[2].ended(at);
        outages[2].restarted(at);
        shared.call_ended("a", true, at, at);
        shared.keep_following(true, outages.iter());
        assert_eq!(seen(), ["b"], "a is of use again");
    }
}
