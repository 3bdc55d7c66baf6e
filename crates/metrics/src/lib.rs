//! The critical metrics of an MCP server, or of any program.
#![cfg_attr(feature = "prometheus", doc = include_str!("../README.md"))]

mod builtin;
mod declared;
mod error;
mod facade;
mod family;
mod general;
mod handle;
mod members;
mod metrics;
mod places;
#[cfg(feature = "prometheus")]
mod prometheus;
mod record;
mod schema;
mod series;
mod snapshot;
mod sparse;
mod storage;
mod sync;
mod text;
mod view;
mod window;

pub use crate::builtin::{Operation, Process};
pub use crate::declared::{Declared, RESERVED_PREFIXES};
pub use crate::error::RecordError;
pub use crate::facade::Recorder;
pub use crate::general::{Dropped, General, Refusal};
pub use crate::handle::{CallSite, Counter, Gauge, Histogram, SiteCounter};
pub use crate::metrics::{ComponentTotals, Config, Metrics, Totals};
#[cfg(feature = "prometheus")]
pub use crate::prometheus::Prometheus;
pub use crate::record::RawRecord;
pub use crate::schema::{Desc, Kind, Unit, desc};
pub use crate::snapshot::{Exemplar, FamilySnapshot, HistogramSnapshot, SeriesSnapshot, Snapshot, Value};
pub use crate::sparse::Sparse;
#[doc(hidden)]
pub use crate::storage::local::CachedCell;
pub use crate::text::Format;
pub use crate::view::{MetricSeries, MetricView, Summary};
pub use crate::window::{Stats, Window, WindowSeries};
