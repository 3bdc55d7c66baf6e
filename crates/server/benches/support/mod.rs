//! What the whole-process benchmarks share: child processes that never outlive the benchmark.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::io;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// No benchmark takes longer; one that hangs fails, because its children are killed then.
const LIMIT: Duration = Duration::from_secs(60);

/// Child processes; dropping this kills them all.
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
        let all = Arc::default();
        let (running, ended) = channel::<()>();
        let watched = Arc::clone(&all);
        thread::spawn(move || {
            if ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
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
}

impl Drop for Children {
    fn drop(&mut self) {
        kill(&self.all);
    }
}

fn kill(children: &Mutex<Vec<Child>>) {
    for mut child in lock(children).drain(..) {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
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

/// A request of 300 bytes to call a tool, its id, always of seven digits, last.
pub(crate) fn request(id: u32) -> String {
    let head = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"echo","arguments":{"message":""#;
    let tail = format!(r#""}},"_meta":{{"progressToken":7}}}},"id":{id}}}"#);
    let filler = "x".repeat(300 - head.len() - tail.len());
    format!("{head}{filler}{tail}")
}

/// The first of the ids.
pub(crate) const FIRST_ID: u32 = 1_000_000;

/// The answer of 480 bytes to a request that [`request`] made.
pub(crate) fn answer(request: &[u8], into: &mut Vec<u8>) {
    const HEAD: &str = r#"{"result":{"content":[{"type":"text","text":""#;
    const TAIL: &str = r#""}],"isError":false},"jsonrpc":"2.0","id":"#;
    const FILLER: [u8; 480 - HEAD.len() - TAIL.len() - 8] = [b'x'; 480 - HEAD.len() - TAIL.len() - 8];
    let id = request.len().checked_sub(8).and_then(|at| request.get(at..)).unwrap_or_default();
    for part in [HEAD.as_bytes(), &FILLER, TAIL.as_bytes(), id] {
        into.extend_from_slice(part);
    }
}
