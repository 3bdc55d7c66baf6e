//! A collector.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use mcpscope_core::bounded;

use super::variables::{Variables, wrong};
use crate::condition::Destination;

/// Longest part of a host's name where people are told in short where a collector is, in bytes.
const MAX_HOST_BYTES: usize = 40;

/// What is exported, as the names of variables say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// Where HTTP sends it.
    const fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Metrics => "v1/metrics",
        }
    }

    /// What the variable `OTEL_EXPORTER_OTLP_{what}` for this signal says, else that for all: what makes no sense in the
    /// first is as good as not set.
    fn find<T>(
        self,
        what: &str,
        variables: &mut Variables,
        read: impl Fn(&mut Variables, &str) -> Option<T>,
    ) -> Option<T> {
        let all = format!("OTEL_EXPORTER_OTLP_{what}");
        [self.own_variable(what), all].iter().find_map(|variable| read(variables, variable))
    }

    fn own_variable(self, what: &str) -> String {
        format!("OTEL_EXPORTER_OTLP_{}_{what}", self.as_str())
    }
}

/// A collector, and how to speak to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is: for HTTP with the signal's path, for gRPC without any.
    pub url: Uri,
    /// What it speaks.
    pub protocol: Protocol,
    /// What it gets with each request. Not shown by `Debug`: they carry secrets.
    pub headers: Headers,
    /// Whether requests are compressed, with gzip.
    pub gzip: bool,
    /// How long one attempt may take. Default: 10 s.
    pub timeout: Duration,
    /// The files of TLS.
    pub tls: Tls,
}

/// Headers whose values are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub HeaderMap);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

/// How spans and metrics travel to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, as protobuf.
    HttpProtobuf,
}

impl Protocol {
    /// `grpc` or `http/protobuf`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::HttpProtobuf => "http/protobuf",
        }
    }

    const fn default_endpoint(self) -> &'static str {
        match self {
            Self::Grpc => "http://localhost:4317",
            Self::HttpProtobuf => "http://localhost:4318",
        }
    }
}

/// The files of TLS, all PEM. They are read when they are first needed, and again after a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates that the collector's is checked with, in place of the system's.
    pub certificate: Option<PathBuf>,
    /// Our own certificate and its key, where the collector wants one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Without what may be secret: user, password and query of the URL.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.scheme_str().unwrap_or("http");
        let host = self.url.host().unwrap_or_default();
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = if self.protocol == Protocol::Grpc { "" } else { self.url.path() };
        write!(f, "{scheme}://{host}{port}{path} ({})", self.protocol.as_str())
    }
}

/// As [`Display`](fmt::Display) shows the URL.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url: _, protocol: _, headers, gzip, timeout, tls } = self;
        let mut shown = f.debug_struct("Endpoint");
        shown.field("at", &self.to_string()).field("headers", headers);
        shown.field("gzip", gzip).field("timeout", timeout).field("tls", tls).finish()
    }
}

impl Endpoint {
    /// Where it is, for people.
    pub(crate) fn destination(&self) -> Destination {
        let host = self.url.host().unwrap_or_default();
        let more = if host.len() > MAX_HOST_BYTES { "…" } else { "" };
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Destination { short: format!("{}{more}{port}", bounded(host, MAX_HOST_BYTES)), full: self.to_string() }
    }

    /// Whether the variables give one for this signal.
    pub(super) fn is_given(signal: Signal, variables: &mut Variables) -> bool {
        let protocol = protocol(signal, variables);
        given(signal, protocol, variables).is_some()
    }

    /// The one that the variables give, or the standard's own.
    pub(super) fn read(signal: Signal, variables: &mut Variables) -> Self {
        let protocol = protocol(signal, variables);
        let url = given(signal, protocol, variables).or_else(|| at(protocol.default_endpoint(), signal, protocol));
        let headers = signal.find("HEADERS", variables, headers);
        let gzip = signal.find("COMPRESSION", variables, |variables, name| {
            variables.choice(name, "gzip or none", |text| match text {
                "gzip" => Some(true),
                "none" => Some(false),
                _ => None,
            })
        });
        let timeout = signal.find("TIMEOUT", variables, Variables::timeout);
        let [certificate, key, chain] = ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"].map(|what| {
            signal.find(what, variables, |variables, name| Some((name.to_owned(), variables.text(name)?.into())))
        });
        let client = match (chain, key) {
            (Some((_, chain)), Some((_, key))) => Some((chain, key)),
            (Some((set, _)), None) => {
                variables.warn(&set, format!("expected {} beside it", set.replace("CERTIFICATE", "KEY")));
                None
            }
            (None, Some((set, _))) => {
                variables.warn(&set, format!("expected {} beside it", set.replace("KEY", "CERTIFICATE")));
                None
            }
            (None, None) => None,
        };
        Self {
            url: url.unwrap_or_default(),
            protocol,
            headers: Headers(headers.unwrap_or_default()),
            gzip: gzip.unwrap_or(false),
            timeout: timeout.unwrap_or(Duration::from_secs(10)),
            tls: Tls { certificate: certificate.map(|(_, path)| path), client },
        }
    }
}

