//! `cargo xtask fuzz`, and the replay of the committed corpus that the tests do.
//!
//! `fuzz/` is a workspace of its own, built with the sanitizer coverage that stable Rust can switch on. Its targets are
//! the `[[bin]]` entries of `fuzz/Cargo.toml`; the inputs of target T lie in `fuzz/corpus/T/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{self, cargo};
use crate::workspace;

/// What `cargo fuzz` would pass on nightly, without the address sanitizer, which only nightly has.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// An input that takes longer is a finding.
const SECONDS_PER_INPUT: u32 = 10;

/// Fuzzes `target`, or each target, for `seconds`.
pub(crate) fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    let fuzz = Fuzz::load(&workspace::root())?;
    let targets: Vec<&str> = match target {
        None => fuzz.targets.iter().map(String::as_str).collect(),
        Some(name) => {
            ensure!(
                fuzz.targets.contains(name),
                "there is no fuzz target `{name}`; the [[bin]] entries of fuzz/Cargo.toml are: {}",
                fuzz.targets.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
            );
            vec![name]
        }
    };
    ensure!(!targets.is_empty(), "there is nothing to fuzz: add a [[bin]] entry to fuzz/Cargo.toml");
    let programs = fuzz.build()?;
    for target in targets {
        fuzz.fuzz(&programs, target, seconds)?;
    }
    Ok(())
}

/// Feeds every committed input to its target once.
pub(crate) fn replay() -> Result<()> {
    let fuzz = Fuzz::load(&workspace::root())?;
    let corpora = folders(&fuzz.folder.join("corpus"))?;
    if fuzz.targets.is_empty() && corpora.is_empty() {
        println!("no fuzz targets: fuzz/Cargo.toml has no [[bin]] entry");
        return Ok(());
    }
    same_names(&fuzz.targets, &corpora)?;
    let programs = fuzz.build()?;
    for target in &fuzz.targets {
        fuzz.replay(&programs, target)?;
    }
    Ok(())
}

struct Fuzz {
    folder: PathBuf,
    targets: BTreeSet<String>,
}

impl Fuzz {
    fn load(root: &Path) -> Result<Self> {
        let folder = root.join("fuzz");
        let manifest = folder.join("Cargo.toml");
        let text =
            fs::read_to_string(&manifest).with_context(|| format!("{} could not be read", manifest.display()))?;
        let targets = targets(&text).with_context(|| format!("{} could not be understood", manifest.display()))?;
        Ok(Self { folder, targets })
    }

    /// Builds every target; returns the folder of the programs.
    fn build(&self) -> Result<PathBuf> {
        let triple = host_triple()?;
        let target_dir = self.folder.join("target");
        command::run(
            cargo()
                .current_dir(&self.folder)
                .args(["build", "--release", "--bins", "--target", &triple, "--target-dir"])
                .arg(&target_dir)
                // With an explicit target these reach neither build scripts nor procedural macros.
                .env("RUSTFLAGS", FLAGS)
                .env_remove("CARGO_ENCODED_RUSTFLAGS"),
        )?;
        Ok(target_dir.join(triple).join("release"))
    }

    fn fuzz(&self, programs: &Path, target: &str, seconds: u32) -> Result<()> {
        // libFuzzer adds what it finds to its first folder: not to the committed one.
        let found = self.folder.join("target/corpus").join(target);
        let artifacts = self.folder.join("artifacts").join(target);
        for folder in [&found, &artifacts] {
            fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        }
        let mut command = Command::new(programs.join(target));
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={SECONDS_PER_INPUT}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(&found);
        let committed = self.folder.join("corpus").join(target);
        if committed.is_dir() {
            command.arg(committed);
        }
        command::run(&mut command).with_context(|| {
            format!(
                "fuzz target `{target}` found something: the input is in fuzz/artifacts/{target}/; \
                 once mended, add it to fuzz/corpus/{target}/"
            )
        })
    }

    fn replay(&self, programs: &Path, target: &str) -> Result<()> {
        let inputs = files(&self.folder.join("corpus").join(target))?;
        ensure!(!inputs.is_empty(), "fuzz/corpus/{target}/ is empty: add at least one input");
        println!("{target}: {} inputs", inputs.len());
        // Files given by name are run once each, and nothing is written.
        let done = Command::new(programs.join(target))
            .arg(format!("-timeout={SECONDS_PER_INPUT}"))
            .args(inputs)
            .output()
            .with_context(|| format!("fuzz target `{target}` could not be started"))?;
        if !done.status.success() {
            // Two lines for each input, so it is shown only where it says something.
            eprintln!("{}", String::from_utf8_lossy(&done.stderr));
            bail!("fuzz target `{target}` fails on a committed input, the last that is named above");
        }
        Ok(())
    }
}

/// The names of the `[[bin]]` entries. Read from the text, because cargo refuses a manifest that has none.
fn targets(manifest: &str) -> Result<BTreeSet<String>> {
    let manifest: toml::Table = manifest.parse()?;
    let bins = manifest.get("bin").and_then(toml::Value::as_array);
    bins.into_iter()
        .flatten()
        .map(|bin| {
            let name = bin.get("name").and_then(toml::Value::as_str);
            name.map(str::to_owned).context("a [[bin]] entry has no name")
        })
        .collect()
}

fn host_triple() -> Result<String> {
    let text = command::output(Command::new("rustc").arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host: is this really rustc?")
}

fn same_names(targets: &BTreeSet<String>, corpora: &BTreeSet<String>) -> Result<()> {
    if let Some(target) = targets.difference(corpora).next() {
        bail!("fuzz target `{target}` has no corpus: add at least one input in fuzz/corpus/{target}/");
    }
    if let Some(corpus) = corpora.difference(targets).next() {
        bail!("fuzz/corpus/{corpus}/ belongs to no target: add a [[bin]] entry to fuzz/Cargo.toml, or remove it");
    }
    Ok(())
}

fn folders(folder: &Path) -> Result<BTreeSet<String>> {
    if !folder.is_dir() {
        return Ok(BTreeSet::new());
    }
    let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    Ok(entries
        .iter()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    Ok(entries.iter().map(fs::DirEntry::path).filter(|path| path.is_file()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_targets_are_the_bin_entries() {
        let none = "[package]\nname = \"x\"";
        assert_eq!(targets(none).unwrap(), names(&[]));
        let two = "[[bin]]\nname = \"sse\"\n[[bin]]\nname = \"scan\"";
        assert_eq!(targets(two).unwrap(), names(&["scan", "sse"]));
        targets("[[bin]]\npath = \"targets/scan.rs\"").unwrap_err();
    }

    #[test]
    fn every_target_has_a_corpus_and_every_corpus_a_target() {
        same_names(&names(&["scan", "sse"]), &names(&["scan", "sse"])).unwrap();
        let lost = same_names(&names(&["scan", "sse"]), &names(&["scan"])).unwrap_err();
        assert!(lost.to_string().contains("`sse` has no corpus"), "{lost}");
        let stray = same_names(&names(&["scan"]), &names(&["old", "scan"])).unwrap_err();
        assert!(stray.to_string().contains("corpus/old/ belongs to no target"), "{stray}");
    }
}
