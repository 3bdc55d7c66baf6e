//! A server that we start beside the relay.

use std::process::Command;
use std::time::{Duration, Instant};

use mcpscope_core::Transport;
use mcpscope_metrics::desc;
use mcpscope_proxy::http::{Config, ServerProcess};
use mcpscope_proxy::{RestartPolicy, ServerState};
use mcpscope_test_support::{Listener, http, within};
use mcpscope_tracing::{Filter, Value};
use tokio::sync::{oneshot, watch};

use rustix::process::Signal;

use super::common::{Bench, Frozen, Proxy, ended, errors, sessions, tool_calls};
use super::sessions::{ENDPOINT, INITIALIZE, INITIALIZED, http_sse, post_to};
use super::{Events, Stage, call, event, json, post, result};

fn shell(script: &str, policy: Option<RestartPolicy>) -> ServerProcess {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    ServerProcess::new(command, policy, Bench::new().probe(Transport::Http))
}

fn at_once(give_up: usize) -> Option<RestartPolicy> {
    let (backoff_min, backoff_max) = (Duration::from_millis(1), Duration::from_millis(1));
    Some(RestartPolicy { backoff_min, backoff_max, give_up, ..RestartPolicy::default() })
}

async fn reaches(state: &mut watch::Receiver<ServerState>, what: impl Fn(&ServerState) -> bool) -> ServerState {
    *within(state.wait_for(what)).await.unwrap()
}

#[tokio::test]
async fn it_runs_until_it_is_stopped() {
    let process = shell("trap '' TERM; sleep 1000 & trap 'exit 0' TERM; wait", at_once(9));
    let (mut state, child) = (process.state(), process.child());
    assert_eq!((*state.borrow(), child.id()), (ServerState::Starting, None));
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(process.run(async move { drop(stopped.await) }));
    let serving = reaches(&mut state, |state| matches!(state, ServerState::Serving(Some(_)))).await;
    assert_eq!(serving, ServerState::Serving(child.id()));
    drop(stop);
    within(running).await.unwrap();
    assert_eq!(child.id(), None, "it is reaped");
    assert!(state.has_changed().is_err(), "nobody tells any more");
}

#[tokio::test]
async fn too_many_crashes_are_the_end() {
    let process = shell("exit 7", at_once(3));
    let mut state = process.state();
    let running = tokio::spawn(process.run(std::future::pending()));
    let last = reaches(&mut state, |state| matches!(state, ServerState::GivenUp { .. })).await;
    assert_eq!(last, ServerState::GivenUp { crashes: 3, within: Duration::from_secs(60), start_timeout: None });
    assert!(!running.is_finished(), "it waits to be stopped");
    running.abort();
}

const START_TIMEOUT: Duration = Duration::from_secs(90);
/// Between SIGTERM and SIGKILL.
const TERM: Duration = Duration::from_secs(10);
/// More than a timer is late.
const MOMENT: Duration = Duration::from_millis(5);

