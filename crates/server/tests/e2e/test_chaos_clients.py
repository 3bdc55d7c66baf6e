"""Clients that nobody here wrote, behind faults: what they see and what the server is asked is what the report says."""

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import mcp_types as types
import pytest
from anyio.to_thread import run_sync
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client

import echo_peer
from chaos import LONG, Chaos, counts
from echo_peer import LEGACY, MODERN
from everything import run_async
from harness import ANY_PORT, Instance, read_ready_file

PEER = [sys.executable, str(pathlib.Path(__file__).with_name("echo_peer.py"))]
CALLER = str(pathlib.Path(__file__).with_name("caller.mjs"))
# A call that cannot be answered is given up after this; every other has all the time that it needs.
SOON = 1
BROKEN = "error -32700"

# What is injected once, into a call of a tool; what its client makes of it; and how often that calls the server.
FAULTS: dict[str, tuple[dict, str, int]] = {
    "latency_injection": ({"delay": "50ms", "direction": "to_server"}, "hit", 1),
    "slow_stream": ({"bytes_per_second": 4096}, "hit", 1),
    "oversize": ({"bytes": "1MiB"}, "hit", 1),
    "lost_request": ({}, "timeout", 0),
    "packet_loss": ({"intensity": 1, "what": "response"}, "timeout", 1),
    "hang": ({}, "timeout", 1),
    "wrong_id": ({}, "timeout", 1),
    "malformed_json": ({}, "broken", 1),
    "truncated": ({}, "broken", 1),
    "schema_violation": ({}, "violation", 1),
    "rpc_error": ({"code": -5}, "error -5", 0),
    "tool_error": ({}, "failed", 0),
}
OVER_STDIO = {"duplicate_response": ({}, "hit", 1), "stdout_noise": ({}, "hit", 1)}
OVER_HTTP = {"http_status": ({"status": 503}, "status", 0)}
STALE = {"stale_session": ({"session": "*"}, "stale", 0)}
# It gives what it is asked for, and calls again.
ASKING = "input_required_loop"
SINCE_2026 = {ASKING: ({}, "hit", 1), "version_reject": ({}, "error -32022", 0)}

Call = Callable[[str, float], Awaitable[str]]


class Target:
    """An instance between a client and the echo peer, over stdio or HTTP."""

    def __init__(self, instances, environment, folder: pathlib.Path):
        self.instances, self.environment, self.data = instances, environment, folder / "data"
        self.folder, self.file = folder, folder / "received"
        self.peer = echo_peer.OverHttp(streams=False)

    def over_http(self, upstream) -> "Target":
        upstream.answer = self.peer
        instance = self.instances.proxy(upstream.url, "--data", str(self.data), "--name", "peer")
        self.chaos = Chaos(instance, self.data)
        self.command = None
        self.url = instance.proxy
        return self

    def over_stdio(self) -> "Target":
        """The client starts mcpscope."""
        self.ready = self.folder / "ready.json"
        options = ["--ready-file", str(self.ready), "--dashboard", ANY_PORT, "--grpc", "off", "--no-auth"]
        options += ["--data", str(self.data), "--name", "peer"]
        self.command = [self.environment.mcpscope, "run", *options, "--", *PEER, str(self.file)]
        return self

    def connected(self):
        """The client is there."""
        if self.command:
            instance = Instance(None, self.ready, self.folder / "none")
            instance.ready = read_ready_file(self.ready, within=LONG)
            self.chaos = Chaos(instance, self.data, token="none is needed")

    def calls(self) -> int:
        received = self.file.read_bytes().splitlines() if self.command else self.peer.received
        messages = [json.loads(message) for message in received if message]
        return sum(message["method"] == "tools/call" for message in messages)


@contextlib.asynccontextmanager
async def python(target: Target, era: str) -> AsyncIterator[Call]:
    server = target.url if not target.command else None
    if not server:
        command, *arguments = target.command
        parameters = StdioServerParameters(command=command, args=arguments, env=target.instances.variables())
        server = stdio_client(parameters, errlog=subprocess.DEVNULL)

    async def on_elicitation(_context, _params):
        return types.ElicitResult(action="accept", content={})

    mode = "legacy" if era == LEGACY else era
    async with Client(server, mode=mode, elicitation_callback=on_elicitation) as client:

        async def call(tool: str, patience: float) -> str:
            try:
                result = await client.call_tool(tool, {}, read_timeout_seconds=patience)
            except MCPError as error:
                return "timeout" if "imed out" in error.error.message else f"error {error.error.code}"
            except RuntimeError as error:
                return "violation" if "Invalid structured content" in str(error) else str(error)
            return "failed" if result.is_error else result.content[0].text

        await client.list_tools()
        yield call


@contextlib.asynccontextmanager
async def typescript(target: Target, _era: str) -> AsyncIterator[Call]:
    command = [target.environment.node, CALLER, target.environment.node_modules, *(target.command or [target.url])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=target.instances.variables(), **pipes) as process:

        async def line() -> str:
            return (await run_sync(process.stdout.readline)).strip()

        async def call(tool: str, patience: float) -> str:
            process.stdin.write(f"{tool} {patience * 1000:.0f}\n")
            process.stdin.flush()
            return await line()

        try:
            assert await line() == "connected", process.stderr.read()
            yield call
            process.stdin.close()
            assert process.wait(LONG) == 0
        finally:
            process.kill()


CLIENTS = {"python": python, "typescript": typescript}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("client", "era"), [("python", LEGACY), ("python", MODERN), ("typescript", LEGACY)])
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_what_a_client_makes_of_a_fault(client, era, transport, instances, environment, request, tmp_path):
    target = Target(instances, environment, tmp_path)
    faults = dict(FAULTS)
    if transport == "http":
        target.over_http(request.getfixturevalue("upstream"))
        faults |= OVER_HTTP | (STALE if era == LEGACY else {})
    else:
        target.over_stdio()
        faults |= OVER_STDIO
    faults |= SINCE_2026 if era == MODERN else {}

    def start(scenario: str, parameters: dict) -> int:
        return target.chaos.start(scenario, tool="hit", max_hits=1, **parameters)

    def end(id: int) -> dict:
        target.chaos.has_hit(id)
        return target.chaos.stop(id)

    async def run():
        seen, expected = {}, {}
        async with CLIENTS[client](target, era) as call:
            await run_sync(target.connected)
            assert await call("hit", LONG) == "hit"
            for scenario, (parameters, outcome, calls) in faults.items():
                outcome = MADE_OF.get((outcome, client, transport), outcome)
                before = target.calls()
                id = await run_sync(start, scenario, parameters)
                first = await call("hit", SOON if outcome == "timeout" else LONG)
                report = await run_sync(end, id)
                called = target.calls() - before
                # Whatever it was, it is over, and the session is good.
                seen[scenario] = (first, called, counts(report), await call("hit", LONG))
                expected[scenario] = (outcome, calls, (2 if scenario == ASKING else 1, 1, 1), "hit")
        assert seen == expected

    run_async(run, limit=110)


# What it makes of what it cannot read, or of what is against the rules.
MADE_OF = {
    ("broken", "python", "http"): BROKEN,
    ("broken", "python", "stdio"): "timeout",
    ("broken", "typescript", "http"): "SyntaxError",
    ("broken", "typescript", "stdio"): "timeout",
    ("violation", "typescript", "http"): "error -32602",
    ("violation", "typescript", "stdio"): "error -32602",
    ("status", "python", "http"): "error -31000",
    ("status", "typescript", "http"): "error 503",
    ("stale", "python", "http"): "error -31000",
    ("stale", "typescript", "http"): "error 404",
}
