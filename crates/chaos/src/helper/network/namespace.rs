//! A network namespace for this process alone: unsafe code for one call.

#![expect(unsafe_code, reason = "unshare; see the SAFETY argument below")]

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Leaves the networks of the system for one in which there is nothing, and over which this process has power.
/// The process must have one thread only; those that are started later come along.
///
/// It takes a user namespace, in which anybody may make it; or privileges, where there are none to be had.
pub(super) fn leave() -> Result<(), Errno> {
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET).or_else(|why| {
        // Why it may not without privileges is what can be done something about.
        unshare(UnshareFlags::NEWNET).map_err(|_| why)
    })
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: the table of descriptors is not among what is unshared, so that each means to all threads what it meant before.
    unsafe { unshare_unsafe(flags) }
}
