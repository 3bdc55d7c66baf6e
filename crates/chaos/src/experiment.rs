//! What is asked for, and what it means once it is checked.

use std::time::Duration;

use mcpscope_core::{Ratio, Transport};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::matcher::{Matcher, Pattern};
use crate::parameter::{ParameterError, Reader};
use crate::steady::{CHECKS, Check, CheckError};
use crate::{Parameters, Scenario};

/// An experiment as it is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The name of a [`Scenario`].
    pub scenario: String,
    /// Its parameters.
    #[serde(default)]
    pub parameters: Parameters,
}

impl Request {
    /// Asks for a scenario with everything as by default.
    #[must_use]
    pub fn new(scenario: &str) -> Self {
        Self { scenario: scenario.to_owned(), parameters: Parameters::new() }
    }

    /// With this parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.parameters = self.parameters.with(name, value);
        self
    }
}

/// An experiment that can be done.
#[derive(Clone, Debug)]
pub(crate) struct Experiment {
    pub(crate) scenario: Scenario,
    pub(crate) parameters: Parameters,
    pub(crate) fault: Fault,
    pub(crate) matcher: Matcher,
    pub(crate) duration: Duration,
    pub(crate) recovery_time: Duration,
    /// The chance of each target to crash, every second; none if one of them is to, once.
    pub(crate) crash_rate: Option<Ratio>,
    /// It is done in the control group of a server.
    pub(crate) aims_at_target: bool,
    /// Share of the connections that is left untouched.
    pub(crate) control: Ratio,
    /// None: what the plan says.
    pub(crate) steady_state: Option<Vec<Check>>,
    pub(crate) abort_when: Vec<Check>,
    pub(crate) seed: Option<u64>,
}

impl Experiment {
    /// Checks a request. `longest` is what a plan allows, `recovery_time` what it expects. Tells all that is wrong.
    pub(crate) fn read(
        request: &Request,
        longest: Duration,
        recovery_time: Option<Duration>,
    ) -> Result<Self, ParameterError> {
        let scenario: Scenario = request.scenario.parse()?;
        let read = |parameters: &Parameters| Self::of(scenario, parameters, longest, recovery_time);
        read(&request.parameters)
            .map_err(|first| ParameterError::all_of(first, &request.parameters, |rest| read(rest).err()))
    }

    /// The same, up to the first mistake.
    fn of(
        scenario: Scenario,
        parameters: &Parameters,
        longest: Duration,
        recovery_time: Option<Duration>,
    ) -> Result<Self, ParameterError> {
        let reader = Reader::new(scenario, parameters)?;
        let (fault, mut matcher) = (Fault::read(&reader)?, Matcher::read(&reader)?);
        // A pipe has no packets.
        let is_for_http_only = match &fault {
            Fault::Partition(partition) => partition.is_for_http_only(),
            Fault::Network(_) => true,
            _ => false,
        };
        if is_for_http_only {
            matcher.transport = Some(Transport::Http);
        }
        let defaults = scenario.defaults();
        let duration = match reader.duration("duration")? {
            Some(duration) if duration > longest => {
                let most = humantime::format_duration(longest);
                return Err(reader.bad("duration", format!("at most {most}, which is the plan's test_duration")));
            }
            Some(duration) => duration,
            None => defaults.duration.min(longest),
        };
        let checks = |name| {
            let text = reader.text(name)?;
            text.map(|text| Check::parse_all(&text)).transpose().map_err(|_: CheckError| reader.bad(name, CHECKS))
        };
        let crash_rate = if scenario == Scenario::ProcessCrash { reader.share("crash_rate")? } else { None };
        Ok(Self {
            scenario,
            parameters: parameters.clone(),
            fault,
            matcher,
            duration,
            recovery_time: reader.duration("recovery_time")?.or(recovery_time).unwrap_or(defaults.recovery_time),
            crash_rate,
            aims_at_target: reader.aims_at_target()?,
            control: reader.share("control")?.unwrap_or(Ratio::ZERO),
            steady_state: checks("steady_state")?,
            abort_when: checks("abort_when")?.unwrap_or_default(),
            seed: reader.whole("seed")?.map(i64::unsigned_abs),
        })
    }

    /// Which targets are meant, if not all.
    pub(crate) fn target_processes(&self) -> Option<Pattern> {
        self.parameters.0.get("target_processes").and_then(|value| value.as_str()).map(Pattern::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn every_scenario_can_be_asked_for_by_its_name_alone() {
        for scenario in Scenario::ALL {
            let experiment = Experiment::read(&Request::new(scenario.as_str()), MINUTE, None).unwrap();
            assert_eq!(experiment.duration, scenario.defaults().duration);
        }
    }

    #[test]
    fn durations_are_text_or_milliseconds() {
        for value in [serde_json::json!("8s"), serde_json::json!(8000), serde_json::json!("8000")] {
            let request = Request::new("latency_injection").with("duration", value);
            assert_eq!(Experiment::read(&request, MINUTE, None).unwrap().duration, Duration::from_secs(8));
        }
    }

    #[test]
    fn mistakes_name_what_is_allowed() {
        for (request, expected) in [
            (Request::new("latency"), "there is no scenario `latency`: expected one of latency_injection,"),
            (
                Request::new("packet_loss").with("delay", 3),
                "packet_loss has no parameter `delay`: expected one of intensity,",
            ),
            (Request::new("packet_loss").with("duration", "61s"), "at most 1m, which is the plan's test_duration"),
            (
                Request::new("packet_loss").with("duration", "soon"),
                "duration is \"soon\": expected a duration from 1ms",
            ),
            (Request::new("packet_loss").with("intensity", -1), "intensity is -1: expected a share from 0 to 1"),
            (
                Request::new("packet_loss").with("steady_state", "p42 < 3"),
                "steady_state is \"p42 < 3\": expected error_rate, p50",
            ),
            (Request::new("packet_loss").with("tool", serde_json::json!([])), "tool is a list: expected a text"),
        ] {
            let message = Experiment::read(&request, MINUTE, None).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let told = |request: &Request| {
            let error = Experiment::read(request, MINUTE, None).unwrap_err();
            error.each().iter().map(|error| error.parameter().unwrap_or("-").to_owned()).collect::<Vec<_>>().join(" ")
        };
        let wrong = Request::new("packet_loss").with("delay", 3).with("intensity", 2).with("duration", "soon");
        assert_eq!(told(&wrong), "delay intensity duration");
        let error = Experiment::read(&wrong, MINUTE, None).unwrap_err().to_string();
        assert!(
            error.contains("no parameter `delay`: expected one of ") && error.contains("; packet_loss: intensity is 2"),
            "{error}"
        );
        // Which model it would be is not known: then bursts may be right.
        assert_eq!(told(&Request::new("packet_loss").with("model", "gilbert").with("burst", 3)), "model");
        assert_eq!(told(&Request::new("packet_loss").with("burst", 3)), "-");
        let many = (0..20).fold(Request::new("hang"), |request, at| request.with(&format!("x{at}"), 1));
        assert_eq!(told(&many).split(' ').count(), 8, "as many as anybody reads");
        // A name of any length is a mistake of its own.
        assert_eq!(told(&Request::new("hang").with(&"x".repeat(100), 1).with("every", 0)).split(' ').count(), 1);
    }
}
