#![doc = include_str!("../README.md")]

mod cell;
mod family;
mod metrics;
mod raw;
mod record;
mod scale;
mod schema;
mod snapshot;
mod text;
mod view;
mod window;

pub use crate::family::{Counter, Gauge, Histogram};
pub use crate::metrics::{ComponentTotals, Config, Metrics, Totals};
pub use crate::raw::RawRecord;
pub use crate::record::RecordError;
pub use crate::schema::{Desc, Kind, desc};
pub use crate::snapshot::{FamilySnapshot, HistogramSnapshot, SeriesSnapshot, Snapshot, Value};
pub use crate::view::{MetricSeries, MetricView, Summary};
pub use crate::window::{Stats, Window, WindowSeries};
