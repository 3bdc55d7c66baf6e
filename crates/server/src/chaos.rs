//! What the configuration says about chaos, as the engine takes it.

use std::collections::BTreeMap;
use std::time::Duration;

use mcpscope_chaos::{
    BlastRadius, Check, Impact, Mode, ParameterError, Parameters, Plan, PlanError, Rearm, Scenario, ScenarioPlan,
};
use mcpscope_config::{
    self as config, ChaosMode, ChaosSettings, ConfigErrors, Configuration, Origin, Scalar, Settings,
};
use mcpscope_core::Ratio;
use serde_json::Value;

use crate::cli;

/// What the configuration says about chaos.
#[derive(Clone, Debug)]
pub(crate) struct Chaos {
    /// What is allowed; its mode is [`Mode::Off`] where something forbids it, and it says what does.
    pub(crate) plan: Plan,
    /// What every draw comes from, if the configuration says so: each run has another seed otherwise.
    pub(crate) seed: Option<u64>,
    /// What scenarios do, of those of which the configuration says it.
    #[cfg_attr(not(test), expect(dead_code, reason = "nothing shows the scenarios yet"))]
    pub(crate) descriptions: BTreeMap<Scenario, String>,
}

impl Chaos {
    /// Reads what is configured; `chosen` is what `--chaos` says, which beats it.
    ///
    /// # Errors
    /// A scenario, or a parameter of one, is unknown, out of range or contradicts another: all that are, each with its place.
    pub(crate) fn read(configuration: &Configuration, chosen: Option<cli::Chaos>) -> Result<Self, ConfigErrors> {
        let Configuration { settings, chaos, places, .. } = configuration;
        let scenarios = chaos.scenarios.iter().enumerate();
        let longest = chaos.chaos_engine.test_duration;
        let read: Vec<_> = scenarios.map(|(at, scenario)| scenario_plan(at, scenario, longest)).collect();
        let mistakes = read.iter().flat_map(|read| read.as_ref().err()).flatten();
        // Only what was written can be wrong, so it has a place.
        let mut mistakes: Vec<_> = mistakes.filter_map(|(key, message)| places.refuse(key, message)).collect();
        mistakes.sort_by_key(|mistake| match mistake.origin {
            Origin::File { place, .. } => place,
            Origin::Variable(_) => None,
        });
        ConfigErrors::none_of(mistakes)?;
        let scenarios: Vec<_> = read.into_iter().filter_map(Result::ok).collect();

        let described = scenarios.iter().zip(&chaos.scenarios);
        let descriptions =
            described.filter_map(|(plan, scenario)| Some((plan.scenario, scenario.description.clone()?)));
        let descriptions = descriptions.collect();
        let off_reason = forbidden(settings, chaos, chosen);
        let mode = match (&off_reason, chosen, settings.chaos.mode) {
            (None, Some(cli::Chaos::Manual), _) | (None, None, ChaosMode::Manual) => Mode::Manual,
            (None, Some(cli::Chaos::Scheduled), _) | (None, None, ChaosMode::Scheduled) => Mode::Scheduled,
            _ => Mode::Off,
        };
        let plan = Plan { mode, off_reason, scenarios, ..limits(chaos) };
        Ok(Self { plan, seed: chaos.chaos_engine.seed, descriptions })
    }
}

impl Chaos {
    /// The same, where something else than by default is to hold before and after experiments.
    pub(crate) fn judged_by(mut self, steady_state: Option<&Vec<Check>>) -> Self {
        if let Some(checks) = steady_state {
            self.plan.steady_state.clone_from(checks);
        }
        self
    }
}

/// What forbids chaos, whatever mode it has otherwise.
fn forbidden(settings: &Settings, chaos: &ChaosSettings, chosen: Option<cli::Chaos>) -> Option<String> {
    let reasons = [
        (!settings.observability_enabled, "observability_enabled is false"),
        (!settings.chaos.enabled, "chaos.enabled is false"),
        (!chaos.chaos_engine.enabled, "chaos_engine.enabled is false"),
        (chosen == Some(cli::Chaos::Off), "--chaos off"),
        (chosen.is_none() && settings.chaos.mode == ChaosMode::Off, "chaos.mode is off"),
    ];
    let reasons: Vec<_> = reasons.into_iter().filter(|(forbids, _)| *forbids).map(|(_, reason)| reason).collect();
    (!reasons.is_empty()).then(|| reasons.join(", "))
}

