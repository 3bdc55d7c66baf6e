"""The reference MCP server, the official client, and the fixed list of operations that is made with both."""

import contextlib
import pathlib
import socket
import subprocess
import warnings
from dataclasses import dataclass, field
from typing import Any

import anyio
import mcp_types as types
from mcp import MCPError
from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from harness import Environment, free_port, wait_until

PROTOCOL = "2025-11-25"  # what the client asks for in `initialize`, and the server speaks
DOCUMENT = "demo://resource/static/document/architecture.md"
LONG = "trigger-long-running-operation"

# Name, arguments, repetitions and the outcome that mcpscope must see.
CALLS: list[tuple[str, dict[str, Any], int, str]] = [
    ("echo", {"message": "hello"}, 3, "ok"),
    ("echo", {"message": 'zażółć \N{SNOWMAN} \\ " \n \u2028'}, 1, "ok"),
    ("echo", {"message": 5}, 1, "error"),
    ("get-sum", {"a": 2, "b": 40}, 2, "ok"),
    ("get-sum", {"a": 0.1, "b": 0.2}, 1, "ok"),
    ("get-sum", {"a": "two"}, 2, "error"),
    ("get-annotated-message", {"messageType": "error", "includeImage": True}, 1, "ok"),
    ("get-resource-links", {"count": 3}, 1, "ok"),
    ("get-resource-reference", {"resourceType": "Text", "resourceId": -1}, 1, "error"),
    ("get-structured-content", {"location": "Chicago"}, 2, "ok"),
    ("get-tiny-image", {}, 1, "ok"),
    ("no-such-tool", {}, 2, "error"),
]


@dataclass
class Exercise:
    """What was sent and what came back."""

    answers: list[tuple[str, Any]] = field(default_factory=list)
    tool_calls: dict[tuple[str, str], int] = field(default_factory=dict)
    registry: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    # Notifications come when the server likes; they are counted, not compared.
    list_changed: int = 0

    def count_call(self, tool: str, outcome: str):
        self.tool_calls[tool, outcome] = self.tool_calls.get((tool, outcome), 0) + 1

    async def on_message(self, message):
        if getattr(message, "method", "").endswith("/list_changed"):
            self.list_changed += 1

    async def ask(self, label: str, request, registry: str | None = None):
        """Makes one request and keeps its answer, or its error, in comparable form."""
        self.requests += 1
        if registry:
            self.registry[registry] = self.registry.get(registry, 0) + 1
        try:
            answer = (await request).model_dump(mode="json", by_alias=True, exclude_unset=True)
        except MCPError as error:
            answer = {"error": error.error.model_dump(mode="json", exclude_unset=True)}
        self.answers.append((label, answer))
        return answer


class Unknown(types.Request[types.RequestParams, str]):
    """A method that no server knows."""

    method: str = "mcpscope/no-such-method"
    params: types.RequestParams | None = None


async def exercise(session: ClientSession, record: Exercise):
    """Makes every operation of the list once, in the same order each time."""
    await record.ask("initialize", session.initialize())
    await record.ask("ping", session.send_ping())
    await record.ask("tools", session.list_tools(), "list")
    await record.ask("resources", session.list_resources(), "list")
    await record.ask("templates", session.list_resource_templates(), "list")
    await record.ask("prompts", session.list_prompts(), "list")
    await record.ask("document", session.read_resource(DOCUMENT), "read")
    await record.ask("document", session.read_resource(DOCUMENT), "read")
    await record.ask("no document", session.read_resource("demo://resource/none"), "read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since 2026-07-28; this server speaks the revision before
        await record.ask("subscribe", session.subscribe_resource(DOCUMENT), "subscribe")
    await record.ask("prompt", session.get_prompt("args-prompt", {"city": "Łódź", "state": "PL"}))
    await record.ask("prompt without argument", session.get_prompt("args-prompt", {}))
    await record.ask("no prompt", session.get_prompt("no-such-prompt"))
    await record.ask("unknown method", session.send_request(Unknown(), types.EmptyResult))
    for tool, arguments, times, outcome in CALLS:
        for _ in range(times):
            record.count_call(tool, outcome)
            await record.ask(tool, session.call_tool(tool, arguments))
    await long_calls(session, record)


async def long_calls(session: ClientSession, record: Exercise):
    """A call with progress, one that the client gives up on, and one that it cancels."""
    progress = []

    async def on_progress(done, total, _message):
        progress.append((done, total))

    arguments = {"duration": 0.2, "steps": 2}
    record.count_call(LONG, "ok")
    await record.ask("with progress", session.call_tool(LONG, arguments, progress_callback=on_progress))
    record.answers.append(("progress", progress))

    # Longer than the client waits, and short enough not to keep the server from ending afterwards.
    arguments = {"duration": 1, "steps": 1}
    record.count_call(LONG, "timeout")
    await record.ask("given up", session.call_tool(LONG, arguments, read_timeout_seconds=0.2))

    record.count_call(LONG, "cancelled")
    record.requests += 1
    with anyio.move_on_after(0.2) as scope:
        await session.call_tool(LONG, arguments)
    record.answers.append(("cancelled", scope.cancelled_caught))
    # The session is still good after all that.
    record.count_call("echo", "ok")
    await record.ask("afterwards", session.call_tool("echo", {"message": "afterwards"}))


@contextlib.asynccontextmanager
async def stdio_session(parameters: StdioServerParameters, errlog, record: Exercise):
    async with (
        stdio_client(parameters, errlog) as (read, write),
        ClientSession(read, write, message_handler=record.on_message, read_timeout_seconds=20) as session,
    ):
        yield session


@contextlib.asynccontextmanager
async def http_session(url: str, record: Exercise):
    async with (
        streamable_http_client(url) as (read, write),
        ClientSession(read, write, message_handler=record.on_message, read_timeout_seconds=20) as session,
    ):
        yield session


def run_async(function, *arguments, limit: float = 45):
    """Runs an async function to its end, within a limit that the event loop itself keeps."""

    async def limited():
        with anyio.fail_after(limit):
            return await function(*arguments)

    return anyio.run(limited)


class EverythingHttp:
    """The reference server over HTTP, once it accepts connections."""

    def __init__(self, environment: Environment, directory: pathlib.Path):
        self.environment = environment
        self.log = directory / "everything.log"
        self.variables = environment.variables(directory)

    def __enter__(self):
        # The server cannot say which port it took, so one is chosen for it; another process may be faster.
        for _ in range(5):
            self.port = free_port()
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [self.environment.node, self.environment.everything, "streamableHttp"],
                    env=self.variables | {"PORT": str(self.port)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            wait_until(lambda: self.process.poll() is not None or self.accepts(), 20, "the reference server")
            if self.process.poll() is None:
                return self
        raise AssertionError(f"the reference server does not start:\n{self.log.read_text()}")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(5)

    def accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        # Where the port was lost to another process, that one accepts and ours ends.
        return f"port {self.port}" in self.log.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"
