//! The calls of the last minutes, in slices of time: what the steady state of chaos experiments is judged by.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use mcpscope_chaos::{Sample, SteadyState, Touched, Window};
use mcpscope_core::{CallRecord, Direction, FaultId, Outcome};
use mcpscope_health::View;
use mcpscope_hooks::Observer;

/// How much time a slice covers: how exactly a window's ends are met.
const SLICE: Duration = Duration::from_millis(100);
/// Slices that wait to be gathered: more than two seconds of them, and they are gathered every second.
const WAITING: usize = 24;
/// Slices kept: those of the longest fault (10 min), the ten seconds before, and the time to recover.
const KEPT: usize = 7200;
/// Threads that can record at the same moment. Who finds no place is not waited for, but counted.
const SHARDS: usize = 4;
/// Buckets of durations: 16 for each doubling, so that a value is known to 3 %; up to 2^32 us.
const BUCKETS: usize = (32 - SUB_BITS as usize + 1) << SUB_BITS;
const SUB_BITS: u32 = 4;
/// What became of a call, as an index: well or failed.
const GOOD: usize = 0;
const BAD: usize = 1;
/// How many calls there were, by what became of them.
type Counts<T> = [T; 2];
/// Calls by bucket: those that a fault touched, or those that none did.
type Buckets<T> = [Counts<T>; BUCKETS];
/// Requests with an id that was used before, and answers to what was answered before, as an index.
const REPEATED: usize = 0;
const DUPLICATE: usize = 1;

/// Sees every call that has ended, and tells how the watched system is doing. What a fault touched is told apart.
///
/// To be given to the probes ([`mcpscope_hooks::Parts::observer`]) and to the engine
/// ([`mcpscope_chaos::Parts::steady_state`]). Recording waits for nobody, and takes memory only for what faults touch.
#[derive(Debug)]
pub struct Calls {
    start: Instant,
    health: View,
    shards: [Mutex<Shard>; SHARDS],
    gathered: Mutex<Gathered>,
    lost: AtomicU64,
}

/// The slices of some threads that were not gathered yet, each at its number modulo their count.
#[derive(Debug)]
struct Shard(Vec<Dense>);

/// A slice with a place for every bucket: nothing has to be found or made to count a call.
#[derive(Clone, Debug)]
struct Dense {
    number: u64,
    buckets: Buckets<u16>,
    /// Those that faults touched: as many as there are faults at a time.
    touched: Vec<(FaultId, Box<Buckets<u16>>)>,
    again: [u32; 2],
    is_empty: bool,
}

/// The slices in order, each once; those without a call are left out.
#[derive(Debug, Default)]
struct Gathered(VecDeque<Slice>);

#[derive(Debug)]
struct Slice {
    number: u64,
    buckets: Sparse,
    touched: Vec<(FaultId, Sparse)>,
    again: [u64; 2],
}

/// Buckets with a call, in order.
#[derive(Debug, Default)]
struct Sparse(Vec<(u16, Counts<u32>)>);

/// What there was in some time, by bucket.
struct Found {
    untouched: Vec<Counts<u64>>,
    touched: Vec<Counts<u64>>,
    again: [u64; 2],
}

impl Calls {
    /// Counts from `start`; `health` tells how much is healthy.
    #[must_use]
    pub fn new(start: Instant, health: View) -> Self {
        let empty = Dense { number: 0, buckets: [[0; 2]; BUCKETS], touched: Vec::new(), again: [0; 2], is_empty: true };
        let shard = || Mutex::new(Shard(vec![empty.clone(); WAITING]));
        Self {
            start,
            health,
            shards: std::array::from_fn(|_| shard()),
            gathered: Mutex::default(),
            lost: AtomicU64::new(0),
        }
    }

    /// Calls so far that found no place.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Makes room for what comes; to be called every second.
    pub(crate) fn gather(&self) {
        drop(self.gathered());
    }

