//! What a client sees of a stdio server that crashes and is started again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn the parts that they connect")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Bench, SERVER, dropped, ended, errors, operations, sessions, tool_calls};
use mcpscope_core::Transport;
use mcpscope_hooks::{Parts, Probe};
use mcpscope_metrics::desc;
use mcpscope_proxy::stdio::{ChildHandle, ClientEnd, spawn_supervised};
use mcpscope_proxy::{Limits, RestartPolicy, ServerState};
use mcpscope_test_support::{StdioClient, eventually, within};
use mcpscope_tracing::Filter;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// A server that writes down what it reads, and dies as it is told to.
const SCRIPT: &str = r#"
echo started >> "$LOG"
while IFS= read -r line; do
  printf '%s\n' "$line" >> "$LOG"
  id=${line#*\"id\":}; id=${id%%[,\}]*}
  case $line in
    *'"result"'*) ;;
    *'"initialize"'*) [ -e "$LOG.mute" ] && { rm "$LOG.mute"; kill -9 $$; }
      [ -e "$LOG.hang" ] && { rm "$LOG.hang"; continue; }
      while [ -e "$LOG.slow" ]; do sleep 0.01; done
      echo '{"jsonrpc":"2.0","id":'$id',"result":{"protocolVersion":"2025-06-18","capabilities":{}}}';;
    *notifications/*) ;;
    *'"die"'*) kill -9 $$;;
    *'"exit"'*) exit 3;;
    *'"bye"'*) exit 0;;
    *'"half"'*) printf '{"jsonrpc":"2.0","id":%s,"res' "$id"; kill -9 $$;;
    *'"whole"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{}}' "$id"; kill -9 $$;;
    *'"ask"'*) echo '{"jsonrpc":"2.0","id":1,"method":"roots/list"}';;
    *'"hang"'*) ;;
    *) echo '{"jsonrpc":"2.0","id":'$id',"result":{"ok":true}}';;
  esac
done
"#;

const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// At once, and for ever.
const EAGER: RestartPolicy = RestartPolicy {
    backoff_min: Duration::from_millis(1),
    backoff_max: Duration::from_millis(2),
    healthy_after: Duration::from_secs(60),
    give_up: 1_000_000,
    give_up_window: Duration::from_secs(60),
};

/// A client of a supervised server.
struct Session {
    writer: Option<std::io::PipeWriter>,
    lines: mpsc::UnboundedReceiver<String>,
    child: ChildHandle,
    state: watch::Receiver<ServerState>,
    ended: JoinHandle<std::io::Result<ExitStatus>>,
    log: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn call(id: u64, tool: &str) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}}).to_string()
}

fn initialize() -> String {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-06-18"}}).to_string()
}

impl Session {
    fn start(probe: &Probe, policy: RestartPolicy) -> Self {
        Self::start_script(SCRIPT, probe, policy)
    }

    fn start_script(script: &str, probe: &Probe, policy: RestartPolicy) -> Self {
        Self::start_within(Limits::default(), script, probe, policy)
    }

    fn start_within(limits: Limits, script: &str, probe: &Probe, policy: RestartPolicy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("LOG", &log);
        let (StdioClient { writer, reader }, input, output) = StdioClient::new();
        let ends = ClientEnd { input, output };
        let relay = spawn_supervised(command, ends, probe, limits, policy).unwrap();
        let (child, state) = (relay.child(), relay.state());
        let (sender, lines) = mpsc::unbounded_channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
            lines.try_for_each(|line| sender.send(line))
        });
        let ended = tokio::spawn(relay.wait());
        Self { writer: Some(writer), lines, child, state, ended, log, _dir: dir }
    }

    /// With the handshake done.
    async fn begin(probe: &Probe, policy: RestartPolicy) -> Self {
        Self::start(probe, policy).greeted().await
    }

    async fn greeted(mut self) -> Self {
        let session = &mut self;
        session.send(&initialize());
        assert_eq!(session.answer().await["result"]["protocolVersion"], "2025-06-18");
        session.send(INITIALIZED);
        self
    }

    fn send(&mut self, line: &str) {
        writeln!(self.writer.as_mut().unwrap(), "{line}").unwrap();
    }

    async fn line(&mut self) -> Option<String> {
        within(self.lines.recv()).await
    }

    async fn answer(&mut self) -> Value {
        serde_json::from_str(&self.line().await.expect("the session goes on")).unwrap()
    }

    /// Makes a call that is answered.
    async fn calls(&mut self, id: u64) {
        self.send(&call(id, "echo"));
        assert_eq!(self.answer().await, json!({"jsonrpc": "2.0", "id": id, "result": {"ok": true}}));
    }

    /// Gets our error for a call.
    async fn loses(&mut self, id: u64) {
        let answer = self.answer().await;
        assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(id)), "{answer}");
        let error = &answer["error"];
        assert_eq!((&error["code"], &error["data"]), (&json!(-32603), &json!({"source": "mcpscope"})), "{answer}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("mcpscope: the server crashed before it answered ("), "{message}");
    }

    async fn ends(self) -> (ExitStatus, Vec<String>) {
        drop(self.writer);
        let status = within(self.ended).await.unwrap().unwrap();
        let (mut rest, mut lines) = (Vec::new(), self.lines);
        while let Some(line) = within(lines.recv()).await {
            rest.push(line);
        }
        (status, rest)
    }

    /// Waits until there was the n-th server.
    async fn started(&self, servers: usize) {
        let all = || if self.heard().len() == servers { Ok(()) } else { Err(self.heard()) };
        eventually(all).await;
    }

    /// What each server read.
    fn heard(&self) -> Vec<Vec<String>> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let servers = log.split("started\n").skip(1);
        servers.map(|lines| lines.lines().map(str::to_owned).collect()).collect()
    }
}

fn restarts() -> String {
    format!("mcpscope_restarts_total{{server=\"{SERVER}\"}}")
}

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
async fn a_server_that_never_answers_initialize_gets_the_client_an_error_in_the_end() {
    let policy = RestartPolicy { give_up: 2, ..EAGER };
    let script = "read -r line; exit 9";
    let mut session = Session::start_script(script, &Bench::new().probe(Transport::Stdio), policy);
    session.send(&initialize());
    session.loses(0).await;
    assert_eq!(session.ends().await.0.code(), Some(9));
}

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
