//! The settings tree. These declarations are the only list of keys: their serialised default is what files and
//! environment are checked against, so a new key is a field here, its default below, and a line in the default file.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    critical::{self, CriticalMetric},
    kind::{
        Address, AutoRestart, AutoSwitch, ChaosMode, Components, Count, Exporters, File, Host, Hosts, Kind as _, Modes,
        Name, Names, OptionalAddress, OptionalFile, Origins, Period, Port, Ratio, Restart, Sampling, Share, Size,
        Switch,
    },
    records::Records,
    root::Root,
    servers::{self, Server},
    tree,
};

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
    /// What is recorded of the traffic.
    pub instrumentation: Instrumentation,
    /// Whether faults can be injected.
    pub chaos: Chaos,
    /// The HTTP listener with dashboard and API.
    pub dashboard: Dashboard,
    /// The gRPC listener.
    pub grpc: Grpc,
    /// The plain listener for probes and scrapes from elsewhere.
    pub probe: Probe,
    /// Who may command.
    pub auth: Auth,
    /// What goes to an OpenTelemetry collector.
    pub otel: Otel,
    /// TLS of the proxy's listener.
    pub tls: Tls,
    /// The relay itself.
    pub proxy: Proxy,
    /// What becomes of a server that crashes.
    pub supervision: Supervision,
    /// What `mcpscope serve` stands in front of; no two have the same name or address. Default: none.
    #[serde(deserialize_with = "servers::deserialize")]
    pub servers: Vec<Server>,
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
    /// Share of the records by names that are not critical that is kept. Default: 0.1.
    #[serde(with = "Share")]
    pub sampling_rate: Ratio,
    /// Most distinct values of one label, 1 to 1 000 000; what comes after is counted together. Default: 256.
    #[serde(with = "Count")]
    pub max_label_values: usize,
    /// Metrics besides mcpscope's own whose records are all kept; of no two are the names exposed the same. Default: none.
    #[serde(deserialize_with = "critical::deserialize")]
    pub critical_metrics: Vec<CriticalMetric>,
    /// Address of a plain listener for scrapes alone, which need not be loopback; port 0 is any free one. Default: none, it
    /// does not listen.
    #[serde(with = "OptionalAddress")]
    pub listen: Option<String>,
}

/// What is recorded of the traffic.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instrumentation {
    /// Whether the components are instrumented on start. Default: true.
    #[serde(with = "Switch")]
    pub auto_instrument: bool,
    /// The components and their functions.
    pub components: InstrumentedComponents,
}

/// The functions of each component that is instrumented on start; a component without any is not.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstrumentedComponents {
    /// JSON-RPC requests. Default: `handle_request`.
    #[serde(with = "Names")]
    pub json_rpc: Vec<String>,
    /// Sessions. Default: `create_session`, `destroy_session`.
    #[serde(with = "Names")]
    pub session_manager: Vec<String>,
    /// What the server offers. Default: `register`, `unregister`, `list`.
    #[serde(with = "Names")]
    pub registry: Vec<String>,
    /// The server process. Default: `start_server`, `stop_server`.
    #[serde(with = "Names")]
    pub server: Vec<String>,
    /// Messages. Default: `send`, `receive`.
    #[serde(with = "Names")]
    pub transport: Vec<String>,
    /// Tool calls. Default: `call_tool`.
    #[serde(with = "Names")]
    pub tools: Vec<String>,
}

impl InstrumentedComponents {
    /// The components by name, with their functions.
    #[must_use]
    pub fn by_name(&self) -> [(&'static str, &[String]); 6] {
        let Self { json_rpc, session_manager, registry, server, transport, tools } = self;
        [
            ("json_rpc", json_rpc),
            ("session_manager", session_manager),
            ("registry", registry),
            ("server", server),
            ("transport", transport),
            ("tools", tools),
        ]
    }
}

/// Whether faults can be injected. Which, when and how much is said in a file of its own:
/// [`ChaosSettings`](crate::ChaosSettings).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chaos {
    /// Whether they can at all. Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Who may start experiments. Default: people.
    #[serde(with = "Modes")]
    pub mode: ChaosMode,
    /// The file with the plan, from where the configuration file is that names it. The default one is looked for beside the
    /// configuration files, and need not be there. Default: `chaos.yaml`.
    #[serde(with = "File")]
    pub file: PathBuf,
}

/// Who may command.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The file with the token that whoever starts or stops faults must give, from where the configuration file is that names
    /// it. Default: none, and each run has a token of its own.
    #[serde(with = "OptionalFile")]
    pub chaos_token_file: Option<PathBuf>,
}

/// The gRPC listener.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Whether it listens. Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Loopback address to listen on; port 0 is any free one. Default: `127.0.0.1:50051`.
    #[serde(with = "Address")]
    pub listen: String,
}

/// The plain listener for probes and scrapes from elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Probe {
    /// Address to listen on, which need not be loopback; port 0 is any free one. Default: none, it does not listen.
    #[serde(with = "OptionalAddress")]
    pub listen: Option<String>,
}

