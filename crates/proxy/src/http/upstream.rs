//! The server behind the relay.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use url::{Host, Url};

use super::stream::Stream;

/// Where requests go: an `http` or `https` URL.
#[derive(Clone, Debug)]
pub struct Upstream {
    is_secure: bool,
    host: Host<String>,
    port: u16,
    path: String,
    authority: String,
}

/// The URL cannot be an upstream.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUpstream {
    /// It is no URL.
    #[error("{url:?} is no URL: expected http[s]://HOST[:PORT][/PATH]{}", hint(url))]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong.
        source: url::ParseError,
    },
    /// Its scheme is not supported.
    #[error("{url:?} has the scheme {scheme:?}: expected http or https{}", hint(url))]
    Scheme {
        /// As it was given.
        url: String,
        /// The scheme found.
        scheme: String,
    },
    /// It names no host, or a user, or a part that requests have of their own.
    #[error("{url:?} is no upstream: expected http[s]://HOST[:PORT][/PATH]")]
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
    /// Reads `http://HOST[:PORT][/PATH]` or the same with `https`.
    ///
    /// # Errors
    /// It is no URL of that shape.
    pub fn parse(text: &str) -> Result<Self, InvalidUpstream> {
        let url = Url::parse(text).map_err(|source| InvalidUpstream::Url { url: text.to_owned(), source })?;
        let is_secure = url.scheme() == "https";
        if url.scheme() != "http" && !is_secure {
            return Err(InvalidUpstream::Scheme { url: text.to_owned(), scheme: url.scheme().to_owned() });
        }
        let shape = || InvalidUpstream::Shape { url: text.to_owned() };
        let plain =
            url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
        let host = url.host().filter(|_| plain).ok_or_else(shape)?.to_owned();
        let authority = url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
        let port = url.port_or_known_default().ok_or_else(shape)?;
        Ok(Self { is_secure, host, port, path: url.path().to_owned(), authority })
    }

    /// Host and port as in a `Host` header.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Scheme, host and port.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.is_secure { "https" } else { "http" }, self.authority)
    }

    /// Whether it is spoken to with TLS.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.is_secure
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

    /// A connection, within this time. `tls` is for an upstream that is secure; it has `accepted` before that is spoken.
    pub(super) async fn connect(
        &self,
        tls: Option<&Arc<ClientConfig>>,
        limit: Duration,
        accepted: impl FnOnce(),
    ) -> io::Result<Stream> {
        let connected = timeout(limit, async {
            let stream = self.connect_tcp().await?;
            accepted();
            // Messages are small: holding them back gains nothing. A socket that refuses just works as before.
            let _ = stream.set_nodelay(true);
            if self.is_secure { self.secure(stream, tls).await } else { Ok(Stream::Plain(stream)) }
        });
        connected.await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} s", limit.as_secs_f64()))
        })?
    }

    async fn connect_tcp(&self) -> io::Result<TcpStream> {
        match &self.host {
            Host::Domain(name) => TcpStream::connect((name.as_str(), self.port)).await,
            Host::Ipv4(address) => TcpStream::connect((IpAddr::from(*address), self.port)).await,
            Host::Ipv6(address) => TcpStream::connect((IpAddr::from(*address), self.port)).await,
        }
    }

    async fn secure(&self, stream: TcpStream, tls: Option<&Arc<ClientConfig>>) -> io::Result<Stream> {
        let tls = tls.ok_or_else(|| io::Error::other("there is no TLS to speak https with"))?;
        let name = match &self.host {
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
            Host::Ipv4(address) => IpAddr::from(*address).into(),
            Host::Ipv6(address) => IpAddr::from(*address).into(),
        };
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|error| {
            let words = error.get_ref().and_then(|inner| inner.downcast_ref());
            match words.and_then(|error| mcpscope_tls::explain(error, "proxy.upstream_ca_file")) {
                Some(words) => io::Error::new(error.kind(), words),
                None => error,
            }
        })?;
        Ok(Stream::Tls(Box::new(stream.into())))
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
        let upstream = Upstream::parse("https://mcp.example").unwrap();
        assert_eq!(
            (upstream.origin().as_str(), upstream.port, upstream.is_secure()),
            ("https://mcp.example", 443, true)
        );
    }

    #[test]
    fn says_what_is_wrong_with_others() {
        for (url, hint) in [
            ("localhost:3001", "did you mean http://localhost:3001?"),
            ("127.0.0.1:3001/mcp", "did you mean http://127.0.0.1:3001/mcp?"),
            ("ftp://mcp.example", "expected http or https"),
            ("http://user@mcp.example/", "expected http[s]://HOST[:PORT][/PATH]"),
            ("http://mcp.example/?a=b", "expected http[s]://HOST[:PORT][/PATH]"),
            ("", "is no URL"),
        ] {
            let error = Upstream::parse(url).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
