//! Work that takes longer than a runtime's worker should be kept from others.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::Status;

/// How many readers work at a time: traffic is relayed on the same cores, and matters more.
const AT_A_TIME: usize = 2;

/// Runs work on the runtime's blocking threads, a little at a time. Its clones share the places.
#[derive(Clone, Debug)]
pub(super) struct Blocking(Arc<Semaphore>);

impl Blocking {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_A_TIME)))
    }

    /// Runs `work` when there is a place.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let failed = || Status::internal("the answer could not be made");
        let place = Arc::clone(&self.0).acquire_owned().await.map_err(|_| failed())?;
        // The place goes with the work, which goes on when nobody waits for it any more.
        let worked = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        worked.await.map_err(|error| {
            tracing::error!(%error, "a gRPC answer could not be made");
            failed()
        })
    }
}
