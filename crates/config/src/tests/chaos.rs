//! The chaos file: where it is found, what it can say, and what is wrong with it.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_yaml::Value;
use tempfile::TempDir;

use crate::{
    ChaosMode, ChaosSettings, Configuration, Impact, MATCHERS, Ratio, Rearm, Scalar, Scenario, Settings,
    environment::variable, tree::Tree,
};

/// A folder with these files, of which `mcpscope.yaml` is the configuration file if it is there.
struct Folder(TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load(&self, files: &[&str], variables: &[(&str, &str)]) -> Result<Configuration, String> {
        let files: Vec<_> = files.iter().map(|name| self.path(name)).collect();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Configuration::load(&files, variables)
            .map_err(|errors| errors.to_string().replace(&format!("{}/", self.0.path().display()), ""))
    }
}

/// What this chaos file says.
fn read(file: &str) -> Result<ChaosSettings, String> {
    let folder = Folder::with(&[("mcpscope.yaml", ""), ("chaos.yaml", file)]);
    folder.load(&["mcpscope.yaml"], &[]).map(|configuration| configuration.chaos)
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "the calls read better with a value")]
fn check(file: &str, expected: Expect) {
    expected.assert_eq(&read(file).unwrap_err());
}

fn shipped() -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config/chaos.yaml")).unwrap()
}

#[test]
fn the_default_file_is_the_defaults() {
    let text = shipped();
    assert_eq!(read(&text), Ok(ChaosSettings::default()));
    for empty in ["", "# nothing\n", "{}", "chaos_engine:\nscenarios: ~\n"] {
        match read(empty) {
            Ok(settings) => assert_eq!(settings, ChaosSettings::default(), "{empty:?}"),
            Err(error) => assert!(empty.contains("scenarios") && error.contains("expected a list of scenarios")),
        }
    }

    fn paths(value: &Value, above: &str) -> BTreeSet<String> {
        let Value::Mapping(map) = value else { return BTreeSet::from([above.to_owned()]) };
        map.iter().flat_map(|(key, value)| paths(value, &format!("{above}/{}", key.as_str().unwrap()))).collect()
    }
    let named = paths(&serde_yaml::from_str(&text).unwrap(), "");
    assert_eq!(named, paths(&serde_yaml::to_value(ChaosSettings::default()).unwrap(), ""), "the file names every key");

    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("  - ") && !line.starts_with("    ")).collect();
    for pair in lines.windows(2) {
        let is_key = pair[1].contains(": ") && !pair[1].trim_start().starts_with('#');
        assert!(!is_key || pair[0].trim_start().starts_with("# "), "no comment above {:?}", pair[1]);
    }
    for matcher in MATCHERS {
        assert!(text.contains(matcher), "{matcher} is not named");
    }
}

#[test]
fn the_examples_in_the_default_file_can_be_used() {
    let text = shipped();
    let parts: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("#     ")).collect();
    let parts: Vec<_> = parts.iter().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(parts.len(), 2);
    let file = format!("scenarios:\n  - name: latency_injection\n    {}\n    {}\n", parts[0], parts[1]);
    let scenarios = read(&file).unwrap().scenarios;
    assert_eq!((scenarios[0].parameters.len(), scenarios[0].matching.len()), (3, 3));
}

