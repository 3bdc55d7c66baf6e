//! Who is not started again, and what ends with a server.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;

use mcpscope_core::Transport;
use mcpscope_metrics::desc;
use mcpscope_proxy::{RestartPolicy, ServerState};
use mcpscope_test_support::{eventually, within};
use rustix::process::Signal;

use crate::common::{Bench, ended, errors};
use crate::{EAGER, Session, call, restarts};

#[tokio::test]
async fn too_many_crashes_end_it_with_the_last_exit_code() {
    let bench = Bench::new();
    let policy = RestartPolicy { give_up: 3, ..EAGER };
    let mut session = Session::begin(&bench.probe(Transport::Stdio), policy).await;
    for id in 1..=3 {
        session.send(&call(id, "exit"));
        session.loses(id).await;
    }
    let state = *within(session.state.wait_for(|state| matches!(state, ServerState::GivenUp { .. }))).await.unwrap();
    assert_eq!(state.to_string(), "server given up after 3 crashes in 60 s");
    assert_eq!(session.line().await, None, "the client sees the end");
    assert_eq!(session.ends().await.0.code(), Some(3));
    bench.becomes(&restarts(), 2).await;
    bench.becomes(&errors("server", "crash"), 3).await;
    bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "pipe", "crash"), 1).await;
}

#[tokio::test]
async fn what_ends_as_it_should_is_not_started_again() {
    // Not by SIGINT and SIGHUP, which whoever runs the tests in the background may have them ignore.
    for (tool, signal) in [(Some("bye"), None), (None, Some(Signal::TERM)), (None, Some(Signal::USR1))] {
        let bench = Bench::new();
        let mut session = Session::begin(&bench.probe(Transport::Stdio), EAGER).await;
        session.calls(1).await;
        session.send(&call(2, "hang"));
        if let Some(tool) = tool {
            session.send(&call(3, tool));
        }
        if let Some(signal) = signal {
            session.child.signal(signal);
        }
        let status = within(&mut session.ended).await.unwrap().unwrap();
        assert_eq!(status.signal(), signal.map(Signal::as_raw));
        assert_eq!(session.line().await, None, "as without us, there is no answer");
        assert_eq!((session.heard().len(), bench.value(&restarts())), (1, 0));
    }
}

#[tokio::test]
async fn after_the_end_of_the_clients_input_there_is_no_other_but_each_call_has_its_answer() {
    let bench = Bench::new();
    // It reads to the end of its input before it crashes.
    let script = "echo started >> \"$LOG\"; while read -r line; do :; done; exit 5";
    let mut session = Session::start_script(script, &bench.probe(Transport::Stdio), EAGER);
    session.send(&call(1, "echo"));
    session.writer = None;
    session.loses(1).await;
    assert_eq!(session.line().await, None);
    assert_eq!(session.heard().len(), 1);
    assert_eq!(session.ends().await.0.code(), Some(5));
    assert_eq!(bench.value(&restarts()), 0);
}

#[tokio::test]
async fn what_a_crashed_server_started_ends_with_it() {
    let script = "sleep 3600 & echo $! >> \"$LOG\"; wait; read -r line; kill -9 $$";
    let script = script.replace("wait; ", "");
    let mut session = Session::start_script(&script, &Bench::new().probe(Transport::Stdio), EAGER);
    session.send(&call(1, "die"));
    session.loses(1).await;
    let log = fs::read_to_string(&session.log).unwrap();
    let descendant = log.lines().next().unwrap().parse().unwrap();
    let descendant = rustix::process::Pid::from_raw(descendant).unwrap();
    eventually(|| match rustix::process::test_kill_process(descendant) {
        // Whoever adopted it may not have reaped it yet.
        Ok(()) => match fs::read_to_string(format!("/proc/{}/stat", descendant.as_raw_nonzero())) {
            Ok(stat) if !stat.contains(") Z ") => Err(stat),
            _ => Ok(()),
        },
        Err(_) => Ok(()),
    })
    .await;
    session.ends().await;
}
