#![doc = include_str!("../README.md")]

mod fault;
mod in_flight;
mod probe;

pub use fault::{Injector, Lane, MessageFacts, Passage};
pub use in_flight::InFlight;
pub use probe::{Connection, Loss, Observer, Parts, Probe, Queued, Session};
