#![doc = include_str!("../README.md")]

mod door;
mod stall;

pub use door::{Door, Slot};
pub use stall::{StallLimit, StallLimits};
