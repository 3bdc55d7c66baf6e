"""Every fault at once, and then the end of them: within two seconds nothing of them is left, however that comes about."""

import contextlib
import os
import signal

import pytest

from chaos import LONG, Chaos
from harness import marked, wait_until
from processes import GONE, helpers, memory, proc, stat, watched

pytestmark = pytest.mark.usefixtures("alone")

MIB = 1 << 20
# What does something to a server at rest, or would otherwise stop it for good; the others have what they need.
PARAMETERS = {
    "latency_injection": {"delay": "10m"},
    "process_crash": {"signal": "stop"},
    "memory_pressure": {"size": "32MiB"},
    "cpu_overload": {"intensity": 0.2},
    "slow_stream": {"bytes_per_second": 1},
}
# What can be done to nobody here: they need a revision, a transport or a session that the demo does not have at its start.
NOT_HERE = {"header_mismatch", "input_required_loop", "stale_session", "version_reject"}
# Nothing that the faults do may keep another from being started.
LENIENT = {"steady_state": "error_rate <= 1", "recovery_time": "1s"}
SWEPT = "mcpscope: an earlier run ended in the middle of experiment"


@pytest.fixture
def demo(instances, tmp_path):
    """Starts a demo, which has a server over HTTP and one over stdio, on the same data each time."""
    config = tmp_path / "mcpscope.yaml"
    config.write_text("chaos: { mode: manual }\n")
    (tmp_path / "chaos.yaml").write_text(
        "chaos_engine: { max_concurrent_tests: 50 }\nblast_radius: { min_healthy: 0 }\n"
    )

    def start():
        return instances.demo("--config", str(config), "--data", str(tmp_path / "data"), "--name", "demo")

    return start


def stopped(environment) -> list[int]:
    return [pid for pid in marked(environment.mark) if stat(pid)[:1] == ["T"]]


def all_at_once(chaos: Chaos) -> dict[str, int]:
    """Starts everything that can be, each for a minute: first what stops a server, as long as it is there."""
    names = [scenario["name"] for scenario in chaos.ask("GET", "/scenarios").json()]
    started = {}
    for name in sorted(names, key=lambda name: name != "process_crash"):
        answer = chaos.post(name, {"duration": "60s"} | LENIENT | PARAMETERS.get(name, {}))
        if answer.status_code == 202:
            started[name] = answer.json()["id"]
    assert set(names) - set(started) <= NOT_HERE, set(names) - set(started)
    return started


def at_work(environment) -> tuple[list[int], int]:
    """The helpers, once they have what they are to take, and the server that stands still."""
    busy = lambda pid: memory(pid) >= 32 * MIB or sum(map(int, stat(pid)[11:13] or [0])) >= 5  # noqa: E731
    both = lambda: (pids := helpers(environment)) and len(pids) == 2 and all(map(busy, pids)) and pids  # noqa: E731
    found = wait_until(both, within=LONG, what="the helpers at work")
    (still,) = wait_until(lambda: stopped(environment), within=LONG, what="a standstill")
    return found, still


def all_at_work(environment, instance, folder) -> tuple[Chaos, dict[str, int], list[int], int]:
    called = lambda: all(instance.metrics().tool_calls(server=name) for name in ("demo", "demo-stdio"))  # noqa: E731
    wait_until(called, within=LONG, what="traffic")
    chaos = Chaos(instance, folder / "data")
    started = all_at_once(chaos)
    return chaos, started, *at_work(environment)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM], ids=lambda end: end.name)
def test_when_mcpscope_ends(environment, demo, tmp_path, end):
    """SIGABRT is what a panic is that nobody catches."""
    instance = demo()
    _, started, pids, still = all_at_work(environment, instance, tmp_path)
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(watched(pid)) for pid in pids]
        instance.process.send_signal(end)
        assert all(ended(GONE) for ended in ends), "a helper is still there"
    wait_until(lambda: still not in stopped(environment), within=GONE, what="the end of the standstill")
    instance.wait(LONG)
    wait_until(lambda: not marked(environment.mark), within=LONG, what="the end of all")

    again = demo()
    # Who ends in order leaves nothing to sweep.
    assert (SWEPT in again.stderr()) == (end != signal.SIGTERM), again.stderr()
    ended = {test["id"]: test["status"] for test in Chaos(again).history()}
    assert ended == dict.fromkeys(started.values(), "aborted")
    assert not [*tmp_path.glob("data/*/chaos/*.running.jsonl")]
    assert not helpers(environment) and not stopped(environment)


@pytest.mark.parametrize("end", ["emergency_stop", "reload", "target_death"])
def test_while_mcpscope_lives(environment, demo, tmp_path, end):
    instance = demo()
    before = memory(instance.process.pid)
    chaos, started, pids, still = all_at_work(environment, instance, tmp_path)
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(watched(pid)) for pid in pids]
        match end:
            case "emergency_stop":
                chaos.emergency_stop()
            case "reload":
                (tmp_path / "chaos.yaml").write_text("chaos_engine: { enabled: false }\n")
                wait_until(lambda: "mcpscope: chaos is off" in instance.stderr(), within=LONG, what="the changed plan")
            case "target_death":
                os.kill(still, signal.SIGKILL)
                wait_until(lambda: not proc(still, "stat"), within=LONG, what="the end of the server")
                for id in started.values():
                    chaos.stop(id)
        assert all(ended(GONE) for ended in ends), "a helper is still there"
    wait_until(lambda: not stopped(environment), within=GONE, what="the end of the standstill")
    for name, id in started.items():
        report = chaos.ended(id)
        assert (report["status"], report["leak"]) == ("aborted", None), (name, report)
        assert "queues" in report["audit"]["looked_at"]
    status = chaos.status()
    assert status["stopped_by"] == ("a person" if end == "emergency_stop" else None)
    assert not helpers(environment)
    # What the helpers took was never its own.
    assert memory(instance.process.pid) < before + 64 * MIB
