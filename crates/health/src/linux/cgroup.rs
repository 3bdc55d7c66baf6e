//! The memory limits of control groups, version 1, version 2 or both, cgroups(7).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Version 1 says "no limit" as the largest number of whole pages, which depends on the page; no machine has as much.
const NO_LIMIT: u64 = 1 << 60;

/// The tightest memory limit of the control groups that this process is in, in bytes, in a file system that begins at
/// `root`. Nothing if there is none, or none to be seen.
pub(crate) fn memory_limit(root: &Path) -> Option<u64> {
    let groups = fs::read(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read(root.join("proc/self/mountinfo")).ok()?;
    let mounts: Vec<Mount> = lines(&mounts).filter_map(Mount::parse).collect();
    let limits = lines(&groups).filter_map(parse_group).flat_map(|(version, group)| {
        // One hierarchy can be mounted several times, each time from another of its groups on.
        let mounts = mounts.iter().filter(move |mount| mount.version == version);
        mounts.filter_map(move |mount| mount.tightest(root, group))
    });
    limits.min()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The hierarchy of its memory controller.
    V1,
    V2,
}

impl Version {
    const fn file(self) -> &'static str {
        match self {
            Self::V1 => "memory.limit_in_bytes",
            Self::V2 => "memory.max",
        }
    }
}

/// Where groups of one hierarchy are to be found.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group that is mounted, as a path in the hierarchy.
    group: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Reads a line of `/proc/PID/mountinfo`, if it is one of a hierarchy that can limit memory.
    fn parse(line: &[u8]) -> Option<Self> {
        // "ID PARENT DEVICE ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS", proc_pid_mountinfo(5).
        let mut fields = line.split(|byte| *byte == b' ');
        let (group, point) = (fields.nth(3)?, fields.next()?);
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let version = match fields.next()? {
            b"cgroup2" => Version::V2,
            b"cgroup" if fields.nth(1)?.split(|byte| *byte == b',').any(|option| option == b"memory") => Version::V1,
            _ => return None,
        };
        Some(Self { version, group: unescape(group), point: unescape(point) })
    }

    /// The tightest limit of `group` and of its ancestors, as far as they can be seen here.
    fn tightest(&self, root: &Path, group: &Path) -> Option<u64> {
        let below = if self.group.ends_with("..") {
            // Mounted from above this process's namespace on: an ancestor, but what is between has no name here.
            Path::new("")
        } else {
            group.strip_prefix(&self.group).ok()?
        };
        let point = root.join(self.point.strip_prefix("/").unwrap_or(&self.point));
        // A group outside of the namespace is named by "..": not in this mount.
        if below.components().any(|part| part == std::path::Component::ParentDir) {
            return None;
        }
        below.ancestors().filter_map(|group| self.limit(&point.join(group))).min()
    }

    fn limit(&self, directory: &Path) -> Option<u64> {
        // "max" in version 2 is no number.
        let limit = fs::read_to_string(directory.join(self.version.file())).ok()?.trim().parse().ok()?;
        (limit < NO_LIMIT).then_some(limit)
    }
}

