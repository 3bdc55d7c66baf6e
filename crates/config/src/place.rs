//! Places in the network.

use std::net::IpAddr;

use url::{Host, Url};

/// A host and a port, equal however they are written: `localhost`, every loopback address and the addresses that stand for all
/// of a machine's are one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    host: String,
    port: u16,
}

impl Place {
    /// Where requests to this URL go.
    pub(crate) fn of_url(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let host = match url.host()? {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        Some(Self { host: normalised(&host), port: url.port_or_known_default()? })
    }

    /// Where one listens at this `HOST:PORT`; nothing for port 0, which is any.
    pub(crate) fn of_listener(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0)?;
        Some(Self { host: normalised(host), port })
    }
}

fn normalised(host: &str) -> String {
    const THIS_MACHINE: &str = "localhost";
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) if address.is_loopback() || address.is_unspecified() => THIS_MACHINE.to_owned(),
        Ok(address) => address.to_string(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_same_however_it_is_written() {
        let here = Place::of_listener("127.0.0.1:80");
        assert!(here.is_some());
        for url in [
            "http://127.0.0.1",
            "http://localhost/mcp",
            "http://LOCALHOST.:80/a/b",
            "https://[::1]:80/",
            "http://0.0.0.0/",
            "http://[::]/",
            "http://127.1/",
            "http://[::ffff:127.0.0.1]/",
        ] {
            assert_eq!(Place::of_url(url), here, "{url}");
        }
        for address in ["localhost:80", "0.0.0.0:80", "[::]:80", "[::1]:80", "LocalHost:80"] {
            assert_eq!(Place::of_listener(address), here, "{address}");
        }
        assert_eq!(Place::of_url("https://H.example"), Place::of_listener("h.example:443"));
        for other in ["http://127.0.0.1:81", "http://10.0.0.1", "http://h", "https://localhost"] {
            assert_ne!(Place::of_url(other), here, "{other}");
        }
        assert_eq!(Place::of_listener("127.0.0.1:0"), None);
    }
}
