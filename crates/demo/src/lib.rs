#![doc = include_str!("../README.md")]

mod error;
mod http;
mod server;
mod tools;
mod traffic;

pub use error::DemoError;
pub use http::{HTTP_PATH, http};
pub use server::{DemoServer, serve_io, serve_stdio};
pub use traffic::{traffic_http, traffic_io};
