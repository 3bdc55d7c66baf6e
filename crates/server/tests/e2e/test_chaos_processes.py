"""process_crash on real servers: a client's session goes on, and nobody else's process is touched."""

import collections
import contextlib
import json
import os
import signal
import subprocess

import anyio
import httpx
import pytest
from mcp import MCPError
from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client

from chaos import LONG, Chaos
from everything import LONG as LONG_RUNNING
from everything import PROTOCOL, Exercise, http_session, run_async
from harness import Instance, free_port, marked, read_ready_file, settles_at, wait_until
from processes import GONE, proc, records, stat, watched
from serving import AT_ONCE, NEVER, in_background, pid_of, post, server, started
from upstream import call

pytestmark = pytest.mark.usefixtures("alone")

# What each signal is to a call in flight. `stop` is to none: it is answered when the server goes on.
FATAL = ("kill", "term", "close_stdin")
IN_FLIGHT = 3
# Restarts as many and as fast as a test wants them.
EAGER = {f"MCPSCOPE_SUPERVISION_{name.upper()}": str(value) for name, value in AT_ONCE.items()}


def group(environment, beginning: str) -> list[int]:
    """The processes whose command line begins so."""
    return [pid for pid, command in marked(environment.mark).items() if command.startswith(beginning)]


def one(environment, beginning: str, without=()) -> int:
    """The only one of them, once there is one that is not among `without`."""

    def found():
        match set(group(environment, beginning)) - set(without):
            case pids if len(pids) == 1:
                return pids.pop()

    return wait_until(found, within=LONG, what=f"a process of {beginning}")


def is_stopped(pid: int) -> bool:
    return stat(pid)[:1] == ["T"]


# --- The reference server and the official client, over stdio


class Wire:
    """Counts what a client gets, by the id that it is the answer to."""

    def __init__(self):
        self.answers = collections.Counter()

    @contextlib.asynccontextmanager
    async def counting(self, read):
        sender, receiver = anyio.create_memory_object_stream(100)

        async def pump():
            async with sender:
                async for item in read:
                    if hasattr(item, "message") and not hasattr(item.message, "method"):
                        self.answers[item.message.id] += 1
                    await sender.send(item)

        async with anyio.create_task_group() as tasks, receiver:
            tasks.start_soon(pump)
            yield receiver
            tasks.cancel_scope.cancel()


async def echo(session, limit: float = LONG):
    answer = await session.call_tool("echo", {"message": "hello"}, read_timeout_seconds=limit)
    assert not answer.is_error and "hello" in answer.content[0].text


async def calls_in_flight(session, outcomes: list, disturb):
    """Makes calls, and disturbs them once all are at work; what becomes of each is added to `outcomes`."""
    at_work = [anyio.Event() for _ in range(IN_FLIGHT)]

    async def long_call(event, duration: float):
        async def on_progress(*_):
            event.set()

        try:
            arguments = {"duration": duration, "steps": 10 * duration}
            answer = await session.call_tool(LONG_RUNNING, arguments, progress_callback=on_progress)
            outcomes.append(answer.is_error)
        except MCPError as error:
            outcomes.append(error.error)

    async with anyio.create_task_group() as tasks:
        for event in at_work:
            # Longer than it takes to disturb them, and than anybody waits if they cannot be ended.
            tasks.start_soon(long_call, event, 300)
        for event in at_work:
            await event.wait()
        await anyio.to_thread.run_sync(disturb)


async def until_it_has_ended(session, chaos: Chaos, id: int) -> dict:
    """Goes on calling, as the recovery is judged by calls; gives the report."""
    with anyio.fail_after(2 * LONG):
        while id not in {test["id"] for test in await anyio.to_thread.run_sync(chaos.history)}:
            await echo(session)
            await anyio.sleep(0.05)
    return chaos.ended(id)


def check_outage(report: dict, name: str):
    """The process was gone once, and each step of its return is timed from its end."""
    (outage,) = report["outages"]
    assert outage["target"] == name
    steps = [outage[step] for step in ("restarted_after", "ready_after", "first_good_call_after")]
    assert steps == sorted(steps) and steps[-1] <= report["recovery"]["limit"], outage