/// What goes to an OpenTelemetry collector. The standard `OTEL_*` variables say where it is, and beat what is said here, but for
/// `enabled: false`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Otel {
    /// Whether traces and metrics are exported; none, written `auto`, is what the variables give an endpoint or an exporter.
    /// Default: none.
    #[serde(with = "AutoSwitch")]
    pub enabled: Option<bool>,
    /// `service.name` of what is exported, 1 to 128 bytes. Default: `mcpscope`.
    #[serde(with = "Name")]
    pub service_name: String,
    /// Where to, out of `otlp` (a collector) and `console` (traces alone). Default: `otlp`.
    #[serde(with = "Exporters")]
    pub exporters: Vec<String>,
    /// Which traces are exported: `always_on`, `always_off` or `traceidratio:0.1`, each also after `parentbased_`.
    /// Default: `always_on`.
    #[serde(with = "Sampling")]
    pub sampling: String,
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
    /// From one frame to the next, and from one push to the next, 1 ms to 365 days. Default: 5 s.
    #[serde(with = "Period")]
    pub update_interval: Duration,
    /// Most WebSocket connections at a time, 1 to 1 000 000. Default: 100.
    #[serde(with = "Count")]
    pub max_connections: usize,
    /// A WebSocket client that is silent for this long is removed, 1 ms to 365 days. Default: 30 s.
    #[serde(with = "Period")]
    pub subscriber_timeout: Duration,
    /// Most traces in a push, 1 to 1 000 000. Default: 100.
    #[serde(with = "Count")]
    pub max_traces: usize,
    /// Most series in a push, 1 to 1 000 000. Default: 50.
    #[serde(with = "Count")]
    pub max_metrics: usize,
    /// Host names and IP addresses answered to besides loopback, without port, IPv6 without brackets. Default: none.
    #[serde(with = "Hosts")]
    pub allowed_hosts: Vec<String>,
    /// Origins answered to besides the dashboard's own, such as `https://grafana.example`. Default: none.
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
    /// So many messages of all connections of one relay may wait to be written on; while they do, each connection takes no more
    /// than 1 KiB before it has written that on. 1 to 1 000 000. Default: 1024.
    #[serde(with = "Count")]
    pub queue_messages: usize,
    /// The same in bytes, 1 to 2^40; as much again is for the copies of messages that do not arrive in one piece. Default:
    /// 64 MiB.
    #[serde(with = "Size")]
    pub queue_bytes: u64,
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
    /// Certificates that an `https` upstream is checked against, in PEM, instead of the system's; a file from where the
    /// configuration file is that names it. Default: none.
    #[serde(with = "OptionalFile")]
    pub upstream_ca_file: Option<PathBuf>,
}

/// What becomes of a server that was started by mcpscope and crashes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Supervision {
    /// Whether it is started again; none, written `auto`, is what the command does by itself. Default: none.
    #[serde(with = "AutoRestart")]
    pub restart: Option<Restart>,
    /// The wait before the first restart, which doubles with each that follows, 1 ms to 365 days. Default: 200 ms.
    #[serde(with = "Period")]
    pub backoff_min: Duration,
    /// The longest wait, `backoff_min` to 365 days. Default: 30 s.
    #[serde(with = "Period")]
    pub backoff_max: Duration,
    /// After running for this long a crash counts as the first again, 1 ms to 365 days. Default: 60 s.
    #[serde(with = "Period")]
    pub healthy_after: Duration,
    /// So many crashes within `give_up_window` are too many, 1 to 1 000 000. Default: 5.
    #[serde(with = "Count")]
    pub give_up: usize,
    /// 1 ms to 365 days. Default: 60 s.
    #[serde(with = "Period")]
    pub give_up_window: Duration,
    /// How long after its start a server over HTTP may take to accept connections, 1 ms to 365 days. Default: 90 s.
    #[serde(with = "Period")]
    pub start_timeout: Duration,
}

/// TLS of the proxy's listener, in PEM files, each from where the configuration file is that names it. Without a certificate it
/// speaks plain HTTP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate, and behind it those that vouch for it. Default: none.
    #[serde(with = "OptionalFile")]
    pub cert_file: Option<PathBuf>,
    /// Its private key. Default: none.
    #[serde(with = "OptionalFile")]
    pub key_file: Option<PathBuf>,
    /// Certificates, one of which has to vouch for a client. Default: none, and any client is let in.
    #[serde(with = "OptionalFile")]
    pub client_ca_file: Option<PathBuf>,
}

