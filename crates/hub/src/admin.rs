//! The only way back: the few things that readers may ask to be changed.

use std::sync::Arc;

use mcpscope_hooks::InstrumentError;
use mcpscope_metrics::RecordError;

use crate::experiments::Chaos;
use crate::reader::Off;
use crate::{Core, now};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// What it is about is switched off.
    #[error(transparent)]
    Off(#[from] Off),
    /// The record was refused.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The component cannot be instrumented, or is not.
    #[error(transparent)]
    Instrument(#[from] InstrumentError),
}

/// Records, resets, clears and instruments, and has the commands of chaos. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    core: Arc<Core>,
    chaos: Option<Chaos>,
}

impl Admin {
    pub(crate) fn new(core: Arc<Core>, chaos: Option<Chaos>) -> Self {
        Self { core, chaos }
    }

    /// The chaos engine.
    ///
    /// # Errors
    /// There is none.
    pub fn chaos(&self) -> Result<&Chaos, Off> {
        self.chaos.as_ref().ok_or(Off::Chaos)
    }

    /// Records a value of a critical metric by name; see [`mcpscope_metrics::Metrics::record`].
    ///
    /// # Errors
    /// Metrics are off, or the record was refused.
    pub fn record(&self, name: &str, value: f64, labels: &[(&str, &str)]) -> Result<(), AdminError> {
        let metrics = self.core.sources.metrics.as_ref().ok_or(Off::Metrics)?;
        Ok(metrics.record(name, value, labels, now())?)
    }

    /// Forgets raw records, windows and the summary's counters; the cumulative values stay.
    ///
    /// # Errors
    /// Metrics are off.
    pub fn reset_metrics(&self) -> Result<(), AdminError> {
        let metrics = self.core.sources.metrics.as_ref().ok_or(Off::Metrics)?;
        metrics.reset(now());
        tracing::info!("metrics reset");
        Ok(())
    }

    /// Forgets all traces. Returns how many there were.
    ///
    /// # Errors
    /// Tracing is off.
    pub fn clear_traces(&self) -> Result<usize, AdminError> {
        let tracer = self.core.sources.tracer.as_ref().ok_or(Off::Tracing)?;
        let cleared = tracer.len();
        tracer.clear();
        tracing::info!(cleared, "traces cleared");
        Ok(cleared)
    }

    /// Instruments a component; see [`mcpscope_hooks::Instrumentation::instrument`]. A failure is logged too (behaviour H2).
    ///
    /// # Errors
    /// Instrumentation is off, or the component cannot be instrumented.
    pub fn instrument(&self, component: &str, functions: Vec<String>) -> Result<(), AdminError> {
        let instrumentation = self.core.sources.instrumentation.as_ref().ok_or(Off::Instrumentation)?;
        instrumentation
            .instrument(component, functions)
            .inspect_err(|error| tracing::warn!(%error, "a component was not instrumented"))?;
        tracing::info!(component, "component instrumented");
        Ok(())
    }

    /// Takes a component out of the instrumentation.
    ///
    /// # Errors
    /// Instrumentation is off, or there is no such component.
    pub fn uninstrument(&self, component: &str) -> Result<(), AdminError> {
        let instrumentation = self.core.sources.instrumentation.as_ref().ok_or(Off::Instrumentation)?;
        instrumentation.uninstrument(component)?;
        tracing::info!(component, "component no longer instrumented");
        Ok(())
    }
}
