//! Whether the traffic path can carry traffic, told to health.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mcpscope_health::{Reporter, Requirement, State};

/// The components that the traffic path carries.
const COMPONENTS: [&str; 3] = ["registry", "sessions", TRANSPORTS];

const TRANSPORTS: &str = "transports";

const RUNNING: [&str; 3] = ["Registry running", "Sessions running", "Transports running"];

/// So many requests in a row without an answer, and the path is taken not to work: one may be a matter of what was asked.
const MAX_UNANSWERED: u32 = 3;

/// As many reasons as anyone reads at a time.
const MAX_REASONS: usize = 3;

/// The traffic paths of an instance, one for each server, which together are the components `registry`, `sessions` and
/// `transports`, none of which has anything to do without a path, and a condition of readiness.
///
/// The components are critical, and the condition is not met, while a critical path fails, or all of them do. While others do,
/// `transports` is in warning.
#[derive(Clone, Debug)]
pub struct Paths(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reporter: Reporter,
    ready: Requirement,
    /// Held while the components are told, so that all of them are told the same.
    table: Mutex<Table>,
}

/// The paths in the order in which they were added.
#[derive(Debug, Default)]
struct Table {
    next: u64,
    paths: BTreeMap<u64, Path>,
    /// What `transports` was told last, if it was told something.
    told: Option<State>,
}

#[derive(Debug)]
struct Path {
    /// None if there is no other one to tell it from.
    name: Option<Box<str>>,
    is_critical: bool,
    state: PathState,
    /// Why it failed last, from then on until it works again.
    failed: Option<Box<str>>,
    /// Why it is close to its limits, if it is.
    crowded: Option<Box<str>>,
    /// Whether what is tried on the path says nothing, because there is no server yet, or no more.
    is_held: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum PathState {
    /// Nobody knows yet, for this reason.
    Unknown(Box<str>),
    Works,
    Fails(Box<str>),
}

impl Paths {
    /// None yet.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        let ready = reporter.require("traffic");
        Self(Arc::new(Shared { reporter, ready, table: Mutex::default() }))
    }

    /// Another path, which does not carry traffic yet: that to the server of this name. `is_critical` says whether the
    /// instance is no good without it.
    #[must_use]
    pub fn add(&self, name: &str, is_critical: bool) -> Traffic {
        self.insert(Some(name.into()), is_critical)
    }

    fn insert(&self, name: Option<Box<str>>, is_critical: bool) -> Traffic {
        let state = PathState::Unknown("not yet".into());
        let mut table = self.0.lock();
        let id = table.next;
        table.next += 1;
        table.paths.insert(id, Path { name, is_critical, state, failed: None, crowded: None, is_held: false });
        self.0.tell(&mut table);
        Traffic { paths: self.clone(), id, works: AtomicBool::default(), unanswered: AtomicU32::default() }
    }
}

impl Shared {
    // Every change is a single assignment or insertion: a panic in another holder leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells health what there is now.
    fn tell(&self, table: &mut Table) {
        let unmet = table.unmet();
        match &unmet {
            Some(reason) => self.ready.unmet(reason),
            None => self.ready.met(),
        }
        let failing: Vec<&Path> = table.paths.values().filter(|path| path.reason_to_fail().is_some()).collect();
        let (all_fail, one_works) = (failing.len() == table.paths.len(), table.paths.values().any(Path::works));
        let crowded: Vec<String> = table.paths.values().filter_map(Path::crowded).collect();
        let crowded = reasons(crowded.into_iter());
        let reasons = reasons(failing.iter().map(|path| path.described()));
        let [registry, sessions, transports] = RUNNING;
        let critical = [(State::Critical, "Registry not running"), (State::Critical, "Session manager not running")];
        let running = [(State::Healthy, registry), (State::Healthy, sessions)];
        let ([registry, sessions], transports) = if failing.is_empty() {
            // As long as nothing is known of any, it stays as it was, but not for the reason of a path that may be gone.
            if !one_works {
                if let (Some(reason), Some(state @ (State::Warning | State::Critical))) = (unmet, table.told) {
                    self.reporter.set(TRANSPORTS, state, &reason, SystemTime::now());
                }
                return;
            }
            let state = if crowded.is_empty() { State::Healthy } else { State::Warning };
            (running, (state, if crowded.is_empty() { transports } else { crowded.as_str() }))
        } else if all_fail || failing.iter().any(|path| path.is_critical) {
            (critical, (State::Critical, reasons.as_str()))
        } else {
            (running, (State::Warning, reasons.as_str()))
        };
        let at = SystemTime::now();
        for (component, (state, message)) in COMPONENTS.into_iter().zip([registry, sessions, transports]) {
            self.reporter.set(component, state, message, at);
        }
        table.told = Some(transports.0);
    }
}

