//! Addresses and sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::str::FromStr;

use anyhow::{Context as _, anyhow};

use crate::failure::Failure;

/// The value of `--dashboard`, `--grpc` and `--probe`.
#[derive(Clone, Debug)]
pub(crate) enum ListenAt {
    Off,
    At(Address),
}

impl FromStr for ListenAt {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::At) }
    }
}

/// A host, as a name or an IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || anyhow!("{text:?} is no address: expected HOST:PORT, such as 127.0.0.1:8080 or localhost:0");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').filter(|v6| v6.parse::<Ipv6Addr>().is_ok()).ok_or_else(wrong)?,
            None if host.is_empty() || host.contains(':') => return Err(wrong()),
            None => host,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Bound sockets of one listener.
#[derive(Debug)]
pub(crate) struct Bound {
    sockets: Vec<TcpListener>,
    /// Where it can be reached: the first socket's address.
    pub(crate) addr: SocketAddr,
}

impl Address {
    /// The addresses it stands for. `localhost` is both loopback addresses, whatever the resolver says.
    ///
    /// # Errors
    /// The name cannot be resolved.
    pub(crate) fn resolve(&self) -> anyhow::Result<Vec<SocketAddr>> {
        if self.host.eq_ignore_ascii_case("localhost") {
            let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
            return Ok(loopback.map(|ip| SocketAddr::new(ip, self.port)).to_vec());
        }
        let mut found: Vec<_> = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {:?}", self.host))?
            .collect();
        found.truncate(1);
        Ok(found)
    }

    /// Binds all of its sockets, with one port in common.
    ///
    /// # Errors
    /// The name cannot be resolved, or the first address, or a second one other than for want of IPv6, cannot be bound.
    pub(crate) fn bind(&self) -> anyhow::Result<Bound> {
        // With port 0, the port that is free for the first address may be taken for the second: try another.
        const ATTEMPTS: u32 = 16;
        let addresses = self.resolve()?;
        let (first, rest) = addresses.split_first().ok_or_else(|| anyhow!("{:?} has no address", self.host))?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let socket = listener(*first).with_context(|| format!("cannot listen on {first}"))?;
            let addr = socket.local_addr()?;
            let mut sockets = vec![socket];
            let mut taken = None;
            for other in rest {
                match listener(SocketAddr::new(other.ip(), addr.port())) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = Some(error),
                    // No IPv6 on this machine.
                    Err(error) => tracing::debug!(%other, %error, "not listening there"),
                }
            }
            match taken {
                None => return Ok(Bound { sockets, addr }),
                Some(error) => last = Some(anyhow!(error).context(format!("cannot listen on {self}"))),
            }
            if self.port != 0 {
                break;
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("cannot listen on {self}")))
    }
}

/// A socket that can be bound again at once after the program ended; never one that another program listens on.
fn listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Bound {
    /// The same sockets once more.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let sockets = self.sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { sockets, addr: self.addr })
    }

    /// Whether nobody else can be bound to one of these.
    pub(crate) fn is_in_the_way_of(&self, addresses: &[SocketAddr]) -> bool {
        let own = || self.sockets.iter().filter_map(|socket| socket.local_addr().ok());
        addresses.iter().any(|wanted| {
            let is_same = |ip: IpAddr| ip == wanted.ip() || ip.is_unspecified() || wanted.ip().is_unspecified();
            own().any(|own| own.port() == wanted.port() && is_same(own.ip()))
        })
    }

    /// The sockets for the runtime that this is called in.
    ///
    /// # Errors
    /// The runtime cannot take them.
    pub(crate) fn into_tokio(self) -> io::Result<Vec<tokio::net::TcpListener>> {
        self.sockets.into_iter().map(tokio::net::TcpListener::from_std).collect()
    }
}

/// Binds or fails with exit code 69 and the way out: another address after `option`.
pub(crate) fn bind_or_fail(address: &Address, option: &str) -> Result<Bound, Failure> {
    address.bind().map_err(|error| {
        let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.clone() };
        Failure::unavailable(anyhow!(
            "{error:#}; choose another address (port 0 takes any free one: {option} {host}:0)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses() {
        let address: Address = "[::1]:80".parse().unwrap();
        assert_eq!((address.host.as_str(), address.port, address.to_string().as_str()), ("::1", 80, "[::1]:80"));
        assert_eq!("localhost:0".parse::<Address>().unwrap().to_string(), "localhost:0");
        for bad in ["", "8080", "localhost", "localhost:", ":80", "localhost:99999", "::1:80", "[::1", "[x]:1"] {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("expected HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn localhost_is_one_port_on_both_loopback_addresses() {
        let bound = Address { host: "localhost".into(), port: 0 }.bind().unwrap();
        assert!(bound.addr.ip().is_loopback() && bound.addr.is_ipv4());
        for socket in &bound.sockets {
            assert_eq!(socket.local_addr().unwrap().port(), bound.addr.port());
        }
        let taken = Address { host: "localhost".into(), port: bound.addr.port() };
        let error = format!("{:#}", taken.bind().unwrap_err());
        assert!(error.contains(&format!("127.0.0.1:{}", bound.addr.port())), "{error}");
    }
}
