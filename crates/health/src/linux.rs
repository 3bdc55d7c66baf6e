//! Linux: all of it from the files in `/proc` and of the control groups.

mod cgroup;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::param::{clock_ticks_per_second, page_size};

use crate::machine::Process;
use crate::process::{ProcessReading, cpu_time, max_fds};

/// The system's files.
#[derive(Debug)]
pub(crate) struct System {
    /// The root of the file system.
    root: PathBuf,
}

impl System {
    pub(crate) fn new() -> Self {
        Self::at(Path::new("/"))
    }

    /// As if the file system began at `root`.
    fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The resident memory of this process.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        self.own_memory().map(|(_, resident)| resident)
    }

    /// This process in absolute figures.
    pub(crate) fn this_process(&self) -> Option<ProcessReading> {
        let (virtual_bytes, resident_bytes) = self.own_memory()?;
        let stat = fs::read(self.root.join("proc/self/stat")).ok()?;
        let stat = Stat::parse(&stat)?;
        Some(ProcessReading {
            cpu: cpu_time(),
            resident_bytes,
            virtual_bytes,
            started: self.booted()?.checked_add(stat.time(22)?)?,
            open_fds: self.open_fds(),
            max_fds: max_fds(),
            threads: stat.number(20),
        })
    }

    /// The address space and the resident memory of this process, in bytes.
    fn own_memory(&self) -> Option<(u64, u64)> {
        // Pages: "size resident shared ...", proc_pid_statm(5). Linux 6.18 counts them exactly here, in stat not.
        let statm = fs::read_to_string(self.root.join("proc/self/statm")).ok()?;
        let mut fields = statm.split_ascii_whitespace();
        let mut bytes = || Some(fields.next()?.parse::<u64>().ok()?.saturating_mul(page_size() as u64));
        Some((bytes()?, bytes()?))
    }

    /// The open file descriptors of this process, without the one that it takes to count them.
    fn open_fds(&self) -> Option<u64> {
        let count = fs::read_dir(self.root.join("proc/self/fd")).ok()?.count();
        Some(count.saturating_sub(1) as u64)
    }

    /// When the machine began to run, to the second. Not kept: it moves when the wall clock is set.
    fn booted(&self) -> Option<SystemTime> {
        // "btime 1795362106", proc_stat(5).
        let stat = fs::read_to_string(self.root.join("proc/stat")).ok()?;
        let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// How much memory this process can have at most, in bytes.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        // A group may allow more than there is.
        cgroup::memory_limit(&self.root).into_iter().chain(self.memory()).min()
    }

    /// The memory of the machine, in bytes.
    pub(crate) fn memory(&self) -> Option<u64> {
        // "MemTotal:       16384 kB", proc_meminfo(5).
        let meminfo = fs::read_to_string(self.root.join("proc/meminfo")).ok()?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }

    /// All processes in `groups`; nothing if the system does not list its processes.
    pub(crate) fn processes(&self, groups: &[u32]) -> Option<Vec<Process>> {
        let names = fs::read_dir(self.root.join("proc")).ok()?;
        let processes = names.filter_map(|entry| {
            let path = entry.ok()?.path();
            let _pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
            // By now it may have ended.
            Stat::parse(&fs::read(path.join("stat")).ok()?)?.process()
        });
        Some(processes.filter(|process| groups.contains(&process.group)).collect())
    }
}

/// The fields of `/proc/PID/stat`, numbered as in proc_pid_stat(5).
struct Stat<'a> {
    pid: u32,
    /// From the third on.
    fields: Vec<&'a str>,
}

impl<'a> Stat<'a> {
    fn parse(stat: &'a [u8]) -> Option<Self> {
        let pid = str::from_utf8(stat.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
        // The second field is a name in parentheses, which may itself have spaces and parentheses in it, or be no text.
        let name_end = stat.iter().rposition(|byte| *byte == b')')?;
        let fields = str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace().collect();
        Some(Self { pid, fields })
    }

    fn number(&self, nth: usize) -> Option<u64> {
        self.fields.get(nth - 3)?.parse().ok()
    }

    /// A field that is in clock ticks.
    fn time(&self, nth: usize) -> Option<Duration> {
        let ticks = self.number(nth)?;
        Some(Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second().max(1) as f64))
    }

