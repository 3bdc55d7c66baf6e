"""The server on rmcp, and the clients that do on it, once each, all that a relay may get wrong."""

import abc
import contextlib
import functools
import json
import pathlib
import subprocess
import warnings

import anyio
import anyio.lowlevel
import fastmcp
import mcp_types as types
from fastmcp.client.transports import StdioTransport
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.subscriptions import listen

from everything import run_async
from harness import Environment

# Seconds that a client may take: far more than it needs on a busy machine.
LIMIT = 120
# It would leave without telling the server, on a busy machine.
fastmcp.settings.client_disconnect_timeout = LIMIT

WATCHED = "test://watched-resource"
PATTERN = "0123456789abcdef"  # the text that a large answer repeats

# What every client must report, whatever is between it and the server.
SEEN = {
    "text": "This is a simple text response for testing.",
    "error": [True, "This tool intentionally returns an error for testing"],
    "progress": [0, 50, 100],
    "sampled": True,
    "elicited": True,
    "asked": ["for the model", "for the user"],
    "updated": WATCHED,
    "large": [1_000_000, True],
    "cancelled": "cancelled: done",
    "afterwards": "This is a simple text response for testing.",
}

# What that is in calls, however many messages a client makes of one.
CALLS = {
    ("cancelled", "ok"): 1,
    ("large", "ok"): 1,
    ("test_elicitation", "ok"): 1,
    ("test_error_handling", "error"): 1,
    ("test_sampling", "ok"): 1,
    ("test_simple_text", "ok"): 2,
    ("test_tool_with_progress", "ok"): 1,
    ("touch", "ok"): 1,
    ("wait", "cancelled"): 1,
}

Target = str | list[str]


class RmcpHttp:
    """The server on rmcp over HTTP. It says where it listens."""

    def __init__(self, environment: Environment, directory: pathlib.Path):
        self.command = [environment.mcp_peer, "serve"]
        self.variables = environment.variables(directory)

    def __enter__(self):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self.command, env=self.variables, start_new_session=True, **pipes)
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server on rmcp does not start"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate(timeout=5)


