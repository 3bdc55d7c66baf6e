"""The reference MCP server behind mcpscope: the official client sees the same answers, and the counts are exact."""

import os

import anyio
import httpx
import pytest
from mcp.client.stdio import StdioServerParameters

from everything import LONG, PROTOCOL, Exercise, exercise, http_session, run_async, stdio_session
from harness import read_ready_file, scrape, settles_at, wait_until
from scrape import Metrics

NAME = "everything"
SESSIONS = 10


def counted(metrics: Metrics) -> dict:
    """The figures that must follow from the calls alone."""
    errors = metrics.by("error_type", "mcpscope_component_errors_total", component="tools", injected="false")
    registry = metrics.by("operation", "mcpscope_registry_operations_total", server=NAME)
    # mcpscope registers the server itself; that is no call of the client's.
    own = sum(registry.pop(operation, 0) for operation in ("register", "unregister"))
    return {
        "tool calls": metrics.tool_calls(server=NAME, injected="false"),
        "injected": metrics.tool_calls(injected="true"),
        "other servers": {s.labels["server"] for s in metrics.samples if "server" in s.labels} - {NAME},
        "registry": registry,
        "sessions": metrics.by("protocol", "mcpscope_session_creation_seconds_count", server=NAME),
        "component tools": metrics.sum("mcpscope_component_operations_total", component="tools", injected="false"),
        "component registry": metrics.sum("mcpscope_component_operations_total", component="registry") - own,
        "component json_rpc": metrics.sum("mcpscope_component_operations_total", component="json_rpc"),
        "tool errors": errors.get("tool_error", 0),
        "registry errors": metrics.sum("mcpscope_component_errors_total", component="registry"),
        "dropped": metrics.by("what", "mcpscope_dropped_total"),
    }


def expected(record: Exercise, sessions: int = 1) -> dict:
    registry = record.registry | ({"list_changed": record.list_changed} if record.list_changed else {})
    return {
        "tool calls": record.tool_calls,
        "injected": {},
        "other servers": set(),
        "registry": registry,
        "sessions": {PROTOCOL: sessions},
        "component tools": sum(record.tool_calls.values()),
        "component registry": sum(registry.values()),
        "component json_rpc": record.requests,
        "tool errors": sum(n for (_, outcome), n in record.tool_calls.items() if outcome == "error"),
        # Reading a resource that does not exist is the caller's error (-32602), not the registry's.
        "registry errors": 0,
        "dropped": {},
    }


def check_durations(metrics: Metrics):
    """Durations are measured, not just counted: in seconds, buckets cumulative up to the count."""
    name = "mcpscope_tool_call_duration_seconds"
    # Each took 0.2 s by another clock than mcpscope's; what was given up lasted no longer than until then.
    assert 0.15 <= metrics.sum(f"{name}_sum", tool=LONG, outcome="ok") < 5
    for outcome in ("timeout", "cancelled"):
        assert 0.15 <= metrics.sum(f"{name}_sum", tool=LONG, outcome=outcome) < 1
    for sample in metrics.matching(f"{name}_count"):
        buckets = [b.value for b in metrics.matching(f"{name}_bucket", **sample.labels)]
        assert buckets == sorted(buckets) and buckets[-1] == sample.value


def open_now(metrics: Metrics, transport: str) -> dict:
    return {
        "sessions": metrics.sum("mcpscope_active_sessions", server=NAME, protocol=PROTOCOL),
        "connections": metrics.sum("mcpscope_transport_connections", server=NAME, transport=transport),
        "queued": metrics.sum("mcpscope_message_queue_depth", server=NAME),
    }


async def settled(want, read):
    """`settles_at` without holding up the client, which still has notifications to take in."""
    await anyio.to_thread.run_sync(lambda: settles_at(want(), read))


def test_same_answers_and_exact_counts_over_stdio(environment, tmp_path):
    server = [environment.node, environment.everything, "stdio"]
    variables = environment.variables(tmp_path)
    ready_file = tmp_path / "ready.json"
    options = ["run", "--dashboard", "127.0.0.1:0", "--name", NAME, "--ready-file", str(ready_file), "--"]

    async def session(command: list[str], record: Exercise, meanwhile=None):
        parameters = StdioServerParameters(command=command[0], args=command[1:], env=variables)
        with (tmp_path / "stderr.txt").open("w") as stderr:
            async with stdio_session(parameters, stderr, record) as client:
                await exercise(client, record)
                if meanwhile:
                    await meanwhile(record)

    async def check_counts(record: Exercise):
        complaint = (tmp_path / "stderr.txt").read_text
        dashboard = read_ready_file(ready_file, complaint=complaint)["dashboard"]
        await settled(lambda: expected(record), lambda: counted(scrape(dashboard)))
        one = {"sessions": 1, "connections": 1, "queued": 0}
        await settled(lambda: one, lambda: open_now(scrape(dashboard), "stdio"))
        metrics = scrape(dashboard)
        check_durations(metrics)
        # Still the same a little later: what was reached was not a value on the way to a higher one.
        assert counted(metrics) == expected(record)

    direct, behind = Exercise(), Exercise()
    run_async(session, server, direct)
    run_async(session, [environment.mcpscope, *options, *server], behind, check_counts)
    assert behind.answers == direct.answers
    assert "Starting default (STDIO) server" in (tmp_path / "stderr.txt").read_text(), "the server's stderr is lost"


