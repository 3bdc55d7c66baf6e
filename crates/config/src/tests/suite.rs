//! A file of experiments: what it can say, and what is wrong with it.

use std::{fs, path::PathBuf, time::Duration};

use expect_test::{Expect, expect};

use crate::{Expected, Experiment, Scalar, Suite};

/// What a file of this content says, and what would be refused of its second experiment.
fn load(content: &[u8]) -> Result<(Vec<Experiment>, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("suite.yaml");
    fs::write(&path, content).unwrap();
    let plain = |text: String| text.replace(&format!("{}/", folder.path().display()), "");
    let suite = Suite::load(&path).map_err(|errors| plain(errors.to_string()))?;
    Ok((suite.experiments().to_vec(), plain(suite.refuse(1, None, "not here").to_string())))
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "the calls read better with a value")]
fn check(file: &str, expected: Expect) {
    expected.assert_eq(&load(file.as_bytes()).unwrap_err());
}

#[test]
fn experiments_keep_their_order_and_what_is_left_out_has_its_default() {
    let file = "experiments:\n  - scenario: hang\n  - { scenario: latency_injection, name: late, pause: 5s, expect: held,\n      \
                parameters: { delay: 300ms, intensity: 0.5 }, match: { tool: echo, every: 3 } }\n";
    let (experiments, refused) = load(file.as_bytes()).unwrap();
    let hang = Experiment {
        name: "hang".into(),
        scenario: "hang".into(),
        parameters: [].into(),
        matching: [].into(),
        expect: Expected::Completed,
        pause: Duration::ZERO,
    };
    let text = |text: &str| Scalar::Text(text.to_owned());
    let late = Experiment {
        name: "late".into(),
        scenario: "latency_injection".into(),
        parameters: [("delay".into(), text("300ms")), ("intensity".into(), Scalar::Number(0.5))].into(),
        matching: [("tool".into(), text("echo")), ("every".into(), Scalar::Whole(3))].into(),
        expect: Expected::Held,
        pause: Duration::from_secs(5),
    };
    assert_eq!(experiments, [hang, late]);
    assert_eq!(refused, "suite.yaml:3:17: experiments[1].scenario: not here");
}

#[test]
fn every_mistake_is_told_with_its_place() {
    check(
        "experiment: []\nexperiments:\n  - { scenari: hang }\n  - { name: x }\n  - { scenario: hang, expect: done, pause: 2h }\n  \
         - { scenario: hang, parameters: { every: 2 }, match: { every: 3, tol: echo } }\n  - { name: hang, scenario: delay }\n  \
         - hang\n  - { scenario: oversize, parameters: 5 }\n",
        expect![[r#"
            suite.yaml:1:1: experiment: unknown key, did you mean `experiments`?
            suite.yaml:3:7: experiments[0].scenari: unknown key, did you mean `scenario`?
            suite.yaml:4:5: experiments[1]: expected a mapping of scenario, and of name, parameters, match, expect and pause where they are wanted; missing: scenario
            suite.yaml:5:31: experiments[2].expect: expected completed, held, failed or aborted, found "done"
            suite.yaml:5:44: experiments[2].pause: expected a duration from 0s to 1h such as 5s, or a number of milliseconds, found "2h"
            suite.yaml:6:58: experiments[3].match.every: given in parameters already: expected it in one of them
            suite.yaml:6:68: experiments[3].match.tol: unknown key, did you mean `tool`?
            suite.yaml:6:5: experiments[3]: "hang" is experiments[2] already: expected a name of its own
            suite.yaml:7:5: experiments[4]: "hang" is experiments[2] already: expected a name of its own
            suite.yaml:8:5: experiments[5]: expected a mapping of scenario, and of name, parameters, match, expect and pause where they are wanted, found "hang"
            suite.yaml:9:39: experiments[6].parameters: expected a mapping of parameters, found 5"#]],
    );
}

#[test]
fn a_file_without_an_experiment_proves_nothing() {
    for (file, place) in [("", "suite.yaml: experiments: "), ("experiments: []\n", "suite.yaml:1:14: experiments: ")] {
        let error = load(file.as_bytes()).unwrap_err();
        assert!(
            error.starts_with(place) && error.contains("expected a list of at least one, each a mapping of"),
            "{error}"
        );
    }
    for file in ["experiments:\n", "experiments: hang\n"] {
        let error = load(file.as_bytes()).unwrap_err();
        assert!(error.contains("experiments: expected a list of experiments"), "{error}");
    }
}

#[test]
fn what_is_no_configuration_file_is_refused_as_one() {
    check(
        "experiments: [",
        expect![
            "suite.yaml:2:1: not valid YAML: did not find expected node content at line 2 column 1, while parsing a flow node"
        ],
    );
    assert!(load(b"\xff").unwrap_err().ends_with("suite.yaml:1:1: is not UTF-8"));
    let missing = Suite::load(&PathBuf::from("/nonexistent/suite.yaml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/suite.yaml: cannot be read: "), "{missing}");
    let many = format!("experiments:\n{}", (0..257).map(|n| format!("- {{scenario: s{n}}}\n")).collect::<String>());
    assert!(load(many.as_bytes()).unwrap_err().contains("expected 256 experiments at most"));
}

#[test]
fn the_example_is_one() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config/experiments.example.yaml");
    assert_eq!(Suite::load(&path).unwrap().experiments().len(), 3);
}

#[test]
fn what_is_refused_later_is_told_where_it_is_said_also_beside_other_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("suite.yaml");
    let read = |content: &str| {
        fs::write(&path, content).unwrap();
        let (suite, errors) = Suite::read(&path);
        let plain = |text: String| text.replace(&format!("{}/", folder.path().display()), "");
        let refused = suite.map(|suite| {
            let refuse = |parameter| plain(suite.refuse(1, parameter, "no").to_string());
            [Some("evry"), Some("tool"), Some("other"), None].map(refuse)
        });
        (refused, errors.into_iter().map(|error| plain(error.to_string())).collect::<Vec<_>>())
    };
    let second = "  - scenario: hang\n    name: b\n    parameters: { evry: 2 }\n    match: { tool: x }\n";
    let places = |index: usize, line: usize| {
        let key = format!("experiments[{index}]");
        [
            format!("suite.yaml:{}:25: {key}.parameters.evry: no", line + 2),
            format!("suite.yaml:{}:20: {key}.match.tool: no", line + 3),
            format!("suite.yaml:{line}:15: {key}.scenario: no"),
            format!("suite.yaml:{line}:15: {key}.scenario: no"),
        ]
    };
    let (refused, errors) = read(&format!("experiments:\n  - scenario: hang\n{second}"));
    assert_eq!((refused, errors), (Some(places(1, 3)), Vec::new()));
    // An element that is no experiment does not take the place of one.
    let (refused, errors) = read(&format!("experiments:\n  - scenari: hang\n  - scenario: stale_session\n{second}"));
    assert_eq!((refused, errors.len()), (Some(places(2, 4)), 1), "{errors:?}");
    let (refused, errors) = read(&format!("experiments:\n  - {{ scenario: hang, pause: soon }}\n{second}"));
    assert_eq!((refused, errors.len()), (Some(places(1, 3)), 1), "{errors:?}");
    // Which of the two is meant is not known.
    let (refused, errors) = read("experiments:\n  - scenario: hang\n  - scenario: hang\n");
    assert_eq!((refused, errors.len()), (None, 1), "{errors:?}");
}
