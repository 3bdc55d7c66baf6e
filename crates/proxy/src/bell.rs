//! Wakes those who hold messages back when faults begin or end, or something that they wait for has happened.

use std::collections::BTreeMap;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use mcpscope_core::FaultId;
use mcpscope_hooks::Watch;

/// Wakes all of a relay.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// How often it rang.
    times: AtomicU64,
    /// One for each connection, so that to wait costs nothing that connections share.
    tasks: Mutex<Vec<Weak<Ear>>>,
    /// One for each thread.
    threads: Mutex<Vec<PipeWriter>>,
    /// How many messages each fault keeps back, in all connections.
    held: Mutex<BTreeMap<FaultId, u64>>,
}

impl Bell {
    /// Something has changed.
    pub(crate) fn ring(&self) {
        self.times.fetch_add(1, Ordering::SeqCst);
        lock(&self.tasks).iter().filter_map(Weak::upgrade).for_each(|ear| ear.wake());
        // A pipe that is full wakes its reader as it is; one that nobody reads any more is of no use.
        lock(&self.threads).retain(|thread| rustix::io::write(thread, &[0]) != Err(rustix::io::Errno::PIPE));
    }

    /// These faults keep messages back, each as many as it is named, as long as what is returned lives: as long as somebody waits
    /// for the bell, and does nothing else. Who does not hear it is found by this.
    pub(crate) fn hold(&self, faults: Vec<FaultId>) -> Held<'_> {
        if !faults.is_empty() {
            let mut held = lock(&self.held);
            faults.iter().for_each(|fault| *held.entry(*fault).or_default() += 1);
        }
        Held { bell: self, faults }
    }

    /// How often it rang: whoever looks and then waits sees by this whether it did so meanwhile.
    pub(crate) fn times(&self) -> u64 {
        self.times.load(Ordering::SeqCst)
    }

    /// Hears it ring, as long as it lives.
    pub(crate) fn ear(&self) -> Arc<Ear> {
        let new = Arc::default();
        let mut tasks = lock(&self.tasks);
        // Those of connections that are gone make room before more is taken.
        if tasks.len() == tasks.capacity() {
            tasks.retain(|ear| ear.strong_count() > 0);
        }
        tasks.push(Arc::downgrade(&new));
        new
    }

    /// What can be read when it has rung; it never blocks.
    pub(crate) fn thread(&self) -> std::io::Result<PipeReader> {
        let (reader, writer) = std::io::pipe()?;
        for end in [reader.as_fd(), writer.as_fd()] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        lock(&self.threads).push(writer);
        Ok(reader)
    }
}

/// Messages that faults keep back, as long as this lives.
#[derive(Debug)]
#[must_use = "dropping it says that nothing is kept back"]
pub(crate) struct Held<'a> {
    bell: &'a Bell,
    faults: Vec<FaultId>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.faults.is_empty() {
            return;
        }
        let mut held = lock(&self.bell.held);
        for fault in &self.faults {
            if let Some(count) = held.get_mut(fault) {
                *count -= 1;
            }
        }
        held.retain(|_, count| *count > 0);
    }
}

/// What one task hears the bell with. It listens as long as it lives, so that to wait again and again costs next to nothing.
#[derive(Debug)]
pub(crate) struct Ear {
    waker: Mutex<Option<Waker>>,
    /// Where the waker's data is, which no other waker has as long as this one is kept: whether it is the same is known
    /// without the lock.
    data: AtomicUsize,
}

/// Where nobody's data is.
const NOBODY: usize = usize::MAX;

impl Default for Ear {
    fn default() -> Self {
        Self { waker: Mutex::default(), data: AtomicUsize::new(NOBODY) }
    }
}

impl Ear {
    /// Who is woken from now on.
    fn listen(&self, waker: &Waker) {
        let data = waker.data().addr();
        if self.data.load(Ordering::Relaxed) != data {
            *lock(&self.waker) = Some(waker.clone());
            self.data.store(data, Ordering::Relaxed);
        }
    }

    /// The task is over: what it is made of is not needed for this any more.
    pub(crate) fn close(&self) {
        self.data.store(NOBODY, Ordering::Relaxed);
        *lock(&self.waker) = None;
    }

    fn wake(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }
}

/// Waits until the bell rings, from when it was made.
#[derive(Debug)]
pub(crate) struct Rung<'a> {
    bell: &'a Bell,
    ear: &'a Ear,
    times: u64,
}

impl<'a> Rung<'a> {
    /// Only one task has this ear.
    pub(crate) fn new(bell: &'a Bell, ear: &'a Ear) -> Self {
        Self { bell, ear, times: bell.times() }
    }
}

impl Future for Rung<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // First this: who rings counts, and then wakes.
        self.ear.listen(cx.waker());
        if self.bell.times() == self.times { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Watch for Bell {
    fn changed(&self) {
        self.ring();
    }

    fn holds(&self, fault: FaultId) -> Option<u64> {
        Some(lock(&self.held).get(&fault).copied().unwrap_or_default())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_listens_is_woken_each_time_until_the_ear_is_closed() {
        let bell = Bell::default();
        let ear = bell.ear();
        for _ in 0..2 {
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut cx = Context::from_waker(&waker);
            for _ in 0..2 {
                let mut rung = pin!(Rung::new(&bell, &ear));
                assert!(rung.as_mut().poll(&mut cx).is_pending());
                bell.ring();
                assert!(woken.0.swap(false, Ordering::Relaxed));
                assert!(rung.as_mut().poll(&mut cx).is_ready());
            }
            ear.close();
            bell.ring();
            assert!(!woken.0.load(Ordering::Relaxed));
            assert_eq!(Arc::strong_count(&woken), 2, "the waker here and what it wakes");
        }
    }

    #[test]
    fn what_is_kept_back_is_told_until_nobody_waits_any_more() {
        let bell = Bell::default();
        let count = |fault| bell.holds(FaultId(fault));
        let both = bell.hold(vec![FaultId(1), FaultId(2), FaultId(1)]);
        let one = bell.hold(vec![FaultId(2)]);
        assert_eq!([count(1), count(2), count(3)], [Some(2), Some(2), Some(0)]);
        drop(both);
        assert_eq!([count(1), count(2)], [Some(0), Some(1)]);
        drop(one);
        assert_eq!(count(2), Some(0));
        assert!(lock(&bell.held).is_empty());
    }

    #[test]
    fn a_ring_before_the_first_look_is_heard() {
        let bell = Bell::default();
        let ear = bell.ear();
        let mut rung = pin!(Rung::new(&bell, &ear));
        bell.ring();
        assert!(rung.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
