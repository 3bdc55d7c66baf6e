//! The control groups that a process is in, version 1, version 2 or both, cgroups(7): each with all its ancestors, as far as
//! they can be seen.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// The folders of the groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    pub(super) v2: Vec<PathBuf>,
    pub(super) v1_memory: Vec<PathBuf>,
    pub(super) v1_cpu: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hierarchy {
    V2,
    V1Memory,
    V1Cpu,
}

impl Groups {
    /// Those of a process, or of this one, in a file system that begins at `root`.
    pub(super) fn of(root: &Path, pid: Option<u32>) -> Self {
        let (groups, mounts) = (groups_text(root, pid), mounts(root));
        let mut found = Self::default();
        for (hierarchy, group) in lines(&groups).flat_map(groups_of) {
            let folders = match hierarchy {
                Hierarchy::V2 => &mut found.v2,
                Hierarchy::V1Memory => &mut found.v1_memory,
                Hierarchy::V1Cpu => &mut found.v1_cpu,
            };
            // One hierarchy can be mounted several times, each time from another of its groups on.
            let mounts = mounts.iter().filter(|mount| mount.hierarchy == hierarchy);
            folders.extend(mounts.flat_map(|mount| mount.folders(root, group)));
        }
        found
    }

    /// How many cores' worth of time the tightest quota gives; none if there is no quota.
    pub(super) fn cpu_quota(&self) -> Option<f64> {
        let v2 = self.v2.iter().filter_map(|folder| {
            // "QUOTA PERIOD" in microseconds, or "max PERIOD".
            let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            cores(quota, period)
        });
        let v1 = self.v1_cpu.iter().filter_map(|folder| {
            let read = |file| fs::read_to_string(folder.join(file)).ok();
            // A quota of -1 is none.
            cores(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
        });
        v2.chain(v1).reduce(f64::min)
    }
}

/// What control groups limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
}

impl Controller {
    /// As the kernel calls it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }
}

/// Where what a process takes is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The folder of the group that it is in.
    pub(super) group: PathBuf,
    /// The folder of the group that counts: this one, or in version 2 the nearest above it that has the controller.
    pub(super) counts: PathBuf,
    pub(super) is_v2: bool,
}

impl Place {
    /// That of a process, or of this one, in a file system that begins at `root`; none if it cannot be seen.
    pub(super) fn of(root: &Path, pid: Option<u32>, controller: Controller) -> Option<Self> {
        let (groups, mounts) = (groups_text(root, pid), mounts(root));
        let named = |wanted: Hierarchy| lines(&groups).flat_map(groups_of).find(|(hierarchy, _)| *hierarchy == wanted);
        let v1 = match controller {
            Controller::Memory => Hierarchy::V1Memory,
            Controller::Cpu => Hierarchy::V1Cpu,
        };
        // A controller is in one hierarchy at a time: where version 1 has it, version 2 has not.
        let (hierarchy, group) = named(v1).or_else(|| named(Hierarchy::V2))?;
        let mounts = mounts.iter().filter(|mount| mount.hierarchy == hierarchy && mount.names_groups());
        let folders = mounts.map(|mount| mount.folders(root, group)).find(|folders| !folders.is_empty())?;
        let is_v2 = hierarchy == Hierarchy::V2;
        let has_it = |folder: &&PathBuf| {
            let all = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
            !is_v2 || all.split_ascii_whitespace().any(|name| name == controller.as_str())
        };
        let counts = folders.iter().find(has_it)?.clone();
        Some(Self { group: folders.into_iter().next()?, counts, is_v2 })
    }
}

/// `/proc/PID/cgroup`, with paths from where this process's namespace begins.
fn groups_text(root: &Path, pid: Option<u32>) -> Vec<u8> {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    fs::read(root.join("proc").join(process).join("cgroup")).unwrap_or_default()
}

fn mounts(root: &Path) -> Vec<Mount> {
    let mounts = fs::read(root.join("proc/self/mountinfo")).unwrap_or_default();
    lines(&mounts).flat_map(mounts_of).collect()
}

fn cores(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota as f64 / period as f64)
}

