//! What clients see while faults crash the servers that we start.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn the parts that they connect")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, Chaos, SERVER, ended, errors, operations, tool_calls};
use mcpscope_chaos::guardian::{Guardians, requested};
use mcpscope_chaos::process::{ProcessEntry, ProcessTable};
use mcpscope_chaos::{OutageReport, Refusal, Request, Status};
use mcpscope_core::{FaultId, Transport};
use mcpscope_metrics::desc;
use mcpscope_proxy::http::ServerProcess;
use mcpscope_proxy::stdio::{ChildHandle, ClientEnd, spawn, spawn_supervised};
use mcpscope_proxy::{ChildTarget, Limits, Program, RestartPolicy, ServerState};
use mcpscope_test_support::{StdioClient, eventually, within};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// What the servers here are guarded by; no test otherwise.
#[test]
fn guardian() {
    let arguments = std::env::args_os().skip_while(|argument| argument != "--mcpscope-guardian");
    if let Some(duty) = requested(arguments) {
        duty.run();
    }
}

fn guardians() -> Guardians {
    // The harness takes what follows its options for more names of tests.
    Guardians::of("/proc/self/exe", ["--exact", "guardian", "--"].map(Into::into))
}

/// Answers with its process id. It has a child of its own, and ends well when it is asked to, or has no input any more.
const SCRIPT: &str = r#"
trap 'exit 0' TERM
sleep 100 > /dev/null 2>&1 & trap 'kill $! 2> /dev/null' EXIT
while IFS= read -r line; do
  id=${line#*\"id\":}; id=${id%%[,\}]*}
  case $line in
    *'"initialize"'*) echo '{"jsonrpc":"2.0","id":'$id',"result":{"protocolVersion":"2025-06-18","capabilities":{}}}';;
    *notifications/*) ;;
    *'"hang"'*) echo '{"jsonrpc":"2.0","method":"notifications/hanging"}';;
    *) echo '{"jsonrpc":"2.0","id":'$id',"result":'$$'}';;
  esac
done
"#;

/// Cares neither for signals nor for its input.
const STUBBORN: &str =
    "trap '' TERM; IFS= read -r line; echo '{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":0}'; sleep 1000";

/// One crash that is by no fault is too many.
const EAGER: RestartPolicy = RestartPolicy {
    backoff_min: Duration::from_millis(1),
    backoff_max: Duration::from_millis(2),
    healthy_after: Duration::from_secs(60),
    give_up: 1,
    give_up_window: Duration::from_secs(60),
};

/// Each crash that counts would be waited for twice as long as the one before: an hour after a few.
const DOUBLING: RestartPolicy =
    RestartPolicy { backoff_min: Duration::from_millis(50), backoff_max: Duration::from_secs(3600), ..EAGER };

fn shell(script: &str) -> Program {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Program::from(command).guarded(guardians())
}

/// A client of a server, and faults.
struct Stage {
    bench: Bench,
    chaos: Chaos,
    writer: Option<std::io::PipeWriter>,
    lines: mpsc::UnboundedReceiver<String>,
    child: ChildHandle,
    target: Arc<ChildTarget>,
    ended: JoinHandle<std::io::Result<ExitStatus>>,
}

impl Stage {
    fn start(program: impl Into<Program>) -> Self {
        Self::start_with(program, EAGER)
    }

    fn start_with(program: impl Into<Program>, policy: RestartPolicy) -> Self {
        let bench = Bench::new();
        let chaos = Chaos::new(bench.parts(Transport::Stdio));
        let (StdioClient { writer, reader }, input, output) = StdioClient::new();
        let relay =
            spawn_supervised(program, ClientEnd { input, output }, &chaos.probe, Limits::default(), policy).unwrap();
        let child = relay.child();
        let target = Arc::new(ChildTarget::new(SERVER, false, child.clone()));
        chaos.controller.register(target.clone(), Instant::now());
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
            lines.try_for_each(|line| sender.send(line))
        });
        let ended = tokio::spawn(relay.wait());
        Self { bench, chaos, writer: Some(writer), lines, child, target, ended }
    }

    /// With the handshake done.
    async fn begin() -> Self {
        Self::begin_with(EAGER).await
    }

    async fn begin_with(policy: RestartPolicy) -> Self {
        let mut stage = Self::start_with(shell(SCRIPT), policy);
        stage.send(
            &json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-06-18"}}),
        );
        assert_eq!(stage.answer().await["result"]["protocolVersion"], "2025-06-18");
        stage.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        stage
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.writer.as_mut().unwrap(), "{message}").unwrap();
    }

    async fn answer(&mut self) -> Value {
        serde_json::from_str(&within(self.lines.recv()).await.expect("the session goes on")).unwrap()
    }

    fn call(&mut self, id: u64, tool: &str) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}}));
    }

    /// Who answers. A call that meets a server just as it crashes is made again.
    async fn pid(&mut self, id: u64) -> u64 {
        loop {
            self.call(id, "pid");
            let answer = self.answer().await;
            assert_eq!(answer["id"], id, "{answer}");
            if answer["error"]["data"]["source"] != "mcpscope" {
                return answer["result"].as_u64().unwrap_or_else(|| panic!("{answer}"));
            }
        }
    }

    /// Who answers in the place of the one that crashed, whose last answer may still come.
    async fn next_pid(&mut self, before: u64) -> u64 {
        loop {
            let pid = self.pid(7).await;
            if pid != before {
                return pid;
            }
        }
    }

    async fn ends(self) -> ExitStatus {
        drop(self.writer);
        within(self.ended).await.unwrap().unwrap()
    }

    fn status(&self, fault: FaultId) -> (Status, Option<String>) {
        let test = self.chaos.controller.experiment(fault.0, Instant::now()).unwrap();
        (test.status, test.details.error)
    }
}

fn group(leader: u64) -> Vec<ProcessEntry> {
    let table = ProcessTable::read().unwrap();
    table.group(leader.try_into().unwrap()).filter(|process| !process.is_zombie).cloned().collect()
}

/// Waits until all of the group, so many, are as is wanted.
async fn all(leader: u64, members: usize, is_stopped: bool) {
    eventually(|| {
        let found = group(leader);
        let is_so = found.len() == members && found.iter().all(|process| process.is_stopped == is_stopped);
        if is_so { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

fn injected(series: &str) -> String {
    series.replace("injected=\"false\"", "injected=\"true\"")
}

#[tokio::test]
async fn a_session_goes_on_whatever_a_server_crashes_by() {
    for signal in ["signal=kill", "signal=term", "signal=close_stdin"] {
        let mut stage = Stage::begin().await;
        let first = stage.pid(1).await;
        all(first, 2, false).await;
        stage.call(2, "hang");
        assert_eq!(stage.answer().await["method"], "notifications/hanging");
        let fault = stage.chaos.start("process_crash", &[signal]);
        let lost = stage.answer().await;
        assert_eq!(
            (&lost["id"], &lost["error"]["data"]),
            (&json!(2), &json!({"source": "mcpscope"})),
            "{signal} {lost}"
        );
        let second = stage.pid(3).await;
        assert_ne!(first, second, "{signal}");
        all(first, 0, false).await;
        assert_eq!(stage.status(fault), (Status::Running, None));
        assert_eq!(stage.chaos.stop(fault).await, (1, 1));
        assert_eq!(stage.pid(4).await, second, "{signal}: once");
        let outages = stage.chaos.controller.report(fault.0, Instant::now()).unwrap().outages;
        let [OutageReport { target, restarted_after, ready_after, first_good_call_after, .. }] = &outages[..] else {
            panic!("{signal}: {outages:?}");
        };
        let times = [*restarted_after, *ready_after, *first_good_call_after];
        assert!(target == SERVER && times[0].is_some() && times.is_sorted(), "{signal}: {outages:?}");
        let bench = stage.bench.clone();
        assert_eq!(stage.ends().await.code(), Some(0), "{signal}");
        // What the fault has caused is told from what went wrong by itself.
        bench.becomes(&injected(&tool_calls("hang", "error")), 1).await;
        bench.becomes(&injected(&errors("server", "crash")), 1).await;
        bench.becomes(&errors("server", "crash"), 0).await;
        assert_eq!(bench.value(&operations("server")), 3, "two starts, one end");
        bench.records(&desc::SERVER_SESSIONS, &ended("2025-06-18", "pipe", ""), 1).await;
    }
}

#[tokio::test]
async fn one_that_is_stopped_stands_still_with_its_group_until_the_fault_ends() {
    let mut stage = Stage::begin().await;
    let pid = stage.pid(1).await;
    all(pid, 2, false).await;
    let fault = stage.chaos.start("process_crash", &["signal=stop"]);
    let other = stage.chaos.start("process_crash", &["signal=stop"]);
    all(pid, 2, true).await;
    stage.call(2, "pid");
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    all(pid, 2, true).await;
    stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, Instant::now());
    assert_eq!(stage.answer().await["result"], pid, "the same, and it lost nothing");
    all(pid, 2, false).await;
    stage.chaos.ended(other).await;
    let report = stage.chaos.controller.report(other.0, Instant::now()).unwrap();
    assert_eq!((report.status, report.leak), (Status::Aborted, None));
    assert_eq!(stage.ends().await.code(), Some(0));
}

#[tokio::test]
async fn what_becomes_of_calls_while_one_stands_still_is_no_doing_of_the_server() {
    let mut stage = Stage::begin().await;
    let pid = stage.pid(1).await;
    // In flight when it stops, and not answered afterwards either.
    stage.call(2, "hang");
    assert_eq!(stage.answer().await["method"], "notifications/hanging");
    let fault = stage.chaos.start("process_crash", &["signal=stop"]);
    all(pid, 2, true).await;
    stage.call(3, "late");
    stage.call(4, "given up");
    let cancelled = json!({"requestId": 4, "reason": "it takes too long"});
    stage.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled}));
    let bench = stage.bench.clone();
    bench.becomes(&injected(&tool_calls("given up", "cancelled")), 1).await;
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    for id in [3, 4] {
        let answer = stage.answer().await;
        assert_eq!((&answer["id"], &answer["result"]), (&json!(id), &json!(pid)));
    }
    assert_eq!(stage.pid(5).await, pid);
    assert_eq!(stage.ends().await.code(), Some(0));
    bench.becomes(&injected(&tool_calls("late", "ok")), 1).await;
    bench.becomes(&injected(&tool_calls("hang", "timeout")), 1).await;
    bench.becomes(&tool_calls("pid", "ok"), 2).await;
    for (tool, outcome) in [("late", "ok"), ("hang", "timeout"), ("given up", "cancelled")] {
        assert_eq!(bench.value(&tool_calls(tool, outcome)), 0, "{tool}");
    }
}

#[tokio::test]
async fn one_that_is_stopped_every_second_goes_on_when_everything_is_stopped() {
    let mut stage = Stage::begin().await;
    let pid = stage.pid(1).await;
    let fault = stage.chaos.start("process_crash", &["signal=stop", "crash_rate=1"]);
    all(pid, 2, true).await;
    let began = Instant::now();
    for second in 1..=3 {
        stage.chaos.controller.drive(began + Duration::from_secs(second));
    }
    stage.chaos.hits(fault, 4).await;
    stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, Instant::now());
    all(pid, 2, false).await;
}

#[tokio::test]
async fn one_that_is_stopped_goes_on_in_time_though_nobody_drives_the_faults() {
    let mut stage = Stage::begin().await;
    let pid = stage.pid(1).await;
    stage.chaos.start("process_crash", &["signal=stop", "duration=1s"]);
    assert_eq!(stage.pid(2).await, pid);
    assert_eq!(stage.ends().await.code(), Some(0));
}

#[tokio::test]
async fn one_that_is_stopped_ends_when_it_is_asked_to() {
    let mut stage = Stage::begin().await;
    let pid = stage.pid(1).await;
    stage.chaos.start("process_crash", &["signal=stop"]);
    all(pid, 2, true).await;
    stage.child.signal(Signal::TERM);
    assert_eq!(within(stage.ended).await.unwrap().unwrap().code(), Some(0));
}

#[tokio::test]
async fn one_that_goes_on_without_its_input_is_replaced_when_the_fault_ends() {
    let mut stage = Stage::start(shell(STUBBORN));
    assert_eq!(stage.pid(0).await, 0);
    let first = stage.child.id();
    let fault = stage.chaos.start("process_crash", &["signal=close_stdin"]);
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    assert_eq!(stage.pid(0).await, 0);
    assert_ne!(stage.child.id(), first);
    stage.child.signal(Signal::KILL);
}

#[tokio::test]
async fn without_a_guardian_nothing_is_stopped_and_the_rest_works() {
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT]);
    let mut stage = Stage::start(command);
    let pid = stage.pid(1).await;
    let fault = stage.chaos.start("process_crash", &["signal=stop"]);
    let (status, error) = stage.status(fault);
    assert_eq!(status, Status::Failed);
    assert!(error.as_deref().unwrap_or_default().contains("run_if_requested"), "{error:?}");
    assert_eq!(stage.pid(2).await, pid);
    stage.chaos.start("process_crash", &["signal=kill"]);
    stage.next_pid(pid).await;
    assert_eq!(stage.ends().await.code(), Some(0));
}

#[tokio::test]
async fn a_crash_by_chance_meets_the_server_that_runs() {
    let mut stage = Stage::begin().await;
    let mut pids = vec![stage.pid(1).await];
    let fault = stage.chaos.start("process_crash", &["crash_rate=1", "target_processes=tools"]);
    let began = Instant::now();
    for second in 1..=3 {
        pids.push(stage.next_pid(pids[pids.len() - 1]).await);
        stage.chaos.controller.drive(began + Duration::from_secs(second));
    }
    stage.next_pid(pids[3]).await;
    assert_eq!(stage.chaos.stop(fault).await.0, 4);
    assert_eq!(stage.ends().await.code(), Some(0));
}

#[tokio::test]
async fn each_of_many_crashes_by_faults_is_waited_for_like_the_first() {
    let mut stage = Stage::begin_with(DOUBLING).await;
    let mut pid = stage.pid(1).await;
    for _ in 0..12 {
        let fault = stage.chaos.start("process_crash", &[]);
        pid = stage.next_pid(pid).await;
        stage.chaos.stop(fault).await;
    }
    // One by itself is one too many.
    stage.child.signal(Signal::KILL);
    assert_eq!(within(stage.ended).await.unwrap().unwrap().signal(), Some(Signal::KILL.as_raw()));
}

#[tokio::test]
async fn what_is_not_to_be_touched_is_not() {
    let mut stage = Stage::begin().await;
    let pid = stage.pid(1).await;
    stage.target.set_critical(true);
    let refusal = stage.chaos.controller.start(&Request::new("process_crash"), Instant::now()).unwrap_err();
    assert!(
        matches!(refusal, Refusal::NothingMatched { .. })
            && refusal.to_string().ends_with(&format!("there is {SERVER}")),
        "{refusal}"
    );
    assert_eq!(stage.pid(2).await, pid);
    stage.target.set_critical(false);
    let child = stage.child.clone();
    let chaos = Chaos::new(stage.bench.parts(Transport::Stdio));
    chaos.controller.register(stage.target.clone(), Instant::now());
    assert_eq!(stage.ends().await.code(), Some(0));
    assert_eq!(child.id(), None);
    let refusal = chaos.controller.start(&Request::new("process_crash"), Instant::now()).unwrap_err();
    assert!(refusal.to_string().contains("none of those that match runs now"), "{refusal}");
}

#[tokio::test]
async fn a_guardian_goes_with_its_server() {
    let ours = || {
        let table = ProcessTable::read().unwrap();
        let us = std::process::id();
        let children = table.iter().filter(|process| process.parent == us && process.name == "mcpscope-guard");
        children.map(|process| process.pid).collect::<Vec<_>>()
    };
    // In a process of its own (nextest), and beside others (cargo test).
    let before = ours();
    let (StdioClient { writer, reader: _reader }, input, output) = StdioClient::new();
    let probe = Bench::new().probe(Transport::Stdio);
    let relay = spawn(shell(SCRIPT), ClientEnd { input, output }, &probe, Limits::default()).unwrap();
    let guardian = eventually(|| ours().into_iter().find(|pid| !before.contains(pid)).ok_or("there is none")).await;
    drop(writer);
    assert_eq!(within(relay.wait()).await.unwrap().code(), Some(0));
    eventually(|| ProcessEntry::read(guardian).is_err().then_some(()).ok_or("it is there")).await;
}

#[tokio::test]
async fn a_server_that_serves_http_itself_is_started_again_however_it_ended() {
    for signal in ["signal=kill", "signal=term", "signal=close_stdin"] {
        let bench = Bench::new();
        let chaos = Chaos::new(bench.parts(Transport::Http));
        let process = ServerProcess::new(shell("exec cat > /dev/null"), Some(EAGER), chaos.probe.clone());
        let (mut state, child) = (process.state(), process.child());
        chaos.controller.register(Arc::new(ChildTarget::new(SERVER, false, child.clone())), Instant::now());
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(process.run(async move { drop(stopped.await) }));
        let first = serving(&mut state, None).await;
        chaos.start("process_crash", &[signal]);
        let second = serving(&mut state, Some(first)).await;
        assert_eq!(child.id(), Some(second), "{signal}");
        all(first.into(), 0, false).await;
        bench.becomes(&injected(&errors("server", "crash")), 1).await;
        let fault = chaos.start("process_crash", &["signal=stop"]);
        eventually(|| group(second.into()).iter().all(|it| it.is_stopped).then_some(()).ok_or("it runs")).await;
        drop(stop);
        within(running).await.unwrap();
        assert_eq!(child.id(), None, "{signal}: it could take the signal");
        chaos.stop(fault).await;
    }
}

#[tokio::test]
async fn a_server_that_serves_http_itself_says_who_crashed_it_and_is_waited_for_each_time_like_the_first() {
    let chaos = Chaos::new(Bench::new().parts(Transport::Http));
    let process = ServerProcess::new(shell("exec cat > /dev/null"), Some(DOUBLING), chaos.probe.clone());
    let mut state = process.state();
    chaos.controller.register(Arc::new(ChildTarget::new(SERVER, false, process.child())), Instant::now());
    let running = tokio::spawn(process.run(std::future::pending()));
    let mut pid = serving(&mut state, None).await;
    for _ in 0..12 {
        let fault = chaos.start("process_crash", &[]);
        let is_told = |state: &ServerState| *state == ServerState::RestartingAfter { fault };
        let told = within(state.wait_for(is_told)).await.unwrap().to_string();
        assert_eq!(told, format!("server restarting after process_crash of experiment {}", fault.0));
        pid = serving(&mut state, Some(pid)).await;
        chaos.stop(fault).await;
    }
    running.abort();
}

/// Waits until there is a process other than this one.
async fn serving(state: &mut watch::Receiver<ServerState>, before: Option<u32>) -> u32 {
    let is_it = |state: &ServerState| matches!(state, ServerState::Serving(pid) if *pid != before);
    match *within(state.wait_for(is_it)).await.unwrap() {
        ServerState::Serving(Some(pid)) => pid,
        other => panic!("{other}"),
    }
}
