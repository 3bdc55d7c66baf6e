"""The emergency stop: at once, for everybody, whatever else is going on."""

import contextlib
import http.client
import json
import os
import pathlib
import select
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import pytest

from chaos import HEADERS, LONG, Chaos
from echo_peer import packed
from harness import wait_until
from raw import RawWebSocket, connect
from upstream import call

pytestmark = pytest.mark.usefixtures("alone")

# How long from the request to the last effect: with nothing else to do, and with full queues and busy cores.
IDLE, BUSY = 0.010, 0.100
# Other programs of the machine may be in the way of one try, and not of all.
TRIES_FOR = 40
HELD = 20
SPINS = [sys.executable, "-c", "while True: pass"]
# More messages than all queues and pipes hold, as fast as they are taken.
NOTE = '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":%%.0f}}'
FLOOD = f"while ! [ -e $0 ]; do sleep 0.05; done; seq -f '{NOTE}' 1 %d; cat > $1"
FLOODED = 20_000
# What is in a queue, of each direction, that is full.
WAYS, MANY = ("to_server", "to_client"), 500
# What the dashboard has room for.
SOCKETS, CONNECTIONS = 100, 256
FLOOD_OF = 300


class Brake:
    """A connection that is there already, as that of a page is."""

    def __init__(self, instance):
        where = urlsplit(instance.dashboard)
        self.connection = http.client.HTTPConnection(where.hostname, where.port, timeout=LONG)
        self.connection.request("GET", "/healthz")
        assert self.connection.getresponse().read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def pull(self):
        self.connection.request("POST", "/api/v1/chaos/emergency-stop", b"", HEADERS)

    def pulled(self):
        answer = self.connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (200, {"emergency_stop": True})


@pytest.fixture
def peer(instances, tmp_path):
    """An instance in front of a server that sends back what it is sent."""
    return instances.run("--data", str(tmp_path / "data"), "--name", "peer", command=["cat"])


def lines(count: int) -> bytes:
    return b"".join(packed(call(id=number)) + b"\n" for number in range(count))


