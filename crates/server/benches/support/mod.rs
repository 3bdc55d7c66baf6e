//! What the whole-process benchmarks share: child processes that never outlive the benchmark.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::time::ClockId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::NamedTempFile;

pub(crate) mod api;
pub(crate) mod http;
pub(crate) mod peers;
pub(crate) mod process;
pub(crate) mod stdio;

/// No benchmark takes longer unless it says so; one that hangs fails, because its children are killed then.
const LIMIT: Duration = Duration::from_secs(60);

/// Child processes; dropping this kills them all, and what they started.
#[derive(Debug)]
pub(crate) struct Children {
    all: Arc<Mutex<Vec<Child>>>,
    _running: Sender<()>,
}

/// A child's ends.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) id: u32,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
}

impl Children {
    pub(crate) fn new() -> Self {
        Self::limited(LIMIT)
    }

    /// Kills them after `limit`.
    pub(crate) fn limited(limit: Duration) -> Self {
        let all = Arc::default();
        let (running, ended) = channel::<()>();
        let watched = Arc::clone(&all);
        thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                kill(&watched);
            }
        });
        Self { all, _running: running }
    }

    /// Starts a child without anybody's configuration, its input and output ours.
    pub(crate) fn start(&self, command: &mut Command) -> io::Result<Started> {
        let mut child = command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let ends = (child.stdin.take(), child.stdout.take());
        let id = child.id();
        lock(&self.all).push(child);
        let (Some(stdin), Some(stdout)) = ends else { return Err(io::Error::other("a child has no pipes")) };
        Ok(Started { id, stdin, stdout })
    }

    /// Starts `mcpscope MODE ARGUMENTS` and waits until it listens.
    pub(crate) fn start_mcpscope<A: AsRef<OsStr>>(
        &self,
        mode: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> io::Result<Mcpscope> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("ready.json");
        let process = self.start(mcpscope().arg(mode).arg("--ready-file").arg(&file).args(arguments))?;
        let start = Instant::now();
        while !file.exists() {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("mcpscope {mode} does not become ready")));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Mcpscope { process, ready: serde_json::from_str(&fs::read_to_string(&file)?)? })
    }
}

/// A started mcpscope that listens.
#[derive(Debug)]
pub(crate) struct Mcpscope {
    pub(crate) process: Started,
    /// What its ready file says.
    ready: Value,
}

impl Mcpscope {
    /// Where its only proxy listens.
    pub(crate) fn proxy(&self) -> io::Result<SocketAddr> {
        address(self.ready["proxy"].as_object().and_then(|proxies| proxies.values().next()))
    }

    /// Where its dashboard listens.
    pub(crate) fn dashboard(&self) -> io::Result<SocketAddr> {
        address(self.ready.get("dashboard"))
    }
}

/// The address in a URL.
fn address(url: Option<&Value>) -> io::Result<SocketAddr> {
    let url = url.and_then(Value::as_str).unwrap_or_default();
    let authority = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    authority.parse().map_err(io::Error::other)
}

impl Drop for Children {
    fn drop(&mut self) {
        kill(&self.all);
    }
}

fn kill(children: &Mutex<Vec<Child>>) {
    for mut child in lock(children).drain(..) {
        let its_own = process::children(child.id()).unwrap_or_default();
        // It may have ended by itself, and its own children with it.
        let _ = child.kill();
        let _ = child.wait();
        for id in its_own.into_iter().filter_map(|id| Pid::from_raw(id.try_into().ok()?)) {
            let _ = kill_process(id, Signal::KILL);
        }
    }
}

fn lock(children: &Mutex<Vec<Child>>) -> MutexGuard<'_, Vec<Child>> {
    children.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This very program, to play the part named `role`.
pub(crate) fn this_program(role: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role);
    Ok(command)
}

/// The part that this process is to play, if it was started for one.
pub(crate) fn role() -> Option<String> {
    std::env::args().nth(1)
}

/// The `mcpscope` to measure, built like this benchmark.
pub(crate) fn mcpscope() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mcpscope"))
}

