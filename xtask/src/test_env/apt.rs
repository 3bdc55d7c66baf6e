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
    unpackable()?;
    with_fresh_lists(|| download(&[package], folder))?;
    extract(folder)
}

/// The same with what it depends on that this machine does not have.
pub(super) fn unpack_with_dependencies(package: &str, folder: &Path) -> Result<()> {
    unpackable()?;
    with_fresh_lists(|| {
        let simulation = command::output(Command::new("apt-get").args([
            "install",
            "--simulate",
            "--no-install-recommends",
            package,
        ]))?;
        let mut packages = to_install(&simulation);
        // It is not among them where it is installed, but cannot be used.
        packages.retain(|dependency| *dependency != package);
        packages.push(package);
        download(&packages, folder)
    })?;
    extract(folder)
}

/// The packages in what `apt-get install --simulate` prints, such as `Inst nginx (1.22.1-9 Debian:12.11/stable [amd64])`.
fn to_install(simulation: &str) -> Vec<&str> {
    simulation.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect()
}

fn unpackable() -> Result<()> {
    ensure!(on_path("apt-get").is_some() && on_path("dpkg").is_some(), "no apt-get and dpkg on this machine");
    Ok(())
}

fn download(packages: &[&str], folder: &Path) -> Result<()> {
    command::run(
        Command::new("apt-get")
            // The user that apt would switch to cannot write to our folder.
            .args(["-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(folder),
    )
}

/// Unpacks the archives in `folder`, and removes them.
fn extract(folder: &Path) -> Result<()> {
    let files: Vec<_> = std::fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    let archives: Vec<_> = files.iter().filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
    ensure!(!archives.is_empty(), "apt-get downloaded no archive");
    for archive in archives {
        command::run(Command::new("dpkg").arg("--extract").arg(archive).arg(folder))?;
        std::fs::remove_file(archive)?;
    }
    Ok(())
}

/// A new machine has no package lists, or old ones: the second try is made with fresh ones.
fn with_fresh_lists(action: impl Fn() -> Result<()>) -> Result<()> {
    action().or_else(|_| {
        command::run(Command::new("apt-get").arg("update"))?;
        action()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_found_in_a_simulation() {
        let simulation = "NOTE: This is only a simulation!\n\
            The following NEW packages will be installed:\n  haproxy liblua5.3-0\n\
            Inst liblua5.3-0 (5.3.6-2 Debian:12.15/oldstable [amd64])\n\
            Inst haproxy [2.6.11] (2.6.12-1+deb12u4 Debian-Security:12/oldstable-security [amd64])\n\
            Conf haproxy (2.6.12-1+deb12u4 Debian-Security:12/oldstable-security [amd64])\n";
        assert_eq!(to_install(simulation), ["liblua5.3-0", "haproxy"]);
    }
}
