//! What faults do to a stdio server and its client: exactly what their journal says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn the parts that they connect")]

mod common;

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Again, Bench, Chaos, Panics, tool_calls};
use mcpscope_core::{FaultId, Transport};
use mcpscope_hooks::{Observer, Parts};
use mcpscope_proxy::Limits;
use mcpscope_proxy::stdio::{ClientEnd, StdioRelay, spawn};
use mcpscope_test_support::{StdioClient, within};
use serde_json::{Value, json};

/// A server that answers each call with its id and the name of its tool, and a notification with nothing.
const SERVER: &str = r#"
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        name = asked.get("params", {}).get("name", "")
        tools = [{"name": "a"}, {"name": "b"}]
        result = {"tools": tools} if asked["method"] == "tools/list" else {"name": name, "structuredContent": {"n": 1}}
        for _ in range(2 if name == "twice" else 1):
            print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"#;

struct Stage {
    bench: Bench,
    chaos: Chaos,
    writer: PipeWriter,
    reader: BufReader<PipeReader>,
    relay: StdioRelay,
}

impl Stage {
    fn new(command: Command) -> Self {
        Self::observed(command, None)
    }

    fn observed(command: Command, observer: Option<Arc<dyn Observer>>) -> Self {
        let bench = Bench::new();
        let chaos = Chaos::new(Parts { observer, ..bench.parts(Transport::Stdio) });
        let (StdioClient { writer, reader }, input, output) = StdioClient::new();
        let relay = spawn(command, ClientEnd { input, output }, &chaos.probe, Limits::default()).unwrap();
        Self { bench, chaos, writer, reader: BufReader::new(reader), relay }
    }

    /// In front of a server that answers.
    fn answering() -> Self {
        Self::answering_to(None)
    }

    fn answering_to(observer: Option<Arc<dyn Observer>>) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", SERVER]);
        Self::observed(command, observer)
    }

    /// In front of one that sends back what it is sent, as it is.
    fn echoing() -> Self {
        Self::new(Command::new("cat"))
    }

    fn start(&self, scenario: &str, parameters: &[&str]) -> FaultId {
        self.chaos.start(scenario, parameters)
    }

    fn send(&mut self, message: &Value) {
        self.writer.write_all(format!("{message}\n").as_bytes()).unwrap();
    }

    fn call(&mut self, id: u64, tool: &str) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}}));
    }

    fn note(&mut self, name: &str) {
        self.send(&json!({"jsonrpc": "2.0", "method": name}));
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn message(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    fn names(&mut self, count: usize) -> Vec<String> {
        let name =
            |message: Value| message["method"].as_str().or(message["params"]["name"].as_str()).unwrap().to_owned();
        (0..count).map(|_| name(self.message())).collect()
    }

    /// The client leaves; what it has not read yet, until the server's end.
    async fn end(self) -> (Vec<String>, Bench) {
        let Self { bench, writer, mut reader, relay, chaos: _chaos } = self;
        drop(writer);
        let rest = tokio::task::spawn_blocking(move || {
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            rest.lines().map(str::to_owned).collect()
        });
        assert!(within(relay.wait()).await.unwrap().success());
        (within(rest).await.unwrap(), bench)
    }
}

fn injected(tool: &str, outcome: &str) -> String {
    tool_calls(tool, outcome).replace("injected=\"false\"", "injected=\"true\"")
}

#[tokio::test]
async fn delays_of_messages_in_flight_overlap() {
    const DELAY: Duration = Duration::from_millis(300);
    let mut stage = Stage::echoing();
    let fault = stage.start("latency_injection", &["delay=300ms", "direction=to_server"]);
    let sent = Instant::now();
    (0..20).for_each(|id| stage.note(&format!("n/{id}")));
    let expected: Vec<_> = (0..20).map(|id| format!("n/{id}")).collect();
    assert_eq!(stage.names(20), expected);
    assert!((DELAY..DELAY * 20).contains(&sent.elapsed()), "{:?}", sent.elapsed());
    assert_eq!(stage.chaos.stop(fault).await, (20, 20));
    assert_eq!(stage.end().await.0, [""; 0]);
}

#[tokio::test]
async fn a_delay_lets_others_pass_unless_they_are_to_keep_their_order() {
    for (order, expected) in [("preserve", ["n/slow", "n/a", "n/b"]), ("independent", ["n/a", "n/b", "n/slow"])] {
        let mut stage = Stage::echoing();
        let order = format!("order={order}");
        stage.start("latency_injection", &["delay=300ms", "direction=to_server", "method=n/slow", &order]);
        ["n/slow", "n/a", "n/b"].iter().for_each(|name| stage.note(name));
        assert_eq!(stage.names(3), expected, "{order}");
        stage.end().await;
    }
}

#[tokio::test]
async fn an_emergency_stop_lets_go_of_all_that_is_delayed_at_once_and_in_order() {
    let mut stage = Stage::echoing();
    let fault = stage.start("latency_injection", &["distribution=uniform", "min=5m", "max=10m", "order=independent"]);
    (0..100).for_each(|id| stage.note(&format!("n/{id}")));
    stage.bench.becomes("mcpscope_message_queue_depth{server=\"s\",direction=\"to_server\"}", 100).await;
    let stopped = Instant::now();
    stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, stopped);
    let expected: Vec<_> = (0..100).map(|id| format!("n/{id}")).collect();
    assert_eq!(stage.names(100), expected);
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
    assert_eq!(stage.chaos.ended(fault).await.0, 100);
    assert_eq!(stage.end().await.0, [""; 0]);
}