def check_recovered(report: dict):
    assert (report["status"], report["leak"]) == ("completed", None), report
    assert report["recovery"]["observed"] and report["recovery"]["time"] <= report["recovery"]["limit"]
    assert (report["injection"]["injected"], report["injection"]["observed"]) == (1, 1)
    assert report["after"]["calls"] > 0 and report["after"]["errors"] == 0


async def crash_over_stdio(environment, parameters, log, instance, by: str):
    wire, outcomes = Wire(), []
    async with (
        stdio_client(parameters, log) as (read, write),
        wire.counting(read) as counted,
        ClientSession(counted, write, read_timeout_seconds=LONG) as session,
    ):
        assert (await session.initialize()).protocol_version == PROTOCOL
        await echo(session)
        instance.ready = read_ready_file(instance.ready_file)
        program = f"{environment.node} "
        first = one(environment, program)
        chaos = Chaos(instance)
        started = []

        def crash():
            started.append(chaos.start("process_crash", signal=by, duration="2s", recovery_time="60s"))

        await calls_in_flight(session, outcomes, crash)
        report = await until_it_has_ended(session, chaos, *started)
        check_recovered(report)
        check_outage(report, "everything")
        assert report["targets"] == ["everything"]
        assert [(error.code, error.data) for error in outcomes] == [(-32603, {"source": "mcpscope"})] * IN_FLIGHT
        why = "mcpscope: the server crashed before it answered"
        assert all(error.message.startswith(why) for error in outcomes), outcomes
        assert one(environment, program, without=[first]) and not proc(first, "stat")
        assert set(wire.answers.values()) == {1}, wire.answers

        metrics = instance.metrics()
        assert metrics.sum("mcpscope_restarts_total", server="everything") == 1
        assert metrics.by("protocol", "mcpscope_active_sessions", server="everything") == {PROTOCOL: 1}
        injected = metrics.tool_calls(server="everything", injected="true")
        assert injected[LONG_RUNNING, "error"] == IN_FLIGHT
        errors = {(tool, outcome) for tool, outcome in metrics.tool_calls(server="everything", injected="false")}
        assert errors == {("echo", "ok")}, "what a fault did is nobody else's"
        assert metrics.sum("mcpscope_dropped_total", what="unmatched_response") == 0


@pytest.fixture
def stdio(environment, instances, tmp_path):
    """Runs a function with the parameters of an official client, its log, and the instance that it will start."""
    instance = Instance(None, tmp_path / "ready.json", tmp_path / "errors.txt")

    def run(function, *arguments):
        options = ["--name", "everything", "--restart", "on-failure"]
        options += ["--ready-file", str(instance.ready_file), "--dashboard", "127.0.0.1:0", "--grpc", "off"]
        command = [environment.node, environment.everything, "stdio"]
        parameters = StdioServerParameters(
            command=environment.mcpscope, args=["run", *options, "--", *command], env=instances.variables()
        )
        with instance.stderr_file.open("w") as log:
            run_async(function, environment, parameters, log, instance, *arguments, limit=3 * LONG)

    return run


@pytest.mark.timeout(4 * LONG)
@pytest.mark.parametrize("by", FATAL)
def test_a_session_over_stdio_goes_on(stdio, by):
    stdio(crash_over_stdio, by)


async def stop_over_stdio(environment, parameters, log, instance):
    wire = Wire()
    async with (
        stdio_client(parameters, log) as (read, write),
        wire.counting(read) as counted,
        ClientSession(counted, write, read_timeout_seconds=LONG) as session,
    ):
        await session.initialize()
        await echo(session)
        instance.ready = read_ready_file(instance.ready_file)
        pid = one(environment, f"{environment.node} ")
        chaos = Chaos(instance)
        id = chaos.start("process_crash", signal="stop", duration="3s", recovery_time="60s")
        wait_until(lambda: is_stopped(pid), within=LONG, what="a standstill")
        async with anyio.create_task_group() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.start_soon(echo, session)
        assert chaos.test(id)["status"] != "running", "they were answered while it stood still"
        report = await until_it_has_ended(session, chaos, id)
        check_recovered(report)
        touched = [(report[slot].get("touched") or {}).get("calls", 0) for slot in ("during", "after")]
        assert sum(touched) == IN_FLIGHT, "all of them waited for its end"
        assert one(environment, f"{environment.node} ") == pid and not is_stopped(pid)
        assert set(wire.answers.values()) == {1}, wire.answers
        injected = instance.metrics().tool_calls(server="everything", injected="true")
        assert injected == {("echo", "ok"): IN_FLIGHT}, "they were late by the fault, and the others were not"


