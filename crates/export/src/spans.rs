//! Spans from the tracer to a collector and a console.

use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use mcpscope_hub::{Reader, Turn};
use mcpscope_tracing::{Exports, Trace};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::condition::{Condition, Destination};
use crate::config::Traces;
use crate::delivery::{Collector, Delivery, Refusal};
use crate::ending::Ending;
use crate::{Counts, DROPPED_SPAN, console, convert};

/// The signal's name, as people are told.
const SIGNAL: &str = "traces";
/// The same on the console, which can fail while a collector works.
const SHOWN: &str = "spans";
/// How often the tracer is asked at least: it makes room for what comes by letting go of what waits.
const LOOK: Duration = Duration::from_millis(100);
/// How often at most: where spans are to wait for nothing, they may still come one by one.
const MIN_LOOK: Duration = Duration::from_millis(10);
/// How long the console may take for what it is shown at once: the collector waits meanwhile.
const MAX_SHOW: Duration = Duration::from_secs(5);

/// The work of exporting spans.
pub(crate) struct Export<'a, C> {
    config: &'a Traces,
    source: Source<'a>,
    collector: Option<C>,
    console: Option<Box<dyn Write + Send>>,
    resource: Arc<Resource>,
    condition: &'a Condition,
    turn: Turn,
    delivery: Delivery,
    batch: Batch,
}

/// Where the spans come from, and what became of them.
struct Source<'a> {
    exports: Exports,
    reader: &'a Reader,
    counts: Counts,
}

/// What is sent next. There is never more than one.
#[derive(Default)]
struct Batch {
    traces: Vec<Arc<Trace>>,
    spans: usize,
    since: Option<Instant>,
    /// Whether there is more than had room in it.
    is_full: bool,
}

impl<'a, C: Collector<Request = ExportTraceServiceRequest>> Export<'a, C> {
    pub(crate) fn new(
        config: &'a Traces,
        exports: Exports,
        collector: Option<C>,
        console: Option<Box<dyn Write + Send>>,
        resource: Resource,
        reader: &'a Reader,
        condition: &'a Condition,
    ) -> Self {
        let attempt = config.otlp.as_ref().map_or(config.export_timeout, |endpoint| endpoint.timeout);
        Self {
            config,
            source: Source { exports, reader, counts: Counts::default() },
            collector,
            console,
            resource: Arc::new(resource),
            condition,
            turn: reader.turn(),
            delivery: Delivery::new(attempt, config.export_timeout),
            batch: Batch::default(),
        }
    }

    /// Exports until the end, and then what is left.
    pub(crate) async fn run(mut self, ending: Ending) -> Counts {
        if let Some(Err(refusal)) = self.collector.as_ref().map(Collector::ready) {
            self.condition.fails(SIGNAL, &self.config.destination(), &refusal.message, refusal.details.as_deref());
            self.delivery.put_off(Duration::ZERO);
        }
        while !ending.has_begun() {
            self.take(self.room(), &ending).await;
            if self.is_due() {
                self.send(&ending).await;
                continue;
            }
            // What only the console is shown is not kept for a batch.
            if self.batch.is_full {
                continue;
            }
            tokio::select! {
                () = sleep(self.config.schedule_delay.clamp(MIN_LOOK, LOOK)) => {}
                () = ending.begun() => {}
            }
        }
        let dropped_before = self.source.counts.dropped_spans;
        // What was being recorded at the first look has arrived by the second. A collector that does not take what there is
        // will not take it in a hurry either.
        let mut looks_without = 0;
        while looks_without < 2 && !ending.is_over() && !self.delivery.is_failing() {
            looks_without = if self.take(self.room(), &ending).await == 0 { looks_without + 1 } else { 0 };
            if self.batch.spans > 0 {
                self.send(&ending).await;
            }
        }
        for _ in 0..2 {
            self.take(usize::MAX, &ending).await;
            let spans = std::mem::take(&mut self.batch).spans;
            self.source.dropped(spans as u64);
        }
        // Nobody can ask for the counter any more.
        let lost = self.source.counts.dropped_spans - dropped_before;
        if lost > 0 {
            tracing::warn!(spans = lost, "the program ends before they were exported");
        }
        self.source.counts
    }

    /// How many spans the next batch can still take.
    fn room(&self) -> usize {
        self.config.max_batch_spans.saturating_sub(self.batch.spans).max(1)
    }