/// Lets so much time pass, and everybody do what it is time for.
async fn advance(time: Duration) {
    tokio::time::advance(time).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_process_that_never_listens_is_ended_and_started_again_until_it_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("tells");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // One of them has to be killed.
    for (trap, ignores_term) in [("", false), ("trap '' TERM; ", true)] {
        let address = Listener::bind().await.address();
        let script = format!("{trap}echo > {}; sleep 1000 & wait", fifo.display());
        let process = shell(&script, at_once(3)).with_start_timeout(START_TIMEOUT);
        let (mut state, child) = (process.state(), process.child());
        let bench = Bench::new();
        let change =
            |config: &mut Config| (config.server, config.child) = (Some(process.state()), Some(process.child()));
        let _proxy = Proxy::start_with(address, bench.probe(Transport::Http), change).await;
        let _frozen = Frozen::clock();
        let running = tokio::spawn(process.run(std::future::pending()));
        for attempt in 1..=3 {
            reaches(&mut state, |state| matches!(state, ServerState::Serving(_))).await;
            let pid = child.id();
            let fifo = fifo.clone();
            within(tokio::task::spawn_blocking(|| std::fs::read(fifo))).await.unwrap().unwrap();
            advance(START_TIMEOUT - MOMENT).await;
            assert_eq!((child.id(), state.has_changed().unwrap()), (pid, false), "it has its time");
            advance(MOMENT * 2).await;
            if ignores_term {
                advance(TERM - MOMENT * 2).await;
                assert_eq!((child.id(), state.has_changed().unwrap()), (pid, false), "it has its time to end");
                advance(MOMENT * 4).await;
            }
            let ended = reaches(&mut state, |state| !matches!(state, ServerState::Serving(_))).await;
            let start_timeout = Some(START_TIMEOUT);
            let expected = if attempt < 3 {
                ServerState::Restarting { attempt, start_timeout }
            } else {
                ServerState::GivenUp { crashes: 3, within: Duration::from_secs(60), start_timeout }
            };
            assert_eq!(ended, expected);
            advance(MOMENT).await;
        }
        running.abort();
    }
}

#[tokio::test]
async fn a_process_that_listens_is_left_alone() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let process = shell("sleep 1000", at_once(3)).with_start_timeout(START_TIMEOUT);
    let (mut state, child) = (process.state(), process.child());
    let change = |config: &mut Config| (config.server, config.child) = (Some(process.state()), Some(process.child()));
    let _proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let _frozen = Frozen::clock();
    let running = tokio::spawn(process.run(std::future::pending()));
    reaches(&mut state, |state| matches!(state, ServerState::Serving(_))).await;
    upstream.accept().await;
    advance(Duration::ZERO).await;
    let pid = child.id();
    for _ in 0..3 {
        advance(START_TIMEOUT).await;
    }
    assert_eq!((child.id(), state.has_changed().unwrap()), (pid, false));
    running.abort();
}

#[tokio::test]
async fn whoever_is_not_started_again_is_waited_for_without_a_limit() {
    let process = shell("sleep 1000", None).with_start_timeout(START_TIMEOUT);
    let (mut state, child) = (process.state(), process.child());
    let _frozen = Frozen::clock();
    let running = tokio::spawn(process.run(std::future::pending()));
    reaches(&mut state, |state| matches!(state, ServerState::Serving(_))).await;
    let pid = child.id();
    for _ in 0..3 {
        advance(START_TIMEOUT).await;
    }
    assert_eq!((child.id(), state.has_changed().unwrap()), (pid, false));
    running.abort();
}

#[tokio::test]
async fn who_ends_well_is_not_started_again() {
    for (script, policy, shown) in
        [("exit 0", at_once(9), "server ended (exit status: 0)"), ("exit 7", None, "server ended (exit status: 7)")]
    {
        let process = shell(script, policy);
        let mut state = process.state();
        let running = tokio::spawn(process.run(std::future::pending()));
        let last = reaches(&mut state, |state| matches!(state, ServerState::Ended { .. })).await;
        assert_eq!(last.to_string(), shown);
        running.abort();
    }
}

#[tokio::test]
async fn what_cannot_be_started_crashes_at_once() {
    for (policy, shown) in [(at_once(2), "server given up after 2 crashes in 60 s"), (None, "server cannot be started")]
    {
        let process = ServerProcess::new(Command::new("/nowhere/at-all"), policy, Bench::new().probe(Transport::Http));
        let mut state = process.state();
        let running = tokio::spawn(process.run(std::future::pending()));
        let is_last = |state: &ServerState| matches!(state, ServerState::GivenUp { .. } | ServerState::Ended { .. });
        assert_eq!(reaches(&mut state, is_last).await.to_string(), shown);
        running.abort();
    }
}

