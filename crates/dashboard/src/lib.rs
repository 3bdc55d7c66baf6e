#![doc = include_str!("../README.md")]

mod accept;
mod answer;
mod assets;
mod busy;
mod chaos;
mod compress;
mod guard;
mod http2;
mod negotiate;
mod plain;
mod problem;
mod publish;
mod query;
mod routes;
mod serve;
mod views;
mod websocket;

pub use plain::{PlainConfig, serve_metrics, serve_probe};
pub use serve::{Config, DashboardError, check_loopback, serve};
