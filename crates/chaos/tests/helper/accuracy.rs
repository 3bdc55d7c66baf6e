//! What a fault comes to, seen from outside.

use std::time::Instant;

use libtest_mimic::Trial;
use mcpscope_chaos::helper::Ready;
use mcpscope_chaos::{Achieved, ChaosTarget as _, Scenario, Unit};

use crate::outside::{
    FAULT, MS, SECOND, active, anonymous, apply, busy_cores, is_there, ran_and_waited, target, wait_for, wait_until,
};

pub(crate) fn tests(ready: Ready) -> Vec<Trial> {
    let mut all: Vec<_> = [10_u32, 25, 50, 80, 95]
        .into_iter()
        .map(|percent| {
            Trial::test(format!("accuracy::cores_are_busy_{percent}_percent"), move || {
                check_duty(ready, f64::from(percent) / 100.0);
                Ok(())
            })
        })
        .collect();
    all.extend([16_u64, 100, 512].map(|mib| {
        Trial::test(format!("accuracy::{mib}_mib_of_memory_are_taken"), move || {
            check_memory(ready, mib);
            Ok(())
        })
    }));
    all.push(Trial::test("accuracy::no_core_is_taken_whole", move || {
        check_whole(ready);
        Ok(())
    }));
    all
}

/// The share of the cores' time; as asked for where the kernel says that the cores were free, and as reported anywhere.
fn check_duty(ready: Ready, duty: f64) {
    let target = target(ready);
    apply(&target, Scenario::CpuOverload, &[&format!("intensity={duty}")], 10 * SECOND).unwrap();
    let pid = active(&target).pid;
    let figures = || (Instant::now(), ran_and_waited(pid));
    let (start, before) = figures();
    let busy = busy_cores(pid);
    let cores = busy as f64;
    // What is told, and what is seen right after.
    let mut pairs = Vec::new();
    let mut last = target.progress(FAULT).achieved;
    wait_until(2 * SECOND + 200 * MS, || {
        let told = target.progress(FAULT).achieved;
        if told != last {
            last.clone_from(&told);
            let (now, (ran, _)) = figures();
            pairs.push((told.unwrap().achieved, (now - start).as_secs_f64(), ran.as_secs_f64() / cores));
        }
        false
    });
    let (end, after) = figures();
    let there = (end - start).as_secs_f64() * cores;
    let (ran, waited) = ((after.0 - before.0).as_secs_f64() / there, (after.1 - before.1).as_secs_f64() / there);
    let told = last.unwrap();
    println!("duty {duty}: {ran:.4} from outside, told {:.4}, waited for a core {waited:.4}", told.achieved);
    assert_eq!((told.requested, told.unit), (duty, Unit::Share));
    // The helper counts from its own start, which nobody outside knows: the one that fits best. Where this test itself had
    // to wait for a core, what it saw is not what was told, so not all of them count.
    let start = quantile(pairs.iter().map(|(told, at, ran)| at - ran / told), 0.5);
    let difference = quantile(pairs.iter().map(|(told, at, ran)| (told - ran / (at - start)).abs()), 0.25);
    assert!(difference < 0.01, "what is told differs by {difference} from what is seen: {pairs:?}");
    assert!(ran < duty + 0.01, "{ran} of the cores was taken, {duty} was wanted");
    // With a quota for less than all cores there are fewer of these.
    let free = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == busy);
    if free && waited < 0.005 {
        assert!((ran - duty).abs() < 0.01, "{ran} of the cores was taken, {duty} was wanted, and they were free");
    }
}

fn quantile(values: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[(values.len() as f64 * share) as usize]
}

fn check_whole(ready: Ready) {
    let target = target(ready);
    apply(&target, Scenario::CpuOverload, &["intensity=1", "cores=1"], 10 * SECOND).unwrap();
    let pid = active(&target).pid;
    let (start, before) = (Instant::now(), ran_and_waited(pid).0);
    wait_until(SECOND, || false);
    let ran = (ran_and_waited(pid).0 - before).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(ran < 0.96, "{ran} of a core was taken");
    let Some(Achieved { requested, achieved, .. }) = target.progress(FAULT).achieved else { panic!() };
    assert!(requested == 1.0 && achieved < 0.96, "{achieved} of {requested}");
}

fn check_memory(ready: Ready, mib: u64) {
    let wanted = (mib << 20) as f64;
    let target = target(ready);
    apply(&target, Scenario::MemoryPressure, &[&format!("size={mib}MiB")], 10 * SECOND).unwrap();
    let process = active(&target);
    let is_all = |bytes: f64| (bytes / wanted - 1.0).abs() < 0.02;
    let progress = wait_for(&target, "all of it is taken", |progress| {
        progress.achieved.as_ref().is_some_and(|achieved| is_all(achieved.achieved))
    });
    let seen = anonymous(process.pid);
    println!("{mib} MiB: {seen} B seen, told {progress:?}");
    assert!(is_all(seen as f64), "{seen} B are taken, {wanted} were wanted");
    assert_eq!(progress.achieved.map(|achieved| (achieved.requested, achieved.unit)), Some((wanted, Unit::Bytes)));
    target.undo(FAULT).unwrap();
    assert!(wait_until(2 * SECOND, || !is_there(process) && target.left_over(FAULT).is_none()));
}