/// The plan without its scenarios.
fn limits(chaos: &ChaosSettings) -> Plan {
    let ChaosSettings { chaos_engine: engine, blast_radius, emergency_stop: stop, .. } = chaos;
    Plan {
        max_concurrent_tests: engine.max_concurrent_tests,
        test_duration: engine.test_duration,
        emergency_threshold: stop.threshold,
        automatic_stop: stop.enabled,
        cooldown: stop.cooldown_time,
        rearm: match stop.rearm {
            config::Rearm::Manual => Rearm::Manual,
            config::Rearm::Auto => Rearm::Auto,
        },
        scheduler_delay: engine.scheduler_delay,
        scheduler_interval: engine.scheduler_interval,
        blast_radius: BlastRadius {
            max_sessions: share(blast_radius.max_sessions),
            min_healthy: share(blast_radius.min_healthy),
            max_kills_per_hour: blast_radius.max_kills_per_hour,
            protected: blast_radius.protected.clone(),
        },
        scenarios: Vec::new(),
        ..Plan::default()
    }
}

/// A share in 0..=1, checked when the settings were read.
fn share(share: config::Ratio) -> Ratio {
    Ratio::new(share.get()).unwrap_or(Ratio::ZERO)
}

/// What is wrong, by the key that says it.
type Mistake = (String, String);

/// The scenario at this place of the list, or all that is wrong with it.
fn scenario_plan(at: usize, configured: &config::Scenario, longest: Duration) -> Result<ScenarioPlan, Vec<Mistake>> {
    let key = format!("scenarios[{at}]");
    let scenario: Scenario =
        configured.name.parse().map_err(|error: ParameterError| vec![(format!("{key}.name"), error.to_string())])?;
    let defaults = ScenarioPlan::new(scenario);
    let parameters = configured.parameters.iter().chain(&configured.matching);
    let parameters = Parameters(parameters.map(|(name, value)| (name.clone(), json(value))).collect());
    let mistakes = mistakes(scenario, &parameters, longest).into_iter().map(|(name, message)| {
        let inside = name.and_then(|name| {
            let parameters = [("parameters", &configured.parameters), ("match", &configured.matching)];
            let (part, _) = parameters.into_iter().find(|(_, parameters)| parameters.contains_key(&name))?;
            Some(format!("{key}.{part}.{name}"))
        });
        (inside.unwrap_or_else(|| key.clone()), message)
    });
    let mistakes: Vec<_> = mistakes.collect();
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    Ok(ScenarioPlan {
        scenario,
        probability: configured.probability.map_or(defaults.probability, share),
        impact: configured.impact.map_or(defaults.impact, |impact| match impact {
            config::Impact::Low => Impact::Low,
            config::Impact::Medium => Impact::Medium,
            config::Impact::High => Impact::High,
        }),
        recovery_time: configured.recovery_time.unwrap_or(defaults.recovery_time),
        enabled: configured.enabled.unwrap_or(defaults.enabled),
        parameters,
    })
}

fn json(value: &Scalar) -> Value {
    match value {
        Scalar::Switch(switch) => Value::from(*switch),
        Scalar::Whole(whole) => Value::from(*whole),
        Scalar::Number(number) => Value::from(*number),
        Scalar::Text(text) => Value::from(text.as_str()),
    }
}

/// All that is wrong with parameters, of each the name if it is about one.
fn mistakes(scenario: Scenario, parameters: &Parameters, longest: Duration) -> Vec<(Option<String>, String)> {
    let wrong = check(scenario, parameters, longest).err();
    let each = wrong.iter().flat_map(ParameterError::each);
    each.map(|error| (error.parameter().map(str::to_owned), error.to_string())).collect()
}

