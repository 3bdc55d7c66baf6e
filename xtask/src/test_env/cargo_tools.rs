//! Cargo's subcommands: two from crates of their own, two from the toolchain.

use anyhow::{Context, Result};

use super::Provided;
use crate::command::{self, Version, cargo};

/// A subcommand that `cargo install` gets.
pub(super) struct Tool {
    subcommand: &'static str,
    package: &'static str,
    good_enough: Version,
    /// What is installed where there is none, or an older one than `good_enough`.
    pinned: &'static str,
}

pub(super) const NEXTEST: Tool =
    Tool { subcommand: "nextest", package: "cargo-nextest", good_enough: Version(0, 9, 100), pinned: "0.9.143" };

pub(super) const DENY: Tool =
    Tool { subcommand: "deny", package: "cargo-deny", good_enough: Version(0, 18, 0), pinned: "0.20.2" };

impl Tool {
    pub(super) fn provide(&self) -> Result<Provided> {
        if let Some(version) = self.version().filter(|found| *found >= self.good_enough) {
            return Ok(Provided::tool(format!("{version}, as found")));
        }
        let Self { package, pinned, .. } = self;
        command::run(cargo().args(["install", "--locked", package, "--version", pinned]))
            .and_then(|()| self.version().context("installed, but cargo does not find it"))
            .with_context(|| {
                format!("run `cargo install --locked {package} --version {pinned}` and have cargo's bin folder on PATH")
            })
            .map(|version| Provided::tool(format!("{version}, installed in cargo's bin folder")))
    }

    fn version(&self) -> Option<Version> {
        command::output(cargo().args([self.subcommand, "--version"])).ok().and_then(|text| Version::find(&text))
    }
}

/// A component of the toolchain; nothing but rustup can add one.
pub(super) fn component(subcommand: &str, name: &str) -> Result<Provided> {
    command::output(cargo().args([subcommand, "--version"]))
        .map(Provided::tool)
        .with_context(|| format!("run `rustup component add {name}`"))
}
