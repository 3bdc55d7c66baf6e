//! Prometheus and its promtool.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Place, Provided, apt};
use crate::command::{Version, on_path, version_of};

const GOOD_ENOUGH: Version = Version(2, 40, 0);

pub(super) fn provide(place: &Place) -> Result<Provided> {
    let found = on_path("prometheus").zip(on_path("promtool"));
    let found = found.and_then(|pair| Some((version_of_both(&pair)?, pair)));
    let (what, (prometheus, promtool)) = match found {
        Some((version, pair)) if version >= GOOD_ENOUGH => (format!("{version}, as found"), pair),
        _ => install(place).with_context(|| {
            format!(
                "put prometheus and promtool {GOOD_ENOUGH} or newer on PATH (Debian's package `prometheus` has both)"
            )
        })?,
    };
    Ok(Provided { what, vars: vec![("E2E_PROMETHEUS", prometheus), ("E2E_PROMTOOL", promtool)] })
}

fn install(place: &Place) -> Result<(String, (PathBuf, PathBuf))> {
    let folder = place.once("prometheus", "Debian's prometheus, unpacked", |folder| {
        apt::unpack("prometheus", folder)?;
        installed(folder).map(drop)
    })?;
    let (version, pair) = installed(&folder)?;
    Ok((format!("{version}, in target/test-env/prometheus"), pair))
}

fn installed(folder: &Path) -> Result<(Version, (PathBuf, PathBuf))> {
    let pair = (folder.join("usr/bin/prometheus"), folder.join("usr/bin/promtool"));
    let version = version_of_both(&pair).context("the unpacked programs do not run")?;
    ensure!(version >= GOOD_ENOUGH, "Debian's is {version}, which is too old");
    Ok((version, pair))
}

/// The older of the two versions.
fn version_of_both((prometheus, promtool): &(PathBuf, PathBuf)) -> Option<Version> {
    Some(version_of(prometheus)?.min(version_of(promtool)?))
}
