//! From a thread to its own cells: the only unsafe code of this crate, for one reason. Finding them safely takes as long
//! as three recordings do (a lazily made thread-local, a borrow check and a search).

#![expect(unsafe_code, reason = "the fast path; see the SAFETY argument below")]

use std::cell::{Cell, RefCell};
use std::ptr;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use crate::storage::Store;
use crate::storage::names::Names;
use crate::storage::slab::{Slab, Slabs};

/// What a thread has of one instance.
#[derive(Debug)]
pub(crate) struct Local {
    slab: Arc<Slab>,
    slabs: Arc<Slabs>,
    /// The names it recorded by.
    pub(crate) names: RefCell<Names>,
}

impl Local {
    pub(crate) fn slab(&self) -> &Slab {
        &self.slab
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.slabs.give_back(Arc::clone(&self.slab));
    }
}

/// What this thread used last.
#[derive(Clone, Copy)]
struct Last {
    /// The instance's number; 0 is none.
    store: u64,
    local: *const Local,
}

const NOTHING: Last = Last { store: 0, local: ptr::null() };

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

/// Calls `with` with what the calling thread has of this instance; none if the thread is about to end, or others are busy
/// with their own first record.
#[inline]
pub(crate) fn local<R>(store: &Arc<Store>, with: impl FnOnce(&Local) -> R) -> Option<R> {
    let last = LAST.get();
    if last.store != store.number {
        return find(store, with);
    }
    // SAFETY: `LAST` is only ever set to a `Local` that `OWNED` of this same thread holds, together with the number of the
    // instance that it was made for, which no other instance ever has.
    // - It leaves `OWNED` in two ways. `Drop for Owned` runs when the thread ends, and empties `LAST` before what it
    //   owns goes. `find` lets go of those whose instance is gone; the caller holds this one, so it is not gone, and
    //   its `Local` was not let go, neither before nor while `with` runs.
    // - An `Rc`'s content does not move when the vector grows. It is only ever borrowed shared: what changes in it has
    //   its own `RefCell` or atomics, and it never leaves its thread (`with` gets a reference for the time of the call).
    Some(with(unsafe { &*last.local }))
}

#[cold]
fn find<R>(store: &Arc<Store>, with: impl FnOnce(&Local) -> R) -> Option<R> {
    // While the thread ends there is no place for something that needs to be dropped.
    OWNED
        .try_with(|owned| {
            let mut owned = owned.try_borrow_mut().ok()?;
            let mine = |(weak, _): &(Weak<Store>, Rc<Local>)| ptr::eq(weak.as_ptr(), Arc::as_ptr(store));
            let at = match owned.0.iter().position(mine) {
                Some(at) => at,
                None => {
                    owned.0.retain(|(weak, _)| weak.strong_count() > 0);
                    let slab = store.slabs.adopt()?;
                    let names = RefCell::default();
                    let local = Local { slab, slabs: Arc::clone(&store.slabs), names };
                    owned.0.push((Arc::downgrade(store), Rc::new(local)));
                    owned.0.len() - 1
                }
            };
            let local = Rc::as_ptr(owned.0.get(at).map(|(_, local)| local)?);
            LAST.set(Last { store: store.number, local });
            Some(())
        })
        .ok()??;
    // Now it is there, and `OWNED` is no longer borrowed: `with` may come here again for another instance.
    if LAST.get().store == store.number { local(store, with) } else { None }
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
        local(store, |local| local.slab().count(PLACE, 1))
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
    fn what_is_dropped_with_the_thread_can_still_record() {
        struct Last(Arc<Store>, mpsc::Sender<Option<()>>);
        impl Drop for Last {
            fn drop(&mut self) {
                let counted = count(&self.0);
                if counted.is_none() {
                    self.0.slabs.share(|slab| slab.count(PLACE, 1));
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
        assert_eq!((total(&store), store.slabs.take_lost()), (2, 0));
    }
}
