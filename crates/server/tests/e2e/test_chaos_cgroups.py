"""memory_pressure and cpu_overload in the control group of a server: what the kernel counts there, and that it ends.

They need control groups that can be made, as root or where they are delegated. Where there are none, each test makes sure that
the experiment is refused for that reason instead, and warns that it did.
"""

import os
import re
import signal
import warnings

import pytest

import cgroups
from cgroups import MIB, group_of
from chaos import LONG, Chaos
from harness import wait_until
from processes import GONE, helper, helpers, memory, proc, records, watched
from serving import AT_ONCE, pid_of, started
from upstream import call

pytestmark = pytest.mark.usefixtures("alone")

CONTROLLERS = {"memory_pressure": "memory", "cpu_overload": "cpu"}
FAULTS = {"memory_pressure": {"size": "64MiB"}, "cpu_overload": {"intensity": 0.5}}
# It tells what it has ten times a second, so it is let live.
BRIEF = {"duration": "3s", "recovery_time": "1s"}
AIMED = {"cgroup": "target", "target_processes": "one"}
# How a server without a group of its own is told, and one whose group cannot be seen.
NO_GROUP = r"one has no control group of its own: mcpscope is counted in \S+, too: expected|can be seen here: expected one"


@pytest.fixture
def group():
    """Makes a control group with a controller, or says why there can be none; it is gone after the test.

    To be asked for before instances are: they end first, and what is in the group with them.
    """
    made = []

    def make(controller: str):
        group = cgroups.make(controller)
        if isinstance(group, str):
            warnings.warn(f"{group}: only the refusal is tried", stacklevel=2)
        else:
            made.append(group)
        return group

    yield make
    for group in made:
        wait_until(lambda: not group.pids(), within=LONG, what=f"the last process of {group}")
        group.folder.rmdir()


@pytest.fixture
def served(serve, tmp_path):
    """Starts servers, some of which are in a group, and keeps the journals."""

    def start(groups: dict, supervision=AT_ONCE, options=(), **popen):
        servers = []
        for name, group in groups.items():
            server = started(name)
            servers.append(server | ({"command": group.around(server["command"])} if group else {}))
        serve.sections = {"proxy": {"connect_timeout": f"{LONG}s"}, "supervision": supervision}
        serve.rewrite(*servers)
        options = ("--data", str(tmp_path / "data"), "--name", "cgroups", *options)
        return serve.instances.serve(serve.file, *options, **popen)

    return start


def refused_for_want_of_a_group(served, tmp_path, scenario: str):
    """What becomes of it where no group can be made."""
    instance = served({"one": None})
    pid_of(instance, "one")
    status, reason = Chaos(instance).refused(scenario, **FAULTS[scenario], **AIMED)
    assert status == 400 and re.search(NO_GROUP, reason), reason
    nothing_started(tmp_path, reason)


def nothing_started(tmp_path, reason: str):
    journal = lambda: [r["reason"] for r in records(tmp_path / "data", "engine.jsonl") if r["event"] == "refused"]  # noqa: E731
    wait_until(lambda: reason in journal(), within=LONG, what="the attempt in the journal")
    assert not [r for r in records(tmp_path / "data") if r.get("record") in ("begin", "process", "intent")]


def at_work(environment, instance, group) -> int:
    """The helper, once it is in the group and has begun to take something."""
    pid = helper(environment, instance)
    wait_until(lambda: group_of(pid, group.controller) == group.folder, within=LONG, what="the helper in the group")
    return pid


# --- It counts there


def test_memory_counts_against_the_limits_of_the_server(environment, group, serve, served, tmp_path):
    its = group("memory")
    if isinstance(its, str):
        refused_for_want_of_a_group(served, tmp_path, "memory_pressure")
        return
    its.limit_memory(256 * MIB)
    instance = served({"one": its, "other": None})
    server = pid_of(instance, "one")
    assert its.pids() == {server} and group_of(instance.process.pid, "memory") != its.folder
    before = its.memory()
    faults = Chaos(instance)
    id = faults.start("memory_pressure", size="64MiB", **BRIEF, **AIMED)
    pid = at_work(environment, instance, its)
    wait_until(lambda: memory(pid) >= 64 * MIB, within=LONG, what="all of the memory")
    assert its.pids() == {server, pid}
    # The kernel says so: neither we nor the helper are asked.
    charged = lambda: its.memory() - before  # noqa: E731
    wait_until(lambda: abs(charged() - 64 * MIB) <= 0.02 * 64 * MIB, within=LONG, what="64 MiB in the group")
    report = faults.ended(id)
    assert (report["status"], report["leak"], report["targets"]) == ("completed", None, ["one"])
    resource = report["injection"]["resource"]
    assert (resource["requested"], resource["unit"], resource["cgroup"]) == (64 * MIB, "bytes", str(its))
    assert resource["achieved"] == pytest.approx(64 * MIB, rel=0.02)
    assert its.pids() == {server}
    wait_until(lambda: charged() < 4 * MIB, within=LONG, what="the group as before")
    assert its.kills() == 0 and pid_of(instance, "one") == server
    page = faults.ask("GET", f"/experiments/{id}?format=html")
    assert page.status_code == 200 and f"In the control group <bdi>{its}</bdi>" in page.text
    said = serve.instances.finish("chaos", "report", str(id), within=LONG).stdout.decode()
    assert re.search(r"memory taken +6\d\.\d MiB of 64\.0 MiB\n", said) and str(its) in said, said