    fn process(&self) -> Option<Process> {
        Some(Process {
            pid: self.pid,
            group: u32::try_from(self.number(5)?).ok()?,
            started: self.number(22)?,
            resident_bytes: self.number(24)?.saturating_mul(page_size() as u64),
            cpu: self.time(14)? + self.time(15)?,
            waited_for: self.time(16)? + self.time(17)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Group, SPIN, until};

    fn parse_stat(stat: &[u8]) -> Option<Process> {
        Stat::parse(stat)?.process()
    }

    fn stat(pid: &str, name: &str) -> String {
        format!(
            "{pid} ({name}) S 1 77 77 0 -1 4194304 98 5 0 0 300 100 2000 500 20 0 1 0 4711 3133440 394 18446744073709551615"
        )
    }

    #[test]
    fn a_name_may_look_like_fields() {
        let second = |n: u64| Duration::from_secs_f64(n as f64 * 100.0 / clock_ticks_per_second() as f64);
        for name in ["sh", "", "tmux: server", ") R 1 1 1 (", "a)(b", "(sd-pam)", "\n"] {
            let expected = Process {
                pid: 42,
                group: 77,
                started: 4711,
                resident_bytes: 394 * page_size() as u64,
                cpu: second(4),
                waited_for: second(25),
            };
            assert_eq!(parse_stat(stat("42", name).as_bytes()), Some(expected), "{name}");
        }
        // A name that is cut off in the middle of a character.
        let mut cut = b"42 (\xc3)".to_vec();
        cut.extend(stat("", "").split_once(')').unwrap().1.bytes());
        assert_eq!(parse_stat(&cut).unwrap().group, 77);
    }

    #[test]
    fn anything_else_is_no_process() {
        for text in ["", "42", "42 (sh)", "42 (sh) S 1", "sh S 1 77", &stat("x", "sh"), &stat("", "sh")] {
            assert_eq!(parse_stat(text.as_bytes()), None, "{text}");
        }
        let whole = stat("42", "sh");
        let resident = whole.find(" 394").unwrap();
        assert_eq!(parse_stat(&whole.as_bytes()[..resident]), None);
    }

    proptest! {
        #[test]
        fn no_text_ends_the_reader(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _process = parse_stat(&text);
        }
    }

    #[test]
    fn a_group_is_found_whole_and_alone() {
        // One of them has a name with all that misleads.
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("a (b) R 1");
        std::os::unix::fs::symlink("/bin/sleep", &odd).unwrap();
        let group = Group::of(&format!("'{}' 1000 & ({SPIN}) & wait", odd.display()));
        let other = Group::of("sleep 1000 & wait");
        group.wait_for(3);
        other.wait_for(2);
        let system = System::new();
        let named = |process: &Process| fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap();
        until(|| system.processes(&[group.pid()]).unwrap().iter().any(|process| named(process) == "a (b) R 1\n"));
        let processes = system.processes(&[group.pid()]).unwrap();
        assert!(processes.iter().all(|process| process.group == group.pid() && process.resident_bytes > 0));
        assert!(processes.iter().any(|process| process.pid == group.pid()));
        assert_eq!(processes.len(), 3);
        assert_eq!(system.processes(&[group.pid(), other.pid()]).unwrap().len(), 5);
        assert_eq!(system.processes(&[]), Some(Vec::new()));
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_limit_is_at_most_the_memory_of_the_machine() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| put(root.path(), path, text);
        let system = System::at(root.path());
        assert_eq!((system.memory_limit(), system.resident_bytes()), (None, None));
        assert_eq!(system.processes(&[1]), None, "there is no /proc");
        put("proc/meminfo", "MemFree:   7 kB\nMemTotal:       2048 kB\nMemAvailable: 8 kB\n");
        assert_eq!(system.memory_limit(), Some(2 << 20));
        put("proc/self/cgroup", "0::/app\n");
        put("proc/self/mountinfo", "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n");
        put("cg/app/memory.max", "1048576\n");
        assert_eq!(system.memory_limit(), Some(1 << 20));
        put("cg/app/memory.max", "4194304\n");
        assert_eq!(system.memory_limit(), Some(2 << 20));
        put("proc/meminfo", "MemTotal: lots\n");
        assert_eq!(system.memory_limit(), Some(4 << 20));
        put("proc/self/statm", "100 25 3 1 0 9 0\n");
        assert_eq!(system.resident_bytes(), Some(25 * page_size() as u64));
    }

    #[test]
    fn this_process_is_in_four_places() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| put(root.path(), path, text);
        let system = System::at(root.path());
        let files = [
            ("proc/self/statm", "765 418 394 5 0 123 0\n"),
            ("proc/self/stat", &stat("42", "a) (b").replace(" 0 1 0 4711", " 0 7 0 4711")),
            ("proc/stat", "cpu  1 2 3\nctxt 7\nbtime 1700000000\nprocesses 9\n"),
        ];
        for (path, text) in files {
            assert_eq!(system.this_process(), None, "without {path}");
            put(path, text);
        }
        let reading = system.this_process().unwrap();
        let pages = |n: u64| n * page_size() as u64;
        assert_eq!((reading.virtual_bytes, reading.resident_bytes), (pages(765), pages(418)));
        let since_boot = Duration::from_secs_f64(4711.0 / clock_ticks_per_second() as f64);
        assert_eq!(reading.started, SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + since_boot);
        assert_eq!((reading.threads, reading.open_fds), (Some(7), None));
        for fd in 0..4 {
            put(&format!("proc/self/fd/{fd}"), "");
        }
        assert_eq!(system.this_process().unwrap().open_fds, Some(3), "one of them reads the folder");

        for (path, text) in [
            ("proc/self/statm", "765\n"),
            ("proc/self/statm", "many 418\n"),
            ("proc/self/stat", "42 (sh) S 1 77"),
            ("proc/stat", "cpu  1 2 3\n"),
            ("proc/stat", "btime never\n"),
            ("proc/stat", "btime 18446744073709551615\n"),
        ] {
            put(path, text);
            assert_eq!(system.this_process(), None, "{path}: {text}");
            for (path, text) in files {
                put(path, text);
            }
            assert!(system.this_process().is_some());
        }
    }

    #[test]
    fn this_machine_has_a_limit() {
        let system = System::new();
        let (limit, memory) = (system.memory_limit().unwrap(), system.memory().unwrap());
        assert!(0 < limit && limit <= memory, "{limit} {memory}");
        assert!(system.resident_bytes().unwrap() < limit);
    }
}
