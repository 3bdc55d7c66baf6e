//! `cargo xtask test`: the steps, each run whatever became of the ones before it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{self, cargo};
use crate::test_env::{Need, TestEnv};
use crate::{codegen, fuzz, libtest, tidy, workspace};

struct Step {
    name: &'static str,
    about: &'static str,
    needs: &'static [Need],
    run: fn(&Path, &TestEnv) -> Result<()>,
}

/// Features and `--locked` are the same wherever cargo lets us say so, so that the steps share what they build.
const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        about: "rustfmt has nothing to change",
        needs: &[Need::Rustfmt],
        run: |root, _| in_cargo(root, &["fmt", "--all", "--check"]),
    },
    Step {
        name: "clippy",
        about: "no warning in any target",
        needs: &[Need::Clippy],
        run: |root, _| {
            in_cargo(
                root,
                &["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"],
            )
        },
    },
    Step { name: "tidy", about: "layers, invariants and the shape of the tree", needs: &[], run: |_, _| tidy::run() },
    Step {
        name: "codegen",
        about: "the committed code is what the .proto files say",
        needs: &[],
        run: |_, _| codegen::run(true),
    },
    Step {
        name: "buf",
        about: "the .proto files follow buf's rules",
        needs: &[Need::Node, Need::NpmPackages],
        run: buf,
    },
    Step {
        name: "deny",
        about: "bans, licenses and sources of what we depend on",
        needs: &[Need::CargoDeny],
        run: |root, _| in_cargo(root, &["deny", "--locked", "--all-features", "check", "bans", "licenses", "sources"]),
    },
    Step {
        name: "tests",
        about: "unit, property and integration tests",
        needs: &[Need::CargoNextest],
        run: |root, _| in_cargo(root, &["nextest", "run", "--workspace", "--all-features", "--locked"]),
    },
    Step { name: "loom", about: "the cells of the metrics in every interleaving", needs: &[], run: libtest::loom },
    Step {
        name: "valgrind",
        about: "the tests of the unsafe modules, their memory watched",
        needs: &[Need::Valgrind],
        run: libtest::valgrind,
    },
    Step {
        name: "doctests",
        about: "the examples in the documentation",
        needs: &[],
        run: |root, _| {
            in_cargo(root, &["test", "--doc", "--workspace", "--all-features", "--locked", "--no-fail-fast"])
        },
    },
    Step { name: "docs", about: "the documentation builds without a warning", needs: &[], run: docs },
    Step {
        name: "fuzz-corpus",
        about: "every committed fuzz input, once",
        needs: &[Need::CxxCompiler],
        run: |_, _| fuzz::replay(),
    },
    Step {
        name: "e2e",
        about: "the program against software that nobody here wrote",
        needs: &[Need::Node, Need::NpmPackages, Need::Python, Need::Prometheus, Need::Chromium, Need::Uml],
        run: e2e,
    },
];

/// Prints the steps.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:<12} {}", step.name, step.about);
    }
}

/// Runs the steps named in `only`, or all.
pub(crate) fn run(only: &[String]) -> Result<()> {
    let root = workspace::root();
    let steps = selected(only)?;
    heading("setup");
    let started = Instant::now();
    let needs = steps.iter().flat_map(|step| step.needs).copied();
    let env = TestEnv::prepare(&root, needs);
    let mut rows = vec![("setup", env.complete(), started.elapsed())];
    for step in steps {
        heading(step.name);
        let started = Instant::now();
        let done = env.require(step.needs).and_then(|()| (step.run)(&root, &env));
        if let Err(error) = &done {
            eprintln!("error: {error:#}");
        }
        rows.push((step.name, done, started.elapsed()));
    }
    heading("summary");
    summary(&rows)
}

fn selected(only: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = only.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        bail!("there is no step `{unknown}`; `cargo xtask test --list` lists them");
    }
    let wanted = |step: &&Step| only.is_empty() || only.iter().any(|name| name == step.name);
    Ok(STEPS.iter().filter(wanted).collect())
}

fn heading(name: &str) {
    println!("\n==== {name} ====");
}

fn summary(rows: &[(&str, Result<()>, Duration)]) -> Result<()> {
    let mut failed = Vec::new();
    for (name, done, took) in rows {
        let took = took.as_secs_f64();
        match done {
            Ok(()) => println!("ok      {name:<12} {took:>7.1} s"),
            Err(error) => {
                println!("FAILED  {name:<12} {took:>7.1} s  {error:#}");
                failed.push(*name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} steps failed: {}", failed.len(), rows.len(), failed.join(", "));
    }
    Ok(())
}

fn in_cargo(root: &Path, args: &[&str]) -> Result<()> {
    command::run(cargo().current_dir(root).args(args))
}

/// Private items stay out: what a reader of the published documentation cannot follow must warn.
fn docs(root: &Path, _: &TestEnv) -> Result<()> {
    command::run(
        cargo()
            .current_dir(root)
            .args(["doc", "--workspace", "--no-deps", "--all-features", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// The package's own launcher, which starts the program of this platform.
fn buf(root: &Path, env: &TestEnv) -> Result<()> {
    let node = env.path("E2E_NODE").context("Node.js was not prepared")?;
    let packages = env.path("E2E_NODE_MODULES").context("the npm packages were not prepared")?;
    command::run(
        Command::new(node).current_dir(root).arg(packages.join("@bufbuild/buf/bin/buf")).args(["lint", "proto"]),
    )
}

fn e2e(root: &Path, env: &TestEnv) -> Result<()> {
    // In one go, so that what both depend on is built once.
    let peer = ["--package", "mcpscope-test-support", "--features", "mcpscope-test-support/mcp-peer"];
    in_cargo(root, &[&["build", "--locked", "--package", "mcpscope"], &peer[..]].concat())?;
    let programs = workspace::metadata(&root.join("Cargo.toml"))?.target_directory.join("debug");
    // What takes a kernel with netem is tried in one that is a program, too.
    let helper = libtest::program(root, "helper")?;
    let python = env.path("E2E_PYTHON").context("the Python of the tests was not prepared")?;
    let tests = "crates/server/tests/e2e";
    command::run(
        Command::new(python)
            .current_dir(root)
            .args(["-m", "pytest", tests])
            .env("E2E_BIN", programs.join("mcpscope"))
            .env("E2E_MCP_PEER", programs.join("mcp-peer"))
            .env("E2E_CHAOS_HELPER", helper)
            .envs(env.vars()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_every_step_runs() {
        assert_eq!(selected(&[]).unwrap().len(), STEPS.len());
    }

    #[test]
    fn named_steps_run_in_their_own_order() {
        let steps = selected(&["docs".into(), "fmt".into()]).unwrap();
        let names: Vec<_> = steps.iter().map(|step| step.name).collect();
        assert_eq!(names, ["fmt", "docs"]);
    }

    #[test]
    fn an_unknown_step_is_refused() {
        let error = selected(&["lint".into()]).map(|steps| steps.len()).unwrap_err();
        assert!(error.to_string().contains("`lint`"), "{error}");
    }

    #[test]
    fn one_failed_step_fails_the_run_and_is_named() {
        let rows = [("fmt", Err(anyhow::anyhow!("no")), Duration::ZERO), ("docs", Ok(()), Duration::ZERO)];
        let error = summary(&rows).unwrap_err();
        assert_eq!(error.to_string(), "1 of 2 steps failed: fmt");
        summary(&rows[1..]).unwrap();
    }
}
