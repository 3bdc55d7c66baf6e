//! What is allowed, and what the scheduler does.

use std::time::Duration;

use mcpscope_core::Ratio;
use serde::{Deserialize, Serialize};

use crate::catalogue::LONGEST_MS;
use crate::experiment::{Experiment, Request};
use crate::parameter::ParameterError;
use crate::steady::{Check, Comparison, Subject};
use crate::{Impact, Parameters, Scenario};

/// Who may start experiments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nobody.
    Off,
    /// People.
    #[default]
    Manual,
    /// People and the scheduler.
    Scheduled,
}

/// How experiments become possible again after an automatic emergency stop, once the cooldown has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rearm {
    /// A person says so.
    #[default]
    Manual,
    /// By themselves.
    Auto,
}

/// What is allowed, and what the scheduler does: `chaos.yaml` in plain types. The default is the file's default.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Who may start experiments.
    pub mode: Mode,
    /// What switched chaos off, for people to read; of no meaning in other modes.
    pub off_reason: Option<String>,
    /// Experiments at once, at least 1.
    pub max_concurrent_tests: usize,
    /// The longest that a fault may last; from 1 s to 10 min.
    pub test_duration: Duration,
    /// After how many failures in a row everything is stopped; at least 1.
    pub emergency_threshold: u32,
    /// Whether anything but a person may cause an emergency stop: failures, a leak, an alert.
    pub automatic_stop: bool,
    /// How long after an automatic emergency stop nothing can be started.
    pub cooldown: Duration,
    /// How it becomes possible again.
    pub rearm: Rearm,
    /// From the start to the scheduler's first tick.
    pub scheduler_delay: Duration,
    /// From tick to tick; at least 1 s.
    pub scheduler_interval: Duration,
    /// How much may be touched at once.
    pub blast_radius: BlastRadius,
    /// What must hold before an experiment and after it, unless it says otherwise itself.
    pub steady_state: Vec<Check>,
    /// What the scheduler chooses from, and what is different about scenarios.
    pub scenarios: Vec<ScenarioPlan>,
}

/// How much may be touched at once.
#[derive(Clone, Debug, PartialEq)]
pub struct BlastRadius {
    /// Share of the connections that an experiment of the scheduler may touch, rounded up to at least one. A manual one
    /// states its own.
    pub max_sessions: Ratio,
    /// Share of the components that must be healthy for an experiment to start.
    pub min_healthy: Ratio,
    /// Crashes in any hour.
    pub max_kills_per_hour: usize,
    /// Names of servers and targets that are never touched; `*` stands for anything.
    pub protected: Vec<String>,
}

/// A scenario as a plan has it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScenarioPlan {
    /// Which.
    pub scenario: Scenario,
    /// The chance that the scheduler starts it when it has chosen it.
    pub probability: Ratio,
    /// How much it can hurt.
    pub impact: Impact,
    /// Within which time everything is to be well again.
    pub recovery_time: Duration,
    /// Whether the scheduler may choose it.
    pub enabled: bool,
    /// Its parameters, unless an experiment says otherwise; matchers are among them.
    pub parameters: Parameters,
}

impl ScenarioPlan {
    /// The scenario with its defaults.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        let defaults = scenario.defaults();
        Self {
            scenario,
            probability: Ratio::new(defaults.probability).unwrap_or(Ratio::ZERO),
            impact: defaults.impact,
            recovery_time: defaults.recovery_time,
            enabled: defaults.enabled,
            parameters: Parameters::new(),
        }
    }
}

impl Default for BlastRadius {
    fn default() -> Self {
        let share = |share| Ratio::new(share).unwrap_or(Ratio::ZERO);
        Self { max_sessions: share(0.3), min_healthy: share(0.7), max_kills_per_hour: 20, protected: Vec::new() }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            off_reason: None,
            max_concurrent_tests: 3,
            test_duration: Duration::from_secs(60),
            emergency_threshold: 5,
            automatic_stop: true,
            cooldown: Duration::from_secs(300),
            rearm: Rearm::default(),
            scheduler_delay: Duration::from_secs(5),
            scheduler_interval: Duration::from_secs(30),
            blast_radius: BlastRadius::default(),
            steady_state: vec![Check { subject: Subject::ErrorRate, comparison: Comparison::Less, bound: 0.05 }],
            scenarios: Scenario::SCHEDULED.map(ScenarioPlan::new).into(),
        }
    }
}

/// Why a plan cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A value is out of range.
    #[error("{name} is {found}: expected {expected}")]
    OutOfRange {
        /// Which.
        name: &'static str,
        /// What was given.
        found: String,
        /// What may be given.
        expected: &'static str,
    },
    /// A scenario is there more than once.
    #[error("{0} is there twice: expected each scenario once")]
    Twice(
        /// Which.
        Scenario,
    ),
    /// The parameters of a scenario make no sense.
    #[error("the parameters of a scenario are wrong")]
    Parameters(
        /// Why.
        #[from]
        ParameterError,
    ),
}

