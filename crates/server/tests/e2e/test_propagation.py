"""Trace context on its way: from the official client through mcpscope to an official server, and the spans in between."""

import contextlib
import json
import pathlib
import subprocess
import sys

import anyio
import httpx
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

import traced
from collector import HttpCollector
from everything import run_async
from harness import read_ready_file, settles_at
from upstream import call

SERVER = pathlib.Path(traced.__file__)
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
# The handshake of the official client, and the revision that has none.
ERAS = {"legacy": "2025-11-25", "2026-07-28": "2026-07-28"}


def callers_span():
    """What an instrumented client is in the middle of."""
    state = TraceState([("vendor", 'x"y')])
    context = SpanContext(int(TRACE, 16), int(CALLER, 16), is_remote=False, trace_flags=TraceFlags(1), trace_state=state)
    return trace.use_span(NonRecordingSpan(context))


@contextlib.contextmanager
def http_server(environment, directory: pathlib.Path):
    command = [sys.executable, str(SERVER), "http"]
    with (directory / "server.txt").open("wb") as log:
        process = subprocess.Popen(command, env=environment.variables(directory), stdout=subprocess.PIPE, stderr=log)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
    finally:
        process.kill()
        process.wait(5)
        process.stdout.close()


@contextlib.contextmanager
def over_stdio(environment, instances, directory, propagate, variables=None):
    """What the official client connects to, and where the traces are."""
    ready_file = directory / "ready.json"
    options = ["--dashboard", "127.0.0.1:0", "--grpc", "off", "--ready-file", str(ready_file), "--propagate", propagate]
    command = ["run", *options, "--", sys.executable, str(SERVER), "stdio"]
    variables = environment.variables(directory) | (variables or {})
    parameters = StdioServerParameters(command=environment.mcpscope, args=command, env=variables)
    yield parameters, lambda: read_ready_file(ready_file)["dashboard"]


@contextlib.contextmanager
def over_http(environment, instances, directory, propagate, variables=None):
    with http_server(environment, directory) as url:
        variables = instances.variables() | (variables or {})
        proxy = instances.proxy(url, "--propagate", propagate, env=variables)
        yield proxy.proxy, lambda: proxy.dashboard


def spans_of(dashboard: str, tool: str) -> tuple[dict, list[dict]]:
    """The trace of the test's client, and its spans of one tool."""
    found = httpx.get(f"{dashboard}api/v1/traces/{TRACE}", trust_env=False, timeout=10).json()
    return found, [span for span in found["spans"] if span["name"] == f"tools/call {tool}"]


def told(answer) -> dict:
    (content,) = answer.content
    return json.loads(content.text)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", [over_stdio, over_http], ids=["run", "proxy"])
def test_the_server_is_a_child_of_ours_and_we_of_the_client(environment, instances, tmp_path, transport, era):
    seen = {}

    async def session():
        async with Client(target, mode=era, read_timeout_seconds=20) as client:
            assert client.protocol_version == ERAS[era]
            with callers_span():
                seen["context"] = told(await client.call_tool("context", {}))
                progress = []

                async def on_progress(done, total, _message):
                    progress.append((done, total))

                seen["works"] = told(await client.call_tool("works", {}, progress_callback=on_progress))
                assert progress == [(1, 3), (2.5, 3)]
            seen["untraced"] = told(await client.call_tool("context", {}))
            dashboard = at()
            for tool in ("context", "works"):
                await anyio.to_thread.run_sync(check, dashboard, tool)

    def check(dashboard: str, tool: str):
        settles_at(2, lambda: len(spans_of(dashboard, tool)[1]))
        found, (server, client) = spans_of(dashboard, tool)
        assert (server["kind"], server["parent"]) == ("server", CALLER)
        assert (client["kind"], client["parent"]) == ("client", server["id"])
        received = seen[tool]
        assert received["traceparent"] == f"00-{TRACE}-{client['id']}-01"
        assert received["tracestate"] == 'vendor=x"y', "it goes on as it came"
        # What the server's own instrumentation makes of it.
        assert (received["trace"], received["parent"], received["sampled"]) == (TRACE, client["id"], 1)
        assert {span["attributes"]["mcp.protocol.version"] for span in (server, client)} == {ERAS[era]}
        events = [(event["name"], event["attributes"]) for event in server["events"]]
        expected = [
            ("notifications/progress", {"progress": "1", "total": "3"}),
            ("notifications/progress", {"progress": "2.5", "total": "3"}),
        ]
        assert events == (expected if tool == "works" else [])
        waited = client["start_us"] - server["start_us"]
        assert 0 <= waited and waited + client["duration_us"] <= server["duration_us"] + 2, "whole microseconds"

    with transport(environment, instances, tmp_path, "on") as (target, at):
        run_async(session)
    # A client that traces nothing: the trace begins with us.
    untraced = seen["untraced"]
    assert untraced["trace"] not in (TRACE, "0" * 32) and untraced["parent"] in untraced["traceparent"]


