//! Signals from outside.

use std::io;
use std::time::{Duration, Instant};

use mcpscope_chaos::Controller;
use mcpscope_hub::ChaosSource;
use rustix::process::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What comes sooner after the first signal is the same wish: `timeout` signals a process and then its whole group.
const INSIST: Duration = Duration::from_secs(1);

/// Cancels the token at the first SIGINT or SIGTERM, with which the faults of `chaos` end, too: what they hold would keep the rest
/// from its end. A second one, a second later at the earliest, ends the program at once, after `last` was called.
#[expect(clippy::disallowed_methods, reason = "the server may spawn, and end the process when a person insists")]
pub(crate) fn cancel_on_end(
    token: CancellationToken,
    chaos: Option<ChaosSource>,
    last: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        chaos.iter().for_each(end_faults);
        token.cancel();
        let first = Instant::now();
        let insisted = loop {
            let number = tokio::select! {
                _ = interrupt.recv() => Signal::INT.as_raw(),
                _ = terminate.recv() => Signal::TERM.as_raw(),
            };
            if first.elapsed() >= INSIST {
                break number;
            }
        };
        last();
        crate::failure::say("mcpscope: ended at once by a second signal");
        // As a shell has it for who is ended by that signal.
        std::process::exit(128 + insisted);
    });
    Ok(())
}

/// The instance is to end: so are all experiments, at once, and none is started any more.
pub(crate) fn end_faults(chaos: &ChaosSource) {
    chaos.post(Controller::shut_down);
}

/// The signals that a wrapped server gets as if it had been started without mcpscope.
#[expect(clippy::disallowed_methods, reason = "the server may spawn")]
pub(crate) fn forwarded() -> io::Result<mpsc::UnboundedReceiver<Signal>> {
    let kinds = [
        (SignalKind::interrupt(), Signal::INT),
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::quit(), Signal::QUIT),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
    ];
    let streams: Vec<(Stream, Signal)> =
        kinds.into_iter().map(|(kind, number)| Ok((signal(kind)?, number))).collect::<io::Result<_>>()?;
    // Bounded by the system, which merges signals of one kind that wait.
    let (sender, receiver) = mpsc::unbounded_channel();
    for (mut stream, number) in streams {
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(number).is_err() {
                    break;
                }
            }
        });
    }
    Ok(receiver)
}
