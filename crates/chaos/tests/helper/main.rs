//! Helpers as a program has them: this one, which calls `run_if_requested` first in its `main`. Time and the system are the
//! subject here, so these tests wait, and look at everything from outside, by `/proc`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]
#![allow(clippy::print_stdout, reason = "figures for those who ask for them, and what the program tells its test")]
#![cfg_attr(not(target_os = "linux"), allow(unused, reason = "helpers need Linux"))]

use mcpscope_chaos::helper;

#[cfg(target_os = "linux")]
mod accuracy;
#[cfg(target_os = "linux")]
mod embedding;
#[cfg(target_os = "linux")]
mod engine;
#[cfg(target_os = "linux")]
mod leaks;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod outside;

#[cfg(target_os = "linux")]
fn main() {
    let ready = helper::run_if_requested();
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(embedding::MARKER) {
        return embedding::main(ready, arguments);
    }
    let mut arguments = libtest_mimic::Arguments::from_args();
    // One after the other: they would disturb each other.
    arguments.test_threads.get_or_insert(1);
    let all = [accuracy::tests, leaks::tests, limits::tests, network::tests, engine::tests].map(|tests| tests(ready));
    libtest_mimic::run(&arguments, all.into_iter().flatten().collect()).exit();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    let refused = helper::ResourceTarget::new(helper::run_if_requested()).unwrap_err();
    assert_eq!(refused.to_string(), "helper processes need Linux");
}