/// Reads all calls, answers them with one write, which is read as one, and waits for the end.
const AT_ONCE: &str = r#"
import json, sys
ids = [json.loads(sys.stdin.readline())["id"] for _ in range(40)]
sys.stdout.write("".join(json.dumps({"jsonrpc": "2.0", "id": id, "result": {}}) + "\n" for id in ids))
sys.stdout.flush()
sys.stdin.read()
"#;

#[tokio::test]
async fn what_is_written_after_an_emergency_stop_is_what_came() {
    let mut command = Command::new("python3");
    command.args(["-c", AT_ONCE]);
    let mut stage = Stage::new(command);
    let fault = stage.start("oversize", &["bytes=1MiB"]);
    (0..40).for_each(|id| stage.call(id, "echo"));
    stage.chaos.hits(fault, 40).await;
    // The first answer has begun to come, and there is no room for all of it.
    assert!(stage.reader.fill_buf().unwrap().starts_with(b"{"));
    stage.chaos.controller.emergency_stop(mcpscope_chaos::Cause::Person, Instant::now());
    let lines: Vec<_> = (0..40).map(|_| stage.line()).collect();
    let altered = lines.iter().filter(|line| line.len() == 1 << 20).count();
    assert_eq!((altered, lines[0].len()), (1, 1 << 20));
    for (id, line) in lines.iter().enumerate().skip(1) {
        assert_eq!(line, &format!(r#"{{"jsonrpc": "2.0", "id": {id}, "result": {{}}}}"#));
    }
    assert_eq!(stage.chaos.ended(fault).await, (40, 1));
    assert_eq!(stage.end().await.0, [""; 0]);
}

#[tokio::test]
async fn what_is_delayed_is_let_go_when_its_fault_expires() {
    let mut stage = Stage::echoing();
    stage.start("latency_injection", &["delay=10m", "duration=200ms", "direction=to_server"]);
    let sent = Instant::now();
    stage.note("n/a");
    assert_eq!(stage.names(1), ["n/a"]);
    assert!((Duration::from_millis(150)..Duration::from_secs(20)).contains(&sent.elapsed()), "{:?}", sent.elapsed());
    stage.end().await;
}

#[tokio::test]
async fn what_is_delayed_counts_with_its_delay_and_as_injected() {
    let mut stage = Stage::answering();
    stage.start("latency_injection", &["delay=250ms", "direction=to_client"]);
    stage.call(1, "echo");
    assert_eq!(stage.message()["id"], 1);
    stage.bench.becomes(&injected("echo", "ok"), 1).await;
    let took = stage.bench.records(&mcpscope_metrics::desc::TOOL_CALLS, &[("tool", "echo")], 1).await;
    assert!(took >= 0.25, "{took}");
    stage.end().await;
}

#[tokio::test]
async fn a_partition_holds_all_and_heals_with_or_without_what_it_held() {
    for (heal, expected) in [("deliver", &["n/a", "n/b", "n/c"][..]), ("drop", &["n/c"])] {
        let mut stage = Stage::echoing();
        let heal = format!("heal={heal}");
        let fault = stage.start("network_partition", &["intensity=1", "direction=to_server", &heal]);
        ["n/a", "n/b"].iter().for_each(|name| stage.note(name));
        // Both have been read when a third is seen to wait behind them, or they are gone.
        stage.chaos.hits(fault, 2).await;
        assert_eq!(stage.chaos.stop(fault).await, (2, 2));
        stage.note("n/c");
        assert_eq!(stage.names(expected.len()), expected, "{heal}");
        assert_eq!(stage.end().await.0, [""; 0]);
    }
}

#[tokio::test]
async fn the_share_that_is_lost_is_the_share_that_does_not_arrive() {
    let mut stage = Stage::echoing();
    let fault = stage.start("packet_loss", &["intensity=0.5", "direction=to_server"]);
    (0..400).for_each(|id| stage.note(&format!("n/{id}")));
    stage.send(&json!({"last": true}));
    let (chaos, mut arrived) = (stage.chaos.controller.clone(), 0);
    while stage.message()["last"] != true {
        arrived += 1;
    }
    chaos.drive(Instant::now());
    let (injected, observed) = stage.chaos.stop(fault).await;
    assert_eq!((arrived + injected, injected), (400, observed));
    // The 99.99 % interval of a binomial.
    assert!((161..=239).contains(&injected), "{injected}");
    stage.end().await;
}

#[tokio::test]
async fn a_lost_answer_is_a_call_that_times_out() {
    let mut stage = Stage::answering();
    let fault = stage.start("lost_response", &["tool=lost"]);
    stage.call(1, "lost");
    stage.call(2, "other");
    assert_eq!(stage.message()["id"], 2);
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    let (rest, bench) = stage.end().await;
    assert_eq!(rest, [""; 0]);
    bench.becomes(&injected("lost", "timeout"), 1).await;
}

#[tokio::test]
async fn an_answer_that_hangs_comes_when_the_fault_is_over() {
    let mut stage = Stage::answering();
    let fault = stage.start("hang", &["tool=slow"]);
    stage.call(1, "slow");
    stage.call(2, "other");
    assert_eq!(stage.message()["id"], 2);
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    assert_eq!(stage.message()["id"], 1);
    stage.end().await;
}

#[tokio::test]
async fn an_answer_comes_late_when_its_call_was_cancelled() {
    let mut stage = Stage::answering();
    let fault = stage.start("late_response_after_cancel", &["tool=slow"]);
    stage.call(1, "slow");
    stage.call(2, "other");
    assert_eq!(stage.message()["id"], 2);
    stage.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}));
    assert_eq!(stage.message()["id"], 1);
    stage.bench.becomes(&injected("slow", "cancelled"), 1).await;
    assert_eq!(stage.chaos.stop(fault).await, (1, 1));
    stage.end().await;
}

