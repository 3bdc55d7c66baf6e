//! One piece of work at a time.

use std::future::pending;
use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Does what takes work, on a thread of its own and one piece at a time for all readers together: however many ask, they
/// take one core and one thread, who asks for something light is answered at once, and the hub finds a thread free.
///
/// Made by [`Reader::turn`](crate::Reader::turn), one for each listener. Clones wait in one queue, and those who are first in
/// their queues take turns: many who ask one listener do not keep another from its own.
#[derive(Clone, Debug)]
pub struct Turn {
    first: Place,
    at_work: Place,
}

/// Held by one at a time.
pub(crate) type Place = Arc<Semaphore>;

/// A place that nobody holds.
pub(crate) fn place() -> Place {
    Arc::new(Semaphore::new(1))
}

impl Turn {
    pub(crate) fn new(at_work: Place) -> Self {
        Self { first: place(), at_work }
    }

    /// Waits for its turn and works. A panic is passed on. Who stops waiting before the work has begun takes it back.
    pub async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        // Nobody closes the semaphores.
        let first = Arc::clone(&self.first).acquire_owned().await.ok();
        let at_work = Arc::clone(&self.at_work).acquire_owned().await.ok();
        let worked = spawn_blocking(move || {
            // Kept until the work is done, even if nobody waits for it any more.
            let _places = (at_work, first);
            work()
        });
        match worked.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(done) => done,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime is ending, and with it whoever asked.
            Err(Err(_)) => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, mpsc};

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn one_works_and_the_others_wait() {
        let (at_work, working) = (place(), Arc::new(AtomicUsize::new(0)));
        let mut all = JoinSet::new();
        for turn in [Turn::new(Arc::clone(&at_work)), Turn::new(at_work)] {
            for _ in 0..10 {
                let (turn, working) = (turn.clone(), Arc::clone(&working));
                all.spawn(async move {
                    let work = move || {
                        assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        working.fetch_sub(1, Ordering::SeqCst)
                    };
                    turn.work(work).await
                });
            }
        }
        assert_eq!(all.join_all().await, [1; 20]);
    }

    #[tokio::test]
    async fn many_who_ask_one_listener_do_not_keep_another_waiting() {
        let at_work = place();
        let (busy, quiet) = (Turn::new(Arc::clone(&at_work)), Turn::new(at_work));
        let (go_on, held) = mpsc::channel::<()>();
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |who: &'static str| {
            let order = Arc::clone(&order);
            move || order.lock().unwrap().push(who)
        };
        let first = busy.work({
            let note = note("busy");
            move || (held.recv().unwrap(), note()).1
        });
        let others = [busy.work(note("busy")), busy.work(note("busy"))];
        let [second, third] = others;
        // Polled in this order, so they ask in this order.
        tokio::join!(biased; first, second, third, quiet.work(note("quiet")), async { go_on.send(()).unwrap() });
        assert_eq!(order.lock().unwrap()[..2], ["busy", "quiet"]);
    }

    #[tokio::test]
    async fn who_stops_waiting_takes_its_work_back() {
        let turn = Turn::new(place());
        let (go_on, held) = mpsc::channel::<()>();
        let mut tasks = JoinSet::new();
        let (begins, mut began) = tokio::sync::mpsc::channel(1);
        let holds = turn.clone();
        tasks.spawn(async move {
            let work = move || {
                begins.blocking_send(()).unwrap();
                held.recv().unwrap();
            };
            holds.work(work).await;
        });
        began.recv().await.unwrap();
        let waits = turn.work(|| panic!("nobody waits for it"));
        tokio::select! {
            biased;
            () = waits => unreachable!("the place is taken"),
            () = async {} => {}
        }
        // Nobody waits for this one either, but it has begun.
        tasks.abort_all();
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        assert_eq!(turn.at_work.available_permits(), 0);
        go_on.send(()).unwrap();
        assert_eq!(turn.work(|| 7).await, 7);
    }

    #[tokio::test]
    async fn a_panic_is_passed_on_and_the_next_has_its_turn() {
        let turn = Turn::new(place());
        let mut tasks = JoinSet::new();
        let panics = turn.clone();
        tasks.spawn(async move { panics.work(|| panic!("provoked")).await });
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
        assert_eq!(turn.work(|| 7).await, 7);
    }
}
