//! How much memory may be taken: less than the tightest of all limits has left, by a reserve.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};

use crate::helper::HelperError;
use crate::helper::groups::Groups;

const MIB: u64 = 1 << 20;
/// Version 1 says "no limit" as the largest number of whole pages, which depends on the page; no machine has as much.
const NO_LIMIT: u64 = 1 << 60;
/// What a helper needs for itself of its address space.
const OWN: u64 = 64 * MIB;

/// What there is of memory by one limit, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) what: What,
    pub(super) total: u64,
    pub(super) free: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Machine,
    /// The file that sets it.
    Group(PathBuf),
    AddressSpace,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("the machine's memory"),
            Self::Group(file) => write!(f, "the limit of a control group ({})", file.display()),
            Self::AddressSpace => f.write_str("the limit of the address space (RLIMIT_AS)"),
        }
    }
}

impl Limit {
    /// What is left alone: where it runs out, the system kills.
    pub(super) fn reserve(&self) -> u64 {
        let share = self.total / 100 * 15;
        match self.what {
            What::Machine => share.clamp(512 * MIB, 4096 * MIB),
            What::Group(_) => share.clamp(32 * MIB, 4096 * MIB),
            // Nobody else is in it.
            What::AddressSpace => 8 * MIB,
        }
    }

    /// What may be taken.
    pub(super) fn room(&self) -> u64 {
        self.free.saturating_sub(self.reserve())
    }
}

/// All limits that hold for a process and for those that it starts.
#[derive(Debug)]
pub(super) struct Limits {
    root: PathBuf,
    groups: Groups,
}