#[test]
fn everything_can_be_said() {
    let settings = read(
        "
chaos_engine: { enabled: false, max_concurrent_tests: 1, test_duration: 2m, emergency_threshold: 7, scheduler_delay: 0,
  scheduler_interval: 1s, seed: 9223372036854775807 }
blast_radius: { max_sessions: 1, min_healthy: 0, max_kills_per_hour: 0, protected: [payments, 'prod-*'] }
scenarios:
  - name: latency_injection
    probability: 1
    description: Slow
    impact: high
    recovery_time: 1500
    enabled: false
    parameters: { delay: 300ms, intensity: 0.5, every: 3, seed: 18446744073709551615, flag: true, a.b: x }
    match: { tool: forecast, probability: 1.0 }
  - { name: hang, match: {}, parameters: }
emergency_stop: { enabled: false, threshold: 7, cooldown_time: 0s, rearm: auto }
monitoring: { enabled: true, metrics_collection: true, alerting: { webhook_url: '' } }
",
    )
    .unwrap();
    let engine = &settings.chaos_engine;
    assert_eq!((engine.enabled, engine.max_concurrent_tests, engine.emergency_threshold), (false, 1, 7));
    let times = [engine.test_duration, engine.scheduler_delay, engine.scheduler_interval].map(|time| time.as_secs());
    assert_eq!((times, engine.seed), ([120, 0, 1], Some(i64::MAX as u64)));
    let radius = &settings.blast_radius;
    assert_eq!((radius.max_sessions.get(), radius.min_healthy.get(), radius.max_kills_per_hour), (1.0, 0.0, 0));
    assert_eq!(radius.protected, ["payments", "prod-*"]);
    let stop = &settings.emergency_stop;
    assert_eq!((stop.enabled, stop.threshold, stop.cooldown_time, stop.rearm), (false, 7, Duration::ZERO, Rearm::Auto));
    let text = |text: &str| Scalar::Text(text.to_owned());
    let named =
        |pairs: &[(&str, Scalar)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let latency = Scenario {
        probability: Some(Ratio::try_new(1.0).unwrap()),
        description: Some("Slow".to_owned()),
        impact: Some(Impact::High),
        recovery_time: Some(Duration::from_millis(1500)),
        enabled: Some(false),
        parameters: named(&[
            ("delay", text("300ms")),
            ("intensity", Scalar::Number(0.5)),
            ("every", Scalar::Whole(3)),
            ("seed", Scalar::Number(18_446_744_073_709_551_615.0)),
            ("flag", Scalar::Switch(true)),
            ("a.b", text("x")),
        ]),
        matching: named(&[("tool", text("forecast")), ("probability", Scalar::Number(1.0))]),
        ..Scenario::new("latency_injection")
    };
    assert_eq!(settings.scenarios, [latency, Scenario::new("hang")]);
    let written = serde_yaml::to_string(&settings).unwrap();
    assert_eq!(read(&written), Ok(settings.clone()), "written as YAML it comes back:\n{written}");
    assert_eq!(serde_yaml::from_str::<ChaosSettings>(&written).unwrap(), settings, "and without us");
}

#[test]
fn every_error_at_once() {
    check(
        "
chaos_engine: { enabled: yes, max_concurrent_tests: 0, test_duration: 11m, emergency_threshold: 1001, scheduler_delay: 25h }
chaos_engines: {}
blast_radius: { max_session: 1, min_healthy: 70, max_kills_per_hour: -1, protected: prod }
scenarios:
  - { name: latency_injection, probabilty: 1, impact: severe, recovery_time: 0s, enabled: 1 }
  - { name: latency_injection, description: \"\", parameters: 7, match: [a] }
  - { nmae: hang, probability: 1.5 }
  - { probability: 1 }
  - just a name
  - name: hang
    parameters: { delay: [1], tool: echo, delay: 1, '': 2, min: ~, max: .inf, [a]: 1 }
    match: { tool: echo, tols: x, server: { a: b } }
    recovery_tim: 1s
emergency_stop: { cooldown_time: soon, rearm: never, treshold: 5 }
monitoring: { enabled: false, alerting: { email_alerts: 1, webhook_url: nowhere } }
",
        expect![[r#"
            chaos.yaml:2:26: chaos_engine.enabled: expected true or false, found "yes"
            chaos.yaml:2:53: chaos_engine.max_concurrent_tests: expected a whole number from 1 to 100, found 0
            chaos.yaml:2:71: chaos_engine.test_duration: expected a duration from 1s to 10m such as 60s, or a number of milliseconds, found "11m"
            chaos.yaml:2:97: chaos_engine.emergency_threshold: expected a whole number from 1 to 1000, found 1001
            chaos.yaml:2:120: chaos_engine.scheduler_delay: expected a duration from 0s to 24h such as 5s, or a number of milliseconds, found "25h"
            chaos.yaml:3:1: chaos_engines: unknown key, did you mean `chaos_engine`?
            chaos.yaml:4:17: blast_radius.max_session: unknown key, did you mean `max_sessions`?
            chaos.yaml:4:46: blast_radius.min_healthy: expected a number from 0 to 1, found 70
            chaos.yaml:4:70: blast_radius.max_kills_per_hour: expected a whole number from 0 to 1000000, found -1
            chaos.yaml:4:85: blast_radius.protected: expected a list of names of 1 to 128 bytes each, found "prod"
            chaos.yaml:6:32: scenarios[0].probabilty: unknown key, did you mean `probability`?
            chaos.yaml:6:55: scenarios[0].impact: expected low, medium or high, found "severe"
            chaos.yaml:6:78: scenarios[0].recovery_time: expected a duration from 1ms to 1h such as 30s, or a number of milliseconds, found "0s"
            chaos.yaml:6:91: scenarios[0].enabled: expected true or false, found 1
            chaos.yaml:7:13: scenarios[1].name: "latency_injection" is scenarios[0] already
            chaos.yaml:7:45: scenarios[1].description: expected a text of one line, 1 to 256 bytes, found ""
            chaos.yaml:7:61: scenarios[1].parameters: expected a mapping of parameters, found 7
            chaos.yaml:7:71: scenarios[1].match: expected a mapping of server, transport, direction, session, kind, method, tool, nth, every, after, probability, max_hits, found a list
            chaos.yaml:8:7: scenarios[2].nmae: unknown key, did you mean `name`?
            chaos.yaml:8:32: scenarios[2].probability: expected a number from 0 to 1, found 1.5
            chaos.yaml:9:5: scenarios[3]: expected a mapping of name, and of probability, description, impact, recovery_time, enabled, parameters and match where they are wanted; missing: name
            chaos.yaml:10:5: scenarios[4]: expected a mapping of name, and of probability, description, impact, recovery_time, enabled, parameters and match where they are wanted, found "just a name"
            chaos.yaml:12:26: scenarios[5].parameters.delay: expected a text of 1 to 256 bytes, a number, true or false, found a list
            chaos.yaml:12:53: scenarios[5].parameters.: expected a name of 1 to 128 bytes
            chaos.yaml:12:65: scenarios[5].parameters.min: expected a text of 1 to 256 bytes, a number, true or false, found nothing
            chaos.yaml:12:73: scenarios[5].parameters.max: expected a text of 1 to 256 bytes, a number, true or false, found .inf
            chaos.yaml:12:79: scenarios[5].parameters: expected the name of a key
            chaos.yaml:13:14: scenarios[5].match.tool: given in parameters already: expected it in one of them
            chaos.yaml:13:26: scenarios[5].match.tols: unknown key
            chaos.yaml:13:43: scenarios[5].match.server: expected a text of 1 to 256 bytes, a number, true or false, found a mapping
            chaos.yaml:14:5: scenarios[5].recovery_tim: unknown key, did you mean `recovery_time`?
            chaos.yaml:15:34: emergency_stop.cooldown_time: expected a duration from 0s to 24h such as 5m, or a number of milliseconds, found "soon"
            chaos.yaml:15:47: emergency_stop.rearm: expected manual or auto, found "never"
            chaos.yaml:15:54: emergency_stop.treshold: unknown key, did you mean `threshold`?
            chaos.yaml:16:24: monitoring.enabled: not available in this version
            chaos.yaml:16:57: monitoring.alerting.email_alerts: expected true or false, found 1
            chaos.yaml:16:73: monitoring.alerting.webhook_url: expected "", or a URL http[s]://HOST[:PORT][/PATH] such as https://hooks.example/alerts, found "nowhere""#]],
    );
}

#[test]
fn wrong_shapes() {
    check(
        "scenarios: { name: hang }\nchaos_engine: 7\nblast_radius: []\n",
        expect![[r#"
        chaos.yaml:1:12: scenarios: expected a list of scenarios, each a mapping of name, and of probability, description, impact, recovery_time, enabled, parameters and match where they are wanted, found a mapping
        chaos.yaml:2:15: chaos_engine: expected a section with keys out of enabled, max_concurrent_tests, test_duration, emergency_threshold, scheduler_delay, scheduler_interval, seed, found 7
        chaos.yaml:3:15: blast_radius: expected a section with keys out of max_sessions, min_healthy, max_kills_per_hour, protected, found a list"#]],
    );
    check(
        "- a\n",
        expect![
            "chaos.yaml:1:1: expected a section with keys out of chaos_engine, blast_radius, scenarios, emergency_stop, monitoring, found a list"
        ],
    );
    check(
        "a: [\n",
        expect![
            "chaos.yaml:2:1: not valid YAML: did not find expected node content at line 2 column 1, while parsing a flow node"
        ],
    );
    check(
        "tracing: { max_traces: 1 }\nchaos: { mode: off }\n",
        expect![[r#"
        chaos.yaml:1:1: tracing: unknown key
        chaos.yaml:2:1: chaos: unknown key"#]],
    );
}

#[test]
fn what_nobody_acts_on_yet_takes_its_default_alone() {
    check(
        "monitoring:\n  metrics_collection: false\n  alerting:\n    enabled: false\n    email_alerts: true\n    webhook_alerts: false\n    webhook_url: https://hooks.example/a\n",
        expect![[r#"
            chaos.yaml:2:23: monitoring.metrics_collection: not available in this version
            chaos.yaml:4:14: monitoring.alerting.enabled: not available in this version
            chaos.yaml:5:19: monitoring.alerting.email_alerts: not available in this version
            chaos.yaml:6:21: monitoring.alerting.webhook_alerts: not available in this version
            chaos.yaml:7:18: monitoring.alerting.webhook_url: not available in this version"#]],
    );
}

#[test]
fn the_two_thresholds_agree() {
    check(
        "chaos_engine:\n  emergency_threshold: 5\nemergency_stop:\n  threshold: 7\n",
        expect![
            "chaos.yaml:4:14: emergency_stop.threshold: emergency_stop.threshold (7) and chaos_engine.emergency_threshold (5) are one thing: expected the same number, or one of them alone"
        ],
    );
    for one in ["chaos_engine: { emergency_threshold: 9 }", "emergency_stop: { threshold: 9 }"] {
        let settings = read(one).unwrap();
        let both = (settings.chaos_engine.emergency_threshold, settings.emergency_stop.threshold);
        assert_eq!(both, (9, 9), "{one} is enough");
    }
    let folder = Folder::with(&[("mcpscope.yaml", ""), ("chaos.yaml", "emergency_stop: { threshold: 9 }")]);
    let variable = [("MCPSCOPE_CHAOS_ENGINE_EMERGENCY_THRESHOLD", "8")];
    expect!["chaos.yaml:1:30: emergency_stop.threshold: emergency_stop.threshold (9) and chaos_engine.emergency_threshold (8) are one thing: expected the same number, or one of them alone"].assert_eq(&folder.load(&["mcpscope.yaml"], &variable).unwrap_err());
    // What was meant is not known, so nothing is said about it.
    check(
        "chaos_engine: { emergency_threshold: many }\nemergency_stop: { threshold: 9 }\n",
        expect![[
            r#"chaos.yaml:1:38: chaos_engine.emergency_threshold: expected a whole number from 1 to 1000, found "many""#
        ]],
    );
}

#[test]
fn there_is_a_limit() {
    let list = |count| (0..count).map(|n| format!("{{ name: a{n} }}, ")).collect::<String>();
    assert_eq!(read(&format!("scenarios: [{}]", list(64))).unwrap().scenarios.len(), 64);
    check(&format!("scenarios: [{}]", list(66)), expect!["chaos.yaml:1:12: scenarios: expected 64 scenarios at most"]);
    let parameters = |count| (0..count).map(|n| format!("a{n}: 1, ")).collect::<String>();
    let file = |count| format!("scenarios: [{{ name: hang, parameters: {{ {} }} }}]", parameters(count));
    assert_eq!(read(&file(64)).unwrap().scenarios[0].parameters.len(), 64);
    check(&file(65), expect!["chaos.yaml:1:13: scenarios[0]: expected 64 parameters at most"]);
}

#[test]
fn hostile_files_end_soon() {
    let many = |element: &str| format!("scenarios: [{}]", element.repeat(3_000));
    let parameters: String = (0..20_000).map(|n| format!("a{n}: 1, ")).collect();
    let wrong: String = (0..2_000).map(|n| format!("a{n}: [], ")).collect();
    let inside =
        |parameters: &str| format!("scenarios: [{{ name: hang, parameters: {{ {parameters} }}, match: {{ x: 1 }} }}]");
    for file in [many("{}, "), many("{ name: a }, "), many("7, "), inside(&parameters), inside(&wrong)] {
        let start = Instant::now();
        let errors = read(&file).unwrap_err();
        assert!(errors.lines().count() <= 101, "{errors}");
        // Minutes when it goes wrong, so there is room for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
}

proptest! {
    #[test]
    fn any_yaml_gives_settings_or_errors(text in yamlish()) {
        if let Err(errors) = read(&text) {
            prop_assert!(errors.lines().all(|line| line.starts_with("chaos.yaml:")), "{errors}");
        }
    }
}

/// Text made of the pieces that matter to YAML and to us, so that more than the first byte is looked at.
fn yamlish() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "chaos_engine",
        "seed",
        "scenarios",
        "scenarios: [{ name: hang, ",
        "name",
        "parameters",
        "match",
        "tool",
        "delay",
        "monitoring",
        ": ",
        ":",
        "\n",
        "\n  ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "- ",
        "? ",
        "&a ",
        "*a",
        "!t ",
        "'",
        "#",
        "~",
        "1",
        "0.5",
        "10s",
        "true",
        "<<",
    ]);
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

#[test]
fn it_is_found_beside_the_file_that_names_it() {
    let folder = Folder::with(&[
        ("one/mcpscope.yaml", ""),
        ("one/chaos.yaml", "chaos_engine: { seed: 1 }"),
        ("two/mcpscope.yaml", "chaos: { file: ../three/plan.yaml }"),
        ("two/chaos.yaml", "chaos_engine: { seed: 2 }"),
        ("three/plan.yaml", "chaos_engine: { seed: 3 }"),
        ("three/mcpscope.yaml", "tracing: { max_traces: 5 }"),
    ]);
    let seed = |files: &[&str]| folder.load(files, &[]).unwrap().chaos.chaos_engine.seed;
    assert_eq!(seed(&["one/mcpscope.yaml"]), Some(1), "the default's name");
    assert_eq!(seed(&["two/mcpscope.yaml"]), Some(3), "another one");
    assert_eq!(seed(&["three/mcpscope.yaml"]), None, "the default's need not be there");
    assert_eq!(seed(&["one/mcpscope.yaml", "three/mcpscope.yaml"]), Some(1), "beside any of the files");
    assert_eq!(seed(&[]), None, "nobody's working directory");
    let absolute = folder.path("two/chaos.yaml");
    let variable = [("MCPSCOPE_CHAOS_FILE", absolute.to_str().unwrap())];
    let configuration = folder.load(&["one/mcpscope.yaml"], &variable).unwrap();
    assert_eq!(configuration.chaos.chaos_engine.seed, Some(2), "a variable beats the files");
    assert_eq!(configuration.files, [folder.path("one/mcpscope.yaml"), absolute], "to be watched");
    let configuration = folder.load(&["three/mcpscope.yaml"], &[]).unwrap();
    assert_eq!(configuration.files, [folder.path("three/mcpscope.yaml"), folder.path("three/chaos.yaml")]);
}

#[test]
fn one_that_was_named_must_be_there() {
    let folder = Folder::with(&[
        ("mcpscope.yaml", "tracing: { max_traces: 0 }\nchaos:\n  file: plan.yaml\n"),
        ("plain.yaml", ""),
        ("default.yaml", "chaos: { file: chaos.yaml }"),
    ]);
    expect![[r#"
        mcpscope.yaml:1:24: tracing.max_traces: expected a whole number from 1 to 1000000, found 0
        mcpscope.yaml:3:9: chaos.file: plan.yaml cannot be read: No such file or directory (os error 2)"#]]
    .assert_eq(&folder.load(&["mcpscope.yaml"], &[]).unwrap_err());
    let variable = [("MCPSCOPE_CHAOS_FILE", "nowhere/plan.yaml")];
    expect![
        "MCPSCOPE_CHAOS_FILE: chaos.file: nowhere/plan.yaml cannot be read: No such file or directory (os error 2)"
    ]
    .assert_eq(&folder.load(&["plain.yaml"], &variable).unwrap_err());
    folder.load(&["default.yaml"], &[]).unwrap();
    let errors = Configuration::load(&[folder.path("mcpscope.yaml")], []).unwrap_err();
    assert_eq!(
        errors.files(),
        [folder.path("mcpscope.yaml"), folder.path("plan.yaml")],
        "to be watched until it is there"
    );
    // One that is there and cannot be read is wrong, whatever its name.
    fs::create_dir(folder.path("chaos.yaml")).unwrap();
    expect!["default.yaml:1:16: chaos.file: chaos.yaml cannot be read: Is a directory (os error 21)"]
        .assert_eq(&folder.load(&["default.yaml"], &[]).unwrap_err());
    expect!["chaos.yaml: cannot be read: Is a directory (os error 21)"]
        .assert_eq(&folder.load(&["plain.yaml"], &[]).unwrap_err());
}

#[test]
fn files_are_meant_from_where_they_are_named() {
    let folder = Folder::with(&[("a/mcpscope.yaml", "auth: { chaos_token_file: token }\nchaos: { mode: scheduled }")]);
    let Configuration { settings, places, .. } = folder.load(&["a/mcpscope.yaml"], &[]).unwrap();
    assert_eq!(settings.chaos.mode, ChaosMode::Scheduled);
    let token = settings.auth.chaos_token_file.unwrap();
    assert_eq!(places.resolve("auth.chaos_token_file", &token), folder.path("a/token"));
    assert_eq!(places.resolve("auth.chaos_token_file", "/b".as_ref()), PathBuf::from("/b"));
    let variable = [("MCPSCOPE_AUTH_CHAOS_TOKEN_FILE", "b")];
    let places = folder.load(&["a/mcpscope.yaml"], &variable).unwrap().places;
    assert_eq!(places.resolve("auth.chaos_token_file", "b".as_ref()), PathBuf::from("b"));
}

#[test]
fn errors_of_both_files_and_of_variables() {
    let folder = Folder::with(&[("mcpscope.yaml", "chaos: { mode: on }\n"), ("chaos.yaml", "scenarios: 7\n")]);
    let variables = [("MCPSCOPE_CHAOS_ENGINE_SEEDS", "1"), ("MCPSCOPE_BLAST_RADIUS_MAX_SESSIONS", "2")];
    expect![[r#"
        mcpscope.yaml:1:16: chaos.mode: expected off, manual or scheduled, found "on"
        chaos.yaml:1:12: scenarios: expected a list of scenarios, each a mapping of name, and of probability, description, impact, recovery_time, enabled, parameters and match where they are wanted, found 7
        MCPSCOPE_BLAST_RADIUS_MAX_SESSIONS: blast_radius.max_sessions: expected a number from 0 to 1, found 2
        MCPSCOPE_CHAOS_ENGINE_SEEDS: unknown variable, did you mean `MCPSCOPE_CHAOS_ENGINE_SEED`?"#]].assert_eq(&folder.load(&["mcpscope.yaml"], &variables).unwrap_err());
}

#[test]
fn every_key_has_a_variable_of_its_own() {
    let (tree, settings) = (Tree::<ChaosSettings>::new(), Tree::<Settings>::new());
    let leaves = tree.leaves();
    assert_eq!(leaves.len(), 22);
    let names: BTreeSet<String> = leaves.iter().chain(&settings.leaves()).map(|path| variable(path)).collect();
    assert_eq!(names.len(), leaves.len() + settings.leaves().len(), "{names:?}");
    let folder = Folder::with(&[]);
    for path in leaves.iter().filter(|path| *path != "scenarios") {
        let text = match tree.get(path).unwrap() {
            Value::Sequence(_) => String::new(),
            value => serde_yaml::to_string(value).unwrap().trim_end().trim_matches('\'').to_owned(),
        };
        let read = folder.load(&[], &[(&variable(path), &text)]).unwrap().chaos;
        assert_eq!(read, ChaosSettings::default(), "{path}={text}");
    }
    let variables = [("MCPSCOPE_CHAOS_ENGINE_TEST_DURATION", "2000"), ("MCPSCOPE_SCENARIOS", "")];
    let read = folder.load(&[], &variables).unwrap().chaos;
    assert_eq!((read.chaos_engine.test_duration.as_secs(), read.scenarios), (2, vec![]));
}

#[test]
fn what_turns_out_to_be_wrong_later_has_its_place_too() {
    let folder = Folder::with(&[
        ("mcpscope.yaml", ""),
        (
            "chaos.yaml",
            "scenarios:\n  - name: hang\n  - name: latency_injection\n    parameters: { delay: 1s, a.b: 1 }\n    match:\n      tool: x\n",
        ),
    ]);
    let places = folder.load(&["mcpscope.yaml"], &[]).unwrap().places;
    let refused = |key: &str| {
        let error = places.refuse(key, "is odd").map(|error| error.to_string());
        error.map(|error| error.replace(&format!("{}/", folder.0.path().display()), ""))
    };
    let all = [
        "scenarios[0].name",
        "scenarios[1].parameters.delay",
        "scenarios[1].parameters.a.b",
        "scenarios[1].match.tool",
        "scenarios[1].parameters.min",
        "scenarios[1].impact",
        "scenarios[0].parameters.min",
        "scenarios",
    ];
    let all: Vec<_> = all.into_iter().map(|key| refused(key).unwrap_or_default()).collect();
    expect![[r#"
        chaos.yaml:2:11: scenarios[0].name: is odd
        chaos.yaml:4:26: scenarios[1].parameters.delay: is odd
        chaos.yaml:4:35: scenarios[1].parameters.a.b: is odd
        chaos.yaml:6:13: scenarios[1].match.tool: is odd
        chaos.yaml:4:17: scenarios[1].parameters: is odd
        chaos.yaml:3:5: scenarios[1]: is odd
        chaos.yaml:2:5: scenarios[0]: is odd
        chaos.yaml:2:3: scenarios: is odd"#]]
    .assert_eq(&all.join("\n"));
    assert_eq!(refused("chaos_engine.seed"), None);
    // A list that a variable gives has no inside.
    let places = folder.load(&["mcpscope.yaml"], &[("MCPSCOPE_SCENARIOS", "")]).unwrap().places;
    let error = places.refuse("scenarios[0].name", "is odd").unwrap();
    assert_eq!(error.to_string(), "MCPSCOPE_SCENARIOS: scenarios: is odd");
}

#[test]
fn what_two_files_differ_in() {
    let [one, other] = ["chaos_engine: { seed: 1 }", "emergency_stop: { threshold: 6 }\nscenarios: []"]
        .map(|file| read(file).unwrap());
    let expected = ["chaos_engine.emergency_threshold", "chaos_engine.seed", "emergency_stop.threshold", "scenarios"];
    assert_eq!((one.differences(&other), one.differences(&one)), (expected.map(str::to_owned).into(), vec![]));
}
