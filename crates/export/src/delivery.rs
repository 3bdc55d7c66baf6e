//! One batch after the other to a collector, and again when it has to be.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::ending::Ending;

/// The first wait after a failure; each next one is twice as long.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// The longest wait after a failure, before jitter: soon enough after a collector is back.
const MAX_WAIT: Duration = Duration::from_secs(8);
/// The longest wait that a collector may ask for, at once and for one batch in all.
const MAX_ASKED: Duration = Duration::from_secs(5 * 60);

/// Takes what is sent.
pub(crate) trait Collector: Send + Sync {
    /// One batch, as it is sent.
    type Request: Send;

    /// Sends one batch, once.
    fn send(&self, request: Self::Request) -> impl Future<Output = Result<Accepted, Refusal>> + Send;

    /// What would go wrong whatever is sent, as far as that is known without sending.
    fn ready(&self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What a collector says of a batch that it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// How many spans or data points it did not take, for good.
    pub(crate) rejected: u64,
    /// What it has to say.
    pub(crate) message: String,
}

/// Why a batch did not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// What was seen, and what to check, in plain words.
    pub(crate) message: String,
    /// The same in a library's words, where they are others.
    pub(crate) details: Option<String>,
    pub(crate) again: Again,
}

/// Whether it may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// It would be refused again.
    Never,
    /// After a while.
    Later,
    /// After the time that the collector asks for.
    After(Duration),
}

impl Refusal {
    pub(crate) fn new(message: impl Into<String>, again: Again) -> Self {
        Self { message: message.into(), details: None, again }
    }

    pub(crate) fn with_details(self, details: String) -> Self {
        let details = Some(details).filter(|details| *details != self.message);
        Self { details, ..self }
    }
}

/// Paces what is sent to one collector.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// How long one attempt may take.
    attempt: Duration,
    /// How long one batch is tried, without the time that the collector asks for ([`MAX_ASKED`]).
    batch: Duration,
    waits: ExponentialBackoff,
    not_before: Option<Instant>,
}

impl Delivery {
    pub(crate) fn new(attempt: Duration, batch: Duration) -> Self {
        Self { attempt: attempt.min(batch), batch, waits: waits(), not_before: None }
    }

    /// Sends one batch until it arrives, or is given up: refused for good, or tried for too long, or the end has come.
    /// Each failure is told to `failed`.
    pub(crate) async fn deliver<F: Future<Output = Result<Accepted, Refusal>>>(
        &mut self,
        ending: &Ending,
        send: impl FnMut() -> F,
        failed: impl FnMut(&Refusal),
    ) -> Result<Accepted, Refusal> {
        self.deliver_for(self.batch, ending, send, failed).await
    }

    /// The same with nothing to lose, to see whether a collector that failed is back: not for as long.
    pub(crate) async fn probe<F: Future<Output = Result<Accepted, Refusal>>>(
        &mut self,
        ending: &Ending,
        send: impl FnMut() -> F,
        failed: impl FnMut(&Refusal),
    ) -> Result<Accepted, Refusal> {
        self.deliver_for(self.attempt, ending, send, failed).await
    }

    async fn deliver_for<F: Future<Output = Result<Accepted, Refusal>>>(
        &mut self,
        tried: Duration,
        ending: &Ending,
        mut send: impl FnMut() -> F,
        mut failed: impl FnMut(&Refusal),
    ) -> Result<Accepted, Refusal> {
        // Whoever always asks for time would hold one batch for ever, and all that comes after it.
        let latest = Instant::now() + tried + MAX_ASKED;
        self.wait(ending).await;
        let mut until = latest.min(Instant::now() + tried);
        loop {
            let begun = Instant::now();
            let attempt_until = until.min(begun + self.attempt);
            let sent = tokio::select! {
                sent = timeout_at(attempt_until, send()) => sent.unwrap_or_else(|_| Err(no_answer(attempt_until - begun))),
                () = self.end(ending) => Err(no_answer(begun.elapsed())),
            };
            let refusal = match sent {
                Ok(accepted) => {
                    (self.waits, self.not_before) = (waits(), None);
                    return Ok(accepted);
                }
                Err(refusal) => refusal,
            };
            failed(&refusal);
            let mut asked = Duration::ZERO;
            if let Again::After(time) = refusal.again {
                asked = time.min(MAX_ASKED);
                until = latest.min(until + asked);
            }
            let next = self.put_off(asked);
            if refusal.again == Again::Never || next >= until || ending.has_begun() {
                return Err(refusal);
            }
            self.wait(ending).await;
            if ending.has_begun() {
                return Err(refusal);
            }
        }
    }

    /// Nothing is sent for a while after a failure, but for this long at least, where a collector asks for it. Returns until
    /// when: the next batch waits too, for it is the same collector.
    pub(crate) fn put_off(&mut self, asked: Duration) -> Instant {
        // Time that is none, or over by our clock, is no leave to hurry.
        let next = Instant::now() + self.waits.next().unwrap_or(MAX_WAIT).max(asked);
        self.not_before = Some(next);
        next
    }

