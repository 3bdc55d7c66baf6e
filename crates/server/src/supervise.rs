//! Servers that we start: whether they are started again, and how they are.

use std::convert::Infallible;

use mcpscope_config::Settings;
use mcpscope_health::Reporter;
use mcpscope_hooks::Probe;
use mcpscope_proxy::stdio::{self, ClientEnd, StdioError, StdioRelay};
use mcpscope_proxy::{Limits, Program, RestartPolicy, ServerState};
use tokio::sync::watch;

use crate::cli::Restart;

/// How a server that crashes is started again, if it is: as the flag says, or the configuration, or else `otherwise`.
pub(crate) fn policy(settings: &Settings, flag: Option<Restart>, otherwise: Restart) -> Option<RestartPolicy> {
    let supervision = &settings.supervision;
    let configured = supervision.restart.map(|restart| match restart {
        mcpscope_config::Restart::OnFailure => Restart::OnFailure,
        mcpscope_config::Restart::Never => Restart::Never,
    });
    match flag.or(configured).unwrap_or(otherwise) {
        Restart::Never => None,
        Restart::OnFailure => Some(RestartPolicy {
            backoff_min: supervision.backoff_min,
            backoff_max: supervision.backoff_max,
            healthy_after: supervision.healthy_after,
            give_up: supervision.give_up,
            give_up_window: supervision.give_up_window,
        }),
    }
}

/// Starts a server behind a relay, to be started again as the policy says.
pub(crate) fn spawn(
    program: Program,
    client: ClientEnd,
    probe: &Probe,
    limits: Limits,
    policy: Option<RestartPolicy>,
) -> Result<StdioRelay, StdioError> {
    match policy {
        Some(policy) => stdio::spawn_supervised(program, client, probe, limits, policy),
        None => stdio::spawn(program, client, probe, limits),
    }
}

/// Shows what a server takes of the machine, whichever process it is, and calls `at_change` with each state. Never ends.
pub(crate) async fn follow(
    mut states: watch::Receiver<ServerState>,
    name: &str,
    reporter: &Reporter,
    mut at_change: impl FnMut(ServerState),
) -> Infallible {
    let mut watched = None;
    loop {
        let state = *states.borrow_and_update();
        // The old one first: there is one server of this name.
        drop(watched.take());
        if let ServerState::Serving(pid) = state {
            watched = pid.map(|pid| reporter.watch_process(name, pid));
        }
        at_change(state);
        if states.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