#[tokio::test]
async fn calls_in_flight_on_a_stream_of_2024_get_an_error_each() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let (process, state) = watch::channel(ServerState::Serving(Some(1)));
    let change = |config: &mut Config| config.server = Some(state);
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let stage = Stage { bench, proxy, upstream };
    let (mut events, server, _writer) = http_sse(&stage, ENDPOINT).await;
    for id in [3, 1, 2] {
        post_to(&stage, ENDPOINT, &call(id, "echo")).await;
    }
    drop(server);
    process.send_replace(ServerState::Restarting { attempt: 1, start_timeout: None });
    for id in [3, 1, 2] {
        let error = within(events.next()).await.unwrap().unwrap();
        let data = error.strip_prefix("event: message\ndata: ").unwrap();
        let error: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!((&error["id"], &error["error"]["data"]["source"]), (&id.into(), &"mcpscope".into()), "{error}");
    }
    assert_eq!(within(events.next()).await.unwrap(), None, "it ends well");
    stage.bench.becomes(&tool_calls("echo", "error"), 3).await;
    stage.bench.becomes(&errors("transport", "connection_lost"), 3).await;
    stage.bench.becomes(&tool_calls("echo", "timeout"), 0).await;
}

#[tokio::test]
async fn a_stream_that_owes_nobody_an_answer_breaks_off_at_once() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    // It closes the connection, and lives on.
    let (_alive, state) = watch::channel(ServerState::Serving(Some(1)));
    let change = |config: &mut Config| config.server = Some(state);
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let stage = Stage { bench, proxy, upstream };
    let session = ("Mcp-Session-Id", "abc");
    let get = http::request("GET", "/mcp", &[session], b"");
    for (request, answer) in [(get, "{}".to_owned()), (post(&[session], &call(1, "echo")), result(1))] {
        let (client, mut server, _) = stage.asked(&request).await;
        server.write(&[http::stream_head("200 OK", &[session]), event(&answer)].concat()).await.unwrap();
        let (_, mut events) = Events::open(client.reader).await;
        events.expect(&answer).await;
        let _frozen = Frozen::clock();
        let began = tokio::time::Instant::now();
        drop(server);
        events.next().await.unwrap_err();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test]
async fn sessions_end_with_the_process_that_has_them() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let process = shell("sleep 1000", at_once(9));
    let (mut state, child) = (process.state(), process.child());
    let change = |config: &mut Config| (config.server, config.child) = (Some(process.state()), Some(process.child()));
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let running = tokio::spawn(process.run(std::future::pending()));
    let stage = Stage { bench, proxy, upstream };
    let (mut before, mut ends) = (None, 0);
    for name in ["abc", "def"] {
        let is_next = |state: &ServerState| matches!(state, ServerState::Serving(Some(pid)) if Some(*pid) != before);
        before = match reaches(&mut state, is_next).await {
            ServerState::Serving(pid) => pid,
            other => panic!("{other}"),
        };
        let session = ("Mcp-Session-Id", name);
        stage.exchange(&post(&[], INITIALIZE), &json(&[session], INITIALIZED)).await;
        stage.bench.becomes(&sessions("2025-06-18"), 1).await;
        let (mut client, mut server, _) = stage.asked(&post(&[session], &call(1, name))).await;
        child.signal(Signal::KILL);
        stage.bench.becomes(&sessions("2025-06-18"), 0).await;
        ends += 1;
        stage.bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "tcp", "crash"), ends).await;
        // What was on its way is the call's.
        server.write(&json(&[], &result(1))).await.unwrap();
        client.reader.message().await.unwrap().unwrap();
        stage.bench.becomes(&tool_calls(name, "ok"), 1).await;
    }
    assert_eq!(stage.bench.sessions_ended(), ends);
    running.abort();
}

