//! Package `mcpscope.v1`, generated from `proto/mcpscope/v1/*.proto` by `cargo xtask codegen`.
//!
//! The modules `*_client` come with the feature `client`, `*_server` with `server`.

include!("generated/mcpscope.v1.rs");

/// The encoded `FileDescriptorSet` of the package, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
