"""`mcpscope demo`: everything visible at once, with nothing else installed."""

import re
import signal
import time

import pytest
from mcp import Client

from everything import run_async
from harness import marked, wait_until

SERVERS = {"demo", "demo-stdio"}


@pytest.fixture
def demo(instances):
    return instances.spawn("demo", "--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0")


def test_live_figures_of_both_servers_within_ten_seconds(demo):
    calls = lambda: demo.metrics().by("server", "mcpscope_tool_call_duration_seconds_count")  # noqa: E731
    wait_until(lambda: set(calls()) >= SERVERS, within=10, what="tool calls of both servers")
    before = calls()
    # Live: the figures move on.
    wait_until(lambda: all(calls()[name] > before[name] for name in SERVERS), within=10, what="more calls")
    metrics = demo.metrics()
    assert metrics.sum("mcpscope_transport_connections", server="demo-stdio", transport="stdio") >= 1
    for name in SERVERS:
        assert metrics.sum("mcpscope_session_creation_seconds_count", server=name) >= 1, name


def test_every_behaviour_of_the_built_in_tools_shows(demo):
    """Its tools differ, so that there is something to see: some calls fail."""
    seen = lambda label: set(demo.metrics().by(label, "mcpscope_tool_call_duration_seconds_count"))  # noqa: E731
    wait_until(lambda: {"ok", "error"} <= seen("outcome"), within=30, what="good and failed calls")
    wait_until(lambda: {"echo", "add", "slow", "flaky"} <= seen("tool"), within=30, what="calls of several tools")


@pytest.mark.parametrize(("mode", "protocol"), [("legacy", "2025-11-25"), ("2026-07-28", "2026-07-28")])
def test_the_official_client_calls_echo(demo, mode, protocol):
    """In both eras of the protocol, on the same address."""

    async def call():
        async with Client(demo.ready["proxy"]["demo"], mode=mode, read_timeout_seconds=10) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            answer = await client.call_tool("echo", {"message": "hello demo"})
            return tools["echo"].input_schema, answer, client.protocol_version

    schema, answer, version = run_async(call)
    assert list(schema["properties"]) == ["message"]
    assert not answer.is_error and "hello demo" in answer.content[0].text
    assert version == protocol


def test_its_listeners_are_printed_and_stdout_stays_empty(demo):
    stderr = demo.stderr()
    assert re.search(rf"^dashboard {re.escape(demo.dashboard)}$", stderr, re.M), stderr
    assert re.search(rf"^proxy {re.escape(demo.ready['proxy']['demo'])}$", stderr, re.M), stderr
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", demo.dashboard)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/mcp", demo.ready["proxy"]["demo"])
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0
    assert demo.process.stdout.read() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(demo, environment, number):
    child = lambda: set(marked(environment.mark)) - {demo.process.pid}  # noqa: E731
    wait_until(child, within=10, what="the stdio child")
    asked = time.monotonic()
    demo.process.send_signal(number)
    assert demo.wait(5) == 0
    assert time.monotonic() - asked < 5
    # Nothing is left at the moment it has ended, not just some time later.
    assert not child(), marked(environment.mark)
    assert "panicked" not in demo.stderr()


def test_a_taken_port_is_an_error(instances, upstream):
    """Only `run` may take another port: here the address was asked for."""
    taken = f"127.0.0.1:{upstream.server.server_port}"
    done = instances.finish("demo", "--listen", taken, "--dashboard", "127.0.0.1:0")
    assert done.returncode == 69
    assert taken in done.stderr.decode()
    assert done.stdout == b""
