"""What of the processes of a fault is to be seen from outside."""

import contextlib
import json
import os
import pathlib
import select
import time

from chaos import LONG
from harness import Instance, marked, wait_until

# What a helper is called: by its arguments, and by its name once it is one.
HELPER = "mcpscope-chaos-helper "
NAME = "mcpscope-chaos"
# Within which nothing may be left of a fault, in seconds.
GONE = 2


@contextlib.contextmanager
def watched(pid: int):
    """What is yielded waits so many seconds for the end of the process, and tells whether it came.

    Nothing is polled, so the measured time is that of the process, whatever else the machine does.
    """
    descriptor = os.pidfd_open(pid)
    try:
        yield lambda within: bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)


def helpers(environment) -> list[int]:
    return [pid for pid, command in marked(environment.mark).items() if command.startswith(HELPER)]


def helper(environment, instance: Instance) -> int:
    """The only one, once it is at work: a child of this instance."""

    def at_work():
        match helpers(environment):
            case [pid] if proc(pid, "comm") == NAME:
                return pid

    pid = wait_until(at_work, within=LONG, what="one helper")
    assert int(stat(pid)[1]) == instance.process.pid, "it is not this instance's"
    return pid


def proc(pid: int, name: str) -> str:
    """A file of a process; nothing if that has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/{name}").read_text().strip()
    except OSError:
        return ""


def stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` from the state on."""
    return proc(pid, "stat").rpartition(")")[2].split()


def memory(pid: int) -> int:
    """The bytes that a process has for itself."""
    lines = proc(pid, "status").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def records(folder: pathlib.Path, name: str = "*.jsonl") -> list[dict]:
    """What is in the journals of these names below a folder of data."""
    files = sorted(folder.glob(f"*/chaos/{name}"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def seconds(work) -> float:
    """How long it took."""
    began = time.monotonic()
    work()
    return time.monotonic() - began
