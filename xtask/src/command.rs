//! Starting other programs, with errors that say which one failed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The cargo that runs this xtask, or the one on PATH.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` describes the xtask package in these; build scripts that watch them would run again on every change
    // between a cargo started by hand and one started from here.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(describes_this_package) {
            command.env_remove(name);
        }
    }
    command
}

fn describes_this_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Runs `command` with our own output, after printing its line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = announce(command);
    let status = command.status().with_context(|| format!("`{line}` could not be started"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Prints and returns the line of a command that is about to run.
pub(crate) fn announce(command: &Command) -> String {
    let line = line(command);
    println!("$ {line}");
    line
}

/// What `command` prints on stdout, or on stderr where stdout stays empty (some programs print their version there).
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("`{}` could not be started", line(command)))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{}` failed ({}): {}", line(command), output.status, stderr.trim());
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let text = if stdout.trim().is_empty() { stderr } else { stdout };
    Ok(text.trim().to_owned())
}

/// The file that the shell would start for `name`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The first version number in what `program --version` prints; `None` if it does not run.
pub(crate) fn version_of(program: &Path) -> Option<Version> {
    output(Command::new(program).arg("--version")).ok().and_then(|text| Version::find(&text))
}

/// A version as far as "good enough" goes: the numbers, without pre-release or build parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// The first word of `text` that looks like `1.2` or `v1.2.3-more`.
    pub(crate) fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut numbers = word.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
            let major = numbers.next()?.ok()?;
            let minor = numbers.next()?.ok()?;
            let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
            Some(Self(major, minor, patch))
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    std::iter::once(name).chain(command.get_args()).map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let cases = [
            ("v20.20.2", Some(Version(20, 20, 2))),
            ("Python 3.11.7", Some(Version(3, 11, 7))),
            ("prometheus, version 2.42.0+ds (branch: debian/sid)", Some(Version(2, 42, 0))),
            ("cargo-nextest 0.9 (60fa45f63 2026-08-04)", Some(Version(0, 9, 0))),
            ("no number here, 7 is none", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Version::find(text), expected, "{text}");
        }
    }

    #[test]
    fn a_failing_program_is_named_with_its_own_words() {
        let error = output(Command::new("cargo").arg("no-such-command-of-cargo")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("cargo no-such-command-of-cargo"), "{text}");
        assert!(text.contains("no such command"), "{text}");
    }
}
