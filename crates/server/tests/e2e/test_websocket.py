"""`/ws` by a client that nobody here wrote, and by some that behave as no client should."""

import contextlib
import gzip
import json
import socket
import struct
import time

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from harness import settles_at, wait_until
from raw import CLOSE, PING, RawWebSocket, upgrade
from raw import connect as raw_connect
from upstream import Upstream, call

# The documented limits.
MAX_SOCKETS = 100
MAX_MESSAGE = 64 << 10
LARGE = 1 << 10

# --- The shapes of interfaces.md. A set of types is a choice; a list holds any number of what it names.

NUMBER = {int, float}
WINDOW = dict.fromkeys(("min", "max", "avg", "sum", "p50", "p90", "p95", "p99", "rate"), NUMBER) | {"count": int}


def labels(value) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def window(value) -> bool:
    """None has closed in the first seconds."""
    return value is None or check(value, WINDOW)


def components(value) -> bool:
    always, figures = {"status": str, "message": str, "since": int}, {"rate": NUMBER, "count": int}
    return value and all(
        check(one, always | {name: kind for name, kind in figures.items() if name in one}) for one in value.values()
    )


def critical(value) -> bool:
    metric = {"unit": str, "kind": str, "series": [{"labels": labels, "value": NUMBER, "window": window}]}
    return len(value) == 7 and all(check(one, metric) for one in value.values())


READINGS = {"timestamp": int, "system_uptime": int, "memory_usage": int, "cpu_usage": NUMBER}
HEALTH = {"overall": str, "health_percentage": NUMBER, "components": components, "uptime": int, "timestamp": int}
EVENT = {"name": str, "at_us": int, "attributes": labels}
SPAN = {
    **{"id": str, "parent": {str, type(None)}, "name": str, "kind": str, "start_us": int, "duration_us": int},
    **{"status": str, "message": {str, type(None)}, "attributes": labels, "events": [EVENT], "dropped_events": int},
}
TRACE = {
    **{"id": str, "timestamp": int, "operation": str, "duration_ms": NUMBER, "status": str, "details": labels},
    **{"server": str, "method": str, "tool": {str, type(None)}, "session": {str, type(None)}},
    **{"injected": bool, "spans": [SPAN]},
}


def metrics(value) -> bool:
    readings = {name: value.get(name) for name in READINGS}
    return check(readings, READINGS) and critical({n: metric for n, metric in value.items() if n not in READINGS})


CHAOS = {
    **{"timestamp": int, "mode": str, "active_tests": int, "emergency_stop": bool, "stopped_by": type(None)},
    **{"rearm_at": type(None), "total_history": int, "available_scenarios": lambda names: "latency_injection" in names},
    **{"active_tests_details": [], "recent_failures": [], "journal_errors": int},
}
DASHBOARD = READINGS | {
    **{"metrics": metrics, "traces": [TRACE], "chaos_status": CHAOS, "system_health": HEALTH},
    **{"active_connections": int, "memory_ratio": NUMBER, "alerts": [], "processes": []},
}
SHAPES = {"dashboard": DASHBOARD, "health": HEALTH, "metrics": metrics, "chaos": CHAOS}


def check(value, shape, where: str = "") -> bool:
    """Exactly this shape: no member less, and none more."""
    if isinstance(shape, dict):
        assert isinstance(value, dict) and set(value) == set(shape), f"{where}: {value}"
        return all(check(value[name], inner, f"{where}.{name}") for name, inner in shape.items())
    if isinstance(shape, list):
        assert isinstance(value, list) and (shape or not value), f"{where}: {value}"
        return all(check(one, shape[0], f"{where}[]") for one in value)
    if isinstance(shape, type):
        shape = {shape}
    good = type(value) in shape if isinstance(shape, set) else shape(value)
    assert good, f"{where}: {value!r} is not {shape}"
    return True


# --- Clients


def open_socket(instance, query: str = "", **options) -> ClientConnection:
    """Nothing is held back while nobody reads, and only the server asks whether there is still somebody."""
    options = {"ping_interval": None, "max_queue": None, "max_size": None, "proxy": None, "close_timeout": 2} | options
    return connect(instance.dashboard.replace("http:", "ws:") + f"ws{query}", **options)


def unpacked(frame: str | bytes) -> dict:
    return json.loads(gzip.decompress(frame) if isinstance(frame, bytes) else frame)