def test_without_it_what_is_taken_counts_where_mcpscope_is(environment, group, served, tmp_path):
    its = group("memory")
    instance = served({"one": None if isinstance(its, str) else its})
    server = pid_of(instance, "one")
    faults = Chaos(instance)
    id = faults.start("memory_pressure", size="32MiB", **BRIEF)
    pid = helper(environment, instance)
    wait_until(lambda: memory(pid) >= 32 * MIB, within=LONG, what="all of the memory")
    ours = group_of(instance.process.pid, "memory")
    assert group_of(pid, "memory") == ours
    if not isinstance(its, str):
        assert its.pids() == {server} and its.memory() < 32 * MIB
    resource = faults.ended(id)["injection"]["resource"]
    assert resource.get("cgroup") == (str(ours) if ours else None)


def test_the_limits_of_its_group_are_those_that_count(environment, group, served, tmp_path):
    its = group("memory")
    if isinstance(its, str):
        refused_for_want_of_a_group(served, tmp_path, "memory_pressure")
        return
    its.limit_memory(160 * MIB)
    instance = served({"one": its})
    server = pid_of(instance, "one")
    faults = Chaos(instance)
    status, reason = faults.refused("memory_pressure", size="161MiB", **AIMED)
    limit = f"expected at most 160.0 MiB, which is the limit of a control group ({its}/{its.limit_file})"
    assert status == 400 and limit in reason, reason
    nothing_started(tmp_path, reason)
    # More than is left above the reserve is taken in part, and nobody is killed for it.
    for wanted in ({"size": "160MiB"}, {"share": 1}):
        id = faults.start("memory_pressure", **wanted, **BRIEF, **AIMED)
        pid = at_work(environment, instance, its)
        most = 160 * MIB - 32 * MIB
        wait_until(lambda: memory(pid) >= 64 * MIB, within=LONG, what="the most of the memory")
        assert its.pids() == {server, pid}
        report = faults.ended(id)
        assert 64 * MIB < report["injection"]["resource"]["achieved"] <= most, report
        assert report["injection"]["resource"]["requested"] == 160 * MIB
    assert its.kills() == 0 and pid_of(instance, "one") == server


def test_processor_time_counts_against_the_quota_of_the_server(environment, group, served, tmp_path):
    its = group("cpu")
    if isinstance(its, str):
        refused_for_want_of_a_group(served, tmp_path, "cpu_overload")
        return
    its.limit_cpu(0.5)
    instance = served({"one": its})
    server = pid_of(instance, "one")
    faults = Chaos(instance)
    id = faults.start("cpu_overload", intensity=1, **BRIEF, **AIMED)
    pid = at_work(environment, instance, its)
    assert its.pids() == {server, pid}
    report = faults.ended(id)
    assert (report["status"], report["leak"], report["targets"]) == ("completed", None, ["one"])
    resource = report["injection"]["resource"]
    assert (resource["requested"], resource["cgroup"]) == (1, str(its))
    # A half core for all, of which 5 % stay: never more, and on a machine that is busy less.
    assert 0 < resource["achieved"] <= 0.5 * 0.95 / len(os.sched_getaffinity(server)) + 0.01
    assert its.pids() == {server}


# --- It ends


def sigkill(instance, **_):
    instance.process.kill()


def stop(chaos, id, **_):
    chaos.stop(id)


def emergency_stop(chaos, **_):
    chaos.emergency_stop()


def death_of_the_server(server, **_):
    os.kill(server, signal.SIGKILL)