impl Limits {
    /// Of this process, in a file system that begins at `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self::in_groups_of(root, None)
    }

    /// Of this process if it were in the control groups of that one.
    pub(super) fn in_groups_of(root: &Path, pid: Option<u32>) -> Self {
        Self { root: root.to_owned(), groups: Groups::of(root, pid) }
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Those of everything but the address space, as they are now.
    pub(super) fn shared(&self) -> Vec<Limit> {
        let v2 = self.groups.v2.iter().flat_map(|folder| {
            ["memory.max", "memory.high"]
                .map(|limit| group(&folder.join(limit), &folder.join("memory.current"), "inactive_file "))
        });
        let v1 = self.groups.v1_memory.iter().map(|folder| {
            let (limit, usage) = (folder.join("memory.limit_in_bytes"), folder.join("memory.usage_in_bytes"));
            group(&limit, &usage, "total_inactive_file ")
        });
        let machine = fs::read_to_string(self.root.join("proc/meminfo")).ok().and_then(|text| machine(&text));
        v2.chain(v1).flatten().chain(machine).collect()
    }

    /// Those of a helper that this process starts.
    fn of_helper(&self) -> Vec<Limit> {
        let mut limits = self.shared();
        limits.extend(address_space(OWN));
        limits
    }

    /// Those of this process.
    pub(super) fn own(&self) -> Vec<Limit> {
        let mut limits = self.shared();
        limits.extend(Own::read().and_then(|own| address_space(own.address_space)));
        limits
    }

    /// How many bytes this share of the tightest limit is.
    pub(super) fn share(&self, share: f64) -> u64 {
        let tightest = self.of_helper().into_iter().map(|limit| limit.total).min();
        (tightest.unwrap_or_default() as f64 * share) as u64
    }

    /// How many of so many bytes a helper would take now, and what keeps it from taking all of them.
    pub(super) fn expected(&self, wanted: u64) -> (u64, Option<String>) {
        let limits = self.of_helper();
        let tightest = limits.iter().min_by_key(|limit| limit.room()).filter(|limit| limit.room() < wanted);
        let told = |limit: &Limit| {
            let [total, free, reserve] = [limit.total, limit.free, limit.reserve()].map(size);
            let why = format!("of {total}, which is {}, {free} is free, and {reserve} stays in reserve", limit.what);
            (limit.room(), Some(why))
        };
        tightest.map_or((wanted, None), told)
    }

    /// Whether a helper may be started to take so many bytes, or less if there is no more.
    pub(super) fn check(&self, wanted: u64) -> Result<(), HelperError> {
        let limits = self.of_helper();
        if !limits.iter().any(|limit| limit.what == What::Machine) {
            return Err(HelperError::UnknownMemory);
        }
        if let Some(limit) = limits.iter().min_by_key(|limit| limit.total).filter(|limit| limit.total < wanted) {
            let (wanted, total) = (size(wanted), size(limit.total));
            return Err(HelperError::TooLarge { wanted, total, limit: limit.what.to_string() });
        }
        match limits.iter().min_by_key(|limit| limit.room()) {
            Some(limit) if limit.room() == 0 => Err(HelperError::NoRoom {
                free: size(limit.free),
                total: size(limit.total),
                reserve: size(limit.reserve()),
                limit: limit.what.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

/// What a control group limits and has; page cache that can go at once is as good as free.
fn group(limit: &Path, usage: &Path, cache: &str) -> Option<Limit> {
    // "max" in version 2 is no number.
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let total = number(limit).filter(|total| *total < NO_LIMIT)?;
    let stat = fs::read_to_string(usage.with_file_name("memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|line| line.strip_prefix(cache)?.parse().ok()).unwrap_or(0);
    let used = number(usage)?.saturating_sub(cache);
    Some(Limit { what: What::Group(limit.to_owned()), total, free: total.saturating_sub(used) })
}

/// Reads `/proc/meminfo`.
fn machine(text: &str) -> Option<Limit> {
    // "MemTotal:       16384 kB", proc_meminfo(5).
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Limit { what: What::Machine, total: bytes("MemTotal:")?, free: bytes("MemAvailable:")? })
}

fn address_space(used: u64) -> Option<Limit> {
    let total = getrlimit(Resource::As).current?;
    Some(Limit { what: What::AddressSpace, total, free: total.saturating_sub(used) })
}

/// What this process has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) address_space: u64,
    /// Resident, and of no file.
    pub(super) anonymous: u64,
}

impl Own {
    pub(super) fn read() -> Option<Self> {
        // Pages: "size resident shared ...", proc_pid_statm(5).
        let statm = fs::read_to_string("/proc/self/statm").ok()?;
        let mut fields = statm.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
        let mut next = || fields.next().flatten();
        let (size, resident, shared) = (next()?, next()?, next()?);
        let bytes = |pages: u64| pages.saturating_mul(page_size() as u64);
        Some(Self { address_space: bytes(size), anonymous: bytes(resident.saturating_sub(shared)) })
    }
}

pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::helper::groups::tests::{HYBRID, V2, tree};

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n");
    const GIB: u64 = 1 << 30;

    fn limits(files: &[(&str, &str)]) -> Vec<(u64, u64)> {
        let root = tree(&[&[MEMINFO], files].concat());
        Limits::new(root.path()).shared().into_iter().map(|limit| (limit.total, limit.free)).collect()
    }

    #[test]
    fn every_limit_of_every_ancestor_counts() {
        let group = [("proc/self/cgroup", "0::/a/b\n"), ("proc/self/mountinfo", V2)];
        let machine = (16 * GIB, 8 * GIB);
        assert_eq!(limits(&group), [machine]);
        let files = [
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.high", "1000\n"),
            ("sys/fs/cgroup/a/b/memory.current", "400\n"),
            ("sys/fs/cgroup/a/b/memory.stat", "anon 5\ninactive_file 100\n"),
            ("sys/fs/cgroup/a/memory.max", "500\n"),
            ("sys/fs/cgroup/a/memory.current", "600\n"),
        ];
        assert_eq!(limits(&[&group[..], &files].concat()), [(1000, 700), (500, 0), machine]);
        let files = [
            ("proc/self/cgroup", "4:memory:/y\n0::/\n"),
            ("proc/self/mountinfo", HYBRID),
            ("sys/fs/cgroup/memory/y/memory.limit_in_bytes", "2000\n"),
            ("sys/fs/cgroup/memory/y/memory.usage_in_bytes", "900\n"),
            ("sys/fs/cgroup/memory/y/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n"),
        ];
        assert_eq!(limits(&files), [(2000, 1400), machine]);
    }

    #[test]
    fn what_is_too_much_is_told_with_the_limit() {
        let check = |files: &[(&str, &str)], wanted| {
            let group = [("proc/self/cgroup", "0::/a\n"), ("proc/self/mountinfo", V2), MEMINFO];
            let root = tree(&[&group, files].concat());
            Limits::new(root.path()).check(wanted).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[], 100 * MIB), Ok(()));
        // Not all of it is free: as much is taken as there is.
        assert_eq!(check(&[], 16 * GIB), Ok(()));
        let told = check(&[], 17 * GIB).unwrap_err();
        assert_eq!(told, "17.0 GiB is wanted: expected at most 16.0 GiB, which is the machine's memory");
        let (max, current) = ("sys/fs/cgroup/a/memory.max", "sys/fs/cgroup/a/memory.current");
        assert_eq!(check(&[(max, "268435456"), (current, "1048576")], 200 * MIB), Ok(()));
        let told = check(&[(max, "268435456"), (current, "1048576")], 257 * MIB).unwrap_err();
        assert!(told.contains("expected at most 256.0 MiB, which is the limit of a control group ("), "{told}");
        let told = check(&[(max, "268435456"), (current, "260000000")], MIB).unwrap_err();
        assert!(
            told.starts_with("no memory can be taken: of 256.0 MiB, which is the limit of a control group"),
            "{told}"
        );
        assert!(told.ends_with("8.0 MiB is free, and 38.4 MiB stays in reserve"), "{told}");
    }

    #[test]
    fn it_is_told_beforehand_how_much_there_is_room_for() {
        let root = tree(&[MEMINFO]);
        let limits = Limits::new(root.path());
        assert_eq!(limits.expected(100 * MIB), (100 * MIB, None));
        let (expected, limit) = limits.expected(16 * GIB);
        assert_eq!(expected, 8 * GIB - 16 * GIB / 100 * 15);
        let told = "of 16.0 GiB, which is the machine's memory, 8.0 GiB is free, and 2.4 GiB stays in reserve";
        assert_eq!(limit.as_deref(), Some(told));
    }

    #[test]
    fn what_cannot_be_seen_is_not_taken() {
        let root = tree(&[("proc/meminfo", "MemTotal: 16777216 kB\nMemFree: 8388608 kB\n")]);
        let told = Limits::new(root.path()).check(MIB).unwrap_err().to_string();
        assert!(told.contains("expected MemAvailable in /proc/meminfo"), "{told}");
    }

    #[test]
    fn a_reserve_stays() {
        let room = |what, total, free| Limit { what, total, free }.room();
        assert_eq!(room(What::Machine, 16 * GIB, 8 * GIB), 8 * GIB - 16 * GIB / 100 * 15);
        assert_eq!(room(What::Machine, 512 * GIB, 8 * GIB), 4 * GIB);
        assert_eq!(room(What::Machine, GIB, 600 * MIB), 88 * MIB);
        assert_eq!(room(What::Group("x".into()), 128 * MIB, 100 * MIB), 68 * MIB);
        assert_eq!(room(What::Group("x".into()), 128 * MIB, 10 * MIB), 0);
    }
}