def next_of(client: ClientConnection, kind: str, within: float = 10, **members) -> dict:
    """The next message of this type with these members; the others are passed over."""
    deadline = time.monotonic() + within
    while True:
        message = unpacked(client.recv(timeout=deadline - time.monotonic()))
        if message.get("type") == kind and members.items() <= message.items():
            return message


def answer_to(client: ClientConnection, command: str | bytes) -> dict:
    """The next message that is no push; there may be one on its way already."""
    client.send(command)
    while True:
        message = unpacked(client.recv(timeout=10))
        if message.get("type") != "dashboard":
            return message


def dropped(instance, what: str) -> float:
    return instance.metrics().sum("mcpscope_dropped_total", what=what)


def refused(instance, query: str = "", **options) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as refusal:
        open_socket(instance, query, **options).close()
    return refusal.value


def make_calls(instance, count: int, tool: str = "probe"):
    with httpx.Client(trust_env=False) as client:
        for id in range(count):
            assert client.post(instance.proxy, json=call(tool, id=id)).status_code == 200


@pytest.fixture
def start(instances, upstream):
    """Starts a proxy with other settings of the dashboard, or of all."""

    def started(upstream_url: str = upstream.url, **settings: str):
        names = {f"MCPSCOPE_{name.upper()}": value for name, value in settings.items()}
        instance = instances.proxy(upstream_url, "--name", "ws", env=instances.variables() | names)
        # Before the first frame nothing is known.
        wait_until(lambda: instance.get("api/v1/dashboard").json()["memory_usage"], what="a frame")
        return instance

    return started


@pytest.fixture
def proxy(start):
    """It has seen some calls, and says something new twice a second."""
    instance = start(dashboard_update_interval="500ms")
    make_calls(instance, 3)
    settles_at(3, lambda: len(instance.get("api/v1/dashboard").json()["traces"]))
    return instance


# --- Pushes


def test_a_push_at_once(start):
    """With the next one an hour away."""
    instance = start(dashboard_update_interval="1h")
    for _ in range(3):
        with open_socket(instance) as client:
            message = unpacked(client.recv(timeout=2))
            assert set(message) == {"type", "data"} and message["type"] == "dashboard"
            assert check(message["data"], DASHBOARD)


def test_a_push_at_every_update(proxy):
    with open_socket(proxy) as client:
        times = [next_of(client, "dashboard")["data"]["timestamp"] for _ in range(7)]
    # By the clock of the one who made them; the first may be any age.
    gaps = [later - earlier for earlier, later in zip(times[1:], times[2:], strict=False)]
    assert all(gap > 0 for gap in gaps), times
    assert 400 < sum(gaps) / len(gaps) < 1000, times


def test_every_five_seconds_by_default(start):
    with open_socket(start()) as client:
        times = [next_of(client, "dashboard", within=8)["data"]["timestamp"] for _ in range(3)]
    assert 4500 < times[2] - times[1] < 6500, times


def test_pushes_are_right(start):
    """The counts of every window that was pushed add up to the calls that were made."""
    instance = start(dashboard_update_interval="300ms", metrics_aggregation_interval="3s")
    with open_socket(instance) as client:
        make_calls(instance, 40, "counted")
        seen, windows = set(), []

        def counted() -> int:
            data = next_of(client, "dashboard")["data"]
            assert check(data, DASHBOARD)
            seen.update(trace["id"] for trace in data["traces"] if trace["tool"] == "counted")
            for series in data["metrics"]["tool_call_duration_ms"]["series"]:
                if series["window"] and series["window"] not in windows:
                    windows.append(series["window"])
            return sum(window["count"] for window in windows)

        wait_until(lambda: counted() >= 40, within=20, what="as many calls as were made")
        assert counted() == 40
    assert len(seen) == 40


