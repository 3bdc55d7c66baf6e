//! What clients do and see while there is no server.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use mcpscope_core::Transport;
use mcpscope_metrics::desc;
use mcpscope_proxy::{RestartPolicy, ServerState};
use mcpscope_test_support::within;
use mcpscope_tracing::Filter;
use rustix::process::Signal;
use serde_json::json;

use crate::common::{Bench, errors, tool_calls};
use crate::{EAGER, Session, call};

#[tokio::test]
async fn how_the_server_is_can_be_seen() {
    let policy = RestartPolicy { backoff_min: Duration::from_secs(3600), backoff_max: Duration::MAX, ..EAGER };
    let mut session = Session::begin(&Bench::new().probe(Transport::Stdio), policy).await;
    assert_eq!(*session.state.borrow(), ServerState::Serving(session.child.id()));
    session.child.signal(Signal::KILL);
    within(session.state.changed()).await.unwrap();
    assert_eq!(session.state.borrow().to_string(), "server restarting, attempt 1");
    // Who leaves while there is no server needs no other.
    let (status, rest) = session.ends().await;
    assert_eq!((status.signal(), rest), (Some(9), vec![]));
}

#[tokio::test]
async fn a_client_that_leaves_while_there_is_no_server_has_an_answer_to_all_it_sent() {
    let policy = RestartPolicy { backoff_min: Duration::from_secs(3600), backoff_max: Duration::MAX, ..EAGER };
    let bench = Bench::new();
    let mut session = Session::begin(&bench.probe(Transport::Stdio), policy).await;
    session.send(&call(1, "exit"));
    session.loses(1).await;
    within(session.state.wait_for(|state| *state == ServerState::Restarting { attempt: 1, start_timeout: None }))
        .await
        .unwrap();
    session.send(&call(2, "echo"));
    write!(session.writer.take().unwrap(), "{}", call(3, "echo")).unwrap();
    session.loses(2).await;
    session.loses(3).await;
    assert_eq!(session.line().await, None);
    assert_eq!(session.heard().len(), 1);
    assert_eq!(session.ends().await.0.code(), Some(3));
    bench.becomes(&tool_calls("echo", "error"), 2).await;
}

#[tokio::test]
async fn a_signal_to_end_while_there_is_no_server_ends_the_wait_for_one() {
    let policy = RestartPolicy { backoff_min: Duration::from_secs(3600), backoff_max: Duration::MAX, ..EAGER };
    let mut session = Session::begin(&Bench::new().probe(Transport::Stdio), policy).await;
    session.send(&call(1, "exit"));
    session.loses(1).await;
    within(session.state.wait_for(|state| *state == ServerState::Restarting { attempt: 1, start_timeout: None }))
        .await
        .unwrap();
    session.child.signal(Signal::TERM);
    assert_eq!(within(&mut session.ended).await.unwrap().unwrap().code(), Some(3));
    assert_eq!(session.line().await, None);
}

/// The least that is seen of what a call waits while nobody sends another one.
const SEEN: Duration = Duration::from_millis(200);

/// Makes a call, another one a while later, and lets the server be there then. Each lasts from when it was written.
async fn waits(bench: &Bench, session: &mut Session, is_there: impl FnOnce()) {
    let begun = Instant::now();
    session.send(&call(2, "early"));
    tokio::time::sleep(2 * SEEN).await;
    session.send(&call(3, "late"));
    is_there();
    for id in [2, 3] {
        assert_eq!(session.answer().await, json!({"jsonrpc": "2.0", "id": id, "result": {"ok": true}}));
    }
    let longest = begun.elapsed().as_secs_f64();
    let took = async |tool| bench.records(&desc::TOOL_CALLS, &[("tool", tool), ("outcome", "ok")], 1).await;
    let (early, late) = (took("early").await, took("late").await);
    assert!(early >= SEEN.as_secs_f64() + late && early <= longest, "{early} {late} {longest}");
    // It was in a queue, and nothing was done with it.
    let trace = bench.tracer.traces(&Filter { tool: Some("early".into()), ..Filter::default() }).remove(0);
    let queued = trace.details.iter().find(|(name, _)| &**name == "queue_us").map(|(_, us)| us.to_string());
    assert!(queued.is_some_and(|us| us.parse::<u128>().unwrap() >= SEEN.as_micros()), "{:?}", trace.details);
}

#[tokio::test]
async fn what_waits_for_the_next_server_counts_from_when_it_was_written() {
    let bench = Bench::new();
    let (backoff_min, backoff_max) = (6 * SEEN, 6 * SEEN);
    let policy = RestartPolicy { backoff_min, backoff_max, ..EAGER };
    let mut session = Session::begin(&bench.probe(Transport::Stdio), policy).await;
    session.child.signal(Signal::KILL);
    within(session.state.wait_for(|state| matches!(state, ServerState::Restarting { .. }))).await.unwrap();
    waits(&bench, &mut session, || ()).await;
}

#[tokio::test]
async fn what_waits_for_the_replayed_handshake_counts_from_when_it_was_written() {
    let bench = Bench::new();
    let mut session = Session::begin(&bench.probe(Transport::Stdio), EAGER).await;
    let slow = session.log.with_extension("slow");
    fs::write(&slow, "").unwrap();
    session.child.signal(Signal::KILL);
    session.started(2).await;
    waits(&bench, &mut session, || fs::remove_file(&slow).unwrap()).await;
}

/// Greets like [`SCRIPT`](crate::SCRIPT), but only once: the next one ends at once.
const ONCE: &str = r#"
[ -e "$LOG" ] && exit 1
echo started > "$LOG"
while IFS= read -r line; do
  case $line in
    *'"initialize"'*) echo '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18","capabilities":{}}}';;
  esac
done
"#;

#[tokio::test]
async fn what_waits_for_a_server_that_is_given_up_is_seen() {
    let bench = Bench::new();
    let pause = Duration::from_millis(500);
    let policy = RestartPolicy { backoff_min: pause, backoff_max: pause, give_up: 2, ..EAGER };
    let mut session = Session::start_script(ONCE, &bench.probe(Transport::Stdio), policy).greeted().await;
    session.child.signal(Signal::KILL);
    within(session.state.wait_for(|state| matches!(state, ServerState::Restarting { .. }))).await.unwrap();
    session.send(&call(2, "waits"));
    // Half of a call is none.
    write!(session.writer.as_mut().unwrap(), "{}", &call(3, "half")[..30]).unwrap();
    session.loses(2).await;
    assert_eq!(session.line().await, None);
    assert_eq!(within(&mut session.ended).await.unwrap().unwrap().code(), Some(1));
    bench.becomes(&tool_calls("waits", "error"), 1).await;
    bench.becomes(&errors("tools", "connection_lost"), 1).await;
    bench.becomes(&errors("transport", "invalid_message"), 0).await;
}

#[tokio::test]
async fn what_waits_for_a_server_that_is_not_wanted_any_more_is_seen() {
    let bench = Bench::new();
    let policy = RestartPolicy { backoff_min: Duration::from_secs(3600), backoff_max: Duration::MAX, ..EAGER };
    let mut session = Session::begin(&bench.probe(Transport::Stdio), policy).await;
    session.child.signal(Signal::KILL);
    within(session.state.wait_for(|state| matches!(state, ServerState::Restarting { .. }))).await.unwrap();
    session.send(&call(2, "waits"));
    session.child.signal(Signal::TERM);
    within(&mut session.ended).await.unwrap().unwrap();
    bench.becomes(&tool_calls("waits", "error"), 1).await;
}
