//! The settings tree. These declarations are the only list of keys: their serialised default is what files and
//! environment are checked against, so a new key is a field here, its default below, and a line in the default file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kind::{Components, Count, Host, Hosts, Kind as _, Origins, Period, Port, Ratio, Share, Size, Switch};

/// Everything that can be configured, checked.
///
/// Serialised it has the form of a configuration file. [`Settings::load`] is the way to read one: deserialising this
/// type directly stops at the first error, knows no places in the file, and compares no two settings with each other.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether anything is observed at all; `false` is a pure relay: no recorder, no listener but the proxy's.
    /// Default: true.
    #[serde(with = "Switch")]
    pub observability_enabled: bool,
    /// Traces kept in memory.
    pub tracing: Tracing,
    /// Metrics kept in memory.
    pub metrics: Metrics,
    /// The HTTP listener with dashboard and API.
    pub dashboard: Dashboard,
    /// The relay itself.
    pub proxy: Proxy,
}

/// Traces kept in memory.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// Whether traces are recorded. Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Most traces kept, 1 to 1 000 000. Default: 1000.
    #[serde(with = "Count")]
    pub max_traces: usize,
    /// Most memory that kept traces take, in bytes, 1 to 2^40. Default: 4 MiB.
    #[serde(with = "Size")]
    pub max_bytes: u64,
    /// Share of the traces off the critical paths that is kept. Default: 0.1.
    #[serde(with = "Share")]
    pub sampling_rate: Ratio,
    /// Components whose traces are all kept, out of `json_rpc`, `session_manager`, `registry`, `server`, `transport` and
    /// `tools`. Default: the first four.
    #[serde(with = "Components")]
    pub critical_paths: Vec<String>,
    /// How long a request may stay unanswered before its trace ends as a timeout, 1 ms to 365 days. Default: 300 s.
    #[serde(with = "Period")]
    pub call_timeout: Duration,
}

/// Metrics kept in memory.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Whether metrics are recorded. Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Length of one window, 1 ms to 365 days. Default: 10 s.
    #[serde(with = "Period")]
    pub aggregation_interval: Duration,
    /// How long windows are kept, `aggregation_interval` to 365 days. Default: 60 min.
    #[serde(with = "Period")]
    pub retention: Duration,
    /// Most distinct values of one label, 1 to 1 000 000; what comes after is counted together. Default: 256.
    #[serde(with = "Count")]
    pub max_label_values: usize,
}

/// The HTTP listener with dashboard and API.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dashboard {
    /// Whether it listens. Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Host name or IP address to listen on, IPv6 without brackets. Default: `localhost`, both loopback addresses.
    #[serde(with = "Host")]
    pub host: String,
    /// Port to listen on; 0 is any free one. Default: 8080.
    #[serde(with = "Port")]
    pub port: u16,
    /// Host names and IP addresses answered to besides loopback, without port, IPv6 without brackets. Default: none.
    #[serde(with = "Hosts")]
    pub allowed_hosts: Vec<String>,
    /// Origins answered to besides loopback ones, such as `https://inspector.example`. Default: none.
    #[serde(with = "Origins")]
    pub allowed_origins: Vec<String>,
}

/// The relay itself.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// Largest message that is looked into, in bytes, 1 to 2^40; a larger one is relayed unread. The key is
    /// `proxy.max_message`. Default: 16 MiB.
    #[serde(rename = "max_message", with = "Size")]
    pub max_message_bytes: u64,
    /// How long connecting to the upstream may take, 1 ms to 365 days. Default: 10 s.
    #[serde(with = "Period")]
    pub connect_timeout: Duration,
    /// How long a client may take to send its request headers, 1 ms to 365 days. Default: 10 s.
    #[serde(with = "Period")]
    pub header_timeout: Duration,
    /// How long a session may stay silent before it counts as ended, 1 ms to 365 days. Default: 30 min.
    #[serde(with = "Period")]
    pub idle_session: Duration,
    /// Host names and IP addresses answered to besides loopback, without port, IPv6 without brackets. Default: none.
    #[serde(with = "Hosts")]
    pub allowed_hosts: Vec<String>,
    /// Origins answered to besides loopback ones, such as `https://inspector.example`. Default: none.
    #[serde(with = "Origins")]
    pub allowed_origins: Vec<String>,
}

/// Keys of later versions: refused by name, because a setting that does nothing must not look as if it did. A section
/// stands for all its keys.
pub(crate) const LATER: &[&str] = &[
    "alerting",
    "auth",
    "chaos",
    "dashboard.max_connections",
    "dashboard.max_metrics",
    "dashboard.max_traces",
    "dashboard.subscriber_timeout",
    "dashboard.update_interval",
    "grpc",
    "history",
    "instrumentation",
    "metrics.critical_metrics",
    "metrics.listen",
    "metrics.sampling_rate",
    "otel",
    "probe",
    "proxy.queue_bytes",
    "proxy.queue_messages",
    "servers",
    "supervision",
    "tls",
    "tracing.capture",
];

impl Settings {
    /// What is wrong between settings that are right each for themselves.
    pub(crate) fn conflicts(&self) -> Vec<Conflict> {
        let Metrics { aggregation_interval, retention, .. } = self.metrics;
        let mut conflicts = Vec::new();
        if retention < aggregation_interval {
            let [retention, interval] = [retention, aggregation_interval].map(humantime::format_duration);
            conflicts.push(Conflict {
                paths: ["metrics.retention", "metrics.aggregation_interval"],
                message: format!("retention ({retention}) is shorter than aggregation_interval ({interval})"),
            });
        }
        conflicts
    }
}

/// Two settings that contradict each other.
#[derive(Debug)]
pub(crate) struct Conflict {
    pub(crate) paths: [&'static str; 2],
    pub(crate) message: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            observability_enabled: true,
            tracing: Tracing::default(),
            metrics: Metrics::default(),
            dashboard: Dashboard::default(),
            proxy: Proxy::default(),
        }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            enabled: true,
            max_traces: 1000,
            max_bytes: 4 << 20,
            sampling_rate: Ratio::TENTH,
            critical_paths: ["json_rpc", "session_manager", "registry", "server"].map(str::to_owned).into(),
            call_timeout: Duration::from_secs(300),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            enabled: true,
            aggregation_interval: Duration::from_secs(10),
            retention: Duration::from_secs(60 * 60),
            max_label_values: 256,
        }
    }
}

impl Default for Dashboard {
    fn default() -> Self {
        Self {
            enabled: true,
            host: "localhost".to_owned(),
            port: 8080,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_session: Duration::from_secs(30 * 60),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}
