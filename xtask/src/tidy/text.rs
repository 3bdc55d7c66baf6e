//! What no file may hold: trailing whitespace, hosts of package registries, folders of one machine.

use super::{Problem, Repo};

/// Clients know their registry; a file that names one cannot be used with another. Written apart, so that this file
/// passes its own check.
const HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("npmjs", ".org"),
    concat!("npmjs", ".com"),
    concat!("pypi", ".org"),
    concat!("python", "hosted.org"),
    concat!("deb", ".debian"),
    concat!("debian", ".org"),
    concat!("proxy.", "golang"),
];

const FOLDERS: &[&str] = &[
    concat!("/", "work/"),
    concat!("/", "root/"),
    concat!("/", "home/"),
    concat!("/", "farm/"),
    concat!("/", "Users/"),
];

pub(super) fn check(repo: &Repo) -> Vec<Problem> {
    let mut problems = Vec::new();
    // Fuzz inputs are bytes, not text, even where they happen to be UTF-8.
    for file in repo.files.iter().filter(|file| !file.path.starts_with("fuzz/corpus/")) {
        // Cargo writes its registry into its lock files whatever we do.
        let cargo_lock = file.path.rsplit('/').next() == Some("Cargo.lock");
        for (index, line) in file.text.lines().enumerate() {
            let mut tell = |what: String, expected: &str| {
                problems.push(Problem::new(&file.path, index + 1, what, expected));
            };
            if line.ends_with([' ', '\t']) {
                tell("trailing whitespace".into(), "none");
            }
            if let Some(host) = HOSTS.iter().find(|host| !cargo_lock && line.contains(**host)) {
                tell(format!("names the registry host `{host}`"), "the ordinary client and a package's name");
            }
            if let Some(folder) = FOLDERS.iter().find(|folder| names_folder(line, folder)) {
                tell(
                    format!("names the folder `{folder}` of one machine"),
                    "a relative path, or /path/to in an example",
                );
            }
        }
    }
    problems
}

/// Whether `line` holds `folder` as the beginning of an absolute path.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let inside_a_path = line[..at].ends_with(|c: char| c.is_alphanumeric() || "_.-/*}>".contains(c));
        let goes_on = line[at + folder.len()..].starts_with(|c: char| c.is_alphanumeric() || "._-$<{".contains(c));
        !inside_a_path && goes_on
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::expect;
    use super::*;

    #[track_caller]
    fn check_text(path: &str, text: &str, expected: &[&str]) {
        expect(&check(&Repo::with_files(&[(path, text)])), expected);
    }

    #[test]
    fn trailing_whitespace_is_told() {
        check_text("a.md", "a\nb \n", &["a.md:2: trailing whitespace"]);
        check_text("fuzz/corpus/scan/a", "b \n", &[]);
    }

    #[test]
    fn registry_hosts_are_told_except_in_cargos_own_lock_files() {
        for host in HOSTS {
            let line = format!("url = \"https://x.{host}/y\"");
            let told = format!("a.toml:1: names the registry host `{host}`");
            check_text("a.toml", &line, &[&told]);
            check_text("fuzz/Cargo.lock", &line, &[]);
        }
    }

    #[test]
    fn folders_of_one_machine_are_told() {
        for folder in FOLDERS {
            let told = format!("a.sh:1: names the folder `{folder}` of one machine");
            check_text("a.sh", &format!("cat {folder}x"), &[&told]);
            check_text("a.sh", &format!("cat \"{folder}.y\""), &[&told]);
            check_text("a.sh", &format!("cat target{folder}x http://h{folder}x a {folder} b"), &[]);
        }
    }
}
