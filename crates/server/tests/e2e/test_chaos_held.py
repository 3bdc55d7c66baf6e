"""What faults do to whole connections, which messages they take, and where they mean nothing."""

import http.client
import json
import pathlib
import select
import sys
from urllib.parse import urlsplit

import pytest

import echo_peer
from chaos import LONG, Chaos, counts
from echo_peer import LEGACY, MODERN, SESSION, VERSION, packed
from harness import wait_until
from processes import records

pytestmark = pytest.mark.usefixtures("alone")

PEER = [sys.executable, str(pathlib.Path(__file__).with_name("echo_peer.py"))]
GONE = (http.client.RemoteDisconnected, ConnectionResetError)


def request(id: int, tool: str = "hit", era: str = LEGACY, method: str = "tools/call") -> bytes:
    parameters = {"name": tool, "arguments": {}} if method == "tools/call" else {}
    parameters |= {"_meta": {VERSION: MODERN}} if era == MODERN else {}
    return packed({"jsonrpc": "2.0", "id": id, "method": method, "params": parameters})


def answer(message: bytes) -> bytes:
    return echo_peer.answer(json.loads(message))


def cancelled(id: int) -> bytes:
    return packed({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})


class Stdio:
    """A client and a server, with mcpscope between them."""

    def __init__(self, instances, folder: pathlib.Path):
        self.file = folder / "received"
        options = ("--data", str(folder / "data"), "--name", "peer")
        self.instance = instances.run(*options, command=[*PEER, str(self.file)])
        self.chaos = Chaos(self.instance, folder / "data")

    def send(self, *messages: bytes):
        self.instance.process.stdin.write(b"".join(message + b"\n" for message in messages))
        self.instance.process.stdin.flush()

    def lines(self, count: int) -> list[bytes]:
        return [self.instance.process.stdout.readline().removesuffix(b"\n") for _ in range(count)]

    def received(self) -> list[bytes]:
        return self.file.read_bytes().splitlines() if self.file.exists() else []

    def end(self):
        rest, _ = self.instance.process.communicate(timeout=LONG)
        assert (rest, self.instance.process.returncode) == (b"", 0)


class Http:
    """The same over HTTP; each connection of the client is one that it keeps."""

    def __init__(self, instances, upstream, folder: pathlib.Path):
        self.peer = upstream.answer = echo_peer.OverHttp(streams=False)
        self.instance = instances.proxy(upstream.url, "--data", str(folder / "data"), "--name", "peer")
        self.chaos = Chaos(self.instance, folder / "data")
        self.address = urlsplit(self.instance.proxy)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=LONG)

    def send(self, connection: http.client.HTTPConnection, message: bytes, session: str | None = None):
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        headers |= {"Mcp-Session-Id": session} if session else {}
        value = json.loads(message)
        if echo_peer.era_of(value) == MODERN:
            headers |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": value["method"]}
            headers |= {"Mcp-Name": value["params"]["name"]}
        connection.request("POST", self.address.path, message, headers)

    def read(self, connection: http.client.HTTPConnection) -> bytes:
        return connection.getresponse().read()

    def ask(self, connection: http.client.HTTPConnection, message: bytes) -> bytes:
        self.send(connection, message)
        return self.read(connection)


@pytest.fixture
def stdio(instances, tmp_path):
    return Stdio(instances, tmp_path)


@pytest.fixture
def over_http(instances, upstream, tmp_path):
    return Http(instances, upstream, tmp_path)


def is_silent(connection: http.client.HTTPConnection) -> bool:
    return select.select([connection.sock], [], [], 0)[0] == []