    /// Whether the last attempt failed.
    pub(crate) const fn is_failing(&self) -> bool {
        self.not_before.is_some()
    }

    /// Whether a collector that failed may be asked whether it is back.
    pub(crate) fn may_probe(&self) -> bool {
        self.not_before.is_some_and(|not_before| not_before <= Instant::now())
    }

    /// Resolves when no answer is waited for any more: who did not answer before gets no time to do it at the end.
    async fn end(&self, ending: &Ending) {
        if self.is_failing() { ending.begun().await } else { ending.over().await }
    }

    async fn wait(&self, ending: &Ending) {
        let Some(not_before) = self.not_before else { return };
        tokio::select! {
            () = sleep_until(not_before) => {}
            () = ending.begun() => {}
        }
    }
}

/// After what was really waited, to a tenth of a second: at the end, and of a batch's time, that is less than it could be.
fn no_answer(waited: Duration) -> Refusal {
    let tenths = u64::try_from((waited.as_millis() + 50) / 100).unwrap_or(u64::MAX / 100);
    let waited = humantime::format_duration(Duration::from_millis(tenths * 100));
    Refusal::new(format!("no answer within {waited}"), Again::Later)
}

/// Never ends: how long a batch is tried is not a matter of how often.
fn waits() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(MIN_WAIT)
        .with_max_delay(MAX_WAIT)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;
    use std::sync::Mutex;

    use super::*;
    use crate::ending::{Ends, FLUSH};

    const SECOND: Duration = Duration::from_secs(1);

    /// Answers as it was told to; when there is nothing more, never.
    struct Scripted {
        answers: Mutex<VecDeque<Result<Accepted, Again>>>,
        asked: Mutex<Vec<Instant>>,
    }

    impl Scripted {
        fn new(answers: impl IntoIterator<Item = Result<Accepted, Again>>) -> Self {
            Self { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() }
        }

        async fn answer(&self) -> Result<Accepted, Refusal> {
            self.asked.lock().unwrap().push(Instant::now());
            let answer = self.answers.lock().unwrap().pop_front();
            match answer {
                Some(answer) => answer.map_err(|again| Refusal::new("scripted", again)),
                None => pending().await,
            }
        }

        /// From one request to the next.
        fn waits(&self) -> Vec<Duration> {
            self.asked.lock().unwrap().windows(2).map(|two| two[1] - two[0]).collect()
        }
    }

    struct Sender {
        delivery: Delivery,
        ending: Ending,
        ends: Ends,
        failures: Mutex<Vec<String>>,
    }

    impl Sender {
        /// One that waits 10 s for an answer, and tries a batch for 30 s.
        fn new() -> Self {
            let (ends, ending) = Ending::new();
            Self { delivery: Delivery::new(10 * SECOND, 30 * SECOND), ending, ends, failures: Mutex::default() }
        }

        async fn send(&mut self, to: &Scripted) -> Result<Accepted, Refusal> {
            let failed = |why: &Refusal| self.failures.lock().unwrap().push(why.message.clone());
            self.delivery.deliver(&self.ending, || to.answer(), failed).await
        }
    }

    const FINE: Result<Accepted, Again> = Ok(Accepted { rejected: 0, message: String::new() });
    const LATER: Result<Accepted, Again> = Err(Again::Later);

    #[tokio::test(start_paused = true)]
    async fn waits_double_with_jitter_up_to_a_limit_and_begin_anew() {
        let (mut sender, mut waits) = (Sender::new(), Vec::new());
        sender.delivery.batch = 1000 * SECOND;
        for _ in 0..50 {
            let collector = Scripted::new([LATER, LATER, LATER, LATER, LATER, FINE, LATER, FINE]);
            sender.send(&collector).await.unwrap();
            sender.send(&collector).await.unwrap();
            let found = collector.waits();
            for (wait, seconds) in found.iter().zip([1, 2, 4, 8, 8, 0, 1]) {
                let base = SECOND * seconds;
                assert!((base..=base * 2).contains(wait), "{found:?}");
            }
            waits.push(found[0]);
        }
        waits.sort();
        assert!(waits[0] < SECOND * 5 / 4 && waits[49] > SECOND * 7 / 4, "no jitter: {waits:?}");
        assert_eq!(sender.failures.lock().unwrap().len(), 50 * 6);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_go_well_is_not_tried_again_and_the_next_batch_waits() {
        let mut sender = Sender::new();
        let collector = Scripted::new([Err(Again::Never), FINE]);
        assert_eq!(sender.send(&collector).await, Err(Refusal::new("scripted", Again::Never)));
        assert_eq!(collector.asked.lock().unwrap().len(), 1);
        sender.send(&collector).await.unwrap();
        assert!((SECOND..=2 * SECOND).contains(&collector.waits()[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_is_asked_again_when_it_wants_to_be() {
        let mut sender = Sender::new();
        // Longer than a batch is tried.
        let collector = Scripted::new([Err(Again::After(100 * SECOND)), Err(Again::After(200 * SECOND)), FINE]);
        sender.send(&collector).await.unwrap();
        assert_eq!(collector.waits(), [100 * SECOND, 200 * SECOND]);
        let collector = Scripted::new([Err(Again::After(9999 * SECOND)), FINE]);
        sender.send(&collector).await.unwrap();
        assert_eq!(collector.waits(), [MAX_ASKED]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_asks_for_no_time_is_not_hurried() {
        let mut sender = Sender::new();
        let zero = || Err(Again::After(Duration::ZERO));
        let collector = Scripted::new([zero(), zero(), zero(), FINE]);
        sender.send(&collector).await.unwrap();
        let waits = collector.waits();
        for (wait, seconds) in waits.iter().zip([1, 2, 4]) {
            assert!((SECOND * seconds..=SECOND * seconds * 2).contains(wait), "{waits:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_always_asks_for_time_does_not_get_it() {
        for asked in [10 * SECOND, 200 * SECOND, 9999 * SECOND] {
            let mut sender = Sender::new();
            let collector = Scripted::new(std::iter::repeat_n(Err(Again::After(asked)), 1000));
            // The second batch waits for what the first was asked for, which is of its time too.
            for _ in 0..2 {
                let begun = Instant::now();
                assert_eq!(sender.send(&collector).await.unwrap_err().again, Again::After(asked));
                assert!(begun.elapsed() <= 30 * SECOND + MAX_ASKED, "{asked:?}: {:?}", begun.elapsed());
            }
            assert!(collector.waits().iter().all(|wait| *wait >= asked.min(MAX_ASKED)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_given_up_after_its_time() {
        let mut sender = Sender::new();
        let collector = Scripted::new(std::iter::repeat_n(LATER, 100));
        let begun = Instant::now();
        assert_eq!(sender.send(&collector).await.unwrap_err().again, Again::Later);
        let (took, asked) = (begun.elapsed(), collector.asked.lock().unwrap().len());
        assert!(took <= 30 * SECOND && (3..=6).contains(&asked), "{took:?} {asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_hangs_costs_the_timeout() {
        let mut sender = Sender::new();
        let collector = Scripted::new([]);
        let begun = Instant::now();
        let refusal = sender.send(&collector).await.unwrap_err();
        assert_eq!(refusal.again, Again::Later);
        assert!(begun.elapsed() <= 30 * SECOND, "{:?}", begun.elapsed());
        assert!((2..=3).contains(&collector.asked.lock().unwrap().len()));
        let told = sender.failures.lock().unwrap().clone();
        assert_eq!(told[..2], ["no answer within 10s", "no answer within 10s"]);
        // What is left of the batch's time is less.
        assert!(
            told.get(2).is_none_or(|told| told.starts_with("no answer within ") && !told.contains("10s")),
            "{told:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_only_answers_are_waited_for_and_not_for_long() {
        let mut sender = Sender::new();
        sender.ends.begin();
        let (hangs, begun) = (Scripted::new([]), Instant::now());
        assert_eq!(sender.send(&hangs).await.unwrap_err().message, "no answer within 1s");
        assert_eq!(begun.elapsed(), FLUSH);

        // It was waited for before the end too.
        let mut sender = Sender::new();
        let hangs = Scripted::new([]);
        let Sender { delivery, ending, ends, .. } = &mut sender;
        let ended = async {
            tokio::time::sleep(2 * SECOND + SECOND / 4).await;
            ends.begin();
        };
        let (sent, ()) = tokio::join!(delivery.deliver(ending, || hangs.answer(), |_| {}), ended);
        assert_eq!(sent.unwrap_err().message, "no answer within 3s 300ms");

        let mut sender = Sender::new();
        sender.ends.begin();
        let (fails, begun) = (Scripted::new([LATER, FINE]), Instant::now());
        sender.send(&fails).await.unwrap_err();
        assert_eq!((begun.elapsed(), fails.asked.lock().unwrap().len()), (Duration::ZERO, 1));

        // Also where it waits already, or hangs again.
        let mut sender = Sender::new();
        let (fails, begun) = (Scripted::new([Err(Again::After(100 * SECOND)), FINE]), Instant::now());
        let Sender { delivery, ending, ends, .. } = &mut sender;
        let ended = async {
            tokio::time::sleep(3 * SECOND).await;
            ends.begin();
        };
        let (sent, ()) = tokio::join!(delivery.deliver(ending, || fails.answer(), |_| {}), ended);
        sent.unwrap_err();
        assert_eq!(begun.elapsed(), 3 * SECOND);
        assert!(sender.delivery.is_failing());
        let (hangs, begun) = (Scripted::new([]), Instant::now());
        sender.send(&hangs).await.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
