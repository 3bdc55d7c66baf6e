//! Notices that a client leaves an answer lying.
//!
//! HTTP/2 does not ask an answer for more while the client has room for nothing, so no timer inside the answer would run. But
//! each call is a future that the connection polls, and that one can hold a timer beside the call: it runs while the last
//! thing that was heard of the answer is that a piece of it was handed out.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

tokio::task_local! {
    /// The one of the call that is being polled.
    static CURRENT: Arc<Stall>;
}

/// Since when a piece of an answer lies there; nothing while the client waits for us.
#[derive(Debug, Default)]
pub(super) struct Stall(Mutex<Option<Instant>>);

impl Stall {
    /// That of the call that is being polled.
    pub(super) fn current() -> Arc<Self> {
        CURRENT.try_with(Arc::clone).unwrap_or_default()
    }

    /// A piece was handed out.
    pub(super) fn begin(&self) {
        self.put(Some(Instant::now()));
    }

    /// The client has taken everything, or there was nothing yet.
    pub(super) fn end(&self) {
        self.put(None);
    }

    fn put(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call, which ends early where the client takes nothing of the answer for `limit`. Returns whether it did.
pub(super) async fn limited(call: impl Future<Output = ()>, limit: Duration) -> bool {
    let stall = Arc::new(Stall::default());
    let mut call = pin!(CURRENT.scope(Arc::clone(&stall), call));
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        if call.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        let Some(since) = stall.since() else { return Poll::Pending };
        if timer.deadline() != since + limit {
            timer.as_mut().reset(since + limit);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(true)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn only_an_answer_that_lies_there_too_long_ends_the_call() {
        let waits = async {
            sleep(10 * LIMIT).await;
            let stall = Stall::current();
            for _ in 0..5 {
                stall.begin();
                sleep(LIMIT / 2).await;
            }
            stall.end();
            sleep(10 * LIMIT).await;
        };
        assert!(!limited(waits, LIMIT).await);
        let began = Instant::now();
        let lies = async {
            Stall::current().begin();
            pending::<()>().await;
        };
        assert!(limited(lies, LIMIT).await);
        assert_eq!(began.elapsed(), LIMIT);
    }
}
