//! `mcpscope run`: in place of a stdio MCP server.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use mcpscope_core::Transport;
use mcpscope_proxy::stdio::{ClientEnd, StdioError};
use mcpscope_proxy::{Program, ServerState};
use rustix::process::Signal;

use crate::announce::Listeners;
use crate::cli::{Restart, RunArgs};
use crate::engine::{Entries, follow_plan};
use crate::failure::Failure;
use crate::instance::{Instance, server_name};
use crate::observe::{Bindings, Observing, Taken};
use crate::reload::{AtHangup, Reloads};
use crate::running::Mode;
use crate::{signals, supervise, tls};

pub(crate) async fn run(args: RunArgs, entries: Entries) -> Result<ExitCode, Failure> {
    let (program, arguments) = args.command.split_first().ok_or_else(|| Failure::usage(anyhow!("no command")))?;
    let file_name = Path::new(program).file_name().unwrap_or(program).to_string_lossy();
    let name = server_name(args.common.name.as_deref(), &file_name);
    let instance = Instance::new(&args.common, &name, entries.helper)?;
    tls::say_unused(&instance.settings, "run");
    let bindings = Bindings::bind(&instance, &args.common, Taken::MovesTheDefault)?;
    let traffic = Arc::new(instance.traffic());
    // Before the child starts: none of its signals may be lost or end us instead.
    let mut signals = signals::forwarded().map_err(Failure::internal)?;
    let mut reloads = Reloads::new(&args.common, &instance, AtHangup::Nothing)?;

    let announcement = Listeners::new(&bindings).prepare(args.common.ready_file.as_deref())?;
    // From here on nothing that observes may keep the MCP server from starting or end it.
    let observing = Observing::start(&instance, bindings, std::io::stderr()).inspect_err(Failure::report).ok();

    let client = take_stdio().map_err(Failure::internal)?;
    let mut command = Command::new(program);
    command.args(arguments);
    let probe = instance.probe(&name, Transport::Stdio, false);
    let policy = supervise::policy(&instance.settings, args.restart, Restart::Never);
    let program = Program::from(command).guarded(entries.guardians);
    let relay = supervise::spawn(program, client, &probe, instance.limits(), policy).map_err(|error| match &error {
        StdioError::Spawn { source, .. } => Failure::command(source.kind(), error),
        StdioError::Setup(_) => Failure::internal(error),
    })?;
    let relay = relay.telling(Arc::clone(&traffic));
    traffic.works();
    let _announced = announcement.publish(&name, Mode::Run, &instance).inspect_err(Failure::report);

    let _target = policy.map(|policy| instance.targets().register(&name, false, relay.child(), &policy));
    let chaos = observing.as_ref().and_then(|observing| observing.chaos.clone());
    let child = relay.child();
    let followed = supervise::follow(relay.state(), &name, instance.reporter(), |state| match state {
        ServerState::Serving(_) => traffic.works(),
        down => traffic.fails(&down.to_string()),
    });
    tokio::pin!(followed);
    let ended = relay.wait();
    tokio::pin!(ended);
    let (mut asked, overdue) = (false, child.kill_after_term());
    tokio::pin!(overdue);
    let status = loop {
        tokio::select! {
            status = &mut ended => break status.map_err(Failure::internal)?,
            Some(signal) = signals.recv() => {
                if signal == Signal::TERM {
                    asked = true;
                    instance.sources().chaos.iter().for_each(signals::end_faults);
                }
                child.signal(signal);
            }
            () = &mut overdue, if asked => asked = false,
            never = &mut followed => match never {},
            never = reloads.follow(|changed| follow_plan(chaos.as_ref(), changed)) => match never {},
        }
    };
    if let Some(observing) = observing {
        // A wrapped server ends when it ends, whoever is still looking.
        observing.end_soon().await;
    }
    Ok(exit_code(status))
}

/// Takes stdin and stdout away from this process: from here on they belong to the protocol, so that nothing else can write
/// to stdout by mistake, and closing our copy is the end of file that the client sees.
fn take_stdio() -> anyhow::Result<ClientEnd> {
    let input = std::io::stdin().as_fd().try_clone_to_owned().context("cannot take stdin")?;
    let output = std::io::stdout().as_fd().try_clone_to_owned().context("cannot take stdout")?;
    rustix::stdio::dup2_stdin(File::open("/dev/null").context("cannot open the null device")?)?;
    rustix::stdio::dup2_stdout(std::io::stderr())?;
    Ok(ClientEnd { input, output })
}

/// The child's exit code, or 128 and the number of the signal that ended it, as in a shell.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}