/// Reads a line of `/proc/PID/cgroup`, if it is one of a hierarchy that can limit memory.
fn parse_group(line: &[u8]) -> Option<(Version, &Path)> {
    // "ID:CONTROLLERS:PATH"; version 2 has no controllers there. The path may have colons in it.
    let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
    let controllers = fields.next()?;
    let version = if controllers.is_empty() {
        Version::V2
    } else if controllers.split(|byte| *byte == b',').any(|controller| controller == b"memory") {
        Version::V1
    } else {
        return None;
    };
    Some((version, Path::new(OsStr::from_bytes(fields.next()?))))
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
        match code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A made-up file system of these files.
    fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Option<u64>) {
        assert_eq!(memory_limit(tree(files).path()), expected);
    }

    const CGROUP: &str = "proc/self/cgroup";
    const MOUNTS: &str = "proc/self/mountinfo";
    const V2: &str = "22 1 0:20 / /proc rw - proc proc rw\n\
                      30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "33 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 24 0:30 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";
    const UNLIMITED: &str = "9223372036854771712\n";

    #[test]
    fn version_2_has_one_hierarchy() {
        let limit = |text| [(CGROUP, "0::/app\n"), (MOUNTS, V2), ("sys/fs/cgroup/app/memory.max", text)];
        check(&limit("536870912\n"), Some(512 << 20));
        check(&limit("max\n"), None);
        check(&limit("0\n"), Some(0));
        for garbage in ["", "\n", "-1\n", "512M\n", "99999999999999999999999\n", "max 5\n", "\u{fffd}"] {
            check(&limit(garbage), None);
        }
    }

    #[test]
    fn version_1_has_one_for_memory() {
        let limit = |text| {
            [
                (CGROUP, "5:cpu,cpuacct:/else\n4:hugetlb,memory:/app\n1:name=systemd:/x\n"),
                (MOUNTS, V1),
                ("sys/fs/cgroup/memory/app/memory.limit_in_bytes", text),
                ("sys/fs/cgroup/memory/else/memory.limit_in_bytes", "1\n"),
                ("sys/fs/cgroup/cpu,cpuacct/else/memory.limit_in_bytes", "2\n"),
                ("sys/fs/cgroup/memory/app/memory.max", "3\n"),
            ]
        };
        check(&limit("268435456\n"), Some(256 << 20));
        check(&limit(UNLIMITED), None);
        // With pages of 64 KiB.
        check(&limit("9223372036854710272\n"), None);
    }

    #[test]
    fn the_tightest_of_the_ancestors_counts() {
        let with = |limits: [&str; 4]| {
            let directories = ["", "a.slice/", "a.slice/b.scope/", "a.slice/b.scope/c:d/"];
            let paths = directories.map(|directory| format!("sys/fs/cgroup/{directory}memory.max"));
            let group = [(CGROUP, "0::/a.slice/b.scope/c:d\n"), (MOUNTS, V2)];
            let files: Vec<_> = group.into_iter().chain(paths.iter().map(String::as_str).zip(limits)).collect();
            memory_limit(tree(&files).path())
        };
        assert_eq!(with(["max", "300", "200", "400"]), Some(200));
        assert_eq!(with(["max", "300", "max", "400"]), Some(300));
        assert_eq!(with(["100", "300", "200", "400"]), Some(100));
        assert_eq!(with(["max", "max", "garbage", "400"]), Some(400));
        assert_eq!(with(["max", "max", "max", "max"]), None);
    }

    #[test]
    fn a_hybrid_has_both() {
        let mounts = format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let both = |v1, v2| {
            let files = [
                (CGROUP, "4:memory:/one\n0::/two\n"),
                (MOUNTS, mounts.as_str()),
                ("sys/fs/cgroup/memory/one/memory.limit_in_bytes", v1),
                ("sys/fs/cgroup/unified/two/memory.max", v2),
            ];
            memory_limit(tree(&files).path())
        };
        assert_eq!(both("1000", "max"), Some(1000));
        assert_eq!(both(UNLIMITED, "2000"), Some(2000));
        assert_eq!(both("3000", "2000"), Some(2000));
    }

    #[test]
    fn only_a_part_of_the_hierarchy_may_be_mounted() {
        // Docker without a namespace: the group's path is the host's, and its own directory is the mount.
        let docker = "35 24 0:30 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "700");
        check(&[(CGROUP, "4:memory:/docker/ab\n"), (MOUNTS, docker), limit], Some(700));
        let inner = ("sys/fs/cgroup/memory/in/memory.limit_in_bytes", "600");
        check(&[(CGROUP, "4:memory:/docker/ab/in\n"), (MOUNTS, docker), limit, inner], Some(600));
        // Another container's, of a name that begins alike.
        check(&[(CGROUP, "4:memory:/docker/abc\n"), (MOUNTS, docker), limit], None);
    }

    #[test]
    fn a_namespace_hides_what_is_above() {
        let limit = ("sys/fs/cgroup/memory.max", "700");
        check(&[(CGROUP, "0::/\n"), (MOUNTS, V2), limit], Some(700));
        // Moved out of the namespace's root after it was made: nowhere to be seen.
        check(&[(CGROUP, "0::/../other\n"), (MOUNTS, V2), limit, ("sys/fs/other/memory.max", "1")], None);
        // Mounted before the namespace was made: from two groups above on.
        let above = "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        check(&[(CGROUP, "0::/app\n"), (MOUNTS, above), limit, ("sys/fs/cgroup/app/memory.max", "1")], Some(700));
    }

    #[test]
    fn a_hierarchy_may_be_mounted_twice() {
        let mounts = format!("36 1 0:26 /app /mnt/its\\040own\\134 rw - cgroup2 none rw\n{V2}");
        let files = [
            (CGROUP, "0::/app/part\n"),
            (MOUNTS, mounts.as_str()),
            ("mnt/its own\\/part/memory.max", "50"),
            ("sys/fs/cgroup/app/memory.max", "60"),
        ];
        check(&files, Some(50));
    }

    #[test]
    fn what_is_missing_or_garbage_limits_nothing() {
        check(&[], None);
        check(&[(CGROUP, "0::/app\n")], None);
        check(&[(MOUNTS, V2)], None);
        check(&[(CGROUP, "0::/app\n"), (MOUNTS, V2)], None);
        let limit = ("sys/fs/cgroup/app/memory.max", "5");
        check(&[(CGROUP, "\n\n0\n0:\n::\n"), (MOUNTS, V2), limit], None);
        check(
            &[(CGROUP, "0::/app\n"), (MOUNTS, "30 23\n - \n30 23 0:26 / /sys/fs/cgroup rw -\n - cgroup2\n"), limit],
            None,
        );
        check(&[(CGROUP, "nonsense\n0::/app\n"), (MOUNTS, &format!("nonsense\n{V2}")), limit], Some(5));
    }

    #[test]
    fn escapes_of_mountinfo() {
        let path = |text: &[u8]| unescape(text).into_os_string().into_encoded_bytes();
        assert_eq!(path(br"/a\040b\011\012\134040"), b"/a b\t\n\\040");
        assert_eq!(path(br"/a\04"), br"/a\04");
        assert_eq!(path(br"\777\xyz\"), br"\777\xyz\");
    }
}