impl Table {
    /// Why no traffic can be carried, or not all that must be.
    fn unmet(&self) -> Option<String> {
        let (working, not_working): (Vec<&Path>, Vec<&Path>) = self.paths.values().partition(|path| path.works());
        let missing: Vec<&&Path> = not_working.iter().filter(|path| path.is_critical || working.is_empty()).collect();
        if self.paths.is_empty() {
            Some("no server".to_owned())
        } else if missing.is_empty() {
            None
        } else {
            Some(reasons(missing.iter().map(|path| path.described())))
        }
    }
}

impl Path {
    fn works(&self) -> bool {
        self.state == PathState::Works
    }

    fn reason_to_fail(&self) -> Option<&str> {
        match &self.state {
            PathState::Fails(reason) => Some(reason),
            PathState::Unknown(_) | PathState::Works => None,
        }
    }

    /// Why it is close to its limits though it works, with its name if it has one.
    fn crowded(&self) -> Option<String> {
        let reason = self.crowded.as_ref().filter(|_| self.works())?;
        Some(self.name.as_ref().map_or_else(|| reason.to_string(), |name| format!("{name}: {reason}")))
    }

    /// Why it does not work, with its name if it has one.
    fn described(&self) -> String {
        let reason = match &self.state {
            PathState::Unknown(reason) | PathState::Fails(reason) => reason,
            PathState::Works => return String::new(),
        };
        self.name.as_ref().map_or_else(|| reason.to_string(), |name| format!("{name}: {reason}"))
    }
}

/// The first of them, and how many there are besides.
fn reasons(all: impl ExactSizeIterator<Item = String>) -> String {
    let more = all.len().saturating_sub(MAX_REASONS);
    let mut said = all.take(MAX_REASONS).collect::<Vec<_>>().join("; ");
    if more > 0 {
        said += &format!("; and {more} more");
    }
    said
}

/// Reports whether one traffic path works. Dropped, the path is gone.
#[derive(Debug)]
pub struct Traffic {
    paths: Paths,
    id: u64,
    works: AtomicBool,
    /// Requests without an answer since the last answer.
    unanswered: AtomicU32,
}

impl Traffic {
    /// The only path of an instance, which does not carry traffic yet.
    #[must_use]
    pub fn new(reporter: Reporter) -> Self {
        Paths::new(reporter).insert(None, true)
    }

    /// It works.
    pub fn works(&self) {
        // Once for every message: only a change is worth a lock, or a write.
        if self.unanswered.load(Ordering::Relaxed) > 0 {
            self.unanswered.store(0, Ordering::Relaxed);
        }
        if !self.is_working() {
            self.tried(PathState::Works);
        }
    }

    /// It does not work, for this reason.
    pub fn fails(&self, reason: &str) {
        self.tried(PathState::Fails(reason.into()));
    }

