"""A stdio server that crashes is started again, and its client goes on with the session that it has."""

import os
import signal

import anyio
import pytest
from mcp import MCPError
from mcp.client.stdio import StdioServerParameters

from everything import LONG, PROTOCOL, Exercise, run_async, stdio_session
from harness import marked, read_ready_file, scrape, settles_at, wait_until

FOREVER = {"MCPSCOPE_SUPERVISION_BACKOFF_MIN": "1h", "MCPSCOPE_SUPERVISION_BACKOFF_MAX": "1h"}


def server_pid(environment, program: str, without: int | None = None) -> int:
    """The process that runs `program`, once there is one that is not `without`."""

    def found():
        pids = [pid for pid, command in marked(environment.mark).items() if command.startswith(program)]
        return next((pid for pid in pids if pid != without), None)

    return wait_until(found, what=f"a process of {program}")


async def echoes(session):
    answer = await session.call_tool("echo", {"message": "hello"})
    assert not answer.is_error and "hello" in answer.content[0].text


async def kill_between_and_during_calls(environment, parameters, log, ready_file):
    async with stdio_session(parameters, log, Exercise()) as session:
        await session.initialize()
        await echoes(session)
        program = f"{environment.node} "
        first = server_pid(environment, program)
        os.kill(first, signal.SIGKILL)
        second = server_pid(environment, program, without=first)
        await echoes(session)

        failed = []
        at_work = anyio.Event()

        async def on_progress(*_):
            at_work.set()

        async def long_call():
            with pytest.raises(MCPError) as caught:
                await session.call_tool(LONG, {"duration": 60, "steps": 600}, progress_callback=on_progress)
            failed.append(caught.value.error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(long_call)
            await at_work.wait()
            os.kill(second, signal.SIGKILL)
        (error,) = failed
        assert (error.code, error.data) == (-32603, {"source": "mcpscope"})
        assert "the server crashed before it answered (signal: 9 (SIGKILL))" in error.message
        await echoes(session)
        assert {tool.name for tool in (await session.list_tools()).tools} > {"echo", LONG}

        dashboard = read_ready_file(ready_file)["dashboard"]
        metrics = scrape(dashboard)
        assert metrics.sum("mcpscope_restarts_total", server="everything") == 2
        assert metrics.by("protocol", "mcpscope_active_sessions", server="everything")[PROTOCOL] == 1
        calls = {("echo", "ok"): 3, (LONG, "error"): 1}
        assert metrics.tool_calls(server="everything", injected="false") == calls
        assert metrics.by("error_type", "mcpscope_component_errors_total", component="server") == {"crash": 2}
        assert metrics.sum("mcpscope_dropped_total", what="unmatched_response") == 0


def test_the_official_client_goes_on_after_a_crash(environment, instances, tmp_path):
    ready_file = tmp_path / "ready.json"
    options = ["--name", "everything", "--restart", "on-failure", "--dashboard", "127.0.0.1:0", "--grpc", "off"]
    command = [environment.node, environment.everything, "stdio"]
    parameters = StdioServerParameters(
        command=environment.mcpscope,
        args=["run", "--ready-file", str(ready_file), *options, "--", *command],
        env=instances.variables(),
    )
    with (tmp_path / "errors.txt").open("w") as log:
        run_async(kill_between_and_during_calls, environment, parameters, log, ready_file)


def test_it_is_not_ready_while_there_is_no_server(environment, instances):
    env = instances.variables() | FOREVER
    instance = instances.run("--restart", "on-failure", command=["cat"], env=env)
    assert instance.get("readyz").status_code == 200
    os.kill(server_pid(environment, "cat"), signal.SIGKILL)
    settles_at(503, lambda: instance.get("readyz").status_code)
    assert "server restarting, attempt 1" in instance.get("readyz").text
    transports = lambda: instance.get("api/v1/health").json()["components"]["transports"]  # noqa: E731
    wait_until(lambda: transports()["status"] == "critical", what="the component")
    assert transports()["message"] == "server restarting, attempt 1"
    assert instance.get("healthz").status_code == 200
    # A client that leaves needs no server.
    instance.process.stdin.close()
    assert instance.wait() == 128 + signal.SIGKILL


def test_it_is_ready_again_with_the_next_server(environment, instances):
    instance = instances.run("--restart", "on-failure", command=["cat"])
    os.kill(server_pid(environment, "cat"), signal.SIGKILL)
    settles_at(1, lambda: instance.metrics().sum("mcpscope_restarts_total"))
    settles_at(200, lambda: instance.get("readyz").status_code)
    stdout, _ = instance.process.communicate(b"still here\n", timeout=10)
    assert (stdout, instance.process.returncode) == (b"still here\n", 0)


def test_a_signal_ends_the_wait_for_the_next_server(environment, instances):
    env = instances.variables() | FOREVER
    instance = instances.run("--restart", "on-failure", command=["cat"], env=env)
    os.kill(server_pid(environment, "cat"), signal.SIGKILL)
    settles_at(503, lambda: instance.get("readyz").status_code)
    instance.process.terminate()
    assert instance.wait() == 128 + signal.SIGKILL


def test_too_many_crashes_end_it_with_the_last_exit_code(instances):
    env = instances.variables() | {"MCPSCOPE_SUPERVISION_GIVE_UP": "3", "MCPSCOPE_SUPERVISION_BACKOFF_MIN": "1ms"}
    instance = instances.run("--restart", "on-failure", command=["sh", "-c", "echo one; exit 9"], env=env, ready=False)
    assert instance.wait() == 9
    assert instance.process.stdout.read() == b"one\n" * 3
    assert "server given up after 3 crashes in 60 s" in instance.stderr()


@pytest.mark.parametrize(
    ("options", "configured", "starts"),
    [((), "auto", 1), ((), "never", 1), ((), "on-failure", 2), (("--restart", "never"), "on-failure", 1)],
)
def test_who_says_whether_it_is_started_again(instances, options, configured, starts):
    env = instances.variables() | {
        "MCPSCOPE_SUPERVISION_RESTART": configured,
        "MCPSCOPE_SUPERVISION_GIVE_UP": "2",
        "MCPSCOPE_SUPERVISION_BACKOFF_MIN": "1ms",
    }
    instance = instances.run(*options, command=["sh", "-c", "echo one; exit 9"], env=env, ready=False)
    assert (instance.wait(), instance.process.stdout.read()) == (9, b"one\n" * starts)


def test_the_demo_survives_the_end_of_its_server(environment, instances):
    demo = instances.demo()
    program = f"{environment.mcpscope} demo-server"
    calls = lambda: sum(demo.metrics().tool_calls(server="demo-stdio").values())  # noqa: E731
    wait_until(lambda: calls() > 0, within=20, what="the demo's traffic")
    os.kill(server_pid(environment, program), signal.SIGKILL)
    settles_at(1, lambda: demo.metrics().sum("mcpscope_restarts_total", server="demo-stdio"))
    before = calls()
    wait_until(lambda: calls() > before, within=20, what="the demo's traffic afterwards")