/// Where groups of a hierarchy are to be found.
#[derive(Debug)]
struct Mount {
    hierarchy: Hierarchy,
    /// The group that is mounted, as a path in the hierarchy.
    group: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Whether a group's folder can be told: mounted from above this process's namespace on is an ancestor, and what is
    /// between has no name here.
    fn names_groups(&self) -> bool {
        !self.group.ends_with("..")
    }

    /// The folders of `group` and of its ancestors.
    fn folders(&self, root: &Path, group: &Path) -> Vec<PathBuf> {
        let below = if !self.names_groups() {
            Path::new("")
        } else {
            match group.strip_prefix(&self.group) {
                // A group outside of the namespace is named by "..": not in this mount.
                Ok(below) if !below.components().any(|part| part == Component::ParentDir) => below,
                _ => return Vec::new(),
            }
        };
        let point = root.join(self.point.strip_prefix("/").unwrap_or(&self.point));
        below.ancestors().map(|group| point.join(group)).collect()
    }
}

/// The hierarchies in a list of controllers; version 2 has none there.
fn hierarchies(controllers: &[u8]) -> impl Iterator<Item = Hierarchy> {
    controllers.split(|byte| *byte == b',').filter_map(|controller| match controller {
        b"memory" => Some(Hierarchy::V1Memory),
        b"cpu" => Some(Hierarchy::V1Cpu),
        _ => None,
    })
}

/// Reads a line of `/proc/PID/mountinfo`.
fn mounts_of(line: &[u8]) -> Vec<Mount> {
    let read = || {
        // "ID PARENT DEVICE ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS", proc_pid_mountinfo(5).
        let mut fields = line.split(|byte| *byte == b' ');
        let (group, point) = (unescape(fields.nth(3)?), unescape(fields.next()?));
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let found: Vec<_> = match fields.next()? {
            b"cgroup2" => vec![Hierarchy::V2],
            b"cgroup" => hierarchies(fields.nth(1)?).collect(),
            _ => return None,
        };
        let mount = |hierarchy| Mount { hierarchy, group: group.clone(), point: point.clone() };
        Some(found.into_iter().map(mount).collect())
    };
    read().unwrap_or_default()
}

