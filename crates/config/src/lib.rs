#![doc = include_str!("../README.md")]

mod chaos;
mod critical;
mod document;
mod environment;
mod error;
mod kind;
mod load;
mod place;
mod records;
mod root;
mod servers;
mod settings;
mod tree;

#[cfg(test)]
mod tests;

pub use chaos::{
    Alerting, BlastRadius, ChaosEngine, ChaosSettings, EmergencyStop, Expected, Experiment, Impact, MATCHERS,
    Monitoring, Rearm, Scalar, Scenario, Suite,
};
pub use critical::{CriticalMetric, MetricKind};
pub use environment::environment;
pub use error::{ConfigError, ConfigErrors, Origin, Problem};
pub use kind::{ChaosMode, InvalidRatio, Ratio, Restart};
pub use load::{Configuration, Places};
pub use place::Place;
pub use servers::Server;
pub use settings::{Auth, Chaos, Dashboard, Metrics, Otel, Proxy, Settings, Supervision, Tls, Tracing};