def test_a_component_that_changes_is_told_at_once(start):
    with Upstream() as upstream:
        # Not with the next push.
        instance = start(upstream.url, dashboard_update_interval="1h")
        healthy = lambda: instance.get("readyz").status_code == 200  # noqa: E731
        wait_until(healthy, what="a proxy that is ready")
        client = open_socket(instance)
    with client:
        with httpx.Client(trust_env=False) as caller:
            caller.post(instance.proxy, json=call())
        event = {"kind": str, "component": str, "from": str, "to": str, "message": str, "timestamp": int}
        changed = set()
        while "transports" not in changed:
            message = next_of(client, "event")
            assert set(message) == {"type", "data"} and check(message["data"], event)
            data = message["data"]
            assert (data["kind"], data["from"], data["to"]) == ("health", "healthy", "critical") and data["message"]
            assert abs(data["timestamp"] - time.time() * 1000) < 20_000
            changed.add(data["component"])
        # Who asks now, as the page does, is not told what the last push said.
        client.send('["get_health"]')
        health = next_of(client, "health")["data"]
        assert check(health, HEALTH) and health["overall"] == "critical"
        assert {health["components"][component]["status"] for component in changed} == {"critical"}


# --- Commands


@pytest.mark.parametrize("kind", SHAPES)
def test_commands(proxy, kind):
    with open_socket(proxy) as client:
        for command, id in [
            ([f"get_{kind}"], None),
            ({"command": f"get_{kind}"}, None),
            ({"command": f"get_{kind}", "id": 7}, 7),
            ({"command": f"get_{kind}", "id": -1.5}, -1.5),
            ({"id": 'a "b" \\ \N{SNOWMAN}', "command": f"get_{kind}"}, 'a "b" \\ \N{SNOWMAN}'),
            ({"command": f"get_{kind}", "id": ""}, ""),
        ]:
            client.send(json.dumps(command))
            message = next_of(client, kind, **({} if id is None else {"id": id}))
            assert set(message) == {"type", "data"} | ({"id"} if id is not None else set())
            assert type(message.get("id")) is type(id)
            assert check(message["data"], SHAPES[kind], kind)


def test_the_answers_are_those_of_http(proxy):
    with open_socket(proxy) as client:
        health = answer_to(client, '["get_health"]')["data"]
        assert {name: c["status"] for name, c in health["components"].items()} == {
            name: c["status"] for name, c in proxy.get("api/v1/health").json()["components"].items()
        }
        traces = next_of(client, "dashboard")["data"]["traces"]
        assert traces == proxy.get("api/v1/traces").json()
        series = answer_to(client, '["get_metrics"]')["data"]["tool_call_duration_ms"]["series"]
        assert [one["labels"]["tool"] for one in series] == ["probe"]


def test_the_metrics_are_whole(start):
    """A push holds the most active series; who asks for the metrics gets all, as over HTTP."""
    instance = start(dashboard_update_interval="300ms", dashboard_max_metrics="50")
    for number in range(60):
        make_calls(instance, 1, f"tool{number}")
    tools = lambda metrics: [series["labels"]["tool"] for series in metrics["tool_call_duration_ms"]["series"]]  # noqa: E731
    settles_at(60, lambda: len(tools(instance.get("api/v1/metrics").json())))
    whole = tools(instance.get("api/v1/metrics").json())
    with open_socket(instance) as client:
        pushed = lambda: next_of(client, "dashboard")["data"]["metrics"]  # noqa: E731
        series = lambda metrics: sum(len(m["series"]) for m in metrics.values() if isinstance(m, dict))  # noqa: E731
        settles_at(50, lambda: series(pushed()))
        assert set(tools(pushed())) < set(whole)
        client.send('["get_metrics"]')
        assert sorted(tools(next_of(client, "metrics")["data"])) == sorted(whole)


def test_many_commands_are_answered_in_order(proxy):
    with open_socket(proxy) as client:
        for id in range(200):
            client.send(json.dumps({"command": "get_chaos", "id": id}))
        assert [next_of(client, "chaos")["id"] for _ in range(200)] == list(range(200))


MALFORMED = ["", "get_health", '["get_health"', '["get_health"] x', "{", "\0", "nul", '{"command": get_health}']
UNKNOWN = ['["reset"]', "[]", "7", "null", '"get_health"', '{"command": 7}', '{"command": "get_health", "id": [1]}']
UNKNOWN += ['["get_health", "get_health"]', '["GET_HEALTH"]', "[" * 5000 + "]" * 5000]


@pytest.mark.parametrize("query", ["", "?encoding=gzip"])
def test_what_is_no_command_is_told_so_and_the_connection_lives_on(proxy, query):
    with open_socket(proxy, query) as client:
        for texts, complaint in ((MALFORMED, "Malformed message"), (UNKNOWN, "Unknown command")):
            for text in texts:
                assert answer_to(client, text) == {"error": complaint}, text[:50]
                assert answer_to(client, '["get_chaos"]')["type"] == "chaos"
        known = {"error": "Unknown command", "id": 7}
        assert answer_to(client, '{"command": "reset", "id": 7}') == known


