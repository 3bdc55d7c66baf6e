#![doc = include_str!("../README.md")]

mod channel;
mod readiness;
mod report;
mod usage;

pub use channel::{Reporter, View, channel};
pub use readiness::{Missing, Readiness, Requirement};
pub use report::{ComponentReport, Overall, Report, State};
pub use usage::Usage;