def test_same_answers_and_exact_counts_over_http(everything_http, instances):
    proxy = instances.proxy(everything_http.url, "--name", NAME)
    seen = {}

    async def session(url: str, record: Exercise, meanwhile=None):
        async with http_session(url, record) as client:
            await exercise(client, record)
            if meanwhile:
                await meanwhile(record)

    async def check_counts(record: Exercise):
        await settled(lambda: expected(record), lambda: counted(proxy.metrics()))
        seen.update(open_now(proxy.metrics(), "http"))

    direct, behind = Exercise(), Exercise()
    run_async(session, everything_http.url, direct)
    run_async(session, proxy.proxy, behind, check_counts)
    assert behind.answers == direct.answers
    assert seen["sessions"] == 1 and seen["connections"] >= 1

    settles_at({"sessions": 0, "connections": 0, "queued": 0}, lambda: open_now(proxy.metrics(), "http"))
    metrics = proxy.metrics()
    check_durations(metrics)
    assert counted(metrics) == expected(behind)


def test_ten_sessions_at_once_over_http(everything_http, instances):
    proxy = instances.proxy(everything_http.url, "--name", NAME)
    record = Exercise()

    async def one_session(number: int, all_open: anyio.Event, arrived: list[int]):
        async with http_session(proxy.proxy, record) as client:
            await record.ask("initialize", client.initialize())
            await record.ask("tools", client.list_tools(), "list")
            arrived.append(number)
            if len(arrived) == SESSIONS:
                sessions = lambda: open_now(proxy.metrics(), "http")["sessions"]  # noqa: E731
                await settled(lambda: SESSIONS, sessions)
                all_open.set()
            await all_open.wait()
            for turn in range(20):
                message = f"session {number}, turn {turn}"
                record.count_call("echo", "ok")
                answer = await record.ask("echo", client.call_tool("echo", {"message": message}))
                assert answer["content"][0]["text"] == f"Echo: {message}", "an answer of another session"
            for turn in range(5):
                record.count_call("get-sum", "ok")
                answer = await record.ask("get-sum", client.call_tool("get-sum", {"a": number * 1000, "b": turn}))
                assert answer["content"][0]["text"].endswith(f" is {number * 1000 + turn}.")
            record.count_call("no-such-tool", "error")
            await record.ask("no-such-tool", client.call_tool("no-such-tool", {}))

    async def all_sessions():
        all_open, arrived = anyio.Event(), []
        async with anyio.create_task_group() as sessions:
            for number in range(SESSIONS):
                sessions.start_soon(one_session, number, all_open, arrived)

    run_async(all_sessions)
    assert record.tool_calls == {("echo", "ok"): 200, ("get-sum", "ok"): 50, ("no-such-tool", "error"): 10}
    settles_at({"sessions": 0, "connections": 0, "queued": 0}, lambda: open_now(proxy.metrics(), "http"))
    # Notifications still under way when a session closes never reach its client, so they are left out here.
    proxied = lambda: without_list_changed(counted(proxy.metrics()))  # noqa: E731
    settles_at(without_list_changed(expected(record, SESSIONS)), proxied)


def without_list_changed(figures: dict) -> dict:
    registry = {operation: n for operation, n in figures["registry"].items() if operation != "list_changed"}
    return figures | {"registry": registry, "component registry": None}


@pytest.mark.parametrize("protocol", ["2024-11-05", "2025-03-26", "2025-06-18"])
def test_older_revisions_are_counted_under_their_name(everything_http, instances, protocol):
    """The client offers only the newest revision of its era, so the handshake is written out here."""
    proxy = instances.proxy(everything_http.url, "--name", NAME)
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    client = {"protocolVersion": protocol, "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}
    with httpx.Client(trust_env=False, timeout=10, headers=headers) as http:
        answer = http.post(proxy.proxy, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client})
        assert f'"protocolVersion":"{protocol}"' in answer.text
        http.headers["Mcp-Session-Id"] = answer.headers["mcp-session-id"]
        http.post(proxy.proxy, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        call = {"name": "echo", "arguments": {"message": "hi"}}
        answer = http.post(proxy.proxy, json={"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": call})
        assert "Echo: hi" in answer.text
        active = lambda: proxy.metrics().by("protocol", "mcpscope_active_sessions", server=NAME)  # noqa: E731
        settles_at({protocol: 1}, active)
        assert http.delete(proxy.proxy).status_code == 200
        settles_at({}, active)
    created = proxy.metrics().by("protocol", "mcpscope_session_creation_seconds_count", server=NAME)
    assert created == {protocol: 1}


def test_a_session_that_the_server_has_lost_is_not_counted_as_active(everything_http, instances):
    """The server answers 404 or 400 for a session it does not know; that is relayed, and nothing is counted for it."""
    proxy = instances.proxy(everything_http.url, "--name", NAME)
    headers = {"Accept": "application/json, text/event-stream", "Mcp-Session-Id": os.urandom(8).hex()}
    request = {"jsonrpc": "2.0", "id": 7, "method": "tools/list"}
    answers = [
        httpx.post(url, json=request, headers=headers, trust_env=False) for url in (everything_http.url, proxy.proxy)
    ]
    assert answers[0].status_code == answers[1].status_code and answers[0].content == answers[1].content
    wait_until(lambda: proxy.metrics().sum("mcpscope_component_operations_total", component="json_rpc"), what="a count")
    assert open_now(proxy.metrics(), "http")["sessions"] == 0
