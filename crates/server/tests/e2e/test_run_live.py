"""`mcpscope run` while it runs: signals, ports in use, garbage and messages over the limit."""

import contextlib
import json
import re
import signal
import socket
import sys
import threading

import pytest

from harness import settles_at, wait_until

MIB = 1024 * 1024
DEFAULT_PORT = 8080

# Reports the first signal it gets, and ends with a code of its own.
SIGNALS = """
import signal, sys
wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("ready", flush=True)
print(signal.Signals(signal.sigwait(wanted)).name, flush=True)
if signal.sigtimedwait(wanted, 0.3):
    sys.exit("a second signal")
sys.exit(7)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_forwarded_once(instances, number):
    """To mcpscope alone, as a supervisor sends them; the child decides what they mean."""
    instance = instances.run(command=[sys.executable, "-c", SIGNALS], dashboard="off")
    assert instance.process.stdout.readline() == b"ready\n"
    instance.process.send_signal(number)
    assert instance.process.stdout.readline().decode().strip() == number.name
    assert instance.wait() == 7, instance.stderr()


def test_a_child_that_ignores_a_signal_stays(instances):
    child = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); print(input())"
    instance = instances.run(command=[sys.executable, "-c", child], dashboard="off")
    assert instance.process.stdout.readline() == b"ready\n"
    instance.process.send_signal(signal.SIGINT)
    stdout, _ = instance.process.communicate(b"still here\n", timeout=10)
    assert (stdout, instance.process.returncode) == (b"still here\n", 0)


@contextlib.contextmanager
def occupied(port: int):
    """Makes sure that someone listens on `port`: us, unless it is taken already."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError:
            pass
        yield


def test_a_taken_default_port_never_stops_the_server(instances):
    with occupied(DEFAULT_PORT):
        instance = instances.spawn("run", "--", "cat", stdin=-1)
        port = int(re.search(r":(\d+)/$", instance.dashboard)[1])
        assert port != DEFAULT_PORT
        notice = [line for line in instance.stderr().splitlines() if str(DEFAULT_PORT) in line]
        assert notice and str(port) in instance.stderr(), instance.stderr()
        stdout, _ = instance.process.communicate(b"traffic\n", timeout=10)
        assert (stdout, instance.process.returncode) == (b"traffic\n", 0)


def test_two_at_once_on_the_default_port(instances):
    first, second = (instances.spawn("run", "--", "cat", stdin=-1) for _ in range(2))
    assert first.dashboard != second.dashboard
    assert first.get("healthz").status_code == second.get("healthz").status_code == 200


@pytest.mark.parametrize("flag", ["--listen", "--dashboard"])
def test_a_taken_port_that_was_asked_for_is_an_error(instances, upstream, flag):
    taken = f"127.0.0.1:{upstream.server.server_port}"
    addresses = {"--listen": "127.0.0.1:0", "--dashboard": "127.0.0.1:0"} | {flag: taken}
    arguments = [part for pair in addresses.items() for part in pair]
    done = instances.finish("proxy", "--upstream", "http://127.0.0.1:9/mcp", *arguments)
    assert done.returncode == 69
    assert taken in done.stderr.decode()
    assert done.stdout == b""


def test_garbage_from_the_child_is_passed_on_and_counted(instances):
    lines = [
        b"Server listening on stdio",
        b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}',
        b"\xff\xfe not even text",
        b'{"jsonrpc":"2.0","id":',
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
    ]
    output = b"\n".join(lines) + b"\n"
    child = f"import sys; sys.stdout.buffer.write({output!r}); sys.stdout.flush(); sys.stdin.read()"
    instance = instances.run(command=[sys.executable, "-c", child])
    assert instance.process.stdout.read(len(output)) == output
    count = lambda: instance.metrics().sum(  # noqa: E731
        "mcpscope_component_errors_total", component="transport", error_type="invalid_message"
    )
    settles_at(3, count)
    assert instance.process.communicate(b"", timeout=10)[0] == b""


def status_kib(pid: int, field: str) -> int:
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(rf"^{field}:\s+(\d+) kB", status.read(), re.M)[1])


def test_a_message_over_the_limit_is_relayed_whole_in_flat_memory(instances):
    """100 MiB there and back. Up to 16 MiB of a message are kept to look at it, in each direction; no more ever."""
    head, tail = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"big","x":"', b'"}}\n'
    message = head + b"x" * (100 * MIB) + tail
    # Echoed by `cat`, a request and an answer of ours make one whole exchange in each direction.
    small = b'{"jsonrpc":"2.0","id":2,"method":"tools/list"}\n{"jsonrpc":"2.0","id":2,"result":{"tools":[]}}\n'
    instance = instances.run("--name", "big", command=["cat"])
    pipe = instance.process
    pipe.stdin.write(small)
    pipe.stdin.flush()
    assert pipe.stdout.read(len(small)) == small
    before = status_kib(pipe.pid, "VmHWM")

    def write():
        pipe.stdin.write(message + small)
        pipe.stdin.flush()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    same = pipe.stdout.read(len(message)) == message
    assert same, "the message has changed"
    # The next message is understood again: the relay knows where the large one ended.
    assert pipe.stdout.read(len(small)) == small
    writer.join(10)
    # The peak, so that no moment in between is missed.
    grown = status_kib(pipe.pid, "VmHWM") - before
    assert grown < 40 * 1024, f"grew by {grown} KiB"

    # `cat` sends it back, so each message is seen once in each direction.
    settles_at(2, lambda: instance.metrics().sum("mcpscope_dropped_total", what="oversized_message"))
    lists = lambda: instance.metrics().sum("mcpscope_registry_operations_total", operation="list")  # noqa: E731
    wait_until(lambda: lists() >= 2, what="the small messages in the counts")
    pipe.stdin.close()
    assert instance.wait() == 0


def test_counts_of_a_conversation_with_the_plainest_server(instances):
    """Calls matched to answers by id and direction, whatever the order of the answers."""
    # Answers the second request first; 1 and "1" are different ids.
    child = """
import json, sys
requests = [json.loads(sys.stdin.readline()) for _ in range(3)]
for request in (requests[1], requests[0]):
    result = {"content": [], "isError": request["id"] == "1"}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))
print(json.dumps({"jsonrpc": "2.0", "id": 2, "error": {"code": -32603, "message": "no"}}), flush=True)
sys.stdin.read()
"""
    instance = instances.run("--name", "plain", command=[sys.executable, "-c", child])
    for id, tool in ((1, "first"), ("1", "second"), (2, "third")):
        params = {"name": tool, "arguments": {}}
        request = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}
        instance.process.stdin.write(json.dumps(request).encode() + b"\n")
    instance.process.stdin.flush()
    calls = {("first", "ok"): 1, ("second", "error"): 1, ("third", "error"): 1}
    settles_at(calls, lambda: instance.metrics().tool_calls(server="plain", injected="false"))
    errors = instance.metrics().by("error_type", "mcpscope_component_errors_total", component="tools")
    assert errors == {"tool_error": 1, "-32603": 1}
    traces = {trace["tool"]: trace for trace in instance.get("api/v1/traces").json()}
    assert {tool: traces[tool]["status"] for tool in traces} == {"first": "ok", "second": "error", "third": "error"}
