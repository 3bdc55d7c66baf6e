//! Linux: all of it from the files in `/proc` and of the control groups.

mod cgroup;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::param::{clock_ticks_per_second, page_size};

use crate::machine::Process;

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
        // Pages: "size resident shared ...", proc_pid_statm(5).
        let statm = fs::read_to_string(self.root.join("proc/self/statm")).ok()?;
        let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(pages.saturating_mul(page_size() as u64))
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
            parse_stat(&fs::read(path.join("stat")).ok()?)
        });
        Some(processes.filter(|process| groups.contains(&process.group)).collect())
    }
}

/// Reads `/proc/PID/stat`, proc_pid_stat(5).
fn parse_stat(stat: &[u8]) -> Option<Process> {
    let pid = str::from_utf8(stat.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
    // The second field is a name in parentheses, which may itself have spaces and parentheses in it, or be no text.
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    // From the third field on.
    let fields: Vec<&str> = str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace().collect();
    let number = |nth: usize| fields.get(nth - 3)?.parse::<u64>().ok();
    let time = |nth: usize| {
        let ticks = number(nth)?;
        Some(Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second().max(1) as f64))
    };
    Some(Process {
        pid,
        group: u32::try_from(number(5)?).ok()?,
        started: number(22)?,
        resident_bytes: number(24)?.saturating_mul(page_size() as u64),
        cpu: time(14)? + time(15)?,
        waited_for: time(16)? + time(17)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Group, SPIN, until};

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

    #[test]
    fn the_limit_is_at_most_the_memory_of_the_machine() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
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
    fn this_machine_has_a_limit() {
        let system = System::new();
        let (limit, memory) = (system.memory_limit().unwrap(), system.memory().unwrap());
        assert!(0 < limit && limit <= memory, "{limit} {memory}");
        assert!(system.resident_bytes().unwrap() < limit);
    }
}
