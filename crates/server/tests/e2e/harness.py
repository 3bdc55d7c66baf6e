"""Starting, watching and ending the processes of the end-to-end tests."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass

import httpx
import pytest

from scrape import Metrics

MARK = "E2E_MARK"
VARIABLES = {
    "E2E_BIN": "the mcpscope program",
    "E2E_MCP_PEER": "mcp-peer, the server and client on rmcp",
    "E2E_NODE": "Node 22 or newer",
    "E2E_NODE_MODULES": "the folder with the npm packages",
    "E2E_PROMETHEUS": "prometheus",
    "E2E_PROMTOOL": "promtool",
    "E2E_CHROMIUM": "Chromium",
}

# The commands that have listeners, and an address for those that a test has no wish for: the default port of one
# instance must not be in the way of another.
SERVING = {"demo", "proxy", "run", "serve"}
ANY_PORT = "127.0.0.1:0"


@dataclass
class Environment:
    """Where the programs are, and the environment variables that processes are started with."""

    mcpscope: str
    mcp_peer: str
    node: str
    node_modules: str
    prometheus: str
    promtool: str
    chromium: str
    mark: str = ""

    @classmethod
    def from_variables(cls) -> "Environment":
        wrong = [
            f"{name} ({what}) " + (f"names no file: {os.environ[name]}" if name in os.environ else "is not set")
            for name, what in VARIABLES.items()
            if not os.path.exists(os.environ.get(name, ""))
        ]
        if wrong:
            advice = ". `cargo xtask test` installs what is missing and sets these variables."
            # Never a skip: a run without its programs has tested nothing.
            pytest.fail("; ".join(wrong) + advice, pytrace=False)
        return cls(*(os.path.abspath(os.environ[name]) for name in VARIABLES))

    @property
    def everything(self) -> str:
        """The entry point of the reference MCP server."""
        return os.path.join(self.node_modules, "@modelcontextprotocol", "server-everything", "dist", "index.js")

    def new_mark(self) -> str:
        self.mark = uuid.uuid4().hex
        return self.mark

    def variables(self, home: pathlib.Path) -> dict[str, str]:
        """The caller's variables without anything that configures mcpscope or redirects loopback traffic.

        Instances publish themselves in the runtime directory; this one is the test's own.
        """
        unwanted = ("MCPSCOPE_", "OTEL_", "XDG_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(unwanted) and not name.lower().endswith("_proxy")
        }
        runtime = home / "runtime"
        runtime.mkdir(mode=0o700, exist_ok=True)
        return kept | {MARK: self.mark, "HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}


def wait_until(condition, within: float = 10, what: str = "the condition"):
    """Polls until `condition()` is true, and gives its value."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {within} s")
        time.sleep(0.02)
    return value


