//! The helper that is a network: a namespace with a loopback device whose packets the kernel delays and loses.
//!
//! Nothing of the host is touched. The helper hands out both ends of connections over that device. When it and they are gone,
//! there is nothing left of the namespace.

mod namespace;
mod netlink;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::{set_ip_tos, set_socket_linger};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, Signal, getppid, set_parent_process_death_signal};

use self::netlink::{Netlink, Refused, Step};
use crate::helper::serve::{OWN_SECONDS, TELL, is_ready, limit, limit_address_space, watch_over};
use crate::helper::wire::Told;
use crate::network::Netem;

/// What an order is answered with, along with both ends of a connection; without them there was none to be had.
pub(super) const PAIR: &[u8] = b"p";
/// What netlink shapes.
const IPTOS_LOWDELAY: u8 = 0x10;

/// Is a network until `deadline`, or until `orders` end. Each byte of them is for a connection.
pub(super) fn serve(
    netem: &Netem,
    deadline: Instant,
    orders: BorrowedFd<'_>,
    tell: impl Fn(Told) -> io::Result<()>,
) -> io::Result<()> {
    let parent = getppid();
    // While there is one thread.
    let network = match make(netem) {
        Ok(network) => network,
        Err(why) => return tell(Told::Failed(why)),
    };
    // Who has other privileges than before has forgotten that.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Ok(());
    }
    watch_over(deadline)?;
    let seconds = deadline.saturating_duration_since(Instant::now()).as_secs() + 1 + OWN_SECONDS;
    limit(Resource::Cpu, seconds);
    limit_address_space(0);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    tell(Told::Up)?;
    let mut next_told = Instant::now();
    loop {
        let now = Instant::now();
        if now >= deadline {
            break;
        }
        if now >= next_told {
            tell(Told::Packets(network.packets()?))?;
            next_told = now + TELL;
        }
        let wait = next_told.min(deadline).saturating_duration_since(now);
        if is_ready(orders, wait)? {
            match rustix::io::read(orders, &mut [0; 1]) {
                Ok(1..) if answer(orders, pair(&listener, address).ok().as_ref()).is_ok() => {}
                Err(Errno::INTR) => {}
                // Nobody is there any more who wants connections.
                _ => break,
            }
        }
    }
    tell(Told::Packets(network.packets()?))?;
    // What is still in it has gone on by another way. It would keep the namespace for as long as it is delayed.
    Ok(network.let_go()?)
}

/// Makes the namespace and what is in it; or says why there can be none.
fn make(netem: &Netem) -> Result<Netlink, String> {
    namespace::leave().map_err(no_namespace)?;
    let network = Netlink::open().map_err(|refused| told(&refused))?;
    network.shape(netem).map_err(|refused| told(&refused))?;
    Ok(network)
}

fn no_namespace(errno: Errno) -> String {
    match errno {
        Errno::NOSPC | Errno::USERS => {
            "backend=netem needs a namespace of its own, and there may be no more: expected user.max_user_namespaces and \
             user.max_net_namespaces (sysctl) to allow some, or backend=message"
                .to_owned()
        }
        Errno::PERM | Errno::ACCESS => forbidden(errno),
        _ => format!(
            "backend=netem needs a namespace of its own, and this system makes none ({errno}): expected a kernel with \
             CONFIG_NET_NS and CONFIG_USER_NS, or backend=message"
        ),
    }
}

fn forbidden(errno: Errno) -> String {
    format!(
        "backend=netem needs a user and network namespace of its own, and may not make one ({errno}): expected \
         kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0 where there are such \
         (sysctl), a container that allows unshare(2), CAP_SYS_ADMIN, or backend=message"
    )
}

fn told(refused: &Refused) -> String {
    let Refused { step, errno } = refused;
    match (step, *errno) {
        // It is there without power over what is in it: AppArmor does that.
        (_, Errno::PERM | Errno::ACCESS) => forbidden(*errno),
        (Step::Netem, Errno::NOENT) => lacks("netem"),
        (Step::Prio, Errno::NOENT) => lacks("prio"),
        (step, errno) => format!("backend=netem: the kernel refuses {step:?}: {errno}"),
    }
}

fn lacks(kind: &str) -> String {
    format!(
        "backend=netem needs a kernel with the queueing disciplines netem and prio, and this one has no {kind}: expected \
         their modules to be loaded (as root: modprobe -a sch_netem sch_prio), or backend=message"
    )
}

/// A connection through the network. It is made past it, and led through it from then on.
fn pair(listener: &TcpListener, address: SocketAddr) -> io::Result<[TcpStream; 2]> {
    let near = TcpStream::connect(address)?;
    let its = near.local_addr()?;
    let far = loop {
        let (far, from) = listener.accept()?;
        if from == its {
            break far;
        }
    };
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        end.set_nonblocking(true)?;
        set_ip_tos(end, IPTOS_LOWDELAY)?;
        // Whoever closes it wants nothing of it any more: it is not to go on by itself until the other end has everything.
        set_socket_linger(end, Some(Duration::ZERO))?;
    }
    Ok([near, far])
}

fn answer(orders: BorrowedFd<'_>, pair: Option<&[TcpStream; 2]>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let ends = pair.map(|[near, far]| [near.as_fd(), far.as_fd()]);
    if let Some(ends) = &ends {
        ancillary.push(SendAncillaryMessage::ScmRights(ends));
    }
    sendmsg(orders, &[IoSlice::new(PAIR)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_told_with_what_to_do_about_it() {
        let refused = |step, errno| told(&Refused { step, errno });
        for (text, expected) in [
            (
                refused(Step::Netem, Errno::NOENT),
                "this one has no netem: expected their modules to be loaded (as root: modprobe",
            ),
            (refused(Step::Prio, Errno::NOENT), "this one has no prio"),
            (refused(Step::Device, Errno::PERM), "kernel.apparmor_restrict_unprivileged_userns=0"),
            (refused(Step::Netem, Errno::INVAL), "the kernel refuses Netem"),
            (no_namespace(Errno::PERM), "kernel.unprivileged_userns_clone=1"),
            (no_namespace(Errno::NOSPC), "user.max_user_namespaces"),
            (no_namespace(Errno::INVAL), "CONFIG_NET_NS"),
        ] {
            assert!(text.contains(expected) && text.starts_with("backend=netem"), "{text}");
        }
    }
}