    /// The server was reached and gave no answer, for this reason: three times in a row, and the path does not work.
    pub fn unanswered(&self, reason: &str) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        if self.wants_answer() {
            self.fails(reason);
        }
    }

    /// Whether it does not work as long as there is no answer, although the server can be reached.
    pub(crate) fn wants_answer(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) >= MAX_UNANSWERED
    }

    /// It has no server yet, for this reason: whatever is tried on it says nothing until [`Traffic::has_server`].
    pub fn awaits_server(&self, reason: &str) {
        self.change(|path| {
            path.is_held = true;
            path.state = PathState::Unknown(reason.into());
        });
    }

    /// It has no server any more, for this reason: whatever is tried on it says nothing until [`Traffic::has_server`].
    pub fn lost_server(&self, reason: &str) {
        self.change(|path| {
            path.is_held = true;
            path.state = PathState::Fails(reason.into());
        });
    }

    /// It has a server: from now on what is tried on it says whether it works.
    pub fn has_server(&self) {
        self.change(|path| path.is_held = false);
    }

    /// Whether the instance is no good without it from now on.
    pub fn set_critical(&self, is_critical: bool) {
        self.change(|path| path.is_critical = is_critical);
    }

    /// Takes the path away: what it still carries says nothing any more.
    pub fn retire(&self) {
        let shared = &self.paths.0;
        let mut table = shared.lock();
        if table.paths.remove(&self.id).is_some() && !table.paths.is_empty() {
            shared.tell(&mut table);
        }
    }

    pub(crate) fn is_working(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    fn tried(&self, state: PathState) {
        self.change(|path| {
            if !path.is_held {
                path.state = state;
            }
        });
    }

    /// It is close to its limits for this reason, or not any more. A path that does not work stays what it is.
    pub(crate) fn is_crowded(&self, reason: Option<String>) {
        self.change(|path| path.crowded = reason.map(Into::into));
    }

    fn change(&self, change: impl FnOnce(&mut Path)) {
        let shared = &self.paths.0;
        let mut table = shared.lock();
        let Some(path) = table.paths.get_mut(&self.id) else { return };
        change(path);
        self.works.store(path.works(), Ordering::Relaxed);
        let server = path.name.as_deref();
        if let Some(reason) = path.reason_to_fail() {
            if path.failed.is_none() {
                tracing::warn!(server, reason, "the traffic path does not work");
            }
            path.failed = Some(reason.into());
        } else if path.works()
            && let Some(failed) = path.failed.take()
        {
            // As loud as the failure was: whoever read that wants to know.
            tracing::warn!(server, failed, "the traffic path works again");
        }
        shared.tell(&mut table);
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.retire();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mcpscope_health::View;

    use super::*;

    fn components(view: &View) -> Vec<(String, State, String)> {
        let report = view.report(Instant::now(), SystemTime::now());
        report.components.into_iter().map(|(name, component)| (name, component.state, component.message)).collect()
    }

    fn expected(state: State, messages: [&str; 3]) -> Vec<(String, State, String)> {
        let component = |(name, message): (&str, &str)| (name.to_owned(), state, message.to_owned());
        COMPONENTS.into_iter().zip(messages).map(component).collect()
    }

    fn transports(view: &View) -> (State, String) {
        let (_, state, message) = components(view).swap_remove(2);
        (state, message)
    }

    fn missing(view: &View) -> String {
        view.readiness().missing.iter().map(|missing| missing.reason.as_str()).collect()
    }

    #[test]
    fn what_it_carries_is_as_it_is() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let traffic = Traffic::new(reporter);
        assert_eq!((components(&view), view.readiness().ready), (Vec::new(), false), "nothing is known yet");
        traffic.works();
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Healthy, RUNNING), true));
        traffic.fails("connection refused");
        let gone = ["Registry not running", "Session manager not running", "connection refused"];
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Critical, gone), false));
        assert_eq!(view.readiness().missing[0].reason, "connection refused");
        traffic.works();
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Healthy, RUNNING), true));
        drop(traffic);
        assert!(!view.readiness().ready, "whoever had to tell is gone");
    }

    #[test]
    fn one_of_several_is_a_warning_unless_it_is_critical() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let paths = Paths::new(reporter);
        let (one, two) = (paths.add("one", false), paths.add("two", false));
        assert_eq!(missing(&view), "one: not yet; two: not yet");
        two.works();
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Healthy, RUNNING), true));
        one.fails("refused");
        assert_eq!(transports(&view), (State::Warning, "one: refused".to_owned()));
        assert_eq!(components(&view)[..2], expected(State::Healthy, RUNNING)[..2]);
        assert!(view.readiness().ready);
        one.set_critical(true);
        assert_eq!(transports(&view), (State::Critical, "one: refused".to_owned()));
        assert_eq!(missing(&view), "one: refused");
        one.set_critical(false);
        two.fails("refused, too");
        let gone = ["Registry not running", "Session manager not running", "one: refused; two: refused, too"];
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Critical, gone), false));
        one.works();
        assert_eq!(transports(&view), (State::Warning, "two: refused, too".to_owned()));
        drop(two);
        assert_eq!((components(&view), view.readiness().ready), (expected(State::Healthy, RUNNING), true));
        let three = paths.add("three", true);
        assert_eq!((transports(&view).0, missing(&view)), (State::Healthy, "three: not yet".to_owned()));
        three.retire();
        three.fails("too late");
        assert!(view.readiness().ready);
    }

    #[test]
    fn without_a_server_nothing_else_is_known() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let paths = Paths::new(reporter);
        let path = paths.add("one", false);
        path.awaits_server("server starting");
        path.works();
        path.fails("refused");
        assert_eq!((components(&view), missing(&view)), (Vec::new(), "one: server starting".to_owned()));
        path.has_server();
        path.works();
        assert!(view.readiness().ready);
        path.lost_server("server given up");
        path.works();
        path.fails("refused");
        assert_eq!(transports(&view), (State::Critical, "one: server given up".to_owned()));
        path.has_server();
        assert!(!view.readiness().ready);
        path.works();
        assert!(view.readiness().ready);
    }

    #[test]
    fn the_reason_is_never_that_of_a_path_that_is_gone() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let paths = Paths::new(reporter);
        let one = paths.add("one", false);
        one.lost_server("server given up");
        assert_eq!(transports(&view), (State::Critical, "one: server given up".to_owned()));
        one.retire();
        let two = paths.add("two", false);
        two.awaits_server("server starting");
        assert_eq!(
            transports(&view),
            (State::Critical, "two: server starting".to_owned()),
            "it is none the better yet"
        );
        let three = paths.add("three", false);
        three.works();
        two.lost_server("gone");
        assert_eq!(transports(&view), (State::Warning, "two: gone".to_owned()));
        three.awaits_server("server starting");
        two.retire();
        assert_eq!(transports(&view), (State::Warning, "three: server starting".to_owned()));
        three.has_server();
        three.works();
        assert_eq!(components(&view), expected(State::Healthy, RUNNING));
        three.awaits_server("server starting");
        assert_eq!(transports(&view).0, State::Healthy, "nothing is known against it");
    }

    #[test]
    fn many_reasons_are_counted() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let paths = Paths::new(reporter);
        let traffic: Vec<Traffic> = ["a", "b", "c", "d", "e"].map(|name| paths.add(name, false)).into();
        traffic.iter().for_each(|traffic| traffic.fails("no"));
        assert_eq!(missing(&view), "a: no; b: no; c: no; and 2 more");
    }

    #[test]
    fn what_gets_no_answer_again_and_again_does_not_work() {
        let (reporter, view) = mcpscope_health::channel(Instant::now());
        let traffic = Traffic::new(reporter);
        traffic.works();
        for _ in 0..2 {
            traffic.unanswered("closed");
            traffic.unanswered("closed");
            assert!(view.is_ready(), "it may be what was asked");
            traffic.works();
        }
        for _ in 0..MAX_UNANSWERED {
            traffic.unanswered("closed");
        }
        assert_eq!((view.readiness().missing[0].reason.as_str(), traffic.wants_answer()), ("closed", true));
        traffic.works();
        assert_eq!((view.is_ready(), traffic.wants_answer()), (true, false));
    }

    #[test]
    fn a_failure_and_its_end_are_logged_once_and_at_the_default_level() {
        let (reporter, _view) = mcpscope_health::channel(Instant::now());
        let traffic = Traffic::new(reporter);
        let log = tempfile::NamedTempFile::new().unwrap();
        let to_log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false).without_time();
        let writer = log.reopen().unwrap();
        tracing::subscriber::with_default(to_log.with_writer(writer).finish(), || {
            traffic.works();
            for _ in 0..2 {
                traffic.fails("connection refused");
                traffic.fails("no such host");
                traffic.works();
                traffic.works();
            }
        });
        let text = std::fs::read_to_string(log.path()).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_once("traffic: ").unwrap().1).collect();
        let fails = "the traffic path does not work reason=\"connection refused\"";
        let works = "the traffic path works again failed=\"no such host\"";
        assert_eq!(lines, [fails, works, fails, works]);
    }
}
