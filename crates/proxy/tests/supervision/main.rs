//! What a client sees of a stdio server that crashes and is started again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy does not take the helpers of an integration test for tests"
)]
#![allow(clippy::disallowed_methods, reason = "tests spawn the parts that they connect")]

#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod ends;
mod replay;
mod waiting;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use common::SERVER;
use mcpscope_hooks::Probe;
use mcpscope_proxy::stdio::{ChildHandle, ClientEnd, spawn_supervised};
use mcpscope_proxy::{Limits, RestartPolicy, ServerState};
use mcpscope_test_support::{StdioClient, eventually, within};
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