def test_binary_messages_are_ignored(proxy):
    with open_socket(proxy) as client:
        for message in (b"", b'["get_health"]', b"\xff" * 1000, gzip.compress(b'["get_health"]')):
            # The first answer is to what came after it.
            assert answer_to_after(client, message)["type"] == "chaos"


def answer_to_after(client: ClientConnection, ignored: bytes) -> dict:
    client.send(ignored)
    return answer_to(client, '["get_chaos"]')


# --- Encodings


def test_large_messages_are_gzip_for_those_who_asked(proxy):
    with open_socket(proxy, "?encoding=gzip") as client:
        packed, plain = set(), set()
        for id in range(8):
            kind = list(SHAPES)[id % 4]
            client.send(json.dumps({"command": f"get_{kind}", "id": id}))
            frames = [client.recv(timeout=10)]
            while unpacked(frames[-1]).get("id") != id:
                frames.append(client.recv(timeout=10))
            for frame in frames:
                message = unpacked(frame)
                if isinstance(frame, bytes):
                    packed.add(message["type"])
                    assert len(gzip.decompress(frame)) > LARGE
                    assert len(frame) < len(gzip.decompress(frame)) / 2
                else:
                    plain.add(message["type"])
                    assert len(frame.encode()) <= LARGE
                if "id" in message:
                    assert check(message["data"], SHAPES[message["type"]])
        assert packed >= {"dashboard", "metrics"} and "chaos" in plain


def test_all_is_text_for_the_others(proxy):
    with open_socket(proxy) as client:
        for kind in SHAPES:
            client.send(json.dumps([f"get_{kind}"]))
        seen = set()
        while seen < set(SHAPES):
            frame = client.recv(timeout=10)
            assert isinstance(frame, str)
            seen.add(unpacked(frame)["type"])


# --- Who is not let in


@pytest.mark.parametrize("query", ["?encoding=br", "?encoding=", "?x=1", "?encoding=gzip&encoding=gzip", "?gzip"])
def test_an_unknown_query(proxy, query):
    refusal = refused(proxy, query).response
    assert refusal.status_code == 400
    assert refusal.headers["content-type"].startswith("application/problem+json")
    problem = json.loads(refusal.body)
    assert "encoding" in problem["detail"] and problem["status"] == 400


def test_a_request_that_is_no_upgrade(proxy):
    answer = proxy.get("ws")
    assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")


# Whatever else runs on this machine is no part of the dashboard: a page of any of its ports is a foreign one.
NEIGHBOURS = ["http://localhost:3000", "http://127.0.0.1:9", "http://[::1]:3", "https://localhost", "http://localhost"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1.evil.example", "null", "file://", *NEIGHBOURS]
)
def test_another_origin(proxy, origin):
    refusal = refused(proxy, origin=origin).response
    assert refusal.status_code == 403 and b"rigin" in refusal.body
    assert proxy.get("api/v1/traces", headers={"Origin": origin}).status_code == 403


def test_another_origin_that_was_allowed(start):
    instance = start(dashboard_allowed_origins="http://localhost:3000")
    with open_socket(instance, origin="http://localhost:3000") as client:
        assert next_of(client, "dashboard")


def test_its_own_page(proxy):
    with open_socket(proxy, origin=proxy.dashboard.rstrip("/")) as client:
        assert next_of(client, "dashboard")


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["evil.example"], 403),
        (["169.254.169.254"], 403),
        (["localhost.evil.example:80"], 403),
        (["localhost", "evil.example"], 400),
        (["localhost", "localhost"], 400),
        ([], 400),
    ],
)
def test_another_host(proxy, hosts, status):
    with raw_connect(proxy.dashboard) as client:
        text = upgrade("-").replace(b"Host: -\r\n", b"".join(f"Host: {host}\r\n".encode() for host in hosts))
        client.sendall(text)
        assert int(client.makefile("rb").readline().split()[1]) == status


