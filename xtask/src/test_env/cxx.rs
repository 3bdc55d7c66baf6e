//! The C++ compiler that builds libFuzzer.

use anyhow::{Context, Result};

use super::{Provided, apt};
use crate::command::on_path;

pub(super) fn provide() -> Result<Provided> {
    if let Some(found) = on_path("c++") {
        return Ok(Provided::tool(format!("{}, as found", found.display())));
    }
    apt::install(&["g++"])?;
    on_path("c++")
        .map(|_| Provided::tool("g++, installed by apt-get"))
        .context("apt-get installed g++, but there is no c++ on PATH")
}
