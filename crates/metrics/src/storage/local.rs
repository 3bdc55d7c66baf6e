//! From a thread to its own cells: the only unsafe code of this crate, for one reason. Finding them safely takes as long
//! as three recordings do (a lazily made thread-local, a borrow check and a search).

#![expect(unsafe_code, reason = "the fast path; see the SAFETY argument below")]

use std::cell::{Cell, RefCell};
use std::ptr;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use crate::storage::Store;
use crate::storage::buckets::Place;
use crate::storage::cells::CounterCell;
use crate::storage::names::Names;
use crate::storage::slab::{Loan, Slab, Slabs};

/// What a thread has of one instance.
#[derive(Debug)]
pub(crate) struct Local {
    loan: Loan,
    slabs: Arc<Slabs>,
    /// The names it recorded by.
    pub(crate) names: RefCell<Names>,
}

impl Local {
    pub(crate) fn slab(&self) -> &Slab {
        &self.loan.slab
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.slabs.give_back(&self.loan);
    }
}

/// What this thread used last.
#[derive(Clone, Copy)]
struct Last {
    /// The instance's number; 0 is none.
    store: u64,
    slab: *const Slab,
    local: *const Local,
}

const NOTHING: Last = Last { store: 0, slab: ptr::null(), local: ptr::null() };

/// All that this thread has. Only ever dropped with the thread.
///
/// Not a `Box`, which says that nobody else points to what is in it.
struct Owned(Vec<(Weak<Store>, Rc<Local>)>);

impl Drop for Owned {
    fn drop(&mut self) {
        LAST.set(NOTHING);
    }
}

thread_local! {
    /// Needs no destructor, and is thus there as long as the thread is.
    static LAST: Cell<Last> = const { Cell::new(NOTHING) };
    static OWNED: RefCell<Owned> = const { RefCell::new(Owned(Vec::new())) };
}

/// The calling thread's slab; none if the thread is about to end.
#[inline(always)]
pub(crate) fn slab(store: &Arc<Store>) -> Option<&Slab> {
    if LAST.get().store != store.number {
        find(store)?;
    }
    // SAFETY: `LAST` is of this instance now, whose number no other one ever has. It is only ever set to one of the slabs
    // of the instance that it is of. The caller holds the instance, which keeps all slabs that it ever had.
    Some(unsafe { &*LAST.get().slab })
}

/// Calls `with` with what the calling thread has of this instance; none as for [`slab`].
#[inline(always)]
pub(crate) fn local<R>(store: &Arc<Store>, with: impl FnOnce(&Local) -> R) -> Option<R> {
    if LAST.get().store != store.number {
        find(store)?;
    }
    // SAFETY: `LAST` is of this instance now. It is only ever set to a `Local` that `OWNED` of this same thread holds,
    // together with the number of the instance that it was made for, which no other instance ever has.
    // - It leaves `OWNED` in two ways. `Drop for Owned` runs when the thread ends, and empties `LAST` before what it
    //   owns goes. `find` lets go of those whose instance is gone; the caller holds this one, so it is not gone, and
    //   its `Local` was not let go, neither before nor while `with` runs.
    // - An `Rc`'s content does not move when the vector grows. It is only ever borrowed shared: what changes in it has
    //   its own `RefCell` or atomics, and it never leaves its thread (`with` gets a reference for the time of the call).
    Some(with(unsafe { &*LAST.get().local }))
}

/// Makes `LAST` of this instance; none if that cannot be.
#[cold]
#[inline(never)]
fn find(store: &Arc<Store>) -> Option<()> {
    // While the thread ends there is no place for something that needs to be dropped.
    OWNED
        .try_with(|owned| {
            let mut owned = owned.try_borrow_mut().ok()?;
            let mine = |(weak, _): &(Weak<Store>, Rc<Local>)| ptr::eq(weak.as_ptr(), Arc::as_ptr(store));
            let at = match owned.0.iter().position(mine) {
                Some(at) => at,
                None => {
                    owned.0.retain(|(weak, _)| weak.strong_count() > 0);
                    let loan = store.slabs.adopt()?;
                    let names = RefCell::default();
                    let local = Local { loan, slabs: Arc::clone(&store.slabs), names };
                    owned.0.push((Arc::downgrade(store), Rc::new(local)));
                    owned.0.len() - 1
                }
            };
            let (_, local) = owned.0.get(at)?;
            LAST.set(Last { store: store.number, slab: Arc::as_ptr(&local.loan.slab), local: Rc::as_ptr(local) });
            Some(())
        })
        .ok()?
}

/// Where the calling thread counts the events of one place in the program.
#[derive(Debug)]
pub struct CachedCell(Cell<Cached>);

/// A cell of this thread's slab.
#[derive(Clone, Copy, Debug)]
struct Cached {
    /// The instance's number; 0 is none.
    store: u64,
    cell: *const CounterCell,
}

impl CachedCell {
    /// Nowhere yet.
    #[expect(clippy::new_without_default, reason = "only ever a thread-local constant")]
    #[must_use]
    pub const fn new() -> Self {
        Self(Cell::new(Cached { store: 0, cell: ptr::null() }))
    }

    /// Counts `n` events; none if it has no cell of this instance, or the thread changed to another one meanwhile.
    #[inline(always)]
    pub(crate) fn count(&self, store: &Arc<Store>, n: u64) -> Option<()> {
        let cached = self.0.get();
        if cached.store != store.number || LAST.get().store != store.number {
            return None;
        }
        // SAFETY: `set` got the cell from a slab of the instance of this number, which no other instance ever has. The
        // caller holds the instance, which keeps all slabs that it ever had, and a cell never moves or goes while its slab
        // is there.
        let cell = unsafe { &*cached.cell };
        // The slab is this thread's: a `CachedCell` never leaves its thread, because pointers are not `Send`; it keeps
        // one slab of an instance until it ends; and it has not begun to end, or `LAST` would be empty.
        cell.add(n);
        Some(())
    }