#[tokio::test]
async fn answers_that_are_made_up_come_in_place_of_the_servers() {
    let mut stage = Stage::answering();
    let errors = stage.start("rpc_error", &["tool=rpc", "code=-31007"]);
    let tools = stage.start("tool_error", &["tool=tool"]);
    stage.call(1, "rpc");
    let error = stage.message();
    assert_eq!((&error["id"], &error["error"]["code"]), (&json!(1), &json!(-31007)));
    stage.call(2, "tool");
    let error = stage.message();
    assert_eq!((&error["id"], &error["result"]["isError"]), (&json!(2), &json!(true)));
    stage.call(3, "other");
    assert_eq!(stage.message()["result"]["name"], "other");
    assert_eq!((stage.chaos.stop(errors).await, stage.chaos.stop(tools).await), ((1, 1), (1, 1)));
    let (rest, bench) = stage.end().await;
    assert_eq!(rest, [""; 0], "the server was never asked");
    for tool in ["rpc", "tool"] {
        bench.becomes(&injected(tool, "error"), 1).await;
    }
}

#[tokio::test]
async fn answers_are_changed_as_the_names_of_the_faults_say() {
    let mut stage = Stage::answering();
    let mut id = 0;
    let mut with = async |stage: &mut Stage, scenario: &str, parameters: &[&str], method: &str, lines: usize| {
        id += 1;
        let fault = stage.start(scenario, parameters);
        stage.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": {"name": "echo"}}));
        let lines: Vec<_> = (0..lines).map(|_| stage.line()).collect();
        assert_eq!(stage.chaos.stop(fault).await, (1, 1), "{scenario}");
        (id, lines)
    };
    let read = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let (id, lines) = with(&mut stage, "wrong_id", &[], "tools/call", 1).await;
    assert!(read(&lines[0])["id"].is_u64() && read(&lines[0])["id"] != id, "{lines:?}");
    let (id, lines) = with(&mut stage, "duplicate_response", &[], "tools/call", 2).await;
    assert!(lines[0] == lines[1] && read(&lines[0])["id"] == id, "{lines:?}");
    let (_, lines) = with(&mut stage, "malformed_json", &[], "tools/call", 1).await;
    assert!(serde_json::from_str::<Value>(&lines[0]).is_err(), "{lines:?}");
    let (_, lines) = with(&mut stage, "truncated", &["keep=0.5"], "tools/call", 1).await;
    assert!(serde_json::from_str::<Value>(&lines[0]).is_err() && lines[0].starts_with('{'), "{lines:?}");
    let (id, lines) = with(&mut stage, "stdout_noise", &[], "tools/call", 2).await;
    assert!(serde_json::from_str::<Value>(&lines[0]).is_err() && read(&lines[1])["id"] == id, "{lines:?}");
    let (id, lines) = with(&mut stage, "oversize", &["bytes=1MiB"], "tools/call", 1).await;
    assert_eq!((lines[0].len(), &read(&lines[0])["id"]), (1 << 20, &json!(id)));
    let (_, lines) = with(&mut stage, "schema_violation", &[], "tools/call", 1).await;
    assert!(read(&lines[0])["result"]["structuredContent"]["n"].is_string(), "{lines:?}");
    let (_, lines) = with(&mut stage, "tools_list_flap", &[], "tools/list", 1).await;
    assert_eq!(read(&lines[0])["result"]["tools"], json!([{"name": "b"}]));
    let began = Instant::now();
    let (id, lines) = with(&mut stage, "slow_stream", &["bytes_per_second=200"], "tools/call", 1).await;
    assert!(read(&lines[0])["id"] == id && began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert_eq!(stage.end().await.0, [""; 0]);
}

#[tokio::test]
async fn faults_of_the_newest_revision_answer_as_it_has_it() {
    let mut stage = Stage::answering();
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    let call = |stage: &mut Stage, id: u64| {
        let params = json!({"name": "echo", "_meta": meta});
        stage.send(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}));
        stage.message()
    };
    let asks = stage.start("input_required_loop", &[]);
    assert_eq!(call(&mut stage, 1)["result"]["resultType"], "input_required");
    assert_eq!(call(&mut stage, 2)["result"]["resultType"], "input_required");
    assert_eq!(stage.chaos.stop(asks).await, (2, 2));
    let rejects = stage.start("version_reject", &[]);
    assert_eq!(call(&mut stage, 3)["error"]["code"], -32022);
    assert_eq!(stage.chaos.stop(rejects).await, (1, 1));
    assert_eq!(call(&mut stage, 4)["result"]["name"], "echo");
    stage.end().await;
}

