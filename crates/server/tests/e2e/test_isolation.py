"""The second rule: whatever is done to what observes, the traffic takes no notice, and is counted exactly."""

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.sync.client import connect

from attackers import calls_without_a_window
from harness import ANY_PORT, settles_at, wait_until
from rpc import Rpc, channel_to
from upstream import call, result_for

ATTACKERS = pathlib.Path(__file__).with_name("attackers.py")
# The attacks last that long, and on until each has had its effect.
DURATION = 12
MAX_DURATION = 180
EFFECTS = ("websocket_refused", "websocket_slow", "websocket_silent", "probe_evicted", "grpc_streams")
CLIENTS = 6
IN_FLIGHT = 32
# Peak of the resident memory. Unattacked, it takes about 30 MiB.
MAX_BYTES = 256 << 20
# How soon everything answers as ever, once the attackers are gone.
RECOVERY = 5
# Some limits are shorter than by default, so that they are reached meanwhile.
SETTINGS = {"MCPSCOPE_DASHBOARD_SUBSCRIBER_TIMEOUT": "3s"}
SERVER = """
import json, sys
for line in sys.stdin:
    answer = {"jsonrpc": "2.0", "id": json.loads(line)["id"], "result": {"content": []}}
    print(json.dumps(answer), flush=True)
"""


@contextlib.contextmanager
def attacked(instance, instances):
    """Under every attack at once; each was tried, again and again."""
    addresses = [instance.dashboard, instance.grpc, instance.probe]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    attackers = subprocess.Popen([sys.executable, str(ATTACKERS), *addresses], env=instances.variables(), **pipes)
    try:
        yield
        stdout, _ = attackers.communicate(timeout=20)
    finally:
        attackers.kill()
        attackers.wait(5)
    done = json.loads(stdout)
    print("attacks:", done)
    expected = {"scrape", "scrape_probe", "traces", "leave", "clear", "reset", "list", "many_sockets", "no_reading"}
    expected |= {"snapshot", "record", "no_window_list", "no_window_DashboardService.GetSnapshot"}
    expected |= {f"{kind}_{at}" for kind in ("garbage", "huge", "slow_head") for at in ("dashboard", "grpc", "probe")}
    expected |= {"nonsense", "nonsense_told", "watch_probe", "watched"}
    assert done.keys() >= expected, f"never tried: {expected - done.keys()}"
    assert done["streams"] > 500


def without_effect(instance) -> list[str]:
    dropped = instance.metrics().by("what", "mcpscope_dropped_total")
    return [what for what in EFFECTS if dropped.get(what, 0) == 0]


def enough(instance) -> threading.Event:
    """Set once the attacks have lasted long enough: how soon they have their effect depends on the machine."""
    over = threading.Event()

    def watch():
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < MAX_DURATION:
            # An instance under attack may keep even this waiting.
            with contextlib.suppress(httpx.TransportError):
                if elapsed > DURATION and not without_effect(instance):
                    break
            over.wait(0.5)
        over.set()

    threading.Thread(target=watch, daemon=True).start()
    return over