    /// Takes what there is, about this much, and shows it on the console. Returns how many spans that were.
    async fn take(&mut self, max_spans: usize, ending: &Ending) -> usize {
        let taken = self.source.exports.take(max_spans);
        self.source.dropped(taken.lost_spans);
        self.batch.is_full = taken.more;
        let spans = taken.traces.iter().map(|trace| trace.spans.len()).sum::<usize>();
        if spans == 0 {
            return 0;
        }
        let shown = self.show(&taken.traces, ending).await;
        if self.collector.is_some() {
            self.batch.spans += spans;
            self.batch.since.get_or_insert_with(Instant::now);
            self.batch.traces.extend(taken.traces);
        } else if shown {
            self.source.counts.exported_spans += spans as u64;
        } else {
            self.source.dropped(spans as u64);
        }
        spans
    }

    /// Shows them on the console. Returns whether it did.
    async fn show(&mut self, traces: &[Arc<Trace>], ending: &Ending) -> bool {
        let Some(mut console) = self.console.take() else { return false };
        let traces = traces.to_vec();
        let write = spawn_blocking(move || console::write(&mut console, &traces).map(|()| console));
        // Whoever reads it may be slow; at the end it is waited for no longer than a collector.
        let written = async {
            tokio::select! {
                written = write => written.map_err(io::Error::other).flatten(),
                () = sleep(MAX_SHOW) => Err(io::Error::from(io::ErrorKind::TimedOut)),
                () = ending.over() => Err(io::Error::from(io::ErrorKind::TimedOut)),
            }
        };
        match self.source.counting(written).await {
            Ok(console) => self.console = Some(console),
            // For good: the thread that writes may hang for ever.
            Err(error) => self.condition.fails(SHOWN, &Destination::console(), &format!("given up: {error}"), None),
        }
        self.console.is_some()
    }

    /// Whether the batch is to be sent: also an empty one, to a collector that failed.
    fn is_due(&self) -> bool {
        if self.batch.spans == 0 {
            return self.delivery.may_probe();
        }
        let Batch { spans, since, is_full, .. } = self.batch;
        let is_full = is_full || spans >= self.config.max_batch_spans;
        is_full || since.is_some_and(|since| since.elapsed() >= self.config.schedule_delay)
    }

    async fn send(&mut self, ending: &Ending) {
        let Some(collector) = &self.collector else { return };
        let Batch { traces, spans, .. } = std::mem::take(&mut self.batch);
        let (traces, to) = (Arc::new(traces), self.config.destination());
        let send = || {
            let (traces, resource, turn) = (Arc::clone(&traces), Arc::clone(&self.resource), &self.turn);
            async move {
                // Made anew each time: while it waits, it takes no more room than its traces.
                let request = turn.work(move || convert::spans(&traces, &resource)).await;
                collector.send(request).await
            }
        };
        let failed = |why: &Refusal| self.condition.fails(SIGNAL, &to, &why.message, why.details.as_deref());
        let delivered = match spans {
            0 => self.source.counting(self.delivery.probe(ending, send, failed)).await,
            _ => self.source.counting(self.delivery.deliver(ending, send, failed)).await,
        };
        let rejected = match delivered {
            Ok(accepted) if accepted.rejected == 0 => {
                self.condition.says(&to, &accepted.message);
                self.condition.works(SIGNAL, &to);
                0
            }
            Ok(accepted) => {
                let (rejected, message) = (accepted.rejected, &accepted.message);
                let why = format!("{rejected} of {spans} spans rejected: {message}");
                self.condition.fails(SIGNAL, &to, &why, None);
                // No more than there were, whatever it says.
                rejected.min(spans as u64)
            }
            Err(_) => spans as u64,
        };
        self.source.counts.exported_spans += spans as u64 - rejected;
        self.source.dropped(rejected);
    }
}

impl Source<'_> {
    /// Does this, which may take minutes, and counts the while what has to make room.
    async fn counting<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = sleep(LOOK) => {}
            }
            let lost = self.exports.lost();
            self.dropped(lost);
        }
    }

    fn dropped(&mut self, spans: u64) {
        self.counts.dropped_spans += spans;
        self.reader.dropped_many(DROPPED_SPAN, spans);
    }
}

#[cfg(test)]
mod tests;
