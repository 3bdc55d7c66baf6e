"""`--probe`: a plain, read-only listener, fit for an address that others can reach."""

import contextlib
import socket
import time
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import ANY_PORT, free_port, settles_at
from rpc import channel_to, failure
from upstream import call

FOREIGN = {"Host": "pod-7.mcp.svc.cluster.local:9090"}
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
DEFAULT_GRPC_PORT = 50051


@pytest.fixture
def proxy(instances, upstream):
    return instances.proxy(upstream.url, "--name", "probed", "--probe", ANY_PORT)


def get(instance, path: str, **options) -> httpx.Response:
    return httpx.get(instance.probe.rstrip("/") + path, trust_env=False, timeout=10, **options)


def check(channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


@contextlib.contextmanager
def grpc_channel(instance, *options):
    with channel_to(urlsplit(instance.probe).netloc, *options) as channel:
        yield channel


def test_it_answers_to_any_host(proxy, promtool):
    assert httpx.post(proxy.proxy, json=call("one"), trust_env=False).status_code == 200
    settles_at({("one", "ok"): 1}, lambda: proxy.metrics().tool_calls(server="probed"))
    for headers in ({}, FOREIGN):
        metrics = get(proxy, "/metrics", headers=headers)
        assert metrics.status_code == 200 and metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        promtool(metrics.text)
        assert 'server="probed",tool="one"' in metrics.text
        for path in ("/healthz", "/readyz"):
            answer = get(proxy, path, headers=headers)
            assert answer.status_code == 200 and isinstance(answer.json(), dict)
    # The dashboard does not.
    assert proxy.get("healthz", headers=FOREIGN).status_code != 200


def test_readiness_is_that_of_the_traffic(instances):
    proxy = instances.proxy(f"http://127.0.0.1:{free_port()}/mcp", "--probe", ANY_PORT)
    settles_at(503, lambda: get(proxy, "/readyz", headers=FOREIGN).status_code)
    assert get(proxy, "/readyz").json()["missing"][0]["name"] == "traffic"
    assert get(proxy, "/healthz").status_code == 200, "a restart would not help"
    with grpc_channel(proxy) as channel:
        assert check(channel, "") == check(channel, "mcpscope.transports") == NOT_SERVING
        assert check(channel, "mcpscope.observability") == SERVING


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/ws", "/static/", "/static/app.js", "/api", "/api/v1/health", "/api/v1/dashboard", "/api/v1/traces"),
        *("/metrics/x", "//metrics", "/%6detrics/..", "/healthz/../api/v1/health"),
    ],
)
def test_there_is_nothing_else(proxy, path):
    where = urlsplit(proxy.probe)
    # Not httpx, which would tidy up the path.
    with socket.create_connection((where.hostname, where.port), timeout=10) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.split()[1] == b"404" and b"problem+json" in head
    assert b"probed" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(proxy, method):
    for path in ("/metrics", "/healthz", "/readyz"):
        answer = httpx.request(method, proxy.probe.rstrip("/") + path, trust_env=False, timeout=10)
        assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"


def test_grpc_health_on_the_same_port(proxy):
    # By whatever name: a kubelet calls by the pod's address.
    with grpc_channel(proxy, ("grpc.default_authority", "pod-7.mcp:9090")) as channel:
        for service in ("", "mcpscope.registry", "mcpscope.sessions", "mcpscope.transports", "mcpscope.observability"):
            settles_at(SERVING, lambda: check(channel, service))
        assert failure(lambda: check(channel, "nonsense"))[0] is grpc.StatusCode.NOT_FOUND
        request = health_pb2.HealthCheckRequest(service="mcpscope.transports")
        stream = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=10)
        assert next(stream).status == SERVING
        # Both protocols at a time.
        assert get(proxy, "/healthz").status_code == 200
        stream.cancel()


# Connections at a time, and how long one may take to ask.
MAX_CONNECTIONS = 64
HEADER_TIMEOUT = 10


def test_idle_watchers_keep_nobody_out(proxy):
    """More than there are places, each on a connection of its own, which answer pings and do nothing else."""
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 6):
            channel = stack.enter_context(grpc_channel(proxy, ("grpc.use_local_subchannel_pool", 1)))
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status in (SERVING, NOT_SERVING)
        began = time.monotonic()
        for _ in range(5):
            assert get(proxy, "/healthz").status_code == 200
            with grpc_channel(proxy, ("grpc.use_local_subchannel_pool", 1)) as other:
                assert check(other, "mcpscope.observability") == SERVING
        assert time.monotonic() - began < HEADER_TIMEOUT / 2, "they did not wait for any of those"
        # Half of the places are for others; of the watchers the newest are still there.
        assert watch.is_active()
    assert proxy.metrics().sum("mcpscope_dropped_total", what="probe_evicted") >= MAX_CONNECTIONS / 2 + 6


def test_idle_http1_connections_keep_nobody_out(proxy):
    where = urlsplit(proxy.probe)
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            client = stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=10))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
            assert b" 200 " in client.recv(100)
        assert get(proxy, "/healthz").elapsed.total_seconds() < HEADER_TIMEOUT / 2
        # Those who say nothing make room.
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection((where.hostname, where.port), timeout=10))
        began = time.monotonic()
        assert httpx.get(proxy.probe + "healthz", trust_env=False, timeout=2 * HEADER_TIMEOUT).status_code == 200
        assert time.monotonic() - began < HEADER_TIMEOUT / 2


