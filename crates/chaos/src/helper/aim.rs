//! The control group of a server, as the place where a helper takes what it takes: against that group's limits.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::helper::HelperError;
use crate::helper::groups::{Controller, Place};
use crate::process::ProcessEntry;
use crate::target::Victim;

/// What processes are moved by: whoever writes 0 to it moves itself.
const PROCS: &str = "cgroup.procs";

/// The control group in which all of these processes are, if a helper could move to it and would be counted elsewhere than
/// this process is. In a file system that begins at `root`.
pub(super) fn place(root: &Path, victims: &[Victim], controller: Controller) -> Result<Place, HelperError> {
    let found = victims.iter().map(|victim| {
        let place = Place::of(root, Some(victim.process.pid), controller);
        let no_group = || HelperError::NoGroup { server: victim.name.clone(), controller: controller.as_str() };
        Ok((&victim.name, place.ok_or_else(no_group)?))
    });
    let found: Vec<_> = found.collect::<Result<_, HelperError>>()?;
    let (server, place) = found.first().cloned().ok_or(HelperError::NoVictim)?;
    if found.iter().any(|(_, other)| *other != place) {
        let groups: Vec<_> = found.iter().map(|(name, place)| format!("{name} in {}", place.group.display())).collect();
        return Err(HelperError::SeveralGroups { groups: groups.join(", ") });
    }
    let us = Place::of(root, None, controller);
    if us.as_ref().is_some_and(|us| us.counts == place.counts) {
        return Err(HelperError::SharedGroup { server: server.clone(), group: place.counts });
    }
    // In version 2, whoever moves a process must also be allowed to do so in the nearest group that has both.
    let common = us.as_ref().filter(|_| place.is_v2).and_then(|us| common(&us.group, &place.group));
    for folder in std::iter::once(&*place.group).chain(common) {
        let file = folder.join(PROCS);
        if let Err(source) = OpenOptions::new().write(true).open(&file) {
            return Err(HelperError::GroupNotWritable { server: server.clone(), file, is_v2: place.is_v2, source });
        }
    }
    Ok(place)
}

/// The nearest folder that has both.
fn common<'a>(one: &Path, other: &'a Path) -> Option<&'a Path> {
    other.ancestors().find(|folder| one.starts_with(folder))
}

/// Where this process takes what it takes: in its own control group, or in that of others, as long as they are there.
#[derive(Debug)]
pub(super) struct Aim {
    controller: Controller,
    victims: Vec<Victim>,
    group: Option<PathBuf>,
}

impl Aim {
    /// Moves this process to the control group of these; without any it stays where it is.
    pub(super) fn take(victims: Vec<Victim>, controller: Controller) -> Result<Self, HelperError> {
        let root = Path::new("/");
        if victims.is_empty() {
            let group = Place::of(root, None, controller).map(|place| place.counts);
            return Ok(Self { controller, victims, group });
        }
        let place = place(root, &victims, controller)?;
        let not_moved = |source| {
            let server = victims.first().map(|victim| victim.name.clone()).unwrap_or_default();
            HelperError::GroupNotWritable { server, file: place.group.join(PROCS), is_v2: place.is_v2, source }
        };
        OpenOptions::new()
            .write(true)
            .open(place.group.join(PROCS))
            .and_then(|mut procs| procs.write_all(b"0"))
            .map_err(not_moved)?;
        if Place::of(root, None, controller).as_ref() != Some(&place) {
            return Err(not_moved(io::Error::other("it was written, and nothing was moved")));
        }
        let aim = Self { controller, victims, group: Some(place.counts) };
        // From before the move until now they were there: it is their group.
        match aim.lost() {
            Some(why) => Err(HelperError::VictimLost(why)),
            None => Ok(aim),
        }
    }

    pub(super) fn victims(&self) -> &[Victim] {
        &self.victims
    }

    /// The folder of the group whose limits it counts against, where that can be seen.
    pub(super) fn group(&self) -> Option<&Path> {
        self.group.as_deref()
    }

