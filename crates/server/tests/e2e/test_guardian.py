"""A server that mcpscope starts ends with it, even if mcpscope is killed and can do nothing about it any more."""

import os
import pathlib
import signal

import httpx
import pytest

from harness import marked, wait_until
from serving import started, state

# It cares for no signal, nor for the end of its input; nor does its child.
STUBBORN = "trap '' TERM INT HUP; sleep 1000 & sleep 1000; sleep 1000"
GUARDIAN = "mcpscope-guardian "
# More than the second that a server has to end by itself, and a loaded machine.
SOON = 30


def guardians(environment) -> list[int]:
    return [pid for pid, command in marked(environment.mark).items() if command.startswith(GUARDIAN)]


def guardian(environment) -> int:
    """The only one, once it watches."""

    def watches():
        match guardians(environment):
            case [pid] if name(pid) == "mcpscope-guard":
                return pid

    return wait_until(watches, within=SOON, what="one guardian")


def name(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def sleepers(environment) -> list[int]:
    return [pid for pid, command in marked(environment.mark).items() if command.startswith("sleep ")]


def all_gone(environment):
    wait_until(lambda: not marked(environment.mark), within=SOON, what=f"the end of {marked(environment.mark)}")


@pytest.mark.parametrize("restart", ["on-failure", "never"])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_stdio_server_ends_with_a_killed_mcpscope(environment, instances, restart, stopped):
    instance = instances.run("--restart", restart, command=["sh", "-c", STUBBORN])
    wait_until(lambda: len(sleepers(environment)) == 2, within=SOON, what="the server and its child")
    guardian(environment)
    if stopped:
        group = os.getpgid(sleepers(environment)[0])
        os.killpg(group, signal.SIGSTOP)
        wait_until(lambda: all(state(pid) == "T" for pid in sleepers(environment)), within=SOON, what="a standstill")
    instance.process.kill()
    all_gone(environment)


def test_a_server_that_serves_http_itself_ends_with_a_killed_mcpscope(environment, serve):
    instance = serve(started("one"), started("two"))
    wait_until(lambda: len(guardians(environment)) == 2, within=SOON, what="two guardians")
    instance.process.kill()
    all_gone(environment)


def test_the_demos_server_ends_with_a_killed_mcpscope(environment, instances):
    demo = instances.demo()
    guardian(environment)
    demo.process.kill()
    all_gone(environment)


def test_a_server_without_its_guardian_runs_on(environment, instances):
    instance = instances.run(command=["sh", "-c", "cat; exit 7"])
    os.kill(guardian(environment), signal.SIGKILL)
    stdout, _ = instance.process.communicate(b"hello\n", timeout=SOON)
    assert (stdout, instance.process.returncode) == (b"hello\n", 7)


def test_what_a_server_leaves_behind_is_its_own_business(environment, instances):
    """It ended by itself, and mcpscope with it: nobody was killed."""
    instance = instances.run(command=["sh", "-c", "sleep 1000 > /dev/null 2>&1 & exit 3"], ready=False)
    assert instance.wait(SOON) == 3
    wait_until(lambda: not guardians(environment), within=SOON, what="the end of the guardian")
    (left,) = sleepers(environment)
    os.kill(left, signal.SIGKILL)


def test_a_guardian_is_small(environment, instances):
    instances.run(command=["cat"])
    status = pathlib.Path(f"/proc/{guardian(environment)}/status").read_text()
    own = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    assert int(own.split()[1]) < 4096, status


def crash(instance, **parameters) -> httpx.Response:
    headers = {"X-Mcpscope-Request": "1"}
    body = {"scenario": "process_crash", "parameters": parameters}
    url = f"{instance.dashboard}api/v1/chaos/experiments"
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=SOON)


def test_what_a_fault_holds_up_ends_with_a_killed_mcpscope(environment, instances):
    instance = instances.run("--restart", "on-failure", "--no-auth", command=["sh", "-c", STUBBORN])
    wait_until(lambda: len(sleepers(environment)) == 2, within=SOON, what="the server and its child")
    answer = crash(instance, signal="stop", duration="60s")
    assert answer.status_code == 202, answer.text
    wait_until(lambda: all(state(pid) == "T" for pid in sleepers(environment)), within=SOON, what="a standstill")
    instance.process.kill()
    all_gone(environment)


def test_what_a_fault_holds_up_goes_on_when_it_ends(environment, instances):
    instance = instances.run("--restart", "on-failure", "--no-auth", command=["sh", "-c", STUBBORN])
    wait_until(lambda: len(sleepers(environment)) == 2, within=SOON, what="the server and its child")
    assert crash(instance, signal="stop", duration="1s").status_code == 202
    before = sleepers(environment)
    history = lambda: instance.get("api/v1/chaos").json()["active_tests"]  # noqa: E731
    wait_until(lambda: history() == 0, within=SOON, what="the end of the experiment")
    assert all(state(pid) == "S" for pid in before)
    instance.process.kill()
    all_gone(environment)
