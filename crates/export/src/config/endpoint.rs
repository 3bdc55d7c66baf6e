//! A collector.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::variables::Variables;

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

    /// The variable `OTEL_EXPORTER_OTLP_{what}` for this signal, if it is set, else that for all.
    fn variable(self, what: &str, variables: &Variables) -> String {
        let own = self.own_variable(what);
        if variables.is_set(&own) { own } else { format!("OTEL_EXPORTER_OTLP_{what}") }
    }

    fn own_variable(self, what: &str) -> String {
        format!("OTEL_EXPORTER_OTLP_{}_{what}", self.as_str())
    }
}

/// A collector, and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl Endpoint {
    /// Whether the variables give one for this signal.
    pub(super) fn is_given(signal: Signal, variables: &mut Variables) -> bool {
        let protocol = protocol(signal, variables);
        given(signal, protocol, variables).is_some()
    }

    /// The one that the variables give, or the standard's own.
    pub(super) fn read(signal: Signal, variables: &mut Variables) -> Self {
        let protocol = protocol(signal, variables);
        let url = given(signal, protocol, variables).or_else(|| at(protocol.default_endpoint(), signal, protocol));
        let headers = headers(&signal.variable("HEADERS", variables), variables);
        let gzip = variables.choice(&signal.variable("COMPRESSION", variables), "gzip or none", |text| match text {
            "gzip" => Some(true),
            "none" => Some(false),
            _ => None,
        });
        let timeout = variables.millis(&signal.variable("TIMEOUT", variables));
        let [certificate, key, chain] = ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"]
            .map(|what| variables.text(&signal.variable(what, variables)).map(PathBuf::from));
        if key.is_some() != chain.is_some() {
            let (set, missing) = if key.is_some() { ("KEY", "CERTIFICATE") } else { ("CERTIFICATE", "KEY") };
            let [set, missing] = [set, missing].map(|what| signal.variable(&format!("CLIENT_{what}"), variables));
            variables.warn(&set, format!("expected {missing} beside it"));
        }
        Self {
            url: url.unwrap_or_default(),
            protocol,
            headers: Headers(headers),
            gzip: gzip.unwrap_or(false),
            timeout: timeout.unwrap_or(Duration::from_secs(10)),
            tls: Tls { certificate, client: chain.zip(key) },
        }
    }
}

fn protocol(signal: Signal, variables: &mut Variables) -> Protocol {
    let expected = "grpc or http/protobuf";
    let chosen = variables.choice(&signal.variable("PROTOCOL", variables), expected, |text| {
        [Protocol::Grpc, Protocol::HttpProtobuf].into_iter().find(|protocol| protocol.as_str() == text)
    });
    chosen.unwrap_or(Protocol::HttpProtobuf)
}

fn given(signal: Signal, protocol: Protocol, variables: &mut Variables) -> Option<Uri> {
    let variable = signal.variable("ENDPOINT", variables);
    let is_own = variable == signal.own_variable("ENDPOINT");
    let mut text = variables.text(&variable)?;
    if protocol == Protocol::Grpc && !text.contains("://") {
        let insecure = variables.flag(&signal.variable("INSECURE", variables));
        text.insert_str(0, if insecure { "http://" } else { "https://" });
    }
    let url = match (protocol, is_own) {
        // Its own endpoint is used as it is.
        (Protocol::HttpProtobuf, true) => checked(&text),
        _ => at(&text, signal, protocol),
    };
    if url.is_none() {
        let expected = match protocol {
            Protocol::Grpc => "http://HOST:PORT, https://HOST:PORT or HOST:PORT",
            Protocol::HttpProtobuf => "http://HOST:PORT/PATH or https://HOST:PORT/PATH",
        };
        // It may hold a password.
        variables.warn(&variable, format!("expected {expected}"));
    }
    url
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
    let has_host = url.authority().map(Authority::host).is_some_and(|host| !host.is_empty());
    (is_http && has_host).then_some(url)
}

/// Values never get into a message.
fn headers(variable: &str, variables: &mut Variables) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in variables.pairs(variable).unwrap_or_default() {
        let header = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(&value).ok());
        match header {
            Some((name, mut value)) => {
                value.set_sensitive(true);
                headers.append(name, value);
            }
            None => {
                let message = format!("expected headers, found {name:?} with a name or value that is none");
                variables.warn(variable, message);
            }
        }
    }
    headers
}