@pytest.mark.timeout(4 * LONG)
def test_what_was_asked_while_it_stood_still_is_answered_afterwards(stdio):
    stdio(stop_over_stdio)


# --- The same over HTTP


async def crash_over_http(environment, instance, by: str):
    url, program, outcomes = instance.ready["proxy"]["everything"], f"{environment.node} ", []
    first = one(environment, program)
    chaos = Chaos(instance)
    started = []

    def crash():
        started.append(chaos.start("process_crash", signal=by, duration="2s", recovery_time="60s"))

    async with http_session(url, Exercise()) as session:
        assert (await session.initialize()).protocol_version == PROTOCOL
        await echo(session)
        await calls_in_flight(session, outcomes, crash)
        one(environment, program, without=[first])
        # The next process has never heard of it, and says so.
        with pytest.raises(MCPError):
            await echo(session)
    async with http_session(url, Exercise()) as session:
        await session.initialize()
        report = await until_it_has_ended(session, chaos, *started)
    check_recovered(report)
    check_outage(report, "everything")
    told = (-32603, "mcpscope: the server crashed before it answered", {"source": "mcpscope"})
    assert [(error.code, error.message, error.data) for error in outcomes] == [told] * IN_FLIGHT
    assert not proc(first, "stat")
    metrics = instance.metrics()
    assert metrics.sum("mcpscope_restarts_total", server="everything") == 1
    assert metrics.tool_calls(server="everything", injected="true")[LONG_RUNNING, "error"] == IN_FLIGHT
    assert (LONG_RUNNING, "error") not in metrics.tool_calls(server="everything", injected="false")


def everything(environment) -> dict:
    port = free_port()
    command = ["env", f"PORT={port}", environment.node, environment.everything, "streamableHttp"]
    return server("everything", f"http://127.0.0.1:{port}/mcp", command=command)


@pytest.mark.timeout(4 * LONG)
@pytest.mark.parametrize("by", ["kill", "term"])
def test_a_client_over_http_begins_anew(environment, serve, by):
    instance = serve(everything(environment), supervision=AT_ONCE)
    run_async(crash_over_http, environment, instance, by, limit=3 * LONG)


def test_calls_that_a_crash_breaks_over_http_are_marked(serve):
    instance = serve(started("one"), supervision=AT_ONCE)
    pid_of(instance, "one")
    chaos = Chaos(instance)
    with in_background(lambda: post(instance, "one", call("hang"))) as wait:
        wait_until(lambda: "asked hang\n" in instance.stderr(), within=LONG, what="the call")
        id = chaos.start("process_crash", duration="2s", recovery_time="1s")
        assert wait().status_code == 502
        pid_of(instance, "one")
        report = chaos.ended(id)
    metrics = wait_until(lambda: (seen := instance.metrics()).tool_calls(tool="hang") and seen, what="the call's end")
    assert metrics.tool_calls(tool="hang", injected="true") == {("hang", "error"): 1}
    assert report["during"]["errors"] == 0 and report["time_to_detect"] is None


def test_what_becomes_of_calls_over_http_while_one_stands_still_is_not_its_own_doing(environment, serve):
    instance = serve(started("one"), supervision=AT_ONCE)
    pid = pid_of(instance, "one")
    chaos = Chaos(instance)
    id = chaos.start("process_crash", signal="stop", recovery_time="60s", abort_when="error_rate > 0")
    wait_until(lambda: is_stopped(pid), within=LONG, what="a standstill")
    with in_background(lambda: post(instance, "one", call("late"))) as wait:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(instance.ready["proxy"]["one"], json=call("given up"), trust_env=False, timeout=1)
        given_up = lambda: instance.metrics().tool_calls(tool="given up", injected="true")  # noqa: E731
        assert wait_until(given_up, within=LONG, what="its end") == {("given up", "cancelled"): 1}
        chaos.stop(id)
        assert wait().status_code == 200
    assert pid_of(instance, "one") == pid
    report, metrics = chaos.ended(id), instance.metrics()
    assert metrics.tool_calls(injected="true") == {("given up", "cancelled"): 1, ("late", "ok"): 1}
    assert metrics.tool_calls(injected="false") == {("pid", "ok"): 2}
    assert report["during"]["errors"] == 0 and report["during"]["touched"]["errors"] == 1, report["during"]
    traces = instance.get("api/v1/traces?injected=true").json()
    assert {trace["tool"] for trace in traces} == {"given up", "late"}