@pytest.mark.parametrize("era", [LEGACY, MODERN])
def test_an_answer_comes_right_after_its_call_was_cancelled(stdio, era):
    id = stdio.chaos.start("late_response_after_cancel", tool="hit")
    first, second, third = (request(number, "hit", era) for number in (1, 2, 3))
    other = request(4, "other", era)
    stdio.send(first, second, third, other)
    assert stdio.lines(1) == [answer(other)]
    stdio.chaos.has_hit(id, 3)
    stdio.send(cancelled(2))
    assert stdio.lines(1) == [answer(second)]
    report = stdio.chaos.stop(id)
    assert stdio.lines(2) == [answer(first), answer(third)], "what nobody cancelled is delivered"
    assert counts(report) == (3, 3, 3)
    assert [hit["effect"] for hit in stdio.chaos.hits(id)] == ["hold"] * 3
    stdio.end()
    assert stdio.received() == [first, second, third, other, cancelled(2)]


def test_an_answer_over_http_comes_right_after_its_call_was_cancelled_in_its_session(over_http):
    begins, call, other = over_http.connect(), over_http.connect(), over_http.connect()
    over_http.ask(begins, request(0, method="initialize"))
    id = over_http.chaos.start("late_response_after_cancel", tool="hit")
    over_http.send(call, request(1), SESSION)
    over_http.chaos.has_hit(id)
    assert is_silent(call)
    over_http.send(other, cancelled(1), SESSION)
    assert over_http.read(other) == b""
    assert over_http.read(call) == answer(request(1))
    assert counts(over_http.chaos.stop(id)) == (1, 1, 1)
    assert over_http.peer.received[1:] == [request(1), cancelled(1)]


def test_a_call_that_hangs_over_http_is_cancelled_by_hanging_up(over_http):
    id = over_http.chaos.start("hang", tool="hit")
    call, other = over_http.connect(), over_http.connect()
    over_http.send(call, request(1, "hit", MODERN))
    over_http.chaos.has_hit(id)
    call.close()
    calls = lambda: over_http.instance.metrics().tool_calls(server="peer", injected="true")  # noqa: E731
    wait_until(lambda: calls() == {("hit", "cancelled"): 1}, within=LONG, what="the end of the call")
    assert counts(over_http.chaos.stop(id)) == (1, 1, 1)
    assert over_http.ask(other, request(2, "hit", MODERN)) == answer(request(2, "hit", MODERN))


@pytest.mark.parametrize(("heal", "expected"), [("deliver", [0, 1, 2, 3]), ("drop", [3])])
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_a_partition_of_stdio_heals(stdio, heal, direction, expected):
    """The two directions are one connection; the other one carries what it is given."""
    id = stdio.chaos.start("network_partition", intensity=1, direction=direction, heal=heal)
    messages = [request(number) for number in range(4)]
    stdio.send(*messages[:3])
    if direction == "to_client":
        wait_until(lambda: stdio.received() == messages[:3], within=LONG, what="what goes to the server")
    stdio.chaos.has_hit(id, 3)
    report = stdio.chaos.stop(id)
    stdio.send(messages[3])
    assert stdio.lines(len(expected)) == [answer(messages[number]) for number in expected]
    stdio.end()
    reached = expected if direction == "to_server" else range(4)
    assert stdio.received() == [messages[number] for number in reached]
    assert counts(report)[1:] == (3, 3)
    injection = report["injection"]
    assert (injection["connections"], injection["connections_chosen"], injection["achieved_intensity"]) == (1, 1, 1)
    assert {hit["effect"] for hit in stdio.chaos.hits(id)} == {"hold" if heal == "deliver" else "drop"}


def test_a_silent_partition_of_half_of_the_connections_over_http(over_http):
    connections = [over_http.connect() for _ in range(4)]
    for number, connection in enumerate(connections):
        over_http.ask(connection, request(number))
    over_http.peer.received.clear()
    id = over_http.chaos.start("network_partition", intensity=0.5)
    messages = [request(10 + number) for number in range(4)]
    for connection, message in zip(connections, messages):
        over_http.send(connection, message)
    over_http.chaos.has_hit(id, 2)
    answered = lambda: [connection for connection in connections if not is_silent(connection)]  # noqa: E731
    wait_until(lambda: len(answered()) == 2, within=LONG, what="the answers on the others")
    assert len(over_http.peer.received) == 2
    injection = over_http.chaos.stop(id)["injection"]
    assert (injection["connections"], injection["connections_chosen"], injection["achieved_intensity"]) == (4, 2, 0.5)
    # What was held goes on: each has its answer.
    assert [over_http.read(connection) for connection in connections] == [answer(message) for message in messages]
    assert sorted(over_http.peer.received) == messages