class InPython(abc.ABC):
    """A client that is a Python package."""

    def __init__(self, modern: bool, key: str = "python"):
        # The default is to ask the server, which knows both.
        self.mode = "auto" if modern else "legacy"
        self.modern = modern
        # What others do not say: the server must not get the answers of another client.
        self.key = key
        self.info = types.Implementation(name=key, version="1")
        self.sample = f"from the model of {key}"
        self.input = {"username": f"user of {key}", "email": "user@example.com"}
        self.asked: list[str] = []
        self.updates, self.updated = anyio.create_memory_object_stream[str](10)

    @abc.abstractmethod
    def connect(self, target: Target, variables: dict[str, str]):
        """A context manager that gives the client's session."""

    @abc.abstractmethod
    async def call(self, name: str, arguments: dict, on_progress=None) -> types.CallToolResult:
        """Calls a tool."""

    async def on_message(self, message):
        if isinstance(message, types.ResourceUpdatedNotification):
            await self.updates.send(str(message.params.uri))

    async def run(self, target: Target, variables: dict[str, str], connected=anyio.lowlevel.checkpoint) -> dict:
        """Does everything once, as soon as it may."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated since 2026-07-28 is what the revisions before it have
            async with self.connect(target, variables) as session:
                assert session.protocol_version == ("2026-07-28" if self.modern else "2025-11-25")
                await connected()
                return await self.everything(session)

    async def everything(self, session) -> dict:
        report = {"text": text(await self.call("test_simple_text", {}))}
        failed = await self.call("test_error_handling", {})
        report["error"] = [failed.is_error, text(failed)]
        report["progress"] = progress = []

        async def on_progress(done, _total, _message):
            progress.append(done)

        await self.call("test_tool_with_progress", {}, on_progress)
        report["sampled"] = self.sample in text(await self.call("test_sampling", {"prompt": "for the model"}))
        elicited = await self.call("test_elicitation", {"message": "for the user"})
        report["elicited"] = self.input["username"] in text(elicited)
        report["asked"] = self.asked
        report["updated"] = await self.update(session)
        large = text(await self.call("large", {"bytes": 1_000_000}))
        report["large"] = [len(large), large == PATTERN * (len(large) // len(PATTERN))]
        await self.cancel_a_call()
        report["cancelled"] = text(await self.call("cancelled", {"key": self.key}))
        report["afterwards"] = text(await self.call("test_simple_text", {}))
        return report

    async def update(self, session) -> str:
        """The resource that a subscription tells of."""
        if self.modern:
            async with listen(session, resource_subscriptions=[WATCHED]) as subscription:
                await self.call("touch", {"uri": WATCHED})
                return str((await anext(subscription)).uri)
        await session.subscribe_resource(WATCHED)
        await self.call("touch", {"uri": WATCHED})
        return await self.updated.receive()

    async def cancel_a_call(self):
        """Cancelled once the server has begun."""
        with anyio.CancelScope() as scope:

            async def on_progress(*_):
                scope.cancel()

            await self.call("wait", {"key": self.key}, on_progress)
        assert scope.cancelled_caught


class Mcp(InPython):
    """`mcp`, the official Python SDK."""

    @contextlib.asynccontextmanager
    async def connect(self, target: Target, variables: dict[str, str]):
        async def on_sampling(_context, params):
            content = params.messages[0].content
            self.asked.append((content[0] if isinstance(content, list) else content).text)
            content = types.TextContent(type="text", text=self.sample)
            return types.CreateMessageResult(role="assistant", content=content, model="none")

        async def on_elicitation(_context, params):
            self.asked.append(params.message)
            return types.ElicitResult(action="accept", content=self.input)

        if not isinstance(target, str):
            target = StdioServerParameters(command=target[0], args=target[1:], env=variables)
        callbacks = {"sampling_callback": on_sampling, "elicitation_callback": on_elicitation}
        options = {"mode": self.mode, "client_info": self.info, "message_handler": self.on_message}
        async with Client(target, **options, **callbacks) as self.client:
            yield self.client.session

    async def call(self, name: str, arguments: dict, on_progress=None) -> types.CallToolResult:
        return await self.client.call_tool(name, arguments, progress_callback=on_progress)


class FastMcp(InPython):
    """`fastmcp`."""

    @contextlib.asynccontextmanager
    async def connect(self, target: Target, variables: dict[str, str]):
        async def on_sampling(messages, _params, _context):
            content = messages[0].content
            self.asked.append((content[0] if isinstance(content, list) else content).text)
            return self.sample

        async def on_elicitation(message, _type, _params, _context):
            self.asked.append(message)
            return self.input

        if not isinstance(target, str):
            target = StdioTransport(target[0], target[1:], env=variables, keep_alive=False)
        handlers = {"sampling_handler": on_sampling, "elicitation_handler": on_elicitation}
        options = {"mode": self.mode, "client_info": self.info, "message_handler": self.on_message}
        async with fastmcp.Client(target, **options, **handlers) as self.client:
            yield self.client.session

    async def call(self, name: str, arguments: dict, on_progress=None) -> types.CallToolResult:
        return await self.client.call_tool_mcp(name, arguments, progress_handler=on_progress)


def text(result: types.CallToolResult) -> str:
    return result.content[0].text


def in_python(client: type[InPython], modern: bool, _environment, target: Target, variables: dict[str, str]) -> dict:
    return run_async(client(modern).run, target, variables, limit=LIMIT)


def typescript(environment: Environment, target: Target, variables: dict[str, str]) -> dict:
    """`@modelcontextprotocol/sdk`, which knows the older revisions only."""
    script = pathlib.Path(__file__).with_name("client.mjs")
    return report_of([environment.node, str(script), environment.node_modules], target, variables)


def rmcp(era: str, environment: Environment, target: Target, variables: dict[str, str]) -> dict:
    return report_of([environment.mcp_peer, "client", era], target, variables)


def report_of(command: list[str], target: Target, variables: dict[str, str]) -> dict:
    target = [target] if isinstance(target, str) else target
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run([*command, *target], env=variables, timeout=LIMIT, **pipes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# By package and revision.
CLIENTS = {
    "mcp 2025-11-25": functools.partial(in_python, Mcp, False),
    "mcp 2026-07-28": functools.partial(in_python, Mcp, True),
    "fastmcp 2025-11-25": functools.partial(in_python, FastMcp, False),
    "fastmcp 2026-07-28": functools.partial(in_python, FastMcp, True),
    "typescript 2025-11-25": typescript,
    "rmcp 2025-11-25": functools.partial(rmcp, "legacy"),
    "rmcp 2026-07-28": functools.partial(rmcp, "modern"),
}
