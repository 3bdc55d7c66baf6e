//! Which listening sockets a server gets: those of one that is to end, where they are at the same address, or fresh ones.

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

/// The seats that are left, each of which goes to one server at most.
pub(super) struct Left<'a>(Vec<&'a Seat>);

impl<'a> Left<'a> {
    pub(super) fn new(seats: impl Iterator<Item = &'a Seat>) -> Self {
        Self(seats.collect())
    }

    /// Listening sockets for a server of this name. Ask for those with a port of their own first: for the others any will do.
    pub(super) fn take(&mut self, name: &str, address: &Address) -> Result<Bound, Failure> {
        match self.0.iter().position(|seat| seat.is_at(address, name)) {
            // Nobody who connects in the meantime is turned away.
            Some(at) => self.0.swap_remove(at).bound.try_clone().map_err(Failure::internal),
            None => bind_or_fail(address, "listen:"),
        }
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
        let mut left = Left::new([&x].into_iter());
        assert_eq!(left.take("y", &at(port)).unwrap().addr.port(), port);
        assert_ne!(left.take("x", &at(0)).unwrap().addr.port(), port, "it is taken");
        assert!(left.take("z", &at(port)).is_err());
    }

    #[test]
    fn any_port_is_the_one_before() {
        let (x, y) = (seat("x", "127.0.0.1:0"), seat("y", "127.0.0.1:0"));
        let mut left = Left::new([&x, &y].into_iter());
        assert_eq!(left.take("y", &at(0)).unwrap().addr, y.bound.addr);
        assert_ne!(left.take("new", &at(0)).unwrap().addr, x.bound.addr, "nobody knows it there");
        assert_eq!(left.take("x", &at(0)).unwrap().addr, x.bound.addr);
    }
}