    /// The slice that a time lies in.
    fn number(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos() / SLICE.as_nanos()).unwrap_or(u64::MAX)
    }

    fn record(&self, ended: Instant, duration: Duration, end: usize, by: Option<FaultId>) {
        self.count(ended, |slice| slice.call(bucket(duration), end, by));
    }

    /// Counts something in the slice of this time, if there is a place for it.
    fn count(&self, at: Instant, add: impl FnOnce(&mut Dense) -> Option<()>) {
        let number = self.number(at);
        let free = self.shards.iter().find_map(|shard| match shard.try_lock() {
            Ok(shard) => Some(shard),
            Err(TryLockError::Poisoned(shard)) => Some(shard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        if free.and_then(|mut shard| add(shard.slice(number)?)).is_none() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Everything so far.
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).empty_into(&mut gathered);
        }
        gathered
    }

    /// The calls of a window, and how many requests and answers came again.
    fn within(&self, window: &Window) -> Found {
        let none = || vec![[0; 2]; BUCKETS];
        let mut found = Found { untouched: none(), touched: none(), again: [0; 2] };
        let gathered = self.gathered();
        for slice in &gathered.0 {
            let begin = self.start + SLICE * u32::try_from(slice.number).unwrap_or(u32::MAX);
            // Each belongs to the window in which it ends: it is complete then, and in one of those that follow each other.
            let end = begin + SLICE;
            if end <= window.from || end > window.until {
                continue;
            }
            found.again.iter_mut().zip(slice.again).for_each(|(all, count)| *all += count);
            // A call that took no longer than this began after that time, for certain.
            let longest = window.began_since.map(|since| begin.checked_duration_since(since));
            slice.buckets.add_to(&mut found.untouched, longest);
            for (_, touched) in slice.touched.iter().filter(|(by, _)| window.touched_by.is_none_or(|one| one == *by)) {
                // It is no matter when those began that a fault touched.
                touched.add_to(&mut found.touched, None);
            }
        }
        found
    }
}

impl Observer for Calls {
    fn on_call(&self, record: &CallRecord) {
        let call = &record.call;
        let is_counted = call.direction == Direction::ToServer && call.id.is_some() && !call.method.is_long_lived();
        let is_bad = match (&record.outcome, record.injected) {
            // A result that asks for more input is none.
            (Outcome::InputRequired, None) => return,
            // What was given up says nothing of the server, but much of a fault.
            (Outcome::Cancelled, None) => return,
            (Outcome::Cancelled, Some(_)) => true,
            (outcome, None) => outcome.server_error().is_some(),
            (outcome, Some(_)) => outcome.any_error().is_some(),
        };
        if is_counted {
            let end = if is_bad { BAD } else { GOOD };
            self.record(record.started + record.duration, record.duration, end, record.injected);
        }
    }

    fn on_repeated(&self, at: Instant) {
        self.count(at, |slice| slice.again(REPEATED));
    }

    fn on_duplicate(&self, at: Instant) {
        self.count(at, |slice| slice.again(DUPLICATE));
    }
}

impl SteadyState for Calls {
    fn sample(&self, window: &Window) -> Sample {
        let Found { untouched, touched, again: [repeated, duplicates] } = self.within(window);
        let (calls, errors, [p50_ms, p95_ms, p99_ms]) = figures(&untouched);
        let touched = match figures(&touched) {
            (0, ..) => None,
            (calls, errors, [p50_ms, p95_ms, p99_ms]) => Some(Touched { calls, errors, p50_ms, p95_ms, p99_ms }),
        };
        let healthy = Some(self.health.report(window.until, std::time::UNIX_EPOCH).health_percentage);
        let (repeated, duplicates) = (Some(repeated), Some(duplicates));
        Sample { calls, errors, p50_ms, p95_ms, p99_ms, healthy, repeated, duplicates, touched }
    }
}

