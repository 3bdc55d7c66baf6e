#![doc = include_str!("../README.md")]

mod channel;
mod children;
mod component;
#[cfg(any(test, not(target_os = "linux")))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod linux;
mod machine;
mod process;
mod readiness;
mod report;
pub mod rules;
#[cfg(test)]
mod testing;
mod usage;

pub use channel::{Reporter, View, channel};
pub use children::{ChildUsage, WatchedProcess};
pub use component::Observation;
pub use process::ProcessReading;
pub use readiness::{Missing, Readiness, Requirement};
pub use report::{ComponentReport, Overall, Report, State};
pub use usage::Usage;
