//! Metrics from their snapshot to a collector.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mcpscope_hub::{Reader, Turn};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::time::{MissedTickBehavior, interval};

use crate::DROPPED_POINT;
use crate::condition::Condition;
use crate::config::Metrics;
use crate::convert::{self, Starts};
use crate::delivery::{Accepted, Again, Collector, Delivery, Refusal};
use crate::ending::Ending;

/// The signal's name, as people are told.
const SIGNAL: &str = "metrics";

/// The work of exporting metrics.
pub(crate) struct Export<'a, C> {
    config: &'a Metrics,
    collector: C,
    resource: Arc<Resource>,
    reader: &'a Reader,
    condition: &'a Condition,
    turn: Turn,
    delivery: Delivery,
    starts: Arc<Mutex<Starts>>,
}

impl<'a, C: Collector<Request = ExportMetricsServiceRequest>> Export<'a, C> {
    pub(crate) fn new(
        config: &'a Metrics,
        collector: C,
        resource: Resource,
        reader: &'a Reader,
        condition: &'a Condition,
    ) -> Self {
        let began = reader.timestamp() - reader.uptime();
        Self {
            config,
            collector,
            resource: Arc::new(resource),
            reader,
            condition,
            turn: reader.turn(),
            delivery: Delivery::new(config.otlp.timeout.min(config.export_timeout), config.export_timeout),
            starts: Arc::new(Mutex::new(Starts::new(began))),
        }
    }

    /// Exports at each interval until the end, and then once more.
    pub(crate) async fn run(mut self, ending: Ending) {
        if let Err(refusal) = self.collector.ready() {
            let to = self.config.otlp.destination();
            self.condition.fails(SIGNAL, &to, &refusal.message, refusal.details.as_deref());
            self.delivery.put_off(Duration::ZERO);
        }
        let mut due = interval(self.config.interval);
        due.set_missed_tick_behavior(MissedTickBehavior::Skip);
        due.reset();
        while !ending.has_begun() {
            tokio::select! {
                _ = due.tick() => self.send(&ending).await,
                () = ending.begun() => {}
            }
        }
        if !self.delivery.is_failing() {
            self.send(&ending).await;
        }
    }

    async fn send(&mut self, ending: &Ending) {
        let to = self.config.otlp.destination();
        let points = AtomicU64::new(0);
        let send = || async {
            let (reader, resource, starts) =
                (self.reader.clone(), Arc::clone(&self.resource), Arc::clone(&self.starts));
            // Taken anew each time: what is cumulative is the better the newer it is.
            let request = self.turn.work(move || {
                let (now, snapshot) = (reader.timestamp(), reader.snapshot().ok()?);
                let mut starts = starts.lock().unwrap_or_else(PoisonError::into_inner);
                Some(starts.request(&snapshot, now, &resource))
            });
            let request = request.await;
            points.store(request.as_ref().map_or(0, convert::points), Ordering::Relaxed);
            match request {
                Some(request) => self.collector.send(request).await,
                None => Err(Refusal::new("metrics are switched off", Again::Never)),
            }
        };
        let failed = |why: &Refusal| self.condition.fails(SIGNAL, &to, &why.message, why.details.as_deref());
        let delivered = self.delivery.deliver(ending, send, failed).await;
        let points = points.into_inner();
        let Ok(Accepted { rejected, message }) = delivered else {
            // What they say is not lost, for it is cumulative, and the next export has it.
            return self.reader.dropped_many(DROPPED_POINT, points);
        };
        if rejected > 0 {
            // No more than there were, whatever it says.
            let rejected = rejected.min(points);
            self.condition.fails(SIGNAL, &to, &format!("{rejected} data points rejected: {message}"), None);
            return self.reader.dropped_many(DROPPED_POINT, rejected);
        }
        self.condition.says(&to, &message);
        self.condition.works(SIGNAL, &to);
    }
}

#[cfg(test)]
mod tests;
