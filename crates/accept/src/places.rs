//! A door that a newcomer always gets through: when all places are taken, whoever misses his least gives it up.

use std::fmt;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use crate::Door;

/// How long a connection must have been idle, or its answers under way, before it can be ended for another one: most answers
/// are given by then, and who has had one may be about to ask again.
const SETTLED: Duration = Duration::from_secs(1);

/// The same of those who have asked for nothing yet, where they are most: a sound client asks at once.
const SILENT: Duration = Duration::from_millis(50);

/// How long a newcomer waits at most until somebody is told to end, whoever that is: those who ask again before they are
/// settled, each time, would keep him out for good.
const PATIENCE: Duration = Duration::from_secs(2);

/// A [`Door`] that lets in whoever comes: for what has to be reached also while somebody holds as many connections as there
/// may be.
///
/// If all places are taken, one of the connections is told to end. While more than half of them have asked for nothing yet, that
/// is the oldest of those. Else it is whoever has been idle for longest, or, where nobody is, the one whose answers have been
/// under way for longest; in both cases for a second at least, so that nobody goes who is only one of many. After two seconds
/// that does not count any more.
#[derive(Debug)]
pub struct OpenDoor {
    door: Door,
    places: Arc<Places>,
    /// Who has no place yet, and since when.
    newcomer: Option<(TcpStream, SocketAddr, Instant)>,
}

/// One of the places behind an [`OpenDoor`]; dropping it makes it free.
#[derive(Debug)]
#[must_use = "the place is free when it is dropped"]
pub struct Place {
    // Gone before its permit is free.
    connection: Arc<Connection>,
    _permit: OwnedSemaphorePermit,
}

/// What the connection in a [`Place`] does. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<State>>);

/// An answer, from its request on until it is dropped.
#[derive(Debug)]
#[must_use = "the answer has been given when it is dropped"]
pub struct UnderWay(Activity);

struct Places {
    free: Arc<Semaphore>,
    max: usize,
    on_evicted: Box<dyn Fn() + Send + Sync>,
    /// In the order in which they came; those that have ended are dead.
    taken: Mutex<Vec<Weak<Connection>>>,
}

#[derive(Debug)]
struct Connection {
    activity: Activity,
    end: Notify,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Answers under way.
    answers: usize,
    was_answered: bool,
    /// Since when it has been idle, or not.
    since: Instant,
    is_to_end: bool,
}

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For one that was told to end.
    End,
    /// Somebody can be told to at that time.
    Until(Instant),
}

impl OpenDoor {
    /// A door to `max_connections` places, at least 1; `what` it leads to is named in the log, and `on_evicted` called for each
    /// connection that is told to end.
    #[must_use]
    pub fn new(
        what: &'static str,
        listeners: Vec<TcpListener>,
        max_connections: usize,
        on_evicted: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let max = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        let free = Arc::new(Semaphore::new(max));
        let places = Places { free, max, on_evicted: Box::new(on_evicted), taken: Mutex::default() };
        // The door itself holds nobody back.
        let door = Door::new(what, listeners, Semaphore::MAX_PERMITS);
        Self { door, places: Arc::new(places), newcomer: None }
    }

    /// The next connection. Cancelling it loses no client.
    pub async fn next(&mut self) -> (TcpStream, SocketAddr, Place) {
        let since = match &self.newcomer {
            Some((.., since)) => *since,
            None => {
                let (stream, peer) = self.door.arrival().await;
                let since = Instant::now();
                self.newcomer = Some((stream, peer, since));
                since
            }
        };
        let place = self.places.take(since).await;
        match self.newcomer.take() {
            Some((stream, peer, _)) => (stream, peer, place),
            // Just put there.
            None => pending().await,
        }
    }
}

impl Place {
    /// Waits until the connection is to end, because another one needs the place.
    pub async fn evicted(&self) {
        self.connection.end.notified().await;
    }

    /// Whom to tell what the connection does.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.connection.activity.clone()
    }
}

