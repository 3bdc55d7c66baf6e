//! What becomes of calls, messages and sessions when a server crashes.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mcpscope_core::Transport;
use mcpscope_hooks::{Parts, Probe};
use mcpscope_metrics::desc;
use mcpscope_proxy::{RestartPolicy, ServerState};
use mcpscope_test_support::within;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{Bench, SERVER, dropped, ended, errors, operations, sessions, tool_calls};
use crate::{EAGER, INITIALIZED, Session, call, initialize, restarts};

#[tokio::test]
async fn a_server_killed_while_idle_is_replaced_and_the_session_goes_on() {
    let bench = Bench::new();
    let probe = bench.probe(Transport::Stdio);
    assert!(bench.text().contains(&format!("{} 0\n", restarts())), "it is there before the first");
    let policy =
        RestartPolicy { backoff_min: Duration::from_millis(300), backoff_max: Duration::from_secs(1), ..EAGER };
    let mut session = Session::begin(&probe, policy).await;
    session.calls(1).await;
    let first = session.child.id();
    session.child.signal(Signal::KILL);
    // The server is not there: what is sent now waits for the next one.
    within(session.state.wait_for(|state| *state == ServerState::Restarting { attempt: 1, start_timeout: None }))
        .await
        .unwrap();
    session.calls(2).await;
    assert_ne!(session.child.id(), first);
    let expected = [
        vec![initialize(), INITIALIZED.into(), call(1, "echo")],
        vec![initialize(), INITIALIZED.into(), call(2, "echo")],
    ];
    assert_eq!(session.heard(), expected);
    bench.becomes(&sessions("2025-06-18"), 1).await;
    let (status, rest) = session.ends().await;
    assert_eq!((status.code(), rest), (Some(0), vec![]), "nothing but the answers");
    bench.becomes(&restarts(), 1).await;
    bench.becomes(&errors("server", "crash"), 1).await;
    assert_eq!(bench.value(&operations("server")), 4, "two starts, two ends");
    bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "pipe", ""), 1).await;
    assert_eq!(bench.sessions_ended(), 1);
    bench.becomes(&dropped("unmatched_response"), 0).await;
    bench.records(&desc::SERVER_OPERATIONS, &[("mcp_method_name", "initialize")], 1).await;
}

#[tokio::test]
async fn each_call_in_flight_gets_one_error_in_the_order_of_the_calls() {
    let bench = Bench::new();
    let mut session = Session::begin(&bench.probe(Transport::Stdio), EAGER).await;
    let calls = [call(7, "hang"), call(3, "hang"), call(5, "echo"), call(4, "die")];
    session.send(&calls.join("\n"));
    assert_eq!(session.answer().await["id"], 5);
    for id in [7, 3, 4] {
        session.loses(id).await;
    }
    session.calls(8).await;
    let (status, rest) = session.ends().await;
    assert_eq!((status.code(), rest), (Some(0), vec![]));
    bench.becomes(&tool_calls("hang", "error"), 2).await;
    bench.becomes(&tool_calls("die", "error"), 1).await;
    bench.becomes(&errors("tools", "connection_lost"), 3).await;
    bench.becomes(&errors("transport", "connection_lost"), 3).await;
}

