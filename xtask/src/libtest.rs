//! Tests of one crate under a tool that watches them. Cargo calls it a success when a filter fits no test; here it is not.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{self, cargo};
use crate::test_env::TestEnv;

/// The crate with cells that several threads use without a lock; one of its modules has unsafe code.
const METRICS: &str = "mcpscope-metrics";
/// The crate whose one module with unsafe code maps memory.
const CHAOS: &str = "mcpscope-chaos";
/// A test can pass and yet have touched what it must not. Memcheck runs threads in turn; where one waits for another, the
/// turns must be fair.
const MEMCHECK: &str = "--quiet --error-exitcode=99 --fair-sched=yes \
    --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite";

/// Tries every interleaving, of three preemptions at most, in the tests whose path contains `loom`.
pub(crate) fn loom(root: &Path, _: &TestEnv) -> Result<()> {
    run(
        cargo()
            .current_dir(root)
            .args(["test", "--package", METRICS, "--lib", "--locked"])
            // The flag would have everything else built anew, too. It is not named `loom`, at which tokio builds no more.
            .args(["--target-dir", "target/loom", "loom"])
            .env("RUSTFLAGS", "--cfg mcpscope_loom")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("LOOM_MAX_PREEMPTIONS", "3"),
        &format!("unit tests of {METRICS} whose path contains `loom`, compiled with cfg(mcpscope_loom)"),
    )
}

/// Runs what reaches the modules with unsafe code under valgrind's memcheck.
pub(crate) fn valgrind(root: &Path, env: &TestEnv) -> Result<()> {
    let valgrind = env.path("VALGRIND").context("valgrind was not prepared")?;
    let runner = runner(valgrind)?;
    let tests: [(_, &[&str], _); 3] = [
        (METRICS, &["--lib", "storage::local"], "unit tests in src/storage/local.rs"),
        (METRICS, &["--test", "threads"], "tests in tests/threads.rs"),
        (CHAOS, &["--lib", "helper::mapping"], "unit tests in src/helper/mapping.rs"),
    ];
    for (package, tests, what) in tests {
        run(
            cargo()
                .current_dir(root)
                .args(["test", "--package", package, "--all-features", "--locked", "--config", &runner])
                .args(tests)
                .env("VALGRIND_OPTS", MEMCHECK),
            &format!("{what} of {package}"),
        )?;
    }
    Ok(())
}

/// The program of the integration test `name`, built as the step `tests` builds it.
pub(crate) fn program(root: &Path, name: &str) -> Result<PathBuf> {
    let built = ["test", "--workspace", "--all-features", "--locked", "--no-run", "--test", name];
    let told = command::output(cargo().current_dir(root).args(built).arg("--message-format=json-render-diagnostics"))?;
    program_in(&told, name).with_context(|| format!("cargo built no test `{name}`"))
}

/// What cargo says in JSON that it made of the test `name`.
fn program_in(told: &str, name: &str) -> Option<PathBuf> {
    let made = told.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let its = |made: &serde_json::Value| made["target"]["kind"][0] == "test" && made["target"]["name"] == name;
    made.filter(its).find_map(|made| Some(made["executable"].as_str()?.into()))
}

/// The setting that has cargo start what it built under `program`.
fn runner(program: &Path) -> Result<String> {
    let program = program.to_str().with_context(|| format!("the path {} is not UTF-8", program.display()))?;
    // A list of strings is the same in JSON and in TOML.
    Ok(format!("target.'cfg(all())'.runner = {}", serde_json::json!([program])))
}

/// Runs `cargo test` with our own output; fails also if no test ran, and says that `expected` did not.
fn run(cargo_test: &mut Command, expected: &str) -> Result<()> {
    let line = command::announce(cargo_test);
    let cannot = || format!("`{line}` could not be started");
    let mut child = cargo_test.stdout(Stdio::piped()).spawn().with_context(cannot)?;
    let mut passed = 0;
    for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
        let line = line.context("the output of the tests could not be read")?;
        println!("{line}");
        passed += passed_in(&line).unwrap_or(0);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    ensure!(passed > 0, "`{line}` ran no test; expected: {expected}");
    Ok(())
}

/// The number in `test result: ok. 3 passed; 0 failed; ...`.
fn passed_in(line: &str) -> Option<u32> {
    let results = line.strip_prefix("test result: ")?;
    let passed = results.split([';', '.']).find_map(|part| part.trim().strip_suffix(" passed"))?;
    passed.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_that_passed_are_counted() {
        let cases = [
            (
                "test result: ok. 17 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                Some(17),
            ),
            ("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 17 filtered out; finished in 0.00s", Some(0)),
            ("test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out", Some(1)),
            ("test storage::local::tests::two_instances ... ok", None),
            ("running 3 tests", None),
        ];
        for (line, expected) in cases {
            assert_eq!(passed_in(line), expected, "{line}");
        }
    }

    #[test]
    fn a_program_is_found_in_what_cargo_says() {
        let told = r#"{"target":{"kind":["lib"],"name":"helper"},"executable":"/a"}
{"target":{"kind":["test"],"name":"other"},"executable":"/b"}
{"target":{"kind":["test"],"name":"helper"},"executable":null}
{"target":{"kind":["test"],"name":"helper"},"executable":"/c d"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(program_in(told, "helper"), Some("/c d".into()));
        assert_eq!(program_in(told, "none"), None);
    }

    fn said(script: &str) -> Result<()> {
        run(Command::new("sh").args(["-c", script]), "tests of the moon")
    }

    #[test]
    fn a_run_without_a_test_fails_and_says_what_was_expected() {
        said("echo 'test result: ok. 0 passed; 0 failed'; echo 'test result: ok. 2 passed; 0 failed'").unwrap();
        for nothing in ["true", "echo 'test result: ok. 0 passed; 0 failed; 1 ignored'"] {
            let error = said(nothing).unwrap_err().to_string();
            assert!(error.contains("ran no test; expected: tests of the moon"), "{error}");
        }
    }

    #[test]
    fn a_run_that_fails_fails_whatever_passed() {
        let error = said("echo 'test result: ok. 2 passed; 0 failed'; exit 99").unwrap_err().to_string();
        assert!(error.contains("failed") && error.contains("99"), "{error}");
    }

    #[test]
    fn the_runner_is_a_setting_that_cargo_reads() {
        let config: toml::Table = runner(Path::new("/a b/valgrind")).unwrap().parse().unwrap();
        let runner = &config["target"]["cfg(all())"]["runner"];
        assert_eq!(runner.as_array().unwrap()[0].as_str(), Some("/a b/valgrind"));
    }
}
