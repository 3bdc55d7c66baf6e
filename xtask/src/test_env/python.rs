//! Python and the packages that the end-to-end tests import.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Place, Provided, apt, expect_file};
use crate::command::{self, Version, on_path, version_of};

/// The oldest that the packages support.
const GOOD_ENOUGH: Version = Version(3, 11, 0);

pub(super) fn provide(place: &Place) -> Result<Provided> {
    let base = base()?;
    let version = version_of(&base).context("python3 prints no version")?;
    let requirements = place.wanted("requirements.txt")?;
    // A virtual environment works with the Python that made it, and no other.
    let wanted = format!("{} {version}\n{requirements}", base.display());
    let folder = place.once("venv", &wanted, |folder| install(&base, folder, &requirements)).context(
        "`python3 -m venv` and `pip install -r xtask/test-env/requirements.txt` must work: check pip and its registry",
    )?;
    Ok(Provided {
        what: format!("{version}, with its packages in target/test-env/venv"),
        vars: vec![("E2E_PYTHON", expect_file(folder.join("bin/python"))?)],
    })
}

fn install(base: &Path, folder: &Path, requirements: &str) -> Result<()> {
    command::run(Command::new(base).args(["-m", "venv"]).arg(folder))?;
    let list = folder.join("requirements.txt");
    fs::write(&list, requirements)?;
    command::run(
        Command::new(folder.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(list),
    )
}

/// A Python that is new enough and can make virtual environments.
fn base() -> Result<PathBuf> {
    if let Some(python) = on_path("python3").filter(|python| usable(python)) {
        return Ok(python);
    }
    apt::install(&["python3", "python3-venv"])
        .with_context(|| format!("Python {GOOD_ENOUGH} or newer with its venv module is needed"))?;
    // Debian's, where another on PATH was not good enough.
    [on_path("python3"), Some("/usr/bin/python3".into())]
        .into_iter()
        .flatten()
        .find(|python| usable(python))
        .with_context(|| format!("Debian's python3 is older than {GOOD_ENOUGH}: put a newer one on PATH"))
}

fn usable(python: &Path) -> bool {
    // Debian's python3 alone has venv, but not the ensurepip that it needs.
    let modules = Command::new(python).args(["-c", "import venv, ensurepip"]).output();
    modules.is_ok_and(|done| done.status.success()) && version_of(python).is_some_and(|version| version >= GOOD_ENOUGH)
}
