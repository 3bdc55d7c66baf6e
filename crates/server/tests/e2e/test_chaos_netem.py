"""backend=netem: refused with the reason where the kernel cannot do it; and all of it in a kernel that can.

That kernel is Linux as a program (User-mode Linux): it has the files of this machine, and a network of its own.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from chaos import Chaos
from harness import MARK, VARIABLES, wait_until
from processes import helpers, records

pytestmark = pytest.mark.usefixtures("alone")

PROGRAMS = {
    "E2E_UML": "linux.uml of Debian's package user-mode-linux",
    "E2E_UML_MODULES": "the folder in /usr/lib/uml/modules of the same package",
    "E2E_BUSYBOX": "busybox of Debian's package busybox-static",
    "E2E_CHAOS_HELPER": "the test `helper` of mcpscope-chaos",
}
MODULES = ("sch_prio", "sch_netem")
BOOT_LIMIT = 400
# Where its memory takes the place of a folder of this machine's, which whoever may enter its parents may enter.
INSIDE = "/mnt"
# What that kernel runs first. What it leaves goes to a folder of this machine's, and everything else into its memory.
INIT = """#!/bin/sh
{exports}
{busybox} mount -t proc proc /proc
{busybox} mount -t sysfs sys /sys
{busybox} mount -t tmpfs -o mode=0755 tmp {inside}
for module in {modules}; do {busybox} insmod $module || echo no $module; done
{busybox} ip link set lo up
{helper} network --nocapture </dev/null >{out}/helper 2>&1
echo $? >{out}/code-helper
cd {folder}
{python} -m pytest -q -rA --color=no --basetemp={inside}/tests {options} {tests} </dev/null >{out}/log 2>&1
echo $? >{out}/code
{busybox} poweroff -f
"""


@pytest.fixture(scope="session")
def programs() -> dict[str, str]:
    wrong = [f"{name} ({what})" for name, what in PROGRAMS.items() if not os.path.exists(os.environ.get(name, ""))]
    if wrong:
        advice = (
            "`cargo xtask test` installs what is missing and sets these variables. User-mode Linux is for x86 alone: "
            "on another machine leave this test to one of these."
        )
        pytest.fail(f"{'; '.join(wrong)} not set, or names no file. {advice}", pytrace=False)
    return {name: os.path.abspath(os.environ[name]) for name in PROGRAMS}


def test_where_the_kernel_lacks_it_that_is_said(environment, instances, upstream, tmp_path):
    data = tmp_path / "data"
    instance = instances.proxy(upstream.url, "--data", str(data), "--name", "netem")
    chaos = Chaos(instance, data)
    told = instances.finish("chaos", "scenarios", "packet_loss", "--output", "json")
    assert told.returncode == 0, told.stderr
    netem = json.loads(told.stdout)["netem"]
    if netem["available"]:
        id = chaos.start("packet_loss", backend="netem")
        assert chaos.stop(id)["status"] == "aborted"
        return
    why = netem["reason"]
    assert why.startswith("backend=netem needs ") and why.endswith("or backend=message"), why
    assert "modprobe -a sch_netem" in why or "sysctl" in why or "CONFIG_" in why, why
    for path in ("/plan", "/experiments"):
        for scenario, parameters in (("packet_loss", {}), ("latency_injection", {"delay": "10ms"})):
            assert chaos.refused(scenario, path, backend="netem", **parameters) == (400, why)
    refused = lambda: [r["reason"] for r in records(data, "engine.jsonl") if r["event"] == "refused"]  # noqa: E731
    wait_until(lambda: refused() == [why, why], what="the attempts in the journal")
    assert chaos.status()["active_tests"] == 0 and helpers(environment) == []
    assert not [record for record in records(data) if record.get("record") in ("begin", "process", "intent")]


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"what": "request"}, "backend=message, or no what"),
        ({"tool": "echo"}, "backend=message, or no tool"),
        ({"transport": "stdio"}, "a pipe has none: expected backend=message, or transport=http"),
        ({"backend": "iptables"}, "expected message, netem"),
    ],
)
def test_what_makes_no_sense_of_packets_is_refused(instances, upstream, parameters, expected):
    chaos = Chaos(instances.proxy(upstream.url))
    status, why = chaos.refused("packet_loss", **{"backend": "netem"} | parameters)
    assert status == 400 and expected in why, why


def test_a_pipe_has_no_packets(instances):
    peer = pathlib.Path(__file__).with_name("echo_peer.py")
    chaos = Chaos(instances.run(command=[sys.executable, str(peer), os.devnull]))
    status, why = chaos.refused("packet_loss", backend="netem")
    assert status == 409 and "a pipe has no packets" in why and "it means something over HTTP" in why, (status, why)


@pytest.mark.timeout(BOOT_LIMIT + 20)
def test_in_a_kernel_that_has_it(environment, programs, tmp_path):
    busybox = programs["E2E_BUSYBOX"]
    modules = [os.path.join(programs["E2E_UML_MODULES"], "kernel/net/sched", f"{name}.ko") for name in MODULES]
    out = tmp_path / "out"
    out.mkdir()
    here = pathlib.Path(__file__).parent
    home = {"PATH": os.environ["PATH"], "HOME": INSIDE, "TMPDIR": INSIDE}
    copied = {name: os.path.abspath(os.environ[name]) for name in VARIABLES} | home
    init = tmp_path / "init.sh"
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in copied.items())
    init.write_text(
        INIT.format(
            exports=exports,
            busybox=shlex.quote(busybox),
            modules=" ".join(map(shlex.quote, modules)),
            folder=shlex.quote(str(here)),
            python=shlex.quote(sys.executable),
            options="-p no:cacheprovider",
            tests="netem_inside.py",
            out=shlex.quote(str(out)),
            inside=INSIDE,
            helper=shlex.quote(programs["E2E_CHAOS_HELPER"]),
        )
    )
    init.chmod(0o755)
    arguments = ("mem=1G", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", "quiet", "con=null", "con0=fd:0,fd:1")
    with (tmp_path / "console").open("wb") as console:
        uml = subprocess.Popen(
            [programs["E2E_UML"], *arguments],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: environment.mark, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
            start_new_session=True,
        )
        try:
            uml.wait(BOOT_LIMIT)
        finally:
            # Its processes are threads of one group, which nothing else is in.
            subprocess.run(["kill", "-KILL", "--", f"-{uml.pid}"], stderr=subprocess.DEVNULL, check=False)
            uml.wait()
    told = lambda name: (out / name).read_text().strip() if (out / name).exists() else ""  # noqa: E731
    console = (tmp_path / "console").read_text(errors="replace")
    assert told("code-helper") == "0" and "only the refusal is tried" not in told("helper"), f"{told('helper')}\n{console}"
    assert told("code") == "0", f"{told('log')}\n{console}"
    print(told("helper"), told("log"), sep="\n")
