#![doc = include_str!("../README.md")]

mod critical;
mod document;
mod environment;
mod error;
mod kind;
mod load;
mod place;
mod servers;
mod settings;
mod tree;

#[cfg(test)]
mod tests;

pub use critical::{CriticalMetric, MetricKind};
pub use environment::environment;
pub use error::{ConfigError, ConfigErrors, Origin, Problem};
pub use kind::{InvalidRatio, Ratio, Restart};
pub use load::Places;
pub use place::Place;
pub use servers::Server;
pub use settings::{Dashboard, Metrics, Otel, Proxy, Settings, Supervision, Tls, Tracing};
