"""The families of the OpenTelemetry MCP conventions, and the proxy's own overhead: exact labels, counts and bounds."""

import contextlib
import itertools
import json
import pathlib
import sys

import httpx
import pytest

import scripted
from harness import settles_at
from scripted import PROTOCOL, QUESTIONS, SESSION

NAME = "conventions"
SERVER = "mcp_server_operation_duration_seconds"
CLIENT = "mcp_client_operation_duration_seconds"
SESSIONS = "mcp_server_session_duration_seconds"
OVERHEAD = "mcpscope_proxy_overhead_seconds"

# From semantic-conventions-genai, docs/gen-ai/mcp.md, in seconds.
BOUNDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
OVERHEAD_BOUNDS = [digit * 10.0**power for power in range(-6, 0) for digit in (1, 2, 5)] + [1]

REQUESTS = [
    ("initialize", {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}),
    ("tools/list", {}),
    ("tools/call", {"name": "echo"}),
    ("tools/call", {"name": "echo"}),
    ("tools/call", {"name": "fails"}),
    ("tools/call", {"name": "refuses"}),
    ("tools/call", {"name": "breaks"}),
    ("prompts/get", {"name": "review"}),
    ("resources/read", {"uri": "file:///nothing"}),
    ("tools/call", {"name": "asks"}),
]
# How the client answers the server's questions.
REFUSALS = {"q1": -1, "q2": -32601}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def operation(method: str, **labels: str) -> dict[str, str]:
    return {"mcp_method_name": method} | labels


def tool(name: str, **labels: str) -> dict[str, str]:
    return operation("tools/call", gen_ai_operation_name="execute_tool", gen_ai_tool_name=name, **labels)


# The labels that an operation has besides those that all have, and how often it is there. On the server's side the
# caller's mistakes are no errors.
SERVER_OPERATIONS = [
    (operation("initialize"), 1),
    (operation("notifications/initialized"), 1),
    (operation("tools/list"), 1),
    (tool("echo"), 2),
    (tool("fails", error_type="tool_error"), 1),
    (tool("refuses", rpc_response_status_code="-32602"), 1),
    (tool("breaks", error_type="-32603", rpc_response_status_code="-32603"), 1),
    (tool("asks"), 1),
    (operation("prompts/get", gen_ai_prompt_name="review"), 1),
    (operation("resources/read", rpc_response_status_code="-32002"), 1),
]
# On the side of who asks they all are.
CLIENT_OPERATIONS = [
    (operation("notifications/message"), 1),
    (operation("sampling/createMessage", error_type="-1", rpc_response_status_code="-1"), 1),
    (operation("roots/list", error_type="-32601", rpc_response_status_code="-32601"), 1),
]
TO_SERVER = len(REQUESTS) + len(QUESTIONS) + 1
TO_CLIENT = len(REQUESTS) + len(QUESTIONS) + 1


def refusal(question: dict) -> dict:
    error = {"code": REFUSALS[question["id"]], "message": "no"}
    return {"jsonrpc": "2.0", "id": question["id"], "error": error}


def messages():
    """What the client says on its own account."""
    requests = ({"jsonrpc": "2.0", "id": id, "method": m, "params": p} for id, (m, p) in enumerate(REQUESTS))
    first = next(requests)
    return itertools.chain([first, INITIALIZED], requests)


@contextlib.contextmanager
def over_stdio(instances, upstream):
    """All of it through `run`, while the session is still open."""
    script = pathlib.Path(scripted.__file__)
    instance = instances.run("--name", NAME, command=[sys.executable, str(script)])
    client = instance.process

    def say(message: dict):
        client.stdin.write(json.dumps(message).encode() + b"\n")
        client.stdin.flush()

    for message in messages():
        say(message)
        while "id" in message:
            heard = json.loads(client.stdout.readline())
            if heard.get("id") == message["id"]:
                break
            if "id" in heard:
                say(refusal(heard))
    yield instance
    client.stdin.close()
    assert instance.wait() == 0


@contextlib.contextmanager
def over_http(instances, upstream):
    """All of it through `proxy`, and the end of the session."""
    upstream.answer = scripted.OverHttp()
    instance = instances.proxy(upstream.url, "--name", NAME)
    headers = {"Accept": "application/json, text/event-stream"}
    with httpx.Client(trust_env=False, timeout=10, headers=headers) as http:
        for message in messages():
            with http.stream("POST", instance.proxy, json=message) as answer:
                assert answer.status_code in (200, 202)
                http.headers["Mcp-Session-Id"] = SESSION
                for line in answer.iter_lines():
                    heard = json.loads(line.removeprefix("data: ") or "{}")
                    if heard.get("id") in REFUSALS:
                        assert http.post(instance.proxy, json=refusal(heard)).status_code == 202
        yield instance
        assert http.delete(instance.proxy).status_code == 204
    ended = [({"mcp_protocol_version": PROTOCOL, "network_transport": "tcp"}, 1)]
    settles_at(counts(ended), lambda: recorded(instance.metrics(), SESSIONS))


def counts(expected: list[tuple[dict, int]], **labels: str) -> dict:
    return {frozenset((row | labels | {"server": NAME}).items()): count for row, count in expected}


def recorded(metrics, family: str) -> dict:
    """How many records there are by labels. An empty label is none."""
    rows = ((s.labels, s.value) for s in metrics.matching(f"{family}_count") if s.value)
    return {frozenset((name, text) for name, text in labels.items() if text): count for labels, count in rows}


def bounds(metrics, family: str) -> set[tuple[float, ...]]:
    series: dict[frozenset, list[float]] = {}
    for sample in metrics.matching(f"{family}_bucket"):
        labels = dict(sample.labels)
        bound = float(labels.pop("le"))
        series.setdefault(frozenset(labels.items()), []).append(bound)
    return {tuple(found) for found in series.values()}


@pytest.mark.parametrize(("session", "transport"), [(over_stdio, "pipe"), (over_http, "tcp")], ids=["run", "proxy"])
def test_labels_counts_and_bounds(instances, upstream, promtool, session, transport):
    with session(instances, upstream) as instance:
        labels = {"mcp_protocol_version": PROTOCOL, "network_transport": transport, "injected": "false"}
        settles_at(counts(SERVER_OPERATIONS, **labels), lambda: recorded(instance.metrics(), SERVER))
        settles_at(counts(CLIENT_OPERATIONS, **labels), lambda: recorded(instance.metrics(), CLIENT))
        ways = [({"direction": "to_server"}, TO_SERVER), ({"direction": "to_client"}, TO_CLIENT)]
        settles_at(counts(ways), lambda: recorded(instance.metrics(), OVERHEAD))

        metrics = instance.metrics()
        promtool(metrics.text)
        assert recorded(metrics, SESSIONS) == {}, "the session is still open"
        for family in (SERVER, CLIENT, SESSIONS):
            assert bounds(metrics, family) == {(*BOUNDS, float("inf"))}
        (found,) = bounds(metrics, OVERHEAD)
        assert found == pytest.approx((*OVERHEAD_BOUNDS, float("inf")))
        # Seconds, not something else: a notification takes none, a message less than the whole test.
        assert metrics.sum(f"{SERVER}_sum", mcp_method_name="notifications/initialized") == 0
        assert 0 < metrics.sum(f"{SERVER}_sum", mcp_method_name="tools/call") < 60
        assert 0 < metrics.sum(f"{OVERHEAD}_sum") < 60
