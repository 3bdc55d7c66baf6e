//! Processes: which there are, which may be touched, and signals that reach the one that is meant and no other.
//!
//! A process id alone names nobody: it may be another's by the time that a signal is sent. A [`Process`] holds on to the one
//! that had the id when it was looked up, by a pidfd where the kernel has them (Linux 5.3), and where it has not by the time at
//! which it started, which is looked at before each signal.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

use rustix::io::Errno;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process_group, test_kill_process_group};

use crate::ProtectedNames;

/// How much the system keeps of a name, in bytes.
const NAME: usize = 15;

/// How much of the arguments of a process is looked at, in bytes: two paths or more.
const ARGUMENTS: u64 = 8 << 10;

/// What the system tells of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessEntry {
    /// Its id.
    pub pid: u32,
    /// Who started it, or has taken it over.
    pub parent: u32,
    /// Its process group: the id of the process that leads it, or did.
    pub group: u32,
    /// When it started, in clock ticks since the system did.
    pub started: u64,
    /// Whether it is stopped by a signal.
    pub is_stopped: bool,
    /// Whether it has ended, and only its parent has not heard of it.
    pub is_zombie: bool,
    /// The name of what it runs, of which the system keeps 15 bytes.
    pub name: String,
    /// What it is called besides, whole: the name of its file, what it was started as, and its script. Only a [`ProcessTable`] has
    /// them.
    pub aliases: Vec<String>,
}

/// The processes that there are at one moment.
#[derive(Clone, Debug, Default)]
pub struct ProcessTable(BTreeMap<u32, ProcessEntry>);

impl FromIterator<ProcessEntry> for ProcessTable {
    fn from_iter<T: IntoIterator<Item = ProcessEntry>>(processes: T) -> Self {
        Self(processes.into_iter().map(|process| (process.pid, process)).collect())
    }
}

/// Why a process group is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Protected {
    /// Nobody leads it any more.
    #[error("process {0} is gone")]
    Gone(
        /// Its id.
        u32,
    ),
    /// It is not one of ours.
    #[error("process {pid} ({name}) was not started by us, who are {us}")]
    Foreign {
        /// Its id.
        pid: u32,
        /// What it runs.
        name: String,
        /// Who we are.
        us: u32,
    },
    /// It does not lead a group of its own: others would be hit.
    #[error("process {pid} is in the process group of {group}: expected one of its own")]
    NoGroup {
        /// Its id.
        pid: u32,
        /// Whose group it is in.
        group: u32,
    },
    /// One that must go on is in it: we, who started us, or the first of all.
    #[error("process {pid} ({name}) is in its process group, and is ours, what we descend from, or the system's first")]
    Ancestor {
        /// Its id.
        pid: u32,
        /// What it runs.
        name: String,
    },
    /// One with a protected name is in it.
    #[error("process {pid} in its process group is called {name}, which is a protected name")]
    Named {
        /// Its id.
        pid: u32,
        /// What it runs.
        name: String,
    },
}

impl ProcessTable {
    /// The processes that there are now.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn read() -> io::Result<Self> {
        let entries = fs::read_dir("/proc")?;
        // One that ends meanwhile is not there.
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(pids.filter_map(|pid| ProcessEntry::read(pid).ok().map(ProcessEntry::with_aliases)).collect())
    }

    /// The process with this id.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<&ProcessEntry> {
        self.0.get(&pid)
    }

    /// All of them, by their ids.
    pub fn iter(&self) -> impl Iterator<Item = &ProcessEntry> {
        self.0.values()
    }

    /// Those in the process group of this one.
    pub fn group(&self, leader: u32) -> impl Iterator<Item = &ProcessEntry> {
        self.0.values().filter(move |process| process.group == leader)
    }

    /// Whether everything in the process group of `leader` may be signalled by the process `us`: it is a child of ours that leads
    /// it, and neither we nor anybody that we descend from, nor the system's first process, nor any with a protected name is in it.
    ///
    /// # Errors
    /// It may not.
    pub fn may_signal(&self, leader: u32, us: u32, protected: &ProtectedNames) -> Result<(), Protected> {
        let process = self.get(leader).ok_or(Protected::Gone(leader))?;
        if process.parent != us || leader == us {
            return Err(Protected::Foreign { pid: leader, name: process.name.clone(), us });
        }
        if process.group != leader {
            return Err(Protected::NoGroup { pid: leader, group: process.group });
        }
        for process in self.group(leader) {
            let pid = process.pid;
            if pid <= 1 || pid == us || self.descends(us, pid) {
                return Err(Protected::Ancestor { pid, name: process.name.clone() });
            }
            let mut names = std::iter::once(&process.name).chain(&process.aliases);
            if let Some(name) = names.find(|name| protected.covers(name)) {
                return Err(Protected::Named { pid, name: name.clone() });
            }
        }
        Ok(())
    }

    /// Whether `pid` descends from `ancestor`.
    fn descends(&self, pid: u32, ancestor: u32) -> bool {
        let parent = |pid: &u32| self.get(*pid).map(|process| process.parent);
        // What was read while it changed may go round in circles.
        std::iter::successors(parent(&pid), parent).take(self.0.len()).any(|pid| pid == ancestor)
    }
}

