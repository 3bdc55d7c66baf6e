//! A network of the kernel's, or why there is none.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use mcpscope_chaos::helper::{Ready, ResourceTarget};
use mcpscope_chaos::{ChaosTarget as _, Ended, Network, Parameters, ProtectedNames, Scenario};
use rustix::process::{Pid, Signal, kill_process};

use crate::outside::{FAULT, MS, SECOND, apply, apply_silent, helpers, order, target, wait_for, wait_until};

pub(crate) fn tests(ready: Ready) -> Vec<Trial> {
    let test = |name: &str, test: fn(Ready)| {
        Trial::test(format!("network::{name}"), move || {
            test(ready);
            Ok(())
        })
    };
    vec![
        test("packets_are_late_or_it_is_said_what_is_lacking", late),
        test("delays_are_as_likely_anywhere_between_the_least_and_the_most", spread),
        test("packets_are_lost_and_counted", lost),
        test("it_is_gone_with_its_helper", gone),
        test("it_has_failed_when_its_helper_does_not_answer", silent),
        test("nobody_waits_for_the_end_of_one_that_says_nothing", unwaited),
    ]
}

/// Whether the kernel has what it takes; if not, that is told, with what to do about it, and nothing is left.
fn is_there(ready: Ready, scenario: Scenario, pairs: &[&str]) -> bool {
    let target = target(ready);
    let parameters = Parameters::from_pairs(pairs.iter().copied()).unwrap();
    let checked = target.probe(scenario, &parameters);
    assert!(wait_until(SECOND, || helpers() == 0), "a helper is left of trying");
    let Err(why) = checked else { return true };
    println!("only the refusal is tried: {why}");
    apply(&target, scenario, pairs, SECOND).unwrap();
    let network = target.network(FAULT).unwrap();
    target.wait_until_begun(FAULT);
    let why = why.to_string();
    assert_eq!(target.progress(FAULT).ended, Some(Ended::Failed(why.clone())));
    assert!(why.starts_with("backend=netem needs ") && why.ends_with(", or backend=message"), "{why}");
    assert!(why.contains("modprobe -a sch_netem") || why.contains("(sysctl)") || why.contains("CONFIG_"), "{why}");
    assert!(!network.is_up() && network.pair().is_err());
    assert!(wait_until(SECOND, || helpers() == 0), "something was half started");
    false
}

/// One that is there.
fn made(target: &ResourceTarget, scenario: Scenario, pairs: &[&str], duration: Duration) -> Arc<dyn Network> {
    apply(target, scenario, pairs, duration).unwrap();
    let network = target.network(FAULT).unwrap();
    target.wait_until_begun(FAULT);
    assert!(network.is_up(), "{:?}", target.progress(FAULT));
    network
}

/// Sends `bytes` one way, and says how long they took.
fn takes(network: &dyn Network, bytes: usize) -> Duration {
    let [mut near, mut far] = network.pair().unwrap();
    near.set_nonblocking(false).unwrap();
    far.set_nonblocking(false).unwrap();
    far.set_read_timeout(Some(40 * SECOND)).unwrap();
    near.set_write_timeout(Some(40 * SECOND)).unwrap();
    let (sent, data) = (Instant::now(), vec![7; bytes]);
    let mut got = vec![0; bytes];
    std::thread::scope(|scope| {
        scope.spawn(|| near.write_all(&data).unwrap());
        far.read_exact(&mut got).unwrap();
    });
    assert_eq!(got, data);
    sent.elapsed()
}

fn late(ready: Ready) {
    let pairs = ["backend=netem", "delay=80ms"];
    if !is_there(ready, Scenario::LatencyInjection, &pairs) {
        return;
    }
    let target = target(ready);
    let network = made(&target, Scenario::LatencyInjection, &pairs, 20 * SECOND);
    for _ in 0..3 {
        let took = takes(&*network, 10);
        assert!((80 * MS..200 * MS).contains(&took), "{took:?}");
    }
    let packets = wait_for(&target, "packets are counted", |progress| progress.packets.is_some_and(|it| it.sent >= 6));
    assert_eq!(packets.packets.unwrap().dropped, 0);
    target.undo(FAULT).unwrap();
    assert!(!network.is_up() && network.pair().is_err());
    assert!(wait_until(SECOND, || helpers() == 0));
}

