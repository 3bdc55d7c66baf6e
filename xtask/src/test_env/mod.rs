//! What the tests and the benchmarks need besides a Rust toolchain: found on this machine if good enough, else installed.
//!
//! Installed things go to `target/test-env`, stamped with what was asked for, so that the next run finds them; cargo's own
//! subcommands go to cargo's folder, where they outlive `cargo clean` and a new clone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::workspace;

mod apt;
mod cargo_tools;
mod chromium;
mod cxx;
mod node;
mod prometheus;
mod proxies;
mod python;
mod uml;
mod valgrind;

/// One thing that a step or a benchmark cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    Rustfmt,
    Clippy,
    CargoNextest,
    CargoDeny,
    CxxCompiler,
    Node,
    NpmPackages,
    Python,
    Prometheus,
    Chromium,
    Valgrind,
    Uml,
    Nginx,
    Haproxy,
}

impl Need {
    const OF_TESTS: [Self; 12] = [
        Self::Rustfmt,
        Self::Clippy,
        Self::CargoNextest,
        Self::CargoDeny,
        Self::CxxCompiler,
        Self::Node,
        Self::NpmPackages,
        Self::Python,
        Self::Prometheus,
        Self::Chromium,
        Self::Valgrind,
        Self::Uml,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Rustfmt => "rustfmt",
            Self::Clippy => "clippy",
            Self::CargoNextest => "cargo-nextest",
            Self::CargoDeny => "cargo-deny",
            Self::CxxCompiler => "C++ compiler",
            Self::Node => "node",
            Self::NpmPackages => "npm packages",
            Self::Python => "python",
            Self::Prometheus => "prometheus",
            Self::Chromium => "chromium",
            Self::Valgrind => "valgrind",
            Self::Uml => "user-mode linux",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// Finds or installs it. The error says how to get it by hand.
    fn provide(self, place: &Place) -> Result<Provided> {
        match self {
            Self::Rustfmt => cargo_tools::component("fmt", "rustfmt"),
            Self::Clippy => cargo_tools::component("clippy", "clippy"),
            Self::CargoNextest => cargo_tools::NEXTEST.provide(),
            Self::CargoDeny => cargo_tools::DENY.provide(),
            Self::CxxCompiler => cxx::provide(),
            Self::Node => node::provide(place),
            Self::NpmPackages => node::provide_packages(place),
            Self::Python => python::provide(place),
            Self::Prometheus => prometheus::provide(place),
            Self::Chromium => chromium::provide(),
            Self::Valgrind => valgrind::provide(),
            Self::Uml => uml::provide(place),
            Self::Nginx => proxies::NGINX.provide(place),
            Self::Haproxy => proxies::HAPROXY.provide(place),
        }
    }
}

/// What was found or installed: words for the log, and the variables that tell the steps and their tests where it is.
struct Provided {
    what: String,
    vars: Vec<(&'static str, PathBuf)>,
}

impl Provided {
    fn tool(what: impl Into<String>) -> Self {
        Self { what: what.into(), vars: Vec::new() }
    }
}

/// The folders that installers read from and write to.
struct Place {
    /// `xtask/test-env`: what is wanted, by version.
    wanted: PathBuf,
    /// `target/test-env`: what was installed.
    installed: PathBuf,
}

impl Place {
    /// The folder `installed/name`, filled by `install` unless an earlier run filled it for the same `wanted`.
    fn once(&self, name: &str, wanted: &str, install: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let folder = self.installed.join(name);
        let stamp = folder.join(".installed");
        if fs::read_to_string(&stamp).is_ok_and(|done| done == wanted) {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("the outdated {} could not be removed", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("{} could not be created", folder.display()))?;
        install(&folder)?;
        // Last, so that an interrupted install is begun anew.
        fs::write(&stamp, wanted).with_context(|| format!("{} could not be written", stamp.display()))?;
        Ok(folder)
    }

    /// The text of the file `xtask/test-env/name`.
    fn wanted(&self, name: &str) -> Result<String> {
        let file = self.wanted.join(name);
        fs::read_to_string(&file).with_context(|| format!("{} could not be read", file.display()))
    }
}

/// Everything that was prepared, and why the rest could not be.
pub(crate) struct TestEnv {
    vars: BTreeMap<&'static str, PathBuf>,
    missing: BTreeMap<Need, String>,
}

impl TestEnv {
    /// Finds or installs each of `needs`; what could not be had is told by [`Self::complete`] and [`Self::require`].
    pub(crate) fn prepare(root: &Path, needs: impl Iterator<Item = Need>) -> Self {
        let place = Place { wanted: root.join("xtask/test-env"), installed: root.join("target/test-env") };
        let mut env = Self { vars: BTreeMap::new(), missing: BTreeMap::new() };
        for need in needs.collect::<BTreeSet<_>>() {
            match need.provide(&place) {
                Ok(provided) => {
                    println!("{:<16} {}", need.name(), provided.what);
                    env.vars.extend(provided.vars);
                }
                Err(error) => {
                    println!("{:<16} MISSING", need.name());
                    env.missing.insert(need, format!("{error:#}"));
                }
            }
        }
        env
    }