impl ProcessEntry {
    /// What the system tells of the process with this id.
    ///
    /// # Errors
    /// There is none, or the system does not tell.
    pub fn read(pid: u32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(pid, &stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is of another form"))
    }

    /// "pid (name) state ppid pgrp session ... starttime ...", proc_pid_stat(5); the name may have anything in it.
    fn parse(pid: u32, stat: &[u8]) -> Option<Self> {
        let (open, close) = (stat.iter().position(|byte| *byte == b'(')?, stat.iter().rposition(|byte| *byte == b')')?);
        let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
        let fields: Vec<&str> = std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace().collect();
        // By its number in the manual; the first after the name is the third.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |place: usize| field(place)?.parse::<u64>().ok();
        let id = |place: usize| u32::try_from(number(place)?).ok();
        let state = field(3)?;
        Some(Self {
            pid,
            parent: id(4)?,
            group: id(5)?,
            started: number(22)?,
            is_stopped: state == "T",
            is_zombie: state == "Z",
            name,
            aliases: Vec::new(),
        })
    }

    /// With what else it is called, as far as the system tells: of another user's process it tells less.
    fn with_aliases(self) -> Self {
        let file = fs::read_link(format!("/proc/{}/exe", self.pid)).ok();
        let file = file.as_ref().map(|file| file.to_string_lossy()).unwrap_or_default();
        let mut arguments = Vec::new();
        if let Ok(all) = fs::File::open(format!("/proc/{}/cmdline", self.pid)) {
            // What could be read is enough.
            let _ = all.take(ARGUMENTS).read_to_end(&mut arguments);
        }
        let aliases = aliases(&self.name, &file, &arguments);
        Self { aliases, ..self }
    }
}

/// What a process is called besides its name, by its file (/proc/PID/exe) and its arguments (/proc/PID/cmdline).
fn aliases(name: &str, file: &str, arguments: &[u8]) -> Vec<String> {
    let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    // One that was replaced since is meant, too.
    let file = base(file.strip_suffix(" (deleted)").unwrap_or(file));
    let mut arguments = arguments.split(|byte| *byte == 0).map(|argument| base(&String::from_utf8_lossy(argument)));
    let started_as = arguments.next();
    // A script has the name, and is an argument of what runs it: the second or, behind an option, the third.
    let script = arguments.take(2).find(|argument| name.len() >= NAME && argument.starts_with(name));
    let all = [Some(file), started_as, script].into_iter().flatten();
    all.filter(|alias| !alias.is_empty() && alias != name).collect()
}

/// One process, and no other that may get its id later.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    started: u64,
    /// None on a kernel without them.
    #[cfg(target_os = "linux")]
    fd: Option<OwnedFd>,
}