#[tokio::test]
async fn what_waits_for_a_client_that_does_not_read_is_no_leak() {
    let mut stage = Stage::echoing();
    let fault = stage.start("latency_injection", &["direction=to_client", "distribution=constant", "delay=1m"]);
    // More than a pipe takes.
    let (count, text) = (4, "x".repeat(100_000));
    (0..count).for_each(|id| stage.send(&json!({"jsonrpc": "2.0", "id": id, "result": text})));
    stage.chaos.hits(fault, count).await;
    stage.chaos.controller.stop(fault.0, Instant::now()).unwrap();
    stage.chaos.lets_go(fault).await;
    let (rest, _) = stage.end().await;
    assert_eq!(rest.len() as u64, count);
}

#[tokio::test]
async fn ids_that_are_used_again_and_second_answers_are_seen_while_an_experiment_runs() {
    let seen = Arc::new(Again::default());
    let mut stage = Stage::answering_to(Some(seen.clone()));
    let calls = |stage: &mut Stage, ids: &[u64], tool: &str, answers: usize| {
        for id in ids {
            stage.call(*id, tool);
            (0..answers).for_each(|_| assert_eq!(stage.message()["id"], *id));
        }
        (seen.repeated.load(Ordering::Relaxed), seen.duplicates.load(Ordering::Relaxed))
    };
    assert_eq!(calls(&mut stage, &[1, 1], "twice", 2), (0, 0), "nobody wants to know");
    let fault = stage.start("hang", &["tool=none"]);
    assert_eq!(calls(&mut stage, &[1, 2, 3], "echo", 1), (0, 0));
    assert_eq!(calls(&mut stage, &[2, 4], "echo", 1), (1, 0));
    assert_eq!(calls(&mut stage, &[5], "twice", 2), (1, 1));
    stage.chaos.stop(fault).await;
    stage.chaos.lets_go(fault).await;
    // Nothing passes between the two.
    let fault = stage.start("hang", &["tool=none"]);
    assert_eq!(calls(&mut stage, &[1, 2], "echo", 1), (1, 1), "they were used in an experiment that is over");
    assert_eq!(calls(&mut stage, &[2], "echo", 1), (2, 1));
    stage.send(&json!({"jsonrpc": "2.0", "id": 2, "method": "initialize", "params": {}}));
    assert_eq!(stage.message()["id"], 2);
    assert_eq!(calls(&mut stage, &[1], "echo", 1), (2, 1), "it was used in the session before");
    assert_eq!(calls(&mut stage, &[2], "echo", 1), (3, 1), "it is that of the handshake");
    stage.chaos.stop(fault).await;
    stage.chaos.lets_go(fault).await;
    assert_eq!(calls(&mut stage, &[5, 5], "twice", 2), (3, 1), "nobody wants to know any more");
    drop(stage.end().await);
}

