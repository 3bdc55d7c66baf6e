#![doc = include_str!("../README.md")]

mod accept;
mod guard;
mod problem;
mod query;
mod routes;
mod serve;
mod stall;
mod views;

pub use routes::Sources;
pub use serve::{Config, DashboardError, check_loopback, serve};
