//! Which instance a client command asks.

use anyhow::anyhow;

use super::args::Asked;
use super::text::clean;
use crate::failure::Failure;
use crate::running::{Entry, Mode};

/// Where an instance listens if nothing else is said.
const DEFAULT_ADDR: &str = "127.0.0.1:50051";

/// The gRPC address of the instance that is meant; `running` is called if none is given.
pub(super) fn find(asked: &Asked, running: impl FnOnce() -> Vec<Entry>) -> Result<String, Failure> {
    match &asked.addr {
        Some(addr) => Ok(addr.clone()),
        None => choose(asked.name.as_deref(), &running()),
    }
}

fn choose(name: Option<&str>, running: &[Entry]) -> Result<String, Failure> {
    let wanted: Vec<&Entry> = running.iter().filter(|entry| name.is_none_or(|name| name == entry.name)).collect();
    let reachable: Vec<(&Entry, &str)> =
        wanted.iter().filter_map(|entry| Some((*entry, entry.grpc.as_deref()?))).collect();
    match (reachable.as_slice(), name) {
        ([(_, addr)], _) => Ok((*addr).to_owned()),
        ([], Some(name)) if wanted.is_empty() => Err(Failure::unavailable(anyhow!(
            "no instance named {:?} runs on this machine; {}",
            clean(name),
            if running.is_empty() { "none does".to_owned() } else { format!("there are:{}", list(running)) }
        ))),
        ([], _) if !wanted.is_empty() => Err(Failure::unavailable(anyhow!(
            "the instance runs without a gRPC listener, which the client commands need; start it without `--grpc off`"
        ))),
        ([], _) => Ok(DEFAULT_ADDR.to_owned()),
        (several, None) if several.iter().any(|(_, addr)| *addr == DEFAULT_ADDR) => Ok(DEFAULT_ADDR.to_owned()),
        (several, _) => Err(Failure::usage(anyhow!(
            "several instances run on this machine; choose one of them:{}",
            list(several.iter().map(|(entry, _)| *entry))
        ))),
    }
}

/// One line for each, with the option that chooses it.
fn list<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> String {
    let line = |entry: &Entry| {
        let mode = match entry.mode {
            Mode::Run => "run",
            Mode::Proxy => "proxy",
            Mode::Serve => "serve",
            Mode::Demo => "demo",
        };
        let addr = entry.grpc.as_deref().map_or("(no gRPC)".to_owned(), |addr| format!("--addr {}", clean(addr)));
        format!("\n  {addr}   {} ({mode}, process {})", clean(&entry.name), entry.pid)
    };
    entries.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn entry(name: &str, pid: u32, grpc: Option<&str>) -> Entry {
        Entry {
            name: name.into(),
            pid,
            mode: Mode::Run,
            grpc: grpc.map(Into::into),
            dashboard: None,
            chaos_token: None,
        }
    }

    fn refused(name: Option<&str>, running: &[Entry], code: u8, expected: &Expect) {
        let failure = choose(name, running).unwrap_err();
        assert_eq!(failure.code(), code);
        expected.assert_eq(&failure.to_string());
    }

    #[test]
    fn an_address_wins_and_nobody_is_looked_for() {
        let asked = Asked { addr: Some("a:1".into()), name: None, output: super::super::args::Output::Text };
        assert_eq!(find(&asked, || panic!("looked")).unwrap(), "a:1");
    }

    #[test]
    fn the_only_instance_is_meant() {
        let one = entry("one", 1, Some("127.0.0.1:1"));
        assert_eq!(choose(None, std::slice::from_ref(&one)).unwrap(), "127.0.0.1:1");
        // One that cannot be asked is no choice.
        let running = [one, entry("mute", 2, None)];
        assert_eq!(choose(None, &running).unwrap(), "127.0.0.1:1");
    }

    #[test]
    fn nobody_there_means_the_default() {
        assert_eq!(choose(None, &[]).unwrap(), DEFAULT_ADDR);
    }

    #[test]
    fn of_several_the_name_or_the_default_address_decides() {
        let mut running = vec![
            entry("one", 1, Some("127.0.0.1:1")),
            entry("two", 2, Some("127.0.0.1:2")),
            entry("t\x1bwo", 3, Some("127.0.0.1:3")),
        ];
        assert_eq!(choose(Some("two"), &running).unwrap(), "127.0.0.1:2");
        refused(
            None,
            &running,
            64,
            &expect![[r"
                several instances run on this machine; choose one of them:
                  --addr 127.0.0.1:1   one (run, process 1)
                  --addr 127.0.0.1:2   two (run, process 2)
                  --addr 127.0.0.1:3   t\u{1b}wo (run, process 3)"]],
        );
        running.push(entry("four", 4, Some(DEFAULT_ADDR)));
        assert_eq!(choose(None, &running).unwrap(), DEFAULT_ADDR);
        running.push(entry("two", 5, Some("127.0.0.1:5")));
        refused(
            Some("two"),
            &running,
            64,
            &expect![[r"
                several instances run on this machine; choose one of them:
                  --addr 127.0.0.1:2   two (run, process 2)
                  --addr 127.0.0.1:5   two (run, process 5)"]],
        );
    }

    #[test]
    fn a_name_that_nobody_has() {
        refused(Some("x"), &[], 69, &expect![[r#"no instance named "x" runs on this machine; none does"#]]);
        refused(
            Some("x"),
            &[entry("one", 1, None)],
            69,
            &expect![[r#"
                no instance named "x" runs on this machine; there are:
                  (no gRPC)   one (run, process 1)"#]],
        );
    }

    #[test]
    fn an_instance_without_grpc_cannot_be_asked() {
        let running = [entry("one", 1, None)];
        let expected = expect![
            "the instance runs without a gRPC listener, which the client commands need; start it without `--grpc off`"
        ];
        refused(None, &running, 69, &expected);
        refused(Some("one"), &running, 69, &expected);
    }
}