impl Activity {
    /// A request has come, and will be answered.
    pub fn begin(&self) -> UnderWay {
        let mut state = self.state();
        if state.answers == 0 {
            state.since = Instant::now();
        }
        state.answers += 1;
        UnderWay(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answers = state.answers.saturating_sub(1);
        state.was_answered = true;
        if state.answers == 0 {
            state.since = Instant::now();
        }
    }
}

impl Places {
    /// A place, as soon as there is one, for somebody who has waited since then.
    async fn take(&self, since: Instant) -> Place {
        loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return self.occupied(permit);
            }
            let wait = self.make_room(since + PATIENCE, Instant::now());
            let settled = async {
                match wait {
                    Wait::End => pending().await,
                    Wait::Until(time) => sleep_until(time).await,
                }
            };
            tokio::select! {
                // Nobody closes it.
                Ok(permit) = Arc::clone(&self.free).acquire_owned() => return self.occupied(permit),
                () = settled => {}
            }
        }
    }

    fn occupied(&self, permit: OwnedSemaphorePermit) -> Place {
        let state = State { answers: 0, was_answered: false, since: Instant::now(), is_to_end: false };
        let activity = Activity(Arc::new(Mutex::new(state)));
        let connection = Arc::new(Connection { activity, end: Notify::new() });
        self.taken().push(Arc::downgrade(&connection));
        Place { connection, _permit: permit }
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Weak<Connection>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells somebody to end, unless somebody is about to, or nobody can be told to now; from `at_last` on anybody can.
    fn make_room(&self, at_last: Instant, now: Instant) -> Wait {
        let mut taken = self.taken();
        taken.retain(|connection| connection.strong_count() > 0);
        let with_state = |connection: Arc<Connection>| {
            let state = *connection.activity.state();
            (state, connection)
        };
        let all: Vec<_> = taken.iter().filter_map(Weak::upgrade).map(with_state).collect();
        if all.iter().any(|(state, _)| state.is_to_end) {
            return Wait::End;
        }
        let is_silent = |state: &State| state.answers == 0 && !state.was_answered;
        let are_silent = all.iter().filter(|(state, _)| is_silent(state)).count() > (self.max / 2).max(1);
        // Where those are most, nobody else goes.
        let candidates = || all.iter().filter(|(state, _)| !are_silent || is_silent(state));
        let from = |state: &State| at_last.min(state.since + if are_silent { SILENT } else { SETTLED });
        let can_go = candidates().filter(|(state, _)| from(state) <= now);
        match can_go.min_by_key(|(state, _)| (state.answers > 0, state.since)) {
            Some((_, connection)) => {
                connection.activity.state().is_to_end = true;
                connection.end.notify_one();
                (self.on_evicted)();
                Wait::End
            }
            // With no connection left there is a place already.
            None => Wait::Until(candidates().map(|(state, _)| from(state)).min().unwrap_or(now)),
        }
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places").field("max", &self.max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::timeout;

    use super::*;

    fn places(max: usize) -> (Arc<Places>, Arc<AtomicUsize>) {
        let evicted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&evicted);
        let on_evicted = Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed));
        let free = Arc::new(Semaphore::new(max));
        (Arc::new(Places { free, max, on_evicted, taken: Mutex::default() }), evicted)
    }

    async fn filled(places: &Places, number: usize) -> Vec<Place> {
        let mut taken = Vec::new();
        for _ in 0..number {
            taken.push(places.take(Instant::now()).await);
        }
        taken
    }

    /// Lets a newcomer in, for whom one of those in `taken` goes: its number, and how long it took.
    async fn one_more(places: &Arc<Places>, taken: &mut Vec<Place>) -> (usize, Duration) {
        let began = Instant::now();
        let newcomer = async {
            let newcomer = places.take(began).await;
            (newcomer, began.elapsed())
        };
        let gone = async {
            let all = taken.iter().map(|place| Box::pin(place.evicted()));
            let (_, number, _) = futures_util::future::select_all(all).await;
            drop(taken.remove(number));
            number
        };
        let ((newcomer, took), number) = tokio::join!(newcomer, gone);
        taken.push(newcomer);
        (number, took)
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_never_asked_go_first_where_they_are_most() {
        let (places, evicted) = places(8);
        let mut taken = filled(&places, 2).await;
        // The page, which has been answered, and a stream.
        drop(taken[0].activity().begin());
        let _stream = taken[1].activity().begin();
        sleep_until(Instant::now() + 10 * SETTLED).await;
        taken.extend(filled(&places, 6).await);
        assert_eq!(one_more(&places, &mut taken).await, (2, SILENT));
        // By now the others have been there for as long.
        for _ in 0..4 {
            assert_eq!(one_more(&places, &mut taken).await, (2, Duration::ZERO));
        }
        assert_eq!(evicted.load(Ordering::Relaxed), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_been_idle_for_longest_goes_before_those_who_are_being_answered() {
        let (places, _) = places(4);
        let mut taken = filled(&places, 4).await;
        let _answers = [taken[0].activity().begin(), taken[2].activity().begin()];
        sleep_until(Instant::now() + SETTLED).await;
        drop(taken[1].activity().begin());
        sleep_until(Instant::now() + SETTLED / 2).await;
        // The fourth never asked; the second has been idle for half a second.
        assert_eq!(one_more(&places, &mut taken).await, (3, Duration::ZERO));
        // Now nobody is idle long enough: of those who are being answered the first goes.
        let _newcomer = taken[3].activity().begin();
        assert_eq!(one_more(&places, &mut taken).await, (0, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_who_is_only_one_of_many() {
        let (places, evicted) = places(2);
        let taken = filled(&places, 2).await;
        let answers: Vec<_> = taken.iter().map(|place| place.activity().begin()).collect();
        timeout(SETTLED - Duration::from_millis(1), places.take(Instant::now())).await.unwrap_err();
        // Whoever leaves by himself makes room, too.
        drop((answers, taken));
        let _newcomer = timeout(Duration::ZERO, places.take(Instant::now())).await.unwrap();
        assert_eq!(evicted.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_again_and_again_keep_nobody_out() {
        let (places, evicted) = places(4);
        let mut taken = filled(&places, 4).await;
        let activities: Vec<_> = taken.iter().map(Place::activity).collect();
        let asking = async {
            loop {
                activities.iter().for_each(|activity| drop(activity.begin()));
                sleep_until(Instant::now() + SETTLED / 2).await;
            }
        };
        let (_, took) = tokio::select! {
            one_more = one_more(&places, &mut taken) => one_more,
            never = asking => never,
        };
        assert_eq!((took, evicted.load(Ordering::Relaxed)), (PATIENCE, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_who_gives_up_ends_one_at_most() {
        let (places, evicted) = places(2);
        let taken = filled(&places, 2).await;
        for _ in 0..3 {
            timeout(2 * SETTLED, places.take(Instant::now())).await.unwrap_err();
        }
        assert_eq!(evicted.load(Ordering::Relaxed), 1);
        timeout(Duration::ZERO, taken[0].evicted()).await.unwrap();
        timeout(Duration::ZERO, taken[1].evicted()).await.unwrap_err();
    }

    #[tokio::test]
    async fn who_comes_is_let_in_however_many_hold_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut door = OpenDoor::new("a test", vec![listener], 3, || {});
        let (mut clients, mut served) = (Vec::new(), tokio::task::JoinSet::new());
        for _ in 0..20 {
            clients.push(TcpStream::connect(addr).await.unwrap());
            let (stream, peer, place) = timeout(Duration::from_secs(10), door.next()).await.unwrap();
            assert_eq!(peer, clients.last().unwrap().local_addr().unwrap());
            served.spawn(async move {
                place.evicted().await;
                drop(stream);
            });
        }
        assert_eq!(served.len(), 20);
        for _ in 0..17 {
            served.join_next().await.unwrap().unwrap();
        }
        assert!(served.try_join_next().is_none());
    }
}
