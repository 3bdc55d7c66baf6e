//! `cargo xtask soak`: what tests do for a few seconds, for as long as one likes.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::command::{self, cargo};

/// What is tried for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// Many sessions through the HTTP relay
    Proxy,
    /// Random plans, traffic, stops and reloads of the chaos engine, and what must always hold
    Chaos,
}

/// Runs `crates/proxy/tests/soak.rs` for so long.
pub(crate) fn proxy(seconds: u32) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--release", "-p", "mcpscope-proxy", "--test", "soak", "--", "--nocapture"]);
    command::run(command.env("MCPSCOPE_SOAK_SECONDS", seconds.to_string()))
}

/// Runs `crates/chaos/tests/invariants.rs` in rounds, each with a seed of its own, until the time is over; at least once.
/// The first failure ends it, and says how to have it again.
pub(crate) fn chaos(seconds: u32, cases: u32, seed: Option<u64>) -> Result<()> {
    let first = seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    command::run(invariants().arg("--no-run"))?;
    let started = Instant::now();
    for round in 0_u64.. {
        let seed = first.wrapping_add(round);
        let mut test = invariants();
        test.envs([("PROPTEST_CASES", cases.to_string()), ("PROPTEST_RNG_SEED", seed.to_string())]);
        let output = test.output().context("the test could not be started")?;
        if !output.status.success() {
            print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            bail!("seed {seed} fails; again: cargo xtask soak chaos --seconds 0 --cases {cases} --seed {seed}");
        }
        let so_far = u64::from(cases) * (round + 1);
        println!("seed {seed}: {cases} cases held, {so_far} so far in {} s", started.elapsed().as_secs());
        if started.elapsed() >= Duration::from_secs(seconds.into()) {
            break;
        }
    }
    Ok(())
}

fn invariants() -> Command {
    let mut command = cargo();
    command.args(["test", "--release", "-p", "mcpscope-chaos", "--test", "invariants"]);
    command
}