fn spread(ready: Ready) {
    // Less than after which TCP sends again.
    let pairs = ["backend=netem", "min=20ms", "max=180ms"];
    if !is_there(ready, Scenario::LatencyInjection, &pairs) {
        return;
    }
    let target = target(ready);
    let network = made(&target, Scenario::LatencyInjection, &pairs, 60 * SECOND);
    let all: Vec<_> = std::thread::scope(|scope| {
        let some = || (0..50).map(|_| takes(&*network, 10)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(some)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let quarter = |number: u32| {
        let from = 20 * MS + number * 40 * MS;
        all.iter().filter(|took| (from..from + 40 * MS).contains(*took)).count()
    };
    let quarters = [0, 1, 2, 3].map(quarter);
    println!("{quarters:?} of {}: {:?} on average", all.len(), all.iter().sum::<Duration>() / all.len() as u32);
    // Four deviations of a quarter of 400, and what is late for other reasons.
    assert!(quarters.iter().all(|some| (60..=140).contains(some)), "{quarters:?}");
    target.undo(FAULT).unwrap();
}

fn lost(ready: Ready) {
    for pairs in [
        &["backend=netem", "intensity=0.1", "model=bernoulli"][..],
        // Long bursts take long where little else is sent.
        &["backend=netem", "intensity=0.1", "model=gilbert_elliott", "burst=2"],
    ] {
        if !is_there(ready, Scenario::PacketLoss, pairs) {
            return;
        }
        let target = target(ready);
        let network = made(&target, Scenario::PacketLoss, pairs, 60 * SECOND);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| takes(&*network, 40_000));
            }
        });
        let progress = wait_for(&target, "packets are counted", |progress| {
            progress.packets.is_some_and(|it| it.sent + it.dropped > 200)
        });
        let packets = progress.packets.unwrap();
        println!("{pairs:?}: {packets:?}");
        let lost = packets.lost().unwrap();
        assert!((0.02..0.25).contains(&lost), "{packets:?}");
        target.undo(FAULT).unwrap();
        assert!(wait_until(SECOND, || helpers() == 0));
    }
}

fn silent(ready: Ready) {
    let pairs = ["backend=netem", "intensity=0.1"];
    if !is_there(ready, Scenario::PacketLoss, &pairs) {
        return;
    }
    let target = target(ready);
    let network = made(&target, Scenario::PacketLoss, &pairs, 20 * SECOND);
    let pid = target.progress(FAULT).process.unwrap().pid;
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::STOP).unwrap();
    assert_eq!(network.pair().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert!(!network.is_up());
    let ended = target.progress(FAULT).ended;
    assert!(matches!(&ended, Some(Ended::Failed(why)) if why.contains("made no connection within 2 s")), "{ended:?}");
    assert!(wait_until(SECOND, || helpers() == 0));
}

/// Also where the kernel has no network: this one says nothing before that is known.
fn unwaited(ready: Ready) {
    let target = target(ready);
    let (parameters, protected) = (Parameters::from_pairs(["backend=netem"]).unwrap(), ProtectedNames::default());
    let order = order(Scenario::PacketLoss, &parameters, &protected, 20 * SECOND);
    let pid = apply_silent(&target, &order).unwrap();
    let began = Instant::now();
    target.undo(FAULT).unwrap();
    let waited = began.elapsed();
    assert!(waited < 50 * MS, "{waited:?}");
    assert_eq!(target.left_over(FAULT), Some(format!("the helper process {pid} is still there")));
    assert!(wait_until(SECOND, || target.left_over(FAULT).is_none()), "it was not ended hard");
    assert!(began.elapsed() >= 100 * MS, "it had no time for its last words");
    assert_eq!((target.progress(FAULT).ended, helpers()), (None, 0));
}

fn gone(ready: Ready) {
    let pairs = ["backend=netem", "intensity=0.1"];
    if !is_there(ready, Scenario::PacketLoss, &pairs) {
        return;
    }
    let target = target(ready);
    let network = made(&target, Scenario::PacketLoss, &pairs, 20 * SECOND);
    let pid = target.progress(FAULT).process.unwrap().pid;
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    assert!(wait_until(SECOND, || !network.is_up()));
    assert!(network.pair().is_err());
    let ended = wait_for(&target, "its end is told", |progress| progress.ended.is_some()).ended;
    assert!(matches!(&ended, Some(Ended::Failed(why)) if why.contains("ended before its time")), "{ended:?}");
    // One that has its time ends by itself.
    apply(&target, Scenario::PacketLoss, &pairs, SECOND / 2).unwrap();
    assert!(wait_until(2 * SECOND, || helpers() == 0));
    assert_eq!(target.progress(FAULT).ended, None);
}