@pytest.mark.parametrize(
    "method",
    [
        *("/mcpscope.v1.HealthService/GetHealth", "/mcpscope.v1.MetricsService/ResetMetrics"),
        *("/mcpscope.v1.TraceService/ListTraces", "/mcpscope.v1.DashboardService/GetSnapshot"),
        *("/mcpscope.v1.InstrumentationService/Uninstrument", "/grpc.health.v1.Health/Nonsense"),
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_no_other_grpc_service_is_there(proxy, method):
    with grpc_channel(proxy) as channel:
        assert failure(lambda: channel.unary_unary(method)(b"", timeout=10))[0] is grpc.StatusCode.UNIMPLEMENTED
        assert check(channel, "mcpscope.observability") == SERVING


def test_it_is_off_by_default(instances, upstream):
    proxy = instances.proxy(upstream.url)
    assert set(proxy.ready) == {"dashboard", "grpc", "proxy"}
    assert "probe" not in proxy.stderr()


def test_it_may_listen_on_every_address(instances, upstream):
    proxy = instances.proxy(upstream.url, "--probe", "0.0.0.0:0")
    port = urlsplit(proxy.probe).port
    assert f"probe {proxy.probe}" in proxy.stderr().splitlines()
    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", headers=FOREIGN, trust_env=False, timeout=10)
    assert answer.status_code == 200


def test_it_can_be_configured(instances, upstream):
    probed = instances.variables() | {"MCPSCOPE_PROBE_LISTEN": ANY_PORT}
    assert get(instances.proxy(upstream.url, env=probed), "/healthz").status_code == 200
    assert "probe" not in instances.proxy(upstream.url, "--probe", "off", env=probed).ready


def test_it_does_without_the_others(instances, upstream):
    listen = ("--listen", ANY_PORT, "--dashboard", "off", "--grpc", "off", "--probe", ANY_PORT)
    proxy = instances.spawn("proxy", "--upstream", upstream.url, *listen)
    assert set(proxy.ready) == {"probe", "proxy"}
    assert get(proxy, "/readyz").status_code == 200


# --- Addresses that are refused or taken

REST = {"run": ["--", "cat"], "proxy": ["--upstream", "http://127.0.0.1:9/mcp", "--listen", ANY_PORT], "demo": []}


@pytest.mark.parametrize("command", REST)
@pytest.mark.parametrize("flag", ["--grpc", "--dashboard"])
@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.1.2.3:9090"])
def test_the_others_stay_on_loopback(instances, command, flag, address):
    addresses = {"--grpc": ANY_PORT, "--dashboard": ANY_PORT} | {flag: address}
    arguments = [part for pair in addresses.items() for part in pair]
    done = instances.finish(command, *arguments, *REST[command])
    assert done.returncode == 64
    assert "--probe" in done.stderr.decode() and address.rpartition(":")[0] in done.stderr.decode()
    assert done.stdout == b""


@contextlib.contextmanager
def taken(port: int = 0):
    """A port on loopback that somebody listens on: us, unless it is taken already."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
            port = listener.getsockname()[1]
        except OSError:
            assert port, "no free port"
        yield port


@pytest.mark.parametrize("command", REST)
@pytest.mark.parametrize("flag", ["--grpc", "--probe"])
def test_a_taken_port_that_was_asked_for_is_an_error(instances, command, flag):
    with taken() as port:
        addresses = {"--dashboard": ANY_PORT, "--grpc": ANY_PORT, "--probe": ANY_PORT} | {flag: f"127.0.0.1:{port}"}
        arguments = [part for pair in addresses.items() for part in pair]
        done = instances.finish(command, *arguments, *REST[command])
        assert done.returncode == 69
        assert f"127.0.0.1:{port}" in done.stderr.decode() and flag in done.stderr.decode()
        assert done.stdout == b""


def test_a_taken_default_port_never_stops_the_wrapped_server(instances):
    with taken(DEFAULT_GRPC_PORT):
        instance = instances.spawn("run", "--dashboard", ANY_PORT, "--", "cat", grpc=None, stdin=-1)
        port = int(instance.grpc.rpartition(":")[2])
        assert port != DEFAULT_GRPC_PORT
        assert any(f"127.0.0.1:{DEFAULT_GRPC_PORT}" in line for line in instance.stderr().splitlines())
        assert f"grpc {instance.grpc}" in instance.stderr().splitlines()
        with channel_to(instance.grpc) as channel:
            settles_at(SERVING, lambda: check(channel, ""))
        stdout, _ = instance.process.communicate(b"traffic\n", timeout=10)
        assert (stdout, instance.process.returncode) == (b"traffic\n", 0)


@pytest.mark.parametrize("command", ["proxy", "demo"])
def test_a_taken_default_port_stops_the_others(instances, command):
    with taken(DEFAULT_GRPC_PORT):
        listen = [] if command == "proxy" else ["--listen", ANY_PORT]
        instance = instances.spawn(
            command, "--dashboard", ANY_PORT, *listen, *REST[command], ready=False, grpc=None, stdin=-1
        )
        assert instance.wait() == 69
        assert f"127.0.0.1:{DEFAULT_GRPC_PORT}" in instance.stderr() and "--grpc" in instance.stderr()