def test_a_partition_that_refuses_new_connections(over_http):
    old = over_http.connect()
    over_http.ask(old, request(0))
    id = over_http.chaos.start("network_partition", intensity=1, mode="refuse_new")
    over_http.send(old, request(1))
    new = over_http.connect()
    with pytest.raises(GONE):
        over_http.ask(new, request(2))
    over_http.chaos.has_hit(id, 2)
    assert is_silent(old)
    over_http.chaos.stop(id)
    assert over_http.read(old) == answer(request(1))
    assert over_http.ask(over_http.connect(), request(3)) == answer(request(3))
    assert over_http.peer.received == [request(0), request(1), request(3)]
    assert sorted(hit["effect"] for hit in over_http.chaos.hits(id)) == ["hold", "refuse"]


def test_a_partition_that_resets(over_http):
    old = over_http.connect()
    over_http.ask(old, request(0))
    id = over_http.chaos.start("network_partition", intensity=1, mode="reset")
    readable, _, _ = select.select([old.sock], [], [], LONG)
    assert readable
    with pytest.raises(ConnectionResetError):
        old.sock.recv(1)
    with pytest.raises(GONE):
        over_http.ask(over_http.connect(), request(1))
    over_http.chaos.stop(id)
    assert over_http.ask(over_http.connect(), request(2)) == answer(request(2))
    assert over_http.peer.received == [request(0), request(2)]
    assert {hit["effect"] for hit in over_http.chaos.hits(id)} == {"reset"}


def test_a_partition_that_leaves_half_open_connections(over_http):
    old = over_http.connect()
    over_http.ask(old, request(0))
    id = over_http.chaos.start("network_partition", intensity=1, mode="half_open")
    over_http.send(old, request(1))
    over_http.chaos.has_hit(id)
    assert is_silent(old)
    over_http.chaos.stop(id)
    with pytest.raises(GONE):
        over_http.read(old)
    assert over_http.ask(over_http.connect(), request(2)) == answer(request(2))
    assert over_http.peer.received == [request(0), request(2)]
    assert {hit["effect"] for hit in over_http.chaos.hits(id)} == {"half_open"}


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        ({}, [*range(1, 31)]),
        ({"nth": 30}, [30]),
        ({"every": 7}, [7, 14, 21, 28]),
        ({"every": 3, "max_hits": 2}, [3, 6]),
        ({"after": 25}, [26, 27, 28, 29, 30]),
        ({"after": 3, "every": 5, "max_hits": 3}, [5, 10, 15]),
        ({"probability": 0}, []),
        ({"nth": 31}, []),
    ],
)
def test_exactly_those_that_are_chosen_are_lost(stdio, chosen, numbers):
    id = stdio.chaos.start("lost_request", tool="hit", **chosen)
    messages = [request(number) for number in range(1, 31)]
    stdio.send(*messages, last := request(99, "other"))
    passed = [message for number, message in enumerate(messages, 1) if number not in numbers]
    assert stdio.lines(len(passed) + 1) == [answer(message) for message in [*passed, last]]
    assert counts(stdio.chaos.stop(id)) == (30, len(numbers), len(numbers))
    assert [(hit["number"], hit["ordinal"]) for hit in stdio.chaos.hits(id)] == [(n, n - 1) for n in numbers]
    assert stdio.received() == [*passed, last]
    stdio.end()


