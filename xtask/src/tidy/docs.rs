//! Documentation names the crates that there are, and all of them.

use super::{Member, Problem, Repo};

const MAP: [&str; 2] = ["README.md", "docs/architecture.md"];
const REQUIRED: [&str; 5] = ["README.md", "docs/architecture.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

pub(super) fn check(repo: &Repo) -> Vec<Problem> {
    let missing = REQUIRED.iter().filter(|path| repo.file(path).is_none());
    let mut problems: Vec<_> = missing.map(|path| Problem::new(*path, 0, "is not there", "the file")).collect();
    problems.extend(unknown_crates(repo));
    problems.extend(unnamed_crates(repo));
    problems
}

/// Crates that a document names, but that do not exist.
fn unknown_crates(repo: &Repo) -> Vec<Problem> {
    let exists = |name: &Named<'_>| repo.members.iter().any(|member| name.means(member));
    let mut problems = Vec::new();
    let documents = repo.files.iter().filter(|file| {
        let path = &file.path;
        let place = path == "README.md" || path.starts_with("docs/") || path.starts_with("crates/");
        place && path.ends_with(".md")
    });
    for file in documents {
        for (index, line) in file.text.lines().enumerate() {
            // A document may say what comes with a later issue, if it says so.
            if line.split(|c: char| !c.is_alphabetic()).any(|word| word.eq_ignore_ascii_case("later")) {
                continue;
            }
            for name in named(line).filter(|name| !exists(name)) {
                problems.push(Problem::new(
                    &file.path,
                    index + 1,
                    format!("names `{}`, which does not exist", name.text()),
                    "a crate of the workspace, or the word \"later\" on the line",
                ));
            }
        }
    }
    problems
}

/// Crates that no document names.
fn unnamed_crates(repo: &Repo) -> Vec<Problem> {
    let crates = repo.members.iter().filter(|member| member.folder.starts_with("crates/"));
    crates
        .filter(|member| {
            !MAP.iter()
                .filter_map(|path| repo.file(path))
                .any(|file| file.text.lines().flat_map(named).any(|name| name.means(member)))
        })
        .map(|member| {
            Problem::new(
                "docs/architecture.md",
                0,
                format!("does not name `{}`", member.folder),
                format!("what {} is for, here or in README.md", member.name),
            )
        })
        .collect()
}

/// A crate as documents name it.
enum Named<'a> {
    /// `mcpscope-core`
    Package(&'a str),
    /// The `core` of `crates/core`
    Folder(&'a str),
}

impl Named<'_> {
    fn means(&self, member: &Member) -> bool {
        match self {
            Self::Package(package) => member.name == *package,
            Self::Folder(folder) => member.folder.strip_prefix("crates/") == Some(folder),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Package(package) => (*package).to_owned(),
            Self::Folder(folder) => format!("crates/{folder}"),
        }
    }
}

fn named(line: &str) -> impl Iterator<Item = Named<'_>> {
    // The name that follows the prefix at `at`; `crates/*` and `mcpscope-*` name no crate.
    let name_after = |at: usize, prefix: &str| {
        let inside_a_word = line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "-_./".contains(c));
        let after = &line[at + prefix.len()..];
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        let name = after[..end.unwrap_or(after.len())].trim_end_matches('-');
        (!inside_a_word && name.starts_with(|c: char| c.is_ascii_alphabetic())).then_some(name)
    };
    let packages = line.match_indices("mcpscope-").filter_map(move |(at, prefix)| {
        let name = name_after(at, prefix)?;
        Some(Named::Package(&line[at..at + prefix.len() + name.len()]))
    });
    let folders =
        line.match_indices("crates/").filter_map(move |(at, prefix)| name_after(at, prefix).map(Named::Folder));
    packages.chain(folders)
}

#[cfg(test)]
mod tests {
    use super::super::testing::expect;
    use super::*;

    #[track_caller]
    fn check_architecture(text: &str, expected: &[&str]) {
        let others = REQUIRED.iter().filter(|path| **path != "docs/architecture.md");
        let mut files: Vec<_> = others.map(|path| (*path, "")).collect();
        files.push(("docs/architecture.md", text));
        let repo =
            Repo { members: vec![Member::sound("core"), Member::sound("test-support")], ..Repo::with_files(&files) };
        expect(&check(&repo), expected);
    }

    const BOTH: &str = "`mcpscope-core` and `crates/test-support/src`";

    #[test]
    fn every_crate_is_named() {
        check_architecture(BOTH, &[]);
        check_architecture(
            "`mcpscope-core-extra` comes later, `crates/test-support`",
            &["docs/architecture.md:0: does not name `crates/core`"],
        );
    }

    #[test]
    fn every_named_crate_exists() {
        check_architecture(
            &format!("{BOTH}\n`mcpscope-hub`\ncrates/hub/src"),
            &[
                "docs/architecture.md:2: names `mcpscope-hub`, which does not exist",
                "docs/architecture.md:3: names `crates/hub`, which does not exist",
            ],
        );
        check_architecture(&format!("{BOTH}\n`mcpscope-hub` comes later\n`crates/*`, mcpscope-*, mcpscope_up"), &[]);
    }

    #[test]
    fn the_files_that_a_reader_expects_are_there() {
        let problems = check(&Repo::with_files(&[("README.md", ""), ("docs/architecture.md", "")]));
        let told = ["CHANGELOG.md:0: is not there", "LICENSE-MIT:0: is not there", "LICENSE-APACHE:0: is not there"];
        expect(&problems, &told);
    }
}
