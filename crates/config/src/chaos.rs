//! The chaos file: what is injected, how much of it, and what stops it. As with the settings, these declarations are the list of
//! its keys.

mod kind;
mod parts;
mod scenarios;
mod suite;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::kind::{Cooldown, Delay, FaultTime, Few, Interval, Kills, OptionalSeed, OptionalUrl, Rearms, Threshold};
pub use self::kind::{Expected, Impact, Rearm};
pub use self::parts::{MATCHERS, Scalar};
pub use self::scenarios::Scenario;
pub use self::suite::{Experiment, Suite};
use crate::{
    kind::{Kind as _, Names, Ratio, Share, Switch},
    records::Records,
    root::Root,
    settings::Conflict,
    tree,
};

/// Everything that the chaos file can say, checked.
///
/// Serialised it has the form of that file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChaosSettings {
    /// Experiments and the scheduler.
    pub chaos_engine: ChaosEngine,
    /// How much may be touched at once.
    pub blast_radius: BlastRadius,
    /// What the scheduler chooses from, and what is different about scenarios; no two of the same name. Default: the six that
    /// it chooses from.
    #[serde(deserialize_with = "scenarios::deserialize")]
    pub scenarios: Vec<Scenario>,
    /// What ends everything.
    pub emergency_stop: EmergencyStop,
    /// Who is told.
    pub monitoring: Monitoring,
}

/// Experiments and the scheduler.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChaosEngine {
    /// Whether faults can be injected at all. Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Most experiments at a time, 1 to 100. Default: 3.
    #[serde(with = "Few")]
    pub max_concurrent_tests: usize,
    /// The longest that a fault may last, 1 s to 10 min. Default: 60 s.
    #[serde(with = "FaultTime")]
    pub test_duration: Duration,
    /// After so many failures in a row everything is stopped, 1 to 1000; the same as `emergency_stop.threshold`. Default: 5.
    #[serde(with = "Threshold")]
    pub emergency_threshold: u32,
    /// From the start to the scheduler's first tick, 0 to 24 h. Default: 5 s.
    #[serde(with = "Delay")]
    pub scheduler_delay: Duration,
    /// From tick to tick, 1 s to 24 h. Default: 30 s.
    #[serde(with = "Interval")]
    pub scheduler_interval: Duration,
    /// What all decisions are drawn from, 0 to 2^63 - 1. Default: none, each run has one of its own.
    #[serde(with = "OptionalSeed")]
    pub seed: Option<u64>,
}

/// How much may be touched at once.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlastRadius {
    /// Share of the sessions that an experiment of the scheduler may touch, rounded up to at least one. Default: 0.3.
    #[serde(with = "Share")]
    pub max_sessions: Ratio,
    /// Share of the components that must be healthy for an experiment to start. Default: 0.7.
    #[serde(with = "Share")]
    pub min_healthy: Ratio,
    /// Most crashes in any hour, 0 to 1 000 000. Default: 20.
    #[serde(with = "Kills")]
    pub max_kills_per_hour: usize,
    /// Names of servers and targets that are never touched; `*` stands for anything. Default: none.
    #[serde(with = "Names")]
    pub protected: Vec<String>,
}

/// What ends everything.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmergencyStop {
    /// Whether anything but a person may cause it. Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// After so many failures in a row it comes, 1 to 1000; the same as `chaos_engine.emergency_threshold`. Default: 5.
    #[serde(with = "Threshold")]
    pub threshold: u32,
    /// How long after one that no person caused nothing can be started, 0 to 24 h. Default: 300 s.
    #[serde(with = "Cooldown")]
    pub cooldown_time: Duration,
    /// How it becomes possible again after that. Default: a person says so.
    #[serde(with = "Rearms")]
    pub rearm: Rearm,
}

/// Who is told. In this version nobody is: the keys are there, and take nothing but their defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Monitoring {
    /// Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Default: true.
    #[serde(with = "Switch")]
    pub metrics_collection: bool,
    /// Where alerts go.
    pub alerting: Alerting,
}

/// Where alerts go.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alerting {
    /// Default: true.
    #[serde(with = "Switch")]
    pub enabled: bool,
    /// Default: false.
    #[serde(with = "Switch")]
    pub email_alerts: bool,
    /// Default: true.
    #[serde(with = "Switch")]
    pub webhook_alerts: bool,
    /// Default: none, written `""`.
    #[serde(with = "OptionalUrl")]
    pub webhook_url: Option<String>,
}

impl ChaosSettings {
    /// The keys whose values are others in `other`, such as `chaos_engine.seed`, in the order of their names.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        tree::differences(self, other)
    }
}

impl Root for ChaosSettings {
    const FIXED: &[&str] = &[
        "monitoring.enabled",
        "monitoring.metrics_collection",
        "monitoring.alerting.enabled",
        "monitoring.alerting.email_alerts",
        "monitoring.alerting.webhook_alerts",
        "monitoring.alerting.webhook_url",
    ];
    const TWINS: &[[&str; 2]] = &[["emergency_stop.threshold", "chaos_engine.emergency_threshold"]];

    fn records(path: &str) -> Option<Box<dyn Records>> {
        (path == scenarios::KEY).then(|| Box::<scenarios::List>::default() as Box<dyn Records>)
    }

    fn conflicts(&self) -> Vec<Conflict> {
        let (stop, engine) = (self.emergency_stop.threshold, self.chaos_engine.emergency_threshold);
        if stop == engine {
            return Vec::new();
        }
        vec![Conflict {
            paths: ["emergency_stop.threshold", "chaos_engine.emergency_threshold"],
            message: format!(
                "emergency_stop.threshold ({stop}) and chaos_engine.emergency_threshold ({engine}) are one thing: expected \
                 the same number, or one of them alone"
            ),
        }]
    }
}

impl Default for ChaosSettings {
    fn default() -> Self {
        Self {
            chaos_engine: ChaosEngine::default(),
            blast_radius: BlastRadius::default(),
            scenarios: scenarios::scheduled(),
            emergency_stop: EmergencyStop::default(),
            monitoring: Monitoring::default(),
        }
    }
}

impl Default for ChaosEngine {
    fn default() -> Self {
        Self {
            enabled: true,
            max_concurrent_tests: 3,
            test_duration: Duration::from_secs(60),
            emergency_threshold: 5,
            scheduler_delay: Duration::from_secs(5),
            scheduler_interval: Duration::from_secs(30),
            seed: None,
        }
    }
}

impl Default for BlastRadius {
    fn default() -> Self {
        Self {
            max_sessions: Ratio::of(0.3),
            min_healthy: Ratio::of(0.7),
            max_kills_per_hour: 20,
            protected: Vec::new(),
        }
    }
}

impl Default for EmergencyStop {
    fn default() -> Self {
        Self { enabled: true, threshold: 5, cooldown_time: Duration::from_secs(300), rearm: Rearm::Manual }
    }
}

impl Default for Monitoring {
    fn default() -> Self {
        Self { enabled: true, metrics_collection: true, alerting: Alerting::default() }
    }
}

impl Default for Alerting {
    fn default() -> Self {
        Self { enabled: true, email_alerts: false, webhook_alerts: true, webhook_url: None }
    }
}
