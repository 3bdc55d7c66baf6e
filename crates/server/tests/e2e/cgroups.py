"""Control groups for tests, of version 1 or 2, whichever this machine has: seen and made without the program under test."""

import ctypes
import os
import pathlib
import subprocess
import uuid

from processes import proc

MIB = 1 << 20


def mounts() -> list[tuple[str, str, pathlib.Path, str]]:
    """Each mounted hierarchy: its file system, its options, where it is, and which of its groups is there."""
    found = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, point = fields.split()[3:5]
            found.append((kind, options, pathlib.Path(point), root))
    return found


def group_of(pid: int, controller: str) -> pathlib.Path | None:
    """The folder of the group of a process that has this controller; None if there is none to be seen."""
    named = {}
    for line in proc(pid, "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        named |= {name: path for name in controllers.split(",")}
    for kind, options, point, root in mounts():
        path = named.get("" if kind == "cgroup2" else controller)
        if path is None or (kind == "cgroup" and controller not in options.split(",")):
            continue
        if kind == "cgroup2" and controller in named:
            continue
        if path == root or path.startswith(root.rstrip("/") + "/"):
            return point / path[len(root.rstrip("/")) :].lstrip("/")
    return None


class Group:
    """A control group of the test's own."""

    def __init__(self, folder: pathlib.Path, controller: str):
        self.folder = folder
        self.is_v2 = (folder / "cgroup.controllers").exists()
        self.controller = controller

    def __str__(self):
        return str(self.folder)

    def read(self, file: str) -> str:
        return (self.folder / file).read_text().strip()

    def pids(self) -> set[int]:
        return {int(pid) for pid in self.read("cgroup.procs").split()}

    def add(self, pid: int):
        (self.folder / "cgroup.procs").write_text(str(pid))

    @property
    def limit_file(self) -> str:
        return "memory.max" if self.is_v2 else "memory.limit_in_bytes"

    def limit_memory(self, size: int):
        (self.folder / self.limit_file).write_text(str(size))

    def limit_cpu(self, cores: float):
        if self.is_v2:
            (self.folder / "cpu.max").write_text(f"{int(cores * 100_000)} 100000")
        else:
            (self.folder / "cpu.cfs_quota_us").write_text(str(int(cores * 100_000)))

    def memory(self) -> int:
        """The bytes that its processes have for themselves, as the kernel has charged them."""
        name = "anon" if self.is_v2 else "total_rss"
        return next(int(line.split()[1]) for line in self.read("memory.stat").splitlines() if line.split()[0] == name)

    def kills(self) -> int:
        file = "memory.events" if self.is_v2 else "memory.oom_control"
        counts = dict(line.split() for line in self.read(file).splitlines())
        return int(counts["oom_kill"])

    def throttled(self) -> int:
        """In how many periods its quota was used up."""
        return int(dict(line.split() for line in self.read("cpu.stat").splitlines())["nr_throttled"])

    def around(self, command: list[str]) -> list[str]:
        """The command, in this group."""
        return ["sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"', "sh", *command]


def make(controller: str) -> Group | str:
    """A new group beside or below that of this process; or why there can be none."""
    folder = group_of(os.getpid(), controller)
    if folder is None:
        return f"no control group with {controller} can be seen"
    if (folder / "cgroup.controllers").exists():
        # Version 2: below a group that hands the controller down.
        having = (at for at in [folder, *folder.parents] if (at / "cgroup.subtree_control").exists())
        folder = next((at for at in having if controller in (at / "cgroup.subtree_control").read_text().split()), None)
        if folder is None:
            return f"no control group hands {controller} down"
    made = folder / f"mcpscope-test-{uuid.uuid4().hex[:12]}"
    try:
        made.mkdir()
        group = Group(made, controller)
        # Whether processes can be moved to it, and back.
        mover = subprocess.run(group.around(["true"]), capture_output=True, text=True)
    except OSError as error:
        return f"no control group can be made: {error}"
    if mover.returncode != 0:
        made.rmdir()
        return f"no process can be moved: {mover.stderr.strip()}"
    return group


def without_write_access():
    """For `preexec_fn`: the process and its children see every control group as read-only."""
    new_mounts = 0x20000
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for _, _, point, _ in mounts():
        subprocess.run(["mount", "-o", "remount,bind,ro", str(point)], check=True)
