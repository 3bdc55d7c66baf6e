//! The reverse proxies that a benchmark compares ours with.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Place, Provided, apt};
use crate::command::{self, Version, on_path};

/// A program that is Debian's package of the same name.
pub(super) struct Proxy {
    name: &'static str,
    var: &'static str,
    /// The oldest that understands the benchmark's configuration.
    good_enough: Version,
}

pub(super) const NGINX: Proxy = Proxy { name: "nginx", var: "BENCH_NGINX", good_enough: Version(1, 20, 0) };
pub(super) const HAPROXY: Proxy = Proxy { name: "haproxy", var: "BENCH_HAPROXY", good_enough: Version(2, 4, 0) };

/// Starts the unpacked program `NAME` with the libraries that were unpacked beside it.
const LAUNCHER: &str = r#"#!/bin/sh
here=${0%/*}
LD_LIBRARY_PATH=$here
for folder in "$here"/usr/lib/* "$here"/lib/*; do
    LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$folder
done
export LD_LIBRARY_PATH
exec "$here"/usr/sbin/NAME "$@"
"#;

impl Proxy {
    pub(super) fn provide(&self, place: &Place) -> Result<Provided> {
        let (what, program) = match self.found() {
            Some((version, program)) if version >= self.good_enough => (format!("{version}, as found"), program),
            _ => self.install(place).with_context(|| {
                let Self { name, good_enough, .. } = self;
                format!("put {name} {good_enough} or newer on PATH (Debian's package `{name}`)")
            })?,
        };
        Ok(Provided { what, vars: vec![(self.var, program)] })
    }

    /// The one on PATH, or where Debian installs it, which is on root's PATH only.
    fn found(&self) -> Option<(Version, PathBuf)> {
        let program = on_path(self.name).or_else(|| Some(Path::new("/usr/sbin").join(self.name)))?;
        Some((version_of(&program).ok()?, program))
    }

    fn install(&self, place: &Place) -> Result<(String, PathBuf)> {
        let Self { name, good_enough, .. } = self;
        let folder = place.once(name, "Debian's, unpacked with its libraries", |folder| {
            apt::unpack_with_dependencies(name, folder)?;
            let launcher = folder.join(name);
            fs::write(&launcher, LAUNCHER.replace("NAME", name))?;
            fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755))?;
            version_of(&launcher).map(drop).context("the unpacked program does not run")
        })?;
        let program = folder.join(name);
        let version = version_of(&program).context("the unpacked program does not run")?;
        ensure!(version >= *good_enough, "Debian's is {version}, which is too old");
        Ok((format!("{version}, in target/test-env/{name}"), program))
    }
}

fn version_of(program: &Path) -> Result<Version> {
    let text = command::output(Command::new(program).arg("-v"))?;
    version(&text).with_context(|| format!("no version in: {text}"))
}

/// The version in `nginx version: nginx/1.22.1` or `HAProxy version 2.6.12-1 2023/12/16`.
fn version(text: &str) -> Option<Version> {
    Version::find(&text.replace('/', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_both_print() {
        assert_eq!(version("nginx version: nginx/1.22.1"), Some(Version(1, 22, 1)));
        assert_eq!(version("HAProxy version 2.6.12-1+deb12u4 2026/05/07 - a link"), Some(Version(2, 6, 12)));
        assert_eq!(version("nginx"), None);
    }
}