def settles_at(expected, read, within: float = 10):
    """Polls until `read()` equals `expected`; the last reading is in the failure."""
    deadline = time.monotonic() + within
    while (value := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert value == expected


def free_port() -> int:
    """A port that was free a moment ago, for programs that cannot say which one they took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connects(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionError:
        return False
    return True


def marked(mark: str) -> dict[int, str]:
    """The live processes that carry `mark` in their environment, with their command lines."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # gone meanwhile, or not ours to read
    return found


def leftovers(mark: str, grace: float) -> dict[int, str]:
    """What is still running after `grace` seconds; it is killed."""
    deadline = time.monotonic() + grace
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return left


class Instance:
    """One running mcpscope, announced by its ready file."""

    def __init__(self, process: subprocess.Popen, ready_file: pathlib.Path, stderr_file: pathlib.Path):
        self.process = process
        self.ready_file = ready_file
        self.stderr_file = stderr_file
        self.ready: dict = {}

    @property
    def dashboard(self) -> str:
        return self.ready["dashboard"]

    @property
    def grpc(self) -> str:
        """HOST:PORT."""
        return self.ready["grpc"]

    @property
    def probe(self) -> str:
        """URL of the plain, read-only listener."""
        return self.ready["probe"]

    @property
    def proxy(self) -> str:
        """The address of the only proxy listener."""
        (address,) = self.ready["proxy"].values()
        return address

    def stderr(self) -> str:
        return self.stderr_file.read_bytes().decode(errors="replace")

    def get(self, path: str, **options) -> httpx.Response:
        return httpx.get(self.dashboard + path, trust_env=False, timeout=10, **options)

    def metrics(self) -> Metrics:
        return scrape(self.dashboard)

    def wait(self, within: float = 10) -> int:
        """The exit code; a signal shows as a negative number."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {within} s; stderr:\n{self.stderr()}") from None

    def stop(self):
        """Asks, then kills the whole process group."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def read_ready_file(path: pathlib.Path, running=lambda: True, complaint=lambda: "", within: float = 10) -> dict:
    """Waits for the ready file. It is written in one step, so what exists is whole."""
    deadline = time.monotonic() + within
    while not path.exists():
        assert running(), f"ended before it was ready; stderr:\n{complaint()}"
        assert time.monotonic() < deadline, f"not ready within {within} s; stderr:\n{complaint()}"
        time.sleep(0.01)
    return json.loads(path.read_text())


def scrape(dashboard: str) -> Metrics:
    response = httpx.get(dashboard + "metrics", trust_env=False, timeout=10)
    assert response.status_code == 200, response.text
    return Metrics(response.text)


class Instances:
    """Starts mcpscope processes, each in a process group of its own, and ends them all on exit."""

    def __init__(self, environment: Environment, directory: pathlib.Path):
        self.environment = environment
        self.directory = directory
        self.started: list[Instance] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for instance in reversed(self.started):
            instance.stop()

    def variables(self) -> dict[str, str]:
        return self.environment.variables(self.directory)

    def spawn(self, *arguments: str, ready: bool = True, grpc: str | None = ANY_PORT, **options) -> Instance:
        """Starts mcpscope. `ready=False` for command lines that are expected not to get that far, or to end by themselves.

        gRPC listens on any free port unless the arguments say otherwise; `grpc=None` for the program's own default.
        """
        number = len(self.started)
        ready_file = self.directory / f"ready-{number}.json"
        stderr_file = self.directory / f"stderr-{number}.txt"
        command, *rest = arguments
        if command in SERVING and grpc and "--grpc" not in rest:
            rest = ["--grpc", grpc, *rest]
        if ready:
            rest = ["--ready-file", str(ready_file), *rest]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "env": self.variables()} | options
        with stderr_file.open("wb") as stderr:
            options = {"stderr": stderr} | options
            process = subprocess.Popen([self.environment.mcpscope, command, *rest], start_new_session=True, **options)
        instance = Instance(process, ready_file, stderr_file)
        self.started.append(instance)
        if ready:
            instance.ready = read_ready_file(ready_file, lambda: process.poll() is None, instance.stderr)
        return instance

    def run(self, *options: str, command: list[str], dashboard: str = ANY_PORT, **popen) -> Instance:
        """`mcpscope run` with open pipes on both sides."""
        popen = {"stdin": subprocess.PIPE} | popen
        return self.spawn("run", "--dashboard", dashboard, *options, "--", *command, **popen)

    def proxy(self, upstream: str, *options: str, **popen) -> Instance:
        listen = ("--listen", ANY_PORT, "--dashboard", ANY_PORT)
        # Nothing is expected on stdout, and nobody would read it.
        popen = {"stdout": subprocess.DEVNULL} | popen
        return self.spawn("proxy", "--upstream", upstream, *listen, *options, **popen)

    def serve(self, config: pathlib.Path, *options: str, **popen) -> Instance:
        """`mcpscope serve` of the servers in a configuration file."""
        popen = {"stdout": subprocess.DEVNULL} | popen
        return self.spawn("serve", "--config", str(config), "--dashboard", ANY_PORT, *options, **popen)

    def demo(self, *options: str, **popen) -> Instance:
        return self.spawn("demo", "--listen", ANY_PORT, "--dashboard", ANY_PORT, *options, **popen)

    def finish(self, *arguments: str, input: bytes = b"", within: float = 15) -> subprocess.CompletedProcess:
        """A command line that ends by itself: its exit code, stdout and stderr, as bytes."""
        instance = self.spawn(*arguments, ready=False, stdin=subprocess.PIPE)
        try:
            stdout, _ = instance.process.communicate(input, timeout=within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {within} s; stderr:\n{instance.stderr()}") from None
        code = instance.process.returncode
        return subprocess.CompletedProcess(arguments, code, stdout, instance.stderr_file.read_bytes())
