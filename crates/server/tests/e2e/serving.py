"""Servers for `mcpscope serve`, what a client asks of them, and how the instance says they are."""

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading

import httpx

from harness import ANY_PORT, Instance, Instances, free_port, wait_until
from upstream import call

HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
SERVED = [sys.executable, str(pathlib.Path(__file__).with_name("served.py"))]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}},
}
# A restart at once, or never by itself.
AT_ONCE = {"backoff_min": "1ms", "backoff_max": "1ms", "give_up": 1000}
NEVER = {"backoff_min": "1h", "backoff_max": "1h"}
# More than a loaded machine needs for anything here.
LONG = 30


def server(name: str, upstream: str, listen: str = ANY_PORT, **others) -> dict:
    return {"name": name, "upstream": upstream, "listen": listen} | others


def started(name: str, **others) -> dict:
    """A server that mcpscope starts."""
    port = free_port()
    return server(name, f"http://127.0.0.1:{port}/mcp", command=[*SERVED, str(port)], **others)


def nowhere() -> str:
    """Where nothing listens."""
    return f"http://127.0.0.1:{free_port()}/mcp"


def post(instance: Instance, name: str, message: dict, **headers: str) -> httpx.Response:
    url = instance.ready["proxy"][name]
    return httpx.post(url, content=json.dumps(message), headers=HEADERS | headers, trust_env=False, timeout=LONG)


def pid_of(instance: Instance, name: str) -> int:
    """Of the process that answers."""
    answer = post(instance, name, call("pid"))
    assert answer.status_code == 200, answer.text
    return int(answer.json()["result"]["content"][0]["text"])


def kill(pid: int):
    """Ends a process, and waits until nothing of it answers."""
    os.kill(pid, signal.SIGKILL)
    is_gone = lambda: not pathlib.Path(f"/proc/{pid}/stat").exists() or state(pid) in "ZX"  # noqa: E731
    wait_until(is_gone, within=LONG, what="the end of the process")


def state(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    except OSError:
        return "X"


def readiness(instance: Instance) -> tuple[int, str]:
    answer = instance.get("readyz")
    return answer.status_code, "; ".join(missing["reason"] for missing in answer.json().get("missing", []))


def transports(instance: Instance) -> dict:
    return instance.get("api/v1/health").json()["components"].get("transports", {})


@contextlib.contextmanager
def in_background(work):
    """Does `work` in a thread; what is yielded waits for its result."""
    result = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()

    def wait():
        thread.join(LONG)
        assert result, "it did not end"
        return result[0]

    yield wait
    thread.join(LONG)


class Served:
    """Starts `serve` with servers written to a file, which is replaced in one step when it changes."""

    def __init__(self, instances: Instances, directory: pathlib.Path):
        self.instances = instances
        self.file = directory / "serve.yaml"
        self.sections: dict = {}

    def __call__(self, *servers: dict, options=(), **sections) -> Instance:
        # A server may take its time to start on a loaded machine.
        self.sections = {"proxy": {"connect_timeout": f"{LONG}s"}} | sections
        self.rewrite(*servers)
        return self.instances.serve(self.file, *options)

    def rewrite(self, *servers: dict, **sections):
        # JSON is YAML.
        self.put(json.dumps(self.sections | sections | {"servers": servers}))

    def put(self, text: str):
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)