@pytest.mark.parametrize("scenario", FAULTS)
@pytest.mark.parametrize("end", [sigkill, stop, emergency_stop, death_of_the_server], ids=lambda end: end.__name__)
def test_nothing_is_left_in_the_group(environment, group, served, tmp_path, scenario, end):
    its = group(CONTROLLERS[scenario])
    if isinstance(its, str):
        refused_for_want_of_a_group(served, tmp_path, scenario)
        return
    instance = served({"one": its})
    server = pid_of(instance, "one")
    faults = Chaos(instance)
    id = faults.start(scenario, **FAULTS[scenario], **AIMED)
    pid = at_work(environment, instance, its)
    if scenario == "memory_pressure":
        wait_until(lambda: memory(pid) >= 64 * MIB, within=LONG, what="all of the memory")
    else:
        wait_until(lambda: faults.test(id)["details"]["injected"], within=LONG, what="its beginning")
    with watched(pid) as ends:
        end(instance=instance, chaos=faults, id=id, server=server)
        assert ends(GONE), "it is still there"
    wait_until(lambda: not proc(pid, "stat"), within=LONG, what="the last of it")
    if end is sigkill:
        # The guardian sees to the server.
        wait_until(lambda: not its.pids(), within=LONG, what="the end of the server")
        return
    report = faults.ended(id)
    assert (report["status"], report["leak"]) == ("aborted", None), report
    if end is death_of_the_server:
        assert report["error"] == f"helper let go: process {server} of one has ended, in whose control group it was"
    # The server that runs now is all that there is.
    assert its.pids() == {pid_of(instance, "one")}


# --- What cannot be


def test_a_server_without_a_group_of_its_own_is_refused(served, tmp_path):
    refused_for_want_of_a_group(served, tmp_path, "memory_pressure")
    refusals = [r for r in records(tmp_path / "data", "engine.jsonl") if r["event"] == "refused"]
    assert [r["parameters"]["cgroup"] for r in refusals] == ["target"]


def test_servers_in_different_groups_are_refused_unless_one_is_named(environment, group, served, tmp_path):
    its = group("memory")
    if isinstance(its, str):
        refused_for_want_of_a_group(served, tmp_path, "memory_pressure")
        return
    instance = served({"one": its, "two": None})
    for name in ("one", "two"):
        pid_of(instance, name)
    faults = Chaos(instance)
    status, reason = faults.refused("memory_pressure", cgroup="target")
    assert status == 400 and "the servers are in different control groups (" in reason, reason
    assert f"one in {its}" in reason and "expected target_processes to name one" in reason
    status, reason = faults.refused("memory_pressure", "/plan", **AIMED | {"target_processes": "two"})
    assert status == 400 and "two has no control group of its own" in reason, reason
    outlook = faults.post("memory_pressure", AIMED, "/plan").json()
    assert outlook["targets"] == ["one"]
    assert not helpers(environment)


def test_a_group_that_may_not_be_written_is_refused(environment, group, served, tmp_path):
    its = group("memory")
    if isinstance(its, str):
        refused_for_want_of_a_group(served, tmp_path, "memory_pressure")
        return
    # The test moves the server, which cannot do so itself.
    instance = served({"one": None}, preexec_fn=cgroups.without_write_access)
    its.add(pid_of(instance, "one"))
    status, reason = Chaos(instance).refused("memory_pressure", **FAULTS["memory_pressure"], **AIMED)
    expected = f"a helper cannot be moved to the control group of one: expected to be able to write {its}/cgroup.procs"
    remedy = "which takes a container that may write to its /sys/fs/cgroup"
    assert (status, reason) == (400, f"{expected}, {remedy}: Read-only file system (os error 30)")
    nothing_started(tmp_path, reason)
    assert not helpers(environment)


def test_without_a_server_that_it_starts_it_is_refused(instances, upstream):
    faults = Chaos(instances.proxy(upstream.url, "--name", "weather"))
    status, reason = faults.refused("cpu_overload", cgroup="target")
    expected = "cgroup=target needs a server that mcpscope starts, and starts again when it crashes"
    assert status == 409 and expected in reason, reason


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"cgroup": "theirs"}, 'cgroup is "theirs": expected own, target'),
        ({"target_processes": "one"}, "target_processes is given with cgroup=own: expected cgroup=target"),
        ({"cgroup": "target", "target_processes": "nobody"}, "no target of that name; there is one"),
    ],
)
def test_a_mistake_starts_nothing(environment, served, parameters, why):
    instance = served({"one": None})
    pid_of(instance, "one")
    for scenario in FAULTS:
        status, reason = Chaos(instance).refused(scenario, **parameters)
        assert status in (400, 409) and why in reason, reason
    assert not helpers(environment)
