//! `cargo xtask tidy`: the layers, every invariant of `docs/architecture.md` that a manifest or a text can show, and the
//! shape of the tree.
//!
//! Each check is a pure function from a [`Repo`] to [`Problem`]s, so that its tests need no files.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata};

use crate::{command, workspace};

mod assets;
mod docs;
mod layers;
mod links;
mod manifests;
mod rust_text;
mod sources;
mod text;

/// Everything that the checks look at.
#[derive(Default)]
struct Repo {
    members: Vec<Member>,
    files: Vec<TextFile>,
    /// Every file, those that are no text included.
    paths: BTreeSet<String>,
}

/// A package of the workspace.
#[derive(Default)]
struct Member {
    name: String,
    /// From the top of the tree: `crates/core`.
    folder: String,
    description: bool,
    license: bool,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    /// The name of the package, whatever the member calls it.
    name: String,
    /// What the member calls it.
    key: String,
    kind: DependencyKind,
    optional: bool,
    local: bool,
    versioned: bool,
}

/// A file that git tracks or would track.
struct TextFile {
    path: String,
    text: String,
}

/// One thing to mend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    /// 0 where it is about the whole file.
    line: usize,
    what: String,
    expected: String,
    /// Told, but the check passes.
    warning: bool,
}

impl Problem {
    fn new(path: impl Into<String>, line: usize, what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: path.into(), line, what: what.into(), expected: expected.into(), warning: false }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.warning { "warning: " } else { "" };
        write!(f, "{mark}{}:{}: {}, expected {}", self.path, self.line.max(1), self.what, self.expected)
    }
}

impl Repo {
    fn load(root: &Path) -> Result<Self> {
        let paths = paths(root)?;
        let text = |path: &String| {
            // One that is not UTF-8 is no text.
            Some(TextFile { text: fs::read_to_string(root.join(path)).ok()?, path: path.clone() })
        };
        Ok(Self {
            members: members(root, &workspace::metadata(&root.join("Cargo.toml"))?),
            files: paths.iter().filter_map(text).collect(),
            paths,
        })
    }

    fn file(&self, path: &str) -> Option<&TextFile> {
        self.files.iter().find(|file| file.path == path)
    }

    fn rust_files(&self) -> impl Iterator<Item = &TextFile> {
        self.files.iter().filter(|file| file.path.ends_with(".rs") && !file.generated())
    }
}

impl Member {
    fn manifest(&self) -> String {
        format!("{}/Cargo.toml", self.folder)
    }

    /// The last part of its folder, by which `docs/architecture.md` and the checks call it.
    fn short_name(&self) -> &str {
        self.folder.rsplit('/').next().unwrap_or(&self.folder)
    }
}

impl TextFile {
    /// The crate whose `src` it lies in; `None` for tests, benches, examples and what is no crate of ours.
    fn library_of(&self) -> Option<&str> {
        let (name, inside) = self.path.strip_prefix("crates/")?.split_once('/')?;
        let test_only =
            inside.split('/').any(|part| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs"));
        (inside.starts_with("src/") && !test_only && name != "test-support").then_some(name)
    }

    fn generated(&self) -> bool {
        self.path.split('/').any(|part| part == "generated")
    }

    /// The number of the line on which byte `at` lies.
    fn line_at(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
    }
}

/// Runs every check and prints what it finds.
pub(crate) fn run() -> Result<()> {
    let repo = Repo::load(&workspace::root())?;
    let checks =
        [layers::check, manifests::check, sources::check, docs::check, links::check, text::check, assets::check];
    let mut problems = checks.map(|check| check(&repo)).concat();
    problems.sort();
    problems.dedup();
    for problem in &problems {
        println!("{problem}");
    }
    let failures = problems.iter().filter(|problem| !problem.warning).count();
    println!("tidy: {} files, {failures} problems", repo.files.len());
    if failures > 0 {
        bail!("the tree is not tidy: {failures} problems");
    }
    Ok(())
}

fn members(root: &Path, metadata: &Metadata) -> Vec<Member> {
    let folder_of = |manifest: &Path| {
        let folder = manifest.parent().unwrap_or(manifest);
        let folder = folder.strip_prefix(root).unwrap_or(folder);
        folder.to_string_lossy().into_owned()
    };
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| Member {
            name: package.name.to_string(),
            folder: folder_of(package.manifest_path.as_std_path()),
            description: package.description.is_some(),
            license: package.license.is_some(),
            dependencies: package
                .dependencies
                .iter()
                .map(|dependency| Dependency {
                    name: dependency.name.clone(),
                    key: dependency.rename.clone().unwrap_or_else(|| dependency.name.clone()),
                    kind: dependency.kind,
                    optional: dependency.optional,
                    local: dependency.path.is_some(),
                    versioned: !dependency.req.comparators.is_empty(),
                })
                .collect(),
        })
        .collect()
}

