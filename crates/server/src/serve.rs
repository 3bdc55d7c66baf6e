//! `mcpscope serve`: in front of many Streamable HTTP MCP servers.

mod fleet;
mod seats;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::anyhow;
use mcpscope_proxy::stdio::ChildHandle;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use self::fleet::Fleet;
use crate::announce::{Listeners, say_proxy};
use crate::cli::{Restart, ServeArgs};
use crate::engine::{Entries, follow_plan};
use crate::failure::{Failure, say};
use crate::instance::{Instance, server_name};
use crate::observe::{Bindings, Observing, Taken};
use crate::relay::until_stopping;
use crate::reload::{AtHangup, Reloads};
use crate::running::Mode;
use crate::{signals, supervise};

/// The processes that are to be killed if the program must end at once.
type Processes = Arc<Mutex<Vec<ChildHandle>>>;

pub(crate) async fn serve(args: ServeArgs, entries: Entries) -> Result<ExitCode, Failure> {
    let name = server_name(args.common.name.as_deref(), "serve");
    let instance = Instance::new(&args.common, &name, entries.helper)?;
    let servers = instance.settings.servers.clone();
    if servers.is_empty() {
        return Err(no_servers());
    }
    let bindings = Bindings::bind(&instance, &args.common, Taken::Fails)?;
    let policy = supervise::policy(&instance.settings, args.restart, Restart::OnFailure);
    let processes = Processes::default();
    let mut fleet = Fleet::new(&instance, policy, entries.guardians, Arc::clone(&processes));
    let prepared = fleet.prepare(&servers)?;
    let stop = CancellationToken::new();
    let chaos = instance.sources().chaos;
    signals::cancel_on_end(stop.clone(), chaos, move || kill(&processes)).map_err(Failure::internal)?;
    let mut reloads = Reloads::new(&args.common, &instance, AtHangup::Reload)?;

    let mut listeners = Listeners { proxies: prepared.urls(), ..Listeners::new(&bindings) };
    let announcement = listeners.clone().prepare(args.common.ready_file.as_deref())?;
    fleet.change_to(prepared);
    let observing = Observing::start(&instance, bindings, std::io::stdout())?;
    let mut announced = announcement.publish(&name, Mode::Serve, &instance)?;

    let work = async {
        loop {
            let reloaded = tokio::select! {
                () = stop.cancelled() => break,
                () = fleet.broken() => continue,
                reloaded = reloads.next() => reloaded,
            };
            reloads.say_what_waits(&reloaded);
            if reloaded.is_new_plan {
                follow_plan(observing.chaos.as_ref(), reloaded.chaos);
            }
            let changed = match reloaded.settings.servers.as_slice() {
                [] => Err(no_servers()),
                servers => fleet.prepare(servers).map(|prepared| fleet.change_to(prepared)),
            };
            match changed {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => {
                    listeners.proxies = fleet.urls();
                    // Before anything is said: who reads that it is done looks into the file.
                    let told = announced.change(&listeners);
                    say(format_args!("mcpscope: servers {changes}"));
                    changes.started().for_each(|(name, url)| say_proxy(url, Some(name)));
                    if let Err(error) = told {
                        say(format_args!("mcpscope: {error:#}"));
                    }
                }
                Err(failure) => say(format_args!("mcpscope: the servers stay as they are: {failure}")),
            }
        }
        fleet.end().await;
    };
    until_stopping(instance.reporter(), stop.clone(), work).await;
    observing.end().await;
    Ok(ExitCode::SUCCESS)
}

fn no_servers() -> Failure {
    Failure::usage(anyhow!(
        "serve needs at least one server: expected `servers` in a file given with --config, such as\n  \
         servers:\n    - {{ name: my-server, upstream: http://127.0.0.1:3001/mcp, listen: 127.0.0.1:9001 }}"
    ))
}

fn kill(processes: &Processes) {
    let processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
    for process in processes.iter().filter(|process| process.id().is_some()) {
        process.signal(Signal::KILL);
    }
}