#[tokio::test]
async fn a_panic_inside_recording_leaves_no_fault_behind() {
    for (scenario, parameters) in [
        ("latency_injection", &["delay=10m", "distribution=constant"][..]),
        ("network_partition", &["intensity=1"]),
        ("packet_loss", &["intensity=1"]),
        ("hang", &[]),
        ("lost_request", &[]),
        ("lost_response", &[]),
        ("wrong_id", &[]),
        ("duplicate_response", &[]),
        ("rpc_error", &[]),
        ("tool_error", &[]),
        ("schema_violation", &[]),
        ("malformed_json", &[]),
        ("truncated", &[]),
        ("stdout_noise", &[]),
        ("oversize", &[]),
        ("slow_stream", &["bytes_per_second=1"]),
    ] {
        let mut stage = Stage::answering_to(Some(Arc::new(Panics)));
        let fault = stage.start(scenario, parameters);
        stage.call(1, "a");
        stage.chaos.hits(fault, 1).await;
        stage.chaos.controller.stop(fault.0, Instant::now()).unwrap();
        stage.chaos.lets_go(fault).await;
        stage.call(2, "a");
        // Behind whatever became of the first.
        let is_second = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|message| message["id"] == 2);
        let answered = (0..10).any(|_| is_second(&stage.line()));
        assert!(answered, "{scenario}: what is asked afterwards is answered");
        drop(stage.end().await);
    }
}