impl Process {
    /// The process that has this id now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        Self::open_started(pid, ProcessEntry::read(pid)?.started)
    }

    /// The process that has this id, if it started then, in clock ticks since the system did.
    ///
    /// # Errors
    /// There is none.
    pub fn open_started(pid: u32, started: u64) -> io::Result<Self> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        #[cfg(target_os = "linux")]
        let fd = match rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty()) {
            Ok(fd) => Some(fd),
            // An old kernel, or a sandbox that does not know them.
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => None,
            Err(error) => return Err(error.into()),
        };
        let process = Self {
            pid: id,
            started,
            #[cfg(target_os = "linux")]
            fd,
        };
        // After it was opened: from here on it is this one.
        if process.is_there() { Ok(process) } else { Err(Errno::SRCH.into()) }
    }

    /// The same without a pidfd, as on a kernel that has none.
    #[cfg(all(test, target_os = "linux"))]
    fn without_pidfd(self) -> Self {
        Self { fd: None, ..self }
    }

    /// Its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// When it started, in clock ticks since the system did.
    #[must_use]
    pub const fn started(&self) -> u64 {
        self.started
    }

    /// Whether its id is still its own: it runs, or nobody has waited for its end.
    #[must_use]
    pub fn is_there(&self) -> bool {
        ProcessEntry::read(self.pid()).is_ok_and(|process| process.started == self.started)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone, or it is not for us to signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(fd) = &self.fd {
            return Ok(rustix::process::pidfd_send_signal(fd, signal)?);
        }
        if !self.is_there() {
            return Err(Errno::SRCH.into());
        }
        Ok(rustix::process::kill_process(self.pid, signal)?)
    }

    /// Sends a signal to all of the process group that it leads, or led: as long as one of them is there, the number is no
    /// other's. A group whose number is another's by now is not signalled.
    ///
    /// # Errors
    /// Nobody of the group is left, or it is not for us to signal.
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        if !self.is_there() && ProcessEntry::read(self.pid()).is_ok() {
            return Err(Errno::SRCH.into());
        }
        Ok(kill_process_group(self.pid, signal)?)
    }

    /// Whether anybody of the process group that it leads, or led, is there.
    #[must_use]
    pub fn has_group(&self) -> bool {
        test_kill_process_group(self.pid) != Err(Errno::SRCH)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::{Child, Command};

    use proptest::prelude::*;

    use super::*;

    fn entry(pid: u32, parent: u32, group: u32, name: &str) -> ProcessEntry {
        ProcessEntry {
            pid,
            parent,
            group,
            started: 0,
            is_stopped: false,
            is_zombie: false,
            name: name.into(),
            aliases: Vec::new(),
        }
    }

    #[test]
    fn what_the_system_tells_is_read_whatever_the_name_is() {
        let line = b"42 (a) S 1 (x) T 7 40 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 1000 1\n";
        let found = ProcessEntry::parse(42, line).unwrap();
        let name = "a) S 1 (x".to_owned();
        let expected = ProcessEntry {
            pid: 42,
            parent: 7,
            group: 40,
            started: 9876,
            is_stopped: true,
            is_zombie: false,
            name,
            aliases: Vec::new(),
        };
        assert_eq!(found, expected);
        for bad in
            [&b""[..], b"42 a S 1", b"42 (a) S", b"42 )a( S 1 1 1", b"42 (a) S 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 x"]
        {
            assert_eq!(ProcessEntry::parse(42, bad), None);
        }
    }

    #[test]
    fn each_reason_to_leave_a_group_alone_is_said() {
        let us = 10;
        let table = |more: &[ProcessEntry]| -> ProcessTable {
            let ours = [entry(1, 0, 1, "init"), entry(5, 1, 5, "bash"), entry(us, 5, 5, "mcpscope")];
            let child = entry(20, us, 20, "npx");
            ours.into_iter().chain([child]).chain(more.iter().cloned()).collect()
        };
        let protected = ProtectedNames::new(&["post*".into()]);
        let said =
            |table: &ProcessTable, leader| table.may_signal(leader, us, &protected).map_err(|error| error.to_string());
        assert_eq!(said(&table(&[entry(21, 20, 20, "node")]), 20), Ok(()));
        let error = |more: &[ProcessEntry], leader| said(&table(more), leader).unwrap_err();
        assert_eq!(error(&[], 99), "process 99 is gone");
        assert_eq!(error(&[], 5), "process 5 (bash) was not started by us, who are 10");
        assert_eq!(error(&[], us), "process 10 (mcpscope) was not started by us, who are 10");
        assert_eq!(
            error(&[entry(21, us, 5, "x")], 21),
            "process 21 is in the process group of 5: expected one of its own"
        );
        assert!(
            error(&[entry(us, 5, 20, "mcpscope")], 20)
                .starts_with("process 10 (mcpscope) is in its process group, and is ours")
        );
        assert!(error(&[entry(5, 1, 20, "bash")], 20).contains("what we descend from"));
        assert!(error(&[entry(1, 0, 20, "init")], 20).contains("the system's first"));
        let named = error(&[entry(22, 21, 20, "postgres")], 20);
        assert_eq!(named, "process 22 in its process group is called postgres, which is a protected name");
    }

    #[test]
    fn a_long_name_protects_whatever_is_called_so() {
        let long = "language-server-daemon";
        let cut = &long[..NAME];
        assert_eq!(aliases(cut, "/opt/language-server-daemon (deleted)", b"lsd\0--stdio\0"), [long, "lsd"]);
        assert_eq!(aliases("node", "/usr/bin/node", b"bin/language-server-daemon\0x"), [long]);
        for script in [&b"python3\0/opt/language-server-daemon\0"[..], b"python3\0-u\0/opt/language-server-daemon"] {
            assert_eq!(aliases(cut, "/usr/bin/python3.12", script), ["python3.12", "python3", long]);
        }
        assert_eq!(aliases("cat", "/bin/cat", b"cat\0/etc/language-server-daemon\0"), [""; 0], "it only reads it");
        assert_eq!(aliases("kthreadd", "", b""), [""; 0]);
        assert_eq!(aliases("a", "", b"\xff/\xfe\0"), ["\u{fffd}"]);

        let leader = ProcessEntry { aliases: vec!["node".into(), long.into()], ..entry(20, 10, 20, cut) };
        let table: ProcessTable = [entry(10, 1, 10, "mcpscope"), leader].into_iter().collect();
        let protected = ProtectedNames::new(&[long.into()]);
        assert_eq!(table.may_signal(20, 10, &protected), Err(Protected::Named { pid: 20, name: long.into() }));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_table_has_whole_names() {
        let table = ProcessTable::read().unwrap();
        let us = table.get(std::process::id()).unwrap();
        let file = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert!(file.len() > NAME && us.aliases.contains(&file), "{us:?}");
    }

    proptest! {
        /// Made-up process tables, also such as no system has: with circles, orphans and groups across families.
        #[test]
        fn what_must_go_on_is_never_in_a_group_that_may_be_signalled(
            processes in prop::collection::vec((0..30_u32, 0..30_u32, 0..30_u32, prop::bool::weighted(0.1)), 1..40),
            us in 0..30_u32,
            leader in 0..30_u32,
        ) {
            let named = |protected| if protected { "postgres" } else { "node" };
            let table: ProcessTable =
                processes.iter().map(|(pid, parent, group, protected)| entry(*pid, *parent, *group, named(*protected))).collect();
            let may = table.may_signal(leader, us, &ProtectedNames::new(&["postgres".into()]));
            let mut sacred = vec![0, 1, us];
            let mut next = us;
            while let Some(parent) = table.get(next).map(|process| process.parent).filter(|parent| !sacred[3..].contains(parent)) {
                sacred.push(parent);
                next = parent;
            }
            let is_hit = |pid: u32| table.get(pid).is_some_and(|process| process.group == leader);
            if may.is_ok() {
                prop_assert!(!sacred.iter().any(|pid| is_hit(*pid)), "{sacred:?}");
                prop_assert!(table.group(leader).all(|process| process.name != "postgres"));
                let process = table.get(leader).unwrap();
                prop_assert!(process.parent == us && process.group == leader && leader > 1);
            } else {
                let ok = table.get(leader).is_some_and(|process| {
                    process.parent == us && process.group == leader && leader != us
                        && table.group(leader).all(|process| process.name != "postgres")
                        && !sacred.iter().any(|pid| is_hit(*pid))
                });
                prop_assert!(!ok, "{may:?}");
            }
        }
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").process_group(0).spawn().unwrap()
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_signal_reaches_the_process_that_is_meant_with_a_pidfd_and_without() {
        for has_pidfd in [true, false] {
            let mut child = sleeper();
            let process = Process::open(child.id()).unwrap();
            assert!(process.fd.is_some(), "this kernel has pidfds");
            let process = if has_pidfd { process } else { process.without_pidfd() };
            assert!(process.is_there() && process.has_group());
            process.signal(Signal::KILL).unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
            assert!(!process.is_there() && !process.has_group());
            assert!(process.signal(Signal::KILL).is_err());
            assert!(process.signal_group(Signal::KILL).is_err());
        }
    }

    /// The id is another's by now: as if ours had ended and the number been used again.
    #[test]
    fn another_process_with_the_same_id_is_not_touched() {
        let mut decoy = sleeper();
        let started = ProcessEntry::read(decoy.id()).unwrap().started;
        assert!(Process::open_started(decoy.id(), started + 1).is_err());
        let mut stale = Process::open(decoy.id()).unwrap();
        stale.started += 1;
        #[cfg(target_os = "linux")]
        let stale = stale.without_pidfd();
        assert!(stale.signal(Signal::KILL).is_err());
        assert!(stale.signal_group(Signal::KILL).is_err());
        assert_eq!(decoy.try_wait().unwrap(), None, "it lives");
        let table = ProcessTable::read().unwrap();
        let none = ProtectedNames::default();
        assert_eq!(table.may_signal(decoy.id(), std::process::id(), &none), Ok(()), "it is a child of ours");
        assert!(matches!(table.may_signal(decoy.id(), 1, &none), Err(Protected::Foreign { .. })), "and of nobody else");
        assert!(matches!(
            table.may_signal(std::process::id(), std::process::id(), &none),
            Err(Protected::Foreign { .. })
        ));
        decoy.kill().unwrap();
        decoy.wait().unwrap();
    }
}
