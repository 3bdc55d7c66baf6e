//! Debian's packages, for what can be had nowhere else.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{self, on_path};

/// Installs `packages` on this machine, which takes Debian and root.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!(
        "install the Debian packages `{0}` (as root: apt-get install {0}), or their like on another system",
        packages.join(" ")
    );
    ensure!(on_path("apt-get").is_some(), "{by_hand}");
    ensure!(command::output(Command::new("id").arg("-u"))? == "0", "{by_hand}");
    with_fresh_lists(|| {
        command::run(
            Command::new("apt-get")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    })
    .context(by_hand)
}

/// Unpacks `package` into `folder` without installing it, so no root is needed and none of its services starts.
pub(super) fn unpack(package: &str, folder: &Path) -> Result<()> {
    ensure!(on_path("apt-get").is_some() && on_path("dpkg").is_some(), "no apt-get and dpkg on this machine");
    with_fresh_lists(|| {
        command::run(
            Command::new("apt-get")
                // The user that apt would switch to cannot write to our folder.
                .args(["-o", "APT::Sandbox::User=root", "download", package])
                .current_dir(folder),
        )
    })?;
    let archive = std::fs::read_dir(folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .with_context(|| format!("apt-get downloaded no archive of {package}"))?;
    command::run(Command::new("dpkg").arg("--extract").arg(&archive).arg(folder))?;
    std::fs::remove_file(&archive)?;
    Ok(())
}

/// A new machine has no package lists, or old ones: the second try is made with fresh ones.
fn with_fresh_lists(action: impl Fn() -> Result<()>) -> Result<()> {
    action().or_else(|_| {
        command::run(Command::new("apt-get").arg("update"))?;
        action()
    })
}