def test_what_clients_waited_for_a_server_is_in_figures_and_verdict(serve, instances):
    instance = serve(started("one"), supervision=AT_ONCE | {"backoff_min": "1500ms", "backoff_max": "1500ms"})
    pid_of(instance, "one")
    chaos = Chaos(instance)
    id = chaos.start("process_crash", duration="100ms", recovery_time="60s")
    while id not in {test["id"] for test in chaos.history()}:
        # One that meets it just as it crashes is lost.
        post(instance, "one", call("pid"))
    report = chaos.ended(id)
    (outage,) = report["outages"]
    back = outage["at"] + outage["first_good_call_after"] - (report["end_time"] - report["start_time"])
    assert report["status"] == "completed" and abs(report["recovery"]["time"] - back) <= 5, report
    waited = instance.metrics().sum("mcpscope_tool_call_duration_seconds_sum", tool="pid", outcome="ok")
    # Whoever asked first has waited for most of it.
    assert waited >= outage["ready_after"] / 1000 - 0.5 > 0.5
    longest = max(trace["duration_ms"] for trace in instance.get("api/v1/traces?tool=pid&limit=1000").json())
    assert longest <= outage["first_good_call_after"] + 500


def test_one_that_is_away_for_too_long_has_failed(serve, instances):
    instance = serve(started("one"), supervision=NEVER)
    pid_of(instance, "one")
    chaos = Chaos(instance)
    report = chaos.ended(chaos.start("process_crash", duration="1s", recovery_time="2s"))
    assert (report["status"], report["error"]) == ("failed", "one was not started again within 2s")
    (outage,) = report["outages"]
    assert outage["target"] == "one" and outage["restarted_after"] is None
    shown = instances.finish("chaos", "report", str(report["id"]), within=LONG).stdout.decode()
    assert "one was not started again within 2s" in shown and "first good call after" in shown


# --- Who is meant, and who is not


@pytest.fixture
def wrapped(instances, tmp_path):
    """`mcpscope run` of a command, with files of settings beside each other."""

    def run(*command: str, restart: str = "on-failure", **plan):
        config = tmp_path / "mcpscope.yaml"
        config.write_text("chaos: { mode: manual }\n")
        # JSON is YAML.
        (tmp_path / "chaos.yaml").write_text(json.dumps(plan))
        kept = ("--config", str(config), "--data", str(tmp_path / "data"))
        named = ("--name", "wrapped", "--restart", restart)
        return instances.run(*kept, *named, command=list(command), env=instances.variables() | EAGER)

    return run


@pytest.fixture
def decoy(instances):
    """A process that mcpscope has nothing to do with, and which looks like the one that it has started."""
    command = {"env": instances.variables(), "start_new_session": True}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **command) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("by", [*FATAL, "stop"])
def test_one_that_only_looks_like_it_is_never_touched(environment, wrapped, decoy, by):
    instance = wrapped("cat")
    own = one(environment, "cat", without=[decoy.pid])
    assert proc(own, "cmdline") == proc(decoy.pid, "cmdline")
    chaos = Chaos(instance)
    crash = chaos.post("process_crash", {"signal": by}, "/plan").json()["crash"]
    (process,) = crash["processes"]
    assert (process["pid"], process["program"], process["group"], process["restarted_after"]) == (own, "cat", 1, 1), crash
    assert (crash["signal"], crash["most"]) == (by, 1), crash
    id = chaos.start("process_crash", signal=by)
    if by == "stop":
        wait_until(lambda: is_stopped(own), within=LONG, what="a standstill")
    else:
        one(environment, "cat", without=[decoy.pid, own])
    assert stat(decoy.pid)[0] == "S"
    chaos.stop(id)
    assert chaos.ended(id)["leak"] is None
    decoy.stdin.write(b"still here\n")
    decoy.stdin.flush()
    assert decoy.stdout.readline() == b"still here\n"
    assert decoy.poll() is None


