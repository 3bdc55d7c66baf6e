"""Clients that nobody here wrote do all that a relay may get wrong, and see through mcpscope what they see without it."""

import itertools

import anyio
import pytest

from everything import run_async
from harness import settles_at
from peers import CALLS, CLIENTS, LIMIT, SEEN, FastMcp, Mcp

NAME = "peer"
LEGACY, MODERN = "2025-11-25", "2026-07-28"
# Half of them speak each.
SESSIONS = 50


@pytest.fixture(params=CLIENTS)
def client(request, environment, tmp_path):
    """Runs a client on a target, and gives its report."""
    variables = environment.variables(tmp_path)

    def run(target):
        return CLIENTS[request.param](environment, target, variables)

    run.revision = request.param.split()[-1]
    return run


def counted(proxy) -> dict:
    metrics = proxy.metrics()
    return {
        "calls": metrics.tool_calls(server=NAME),
        "sessions": metrics.by("protocol", "mcpscope_session_creation_seconds_count", server=NAME),
        "active": metrics.by("protocol", "mcpscope_active_sessions", server=NAME),
        "connections": metrics.sum("mcpscope_transport_connections", server=NAME),
        "queued": metrics.sum("mcpscope_message_queue_depth", server=NAME),
        "dropped": metrics.by("what", "mcpscope_dropped_total"),
    }


def expected(sessions: dict[str, int]) -> dict:
    """What is counted once these sessions, by revision, are over."""
    return {
        "calls": {call: times * sum(sessions.values()) for call, times in CALLS.items()},
        "sessions": sessions,
        # Without a handshake there is no end either: who was there of late counts.
        "active": {revision: n for revision, n in sessions.items() if revision == MODERN},
        "connections": 0,
        "queued": 0,
        "dropped": {},
    }


@pytest.mark.timeout(2 * LIMIT + 60)
def test_over_http(client, rmcp_http, instances):
    assert client(rmcp_http.url) == SEEN
    proxy = instances.proxy(rmcp_http.url, "--name", NAME)
    assert client(proxy.proxy) == SEEN
    settles_at(expected({client.revision: 1}), lambda: counted(proxy), within=30)


@pytest.mark.timeout(2 * LIMIT + 60)
def test_over_stdio(client, environment, tmp_path):
    server = [environment.mcp_peer, "stdio"]
    assert client(server) == SEEN
    options = ["run", "--dashboard", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--name", NAME]
    assert client([environment.mcpscope, *options, "--", *server]) == SEEN


@pytest.mark.timeout(3 * LIMIT + 60)
def test_fifty_sessions_at_once(environment, rmcp_http, instances, tmp_path):
    proxy = instances.proxy(rmcp_http.url, "--name", NAME)
    variables = environment.variables(tmp_path)
    kinds = itertools.cycle(itertools.product((Mcp, FastMcp), (False, True)))
    reports = {}

    async def one_session(number: int, kind, modern: bool, connected):
        key = f"session {number}"
        reports[key] = await kind(modern, key).run(proxy.proxy, variables, connected)

    async def all_sessions():
        all_connected, count = anyio.Event(), itertools.count(1)

        async def connected():
            if next(count) == SESSIONS:
                all_connected.set()
            await all_connected.wait()

        async with anyio.create_task_group() as sessions:
            for number, (kind, modern) in zip(range(SESSIONS), kinds):
                sessions.start_soon(one_session, number, kind, modern, connected)

    run_async(all_sessions, limit=3 * LIMIT)
    assert list(reports.values()) == [SEEN] * SESSIONS
    settles_at(expected({LEGACY: SESSIONS // 2, MODERN: SESSIONS // 2}), lambda: counted(proxy), within=30)
