#![doc = include_str!("../README.md")]

mod condition;
mod config;
mod console;
mod convert;
mod delivery;
mod ending;
mod otlp;
mod points;
mod spans;
#[cfg(test)]
mod testing;

use std::fmt;
use std::io::Write;

use mcpscope_health::Reporter;
use mcpscope_hub::Reader;
use mcpscope_tracing::Exports;

pub use config::{
    Config, Enabled, Endpoint, Exporter, Headers, InvalidSampler, Metrics, Propagators, Protocol, Service, Settings,
    Tls, Traces, Warning, environment, parse_sampler,
};
pub use ending::FLUSH;

use condition::Condition;
use ending::Ending;
use otlp::{Client, Points, Spans};

/// What is exported, and who hears about it.
pub struct Parts {
    /// Where the metrics are, and where drops are counted.
    pub reader: Reader,
    /// What the tracer holds for us: [`Tracer::exports`](mcpscope_tracing::Tracer::exports). None: no traces.
    pub exports: Option<Exports>,
    /// Who is told that a collector fails, and that it works again, as component `observability`.
    pub reporter: Reporter,
    /// Where [`Traces::console`] writes. A write that hangs holds up nothing but the export.
    pub console: Box<dyn Write + Send>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("exports", &self.exports).finish_non_exhaustive()
    }
}

/// What became of the spans: of those recorded for export, each is one or the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that a collector took, or the console.
    pub exported_spans: u64,
    /// Spans that had to make room before they were sent, that the collector rejected, or for which it could not be reached.
    /// `mcpscope_dropped_total{what="export_span"}` counts them too.
    pub dropped_spans: u64,
}

/// What spans are counted as that are not exported.
pub(crate) const DROPPED_SPAN: &str = "export_span";
/// What data points of metrics are counted as that a collector rejected, or that it was not to be reached for.
pub(crate) const DROPPED_POINT: &str = "export_data_point";

/// Exports as `config` says until `stop`, and then for [`FLUSH`] at most what is left.
///
/// It resolves names and writes to the console on the runtime's blocking threads, which both can hang: it wants a runtime
/// with more than one of them, or better one of its own.
pub async fn export(config: Config, parts: Parts, stop: impl Future<Output = ()>) -> Counts {
    let Config { traces, metrics, propagators: _, resource } = config;
    let Parts { reader, exports, reporter, console } = parts;
    let condition = Condition::new(reporter, reader.clone());
    let (ends, ending) = Ending::new();
    let spans = async {
        let Some((traces, exports)) = traces.zip(exports) else { return Counts::default() };
        reader.may_drop(DROPPED_SPAN);
        let collector = traces.otlp.clone().map(|endpoint| Client::<Spans>::new(endpoint, reader.clone()));
        let console = traces.console.then_some(console);
        let export = spans::Export::new(&traces, exports, collector, console, resource.clone(), &reader, &condition);
        export.run(ending.clone()).await
    };
    let points = async {
        let Some(metrics) = metrics else { return };
        reader.may_drop(DROPPED_POINT);
        let collector = Client::<Points>::new(metrics.otlp.clone(), reader.clone());
        points::Export::new(&metrics, collector, resource.clone(), &reader, &condition).run(ending.clone()).await;
    };
    let stop = async {
        stop.await;
        ends.begin();
    };
    tokio::join!(spans, points, stop).0
}
