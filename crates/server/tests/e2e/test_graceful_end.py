"""SIGTERM and SIGINT: what is under way ends in order, within the stated times, and nothing is left."""

import contextlib
import json
import queue
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness import ANY_PORT, connects, marked, wait_until
from rpc import Rpc, channel_to, failure
from upstream import call, result_for

# Calls under way have 5 s to end, then all that observes has 3 s.
GRACE, OBSERVING = 5, 3
# A wrapped server that does not heed SIGTERM has 10 s.
KILL_AFTER = 10
# A second signal after this long ends it at once.
INSIST = 1.2
# For a busy machine.
MARGIN = 3
GOING_AWAY = 1001
STOPPING = (grpc.StatusCode.UNAVAILABLE, "the instance is stopping")
SIGNALS = [signal.SIGTERM, signal.SIGINT]


class Held:
    """An upstream that answers when it is told to; calls to it go on in threads of their own."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.released = threading.Event()
        self.pool = ThreadPoolExecutor(4)
        upstream.answer = self.answer

    def answer(self, exchange):
        self.released.wait(30)
        with contextlib.suppress(ConnectionError):
            exchange.answer_json(result_for(exchange.json()))

    def call(self, url: str):
        """The answer of a call that is under way, in the future."""
        before = len(self.upstream.seen)
        future = self.pool.submit(httpx.post, url, json=call(), trust_env=False, timeout=30)
        wait_until(lambda: len(self.upstream.seen) > before, what="the call at the upstream")
        return future


@pytest.fixture
def held(upstream):
    held = Held(upstream)
    yield held
    held.released.set()
    held.pool.shutdown()


def port_of(url: str) -> int:
    return urlsplit(url).port


def refuses(url: str) -> bool:
    return not connects(port_of(url))


@contextlib.contextmanager
def web_socket(instance):
    """An open WebSocket that has its first push."""
    url = instance.dashboard.replace("http:", "ws:") + "ws"
    with connect(url, proxy=None, max_size=None, open_timeout=10) as socket:
        assert json.loads(socket.recv(timeout=10))["type"] == "dashboard"
        yield socket


def close_code(web_socket) -> int:
    """The code that the server closes with; pushes may come before."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            web_socket.recv(timeout=GRACE + OBSERVING + MARGIN)
    assert closed.value.rcvd is not None, "closed without a word"
    return closed.value.rcvd.code


def end_of(stream) -> tuple[grpc.StatusCode, str]:
    """How a stream ends; it may have more to tell before."""
    return failure(lambda: [answer for answer in stream])


# --- proxy


@pytest.mark.parametrize("number", SIGNALS)
def test_a_call_under_way_gets_its_answer(instances, held, number):
    proxy = instances.proxy(held.upstream.url)
    answer = held.call(proxy.proxy)
    proxy.process.send_signal(number)
    wait_until(lambda: refuses(proxy.proxy), within=2, what="the end of accepting")
    assert proxy.process.poll() is None and not answer.done()
    # Whoever sends it traffic learns in time to send no more.
    ready = proxy.get("readyz")
    assert ready.status_code == 503 and {"name": "running", "reason": "stopping"} in ready.json()["missing"]
    asked = time.monotonic()
    held.released.set()
    assert answer.result(timeout=5).json()["id"] == 1
    assert proxy.wait(OBSERVING + MARGIN) == 0
    # It does not sit out the time that was left.
    assert time.monotonic() - asked < OBSERVING


def test_a_call_that_does_not_end_is_cut_off(instances, held):
    proxy = instances.proxy(held.upstream.url)
    answer = held.call(proxy.proxy)
    asked = time.monotonic()
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.wait(GRACE + OBSERVING + MARGIN) == 0
    assert GRACE - 0.5 < time.monotonic() - asked
    with pytest.raises(httpx.HTTPError):
        answer.result(timeout=5)


def test_a_second_signal_ends_it_at_once(instances, held):
    proxy = instances.proxy(held.upstream.url)
    answer = held.call(proxy.proxy)
    asked = time.monotonic()
    # Together they are one wish: `timeout` signals a process and then its whole group.
    for _ in range(3):
        proxy.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(proxy.proxy), within=2, what="the end of accepting")
    wait_until(lambda: time.monotonic() - asked > INSIST, what="the time")
    assert proxy.process.poll() is None
    proxy.process.send_signal(signal.SIGINT)
    assert proxy.wait(2) == 130
    assert time.monotonic() - asked < GRACE
    with pytest.raises(httpx.HTTPError):
        answer.result(timeout=5)