def test_one_more_than_there_are_places(proxy):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_socket(proxy)) for _ in range(MAX_SOCKETS)]
        for _ in range(3):
            refusal = refused(proxy).response
            assert refusal.status_code == 503 and int(refusal.headers["retry-after"]) > 0
            assert refusal.headers["content-type"].startswith("application/problem+json")
        assert dropped(proxy, "websocket_refused") == 3
        # The rest of the listener takes no notice, and each that is in gets what it came for.
        assert proxy.get("healthz").status_code == 200
        for client in clients:
            next_of(client, "dashboard")
        clients.pop().close()
        stack.enter_context(wait_until(lambda: admitted(proxy), what="a place that is free again"))
        assert refused(proxy).response.status_code == 503


def admitted(instance) -> ClientConnection | None:
    try:
        return open_socket(instance)
    except InvalidStatus:
        return None


# --- Who is thrown out


@pytest.mark.parametrize("message", ["x" * (MAX_MESSAGE + 1), b"\0" * (MAX_MESSAGE + 1), "é" * (1 << 20)])
def test_an_oversized_message(proxy, message):
    with open_socket(proxy) as client, open_socket(proxy) as other:
        with pytest.raises(ConnectionClosed) as closed:
            client.send(message)
            while True:
                client.recv(timeout=10)
        assert closed.value.rcvd.code == 1009
        next_of(other, "dashboard")


def test_the_largest_message(proxy):
    with open_socket(proxy) as client:
        assert answer_to(client, "x" * MAX_MESSAGE) == {"error": "Malformed message"}
        assert answer_to(client, '["get_chaos"]')["type"] == "chaos"


@pytest.mark.parametrize(
    ("frame", "code"),
    {
        "not masked": (b"\x81\x02[]", 1002),
        "a reserved opcode": (b"\x83\x80\0\0\0\0", 1002),
        "no UTF-8": (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
        "a size of 2^63": (b"\x81\xff" + b"\x7f" + b"\xff" * 7 + bytes(4), 1009),
    }.values(),
)
def test_what_is_no_websocket_frame(proxy, frame, code):
    with RawWebSocket(proxy.dashboard) as client:
        client.connection.sendall(frame)
        assert close_code(client) == code
    with open_socket(proxy) as client:
        next_of(client, "dashboard")


def close_code(client: RawWebSocket) -> int:
    while True:
        opcode, payload = client.frame()
        if opcode == CLOSE:
            return struct.unpack("!H", payload[:2])[0]


@pytest.mark.parametrize("asking", [False, True])
def test_a_client_that_never_reads(start, asking):
    instance = start(dashboard_update_interval="100ms")
    # So that there is something to push.
    make_calls(instance, 100)
    with open_socket(instance) as other, RawWebSocket(instance.dashboard, receive_buffer=4096) as stuck:
        assert stuck.status == 101
        for _ in range(200 if asking else 0):
            stuck.send('["get_dashboard"]')
        times = [time.monotonic()]
        while not dropped(instance, "websocket_slow"):
            next_of(other, "dashboard")
            times.append(time.monotonic())
        gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        assert max(gaps) < 4, f"the other one waited {max(gaps)} s"  # one that does not read has 5
        assert dropped(instance, "websocket_slow") == 1
        assert ends(stuck.connection)
        next_of(other, "dashboard")


def ends(connection: socket.socket) -> bool:
    """Whether it is closed once all has been read that was on its way."""
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_client_that_never_pongs(start):
    instance = start(dashboard_update_interval="200ms", dashboard_subscriber_timeout="1s")
    with open_socket(instance) as other, RawWebSocket(instance.dashboard) as silent:
        began, pings = time.monotonic(), 0
        while (frame := silent.frame())[0] != CLOSE:
            pings += frame[0] == PING
        assert struct.unpack("!H", frame[1][:2])[0] == 1008
        assert pings >= 2 and 0.8 < time.monotonic() - began < 5
        silent.connection.close()
        settles_at(1, lambda: dropped(instance, "websocket_silent"))
        # The one that answers pings, and says nothing else, is still there.
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            next_of(other, "dashboard")
        assert dropped(instance, "websocket_silent") == 1 and dropped(instance, "websocket_slow") == 0


def test_clients_that_leave_without_a_word_leave_their_places(proxy):
    for _ in range(3):
        clients = [RawWebSocket(proxy.dashboard) for _ in range(MAX_SOCKETS // 2)]
        assert {client.status for client in clients} == {101}
        for client in clients:
            # Reset, in the middle of whatever is on its way.
            client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with client:
                pass
    client = wait_until(lambda: admitted(proxy), what="a place")
    with client:
        next_of(client, "dashboard")