#[tokio::test]
async fn half_an_answer_is_ended_and_a_whole_one_counts() {
    let mut session = Session::begin(&Bench::new().probe(Transport::Stdio), EAGER).await;
    session.send(&call(1, "half"));
    assert_eq!(session.line().await.unwrap(), r#"{"jsonrpc":"2.0","id":1,"res"#);
    session.loses(1).await;
    session.send(&call(2, "whole"));
    assert_eq!(session.answer().await, json!({"jsonrpc": "2.0", "id": 2, "result": {}}), "it only lacks its line feed");
    session.calls(3).await;
    let (_, rest) = session.ends().await;
    assert_eq!(rest, [""; 0]);
}

#[tokio::test]
async fn a_relay_that_observes_nothing_supervises_all_the_same() {
    let probe = Probe::new(Parts::new(SERVER, Transport::Stdio));
    let mut session = Session::begin(&probe, EAGER).await;
    session.send(&call(1, "die"));
    session.loses(1).await;
    session.calls(2).await;
    assert_eq!(session.heard()[1][..2], [initialize(), INITIALIZED.into()]);
    assert_eq!(session.ends().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_message_under_way_reaches_one_server_whole() {
    let bench = Bench::new();
    let mut session = Session::begin(&bench.probe(Transport::Stdio), EAGER).await;
    let echo = call(2, "echo");
    let (beginning, end) = echo.split_at(30);
    // The call in front of it is answered: the beginning behind it was read with it, and goes where it goes.
    write!(session.writer.as_mut().unwrap(), "{}\n{beginning}", call(1, "echo")).unwrap();
    assert_eq!(session.answer().await["id"], 1);
    session.child.signal(Signal::KILL);
    session.started(2).await;
    session.send(end);
    assert_eq!(session.answer().await["id"], 2);
    assert_eq!(session.heard()[1], [initialize(), INITIALIZED.into(), echo]);
    assert_eq!(session.ends().await.0.code(), Some(0));
}

#[tokio::test]
async fn an_answer_to_a_server_that_is_gone_reaches_no_other() {
    let mut session = Session::begin(&Bench::new().probe(Transport::Stdio), EAGER).await;
    session.send(&call(1, "ask"));
    assert_eq!(session.answer().await["method"], "roots/list");
    session.send(&call(2, "die"));
    session.loses(1).await;
    session.loses(2).await;
    session.send(r#"{"jsonrpc":"2.0","id":1,"result":{"roots":"first"}}"#);
    session.send(&call(3, "ask"));
    assert_eq!(session.answer().await["method"], "roots/list");
    let second = r#"{"jsonrpc":"2.0","id":1,"result":{"roots":"second"}}"#;
    session.send(second);
    session.calls(4).await;
    assert_eq!(session.heard()[1][2..], [call(3, "ask"), second.into(), call(4, "echo")]);
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[tokio::test]
async fn however_often_the_server_dies_each_request_has_one_answer() {
    const CALLS: u64 = 500;
    for seed in 1..=4 {
        let mut dice = Dice(seed);
        let mut session = Session::start(&Bench::new().probe(Transport::Stdio), EAGER);
        let over = Arc::new(AtomicBool::new(false));
        let killer = tokio::spawn({
            let (child, over, mut dice) = (session.child.clone(), Arc::clone(&over), Dice(seed + 100));
            async move {
                while !over.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(dice.below(12))).await;
                    child.signal(Signal::KILL);
                }
            }
        });
        session.send(&initialize());
        let mut answers = HashMap::from([(session.answer().await["id"].as_u64().unwrap(), 1)]);
        session.send(INITIALIZED);
        let (mut sent, mut halves) = (0, 0);
        let mut take = |line: String, answers: &mut HashMap<u64, u32>| match serde_json::from_str::<Value>(&line) {
            Ok(answer) => *answers.entry(answer["id"].as_u64().unwrap()).or_default() += 1,
            Err(_) => {
                halves += 1;
                assert!(line.ends_with("\"res"), "{line:?}");
            }
        };
        while sent < CALLS {
            for _ in 0..=dice.below(6).min(CALLS - sent - 1) {
                sent += 1;
                let tool = ["echo", "echo", "echo", "echo", "hang", "die", "half", "whole"][dice.below(8) as usize];
                session.send(&call(sent, tool));
            }
            // None of those that hang has an answer until the next death, which may be long in coming.
            for _ in 0..dice.below(4) {
                if (answers.values().sum::<u32>() as u64) < sent.saturating_sub(20)
                    && let Some(line) = session.line().await
                {
                    take(line, &mut answers);
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        within(killer).await.unwrap();
        // Whatever hangs is answered by the last death.
        session.send(&call(CALLS + 1, "die"));
        while (answers.len() as u64) < CALLS + 2 {
            take(session.line().await.expect("each has its answer"), &mut answers);
        }
        let (status, rest) = session.ends().await;
        assert_eq!(rest, [""; 0], "seed {seed}");
        // The client may have left before there was another.
        assert!(status.success() || status.signal() == Some(9), "seed {seed}: {status}");
        assert!(answers.values().all(|count| *count == 1), "seed {seed}: {answers:?}");
    }
}