    /// Makes it the cell of this place, which must be there.
    pub(crate) fn set(&self, store: &Arc<Store>, place: Place) {
        if let Some(cell) = slab(store).and_then(|slab| slab.counter(place)) {
            self.0.set(Cached { store: store.number, cell });
        }
    }
}

#[cfg(test)]
#[cfg(not(mcpscope_loom))]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::storage::buckets::Place;

    const PLACE: Place = Place::of(0);

    fn count(store: &Arc<Store>) -> Option<()> {
        slab(store).map(|slab| slab.count(PLACE, 1))
    }

    fn total(store: &Store) -> u64 {
        store.slabs.all().iter().filter_map(|slab| Some(slab.counter(PLACE)?.get())).sum()
    }

    #[test]
    fn threads_that_end_lose_nothing_and_leave_their_slab_to_the_next() {
        let store = Store::for_tests();
        for _ in 0..20 {
            let store = Arc::clone(&store);
            thread::spawn(move || count(&store)).join().unwrap();
        }
        assert_eq!((total(&store), store.slabs.all().len()), (20, 1));
    }

    #[test]
    fn a_thread_changes_between_instances() {
        let stores = [Store::for_tests(), Store::for_tests(), Store::for_tests()];
        for n in 0..300 {
            count(&stores[n % 3]);
        }
        assert_eq!(stores.each_ref().map(|store| total(store)), [100; 3]);
        assert!(stores.iter().all(|store| store.slabs.all().len() == 1));
    }

    #[test]
    fn one_instance_can_be_written_while_another_is() {
        let (outer, inner) = (Store::for_tests(), Store::for_tests());
        for _ in 0..3 {
            local(&outer, |local| {
                count(&inner);
                let gone = Store::for_tests();
                count(&gone);
                drop(gone);
                // Makes the thread look for what it can let go, with one of them in use.
                count(&Store::for_tests());
                local.slab().count(PLACE, 1);
            });
        }
        assert_eq!((total(&outer), total(&inner)), (3, 3));
    }

    #[test]
    fn an_instance_that_is_gone_is_not_taken_for_a_new_one() {
        for _ in 0..100 {
            let store = Store::for_tests();
            count(&store);
            assert_eq!(total(&store), 1);
        }
        OWNED.with(|owned| assert!(owned.borrow().0.len() <= 2, "what nobody can use any more is let go"));
    }

    #[test]
    fn a_cached_cell_counts_only_in_its_own_instance() {
        let (store, other) = (Store::for_tests(), Store::for_tests());
        let cell = CachedCell::new();
        assert!(cell.count(&store, 1).is_none(), "it is nowhere yet");
        count(&store);
        cell.set(&store, PLACE);
        assert!(cell.count(&store, 1).is_some() && cell.count(&other, 1).is_none());
        count(&other);
        // The thread uses the other one now.
        assert!(cell.count(&store, 1).is_none());
        count(&store);
        assert!(cell.count(&store, 1).is_some());
        cell.set(&other, PLACE);
        assert!(cell.count(&other, 1).is_some() && cell.count(&store, 1).is_none());
        assert_eq!((total(&store), total(&other)), (4, 2));
        drop(other);
        assert!(cell.count(&Store::for_tests(), 1).is_none(), "what is gone is not taken for what is new");
    }

    #[test]
    fn a_cached_cell_of_a_thread_that_ends_counts_nothing() {
        struct Last(Arc<Store>, CachedCell, mpsc::Sender<Option<()>>);
        impl Drop for Last {
            fn drop(&mut self) {
                // Its slab may be another thread's already.
                self.2.send(self.1.count(&self.0, 1)).unwrap();
            }
        }
        thread_local!(static LATE: RefCell<Option<Last>> = const { RefCell::new(None) });

        let store = Store::for_tests();
        let (sender, receiver) = mpsc::channel();
        let theirs = Arc::clone(&store);
        thread::spawn(move || {
            // Registered before `OWNED` is, and thus dropped after it.
            LATE.with(|_| ());
            LATE.set(None);
            count(&theirs);
            let cell = CachedCell::new();
            cell.set(&theirs, PLACE);
            assert!(cell.count(&theirs, 1).is_some());
            LATE.set(Some(Last(theirs, cell, sender)));
        })
        .join()
        .unwrap();
        assert_eq!((receiver.recv().unwrap(), total(&store)), (None, 2));
    }

    #[test]
    fn what_is_dropped_with_the_thread_can_still_record() {
        struct Last(Arc<Store>, mpsc::Sender<Option<()>>);
        impl Drop for Last {
            fn drop(&mut self) {
                let counted = count(&self.0);
                if counted.is_none() {
                    self.0.slabs.lend(|slab| slab.count(PLACE, 1));
                }
                self.1.send(counted).unwrap();
            }
        }
        thread_local!(static LATE: RefCell<Option<Last>> = const { RefCell::new(None) });

        let store = Store::for_tests();
        let (sender, receiver) = mpsc::channel();
        let theirs = Arc::clone(&store);
        thread::spawn(move || {
            // Registered first, dropped first or last: both orders must do.
            LATE.set(Some(Last(Arc::clone(&theirs), sender)));
            count(&theirs);
        })
        .join()
        .unwrap();
        receiver.recv().unwrap();
        assert_eq!(total(&store), 2);
    }
}