class Clients:
    """Make calls as fast as they are answered, until it is over."""

    def __init__(self):
        self.calls = 0
        self.failures: list[str] = []
        self.slowest = 0.0
        self.lock = threading.Lock()

    def run(self, each, over: threading.Event):
        self.over = over
        threads = [threading.Thread(target=self.repeat, args=(each, number)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{self.calls} calls, the slowest took {self.slowest:.2f} s")
        assert self.failures == []

    def repeat(self, each, number: int):
        id = number
        with httpx.Client(trust_env=False, timeout=20) as client:
            while not self.over.is_set() and not self.failures:
                began = time.monotonic()
                try:
                    each(client, id)
                except Exception as error:
                    self.failures.append(f"call {id}: {error!r}")
                with self.lock:
                    self.calls += 1
                    self.slowest = max(self.slowest, time.monotonic() - began)
                id += CLIENTS


def check_counts(instance, server: str, calls: int):
    settles_at({("probe", "ok"): calls}, lambda: instance.metrics().tool_calls(server=server))
    metrics = instance.metrics()
    operations = metrics.by("component", "mcpscope_component_operations_total")
    assert operations["tools"] == operations["json_rpc"] == calls, operations
    # Each has come, and gone, once.
    assert operations["transport"] >= 2 * calls, operations
    assert metrics.by("component", "mcpscope_component_errors_total") == {}
    dropped = metrics.by("what", "mcpscope_dropped_total")
    print("dropped:", dropped)
    assert "untracked_call" not in dropped and "untracked_session" not in dropped
    assert without_effect(instance) == [], "the attacks had no effect"
    assert not {"dashboard_panic", "grpc_panic", "probe_panic"} & {what for what, count in dropped.items() if count}
    assert metrics.sum("mcpscope_message_queue_depth", server=server) == 0


def check_memory(instance):
    status = pathlib.Path(f"/proc/{instance.process.pid}/status").read_text()
    (peak,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))
    print(f"peak of resident memory: {peak >> 20} MiB")
    assert peak < MAX_BYTES


def check_health(instance):
    for address in (instance.grpc, urlsplit(instance.probe).netloc):
        with channel_to(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=RECOVERY)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def check_everything_answers(instance):
    """As it does for any client on any other day."""
    began = time.monotonic()
    for path in ("healthz", "readyz", "api/v1/health", "api/v1/dashboard", "api/v1/traces", "metrics", ""):
        assert instance.get(path).status_code == 200, path
    socket = instance.dashboard.replace("http:", "ws:") + "ws"
    with connect(socket, proxy=None, max_size=None, open_timeout=RECOVERY) as client:
        assert json.loads(client.recv(timeout=RECOVERY))["type"] == "dashboard"
    assert httpx.get(instance.probe + "healthz", trust_env=False).status_code == 200
    check_health(instance)
    took = time.monotonic() - began
    print(f"everything answered within {took:.2f} s")
    assert took < RECOVERY
    assert "panicked" not in instance.stderr()


def test_http(instances, upstream):
    env = instances.variables() | SETTINGS
    proxy = instances.proxy(upstream.url, "--name", "attacked", "--probe", ANY_PORT, env=env)
    clients = Clients()

    def one(client, id):
        answer = client.post(proxy.proxy, json=call(id=id))
        assert (answer.status_code, answer.json()) == (200, result_for({"id": id}))

    with attacked(proxy, instances):
        clients.run(one, enough(proxy))
    check_everything_answers(proxy)
    assert clients.calls > 500
    assert len(upstream.seen) == clients.calls, "each call reached the server once"
    check_counts(proxy, "attacked", clients.calls)
    check_memory(proxy)


def test_answers_that_nobody_takes_hold_little(instances, upstream):
    """Here nobody clears the traces: all the answers together would be several hundred MiB."""
    proxy = instances.proxy(upstream.url, "--name", "attacked", "--probe", ANY_PORT)
    with httpx.Client(trust_env=False) as client:
        for id in range(300):
            assert client.post(proxy.proxy, json=call(id=id)).status_code == 200
    method = "TraceService.ListTraces"
    with Rpc(proxy.grpc) as rpc:
        assert len(rpc(method, filter={"limit": 1000}).SerializeToString()) > 100_000
        message = rpc.request(method, filter={"limit": 1000}).SerializeToString()
    arguments = (proxy.grpc, f"/mcpscope.v1.{method.replace('.', '/')}", message)
    over = threading.Event()
    stay = {"patience": MAX_DURATION, "quiet": MAX_DURATION, "over": over}
    threads = [threading.Thread(target=calls_without_a_window, args=arguments, kwargs=stay) for _ in range(30)]
    for thread in threads:
        thread.start()
    try:
        check_health(proxy)
        dropped = lambda: proxy.metrics().by("what", "mcpscope_dropped_total").get("grpc_held", 0)  # noqa: E731
        wait_until(lambda: dropped() > 0, within=MAX_DURATION, what="an answer that is not held")
    finally:
        over.set()
    for thread in threads:
        thread.join()
    check_everything_answers(proxy)
    check_memory(proxy)


def test_stdio(instances):
    env, command = instances.variables() | SETTINGS, [sys.executable, "-c", SERVER]
    run = instances.run("--name", "attacked", "--probe", ANY_PORT, command=command, env=env)
    stdin, stdout = run.process.stdin, run.process.stdout
    calls = 0
    with attacked(run, instances):
        over = enough(run)
        while not over.is_set():
            ids = range(calls, calls + IN_FLIGHT)
            stdin.write(b"".join(json.dumps(call(id=id)).encode() + b"\n" for id in ids))
            stdin.flush()
            assert [json.loads(stdout.readline())["id"] for _ in ids] == list(ids)
            calls += IN_FLIGHT
    check_everything_answers(run)
    print(f"{calls} calls")
    assert calls > 2000
    check_counts(run, "attacked", calls)
    check_memory(run)
    stdin.close()
    assert run.wait() == 0