/// Of calls: how many, how many of them failed, and percentiles of how long they took in ms.
fn figures(buckets: &[Counts<u64>]) -> (u64, u64, [Option<f64>; 3]) {
    let calls = |counts: &Counts<u64>| counts[GOOD] + counts[BAD];
    let all = buckets.iter().map(calls).sum();
    let percentile = |share| percentile_ms(buckets.iter().map(calls), all, share);
    (all, buckets.iter().map(|counts| counts[BAD]).sum(), [0.50, 0.95, 0.99].map(percentile))
}

impl Shard {
    /// The slice of this number, if there is a place for it.
    fn slice(&mut self, number: u64) -> Option<&mut Dense> {
        let slice = self.0.get_mut(number as usize % WAITING)?;
        if slice.number != number {
            // One that was not gathered in time is not written over, and time does not go back.
            if !slice.is_empty {
                return None;
            }
            slice.number = number;
        }
        slice.is_empty = false;
        Some(slice)
    }

    fn empty_into(&mut self, gathered: &mut Gathered) {
        for slice in self.0.iter_mut().filter(|slice| !slice.is_empty) {
            gathered.add(slice);
            slice.buckets.fill([0; 2]);
            slice.touched.clear();
            slice.again = [0; 2];
            slice.is_empty = true;
        }
    }
}

impl Dense {
    fn call(&mut self, bucket: usize, end: usize, by: Option<FaultId>) -> Option<()> {
        let buckets = match by {
            None => &mut self.buckets,
            Some(by) => {
                let there = self.touched.iter().position(|(fault, _)| *fault == by);
                let at = there.unwrap_or_else(|| {
                    self.touched.push((by, Box::new([[0; 2]; BUCKETS])));
                    self.touched.len() - 1
                });
                &mut self.touched.get_mut(at)?.1
            }
        };
        let count = buckets.get_mut(bucket)?.get_mut(end)?;
        *count = count.checked_add(1)?;
        Some(())
    }

    fn again(&mut self, what: usize) -> Option<()> {
        let count = self.again.get_mut(what)?;
        *count = count.checked_add(1)?;
        Some(())
    }
}

impl Gathered {
    fn add(&mut self, dense: &Dense) {
        let at = self.0.partition_point(|slice| slice.number < dense.number);
        if self.0.get(at).is_none_or(|slice| slice.number != dense.number) {
            let (number, buckets) = (dense.number, Sparse::default());
            self.0.insert(at, Slice { number, buckets, touched: Vec::new(), again: [0; 2] });
        }
        let Some(slice) = self.0.get_mut(at) else { return };
        slice.again.iter_mut().zip(dense.again).for_each(|(all, count)| *all += u64::from(count));
        slice.buckets.add(&dense.buckets);
        for (by, buckets) in &dense.touched {
            match slice.touched.iter_mut().find(|(fault, _)| fault == by) {
                Some((_, there)) => there.add(buckets),
                None => {
                    let mut there = Sparse::default();
                    there.add(buckets);
                    slice.touched.push((*by, there));
                }
            }
        }
        while self.0.len() > KEPT {
            self.0.pop_front();
        }
    }
}

impl Sparse {
    fn add(&mut self, dense: &Buckets<u16>) {
        for (bucket, counts) in (0..).zip(dense).filter(|(_, counts)| **counts != [0; 2]) {
            let at = self.0.partition_point(|(there, _)| *there < bucket);
            if self.0.get(at).is_none_or(|(there, _)| *there != bucket) {
                self.0.insert(at, (bucket, [0; 2]));
            }
            if let Some((_, all)) = self.0.get_mut(at) {
                all.iter_mut().zip(counts).for_each(|(all, count)| *all += u32::from(*count));
            }
        }
        self.0.shrink_to_fit();
    }

    /// Adds those that took no longer than this, where it matters; no time at all is none of them.
    fn add_to(&self, found: &mut [Counts<u64>], longest: Option<Option<Duration>>) {
        for (bucket, counts) in &self.0 {
            let is_taken = match longest {
                None => true,
                Some(longest) => longest.is_some_and(|longest| bounds(usize::from(*bucket)).1 <= longest),
            };
            if let Some(all) = found.get_mut(usize::from(*bucket)).filter(|_| is_taken) {
                all.iter_mut().zip(counts).for_each(|(all, count)| *all += u64::from(*count));
            }
        }
    }
}