impl Plan {
    /// Checks all values, and the parameters of all scenarios.
    ///
    /// # Errors
    /// The first of them that is wrong.
    pub fn check(&self) -> Result<(), PlanError> {
        let range = |name, ok, found: String, expected| {
            if ok { Ok(()) } else { Err(PlanError::OutOfRange { name, found, expected }) }
        };
        let duration = |name, value: Duration, least: u64, most: u64, expected| {
            let ok = (Duration::from_millis(least)..=Duration::from_millis(most)).contains(&value);
            range(name, ok, humantime::format_duration(value).to_string(), expected)
        };
        let day = 24 * 60 * 60 * 1000;
        duration("test_duration", self.test_duration, 1000, LONGEST_MS, "1s to 10m")?;
        duration("cooldown_time", self.cooldown, 0, day, "0s to 24h")?;
        duration("scheduler_delay", self.scheduler_delay, 0, day, "0s to 24h")?;
        duration("scheduler_interval", self.scheduler_interval, 1000, day, "1s to 24h")?;
        let concurrent = self.max_concurrent_tests;
        range("max_concurrent_tests", (1..=100).contains(&concurrent), concurrent.to_string(), "1 to 100")?;
        let threshold = self.emergency_threshold;
        range("emergency_threshold", (1..=1000).contains(&threshold), threshold.to_string(), "1 to 1000")?;
        for (at, scenario) in self.scenarios.iter().enumerate() {
            if self.scenarios[..at].iter().any(|before| before.scenario == scenario.scenario) {
                return Err(PlanError::Twice(scenario.scenario));
            }
            let request = Request { scenario: scenario.scenario.to_string(), parameters: scenario.parameters.clone() };
            Experiment::read(&request, self.test_duration, None)?;
        }
        Ok(())
    }

    /// What switched chaos off, if it is.
    pub(crate) fn why_off(&self) -> String {
        self.off_reason.clone().unwrap_or_else(|| "mode off".to_owned())
    }

    pub(crate) fn scenario(&self, scenario: Scenario) -> Option<&ScenarioPlan> {
        self.scenarios.iter().find(|plan| plan.scenario == scenario)
    }

    pub(crate) fn impact(&self, scenario: Scenario) -> Impact {
        self.scenario(scenario).map_or(scenario.defaults().impact, |plan| plan.impact)
    }

    /// The experiment that is asked for, with what the plan has to say about its scenario.
    pub(crate) fn experiment(&self, request: &Request) -> Result<Experiment, ParameterError> {
        let planned = request.scenario.parse().ok().and_then(|scenario| self.scenario(scenario));
        match planned {
            Some(planned) => {
                let parameters = planned.parameters.overridden_by(&request.parameters);
                let request = Request { scenario: request.scenario.clone(), parameters };
                Experiment::read(&request, self.test_duration, Some(planned.recovery_time))
            }
            None => Experiment::read(request, self.test_duration, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_plan_is_that_of_the_file() {
        let plan = Plan::default();
        assert_eq!(plan.check(), Ok(()));
        let chances: Vec<_> =
            plan.scenarios.iter().map(|plan| (plan.scenario.as_str(), plan.probability.get(), plan.enabled)).collect();
        let expected = [
            ("network_partition", 0.10, true),
            ("process_crash", 0.05, true),
            ("memory_pressure", 0.02, true),
            ("cpu_overload", 0.01, true),
            ("latency_injection", 0.15, true),
            ("packet_loss", 0.0, false),
        ];
        assert_eq!(chances, expected);
    }

    #[test]
    fn what_is_out_of_range_is_told_what_is_not() {
        let check = |plan: Plan| plan.check().unwrap_err().to_string();
        let too_long = Plan { test_duration: Duration::from_secs(601), ..Plan::default() };
        assert_eq!(check(too_long), "test_duration is 10m 1s: expected 1s to 10m");
        let none = Plan { max_concurrent_tests: 0, ..Plan::default() };
        assert_eq!(check(none), "max_concurrent_tests is 0: expected 1 to 100");
        let twice = ScenarioPlan::new(Scenario::Hang);
        let twice = Plan { scenarios: vec![twice.clone(), twice], ..Plan::default() };
        assert_eq!(check(twice), "hang is there twice: expected each scenario once");
        let wrong = ScenarioPlan {
            parameters: Parameters::new().with("delay", "soon"),
            ..ScenarioPlan::new(Scenario::LatencyInjection)
        };
        assert!(Plan { scenarios: vec![wrong], ..Plan::default() }.check().is_err());
    }

    #[test]
    fn what_an_experiment_says_beats_the_plan() {
        let mut plan = Plan::default();
        plan.scenarios[4].parameters = Parameters::new().with("intensity", 0.5).with("tool", "echo");
        plan.scenarios[4].recovery_time = Duration::from_secs(7);
        let request = Request::new("latency_injection").with("intensity", 1.0);
        let experiment = plan.experiment(&request).unwrap();
        let parameters = Parameters::new().with("intensity", 1.0).with("tool", "echo");
        assert_eq!((experiment.parameters, experiment.recovery_time), (parameters, Duration::from_secs(7)));
    }
}
