//! A process group and its guardian, seen from outside.

#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of an integration test for tests")]

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use mcpscope_chaos::guardian::{Guardian, Guardians, requested};
use mcpscope_chaos::process::{ProcessEntry, ProcessTable, Signal};

/// What other tests here start this program for; no test otherwise.
#[test]
fn guardian() {
    let arguments = std::env::args_os().skip_while(|argument| argument != "--mcpscope-guardian");
    if let Some(duty) = requested(arguments) {
        duty.run();
    }
}

fn guardians() -> Guardians {
    // The harness takes what follows its options for more names of tests.
    Guardians::of("/proc/self/exe", ["--exact", "guardian", "--"].map(Into::into))
}

struct Group {
    leader: Child,
    guardian: Option<Guardian>,
}

impl Group {
    fn of(script: &str) -> Self {
        let leader = Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap();
        let guardian = guardians().guard(leader.id()).unwrap();
        Self { leader, guardian: Some(guardian) }
    }

    fn members(&self) -> Vec<ProcessEntry> {
        let table = ProcessTable::read().unwrap();
        table.group(self.leader.id()).filter(|process| !process.is_zombie).cloned().collect()
    }

    /// Waits until all of the group, so many, are as is wanted.
    fn wait_for(&self, members: usize, is_stopped: bool) {
        eventually(|| {
            let found = self.members();
            found.len() == members && found.iter().all(|process| process.is_stopped == is_stopped)
        });
    }

    fn stop(&self) {
        rustix::process::kill_process_group(self.pid(), Signal::STOP).unwrap();
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(self.leader.id().try_into().unwrap()).unwrap()
    }

    /// Once it watches.
    fn guardian(&mut self) -> &mut Guardian {
        let guardian = self.guardian.as_mut().unwrap();
        eventually(|| ProcessEntry::read(guardian.id()).is_ok_and(|process| process.name == "mcpscope-guard"));
        guardian
    }

    /// Our end of the pipe closes.
    fn abandon(&mut self) -> ExitStatus {
        drop(self.guardian.take());
        self.leader.wait().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        let _ = self.leader.wait();
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
    }
}

#[track_caller]
fn eventually(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not come to be");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn when_we_are_gone_the_group_is_asked_to_end() {
    let mut group = Group::of("trap 'kill $!; exit 7' TERM; sleep 1000 & wait");
    group.wait_for(2, false);
    assert_eq!(group.abandon().code(), Some(7));
    group.wait_for(0, false);
}

#[test]
fn who_does_not_end_is_made_to_and_who_is_stopped_goes_on_first() {
    let mut group = Group::of("trap '' TERM; sleep 1000 & wait; sleep 1000");
    group.wait_for(2, false);
    group.stop();
    group.wait_for(2, true);
    assert_eq!(group.abandon().signal(), Some(Signal::KILL.as_raw()));
    group.wait_for(0, false);
}

#[test]
fn what_is_left_of_a_group_whose_leader_has_ended_ends_too() {
    let mut group = Group::of("sleep 1000 & exec sleep 1000");
    group.wait_for(2, false);
    group.guardian();
    group.leader.kill().unwrap();
    group.leader.wait().unwrap();
    group.wait_for(1, false);
    drop(group.guardian.take());
    group.wait_for(0, false);
}

#[test]
fn one_that_is_stopped_goes_on_when_its_time_is_up() {
    let mut group = Group::of("sleep 1000 & wait");
    group.wait_for(2, false);
    group.guardian().resume_after(Duration::from_secs(1000)).unwrap();
    group.stop();
    group.wait_for(2, true);
    group.guardian().resume_after(Duration::from_millis(1)).unwrap();
    group.wait_for(2, false);
    assert_eq!(group.leader.try_wait().unwrap(), None, "it lives");
}

#[test]
fn a_guardian_that_is_dismissed_leaves_the_group_alone() {
    let mut group = Group::of("sleep 1000 & wait");
    group.wait_for(2, false);
    let guardian = group.guardian.take().unwrap();
    let id = guardian.id();
    guardian.dismiss();
    assert!(ProcessEntry::read(id).is_err(), "it is gone, and its end was waited for");
    assert_eq!(group.leader.try_wait().unwrap(), None);
    group.wait_for(2, false);
}

#[test]
fn a_guardian_keeps_nothing_of_ours() {
    let mut group = Group::of("sleep 1000 & wait");
    let id = group.guardian().id();
    let entry = ProcessEntry::read(id).unwrap();
    assert_eq!(entry.group, id, "a group of its own");
    let link = |name: &str| std::fs::read_link(format!("/proc/{id}/{name}")).unwrap().display().to_string();
    assert!(link("fd/0").starts_with("pipe:"));
    assert_eq!((link("fd/1"), link("fd/2"), link("cwd")), ("/dev/null".into(), "/dev/null".into(), "/".into()));
}

#[test]
fn a_guardian_that_is_gone_is_not_relied_on() {
    let mut group = Group::of("exec sleep 1000");
    let guardian = group.guardian();
    let id = i32::try_from(guardian.id()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), Signal::KILL).unwrap();
    let mut error = None;
    let began = Instant::now();
    while error.is_none() && began.elapsed() < Duration::from_secs(60) {
        error = guardian.resume_after(Duration::from_secs(1)).err();
    }
    assert!(error.is_some());
    assert_eq!(group.leader.try_wait().unwrap(), None);
}

#[test]
fn what_cannot_be_guarded_is_an_error() {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    assert!(guardians().guard(child.id()).is_err(), "nobody has waited for is what it takes");
    let other = Group::of("exec sleep 1000");
    assert!(Guardians::of("/nowhere/at-all", []).guard(other.leader.id()).is_err());
}

#[test]
fn only_the_very_request_makes_a_guardian() {
    let duty = |arguments: &[&str]| requested(arguments.iter().map(Into::into));
    assert!(duty(&["--mcpscope-guardian", "1", "2"]).is_some());
    let others: [&[&str]; 6] = [
        &[],
        &["run", "--mcpscope-guardian", "1", "2"],
        &["--mcpscope-guardian"],
        &["--mcpscope-guardian", "1"],
        &["--mcpscope-guardian", "-1", "2"],
        &["--mcpscope-guardian", "4294967296", "2"],
    ];
    assert!(others.into_iter().all(|arguments| duty(arguments).is_none()));
}
