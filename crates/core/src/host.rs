//! Which `Host` and `Origin` a local listener answers to: the defence against DNS rebinding.

use std::net::IpAddr;

/// The hosts and origins a listener answers to.
///
/// A page on a foreign site can make a browser send requests to a loopback address, under a host name that the attacker
/// controls. The `Host` header still names that host, so it is the primary check; `Origin`, where a browser sends it, is
/// the second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPolicy {
    /// Host names allowed besides loopback, without port, lower case.
    pub allowed_hosts: Vec<String>,
    /// Origins allowed besides those of `origins`, such as `https://inspector.example`.
    pub allowed_origins: Vec<String>,
    /// Which origins are allowed without being named.
    pub origins: Origins,
    /// Whether any host is answered to: for a listener that was bound to a non-loopback address on purpose and whose names
    /// cannot be known. Origins are checked all the same.
    pub any_host: bool,
}

/// Which origins a listener answers to without their being named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// Every page of this machine: `http` or `https`, a loopback name, any port.
    #[default]
    Loopback,
    /// The listener's own pages only: `http` and the host that the request is for, with the same port.
    Own,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No `Host`, or more than one.
    HostCount(usize),
    /// This host is not answered to.
    Host(String),
    /// This origin is not answered to; besides those that are named, there are these.
    Origin(String, Origins),
}

impl HostPolicy {
    /// Checks one request: its `Host` headers, the authority of its target if that is absolute (`GET http://host/path`,
    /// where it wins over the header, RFC 9112), and its `Origin` headers.
    ///
    /// # Errors
    /// Not exactly one host, a host that is neither loopback nor allowed, or an origin that is not allowed.
    pub fn check<'a>(
        &self,
        hosts: impl IntoIterator<Item = &'a [u8]>,
        authority: Option<&str>,
        origins: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Refusal> {
        let mut hosts = hosts.into_iter();
        let host = hosts.next();
        let count = usize::from(host.is_some()) + hosts.count();
        // HTTP/1.0 needs none, and some load balancers send none.
        if count != 1 && !(count == 0 && self.any_host) {
            return Err(Refusal::HostCount(count));
        }
        for name in host.into_iter().chain(authority.map(str::as_bytes)) {
            if !self.any_host && !self.allows_host(name) {
                return Err(Refusal::Host(shown(name)));
            }
        }
        let host = authority.map(str::as_bytes).or(host);
        match origins.into_iter().find(|origin| !self.allows_origin(origin, host)) {
            Some(origin) => Err(Refusal::Origin(shown(origin), self.origins)),
            None => Ok(()),
        }
    }

    fn allows_host(&self, host: &[u8]) -> bool {
        std::str::from_utf8(host).ok().and_then(host_name).is_some_and(|name| {
            is_loopback(name) || self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
        })
    }

    fn allows_origin(&self, origin: &[u8], host: Option<&[u8]>) -> bool {
        let Ok(origin) = std::str::from_utf8(origin) else { return false };
        let unnamed = match self.origins {
            Origins::Loopback => ["http://", "https://"]
                .iter()
                .find_map(|scheme| origin.strip_prefix(scheme))
                .and_then(host_name)
                .is_some_and(is_loopback),
            Origins::Own => origin
                .strip_prefix("http://")
                .zip(host)
                .is_some_and(|(asks, asked)| asks.as_bytes().eq_ignore_ascii_case(asked)),
        };
        unnamed || self.allowed_origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }
}

impl Refusal {
    /// In words, for people who find the lists of what is allowed in this section of their configuration.
    #[must_use]
    pub fn told(&self, section: &str) -> String {
        match self {
            Self::HostCount(count) => format!("expected one Host header, found {count}"),
            Self::Host(host) => format!(
                "host {host:?} is not answered to: expected localhost, 127.0.0.1, [::1] or one of {section}.allowed_hosts"
            ),
            Self::Origin(origin, origins) => {
                let expected = match origins {
                    Origins::Loopback => "a loopback one",
                    Origins::Own => "that of the host asked for, over http,",
                };
                format!("origin {origin:?} is not answered to: expected {expected} or one of {section}.allowed_origins")
            }
        }
    }
}