/// The standard variable that says what people look for under this name in the section `otel`: where a collector is, and how it
/// is spoken to, is said by the variables alone.
fn standard_variable(name: &str) -> Option<String> {
    const OF_COLLECTORS: [&str; 9] = [
        "endpoint",
        "protocol",
        "headers",
        "compression",
        "timeout",
        "insecure",
        "certificate",
        "client_certificate",
        "client_key",
    ];
    let name = name.strip_prefix("exporter_").unwrap_or(name);
    let name = name.strip_prefix("otlp_").unwrap_or(name);
    let of_a_signal = ["traces_", "metrics_"].into_iter().find_map(|signal| name.strip_prefix(signal));
    match name {
        "otlp" | "url" | "collector" => Some("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned()),
        "propagators" | "resource_attributes" => Some(format!("OTEL_{}", name.to_ascii_uppercase())),
        _ if OF_COLLECTORS.contains(&of_a_signal.unwrap_or(name)) => {
            Some(format!("OTEL_EXPORTER_OTLP_{}", name.to_ascii_uppercase()))
        }
        _ => None,
    }
}

impl Settings {
    /// The keys whose values are others in `other`, such as `tracing.max_traces`, in the order of their names.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        tree::differences(self, other)
    }
}

impl Root for Settings {
    const LATER: &[&str] = &["alerting", "auth.read_token_file", "history", "tracing.capture"];

    fn records(path: &str) -> Option<Box<dyn Records>> {
        (path == servers::KEY).then(|| Box::<servers::List>::default() as Box<dyn Records>)
    }

    fn standard_variable(section: &str, name: &str) -> Option<String> {
        standard_variable(name).filter(|_| section == "otel")
    }

    fn conflicts(&self) -> Vec<Conflict> {
        let Metrics { aggregation_interval, retention, .. } = self.metrics;
        let mut conflicts = Vec::new();
        if retention < aggregation_interval {
            let [retention, interval] = [retention, aggregation_interval].map(humantime::format_duration);
            conflicts.push(Conflict {
                paths: ["metrics.retention", "metrics.aggregation_interval"],
                message: format!("retention ({retention}) is shorter than aggregation_interval ({interval})"),
            });
        }
        let Supervision { backoff_min, backoff_max, .. } = self.supervision;
        if backoff_max < backoff_min {
            let [max, min] = [backoff_max, backoff_min].map(humantime::format_duration);
            conflicts.push(Conflict {
                paths: ["supervision.backoff_max", "supervision.backoff_min"],
                message: format!("backoff_max ({max}) is shorter than backoff_min ({min})"),
            });
        }
        let Tls { cert_file, key_file, client_ca_file } = &self.tls;
        if cert_file.is_some() != key_file.is_some() {
            conflicts.push(Conflict {
                paths: ["tls.cert_file", "tls.key_file"],
                message: "a certificate needs its key, and a key its certificate".to_owned(),
            });
        }
        if client_ca_file.is_some() && cert_file.is_none() {
            conflicts.push(Conflict {
                paths: ["tls.client_ca_file", "tls.cert_file"],
                message: "clients can be checked by their certificates only where tls.cert_file switches TLS on"
                    .to_owned(),
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
            instrumentation: Instrumentation::default(),
            chaos: Chaos::default(),
            dashboard: Dashboard::default(),
            grpc: Grpc::default(),
            probe: Probe::default(),
            auth: Auth::default(),
            otel: Otel::default(),
            tls: Tls::default(),
            proxy: Proxy::default(),
            supervision: Supervision::default(),
            servers: Vec::new(),
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
            sampling_rate: Ratio::TENTH,
            max_label_values: 256,
            critical_metrics: Vec::new(),
            listen: None,
        }
    }
}

impl Default for Instrumentation {
    fn default() -> Self {
        Self { auto_instrument: true, components: InstrumentedComponents::default() }
    }
}

impl Default for InstrumentedComponents {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            json_rpc: names(&["handle_request"]),
            session_manager: names(&["create_session", "destroy_session"]),
            registry: names(&["register", "unregister", "list"]),
            server: names(&["start_server", "stop_server"]),
            transport: names(&["send", "receive"]),
            tools: names(&["call_tool"]),
        }
    }
}

impl Default for Chaos {
    fn default() -> Self {
        Self { enabled: true, mode: ChaosMode::Manual, file: PathBuf::from("chaos.yaml") }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self { enabled: true, listen: "127.0.0.1:50051".to_owned() }
    }
}

impl Default for Otel {
    fn default() -> Self {
        Self {
            enabled: None,
            service_name: "mcpscope".to_owned(),
            exporters: vec!["otlp".to_owned()],
            sampling: "always_on".to_owned(),
        }
    }
}

impl Default for Dashboard {
    fn default() -> Self {
        Self {
            enabled: true,
            host: "localhost".to_owned(),
            port: 8080,
            update_interval: Duration::from_secs(5),
            max_connections: 100,
            subscriber_timeout: Duration::from_secs(30),
            max_traces: 100,
            max_metrics: 50,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            queue_messages: 1024,
            queue_bytes: 64 << 20,
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_session: Duration::from_secs(30 * 60),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            upstream_ca_file: None,
        }
    }
}

impl Default for Supervision {
    fn default() -> Self {
        Self {
            restart: None,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            healthy_after: Duration::from_secs(60),
            give_up: 5,
            give_up_window: Duration::from_secs(60),
            start_timeout: Duration::from_secs(90),
        }
    }
}