#[tokio::test]
async fn sessions_of_a_process_that_ends_well_end_well() {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("told");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // It ends as soon as it is told to.
    let process = shell(&format!("read -r line < {}", fifo.display()), at_once(9));
    let mut state = process.state();
    let change = |config: &mut Config| (config.server, config.child) = (Some(process.state()), Some(process.child()));
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), change).await;
    let running = tokio::spawn(process.run(std::future::pending()));
    let stage = Stage { bench, proxy, upstream };
    reaches(&mut state, |state| matches!(state, ServerState::Serving(Some(_)))).await;
    stage.exchange(&post(&[], INITIALIZE), &json(&[("Mcp-Session-Id", "abc")], INITIALIZED)).await;
    stage.bench.becomes(&sessions("2025-06-18"), 1).await;
    tokio::task::spawn_blocking(move || std::fs::write(fifo, "\n")).await.unwrap().unwrap();
    stage.bench.becomes(&sessions("2025-06-18"), 0).await;
    stage.bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "tcp", ""), 1).await;
    running.abort();
}

/// How long a request waits for a server, and how much of that is seen for sure.
const WAITED: Duration = Duration::from_millis(400);
const SEEN: Duration = Duration::from_millis(200);

/// A relay to a server that is being started again.
async fn awaiting(change: impl FnOnce(&mut Config)) -> (Stage, watch::Sender<ServerState>) {
    let (bench, upstream) = (Bench::new(), Listener::bind().await);
    let (process, state) = watch::channel(ServerState::Restarting { attempt: 1, start_timeout: None });
    let with_server = |config: &mut Config| {
        config.server = Some(state);
        change(config);
    };
    let proxy = Proxy::start_with(upstream.address(), bench.probe(Transport::Http), with_server).await;
    (Stage { bench, proxy, upstream }, process)
}

async fn took(stage: &Stage, outcome: &str) -> Duration {
    let labels = [("tool", "echo"), ("outcome", outcome)];
    Duration::from_secs_f64(stage.bench.records(&desc::TOOL_CALLS, &labels, 1).await)
}

#[tokio::test]
async fn what_waits_for_a_server_counts_from_when_all_of_it_had_come() {
    let request = post(&[], &call(1, "echo"));
    let (most, last) = request.split_at(request.len() - 1);
    for is_late in [false, true] {
        let (stage, process) = awaiting(|_| ()).await;
        let mut client = stage.proxy.connect().await;
        let mut begun = Instant::now();
        client.write(if is_late { most } else { &request }).await.unwrap();
        tokio::time::sleep(WAITED).await;
        if is_late {
            begun = Instant::now();
            client.write(last).await.unwrap();
            tokio::time::sleep(WAITED).await;
        }
        process.send_replace(ServerState::Serving(Some(1)));
        let mut server = stage.upstream.accept().await;
        server.reader.message().await.unwrap().unwrap();
        server.write(&json(&[], &result(1))).await.unwrap();
        client.reader.message().await.unwrap().unwrap();
        let (took, longest) = (took(&stage, "ok").await, begun.elapsed());
        assert!(took >= SEEN && took <= longest, "{took:?} {longest:?}");
        let trace = stage.bench.tracer.traces(&Filter::default()).remove(0);
        let queued = trace.details.iter().find(|(name, _)| &**name == "queue_us").map(|(_, value)| value.clone());
        assert!(matches!(queued, Some(Value::Int(us)) if us >= SEEN.as_micros() as i64), "{:?}", trace.details);
    }
}

#[tokio::test]
async fn what_waits_for_a_server_in_vain_has_waited() {
    let (stage, _process) = awaiting(|config| config.connect_timeout = SEEN).await;
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    assert_eq!(client.reader.message().await.unwrap().unwrap().head.status(), 502);
    assert!(took(&stage, "error").await >= SEEN);
}

#[tokio::test]
async fn a_call_that_is_given_up_while_it_waits_for_a_server_is_one() {
    let (stage, _process) = awaiting(|_| ()).await;
    let mut client = stage.proxy.connect().await;
    client.write(&post(&[], &call(1, "echo"))).await.unwrap();
    drop(client);
    stage.bench.becomes(&tool_calls("echo", "cancelled"), 1).await;
}