/// The name in `name`, `name:port` or `[v6]:port`; nothing if the rest is no port.
fn host_name(authority: &str) -> Option<&str> {
    let (name, rest) = match authority.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => match authority.find(':') {
            Some(colon) => authority.split_at(colon),
            None => (authority, ""),
        },
    };
    let port_ok = rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    (port_ok && !name.is_empty()).then_some(name)
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn shown(raw: &[u8]) -> String {
    crate::bounded(&String::from_utf8_lossy(raw), 256).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "the calls read better with a value")]
    fn check(policy: &HostPolicy, hosts: &[&str], origins: &[&str], expected: Result<(), Refusal>) {
        let bytes = |list: &[&str]| list.iter().map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
        let (hosts, origins) = (bytes(hosts), bytes(origins));
        let found = policy.check(hosts.iter().map(Vec::as_slice), None, origins.iter().map(Vec::as_slice));
        assert_eq!(found, expected);
    }

    #[test]
    fn loopback_is_answered_to() {
        let policy = HostPolicy::default();
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "127.1.2.3", "[::1]"] {
            check(&policy, &[host], &[], Ok(()));
        }
        check(&policy, &["localhost:1"], &["http://localhost:5173"], Ok(()));
        check(&policy, &["localhost:1"], &["https://127.0.0.1"], Ok(()));
    }

    #[test]
    fn foreign_hosts_and_origins_are_refused() {
        let policy = HostPolicy::default();
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "10.0.0.1",
            "localhost:80@evil.example",
            "",
            "[::1",
            "localhost:99999",
        ] {
            check(&policy, &[host], &[], Err(Refusal::Host(host.to_owned())));
        }
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost.evil.example",
            "http://localhost@evil.example",
            "file://localhost",
        ] {
            check(&policy, &["localhost"], &[origin], Err(Refusal::Origin(origin.to_owned(), Origins::Loopback)));
        }
        check(&policy, &[], &[], Err(Refusal::HostCount(0)));
        check(&policy, &["localhost", "localhost"], &[], Err(Refusal::HostCount(2)));
    }

    #[test]
    fn an_absolute_target_passes_the_same_check() {
        let policy = HostPolicy::default();
        let check = |authority| policy.check([b"localhost".as_slice()], Some(authority), []);
        assert_eq!(check("127.0.0.1:80"), Ok(()));
        assert_eq!(check("evil.example"), Err(Refusal::Host("evil.example".into())));
    }

    #[test]
    fn what_is_allowed_by_name_is_answered_to() {
        let policy = HostPolicy {
            allowed_hosts: vec!["mcp.internal".into()],
            allowed_origins: vec!["https://inspector.example".into()],
            ..HostPolicy::default()
        };
        check(&policy, &["mcp.internal:9000"], &["https://inspector.example"], Ok(()));
        check(
            &policy,
            &["mcp.internal"],
            &["https://inspector.example.evil"],
            Err(Refusal::Origin("https://inspector.example.evil".into(), Origins::Loopback)),
        );
        let open = HostPolicy { any_host: true, ..HostPolicy::default() };
        check(&open, &["10.0.0.1:9000"], &[], Ok(()));
        check(&open, &[], &[], Ok(()));
        check(&open, &["a", "a"], &[], Err(Refusal::HostCount(2)));
        let evil = Refusal::Origin("http://evil.example".into(), Origins::Loopback);
        check(&open, &["10.0.0.1:9000"], &["http://evil.example"], Err(evil));
    }

    #[test]
    fn of_pages_only_its_own_may_be_answered_to() {
        let policy = HostPolicy {
            allowed_hosts: vec!["mcp.internal".into()],
            allowed_origins: vec!["https://grafana.example".into(), "http://localhost:3000".into()],
            origins: Origins::Own,
            any_host: false,
        };
        for (host, origin) in [
            ("localhost:8080", "http://localhost:8080"),
            ("LOCALHOST:8080", "http://localhost:8080"),
            ("localhost", "http://localhost"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("mcp.internal:8080", "http://mcp.internal:8080"),
            ("localhost:8080", "https://grafana.example"),
            ("localhost:8080", "http://localhost:3000"),
        ] {
            check(&policy, &[host], &[origin], Ok(()));
        }
        for origin in [
            "http://localhost",
            "http://localhost:80800",
            "http://localhost:8081",
            "http://127.0.0.1:8080",
            "https://localhost:8080",
            "http://localhost:8080/",
            "http://mcp.internal:8080",
            "localhost:8080",
            "null",
            "",
        ] {
            let refusal = Refusal::Origin(origin.to_owned(), Origins::Own);
            check(&policy, &["localhost:8080"], &[origin], Err(refusal));
        }
        // A page that is answered to by its own name is no page of a host that is not.
        check(&policy, &["evil.example"], &["http://evil.example"], Err(Refusal::Host("evil.example".into())));
        // Of two hosts the one counts that the request is for.
        let absolute = |origin: &str| {
            policy.check([b"localhost:1".as_slice()], Some("localhost:2"), [origin.as_bytes()]).map_err(drop)
        };
        assert_eq!((absolute("http://localhost:2"), absolute("http://localhost:1")), (Ok(()), Err(())));
    }
}