@pytest.mark.parametrize("propagate", ["off", "auto"])
@pytest.mark.parametrize("transport", [over_stdio, over_http], ids=["run", "proxy"])
def test_nothing_is_changed_unless_it_is_asked_for(environment, instances, tmp_path, transport, propagate):
    """`auto` propagates while traces are exported, and nothing exports them here."""

    async def session():
        async with Client(target, mode="legacy", read_timeout_seconds=20) as client:
            with callers_span():
                received = told(await client.call_tool("context", {}))
            assert received["traceparent"] == TRACEPARENT
            dashboard = at()
            await anyio.to_thread.run_sync(settles_at, 2, lambda: len(spans_of(dashboard, "context")[1]))

    with transport(environment, instances, tmp_path, propagate) as (target, at):
        run_async(session)


@pytest.mark.parametrize("propagators", [None, "none", "baggage"])
@pytest.mark.parametrize("transport", [over_stdio, over_http], ids=["run", "proxy"])
def test_auto_propagates_what_is_exported(environment, instances, tmp_path, transport, propagators):
    """Unless the standard variable says not to."""
    seen = {}

    async def session():
        async with Client(target, mode="legacy", read_timeout_seconds=20) as client:
            with callers_span():
                seen.update(told(await client.call_tool("context", {})))

    with HttpCollector() as collector:
        variables = collector.variables | {"OTEL_BSP_SCHEDULE_DELAY": "100"}
        if propagators:
            variables["OTEL_PROPAGATORS"] = propagators
        with transport(environment, instances, tmp_path, "auto", variables) as (target, _):
            run_async(session)
            named = lambda: [span for span in collector.spans if span.name == "tools/call context"]  # noqa: E731
            settles_at(2, lambda: len(named()))
            (sent_on,) = [span.span_id.hex() for span in named() if span.kind == Span.SPAN_KIND_CLIENT]
    ours = f"00-{TRACE}-{sent_on}-01"
    assert seen["traceparent"] == (TRACEPARENT if propagators else ours)


@pytest.mark.parametrize("transport", [over_stdio, over_http], ids=["run", "proxy"])
def test_a_call_that_was_cancelled_says_so(environment, instances, tmp_path, transport):
    async def session():
        async with Client(target, mode="legacy", read_timeout_seconds=20) as client:
            with anyio.CancelScope() as scope, callers_span():

                async def on_progress(*_):
                    scope.cancel()

                await client.call_tool("waits", {}, progress_callback=on_progress)
            assert scope.cancelled_caught
            dashboard = at()
            await anyio.to_thread.run_sync(check, dashboard)

    def check(dashboard: str):
        settles_at(2, lambda: len(spans_of(dashboard, "waits")[1]))
        found, (server, _) = spans_of(dashboard, "waits")
        assert (found["status"], server["status"]) == ("cancelled", "cancelled")
        assert [event["name"] for event in server["events"]] == ["notifications/progress", "notifications/cancelled"]

    with transport(environment, instances, tmp_path, "on") as (target, at):
        run_async(session)


def test_an_older_revision(environment, instances, tmp_path):
    """The official client does not offer it any more, so the handshake is written out here."""
    protocol = "2025-06-18"
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    hello = {"protocolVersion": protocol, "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}
    ask = {"name": "context", "arguments": {}, "_meta": {"traceparent": TRACEPARENT}}

    def answer(response: httpx.Response) -> dict:
        (data,) = [line for line in response.text.splitlines() if line.startswith("data: {")]
        return json.loads(data.removeprefix("data: "))["result"]

    with (
        over_http(environment, instances, tmp_path, "on") as (url, at),
        httpx.Client(trust_env=False, timeout=10, headers=headers) as http,
    ):
        opened = http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello})
        assert answer(opened)["protocolVersion"] == protocol
        http.headers.update({"Mcp-Session-Id": opened.headers["mcp-session-id"], "MCP-Protocol-Version": protocol})
        http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        called = http.post(url, json={"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": ask})
        received = json.loads(answer(called)["content"][0]["text"])
        _, (server, client) = spans_of(at(), "context")
        assert (server["parent"], client["parent"], received["parent"]) == (CALLER, server["id"], client["id"])
        assert server["attributes"]["mcp.protocol.version"] == protocol


def test_a_header_goes_on_as_ours_and_the_length_fits(instances, upstream):
    proxy = instances.proxy(upstream.url, "--propagate", "on")
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "k=v"}
    assert httpx.post(proxy.proxy, json=call(), headers=headers, trust_env=False).status_code == 200
    (exchange,) = upstream.seen
    _, (server, client) = spans_of(proxy.dashboard, "probe")
    ours = f"00-{TRACE}-{client['id']}-01"
    expected = call()
    expected["params"]["_meta"] = {"traceparent": ours, "tracestate": "a=1"}
    assert exchange.json() == expected
    received = {name: exchange.headers[name] for name in headers}
    assert received == headers | {"traceparent": ours}
    assert int(exchange.headers["Content-Length"]) == len(exchange.body)
    assert (server["parent"], client["parent"]) == (CALLER, server["id"])
