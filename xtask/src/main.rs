//! The project's own commands: `cargo xtask help` lists them.
//!
//! A tool for people and CI, not part of the product: it prints, reads the environment and depends on none of our crates.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command-line tool is for")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod codegen;
mod command;
mod fuzz;
mod libtest;
mod soak;
mod steps;
mod test_env;
mod tidy;
mod workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run everything that CI runs, and report every step that failed
    Test {
        /// Run only this step; may be given several times
        #[arg(long, value_name = "STEP")]
        only: Vec<String>,
        /// List the steps
        #[arg(long)]
        list: bool,
    },
    /// Find or install what the tests need, and nothing else
    Setup,
    /// Check the layers, the invariants and the shape of the tree
    Tidy,
    /// Make the Rust code of crates/grpc from proto/
    Codegen {
        /// Change nothing, and fail if there is something to change
        #[arg(long)]
        check: bool,
    },
    /// Run the benchmarks of one name; without a name, list them
    Bench {
        /// NAME, or CRATE/NAME where two crates have a benchmark of that name
        name: Option<String>,
        /// Passed on to the benchmark
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Fuzz one target, or each in turn
    Fuzz {
        target: Option<String>,
        /// How long to fuzz each target
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Do for a long time what the tests do for a few seconds
    Soak {
        /// What
        #[arg(value_enum, default_value_t = soak::Subject::Proxy)]
        subject: soak::Subject,
        /// How long
        #[arg(long, default_value_t = 600)]
        seconds: u32,
        /// chaos: random runs in each round, 500 at least
        #[arg(long, default_value_t = 5000)]
        cases: u32,
        /// chaos: what the first round is drawn from; each round has the next number
        #[arg(long)]
        seed: Option<u64>,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Test { list: true, .. } => {
            steps::list();
            Ok(())
        }
        Task::Test { only, .. } => steps::run(&only),
        Task::Setup => test_env::setup(),
        Task::Tidy => tidy::run(),
        Task::Codegen { check } => codegen::run(check),
        Task::Bench { name: None, .. } => bench::list(),
        Task::Bench { name: Some(name), args } => bench::run(&name, &args),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Soak { subject: soak::Subject::Proxy, seconds, .. } => soak::proxy(seconds),
        Task::Soak { subject: soak::Subject::Chaos, seconds, cases, seed } => soak::chaos(seconds, cases, seed),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
