//! A server that is started again learns of the session.

use std::fs;
use std::time::Duration;

use mcpscope_core::Transport;
use mcpscope_proxy::{Limits, RestartPolicy, ServerState};
use mcpscope_test_support::within;
use rustix::process::Signal;

use crate::common::{Bench, Frozen, errors};
use crate::{EAGER, INITIALIZED, SCRIPT, Session, call, initialize, restarts};

#[tokio::test]
async fn a_server_killed_before_or_in_the_handshake_is_replaced_and_its_successor_answers() {
    let bench = Bench::new();
    let mut session = Session::start(&bench.probe(Transport::Stdio), EAGER);
    session.started(1).await;
    session.child.signal(Signal::KILL);
    session.started(2).await;
    // It dies of the first `initialize` it reads.
    fs::write(session.log.with_extension("mute"), "").unwrap();
    session.send(&initialize());
    assert_eq!(session.answer().await["result"]["protocolVersion"], "2025-06-18");
    session.send(INITIALIZED);
    session.calls(1).await;
    let expected = [vec![], vec![initialize()], vec![initialize(), INITIALIZED.into(), call(1, "echo")]];
    assert_eq!(session.heard(), expected);
    let (status, rest) = session.ends().await;
    assert_eq!((status.code(), rest), (Some(0), vec![]));
    bench.becomes(&restarts(), 2).await;
    assert_eq!(bench.sessions_ended(), 1);
}

#[tokio::test]
async fn a_server_that_dies_of_the_replay_is_replaced_too() {
    let mut session = Session::begin(&Bench::new().probe(Transport::Stdio), EAGER).await;
    fs::write(session.log.with_extension("mute"), "").unwrap();
    session.send(&call(1, "die"));
    session.loses(1).await;
    session.send(&call(2, "exit"));
    session.loses(2).await;
    session.calls(3).await;
    let (again, exit) = (vec![initialize()], vec![initialize(), INITIALIZED.into(), call(2, "exit")]);
    let last = vec![initialize(), INITIALIZED.into(), call(3, "echo")];
    assert_eq!(session.heard()[1..], [again, exit, last]);
    assert_eq!(session.ends().await.1, [""; 0]);
}

#[tokio::test]
async fn a_server_that_hangs_in_the_replay_is_replaced_too() {
    let bench = Bench::new();
    // Long enough for most servers to answer, and any number may not.
    let limits = Limits { call_timeout: Duration::from_secs(1), ..Limits::default() };
    let session = Session::start_within(limits, SCRIPT, &bench.probe(Transport::Stdio), EAGER);
    let mut session = session.greeted().await;
    fs::write(session.log.with_extension("hang"), "").unwrap();
    session.child.signal(Signal::KILL);
    within(session.state.wait_for(|state| matches!(state, ServerState::Restarting { .. }))).await.unwrap();
    session.calls(1).await;
    let heard = session.heard();
    assert!(heard.len() >= 3 && heard.contains(&vec![initialize()]), "{heard:?}");
    assert_eq!(heard.last().unwrap()[..], [initialize(), INITIALIZED.into(), call(1, "echo")]);
    assert!(bench.value(&errors("server", "crash")) >= 2);
    assert_eq!(session.ends().await.0.code(), Some(0));
}

#[tokio::test]
async fn what_needs_no_handshake_gets_none() {
    let mut session = Session::start(&Bench::new().probe(Transport::Stdio), EAGER);
    session.calls(1).await;
    session.send(&call(2, "die"));
    session.loses(2).await;
    session.calls(3).await;
    assert_eq!(session.heard()[1], [call(3, "echo")]);
    assert_eq!(session.ends().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_server_that_never_answers_initialize_gets_the_client_an_error_in_the_end() {
    let policy = RestartPolicy { give_up: 2, ..EAGER };
    let script = "read -r line; exit 9";
    let mut session = Session::start_script(script, &Bench::new().probe(Transport::Stdio), policy);
    session.send(&initialize());
    session.loses(0).await;
    assert_eq!(session.ends().await.0.code(), Some(9));
}

#[tokio::test]
async fn a_server_that_never_answers_the_replay_is_given_up() {
    /// How long it may take to answer.
    const GREETING: Duration = Duration::from_secs(30);
    let script = SCRIPT.replace("echo started", "[ -e \"$LOG\" ] && sleep 1000; echo started");
    let policy = RestartPolicy { give_up: 4, ..EAGER };
    let bench = Bench::new();
    let mut session = Session::start_script(&script, &bench.probe(Transport::Stdio), policy).greeted().await;
    let _frozen = Frozen::clock();
    session.child.signal(Signal::KILL);
    for attempt in 1..=3 {
        within(session.state.wait_for(|state| *state == ServerState::Restarting { attempt, start_timeout: None }))
            .await
            .unwrap();
        // It is started.
        advance(EAGER.backoff_max * 2).await;
        assert!(session.child.id().is_some());
        // A timer is up to a millisecond late.
        advance(GREETING + Duration::from_millis(5)).await;
    }
    let last = *within(session.state.wait_for(|state| !matches!(state, ServerState::Restarting { .. }))).await.unwrap();
    assert_eq!(last, ServerState::GivenUp { crashes: 4, within: EAGER.give_up_window, start_timeout: None });
    assert_eq!(session.line().await, None);
}

/// Lets so much time pass, and everybody do what it is time for.
async fn advance(time: Duration) {
    tokio::time::advance(time).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
