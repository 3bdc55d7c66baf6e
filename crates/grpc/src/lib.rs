#![doc = include_str!("../README.md")]

#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod convert;
#[cfg(feature = "serde")]
mod json;
pub mod mistakes;
pub mod proto;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod services;

#[cfg(feature = "client")]
pub use client::{Client, ClientError, InvalidToken, authorized};
/// Those of parameters.
pub use prost_types;
#[cfg(feature = "server")]
pub use server::{Config, GrpcError, check_loopback, serve};
#[cfg(feature = "server")]
pub use services::health_service;
/// The version whose types are in this crate's signatures.
pub use tonic;
