//! How the export is doing, as others are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use mcpscope_core::bounded;
use mcpscope_health::{Observation, Reporter, State};
use mcpscope_hub::Reader;

/// The component that all that observes reports itself as. The hub owns it; what is told here is what is seen of it.
const COMPONENT: &str = "observability";

/// Most messages of collectors that are repeated in the log: one that counts something has always a new one.
const MAX_SAID: usize = 16;

/// Longest message of health, in bytes: one line for people. What is longer is in the log.
const MAX_HEALTH_BYTES: usize = 160;

/// Where something is exported to, as people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Host and port.
    pub(crate) short: String,
    /// The whole of it, without anything secret.
    pub(crate) full: String,
}

impl Destination {
    pub(crate) fn console() -> Self {
        let console = "the console".to_owned();
        Self { short: console.clone(), full: console }
    }
}

/// What is wrong with a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failing {
    to: String,
    why: String,
}

/// Whether each signal arrives.
pub(crate) struct Condition {
    reporter: Reporter,
    reader: Reader,
    /// What is wrong, by signal.
    failing: Mutex<BTreeMap<&'static str, Failing>>,
    /// What collectors said, as it was repeated.
    said: Mutex<BTreeSet<String>>,
}

impl Condition {
    pub(crate) fn new(reporter: Reporter, reader: Reader) -> Self {
        Self { reporter, reader, failing: Mutex::default(), said: Mutex::default() }
    }

    /// A batch of `signal` arrived.
    pub(crate) fn works(&self, signal: &'static str, to: &Destination) {
        self.change(|failing| {
            let failed = failing.remove(signal).is_some();
            if failed {
                // As loud as the failure was: whoever read that wants to know.
                tracing::warn!("exporting {signal} to {} works again", to.full);
            }
            failed
        });
    }

    /// A batch of `signal` did not arrive, or not all of it: why, in plain words, and in those of a library if they say more.
    pub(crate) fn fails(&self, signal: &'static str, to: &Destination, why: &str, details: Option<&str>) {
        self.change(|failing| {
            let now = Failing { to: to.short.clone(), why: why.to_owned() };
            let before = failing.insert(signal, now.clone());
            let details = details.map(|details| format!(" ({details})")).unwrap_or_default();
            let message = || format!("exporting {signal} to {} fails: {why}{details}", to.full);
            match &before {
                None => tracing::warn!("{}", message()),
                Some(before) if *before != now => tracing::info!("{}", message()),
                Some(_) => {}
            }
            before.as_ref() != Some(&now)
        });
    }

    /// What the collector has to say of a batch that it took, if it is anything: told once.
    pub(crate) fn says(&self, to: &Destination, message: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if message.is_empty() || said.len() == MAX_SAID {
            return;
        }
        let message = format!("the collector at {} says: {message}", to.full);
        if said.insert(message.clone()) {
            tracing::warn!("{message}");
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<&'static str, Failing>) -> bool) {
        // Each change is a single one: a panic in another holder leaves nothing half done.
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut failing) {
            return;
        }
        let (state, message) = match failing.is_empty() {
            true => (State::Healthy, "Observability running".to_owned()),
            false => (State::Warning, shortened(&format!("Observability failing: {}", told(&failing)))),
        };
        let observation = Observation { state, message, rate: None, count: None };
        self.reporter.observe(COMPONENT, observation, self.reader.timestamp());
    }
}

/// All that fails; what fails in the same way is told together.
fn told(failing: &BTreeMap<&'static str, Failing>) -> String {
    let mut groups = Vec::<(&Failing, Vec<&str>)>::new();
    for (signal, now) in failing {
        match groups.iter_mut().find(|(known, _)| *known == now) {
            Some((_, signals)) => signals.push(signal),
            None => groups.push((now, vec![signal])),
        }
    }
    let told = groups
        .iter()
        .map(|(Failing { to, why }, signals)| format!("exporting {} to {to} fails: {why}", signals.join(" and ")));
    told.collect::<Vec<_>>().join("; ")
}

fn shortened(message: &str) -> String {
    const MORE: &str = "…";
    if message.len() <= MAX_HEALTH_BYTES {
        return message.to_owned();
    }
    format!("{}{MORE}", bounded(message, MAX_HEALTH_BYTES - MORE.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Log, World};

    fn at(host: &str) -> Destination {
        Destination { short: format!("{host}:4318"), full: format!("http://{host}:4318/v1/things (http/protobuf)") }
    }

    #[tokio::test]
    async fn a_failure_and_its_end_are_logged_once_and_at_the_default_level() {
        let World { reporter, reader, .. } = World::new(1 << 10);
        let condition = Condition::new(reporter, reader);
        let log = Log::default();
        let guard = log.collect(tracing::Level::WARN);
        condition.works("traces", &at("a"));
        for _ in 0..2 {
            for _ in 0..3 {
                condition.fails("traces", &at("a"), "nothing listens there", Some("Connection refused"));
                condition.fails("traces", &at("a"), "no answer within 10s", None);
            }
            condition.works("metrics", &at("a"));
            condition.works("traces", &at("a"));
            condition.works("traces", &at("a"));
        }
        drop(guard);
        let fails = "exporting traces to http://a:4318/v1/things (http/protobuf) fails: nothing listens there (Connection refused)";
        let works = "exporting traces to http://a:4318/v1/things (http/protobuf) works again";
        let text = log.text();
        let lines: Vec<_> = text.lines().map(|line| line.split_once("condition: ").unwrap().1).collect();
        assert_eq!(lines, [fails, works, fails, works]);
    }

    #[tokio::test]
    async fn health_says_it_in_one_short_line() {
        let world = World::new(1 << 10);
        let condition = Condition::new(world.reporter.clone(), world.reader.clone());
        let told = || world.health().unwrap().1;
        condition.fails("traces", &at("a"), "nothing listens there", Some("Connection refused"));
        assert_eq!(told(), "Observability failing: exporting traces to a:4318 fails: nothing listens there");
        condition.fails("metrics", &at("a"), "nothing listens there", Some("Connection refused"));
        assert_eq!(
            told(),
            "Observability failing: exporting metrics and traces to a:4318 fails: nothing listens there"
        );
        condition.fails("metrics", &at("b"), "401 Unauthorized", None);
        assert_eq!(
            told(),
            "Observability failing: exporting metrics to b:4318 fails: 401 Unauthorized; exporting traces to a:4318 fails: \
             nothing listens there"
        );
        condition.works("traces", &at("a"));
        condition.fails("metrics", &at("b"), &format!("400 Bad Request: {}", "ü".repeat(256)), None);
        let message = told();
        assert!((156..=160).contains(&message.len()) && message.ends_with("ü…"), "{message}");
    }
}