@pytest.mark.parametrize("number", SIGNALS)
def test_whoever_watches_is_told(instances, held, number):
    """All at once, with a call under way: everything ends as its protocol says."""
    proxy = instances.proxy(held.upstream.url, "--probe", ANY_PORT)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(web_socket(proxy)) for _ in range(3)]
        rpc = stack.enter_context(Rpc(proxy.grpc))
        streams = [
            rpc(name, timeout=30)
            for name in ("TraceService.WatchTraces", "HealthService.WatchHealth", "DashboardService.WatchSnapshots")
        ]
        # The last on the connection: with its first answer all of them are open.
        streams.append(watch_health(rpc.channel))
        answer = held.call(proxy.proxy)
        asked = time.monotonic()
        proxy.process.send_signal(number)
        held.released.set()
        assert answer.result(timeout=5).status_code == 200
        assert [close_code(socket) for socket in sockets] == [GOING_AWAY] * 3
        assert [end_of(stream) for stream in streams] == [STOPPING] * 4
        assert proxy.wait(GRACE + OBSERVING) == 0
        assert time.monotonic() - asked < OBSERVING + MARGIN
    listeners = [proxy.proxy, proxy.dashboard, proxy.probe, f"//{proxy.grpc}"]
    assert all(refuses(listener) for listener in listeners)
    assert "panicked" not in proxy.stderr()


def test_a_watcher_at_the_probe_is_told(instances, upstream):
    proxy = instances.proxy(upstream.url, "--probe", ANY_PORT)
    with channel_to(urlsplit(proxy.probe).netloc) as channel:
        stream = watch_health(channel)
        asked = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)
        assert end_of(stream) == STOPPING
        assert proxy.wait(OBSERVING + MARGIN) == 0
        assert time.monotonic() - asked < 1.5, "it is told at once, not cut off in the end"


def watch_health(channel):
    """A stream that is open."""
    stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
    next(stream)
    return stream


def test_clients_that_take_no_notice_do_not_hold_it_up(instances, upstream):
    """Connections that are kept open, one that never reads, one that never closes its side."""
    proxy = instances.proxy(upstream.url)
    with contextlib.ExitStack() as stack:
        keeping = stack.enter_context(httpx.Client(trust_env=False))
        assert keeping.get(proxy.dashboard + "healthz").status_code == 200
        assert keeping.post(proxy.proxy, json=call()).status_code == 200
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port_of(url)))) for url in listeners(proxy)]
        handshake = (
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(proxy.dashboard))))
        silent.sendall(handshake.encode())
        assert silent.recv(12) == b"HTTP/1.1 101"
        channel = stack.enter_context(channel_to(proxy.grpc))
        # Open, and nobody asks for what comes next.
        watch_health(channel)
        asked = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.wait(GRACE + OBSERVING + MARGIN) == 0
        assert time.monotonic() - asked < GRACE + OBSERVING
        assert len(idle) == 3


def listeners(instance) -> list[str]:
    return [instance.proxy, instance.dashboard, f"//{instance.grpc}"]


def test_an_idle_one_ends_at_once(instances, upstream):
    proxy = instances.proxy(upstream.url)
    asked = time.monotonic()
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.wait(5) == 0
    assert time.monotonic() - asked < 2


# --- run

