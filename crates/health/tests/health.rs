//! States and readiness as a writer and a reader see them.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::time::{Duration, Instant, SystemTime};

use mcpscope_health::{Missing, Observation, Overall, Readiness, State, channel};

fn second(n: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(n)
}

#[test]
fn an_instance_with_nothing_in_it_is_healthy_and_ready() {
    let started = Instant::now();
    let (_reporter, view) = channel(started);
    let report = view.report(started + Duration::from_secs(3), second(3));
    assert_eq!((report.overall, report.health_percentage), (Overall::Healthy, 1.0));
    assert_eq!((report.uptime, report.timestamp), (Duration::from_secs(3), second(3)));
    assert_eq!(view.readiness(), Readiness { ready: true, missing: Vec::new() });
}

#[test]
fn since_is_when_the_state_last_changed() {
    let started = Instant::now();
    let (reporter, view) = channel(started);
    let registry = || view.report(started, second(0)).components["registry"].clone();
    reporter.set("registry", State::Healthy, "Registry idle", second(1));
    reporter.set("registry", State::Healthy, "Registry active", second(2));
    assert_eq!((registry().message.as_str(), registry().since), ("Registry active", second(1)));
    reporter.set("registry", State::Warning, "Registry failing", second(3));
    assert_eq!((registry().state, registry().since), (State::Warning, second(3)));
    reporter.set("registry", State::Healthy, "Registry active", second(4));
    assert_eq!((registry().state, registry().since), (State::Healthy, second(4)));
}

#[test]
fn a_component_counts_until_it_is_removed() {
    let started = Instant::now();
    let (reporter, view) = channel(started);
    reporter.set("registry", State::Healthy, "", second(1));
    reporter.set("chaos", State::Critical, "gone", second(1));
    assert_eq!(view.report(started, second(1)).overall, Overall::Warning);
    reporter.remove("chaos");
    reporter.remove("never registered");
    let report = view.report(started, second(1));
    assert_eq!(report.overall, Overall::Healthy);
    assert_eq!(report.components.keys().collect::<Vec<_>>(), ["registry"]);
}

fn seen(state: State, message: &str) -> Observation {
    Observation { state, message: message.to_owned(), rate: Some(1.5), count: Some(2) }
}

#[test]
fn the_worse_of_said_and_seen_is_reported() {
    use State::{Critical, Healthy, Warning};
    for said in [None, Some(Healthy), Some(Warning), Some(Critical)] {
        for observed in [Healthy, Warning, Critical] {
            let started = Instant::now();
            let (reporter, view) = channel(started);
            reporter.observe("registry", seen(observed, "seen"), second(1));
            if let Some(said) = said {
                reporter.set("registry", said, "said", second(1));
            }
            let report = view.report(started, second(1)).components["registry"].clone();
            // Of two that are as bad, what was seen says more.
            let message = if said > Some(observed) { "said" } else { "seen" };
            assert_eq!(Some(report.state), said.max(Some(observed)), "{said:?} {observed}");
            assert_eq!(report.message, message, "{said:?} {observed}");
            assert_eq!((report.rate, report.count), (Some(1.5), Some(2)));
        }
    }
}

#[test]
fn since_is_when_the_worse_of_both_last_changed() {
    let started = Instant::now();
    let (reporter, view) = channel(started);
    let registry = || {
        let report = view.report(started, second(0)).components["registry"].clone();
        (report.state, report.message, report.since)
    };
    let expected = |state, message: &str, at| (state, message.to_owned(), second(at));
    reporter.set("registry", State::Healthy, "said", second(1));
    let report = view.report(started, second(0)).components["registry"].clone();
    assert_eq!((report.rate, report.count), (None, None), "nothing was seen yet");
    reporter.observe("registry", seen(State::Healthy, "seen"), second(2));
    assert_eq!(registry(), expected(State::Healthy, "seen", 1));
    reporter.observe("registry", seen(State::Warning, "seen"), second(3));
    assert_eq!(registry(), expected(State::Warning, "seen", 3));
    reporter.set("registry", State::Warning, "said", second(4));
    assert_eq!(registry(), expected(State::Warning, "seen", 3));
    // What was seen recovers, but the owner has said something as bad meanwhile.
    reporter.observe("registry", seen(State::Healthy, "seen"), second(5));
    assert_eq!(registry(), expected(State::Warning, "said", 3));
    reporter.set("registry", State::Critical, "said", second(6));
    assert_eq!(registry(), expected(State::Critical, "said", 6));
    reporter.set("registry", State::Healthy, "said", second(7));
    assert_eq!(registry(), expected(State::Healthy, "seen", 7));
}

#[test]
fn what_is_removed_was_never_seen() {
    let started = Instant::now();
    let (reporter, view) = channel(started);
    reporter.set("registry", State::Critical, "said", second(1));
    reporter.observe("registry", seen(State::Critical, "seen"), second(1));
    reporter.remove("registry");
    assert!(view.report(started, second(1)).components.is_empty());
    reporter.set("registry", State::Healthy, "back", second(2));
    let report = view.report(started, second(2)).components["registry"].clone();
    assert_eq!((report.message.as_str(), report.since, report.rate), ("back", second(2), None));
}

#[test]
fn the_short_answers_are_those_of_the_report() {
    let states = [State::Healthy, State::Warning, State::Critical];
    for healthy in 0..6 {
        for worse in states {
            let started = Instant::now();
            let (reporter, view) = channel(started);
            assert_eq!((view.overall(), view.state("0")), (Overall::Healthy, None));
            for n in 0..6 {
                let state = if n < healthy { State::Healthy } else { worse };
                reporter.set(&n.to_string(), State::Healthy, "said", second(1));
                reporter.observe(&n.to_string(), seen(state, "seen"), second(1));
            }
            let report = view.report(started, second(1));
            assert_eq!(view.overall(), report.overall);
            for (name, component) in &report.components {
                assert_eq!(view.state(name), Some(component.state));
            }
        }
    }
    let (reporter, view) = channel(Instant::now());
    assert!(view.is_ready());
    let condition = reporter.require("it");
    assert!(!view.is_ready());
    condition.met();
    assert!(view.is_ready() && view.readiness().ready);
}

#[test]
fn every_condition_must_be_met() {
    let (reporter, view) = channel(Instant::now());
    let missing =
        || view.readiness().missing.into_iter().map(|m| format!("{}: {}", m.name, m.reason)).collect::<Vec<_>>();
    let listener = reporter.require("listener");
    let child = reporter.require("server a");
    assert_eq!(missing(), ["listener: not yet", "server a: not yet"]);
    listener.met();
    assert_eq!(missing(), ["server a: not yet"]);
    child.met();
    assert!(view.readiness().ready);
    child.unmet("restarting");
    assert_eq!(missing(), ["server a: restarting"]);
    child.met();
    assert!(view.readiness().ready);
}

#[test]
fn a_task_that_dies_makes_the_instance_unready_for_good() {
    let (reporter, view) = channel(Instant::now());
    let requirement = reporter.require("relay");
    requirement.met();
    let died = std::thread::spawn(move || {
        let _held = requirement;
        panic!("provoked");
    });
    assert!(died.join().is_err());
    // Neither another holder of the same name nor time brings it back.
    let again = reporter.require("relay");
    again.met();
    let gone = Missing { name: "relay".into(), reason: "gone".into() };
    assert_eq!(view.readiness(), Readiness { ready: false, missing: vec![gone] });
}
