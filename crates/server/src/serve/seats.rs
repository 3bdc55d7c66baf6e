//! Which listening sockets a server gets: those of one that is to end, where they are at the same address, or fresh ones.

use anyhow::anyhow;

use crate::failure::Failure;
use crate::listen::{Address, Bound, bind_or_fail};

/// Where a server listens.
pub(super) struct Seat {
    /// The server's.
    pub(super) name: String,
    pub(super) address: Address,
    /// The listening sockets once more, for whoever takes its place.
    pub(super) bound: Bound,
}

/// The seats there are, of which those that are left go to one server each at most.
pub(super) struct Seats<'a> {
    all: Vec<&'a Seat>,
    left: Vec<&'a Seat>,
}

impl<'a> Seats<'a> {
    /// Each with whether its server is to end.
    pub(super) fn new(seats: impl Iterator<Item = (&'a Seat, bool)>) -> Self {
        let (mut all, mut left) = (Vec::new(), Vec::new());
        for (seat, is_left) in seats {
            all.push(seat);
            left.extend(is_left.then_some(seat));
        }
        Self { all, left }
    }

    /// Listening sockets for a server of this name. Ask for those with a port of their own first: for the others any will do.
    pub(super) fn take(&mut self, name: &str, address: &Address) -> Result<Bound, Failure> {
        if let Some(at) = self.left.iter().position(|seat| seat.is_at(address, name)) {
            // Nobody who connects in the meantime is turned away.
            return self.left.swap_remove(at).bound.try_clone().map_err(Failure::internal);
        }
        bind_or_fail(address, "listen:").map_err(|failure| match self.in_the_way_of(address) {
            Some(seat) => Failure::unavailable(anyhow!(
                "cannot listen on {address}: server {:?} listens on {} until it ends: choose another port, or take it out of the \
                 file first and write it anew then",
                seat.name,
                seat.bound.addr,
            )),
            None => failure,
        })
    }

    fn in_the_way_of(&self, address: &Address) -> Option<&'a Seat> {
        let addresses = address.resolve().ok().filter(|_| address.port != 0)?;
        self.all.iter().find(|seat| seat.bound.is_in_the_way_of(&addresses)).copied()
    }
}

impl Seat {
    /// Whether it is where a server of this name is to listen.
    fn is_at(&self, wanted: &Address, name: &str) -> bool {
        let is_its_port = match wanted.port {
            0 => self.name == name && self.address.port == 0,
            port => self.bound.addr.port() == port,
        };
        self.address.host.eq_ignore_ascii_case(&wanted.host) && is_its_port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(name: &str, address: &str) -> Seat {
        let address: Address = address.parse().unwrap();
        Seat { name: name.to_owned(), bound: address.bind().unwrap(), address }
    }

    fn at(port: u16) -> Address {
        Address { host: "127.0.0.1".to_owned(), port }
    }

    #[test]
    fn a_seat_goes_to_one_server() {
        let x = seat("x", "127.0.0.1:0");
        let port = x.bound.addr.port();
        let mut seats = Seats::new([(&x, true)].into_iter());
        assert_eq!(seats.take("y", &at(port)).unwrap().addr.port(), port);
        assert_ne!(seats.take("x", &at(0)).unwrap().addr.port(), port, "it is taken");
        assert!(seats.take("z", &at(port)).is_err());
    }

    #[test]
    fn any_port_is_the_one_before() {
        let (x, y) = (seat("x", "127.0.0.1:0"), seat("y", "127.0.0.1:0"));
        let mut seats = Seats::new([(&x, true), (&y, true)].into_iter());
        assert_eq!(seats.take("y", &at(0)).unwrap().addr, y.bound.addr);
        assert_ne!(seats.take("new", &at(0)).unwrap().addr, x.bound.addr, "nobody knows it there");
        assert_eq!(seats.take("x", &at(0)).unwrap().addr, x.bound.addr);
    }

    #[test]
    fn who_is_in_the_way_is_named() {
        let x = seat("x", "127.0.0.1:0");
        let port = x.bound.addr.port();
        for is_left in [true, false] {
            let mut seats = Seats::new([(&x, is_left)].into_iter());
            for host in ["0.0.0.0", "localhost"] {
                let failure = seats.take("x", &Address { host: host.to_owned(), port }).unwrap_err().to_string();
                assert!(failure.contains(&format!("server \"x\" listens on 127.0.0.1:{port} until")), "{failure}");
            }
        }
        for elsewhere in [([127, 0, 0, 2], port), ([127, 0, 0, 1], port ^ 1)] {
            assert!(!x.bound.is_in_the_way_of(&[elsewhere.into()]), "{elsewhere:?}");
        }
    }
}
