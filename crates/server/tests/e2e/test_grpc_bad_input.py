"""What no good client sends to the gRPC listener: each is refused or bounded, and the next one is answered."""

import contextlib
import os
import socket
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import settles_at
from rpc import Rpc, channel_to, failure

SERVING = health_pb2.HealthCheckResponse.SERVING
CODES = grpc.StatusCode
# The first is the convention; the library that answers has the second.
TOO_LARGE = (CODES.RESOURCE_EXHAUSTED, CODES.OUT_OF_RANGE)
HEALTH = "/grpc.health.v1.Health/Check"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
# The documented limits of the listener.
HANDSHAKE = 10
MAX_CONNECTIONS = MAX_STREAMS = 256
# Of those, what one connection may have.
SHARE = 32
# Each such channel is a connection of its own.
OWN = ("grpc.use_local_subchannel_pool", 1)


@pytest.fixture
def instance(instances):
    """It is as good as new afterwards."""
    instance = instances.run(command=["cat"])
    with channel_to(instance.grpc) as before:
        settles_at(SERVING, lambda: check(before))
        yield instance
        with channel_to(instance.grpc, OWN) as after:
            assert check(after, timeout=20) == check(before) == SERVING
    assert instance.get("healthz").status_code == 200
    stdout, _ = instance.process.communicate(b"traffic\n", timeout=10)
    assert (stdout, instance.process.returncode) == (b"traffic\n", 0)
    assert "panicked" not in instance.stderr()


@pytest.fixture
def rpc(instance):
    with Rpc(instance.grpc) as client:
        yield client


def check(channel, timeout: float = 10) -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout).status


def dropped(instance, what: str) -> float:
    return instance.metrics().sum("mcpscope_dropped_total", what=what)


@contextlib.contextmanager
def connected(instance):
    host, _, port = instance.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=HANDSHAKE + 5) as client:
        yield client


