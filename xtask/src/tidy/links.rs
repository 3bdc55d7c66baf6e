//! What a document links to, or shows as a picture, is there.

use super::{Problem, Repo};

pub(super) fn check(repo: &Repo) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in repo.files.iter().filter(|file| file.path.ends_with(".md")) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (index, line) in file.text.lines().enumerate() {
            let broken = targets(line).filter(|target| !exists(repo, folder, target));
            problems.extend(broken.map(|target| {
                let what = format!("links to `{target}`, which is not there");
                Problem::new(&file.path, index + 1, what, "a file or folder of the tree")
            }));
        }
    }
    problems
}

/// The relative targets of the links on a line, without what leads to a place inside of them.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#', ' ']).next()?;
        (!target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")).then_some(target)
    })
}

fn exists(repo: &Repo, folder: &str, target: &str) -> bool {
    let mut path: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            path.pop();
        } else {
            path.push(part);
        }
    }
    let path = path.join("/");
    repo.paths.contains(&path) || repo.paths.iter().any(|other| other.starts_with(&format!("{path}/")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::expect;
    use super::*;

    #[test]
    fn links_lead_somewhere() {
        let readme = "[a](docs/a.md#part) ![b](docs/b.png) [c](https://c.example/x) [d](docs) [e](#here)\n[x](docs/x.png) [y](y)";
        let repo = Repo::with_files(&[
            ("README.md", readme),
            ("docs/a.md", "[up](../README.md) [beside](./b.png) [gone](../b.png)"),
            ("docs/b.png", ""),
        ]);
        expect(
            &check(&repo),
            &[
                "README.md:2: links to `docs/x.png`, which is not there",
                "README.md:2: links to `y`, which is not there",
                "docs/a.md:1: links to `../b.png`, which is not there",
            ],
        );
    }
}
