//! Chromium, for the tests of the page.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Provided, apt};
use crate::command::{Version, on_path, version_of};

/// Its headless mode is the whole browser since 112; some years of margin for what drives it.
const GOOD_ENOUGH: Version = Version(120, 0, 0);
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

pub(super) fn provide() -> Result<Provided> {
    let (what, chromium) = match found() {
        Some((version, chromium)) if version >= GOOD_ENOUGH => (format!("{version}, as found"), chromium),
        _ => install().with_context(|| format!("put Chromium {GOOD_ENOUGH} or newer on PATH"))?,
    };
    Ok(Provided { what, vars: vec![("E2E_CHROMIUM", chromium)] })
}

/// It is not unpacked as other programs are: that would take the hundred libraries that it depends on, too.
fn install() -> Result<(String, PathBuf)> {
    apt::install(&["chromium"])?;
    let (version, chromium) = found().context("apt-get installed chromium, but there is none on PATH that runs")?;
    ensure!(version >= GOOD_ENOUGH, "the installed one is {version}, which is too old");
    Ok((format!("{version}, installed by apt-get"), chromium))
}

/// The newest on PATH that runs.
fn found() -> Option<(Version, PathBuf)> {
    NAMES.into_iter().filter_map(on_path).filter_map(|program| Some((version_of(&program)?, program))).max()
}
