#![doc = include_str!("../README.md")]

mod door;
mod places;
mod stall;

pub use door::{Door, Slot};
pub use places::{Activity, OpenDoor, Place, UnderWay};
pub use stall::{StallLimit, StallLimits};
