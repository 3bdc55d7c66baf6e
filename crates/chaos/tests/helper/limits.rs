//! Never more than there is.

use std::time::Instant;

use libtest_mimic::Trial;
use mcpscope_chaos::helper::{Ready, ResourceTarget};
use mcpscope_chaos::{ChaosTarget as _, Ended, Scenario};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::embedding::Program;
use crate::outside::{FAULT, MS, SECOND, apply, helpers, target, wait_for, wait_until};

/// The argument of a program that does random experiments.
pub(crate) const RANDOM: &str = "random";
const EXPERIMENTS: usize = 100;
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn tests(ready: Ready) -> Vec<Trial> {
    let test = |name: &str, test: fn(Ready)| {
        Trial::test(format!("limits::{name}"), move || {
            test(ready);
            Ok(())
        })
    };
    vec![
        test("what_cannot_be_is_refused_and_nothing_is_started", refused),
        test("random_experiments_under_an_address_limit_end_well", |_| {
            let mut program = Program::start(&std::env::current_exe().unwrap(), &[RANDOM, "200", "240"]);
            assert!(program.0.wait().unwrap().success());
        }),
    ]
}

fn refused(ready: Ready) {
    let target = target(ready);
    let told = |scenario, pairs: &[&str]| apply(&target, scenario, pairs, SECOND).unwrap_err().to_string();
    let size = told(Scenario::MemoryPressure, &["size=1TiB"]);
    assert!(size.starts_with("1.0 TiB is wanted: expected at most ") && size.contains(", which is the "), "{size}");
    let cores = told(Scenario::CpuOverload, &["cores=4096"]);
    assert!(cores.starts_with("4096 cores are wanted: expected at most ") && cores.ends_with("may run"), "{cores}");
    let parameter = told(Scenario::MemoryPressure, &["size=much"]);
    assert!(parameter.contains("expected a size from 1 B to 1.0 TiB"), "{parameter}");
    assert_eq!((helpers(), target.progress(FAULT)), (0, Default::default()));
    // It would be over before it began: it is started, and ends.
    apply(&target, Scenario::MemoryPressure, &[], std::time::Duration::ZERO).unwrap();
    let over = wait_for(&target, "it is over", |_| target.left_over(FAULT).is_none());
    assert_eq!(over.ended, None);
}

/// Takes random amounts of memory, up to `most`, in an address space that is limited: as much as there is each time.
pub(crate) fn random(ready: Ready, limit: u64, most: u64) {
    setrlimit(Resource::As, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();
    let target = target(ready);
    let mut random = 88_172_645_463_325_252_u64;
    let (mut refused, mut in_part, mut whole) = (0, 0, 0);
    for _ in 0..EXPERIMENTS {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let wanted = random % most + 1;
        if let Err(error) = apply(&target, Scenario::MemoryPressure, &[&format!("size={wanted}")], 10 * SECOND) {
            assert!(error.to_string().contains(", which is the limit of "), "{wanted}: {error}");
            refused += 1;
            continue;
        }
        let taken = taken(&target, wanted);
        assert!(taken < wanted + 4 * MIB, "{taken} of {wanted}");
        target.undo(FAULT).unwrap();
        assert!(wait_until(2 * SECOND, || target.left_over(FAULT).is_none()), "a helper is still there");
        if taken < wanted { in_part += 1 } else { whole += 1 }
    }
    println!("refused {refused}, in part {in_part}, whole {whole}");
    assert!(refused > 0 && in_part > 0 && whole > 0);
}

/// How much is taken, once it is all of it or no more comes.
fn taken(target: &ResourceTarget, wanted: u64) -> u64 {
    let (mut taken, mut since) = (0, Instant::now());
    let done = wait_until(20 * SECOND, || {
        let progress = target.progress(FAULT);
        if let Some(ended) = progress.ended {
            let Ended::Failed(why) = ended else { panic!("{wanted}: {ended:?}") };
            assert!(why.starts_with("no memory can be taken: "), "{wanted}: {why}");
            return true;
        }
        let now = progress.achieved.map_or(0, |achieved| achieved.achieved as u64);
        if now > taken {
            (taken, since) = (now, Instant::now());
        }
        // It tells ten times a second.
        taken >= wanted || (taken > 0 && since.elapsed() > 250 * MS)
    });
    assert!(done, "{wanted}: {:?}", target.progress(FAULT));
    taken
}