def ended(client: socket.socket) -> bytes:
    """All that came until the server closed the connection; it must close it."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


# --- Calls


@pytest.mark.parametrize("path", ["/nonsense.v1.Nothing/Get", "/mcpscope.v1.HealthService/Nonsense", "/x", "/", "//"])
def test_what_does_not_exist(rpc, path):
    assert failure(lambda: rpc.channel.unary_unary(path)(b"", timeout=10))[0] is CODES.UNIMPLEMENTED


@pytest.mark.parametrize("request_bytes", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", b"\0"])
def test_what_is_no_message(rpc, request_bytes):
    code, _ = failure(lambda: rpc.channel.unary_unary(HEALTH)(request_bytes, timeout=10))
    assert code in (CODES.INTERNAL, CODES.INVALID_ARGUMENT)


def test_a_deadline_that_passes(rpc):
    began = time.monotonic()
    with_nothing_to_tell = rpc("TraceService.WatchTraces", timeout=0.5)
    assert failure(lambda: next(with_nothing_to_tell))[0] is CODES.DEADLINE_EXCEEDED
    enough = threading.Event()

    def endless():
        enough.wait(20)
        yield from ()

    record = rpc.stub("MetricsService.RecordMetrics")
    assert failure(lambda: record(endless(), timeout=0.5))[0] is CODES.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 10
    enough.set()


@pytest.mark.parametrize("size", [65 * 1024, 8 * 1024 * 1024])
def test_an_oversized_message(rpc, size):
    code, details = rpc.refused("MetricsService.GetMetric", name="x" * size)
    assert code in TOO_LARGE and str(64 * 1024) in details
    assert len(details) < 1000
    name = "MetricsService.RecordMetrics"
    records = iter([rpc.request(name, name="x" * size)])
    assert failure(lambda: rpc.stub(name)(records, timeout=10))[0] in TOO_LARGE


@pytest.mark.parametrize("metadata", [[("x-large", "x" * 100_000)], [(f"x-{n}", "y" * 100) for n in range(500)]])
def test_oversized_metadata(rpc, metadata):
    call = rpc.stub("HealthService.GetHealth")
    began = time.monotonic()
    failure(lambda: call(rpc.request("HealthService.GetHealth"), metadata=metadata, timeout=10))
    assert time.monotonic() - began < 5, "refused, not left to its deadline"
    rpc("HealthService.GetHealth")


def test_another_host_and_a_web_page(instance):
    """What a page in a browser could make it send, after its name was made to point here."""
    before = dropped(instance, "grpc_refused")
    for authority in ("evil.example:50051", "localhost.evil.example", "169.254.169.254"):
        with channel_to(instance.grpc, OWN, ("grpc.default_authority", authority)) as channel:
            assert failure(lambda: check(channel))[0] is CODES.PERMISSION_DENIED, authority
    with channel_to(instance.grpc) as channel:
        call = health_pb2_grpc.HealthStub(channel).Check
        origin = (("origin", "http://localhost:8080"),)
        code, details = failure(lambda: call(health_pb2.HealthCheckRequest(), metadata=origin, timeout=10))
        assert code is CODES.PERMISSION_DENIED and "Origin" in details
    settles_at(before + 4, lambda: dropped(instance, "grpc_refused"))


# --- Connections


def test_a_client_that_says_nothing(instance):
    with connected(instance) as silent, connected(instance) as halting:
        halting.sendall(PREFACE[:10])
        began = time.monotonic()
        ended(silent)
        ended(halting)
        assert HANDSHAKE - 1 < time.monotonic() - began < HANDSHAKE + 5


@pytest.mark.parametrize(
    "said",
    {
        "HTTP/1": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an upgrade": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        "TLS": bytes.fromhex("160301020001000_1fc0303".replace("_", "")) + os.urandom(500),
        "zeros": b"\0" * 1000,
        "noise": b"\xff" + os.urandom(100_000),
        "noise after the beginning": PREFACE + b"\xff" + os.urandom(1000),
        "a frame that is too large": PREFACE + EMPTY_SETTINGS + b"\xff\xff\xff\x01\x04\0\0\0\x01",
        "data of no call": PREFACE + EMPTY_SETTINGS + b"\0\0\x01\0\0\0\0\0\x01x",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_client_that_speaks_something_else(instance, said):
    with connected(instance) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(said[1])
        answer = ended(client)
        # Something of HTTP/2 at most.
        assert not answer.startswith(b"HTTP/1") and len(answer) < 1000


def test_more_connections_than_there_are_places(instance):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connected(instance)) for _ in range(MAX_CONNECTIONS + 50)]
        # The rest of the instance takes no notice,
        assert instance.get("healthz").elapsed.total_seconds() < 2
        # and who comes gets the place of one that says nothing.
        channel = stack.enter_context(channel_to(instance.grpc, OWN))
        assert check(channel, timeout=HANDSHAKE / 2) == SERVING
        assert instance.metrics().sum("mcpscope_dropped_total", what="grpc_evicted") >= 50
        for client in silent[: MAX_CONNECTIONS // 2]:
            ended(client)


def test_many_connections_that_speak(instance):
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(channel_to(instance.grpc, OWN)) for _ in range(100)]
        answers = [health_pb2_grpc.HealthStub(c).Check.future(health_pb2.HealthCheckRequest(), 20) for c in channels]
        assert {answer.result().status for answer in answers} == {SERVING}


def test_more_streams_than_there_are_places(instance):
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(channel_to(instance.grpc, OWN)) for _ in range(MAX_STREAMS // SHARE + 1)]
        streams = [open_stream(channels[n // SHARE]) for n in range(MAX_STREAMS)]
        for channel, number in ((channels[0], SHARE), (channels[-1], MAX_STREAMS)):
            code, details = failure(lambda channel=channel: open_stream(channel))
            assert code is CODES.RESOURCE_EXHAUSTED and f"({number})" in details
        # Whether the instance is well can be asked, and watched, all the same.
        assert {check(channel) for channel in channels} == {SERVING}
        assert {try_watch(channel) for channel in channels} == {SERVING}
        streams.pop().cancel()
        settles_at(CODES.OK, lambda: try_open(channels[-1]))


def open_stream(channel):
    stream = channel.unary_stream("/mcpscope.v1.HealthService/WatchHealth")(b"", timeout=60)
    next(stream)
    return stream


def try_open(channel):
    """Whether there is a place."""
    try:
        open_stream(channel).cancel()
    except grpc.RpcError as error:
        return error.code()
    return CODES.OK


def try_watch(channel):
    """Whether there is a place: its first answer, or the refusal."""
    stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
    try:
        return next(stream).status
    except grpc.RpcError as error:
        return error.code()
    finally:
        stream.cancel()