def test_a_seed_gives_the_same_again(instances, stdio):
    messages = [request(number) for number in range(200)]
    lost = []
    for _ in range(2):
        id = stdio.chaos.start("packet_loss", intensity=0.5, direction="to_server", tool="hit", seed=7)
        before = len(stdio.received())
        stdio.send(*messages, last := request(999, "other"))
        while stdio.lines(1) != [answer(last)]:
            pass
        report = stdio.chaos.stop(id)
        lost.append([messages[hit["ordinal"]] for hit in stdio.chaos.hits(id)])
        arrived = stdio.received()[before:]
        assert arrived == [message for message in messages if message not in lost[-1]] + [last]
        assert counts(report) == (200, len(lost[-1]), len(lost[-1])) and report["seed"] == 7
    # The 99.99 % interval of a binomial.
    assert lost[0] == lost[1] and 72 <= len(lost[0]) <= 128
    # In the journal are the draws that this seed gives.
    for arguments in (["1"], ["2"], ["1", "2"]):
        done = instances.finish("chaos", "replay", *arguments, within=LONG)
        assert done.returncode == 0, done.stdout + done.stderr


# Where a fault means something, of those that do not everywhere.
HTTP, LATER = "HTTP", "stdio since 2026-07-28 and HTTP since 2026-07-28"
ELSEWHERE = {
    "stdout_noise": ("http", "stdio"),
    "stream_break": ("stdio", HTTP),
    "http_status": ("stdio", HTTP),
    "stale_session": ("stdio", "HTTP up to 2025-11-25"),
    "header_mismatch": ("stdio", "HTTP since 2026-07-28"),
}


@pytest.mark.parametrize("scenario", ELSEWHERE)
def test_over_the_other_transport_it_means_nothing(stdio, scenario):
    transport, where = ELSEWHERE[scenario]
    code, why = stdio.chaos.refused(scenario, transport=transport)
    assert (code, why) == (400, f"{scenario} means nothing over {transport}: expected {where}")
    # It is not said of which transport: there is no server of the right one, or there is.
    if transport == "stdio":
        code, why = stdio.chaos.refused(scenario)
        assert code == 409 and why.startswith(f"{scenario} matches nothing: ") and "peer (stdio)" in why
    assert stdio.chaos.status()["active_tests"] == 0


@pytest.mark.parametrize(
    ("spoken", "scenario", "where"),
    [
        (LEGACY, "header_mismatch", "HTTP since 2026-07-28"),
        (LEGACY, "input_required_loop", LATER),
        (MODERN, "stale_session", "HTTP up to 2025-11-25"),
        (MODERN, "late_response_after_cancel", "stdio and HTTP up to 2025-11-25"),
    ],
)
def test_in_the_other_era_it_means_nothing(over_http, spoken, scenario, where):
    method = "initialize" if spoken == LEGACY else "tools/call"
    over_http.ask(over_http.connect(), request(1, "hit", spoken, method))
    if method == "initialize":
        connection = over_http.connect()
        over_http.send(connection, request(2), SESSION)
        over_http.read(connection)
    code, why = over_http.chaos.refused(scenario)
    assert (code, why) == (400, f"{scenario} means nothing over http, as peer speaks it: expected {where}")


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"mode": "reset", "transport": "stdio"}, "expected mode=silent, or transport=http"),
        ({"mode": "soft"}, "expected silent, refuse_new, reset, half_open"),
        ({"intensity": 1.5}, "intensity is 1.5: expected a share from 0 to 1"),
        ({"duration": "61s"}, "expected at most 1m, which is the plan's test_duration"),
        ({"tool": "hit"}, "has no parameter `tool`: expected one of"),
        ({"server": "none"}, "matches nothing: "),
        ({"steady_state": "error_rate"}, "steady_state"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(stdio, parameters, why):
    code, detail = stdio.chaos.refused("network_partition", **parameters)
    assert code == (409 if "matches nothing" in why else 400) and why in detail, detail
    assert stdio.chaos.status()["active_tests"] == 0 and stdio.chaos.status()["total_history"] == 0
    # The journal has a thread of its own, for which the answer does not wait.
    journal = lambda: records(stdio.chaos.data, "engine.jsonl")  # noqa: E731
    (refused,) = wait_until(journal, what="the attempt in the journal")
    assert (refused["event"], refused["reason"]) == ("refused", detail)