/// Whether the engine takes these parameters.
fn check(scenario: Scenario, parameters: &Parameters, test_duration: Duration) -> Result<(), ParameterError> {
    let scenarios = vec![ScenarioPlan { parameters: parameters.clone(), ..ScenarioPlan::new(scenario) }];
    let plan = Plan { test_duration, scenarios, ..Plan::default() };
    match plan.check() {
        Err(PlanError::Parameters(error)) => Err(error),
        // All else was checked when the settings were read.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Instant, SystemTime};

    use expect_test::expect;
    use mcpscope_chaos::Parts;
    use mcpscope_core::ClockAnchor;

    use super::*;

    /// What these files say, with this on the command line.
    fn read(settings: &str, chaos: &str, chosen: Option<cli::Chaos>) -> Result<Chaos, String> {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("mcpscope.yaml");
        fs::write(&config, settings).unwrap();
        fs::write(folder.path().join("chaos.yaml"), chaos).unwrap();
        let read = Configuration::load(&[config], []).and_then(|configuration| Chaos::read(&configuration, chosen));
        read.map_err(|errors| errors.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    #[test]
    fn the_defaults_are_those_of_the_engine() {
        let chaos = read("", "", None).unwrap();
        assert_eq!((chaos.plan, chaos.seed), (Plan::default(), None));
        let descriptions = Scenario::SCHEDULED.map(|scenario| (scenario, scenario.description().to_owned()));
        assert_eq!(chaos.descriptions, BTreeMap::from(descriptions));
        let named = format!(
            "scenarios: [{}]",
            Scenario::SCHEDULED.map(|scenario| format!("{{ name: {scenario} }}, ")).concat()
        );
        assert_eq!(read("", &named, None).unwrap().plan, Plan::default(), "what is left out is the default");
    }

    #[test]
    fn everything_is_passed_on() {
        let file = "
chaos_engine: { max_concurrent_tests: 2, test_duration: 30s, emergency_threshold: 7, scheduler_delay: 1s,
  scheduler_interval: 2s, seed: 42 }
blast_radius: { max_sessions: 0.5, min_healthy: 0.1, max_kills_per_hour: 3, protected: ['prod-*'] }
scenarios:
  - { name: hang, probability: 0.25, impact: low, recovery_time: 3s, enabled: true, description: Wait }
  - { name: latency_injection, parameters: { distribution: constant, delay: 300, duration: 20s }, match: { tool: echo, every: 2 } }
emergency_stop: { enabled: false, cooldown_time: 4s, rearm: auto }
";
        let chaos = read("", file, None).unwrap();
        let share = |share| Ratio::new(share).unwrap();
        let latency = Parameters::new().with("distribution", "constant").with("delay", 300).with("duration", "20s");
        let scenarios = vec![
            ScenarioPlan {
                probability: share(0.25),
                impact: Impact::Low,
                recovery_time: Duration::from_secs(3),
                enabled: true,
                ..ScenarioPlan::new(Scenario::Hang)
            },
            ScenarioPlan {
                parameters: latency.with("tool", "echo").with("every", 2),
                ..ScenarioPlan::new(Scenario::LatencyInjection)
            },
        ];
        let expected = Plan {
            max_concurrent_tests: 2,
            test_duration: Duration::from_secs(30),
            emergency_threshold: 7,
            automatic_stop: false,
            cooldown: Duration::from_secs(4),
            rearm: Rearm::Auto,
            scheduler_delay: Duration::from_secs(1),
            scheduler_interval: Duration::from_secs(2),
            blast_radius: BlastRadius {
                max_sessions: share(0.5),
                min_healthy: share(0.1),
                max_kills_per_hour: 3,
                protected: vec!["prod-*".to_owned()],
            },
            scenarios,
            ..Plan::default()
        };
        assert_eq!((chaos.plan, chaos.seed), (expected, Some(42)));
        assert_eq!(chaos.descriptions, BTreeMap::from([(Scenario::Hang, "Wait".to_owned())]));
    }

    #[test]
    fn what_the_engine_refuses_has_its_place() {
        let file = "
chaos_engine: { test_duration: 5s }
scenarios:
  - { name: latency, description: x }
  - name: latency_injection
    parameters: { delai: 300ms, delay: soon, intensity: 2, duration: 6s }
    match: { tool: echo, nth: 0, transport: udp }
  - { name: hang, match: { nth: 3, every: 2 } }
  - { name: stale_session, match: { transport: stdio } }
  - { name: packet_loss, match: { tool: 7 } }
  - { name: http_status, parameters: { status: 200.5 } }
";
        expect![[r#"
            chaos.yaml:4:13: scenarios[0].name: there is no scenario `latency`: expected one of latency_injection, network_partition, packet_loss, process_crash, memory_pressure, cpu_overload, hang, lost_request, lost_response, wrong_id, duplicate_response, late_response_after_cancel, rpc_error, tool_error, schema_violation, malformed_json, truncated, stdout_noise, oversize, slow_stream, stream_break, stale_session, tools_list_flap, input_required_loop, header_mismatch, version_reject, http_status
            chaos.yaml:6:26: scenarios[1].parameters.delai: latency_injection has no parameter `delai`: expected one of kind, intensity, distribution, min, max, delay, mean, stddev, scale, shape, order, heal, backend, duration, recovery_time, steady_state, abort_when, seed, server, transport, direction, session, control, method, tool, nth, every, after, max_hits
            chaos.yaml:6:40: scenarios[1].parameters.delay: latency_injection: delay is "soon": expected a duration from 0s to 10m, such as 300ms or 8s, or milliseconds
            chaos.yaml:6:57: scenarios[1].parameters.intensity: latency_injection: intensity is 2: expected a share from 0 to 1
            chaos.yaml:6:70: scenarios[1].parameters.duration: latency_injection: duration is "6s": expected at most 5s, which is the plan's test_duration
            chaos.yaml:7:31: scenarios[1].match.nth: latency_injection: nth is 0: expected a whole number from 1 to 1000000000
            chaos.yaml:7:45: scenarios[1].match.transport: latency_injection: transport is "udp": expected stdio, http
            chaos.yaml:8:5: scenarios[2]: hang: nth=3 is never reached with `every` or `after` as they are: expected nth alone, or one that the others take
            chaos.yaml:9:48: scenarios[3].match.transport: stale_session means nothing over stdio: expected HTTP up to 2025-11-25
            chaos.yaml:10:41: scenarios[4].match.tool: packet_loss: tool is 7: expected a text of 1 to 256 bytes
            chaos.yaml:11:48: scenarios[5].parameters.status: http_status: status is 200.5: expected a whole number from 400 to 599"#]].assert_eq(&read("", file, None).unwrap_err());
    }

    #[test]
    fn what_forbids_it_is_said() {
        use cli::Chaos as Chosen;
        let said = |settings: &str, chaos: &str, chosen| {
            let plan = read(settings, chaos, chosen).unwrap().plan;
            (plan.mode, plan.off_reason.unwrap_or_default())
        };
        assert_eq!(said("", "", None), (Mode::Manual, String::new()));
        assert_eq!(said("chaos: { mode: scheduled }", "", None), (Mode::Scheduled, String::new()));
        assert_eq!(said("chaos: { mode: scheduled }", "", Some(Chosen::Manual)), (Mode::Manual, String::new()));
        assert_eq!(said("chaos: { mode: off }", "", Some(Chosen::Scheduled)), (Mode::Scheduled, String::new()));
        for (settings, chaos, chosen, why) in [
            ("chaos: { mode: off }", "", None, "chaos.mode is off"),
            ("chaos: { mode: scheduled }", "", Some(Chosen::Off), "--chaos off"),
            ("chaos: { enabled: false }", "", Some(Chosen::Scheduled), "chaos.enabled is false"),
            ("observability_enabled: false", "", None, "observability_enabled is false"),
            ("", "chaos_engine: { enabled: false }", None, "chaos_engine.enabled is false"),
            (
                "chaos: { enabled: false }",
                "chaos_engine: { enabled: false }",
                Some(Chosen::Off),
                "chaos.enabled is false, chaos_engine.enabled is false, --chaos off",
            ),
        ] {
            assert_eq!(said(settings, chaos, chosen), (Mode::Off, why.to_owned()));
        }
    }

    #[test]
    fn every_matcher_of_the_file_is_a_parameter() {
        let of_some =
            |name: &str| Scenario::ALL.iter().any(|scenario| scenario.parameters().any(|known| known.name == name));
        for name in config::MATCHERS {
            assert!(of_some(name), "{name}");
        }
    }

    #[test]
    fn what_the_file_may_say_the_engine_takes() {
        let clock = || ClockAnchor { mono: Instant::now(), wall: SystemTime::now() };
        for file in [
            "chaos_engine: { max_concurrent_tests: 1, test_duration: 1s, emergency_threshold: 1, scheduler_delay: 0, scheduler_interval: 1s }\nemergency_stop: { cooldown_time: 0 }",
            "chaos_engine: { max_concurrent_tests: 100, test_duration: 10m, emergency_threshold: 1000, scheduler_delay: 24h, scheduler_interval: 24h, seed: 9223372036854775807 }\nemergency_stop: { cooldown_time: 24h }",
        ] {
            let plan = read("", file, None).unwrap().plan;
            mcpscope_chaos::new(Parts::new(plan, 0, clock())).unwrap();
        }
        let all =
            format!("scenarios: [{}]", Scenario::ALL.map(|scenario| format!("{{ name: {scenario} }}, ")).concat());
        assert_eq!(read("", &all, None).unwrap().plan.scenarios.len(), 27);
    }
}
