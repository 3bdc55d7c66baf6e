//! A timer that is kept to a fraction of a millisecond: that of the runtime overshoots by more than one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::sleep_until;

/// How long its thread waits for another to come: to start one takes as long as the shortest delays.
const LINGER: Duration = Duration::from_secs(1);

/// Wakes tasks at their times. Its thread runs while anybody waits, and [`LINGER`] longer.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    earlier: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: BinaryHeap<Reverse<Waiting>>,
    is_running: bool,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl Alarm {
    /// Waits until then.
    pub(crate) async fn until(&self, due: Instant) {
        let (wake, woken) = oneshot::channel();
        if !self.add(Waiting { due, wake }) || woken.await.is_err() {
            // The system has no thread to spare.
            sleep_until(due.into()).await;
        }
    }

    fn add(&self, waiting: Waiting) -> bool {
        let mut state = self.0.lock();
        // Those who have given up make room for others.
        if state.waiting.len() == state.waiting.capacity() {
            state.waiting.retain(|Reverse(waiting)| !waiting.wake.is_closed());
        }
        state.waiting.push(Reverse(waiting));
        if !state.is_running {
            let shared = Arc::downgrade(&self.0);
            let thread = std::thread::Builder::new().name("mcpscope-alarm".into());
            state.is_running = thread.spawn(move || run(&shared)).is_ok();
            if !state.is_running {
                state.waiting.clear();
            }
        }
        let is_running = state.is_running;
        drop(state);
        self.0.earlier.notify_one();
        is_running
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Weak<Shared>) {
    let Some(shared) = shared.upgrade() else { return };
    let mut state = shared.lock();
    loop {
        let Some(Reverse(first)) = state.waiting.peek() else {
            let nobody_waits = |state: &mut State| state.waiting.is_empty();
            let waited = shared.earlier.wait_timeout_while(state, LINGER, nobody_waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.waiting.is_empty() {
                break;
            }
            continue;
        };
        let now = Instant::now();
        if first.due <= now || first.wake.is_closed() {
            if let Some(Reverse(first)) = state.waiting.pop() {
                // Whoever has given up is not there to be woken.
                let _ = first.wake.send(());
            }
            continue;
        }
        let left = first.due - now;
        state = shared.earlier.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    state.is_running = false;
}

#[cfg(test)]
mod tests {
    use mcpscope_test_support::eventually;

    use super::*;

    #[tokio::test]
    async fn all_are_woken_at_their_times_and_not_before() {
        let alarm = Alarm::default();
        let start = Instant::now();
        let wait = |ms| {
            let (alarm, due) = (&alarm, start + Duration::from_millis(ms));
            async move {
                alarm.until(due).await;
                assert!(Instant::now() >= due);
                ms
            }
        };
        assert_eq!(tokio::join!(wait(30), wait(10), wait(20)), (30, 10, 20));
        alarm.until(start).await;
        assert_eq!(wait(40).await, 40, "the thread waits for another");
    }

    #[tokio::test]
    async fn its_thread_ends_when_nobody_comes_and_another_takes_its_place() {
        let alarm = Alarm::default();
        alarm.until(Instant::now()).await;
        eventually(|| if alarm.0.lock().is_running { Err("it runs") } else { Ok(()) }).await;
        alarm.until(Instant::now()).await;
        assert!(alarm.0.lock().is_running);
    }

    #[tokio::test]
    async fn who_gives_up_is_forgotten() {
        let alarm = Alarm::default();
        let far = Instant::now() + Duration::from_secs(3600);
        for _ in 0..10_000 {
            let mut given_up = Box::pin(alarm.until(far));
            std::future::poll_fn(|cx| std::task::Poll::Ready(given_up.as_mut().poll(cx).is_pending())).await;
        }
        assert!(alarm.0.lock().waiting.capacity() < 1000);
    }
}
