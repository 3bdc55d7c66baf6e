//! A program with helpers that a test can do anything to.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use mcpscope_chaos::helper::Ready;
use mcpscope_chaos::{ProcessId, Scenario};

use crate::limits;
use crate::outside::{SECOND, active, apply, target};

/// The first argument of such a program.
pub(crate) const MARKER: &str = "embedding";

/// Starts a fault, tells its process, and goes on as it is told.
pub(crate) fn main(ready: Ready, mut arguments: impl Iterator<Item = String>) {
    let mut next = || arguments.next().unwrap();
    let (scenario, then): (Scenario, _) = match next().as_str() {
        limits::RANDOM => {
            let mut mib = || next().parse::<u64>().unwrap() * limits::MIB;
            return limits::random(ready, mib(), mib());
        }
        scenario => (scenario.parse().unwrap(), next()),
    };
    if then == "program is replaced" {
        let program = std::env::current_exe().unwrap();
        fs::remove_file(&program).unwrap();
        fs::write(program, "no program").unwrap();
    }
    let target = target(ready);
    let pairs: &[&str] = if scenario == Scenario::CpuOverload { &["intensity=0.2"] } else { &["size=64MiB"] };
    apply(&target, scenario, pairs, 60 * SECOND).unwrap();
    let ProcessId { pid, started } = active(&target);
    println!("{pid} {started}");
    io::stdout().flush().unwrap();
    match then.as_str() {
        "panics" => panic!("as it was told"),
        "returns" => std::mem::forget(target),
        "drops" => {
            drop(target);
            thread::sleep(60 * SECOND);
        }
        _ => thread::sleep(60 * SECOND),
    }
}

/// Such a program. It ends with the test.
pub(crate) struct Program(pub(crate) Child);

impl Program {
    /// Starts this one, or a copy of it.
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.arg(MARKER).args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Starts this one with a fault, and what its helper is.
    pub(crate) fn with_fault(program: &Path, scenario: Scenario, then: &str) -> (Self, ProcessId) {
        let mut program = Self::start(program, &[scenario.as_str(), then]);
        let mut line = String::new();
        BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let numbers =
            line.trim().split_once(' ').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
        let (pid, started) = numbers.unwrap_or_else(|| panic!("{then}: {line:?}"));
        (program, ProcessId { pid, started })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