IGNORES = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
HEEDS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
time.sleep(60)
"""


def run(instances, script: str):
    instance = instances.run(command=[sys.executable, "-c", script])
    assert instance.process.stdout.readline() == b"ready\n"
    return instance


def test_a_wrapped_server_ends_as_it_likes(instances):
    instance = run(instances, HEEDS)
    with web_socket(instance) as socket, Rpc(instance.grpc) as rpc:
        stream = rpc("HealthService.WatchHealth", timeout=30)
        next(stream)
        asked = time.monotonic()
        instance.process.send_signal(signal.SIGTERM)
        assert close_code(socket) == GOING_AWAY
        assert end_of(stream)[0] is grpc.StatusCode.UNAVAILABLE
        assert instance.wait(OBSERVING + MARGIN) == 5
        assert time.monotonic() - asked < OBSERVING + MARGIN


def test_a_wrapped_server_that_does_not_heed_is_killed(instances, environment):
    instance = run(instances, IGNORES)
    with web_socket(instance) as socket:
        asked = time.monotonic()
        instance.process.send_signal(signal.SIGTERM)
        # Until then it is a server like any other: it may be busy with its last call.
        while time.monotonic() - asked < KILL_AFTER - 2:
            assert instance.process.poll() is None
            assert instance.get("healthz").status_code == 200
            time.sleep(0.5)
        assert close_code(socket) == GOING_AWAY
        assert instance.wait(KILL_AFTER + OBSERVING) == 128 + signal.SIGKILL
        assert KILL_AFTER - 0.5 < time.monotonic() - asked < KILL_AFTER + OBSERVING
    assert not marked(environment.mark)


def test_the_clients_end_is_the_end_of_all_that_observes(instances):
    """No signal at all: the client closes its side."""
    instance = instances.run(command=["cat"])
    with web_socket(instance) as socket, Rpc(instance.grpc) as rpc:
        stream = rpc("DashboardService.WatchSnapshots", timeout=30)
        next(stream)
        instance.process.stdin.close()
        assert close_code(socket) == GOING_AWAY
        assert end_of(stream)[0] is grpc.StatusCode.UNAVAILABLE
        assert instance.wait(OBSERVING + MARGIN) == 0


# --- demo


@pytest.mark.parametrize("number", SIGNALS)
def test_the_demo_leaves_no_child(instances, environment, number):
    demo = instances.demo("--probe", ANY_PORT)
    children = lambda: set(marked(environment.mark)) - {demo.process.pid}  # noqa: E731
    wait_until(children, what="the stdio child")
    with web_socket(demo) as socket, Rpc(demo.grpc) as rpc:
        stream = rpc("TraceService.WatchTraces", timeout=30)
        next(stream)
        asked = time.monotonic()
        demo.process.send_signal(number)
        assert close_code(socket) == GOING_AWAY
        assert end_of(stream)[0] is grpc.StatusCode.UNAVAILABLE
        assert demo.wait(GRACE + OBSERVING) == 0
        assert time.monotonic() - asked < GRACE + OBSERVING
    assert not children(), marked(environment.mark)
    assert "panicked" not in demo.stderr()


# --- The ready file


def test_the_ready_file_has_everything_in_one_step(instances, tmp_path):
    """Whoever sees it at all sees the whole of it, and can connect to all of it."""
    ready = tmp_path / "out" / "ready.json"
    ready.parent.mkdir()
    seen: queue.Queue = queue.Queue()

    def look():
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                seen.put(ready.read_bytes())
                return

    threading.Thread(target=look, daemon=True).start()
    listen = ("--listen", ANY_PORT, "--dashboard", ANY_PORT, "--probe", ANY_PORT)
    demo = instances.spawn("demo", *listen, "--ready-file", str(ready), ready=False)
    first = seen.get(timeout=15)
    demo.ready = json.loads(first)
    assert set(demo.ready) == {"dashboard", "grpc", "probe", "proxy"} and set(demo.ready["proxy"]) == {"demo"}
    assert all(connects(port_of(url)) for url in [*listeners(demo), demo.probe])
    for url in (demo.dashboard, demo.probe):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", demo.grpc)
    assert ready.read_bytes() == first and list(ready.parent.iterdir()) == [ready], "no other file beside it"
    printed = [f"dashboard {demo.dashboard}", f"grpc {demo.grpc}", f"probe {demo.probe}", f"proxy {demo.proxy}"]
    assert [line for line in demo.stderr().splitlines() if line in printed] == printed


def test_the_ready_file_is_gone_with_its_instance(instances, upstream):
    demo = instances.demo()
    proxy = instances.proxy(upstream.url)
    for instance in (demo, proxy):
        assert instance.ready_file.exists()
        instance.process.terminate()
        assert instance.wait(GRACE + OBSERVING) == 0
        assert not instance.ready_file.exists()
    run = instances.run(command=["cat"])
    run.process.stdin.close()
    assert run.wait(GRACE + OBSERVING) == 0
    assert not run.ready_file.exists()