/// A file of mcpscope's configuration.
pub(crate) fn config(text: &str) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::with_suffix(".yaml")?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}

/// Arguments with which everything is on that `config` does not switch off.
pub(crate) fn observed(config: &OsStr) -> Vec<OsString> {
    let config = ["--config".into(), config.to_owned()].into_iter();
    config.chain(["--dashboard", "127.0.0.1:0", "--grpc", "127.0.0.1:0"].map(Into::into)).collect()
}

/// A request of 300 bytes to call `tool`, its id, always of seven digits, last.
pub(crate) fn request(tool: &str) -> String {
    let head =
        format!(r#"{{"jsonrpc":"2.0","method":"tools/call","params":{{"name":"{tool}","arguments":{{"message":""#);
    let tail = format!(r#""}},"_meta":{{"progressToken":7}}}},"id":{FIRST_ID}}}"#);
    let filler = "x".repeat(300 - head.len() - tail.len());
    format!("{head}{filler}{tail}")
}

/// What an answer begins with, up to its text.
const ANSWER_HEAD: &str = r#"{"result":{"content":[{"type":"text","text":""#;

const FIRST_ID: u64 = 1_000_000;
const IDS: u64 = 9_000_000;

/// Gives a request that [`request`] made, or its answer, the id of the request of this number.
pub(crate) fn renumber(message: &mut [u8], number: u64) {
    let Some(at) = message.len().checked_sub(8) else { return };
    // Writing over the digits of the last id cannot fail.
    let _ = write!(&mut message[at..], "{}", FIRST_ID + number % IDS);
}

/// The answer of 500 bytes to a request that [`request`] made.
pub(crate) fn answer(request: &[u8], into: &mut Vec<u8>) {
    const TAIL: &str = r#""}],"isError":false},"jsonrpc":"2.0","id":"#;
    const FILLER: [u8; 500 - ANSWER_HEAD.len() - TAIL.len() - 8] = [b'x'; 500 - ANSWER_HEAD.len() - TAIL.len() - 8];
    let id = request.len().checked_sub(8).and_then(|at| request.get(at..)).unwrap_or_default();
    for part in [ANSWER_HEAD.as_bytes(), &FILLER, TAIL.as_bytes(), id] {
        into.extend_from_slice(part);
    }
}

/// Such an answer that says when it was made, which is when the request was there.
pub(crate) fn stamped_answer(request: &[u8], into: &mut Vec<u8>) {
    let start = into.len() + ANSWER_HEAD.len();
    answer(request, into);
    // Writing over the text cannot fail; without a clock it is not the stamp that is looked for.
    if let (Ok(now), Some(mut text)) = (now(), into.get_mut(start..)) {
        let _ = write!(text, "{:0STAMP_DIGITS$}", now.as_nanos());
    }
}

/// When an answer that [`stamped_answer`] made says that the request with this number was there.
pub(crate) fn stamp(answer: &[u8], number: u64) -> io::Result<Duration> {
    let is_its_own = answer.ends_with(format!("{}}}", FIRST_ID + number % IDS).as_bytes());
    let text = answer.strip_prefix(ANSWER_HEAD.as_bytes()).filter(|_| is_its_own);
    let stamp = text.and_then(|text| std::str::from_utf8(text.get(..STAMP_DIGITS)?).ok()?.parse().ok());
    let text = || String::from_utf8_lossy(answer);
    stamp
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other(format!("not the answer to request {number}: {}", text())))
}

const STAMP_DIGITS: usize = 20;

/// Now, by the clock that all processes of a system have in common.
pub(crate) fn now() -> io::Result<Duration> {
    Ok(ClockId::CLOCK_MONOTONIC.now()?.into())
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let start = Instant::now();
    loop {
        match ask()? {
            Some(answer) => return Ok(answer),
            None if start.elapsed() > PATIENCE => {
                return Err(io::Error::other(format!("{what}: not within {PATIENCE:?}")));
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}