def test_one_that_stands_still_goes_on_though_mcpscope_was_killed(environment, wrapped, tmp_path):
    told = tmp_path / "told"
    # It can only say so if it goes on: signals wait for as long as it stands still. The first may be the system's own,
    # to a process group that stands still and whose parent is gone.
    instance = wrapped("sh", "-c", f"trap 'echo went on > {told}; exit 0' TERM HUP; sleep 1000 & wait")
    shell = one(environment, "sh -c trap")
    chaos = Chaos(instance)
    chaos.start("process_crash", signal="stop")
    wait_until(lambda: is_stopped(shell), within=LONG, what="a standstill")
    with watched(shell) as ends:
        instance.process.kill()
        instance.wait(LONG)
        # A second is its own, to end by itself.
        assert ends(GONE), f"it is still there: {stat(shell)[:1]}"
    assert told.read_text() == "went on\n"
    wait_until(lambda: not marked(environment.mark), within=LONG, what="the end of all")
    again = wrapped("cat")
    assert "an earlier run ended in the middle of experiment 1; nothing of it is left\n" in again.stderr()


@pytest.mark.parametrize("end", ["stop", "emergency_stop", "reload", "sigterm"])
def test_one_that_stands_still_goes_on_however_that_ends(environment, wrapped, tmp_path, end):
    instance = wrapped("cat")
    pid = one(environment, "cat")
    chaos = Chaos(instance)
    id = chaos.start("process_crash", signal="stop")
    wait_until(lambda: is_stopped(pid), within=LONG, what="a standstill")
    match end:
        case "stop":
            chaos.stop(id)
        case "emergency_stop":
            chaos.emergency_stop()
        case "reload":
            (tmp_path / "chaos.yaml").write_text("chaos_engine: { enabled: false }\n")
            wait_until(lambda: "mcpscope: chaos is off" in instance.stderr(), within=LONG, what="the changed plan")
        case "sigterm":
            # Passed on to the server, which ends by it.
            with watched(pid) as ends:
                instance.process.terminate()
                assert ends(GONE), "it stands still"
            instance.wait(LONG)
            return
    wait_until(lambda: not is_stopped(pid), within=GONE, what="its going on")
    report = chaos.ended(id)
    assert (report["status"], report["leak"]) == ("aborted", None)
    stdout, _ = instance.process.communicate(b"still here\n", timeout=LONG)
    assert stdout == b"still here\n"


def test_a_death_from_elsewhere_while_it_stands_still_leaves_nothing(environment, wrapped):
    instance = wrapped("cat")
    pid = one(environment, "cat")
    chaos = Chaos(instance)
    id = chaos.start("process_crash", signal="stop")
    wait_until(lambda: is_stopped(pid), within=LONG, what="a standstill")
    os.kill(pid, signal.SIGKILL)
    following = one(environment, "cat", without=[pid])
    chaos.stop(id)
    report = chaos.ended(id)
    assert (report["status"], report["leak"]) == ("aborted", None)
    assert one(environment, "cat") == following and not is_stopped(following)


@pytest.mark.parametrize("target", ["wrapped", "wrap*", "tools"])
def test_a_crash_every_second_meets_whoever_runs(environment, wrapped, target):
    instance = wrapped("cat")
    first = one(environment, "cat")
    chaos = Chaos(instance)
    id = chaos.start("process_crash", crash_rate=1, target_processes=target)
    restarts = lambda: instance.metrics().sum("mcpscope_restarts_total", server="wrapped")  # noqa: E731
    wait_until(lambda: restarts() >= 3, within=LONG, what="the third crash")
    chaos.stop(id)
    report = chaos.ended(id)
    assert report["leak"] is None
    settles_at(report["injection"]["injected"], restarts, within=LONG)
    assert one(environment, "cat") != first


