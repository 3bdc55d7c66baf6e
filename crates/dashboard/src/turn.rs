//! One piece of work at a time.

use std::future::pending;
use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Does what takes work, one at a time and on a thread of its own, so that however many clients of a listener ask, they
/// take one core for it, and who asks for something light is answered at once. Each listener has its own.
#[derive(Clone, Debug)]
pub(crate) struct Turn(Arc<Semaphore>);

impl Turn {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for its turn and works. A panic is passed on.
    pub(crate) async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        // Nobody closes the semaphore.
        let turn = Arc::clone(&self.0).acquire_owned().await.ok();
        let worked = spawn_blocking(move || {
            // Kept until the work is done, even if nobody waits for it any more.
            let _turn = turn;
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

    use super::*;

    #[tokio::test]
    async fn one_works_and_the_others_wait() {
        let (turn, working) = (Turn::new(), Arc::new(AtomicUsize::new(0)));
        let work = |_| {
            let working = Arc::clone(&working);
            turn.work(move || {
                assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0);
                std::thread::yield_now();
                working.fetch_sub(1, Ordering::SeqCst)
            })
        };
        assert_eq!(futures_util::future::join_all((0..20).map(work)).await, [1; 20]);
    }

    #[tokio::test]
    async fn a_panic_is_passed_on_and_the_next_has_its_turn() {
        let turn = Turn::new();
        let mut tasks = tokio::task::JoinSet::new();
        let panics = turn.clone();
        tasks.spawn(async move { panics.work(|| panic!("provoked")).await });
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_panic());
        assert_eq!(turn.work(|| 7).await, 7);
    }
}
