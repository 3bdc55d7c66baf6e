//! The dashboard's page: what is vendored is what its manifest says, nothing comes from outside, and nothing in it needs
//! more than its Content-Security-Policy allows.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Problem, Repo};

const PAGE: &str = "crates/dashboard/static/";
const VENDOR: &str = "crates/dashboard/static/vendor/";
const MANIFEST: &str = "crates/dashboard/static/vendor/manifest.json";

/// What no file of ours may hold, and why. Vendored code is only run, so there the policy decides.
const REFUSED: &[(&str, &str)] = &[
    ("https://", "everything from the server itself"),
    ("http://", "everything from the server itself"),
    ("innerHTML", "text nodes: what comes from the wire is text"),
    ("outerHTML", "text nodes: what comes from the wire is text"),
    ("insertAdjacentHTML", "text nodes: what comes from the wire is text"),
    ("eval(", "code in modules: the policy allows no other"),
    ("new Function", "code in modules: the policy allows no other"),
    ("<script>", "code in modules: the policy allows no other"),
    ("<style", "rules in style.css: the policy allows no others"),
    (" style=\"", "rules in style.css, or an object set by script: the policy allows no others"),
];
/// Names that are not fetched.
const NAMESPACE: &str = "xmlns=\"http://www.w3.org/2000/svg\"";

pub(super) fn check(repo: &Repo) -> Vec<Problem> {
    let mut problems = vendored(repo);
    for file in repo.files.iter().filter(|file| file.path.starts_with(PAGE) && !file.path.starts_with(VENDOR)) {
        for (index, line) in file.text.lines().enumerate() {
            let line = line.replace(NAMESPACE, "");
            for (refused, expected) in REFUSED.iter().filter(|(refused, _)| line.contains(refused)) {
                problems.push(Problem::new(&file.path, index + 1, format!("holds `{refused}`"), *expected));
            }
        }
    }
    problems
}

/// The files of others, against their manifest. Type declarations are ours.
fn vendored(repo: &Repo) -> Vec<Problem> {
    let mut found: BTreeMap<&str, String> = repo
        .files
        .iter()
        .filter_map(|file| Some((file.path.strip_prefix(VENDOR)?, &file.text)))
        .filter(|(name, _)| *name != "manifest.json" && !name.ends_with(".d.ts"))
        .map(|(name, text)| (name, sha256(text)))
        .collect();
    let Some(manifest) = repo.file(MANIFEST) else {
        let missing = Problem::new(MANIFEST, 0, "is not there", "where each vendored file comes from");
        return if found.is_empty() { Vec::new() } else { vec![missing] };
    };
    let listed: BTreeMap<String, Value> = match serde_json::from_str(&manifest.text) {
        Ok(listed) => listed,
        Err(error) => return vec![Problem::new(MANIFEST, error.line(), error.to_string(), "an entry for each file")],
    };
    let mut problems = Vec::new();
    for (name, entry) in &listed {
        let mut tell = |what: String, expected: &str| problems.push(Problem::new(MANIFEST, 0, what, expected));
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        for key in ["package", "version", "path"].into_iter().filter(|key| text(key).is_empty()) {
            tell(format!("`{name}` has no {key}"), "the package, its version and the path inside it");
        }
        match found.remove(name.as_str()) {
            None => tell(format!("lists `{name}`, which does not exist"), "the files that there are"),
            Some(hash) if hash != text("sha256") => {
                tell(format!("`{name}` has the sha256 {hash}"), "the file as it was vendored");
            }
            Some(_) => {}
        }
    }
    let unlisted =
        found.into_keys().map(|name| Problem::new(MANIFEST, 0, format!("does not list `{name}`"), "all files"));
    problems.extend(unlisted);
    problems
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::expect;
    use super::*;

    #[track_caller]
    fn check_vendored(manifest: &str, expected: &[&str]) {
        let files = [("crates/dashboard/static/vendor/a.js", "a"), ("crates/dashboard/static/vendor/a.d.ts", "x")];
        let files = [files.as_slice(), &[(MANIFEST, manifest)]].concat();
        let told: Vec<_> = expected.iter().map(|what| format!("{MANIFEST}:{what}")).collect();
        expect(&check(&Repo::with_files(&files)), &told.iter().map(String::as_str).collect::<Vec<_>>());
    }

    const HASH: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";

    #[test]
    fn a_vendored_file_is_what_its_manifest_says() {
        let entry =
            |hash: &str| format!(r#"{{"a.js": {{"package": "a", "version": "1", "path": "x", "sha256": "{hash}"}}}}"#);
        check_vendored(&entry(HASH), &[]);
        check_vendored(&entry("00"), &[&format!("0: `a.js` has the sha256 {HASH}")]);
        check_vendored("{}", &["0: does not list `a.js`"]);
        check_vendored(
            &entry(HASH).replacen('{', r#"{"b.js": {"package": "b"}, "#, 1),
            &["0: `b.js` has no version", "0: `b.js` has no path", "0: lists `b.js`, which does not exist"],
        );
        check_vendored("{", &["1: EOF while parsing an object at line 1 column 1"]);
        let alone = Repo::with_files(&[("crates/dashboard/static/vendor/a.js", "a")]);
        expect(&check(&alone), &[&format!("{MANIFEST}:0: is not there")]);
        expect(&check(&Repo::with_files(&[])), &[]);
    }

    #[test]
    fn the_page_is_complete_in_itself() {
        for (path, text, what) in [
            ("index.html", "<script src=\"https://x/y.js\">", "https://"),
            ("index.html", "<script>f()</script>", "<script>"),
            ("index.html", "<p style=\"color: red\">", " style=\""),
            ("a.js", "x.innerHTML = name", "innerHTML"),
            ("a.js", "eval(x)", "eval("),
        ] {
            let path = format!("{PAGE}{path}");
            expect(&check(&Repo::with_files(&[(&path, text)])), &[&format!("{path}:1: holds `{what}`")]);
        }
        let icon = format!("{PAGE}icon.svg");
        expect(&check(&Repo::with_files(&[(&icon, &format!("<svg {NAMESPACE}>"))])), &[]);
    }
}
