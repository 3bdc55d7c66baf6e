//! The server behind the relay.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use url::{Host, Url};

/// Where requests go: an `http` URL.
#[derive(Clone, Debug)]
pub struct Upstream {
    host: Host<String>,
    port: u16,
    path: String,
    authority: String,
}

/// The URL cannot be an upstream.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUpstream {
    /// It is no URL.
    #[error("{url:?} is no URL: expected http://HOST[:PORT][/PATH]{}", hint(url))]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong.
        source: url::ParseError,
    },
    /// Its scheme is not supported.
    #[error(
        "{url:?} has the scheme {scheme:?}: expected http (https upstreams are not available in this version){}",
        hint(url)
    )]
    Scheme {
        /// As it was given.
        url: String,
        /// The scheme found.
        scheme: String,
    },
    /// It names no host, or a user, or a part that requests have of their own.
    #[error("{url:?} is no upstream: expected http://HOST[:PORT][/PATH]")]
    Shape {
        /// As it was given.
        url: String,
    },
}

/// The URL that was probably meant, if it was written without its scheme.
fn hint(url: &str) -> String {
    let meant = format!("http://{url}");
    let is_good = !url.contains("://") && Upstream::parse(&meant).is_ok();
    if is_good { format!("; did you mean {meant}?") } else { String::new() }
}

impl Upstream {
    /// Reads `http://HOST[:PORT][/PATH]`.
    ///
    /// # Errors
    /// It is no URL of that shape.
    pub fn parse(text: &str) -> Result<Self, InvalidUpstream> {
        let url = Url::parse(text).map_err(|source| InvalidUpstream::Url { url: text.to_owned(), source })?;
        if url.scheme() != "http" {
            return Err(InvalidUpstream::Scheme { url: text.to_owned(), scheme: url.scheme().to_owned() });
        }
        let shape = || InvalidUpstream::Shape { url: text.to_owned() };
        let plain =
            url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
        let host = url.host().filter(|_| plain).ok_or_else(shape)?.to_owned();
        let authority = url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        Ok(Self { host, port: url.port().unwrap_or(80), path: url.path().to_owned(), authority })
    }

    /// Host and port as in a `Host` header.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path of the MCP endpoint, beginning with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Domain(name) => name.eq_ignore_ascii_case("localhost"),
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        }
    }

    pub(super) async fn connect(&self, timeout: Duration) -> io::Result<TcpStream> {
        let connect = async {
            match &self.host {
                Host::Domain(name) => TcpStream::connect((name.as_str(), self.port)).await,
                Host::Ipv4(address) => TcpStream::connect((IpAddr::from(*address), self.port)).await,
                Host::Ipv6(address) => TcpStream::connect((IpAddr::from(*address), self.port)).await,
            }
        };
        let stream = tokio::time::timeout(timeout, connect).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} s", timeout.as_secs_f64()))
        })??;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_http_urls() {
        let upstream = Upstream::parse("http://localhost:3001/mcp").unwrap();
        assert_eq!((upstream.authority(), upstream.path(), upstream.is_loopback()), ("localhost:3001", "/mcp", true));
        let upstream = Upstream::parse("http://mcp.example").unwrap();
        assert_eq!((upstream.authority(), upstream.path(), upstream.port), ("mcp.example", "/", 80));
        assert_eq!(Upstream::parse("http://[::1]:1/").unwrap().authority(), "[::1]:1");
    }

    #[test]
    fn says_what_is_wrong_with_others() {
        for (url, hint) in [
            ("localhost:3001", "did you mean http://localhost:3001?"),
            ("127.0.0.1:3001/mcp", "did you mean http://127.0.0.1:3001/mcp?"),
            ("https://mcp.example", "https upstreams are not available in this version"),
            ("http://user@mcp.example/", "expected http://HOST[:PORT][/PATH]"),
            ("http://mcp.example/?a=b", "expected http://HOST[:PORT][/PATH]"),
            ("", "is no URL"),
        ] {
            let error = Upstream::parse(url).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