def exactly(stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.read1(size - len(data))
        assert piece, "ended"
        data += piece
    return data


def rearm(chaos: Chaos):
    assert chaos.ask("POST", "/rearm", {}, chaos.token).status_code == 200


def test_all_that_is_held_is_there_at_once(peer, tmp_path):
    chaos, sent, took = Chaos(peer, tmp_path / "data"), lines(HELD), []
    began = time.monotonic()
    while not took or (min(took) >= IDLE and time.monotonic() < began + TRIES_FOR):
        id = chaos.start("latency_injection", delay="10m", direction="to_server")
        peer.process.stdin.write(sent)
        peer.process.stdin.flush()
        chaos.has_hit(id, HELD)
        with Brake(peer) as brake:
            asked = time.monotonic()
            brake.pull()
            # Through the server and back, in order.
            received = exactly(peer.process.stdout, len(sent))
            took.append(time.monotonic() - asked)
            brake.pulled()
        assert received == sent
        assert chaos.report(id)["status"] == "aborted"
        assert chaos.refused("hang")[0] == 409
        rearm(chaos)
    assert min(took) < IDLE, took


@contextlib.contextmanager
def busy_cores(variables):
    spinning = [subprocess.Popen(SPINS, env=variables) for _ in range(2)]
    try:
        yield
    finally:
        for each in spinning:
            each.kill()
            each.wait()


def fill(pipe: int, depths) -> bytes:
    """Writes until nothing takes any more on either side, and gives what was written."""
    os.set_blocking(pipe, False)
    written, seen = b"", []
    messages = lines(2 * FLOODED)
    while seen[-3:].count(now := depths()) < 3 or min(now.get(way, 0) for way in WAYS) < MANY:
        seen.append(now)
        with contextlib.suppress(BlockingIOError):
            while True:
                written += messages[len(written) :][: os.write(pipe, messages[len(written) :][:65536])]
    os.set_blocking(pipe, True)
    return written


def stopped_when_full(instances, variables, folder: pathlib.Path) -> float:
    """How long it takes until the first of what was held is there. All of it comes, in order."""
    folder.mkdir()
    go, got = folder / "go", folder / "got"
    command = ["sh", "-c", FLOOD % FLOODED, str(go), str(got)]
    instance = instances.run("--data", str(folder / "data"), "--name", "peer", command=command)
    chaos = Chaos(instance, folder / "data")
    id = chaos.start("latency_injection", delay="10m")
    go.touch()
    depths = lambda: instance.metrics().by("direction", "mcpscope_message_queue_depth", server="peer")  # noqa: E731
    written = fill(instance.process.stdin.fileno(), depths)
    stdout = instance.process.stdout
    assert select.select([stdout], [], [], 0)[0] == []
    with Brake(instance) as brake, busy_cores(variables):
        asked = time.monotonic()
        brake.pull()
        brake.pulled()
        assert select.select([stdout], [], [], LONG)[0], "it is not let go"
        took = time.monotonic() - asked
    numbers = [json.loads(stdout.readline())["params"]["data"] for _ in range(FLOODED)]
    assert numbers == [*range(1, FLOODED + 1)]
    instance.process.stdin.close()
    instance.wait(LONG)
    # The last of what was written may be the beginning of a message.
    assert got.read_bytes() == written
    assert chaos.journal(id)[-1]["report"]["status"] == "aborted"
    return took


@pytest.mark.timeout(120)
def test_with_full_queues_and_busy_cores(instances, tmp_path):
    began, took = time.monotonic(), []
    variables = instances.variables()
    while not took or (min(took) >= BUSY and time.monotonic() < began + TRIES_FOR):
        took.append(stopped_when_full(instances, variables, tmp_path / str(len(took))))
    assert min(took) < BUSY, took


def test_while_all_of_the_dashboards_connections_are_taken(instances, peer, tmp_path):
    chaos = Chaos(peer, tmp_path / "data")
    with Brake(peer) as brake, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(RawWebSocket(peer.dashboard)) for _ in range(SOCKETS + 1)]
        assert [socket.status for socket in sockets] == [101] * SOCKETS + [503]
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(peer.dashboard)).sendall(b"GET / HTTP/1.1\r\n")
        # The page has its connection already: who was answered stays, where most have said nothing.
        brake.pull()
        brake.pulled()
    # Another dashboard's limits are none of gRPC's, which the command takes.
    wait_until(lambda: chaos.status()["emergency_stop"], within=LONG, what="the stop")
    rearm(chaos)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connect(peer.dashboard)).sendall(b"GET / HTTP/1.1\r\n")
        done = instances.finish("chaos", "emergency-stop", within=LONG)
        assert done.returncode == 0, done.stderr
    assert chaos.status()["emergency_stop"]


def test_no_flood_of_idle_connections_keeps_it_out(peer, tmp_path):
    chaos = Chaos(peer, tmp_path / "data")
    where = urlsplit(peer.dashboard)
    id = chaos.start("hang")
    chaos.http.close()
    with contextlib.ExitStack() as stack:
        for number in range(FLOOD_OF):
            client = stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=LONG))
            # Some have begun to ask, and some were answered and stay.
            client.sendall((b"", b"POST /api/v1/chaos/plan HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")[number % 3])
        asked = time.monotonic()
        answer = httpx.post(chaos.base + "/emergency-stop", headers=HEADERS, trust_env=False, timeout=LONG)
        took = time.monotonic() - asked
    assert (answer.status_code, answer.json()) == (200, {"emergency_stop": True})
    assert took < 1, took
    chaos = Chaos(peer, tmp_path / "data")
    assert chaos.report(id)["status"] == "aborted"
    assert peer.metrics().sum("mcpscope_dropped_total", what="dashboard_evicted") >= FLOOD_OF - CONNECTIONS


def test_it_takes_no_token_and_looks_at_no_body(peer, tmp_path):
    chaos = Chaos(peer, tmp_path / "data")
    where = chaos.base + "/emergency-stop"
    for body in (b"", b"{}", b"no JSON", b"[" * 50_000):
        id = chaos.start("hang")
        answer = chaos.http.post(where, content=body)
        assert (answer.status_code, answer.json()) == (200, {"emergency_stop": True}), body
        assert chaos.report(id)["status"] == "aborted"
        rearm(chaos)
    # It can be said again and again.
    for _ in range(20):
        answer = httpx.post(where, headers=HEADERS, trust_env=False, timeout=LONG)
        assert answer.status_code == 200
    code, why = chaos.refused("hang")
    assert code == 409 and "armed again" in why, why
    assert chaos.status()["stopped_by"] == "a person"
