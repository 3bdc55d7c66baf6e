#![doc = include_str!("../README.md")]

mod cell;
mod family;
mod metrics;
mod raw;
mod scale;
mod schema;
mod snapshot;
mod text;
mod view;
mod window;

pub use crate::family::{Counter, Gauge, Histogram};
pub use crate::metrics::{Config, Metrics};
pub use crate::raw::RawRecord;
pub use crate::schema::{Desc, Kind, desc};
pub use crate::snapshot::{FamilySnapshot, HistogramSnapshot, SeriesSnapshot, Snapshot, Value};
pub use crate::view::{MetricSeries, MetricView, Summary};
pub use crate::window::{Stats, Window, WindowSeries};