    /// Why there is nothing to aim at any more.
    pub(super) fn lost(&self) -> Option<String> {
        self.victims.iter().find_map(|Victim { name, process }| {
            let entry = ProcessEntry::read(process.pid).ok();
            let is_there = entry.is_some_and(|entry| entry.started == process.started && !entry.is_zombie);
            let place = Place::of(Path::new("/"), Some(process.pid), self.controller);
            let pid = process.pid;
            match place {
                _ if !is_there => Some(format!("process {pid} of {name} has ended, in whose control group it was")),
                Some(place) if Some(&*place.counts) == self.group() => None,
                _ => Some(format!("process {pid} of {name} has left the control group that it was aimed at")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::groups::tests::{HYBRID, V2, tree};
    use crate::target::ProcessId;

    fn victims(pids: &[u32]) -> Vec<Victim> {
        let victim = |pid: &u32| Victim { name: format!("s{pid}"), process: ProcessId { pid: *pid, started: 1 } };
        pids.iter().map(victim).collect()
    }

    /// The folders of the group and of what counts, or why there is none; without the place of the made-up file system.
    fn found(files: &[(&str, &str)], pids: &[u32], controller: Controller) -> Result<(String, String), String> {
        let root = tree(files);
        let without = |text: String| text.replace(&format!("{}/sys/fs/cgroup/", root.path().display()), "");
        match place(root.path(), &victims(pids), controller) {
            Ok(place) => Ok((without(place.group.display().to_string()), without(place.counts.display().to_string()))),
            Err(error) => Err(without(crate::TargetError::of(&error).0)),
        }
    }

    /// We are in /us, 7 and 8 in /a/its, 9 in /a/other.
    const UNIFIED: [(&str, &str); 9] = [
        ("proc/self/mountinfo", V2),
        ("proc/self/cgroup", "0::/us\n"),
        ("proc/7/cgroup", "0::/a/its\n"),
        ("proc/8/cgroup", "0::/a/its\n"),
        ("proc/9/cgroup", "0::/a/other\n"),
        ("sys/fs/cgroup/cgroup.controllers", "memory cpu\n"),
        ("sys/fs/cgroup/us/cgroup.controllers", "memory\n"),
        ("sys/fs/cgroup/a/its/cgroup.controllers", "memory\n"),
        ("sys/fs/cgroup/a/its/cgroup.procs", ""),
    ];
    const ROOT: (&str, &str) = ("sys/fs/cgroup/cgroup.procs", "");

    #[test]
    fn the_group_of_a_server_is_found() {
        let files = [&UNIFIED[..], &[ROOT]].concat();
        let its = Ok(("a/its".to_owned(), "a/its".to_owned()));
        assert_eq!(found(&files, &[7], Controller::Memory), its);
        assert_eq!(found(&files, &[7, 8], Controller::Memory), its);
        let files = [
            ("proc/self/mountinfo", HYBRID),
            ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/us\n0::/\n"),
            ("proc/7/cgroup", "5:cpu,cpuacct:/its\n4:memory:/us/its\n0::/\n"),
            ("sys/fs/cgroup/memory/us/its/cgroup.procs", ""),
            ("sys/fs/cgroup/cpu,cpuacct/its/cgroup.procs", ""),
        ];
        // Version 1 asks for nothing above it.
        let [memory, cpu] = [Controller::Memory, Controller::Cpu].map(|controller| found(&files, &[7], controller));
        assert_eq!(memory, Ok(("memory/us/its".to_owned(), "memory/us/its".to_owned())));
        assert_eq!(cpu, Ok(("cpu,cpuacct/its".to_owned(), "cpu,cpuacct/its".to_owned())));
    }

    #[test]
    fn each_reason_not_to_aim_at_it_is_said() {
        let files = [&UNIFIED[..], &[ROOT]].concat();
        let why = |files: &[(&str, &str)], pids: &[u32], controller| found(files, pids, controller).unwrap_err();
        assert_eq!(why(&files, &[], Controller::Memory), "there is no process to aim at: expected one of a server");
        assert_eq!(
            why(&files, &[7, 9], Controller::Memory),
            "the servers are in different control groups (s7 in a/its, s9 in a/other): \
             expected target_processes to name one of them"
        );
        // Of the processors nothing is counted below the root.
        let shared = why(&files, &[7], Controller::Cpu);
        assert!(shared.starts_with("s7 has no control group of its own: mcpscope is counted in "), "{shared}");
        assert_eq!(
            why(&[UNIFIED[0], UNIFIED[1]], &[7], Controller::Cpu),
            "no control group that counts the cpu of s7 can be seen here: expected one"
        );
        // Who moves a process needs both: its new group, and the one above both.
        let cannot = "a helper cannot be moved to the control group of s7: expected to be able to write ";
        let missing = "No such file or directory (os error 2)";
        assert_eq!(why(&UNIFIED, &[7], Controller::Memory), format!("{cannot}cgroup.procs: {missing}"));
        let files = [&UNIFIED[..8], &[ROOT]].concat();
        assert_eq!(why(&files, &[7], Controller::Memory), format!("{cannot}a/its/cgroup.procs: {missing}"));
    }

    #[test]
    fn who_has_ended_is_not_aimed_at_any_more() {
        let pid = std::process::id();
        let started = ProcessEntry::read(pid).unwrap().started;
        let lost = |started, group: Option<&str>| {
            let victims = vec![Victim { name: "us".into(), process: ProcessId { pid, started } }];
            Aim { controller: Controller::Memory, victims, group: group.map(PathBuf::from) }.lost().unwrap_or_default()
        };
        let group = Place::of(Path::new("/"), None, Controller::Memory).map(|place| place.counts);
        let group = group.as_ref().map(|group| group.to_str().unwrap());
        assert!(lost(started + 1, group).ends_with("has ended, in whose control group it was"));
        assert!(lost(started, Some("/elsewhere")).contains(" of us has left the control group"));
        if group.is_some() {
            assert_eq!(lost(started, group), "");
        }
        let stays = Aim::take(Vec::new(), Controller::Memory).unwrap();
        assert_eq!((stays.group().map(|group| group.to_str().unwrap()), stays.lost()), (group, None));
    }
}