    /// Fails with everything that is missing and the way to get each.
    pub(crate) fn complete(&self) -> Result<()> {
        let told: Vec<_> = self.missing.iter().map(|(need, why)| format!("\n  {}: {why}", need.name())).collect();
        ensure!(told.is_empty(), "missing{}", told.concat());
        Ok(())
    }

    /// Fails if one of `needs` is missing.
    pub(crate) fn require(&self, needs: &[Need]) -> Result<()> {
        let lost = needs.iter().filter(|need| self.missing.contains_key(need));
        let names: Vec<_> = lost.map(|need| need.name()).collect();
        ensure!(names.is_empty(), "not run, for want of {} (see setup)", names.join(", "));
        Ok(())
    }

    /// The variables, those for the end-to-end tests among them.
    pub(crate) fn vars(&self) -> &BTreeMap<&'static str, PathBuf> {
        &self.vars
    }

    /// The value of one of them.
    pub(crate) fn path(&self, var: &str) -> Option<&Path> {
        self.vars.get(var).map(PathBuf::as_path)
    }
}

/// `cargo xtask setup`: prepares everything for the tests.
pub(crate) fn setup() -> Result<()> {
    TestEnv::prepare(&workspace::root(), Need::OF_TESTS.into_iter()).complete()
}

/// An installer that reported success must have left `file`.
fn expect_file(file: PathBuf) -> Result<PathBuf> {
    ensure!(file.is_file(), "the installer left no {}", file.display());
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn place(&self) -> Place {
            Place { wanted: self.0.join("wanted"), installed: self.0.join("installed") }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_install_is_repeated_only_when_something_else_is_wanted() {
        let scratch = Scratch::new("once");
        let place = scratch.place();
        let mut installs = 0;
        for wanted in ["a 1", "a 1", "a 2"] {
            let folder = place
                .once("a", wanted, |folder| {
                    assert!(!folder.join("file").exists(), "begun in an empty folder");
                    installs += 1;
                    Ok(fs::write(folder.join("file"), wanted)?)
                })
                .unwrap();
            assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), wanted);
        }
        assert_eq!(installs, 2);
    }

    #[test]
    fn a_failed_install_is_tried_again() {
        let scratch = Scratch::new("again");
        let place = scratch.place();
        place.once("a", "1", |_| anyhow::bail!("no network")).unwrap_err();
        let mut tried = false;
        place
            .once("a", "1", |_| {
                tried = true;
                Ok(())
            })
            .unwrap();
        assert!(tried);
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let missing = [(Need::Node, "get node".into()), (Need::CargoDeny, "get deny".into())];
        let env = TestEnv { vars: BTreeMap::new(), missing: missing.into() };
        let all = env.complete().unwrap_err().to_string();
        assert!(all.contains("node: get node") && all.contains("cargo-deny: get deny"), "{all}");
        let one = env.require(&[Need::Python, Need::Node]).unwrap_err().to_string();
        assert!(one.contains("node") && !one.contains("deny"), "{one}");
        env.require(&[Need::Python]).unwrap();
    }
}
