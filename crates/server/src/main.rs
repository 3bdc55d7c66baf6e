//! `mcpscope`: see what an MCP server really does.

mod access;
mod announce;
mod audit;
mod chaos;
mod cli;
mod client;
mod data;
mod demo;
mod engine;
mod failure;
mod figures;
mod instance;
mod listen;
mod logging;
mod observe;
mod proxy;
mod relay;
mod reload;
mod run;
mod running;
mod serve;
mod signals;
mod supervise;
mod tls;

use std::process::ExitCode;

use clap::Parser;
use mcpscope_chaos::{guardian, helper};

use cli::{Cli, Command};
use engine::Entries;
use failure::Failure;

fn main() -> ExitCode {
    let entries = Entries { guardians: guardian::run_if_requested(), helper: helper::run_if_requested() };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { Failure::USAGE } else { 0 };
            // Nobody is left to tell if even this cannot be printed.
            let _ = error.print();
            if cli::forgot_dashes(&error, std::env::args_os()) {
                failure::say("\n  tip: put `--` before the server's command: mcpscope run [OPTIONS] -- CMD [ARGS]");
            }
            return ExitCode::from(code);
        }
    };
    match dispatch(cli, entries) {
        Ok(code) => code,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(cli: Cli, entries: Entries) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Run(args) => block_on(run::run(args, entries)),
        Command::Proxy(args) => block_on(proxy::proxy(args, entries)),
        Command::Serve(args) => block_on(serve::serve(args, entries)),
        Command::Demo(args) => block_on(demo::demo(args, entries)),
        Command::Client(command) => block_on(client::run(command)),
        Command::DemoServer(args) => block_on(demo::server(args)),
    }
}

fn block_on(work: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::internal)?;
    let result = runtime.block_on(work);
    // A thread may still be blocked on the client's pipe; the end of the process is the end of it.
    runtime.shutdown_background();
    result
}
