//! Valgrind.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Provided, apt};
use crate::command::{self, Version, on_path};

/// Older ones are not known to understand what today's compilers make.
const GOOD_ENOUGH: Version = Version(3, 19, 0);

pub(super) fn provide() -> Result<Provided> {
    let (what, valgrind) = match found() {
        Some((version, valgrind)) => (format!("{version}, as found"), valgrind),
        None => install().with_context(|| {
            format!(
                "put a valgrind {GOOD_ENOUGH} or newer on PATH that works (on Debian it needs the package libc6-dbg)"
            )
        })?,
    };
    Ok(Provided { what, vars: vec![("VALGRIND", valgrind)] })
}

/// It is not unpacked as other programs are: it looks for the symbols of the C library, another package, in /usr/lib/debug
/// and nowhere else.
fn install() -> Result<(String, PathBuf)> {
    apt::install(&["valgrind"])?;
    let (version, valgrind) = found().context("apt-get installed valgrind, but there is none on PATH that works")?;
    Ok((format!("{version}, installed by apt-get"), valgrind))
}

/// The one on PATH, if it is new enough and works: without those symbols it prints its version and can do nothing else.
fn found() -> Option<(Version, PathBuf)> {
    let valgrind = on_path("valgrind")?;
    let version = version(&command::output(Command::new(&valgrind).arg("--version")).ok()?)?;
    (version >= GOOD_ENOUGH && works(&valgrind)).then_some((version, valgrind))
}

fn works(valgrind: &Path) -> bool {
    command::output(Command::new(valgrind).args(["--quiet", "true"])).is_ok()
}

/// The version in `valgrind-3.19.0`.
fn version(text: &str) -> Option<Version> {
    Version::find(text.trim().strip_prefix("valgrind-")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_version_follows_its_name() {
        assert_eq!(version("valgrind-3.19.0\n"), Some(Version(3, 19, 0)));
        assert_eq!(version("valgrind-3.24.0.GIT"), Some(Version(3, 24, 0)));
        assert_eq!(version("3.19.0"), None);
    }
}