/// The bucket of a duration: linear up to 2^[`SUB_BITS`] us, then 2^[`SUB_BITS`] for each doubling.
fn bucket(duration: Duration) -> usize {
    let micros = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    let shift = (32 - SUB_BITS - 1).saturating_sub(micros.leading_zeros());
    ((shift << SUB_BITS) + (micros >> shift)) as usize
}

/// The shortest duration in a bucket, and the first that is too long for it.
fn bounds(bucket: usize) -> (Duration, Duration) {
    let first = |bucket: usize| {
        let shift = (bucket >> SUB_BITS).saturating_sub(1);
        Duration::from_micros(((bucket - (shift << SUB_BITS)) as u64) << shift)
    };
    (first(bucket), first(bucket + 1))
}

/// The middle of the bucket that a percentile lies in, in ms; none without calls.
fn percentile_ms(mut buckets: impl Iterator<Item = u64>, calls: u64, share: f64) -> Option<f64> {
    let rank = ((calls as f64 * share).ceil() as u64).max(1);
    let mut below = 0;
    let found = buckets.position(|calls| {
        below += calls;
        below >= rank
    });
    let (low, high) = bounds(found?);
    Some((low + high).as_secs_f64() * 500.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn calls() -> (Calls, Instant) {
        let start = Instant::now();
        let (_, health) = mcpscope_health::channel(start);
        (Calls::new(start, health), start)
    }

    fn sample(calls: &Calls, from: Instant, until: Instant, began_since: Option<Instant>) -> Sample {
        calls.sample(&Window { from, until, began_since, touched_by: None })
    }

    #[test]
    fn every_duration_lies_in_its_bucket() {
        let mut last = 0;
        for micros in (0..5000).chain([1 << 20, (1 << 20) - 1, u64::from(u32::MAX)]) {
            let duration = Duration::from_micros(micros);
            let (low, high) = bounds(bucket(duration));
            assert!(low <= duration && duration < high, "{duration:?} in {low:?}..{high:?}");
            assert!((high - low).as_secs_f64() <= (duration.as_secs_f64() / 16.0).max(1e-6), "{duration:?}");
            assert!(bucket(duration) < BUCKETS);
            last = last.max(bucket(duration));
        }
        assert_eq!(last, BUCKETS - 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_window_has_the_calls_that_ended_in_it() {
        let (calls, start) = calls();
        for second in 0..10 {
            for n in 0..100 {
                let ended = start + 1000 * MS * second + 10 * MS * n;
                calls.record(ended, MS * (n + 1), usize::from(second == 7 && n < 30), None);
            }
            calls.gather();
        }
        let second = |n: u32| sample(&calls, start + 1000 * MS * n, start + 1000 * MS * (n + 1), None);
        for n in 0..10 {
            let Sample { calls, errors, p50_ms, p95_ms, p99_ms, .. } = second(n);
            assert_eq!((calls, errors), (100, if n == 7 { 30 } else { 0 }));
            for (found, expected) in [(p50_ms, 50.0), (p95_ms, 95.0), (p99_ms, 99.0)] {
                let found = found.unwrap();
                assert!((found - expected).abs() < expected * 0.04, "{found} for {expected}");
            }
        }
        assert_eq!(sample(&calls, start, start + 10_000 * MS, None).calls, 1000);
        let nothing = sample(&calls, start + 10_000 * MS, start + 11_000 * MS, None);
        assert_eq!((nothing.calls, nothing.p50_ms), (0, None));
        assert_eq!(calls.lost(), 0);
    }

    #[test]
    fn of_calls_that_began_since_a_time_there_are_only_those_that_did_for_certain() {
        let (calls, start) = calls();
        let since = start + 1000 * MS;
        // Began before, ended after.
        calls.record(start + 1150 * MS, 400 * MS, BAD, None);
        // Began after, as far as can be told.
        calls.record(start + 1450 * MS, 200 * MS, GOOD, None);
        // What a fault held until its end.
        calls.record(start + 1050 * MS, 400 * MS, GOOD, Some(FaultId(1)));
        let all = sample(&calls, since, start + 2000 * MS, None);
        let after = sample(&calls, since, start + 2000 * MS, Some(since));
        assert_eq!((all.calls, all.errors, after.calls, after.errors), (2, 1, 1, 0));
        assert_eq!((all.touched.map(|it| it.calls), after.touched.map(|it| it.calls)), (Some(1), Some(1)));
    }

    #[test]
    fn what_a_fault_touched_is_told_apart() {
        let (calls, start) = calls();
        (0..3).for_each(|_| calls.record(start + 100 * MS, 10 * MS, GOOD, None));
        let [one, other] = [FaultId(1), FaultId(2)];
        calls.record(start + 100 * MS, 500 * MS, BAD, Some(one));
        calls.record(start + 100 * MS, 500 * MS, GOOD, Some(one));
        let sample = sample(&calls, start, start + 1000 * MS, None);
        let touched = sample.touched.unwrap();
        assert_eq!((sample.calls, sample.errors, touched.calls, touched.errors), (3, 0, 2, 1));
        assert!(sample.p99_ms.unwrap() < 11.0 && touched.p50_ms.unwrap() > 480.0);
        // And of each fault by itself.
        calls.gather();
        calls.record(start + 110 * MS, 700 * MS, BAD, Some(other));
        calls.record(start + 110 * MS, 700 * MS, BAD, Some(one));
        let by = |touched_by| {
            let window = Window { from: start, until: start + 1000 * MS, began_since: None, touched_by };
            let sample = calls.sample(&window);
            (sample.calls, sample.touched.map(|touched| (touched.calls, touched.errors)))
        };
        assert_eq!(by(None), (3, Some((4, 3))));
        assert_eq!(by(Some(one)), (3, Some((3, 2))));
        assert_eq!(by(Some(other)), (3, Some((1, 1))));
        assert_eq!(by(Some(FaultId(3))), (3, None));
    }

    #[test]
    fn what_came_again_is_counted_in_its_time() {
        let (calls, start) = calls();
        calls.on_repeated(start + 100 * MS);
        calls.gather();
        calls.on_repeated(start + 110 * MS);
        calls.on_duplicate(start + 1500 * MS);
        let counts = |from, until| {
            let sample = sample(&calls, start + from * MS, start + until * MS, None);
            (sample.calls, sample.repeated, sample.duplicates)
        };
        assert_eq!(counts(0, 1000), (0, Some(2), Some(0)));
        assert_eq!(counts(1000, 2000), (0, Some(0), Some(1)));
        assert_eq!(counts(0, 2000), (0, Some(2), Some(1)));
    }

    #[test]
    fn what_is_not_gathered_in_time_is_not_mixed_up_with_what_comes() {
        let (calls, start) = calls();
        calls.record(start, MS, GOOD, None);
        let round = start + SLICE * u32::try_from(WAITING).unwrap();
        calls.record(round, MS, BAD, None);
        assert_eq!(calls.lost(), 1);
        calls.gather();
        calls.record(round, MS, BAD, None);
        assert_eq!(calls.lost(), 1);
        assert_eq!(sample(&calls, start, start + 10_000 * MS, None).calls, 2);
    }

    #[test]
    fn no_more_slices_are_kept_than_a_fault_can_last() {
        let (calls, start) = calls();
        for number in 0..u32::try_from(KEPT + 10).unwrap() {
            calls.record(start + SLICE * number, MS, GOOD, None);
            if number % 10 == 0 {
                calls.gather();
            }
        }
        assert_eq!(calls.gathered().0.len(), KEPT);
    }
}