fn protocol(signal: Signal, variables: &mut Variables) -> Protocol {
    let expected = "grpc or http/protobuf";
    let named =
        |text: &str| [Protocol::Grpc, Protocol::HttpProtobuf].into_iter().find(|protocol| protocol.as_str() == text);
    let chosen = signal.find("PROTOCOL", variables, |variables, name| variables.choice(name, expected, named));
    chosen.unwrap_or(Protocol::HttpProtobuf)
}

fn given(signal: Signal, protocol: Protocol, variables: &mut Variables) -> Option<Uri> {
    signal.find("ENDPOINT", variables, |variables, variable| given_by(variable, signal, protocol, variables))
}

fn given_by(variable: &str, signal: Signal, protocol: Protocol, variables: &mut Variables) -> Option<Uri> {
    let is_own = variable == signal.own_variable("ENDPOINT");
    let given = variables.text(variable)?;
    let mut text = given.clone();
    if protocol == Protocol::Grpc && !text.contains("://") {
        // Whatever is not true is false, so that the signal's own goes before that for all even if it makes no sense.
        let flag = |variables: &mut Variables, name: &str| variables.is_set(name).then(|| variables.flag(name));
        let insecure = signal.find("INSECURE", variables, flag).unwrap_or(false);
        text.insert_str(0, if insecure { "http://" } else { "https://" });
    }
    let url = match (protocol, is_own) {
        // Its own endpoint is used as it is.
        (Protocol::HttpProtobuf, true) => checked(&text),
        _ => at(&text, signal, protocol),
    };
    if url.is_none() {
        let expected = match protocol {
            Protocol::Grpc => "http://HOST:PORT, https://HOST:PORT or HOST:PORT, and no unix: socket",
            Protocol::HttpProtobuf => "http://HOST:PORT/PATH or https://HOST:PORT/PATH",
        };
        variables.warn(variable, wrong(expected, &without_secrets(&given)));
    }
    url
}

/// An endpoint that is none, to be shown: user, password and query may be anything before the last `@` and after the first `?`.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let scheme = if scheme.contains('@') { "***" } else { scheme };
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, place)| ("***@", place));
    let (place, query) = rest.split_once(['?', '#']).map_or((rest, ""), |(place, _)| (place, "?***"));
    let separator = if text.contains("://") { "://" } else { "" };
    format!("{scheme}{separator}{user}{place}{query}")
}

/// The signal's URL at an endpoint for all signals.
fn at(base: &str, signal: Signal, protocol: Protocol) -> Option<Uri> {
    let base = checked(base)?;
    let mut parts = base.clone().into_parts();
    let path = match protocol {
        Protocol::Grpc => "/".to_owned(),
        Protocol::HttpProtobuf => {
            let query = base.query().map(|query| format!("?{query}")).unwrap_or_default();
            format!("{}/{}{query}", base.path().trim_end_matches('/'), signal.path())
        }
    };
    parts.path_and_query = Some(path.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

fn checked(text: &str) -> Option<Uri> {
    let url = text.parse::<Uri>().ok()?;
    let is_http = [Scheme::HTTP, Scheme::HTTPS].iter().any(|scheme| url.scheme() == Some(scheme));
    (is_http && url.authority().is_some_and(is_place)).then_some(url)
}

/// Whether it is a host with a port, or with none: `unix:` and `h:port` are neither.
fn is_place(authority: &Authority) -> bool {
    let (host, text) = (authority.host(), authority.as_str());
    let place = text.rsplit_once('@').map_or(text, |(_, place)| place);
    !host.is_empty() && (place == host || authority.port().is_some())
}

/// Values never get into a message, nor what only stands where a name should: with a colon for the `=` the value is in it.
fn headers(variables: &mut Variables, variable: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in variables.pairs(variable)? {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            variables.warn(variable, "expected name=value,name=value, found a name that no header can have");
            return None;
        };
        let Ok(mut value) = HeaderValue::from_str(&value) else {
            variables.warn(variable, format!("expected headers, found {name} with a value that no header can have"));
            return None;
        };
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Some(headers)
}