def test_a_rate_of_0_meets_nobody(environment, wrapped):
    instance = wrapped("cat")
    pid = one(environment, "cat")
    chaos = Chaos(instance)
    report = chaos.ended(chaos.start("process_crash", crash_rate=0, duration="2s", recovery_time="1s"))
    assert report["injection"]["injected"] == 0 and one(environment, "cat") == pid


# --- What is refused


def told_in_the_journal(folder) -> list[str]:
    journal = lambda: records(folder / "data", "engine.jsonl")  # noqa: E731
    refused = lambda: [entry["reason"] for entry in journal() if entry["event"] == "refused"]  # noqa: E731
    return wait_until(refused, within=LONG, what="the attempt in the journal")


def test_no_more_are_killed_in_an_hour_than_may_be(environment, wrapped, instances, tmp_path):
    instance = wrapped("cat", blast_radius={"max_kills_per_hour": 1})
    first = one(environment, "cat")
    why = "1 crashes in the last hour: expected fewer (blast_radius.max_kills_per_hour)"
    chaos = Chaos(instance)
    # Of all that are due only the first happens.
    id = chaos.start("process_crash", crash_rate=1)
    second = one(environment, "cat", without=[first])
    assert told_in_the_journal(tmp_path) == [why]
    chaos.stop(id)
    assert chaos.ended(id)["injection"]["injected"] == 1
    assert chaos.refused("process_crash") == (409, why)
    done = instances.finish("chaos", "start", "process_crash", within=LONG)
    assert done.returncode == 69 and why in done.stderr.decode(), done
    assert one(environment, "cat") == second


def test_what_is_protected_is_not_touched(environment, wrapped, tmp_path):
    instance = wrapped("cat", blast_radius={"protected": ["wrap*"]})
    pid = one(environment, "cat")
    chaos = Chaos(instance)
    why = "process_crash matches nothing: all that match are critical or protected; there is wrapped"
    for wanted in [{}, {"target_processes": "wrapped"}, {"signal": "stop"}, {"crash_rate": 1}]:
        assert chaos.refused("process_crash", **wanted) == (409, why)
    assert told_in_the_journal(tmp_path) == [why] * 4
    assert one(environment, "cat") == pid and not is_stopped(pid)


def test_what_is_critical_is_not_touched_and_what_is_beside_it_is(serve):
    instance = serve(started("vital", critical=True), started("other"), supervision=AT_ONCE)
    vital, other = pid_of(instance, "vital"), pid_of(instance, "other")
    chaos = Chaos(instance)
    status, why = chaos.refused("process_crash", target_processes="vital")
    assert status == 409 and "all that match are critical or protected; there is" in why
    assert chaos.status()["active_tests"] == 0
    id = chaos.start("process_crash")
    assert chaos.test(id)["details"]["targets"] == ["other"]
    assert pid_of(instance, "other") != other and pid_of(instance, "vital") == vital
    chaos.stop(id)


def test_a_name_that_nobody_has_is_told_which_there_are(environment, serve, instances):
    instance = serve(started("one"), started("two"))
    pids = [pid_of(instance, name) for name in ("one", "two")]
    why = "process_crash matches nothing: no target of that name; there is one, two"
    chaos = Chaos(instance)
    for path in ("/plan", "/experiments"):
        assert chaos.refused("process_crash", path, target_processes="three") == (409, why)
    done = instances.finish("chaos", "start", "process_crash", "target_processes=three", within=LONG)
    assert done.returncode == 64 and why in done.stderr.decode(), done
    assert [pid_of(instance, name) for name in ("one", "two")] == pids


def test_a_server_that_is_not_started_again_is_no_target(environment, wrapped, tmp_path):
    instance = wrapped("cat", restart="never")
    pid = one(environment, "cat")
    chaos = Chaos(instance)
    status, why = chaos.refused("process_crash")
    assert status == 409 and "expected a server that mcpscope starts again (run --restart on-failure" in why
    assert "process_crash" not in chaos.status()["available_scenarios"]
    assert told_in_the_journal(tmp_path) == [why] and one(environment, "cat") == pid


def test_where_nothing_is_started_there_is_nothing_to_crash(instances, upstream):
    proxy = instances.proxy(upstream.url)
    chaos = Chaos(proxy)
    status, why = chaos.refused("process_crash")
    assert status == 409 and "expected a server that mcpscope starts again (run --restart on-failure" in why
