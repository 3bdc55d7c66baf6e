//! Node.js, and the packages of the npm registry that the tests use.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Place, Provided, apt, expect_file};
use crate::command::{self, Version, on_path, version_of};

/// The MCP packages use `fs.globSync`.
const GOOD_ENOUGH: Version = Version(22, 0, 0);
const PINNED: &str = "node@22.23.3";
const QUIET: [&str; 3] = ["--no-audit", "--no-fund", "--loglevel=error"];

pub(super) fn provide(place: &Place) -> Result<Provided> {
    let found = on_path("node").and_then(|node| Some((version_of(&node)?, node)));
    let (what, node) = match found {
        Some((version, node)) if version >= GOOD_ENOUGH => (format!("{version}, as found"), node),
        _ => {
            let node = install(place).with_context(|| {
                format!("put Node.js {GOOD_ENOUGH} or newer on PATH, or npm, which then installs {PINNED}")
            })?;
            (format!("{PINNED}, in target/test-env/node"), node)
        }
    };
    Ok(Provided { what, vars: vec![("E2E_NODE", node)] })
}

pub(super) fn provide_packages(place: &Place) -> Result<Provided> {
    let manifest = place.wanted("package.json")?;
    let lock = place.wanted("package-lock.json")?;
    let folder = place
        .once("npm", &format!("{manifest}{lock}"), |folder| {
            fs::write(folder.join("package.json"), &manifest)?;
            fs::write(folder.join("package-lock.json"), &lock)?;
            command::run(npm()?.current_dir(folder).args(["ci", "--ignore-scripts"]).args(QUIET))
        })
        .context("`npm ci` must work in a copy of xtask/test-env: check npm and its registry")?;
    Ok(Provided {
        what: "in target/test-env/npm".into(),
        vars: vec![("E2E_NODE_MODULES", folder.join("node_modules"))],
    })
}

/// The npm package `node` carries the program in a package per platform, which its install script fetches.
fn install(place: &Place) -> Result<PathBuf> {
    let folder = place.once("node", PINNED, |folder| {
        // Newer versions of npm run only the install scripts that are named here.
        let manifest = r#"{ "private": true, "allowScripts": { "node": true } }"#;
        fs::write(folder.join("package.json"), manifest)?;
        command::run(npm()?.current_dir(folder).args(["install", PINNED]).args(QUIET))?;
        expect_file(folder.join("node_modules/node/bin/node")).map(drop)
    })?;
    Ok(folder.join("node_modules/node/bin/node"))
}

fn npm() -> Result<Command> {
    if on_path("npm").is_none() {
        apt::install(&["npm"])?;
    }
    Ok(Command::new("npm"))
}