/// Reads a line of `/proc/PID/cgroup`.
fn groups_of(line: &[u8]) -> Vec<(Hierarchy, &Path)> {
    let read = || {
        // "ID:CONTROLLERS:PATH". The path may have colons in it.
        let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
        let (controllers, path) = (fields.next()?, Path::new(OsStr::from_bytes(fields.next()?)));
        let found: Vec<_> =
            if controllers.is_empty() { vec![Hierarchy::V2] } else { hierarchies(controllers).collect() };
        Some(found.into_iter().map(|hierarchy| (hierarchy, path)).collect())
    };
    read().unwrap_or_default()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// A path of mountinfo, where space, tab, newline and backslash are written as three octal digits.
fn unescape(path: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| byte == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A made-up file system of these files.
    pub(crate) fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    pub(crate) const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw\n";
    pub(crate) const HYBRID: &str = "33 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                          35 24 0:30 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn found(groups: &str, mounts: &str) -> [Vec<String>; 3] {
        let root = tree(&[("proc/self/cgroup", groups), ("proc/self/mountinfo", mounts)]);
        let found = Groups::of(root.path(), None);
        let name = |path: &PathBuf| path.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned();
        [found.v2, found.v1_memory, found.v1_cpu].map(|folders| folders.iter().map(name).collect())
    }

    #[test]
    fn every_group_has_its_ancestors() {
        let none: [&str; 0] = [];
        let [v2, memory, cpu] = found("0::/a/b:c\n", V2);
        assert_eq!(v2, ["sys/fs/cgroup/a/b:c", "sys/fs/cgroup/a", "sys/fs/cgroup"]);
        assert_eq!((memory, cpu), (none.map(String::from).to_vec(), none.map(String::from).to_vec()));
        let [v2, memory, cpu] = found("5:cpuacct,cpu:/x\n4:memory:/y\n1:name=systemd:/z\n0::/\n", HYBRID);
        assert_eq!(v2, ["sys/fs/cgroup/unified"]);
        assert_eq!(memory, ["sys/fs/cgroup/memory/y", "sys/fs/cgroup/memory"]);
        assert_eq!(cpu, ["sys/fs/cgroup/cpu,cpuacct/x", "sys/fs/cgroup/cpu,cpuacct"]);
    }

    #[test]
    fn only_what_is_mounted_can_be_seen() {
        let docker = "35 24 0:30 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let [_, memory, _] = found("4:memory:/docker/ab/in\n", docker);
        assert_eq!(memory, ["sys/fs/cgroup/memory/in", "sys/fs/cgroup/memory"]);
        assert!(found("4:memory:/docker/abc\n", docker)[1].is_empty());
        assert!(found("0::/../other\n", V2)[0].is_empty());
        let above = "30 23 0:26 /../.. /mnt/its\\040own\\134 rw - cgroup2 cgroup2 rw\n";
        assert_eq!(found("0::/app\n", above)[0], ["mnt/its own\\"]);
        for garbage in ["", "\n", "0", "0:", "x:y:z"] {
            assert_eq!(found(garbage, garbage), [const { Vec::<String>::new() }; 3], "{garbage:?}");
        }
    }

    #[test]
    fn what_a_process_takes_is_counted_where_the_controller_is() {
        let place = |files: &[(&str, &str)], controller| {
            let root = tree(files);
            let found = Place::of(root.path(), Some(7), controller)?;
            let name = |path: &Path| path.strip_prefix(root.path().join("sys/fs/cgroup")).unwrap().to_owned();
            Some((name(&found.group), name(&found.counts), found.is_v2))
        };
        let is = |group: &str, counts: &str, is_v2| Some((group.into(), counts.into(), is_v2));
        let v2 = [
            ("proc/7/cgroup", "0::/a/b\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n"),
            ("sys/fs/cgroup/a/cgroup.controllers", "memory pids\n"),
            ("sys/fs/cgroup/a/b/cgroup.controllers", "pids\n"),
        ];
        assert_eq!(place(&v2, Controller::Memory), is("a/b", "a", true));
        assert_eq!(place(&v2, Controller::Cpu), is("a/b", "", true));
        assert_eq!(place(&v2[..2], Controller::Cpu), None, "nobody has the controller");
        assert_eq!(place(&v2[1..], Controller::Cpu), None, "nobody of that number");
        // Version 1 has its controllers, whatever version 2 says.
        let hybrid = [
            ("proc/7/cgroup", "5:cpuacct,cpu:/x\n4:memory:/y\n0::/z\n"),
            ("proc/self/mountinfo", HYBRID),
            ("sys/fs/cgroup/unified/cgroup.controllers", "memory cpu\n"),
        ];
        assert_eq!(place(&hybrid, Controller::Memory), is("memory/y", "memory/y", false));
        assert_eq!(place(&hybrid, Controller::Cpu), is("cpu,cpuacct/x", "cpu,cpuacct/x", false));
        // What cannot be named is not taken for its ancestor.
        let above = "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(place(&[v2[0], ("proc/self/mountinfo", above), v2[2]], Controller::Memory), None);
        assert_eq!(place(&[("proc/7/cgroup", "0::/../b\n"), v2[1], v2[2]], Controller::Memory), None);
    }

    #[test]
    fn the_tightest_quota_counts() {
        let quota = |files: &[(&str, &str)]| {
            let group = [("proc/self/cgroup", "5:cpu,cpuacct:/x\n0::/a/b\n"), ("proc/self/mountinfo", HYBRID)];
            Groups::of(tree(&[&group, files].concat()).path(), None).cpu_quota()
        };
        let (inner, outer) = ("sys/fs/cgroup/unified/a/b/cpu.max", "sys/fs/cgroup/unified/a/cpu.max");
        assert_eq!(quota(&[]), None);
        assert_eq!(quota(&[(inner, "max 100000\n")]), None);
        assert_eq!(quota(&[(inner, "max 100000\n"), (outer, "150000 100000\n")]), Some(1.5));
        assert_eq!(quota(&[(inner, "50000 100000\n"), (outer, "150000 100000\n")]), Some(0.5));
        assert_eq!(quota(&[(inner, "50000 0\n"), (outer, "much\n")]), None);
        let (v1, period) =
            ("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us");
        assert_eq!(quota(&[(v1, "-1\n"), (period, "100000\n")]), None);
        assert_eq!(quota(&[(v1, "25000\n"), (period, "100000\n"), (inner, "50000 100000\n")]), Some(0.25));
    }
}