/// The files that git tracks, or would track if they were added now.
fn paths(root: &Path) -> Result<BTreeSet<String>> {
    let list = command::output(Command::new("git").current_dir(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--deduplicate",
    ]))
    .context("git must be there and the tree a clone: the checks look at what git tracks")?;
    // A deleted file is still listed.
    Ok(list.split('\0').filter(|path| !path.is_empty() && root.join(path).is_file()).map(str::to_owned).collect())
}

/// The first line of a manifest on which `key` is set, for the place of a problem.
fn line_of_key(manifest: &str, key: &str) -> usize {
    let sets_key = |line: &str| {
        let line = line.trim_start_matches('[').trim_end_matches(']').trim();
        let rest = match line.strip_prefix(key) {
            Some(rest) => rest.trim_start(),
            // `[workspace.dependencies.key]`
            None => return line.contains("dependencies.") && line.ends_with(&format!(".{key}")),
        };
        rest.starts_with('=') || rest.starts_with('.')
    };
    manifest.lines().position(sets_key).map_or(0, |index| index + 1)
}

#[cfg(test)]
mod testing {
    //! Small repositories for the tests of the checks.

    use super::*;

    impl Repo {
        pub(super) fn with_files(files: &[(&str, &str)]) -> Self {
            let files = files.iter().map(|&(path, text)| TextFile { path: path.into(), text: text.into() });
            let paths = files.clone().map(|file| file.path).collect();
            Self { files: files.collect(), paths, ..Self::default() }
        }

        pub(super) fn with_members(members: impl Into<Vec<Member>>) -> Self {
            Self { members: members.into(), ..Self::default() }
        }
    }

    impl Member {
        /// A faultless member of `crates/`.
        pub(super) fn sound(short_name: &str) -> Self {
            Self {
                name: format!("mcpscope-{short_name}"),
                folder: format!("crates/{short_name}"),
                description: true,
                license: true,
                dependencies: Vec::new(),
            }
        }

        pub(super) fn on(mut self, dependency: Dependency) -> Self {
            self.dependencies.push(dependency);
            self
        }
    }

    impl Dependency {
        pub(super) fn normal(name: &str) -> Self {
            Self {
                name: name.into(),
                key: name.into(),
                kind: DependencyKind::Normal,
                optional: false,
                local: false,
                versioned: true,
            }
        }

        pub(super) fn dev(name: &str) -> Self {
            Self { kind: DependencyKind::Development, ..Self::normal(name) }
        }

        pub(super) fn local(self) -> Self {
            Self { local: true, ..self }
        }
    }

    /// `problems` as `path:line: what`, for short expectations.
    #[track_caller]
    pub(super) fn expect(problems: &[Problem], expected: &[&str]) {
        let told: Vec<_> = problems.iter().map(|p| format!("{}:{}: {}", p.path, p.line, p.what)).collect();
        assert_eq!(told, expected);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_place_fault_and_remedy() {
        let problem = Problem::new("a.rs", 3, "no x", "an x");
        assert_eq!(problem.to_string(), "a.rs:3: no x, expected an x");
    }

    #[test]
    fn library_sources_are_told_from_tests() {
        let of = |path: &str| {
            let file = TextFile { path: path.into(), text: String::new() };
            file.library_of().map(str::to_owned)
        };
        assert_eq!(of("crates/core/src/lib.rs").as_deref(), Some("core"));
        for other in [
            "crates/core/tests/x.rs",
            "crates/core/benches/x.rs",
            "crates/core/src/tests.rs",
            "crates/core/src/scan/tests/x.rs",
            "crates/test-support/src/lib.rs",
            "xtask/src/main.rs",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn keys_are_found_in_each_way_to_write_them() {
        let manifest =
            "[dependencies]\nserde_json = \"1\"\nserde.workspace = true\n[dependencies.tokio]\nversion = \"1\"\n";
        assert_eq!(line_of_key(manifest, "serde"), 3);
        assert_eq!(line_of_key(manifest, "serde_json"), 2);
        assert_eq!(line_of_key(manifest, "tokio"), 4);
        assert_eq!(line_of_key(manifest, "hyper"), 0);
    }
}
