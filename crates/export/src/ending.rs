//! The end of the export: what may still be sent, and until when.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How long what is left may take at the end: a collector that works takes it in a fraction of that.
pub const FLUSH: Duration = Duration::from_secs(1);

/// Says that the end has begun.
pub(crate) struct Ends(watch::Sender<Option<Instant>>);

/// Tells those who export. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ending(watch::Receiver<Option<Instant>>);

impl Ends {
    pub(crate) fn begin(&self) {
        self.0.send_replace(Some(Instant::now() + FLUSH));
    }
}

impl Ending {
    pub(crate) fn new() -> (Ends, Self) {
        let (ends, ending) = watch::channel(None);
        (Ends(ends), Self(ending))
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.borrow().is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.borrow().is_some_and(|until| until <= Instant::now())
    }

    /// Resolves when the end begins: from then on nothing is waited for but answers.
    pub(crate) async fn begun(&self) {
        // Whoever says so outlives those who are told.
        if self.0.clone().wait_for(Option::is_some).await.is_err() {
            pending::<()>().await;
        }
    }

    /// Resolves when there is no time left.
    pub(crate) async fn over(&self) {
        self.begun().await;
        let until = *self.0.borrow();
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }
}
