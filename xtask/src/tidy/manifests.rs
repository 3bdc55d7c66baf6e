//! What every manifest has, and what the workspace's table of dependencies promises.

use toml::{Table, Value};

use super::{Member, Problem, Repo, line_of_key};

const WORKSPACE: &str = "Cargo.toml";
const TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

pub(super) fn check(repo: &Repo) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut manifests = Vec::new();
    for member in &repo.members {
        match parse(repo, &member.manifest()) {
            Ok((text, manifest)) => {
                problems.extend(check_member(member, text, &manifest));
                manifests.push(manifest);
            }
            Err(problem) => problems.push(problem),
        }
    }
    match parse(repo, WORKSPACE) {
        Ok((text, workspace)) => problems.extend(check_workspace(text, &workspace, &manifests)),
        Err(problem) => problems.push(problem),
    }
    problems
}

fn parse<'a>(repo: &'a Repo, path: &str) -> Result<(&'a str, Table), Problem> {
    let Some(file) = repo.file(path) else {
        return Err(Problem::new(path, 0, "is not there", "a manifest that git tracks"));
    };
    let manifest = file.text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| file.line_at(span.start));
        Problem::new(path, line, error.message(), "TOML")
    })?;
    Ok((&file.text, manifest))
}

fn check_member(member: &Member, text: &str, manifest: &Table) -> Vec<Problem> {
    let path = member.manifest();
    let mut problems = Vec::new();
    let inherits_lints = manifest.get("lints").is_some_and(inherited);
    for (present, what, expected) in [
        (inherits_lints, "does not inherit the lints", "`workspace = true` under [lints]"),
        (member.description, "no description", "a sentence on what the crate is for"),
        (member.license, "no license", "`license.workspace = true`"),
    ] {
        if !present {
            problems.push(Problem::new(&path, 0, what, expected));
        }
    }
    for (key, value) in dependencies(manifest) {
        if !inherited(value) {
            problems.push(Problem::new(
                &path,
                line_of_key(text, key),
                format!("`{key}` does not come from the workspace"),
                format!("`{key}.workspace = true` and an entry in [workspace.dependencies]"),
            ));
        }
    }
    for dependency in member.dependencies.iter().filter(|d| d.local && !d.versioned) {
        problems.push(Problem::new(
            &path,
            line_of_key(text, &dependency.key),
            format!("`{}` has a path, but no version", dependency.key),
            "both, so that the crate can be published",
        ));
    }
    problems
}

fn check_workspace(text: &str, workspace: &Table, members: &[Table]) -> Vec<Problem> {
    let entries = workspace.get("workspace").and_then(|table| table.get("dependencies")).and_then(Value::as_table);
    let mut problems = Vec::new();
    for (key, entry) in entries.into_iter().flatten() {
        let mut tell = |what: &str, expected: &str| {
            let what = format!("`{key}` {what}");
            problems.push(Problem::new(WORKSPACE, line_of_key(text, key), what, expected));
        };
        let local = entry.get("path").is_some();
        let without_defaults = entry.get("default-features").and_then(Value::as_bool) == Some(false);
        if !local && !without_defaults {
            tell("switches its default features on", "`default-features = false`; a member names what it uses");
        }
        if local && entry.get("version").is_none() {
            tell("has a path, but no version", "both, so that its dependents can be published");
        }
        let used = members.iter().any(|member| dependencies(member).any(|(name, _)| name == key));
        if !local && !used {
            tell("is used by no member", "a user, or the entry removed");
        }
    }
    problems
}

/// Every dependency of a manifest, those for one platform included.
fn dependencies(manifest: &Table) -> impl Iterator<Item = (&String, &Value)> {
    let platforms = manifest.get("target").and_then(Value::as_table);
    let platforms = platforms.into_iter().flat_map(|targets| targets.values()).filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(platforms)
        .flat_map(|table| TABLES.iter().filter_map(|name| table.get(*name)?.as_table()))
        .flatten()
}

fn inherited(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use super::super::testing::expect;
    use super::super::{Dependency, Repo};
    use super::*;

    const SOUND: &str = "[lints]\nworkspace = true\n[dependencies]\nbytes.workspace = true\n";
    const SOUND_WORKSPACE: &str = "[workspace.dependencies]\nbytes = { version = \"1\", default-features = false }\n";

    fn repo(workspace: &str, manifest: &str, member: Member) -> Repo {
        Repo {
            members: vec![member],
            ..Repo::with_files(&[("Cargo.toml", workspace), ("crates/core/Cargo.toml", manifest)])
        }
    }

    #[track_caller]
    fn check_manifest(manifest: &str, expected: &[&str]) {
        expect(&check(&repo(SOUND_WORKSPACE, manifest, Member::sound("core"))), expected);
    }

    #[test]
    fn a_sound_manifest_passes() {
        check_manifest(SOUND, &[]);
    }

    #[test]
    fn lints_are_inherited() {
        let told = &["crates/core/Cargo.toml:0: does not inherit the lints"];
        check_manifest("[dependencies]\nbytes.workspace = true\n", told);
        check_manifest("[lints.rust]\nunsafe_code = \"allow\"\n[dependencies]\nbytes.workspace = true\n", told);
    }

    #[test]
    fn a_member_is_described_and_licensed() {
        let member = Member { description: false, license: false, ..Member::sound("core") };
        expect(
            &check(&repo(SOUND_WORKSPACE, SOUND, member)),
            &["crates/core/Cargo.toml:0: no description", "crates/core/Cargo.toml:0: no license"],
        );
    }

    #[test]
    fn dependencies_come_from_the_workspace() {
        check_manifest(
            &format!("{SOUND}http = \"1\"\n[target.'cfg(unix)'.dev-dependencies]\nrustix = \"1\"\n"),
            &[
                "crates/core/Cargo.toml:5: `http` does not come from the workspace",
                "crates/core/Cargo.toml:7: `rustix` does not come from the workspace",
            ],
        );
    }

    #[test]
    fn path_dependencies_have_a_version() {
        let dependency = Dependency { versioned: false, ..Dependency::normal("mcpscope-x").local() };
        expect(
            &check(&repo(SOUND_WORKSPACE, SOUND, Member::sound("core").on(dependency))),
            &["crates/core/Cargo.toml:0: `mcpscope-x` has a path, but no version"],
        );
        let workspace = format!("{SOUND_WORKSPACE}mcpscope-x = {{ path = \"crates/x\" }}\n");
        expect(
            &check(&repo(&workspace, SOUND, Member::sound("core"))),
            &["Cargo.toml:3: `mcpscope-x` has a path, but no version"],
        );
    }

    #[test]
    fn workspace_entries_are_lean_and_used() {
        let workspace =
            "[workspace.dependencies]\nbytes = \"1\"\nhttp = { version = \"1\", default-features = false }\n";
        expect(
            &check(&repo(workspace, SOUND, Member::sound("core"))),
            &["Cargo.toml:2: `bytes` switches its default features on", "Cargo.toml:3: `http` is used by no member"],
        );
    }

    #[test]
    fn a_manifest_that_is_no_toml_is_told() {
        let problems = check(&repo(SOUND_WORKSPACE, "[lints]\nworkspace = \n", Member::sound("core")));
        assert_eq!((problems[0].path.as_str(), problems[0].line), ("crates/core/Cargo.toml", 2));
    }
}
