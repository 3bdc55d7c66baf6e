"""`mcpscope proxy` in front of an HTTP server that the tests control: relayed unchanged, at once, and never twice."""

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
import pytest

from harness import free_port, settles_at, wait_until
from upstream import call, result_for

NAME = "http"


@pytest.fixture
def proxy(instances, upstream):
    return instances.proxy(upstream.url, "--name", NAME)


def post(url: str, body, **options) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    headers |= options.pop("headers", {})
    return httpx.post(url, content=content, headers=headers, trust_env=False, timeout=10, **options)


def check_bad_gateway(answer: httpx.Response, id):
    assert answer.status_code == 502
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert (body["jsonrpc"], body["id"], type(body["id"])) == ("2.0", id, type(id))
    assert isinstance(body["error"]["code"], int) and body["error"]["message"]
    assert "result" not in body


@pytest.mark.parametrize("id", [1, "a-1", 2**63 - 1, ""])
def test_an_upstream_that_is_down(instances, id):
    proxy = instances.proxy(f"http://127.0.0.1:{free_port()}/mcp", "--name", NAME)
    check_bad_gateway(post(proxy.proxy, call("probe", id=id)), id)
    settles_at({("probe", "error"): 1}, lambda: proxy.metrics().tool_calls(server=NAME))
    assert proxy.metrics().sum("mcpscope_component_errors_total", component="transport") == 1
    # mcpscope itself is alive; it says that it is not able to serve.
    assert proxy.get("healthz").status_code == 200
    assert proxy.get("readyz").status_code == 503


def test_an_upstream_that_hangs_up_is_asked_once(proxy, upstream):
    """Never a retry: the call may have had its effect."""
    upstream.answer = lambda exchange: exchange.hang_up()
    for id in range(3):
        check_bad_gateway(post(proxy.proxy, call("probe", id=id)), id)
    assert len(upstream.seen) == 3
    settles_at({("probe", "error"): 3}, lambda: proxy.metrics().tool_calls(server=NAME))


def test_no_retry_on_a_connection_that_was_good_before(proxy, upstream):
    """HTTP clients like to repeat a request when a kept connection turns out to be closed."""

    def answer(exchange):
        if exchange.json()["id"] % 2:
            exchange.hang_up()
        else:
            exchange.answer_json(result_for(exchange.json()))

    upstream.answer = answer
    statuses = [post(proxy.proxy, call(id=id)).status_code for id in range(6)]
    assert statuses == [200, 502] * 3
    assert [exchange.json()["id"] for exchange in upstream.seen] == list(range(6))


def test_request_and_answer_arrive_unchanged(proxy, upstream):
    body = b' {"id": 1.0 ,"jsonrpc":"2.0", "method":"tools/call","params":{"name":"x","n":12345678901234567890123}}\n'
    own_headers = [("Content-Type", "application/json"), ("X-One", "1"), ("X-One", "2"), ("Set-Cookie", "a=b")]
    reply = b'\r\n {"z":1e400,"id":1.0, "jsonrpc":"2.0","result":{"content":[],"n":0.10}} '

    def answer(exchange):
        exchange.send_response(207, "Odd But Mine")
        for name, value in own_headers:
            exchange.send_header(name, value)
        exchange.send_header("Content-Length", str(len(reply)))
        exchange.end_headers()
        exchange.wfile.write(reply)

    upstream.answer = answer
    sent = {"Mcp-Session-Id": "s-1", "MCP-Protocol-Version": "2025-06-18", "Authorization": "Bearer t", "X-Mine": "é"}
    got = post(f"{proxy.proxy}?a=%2F&b", body, headers={k: v.encode("latin-1") for k, v in sent.items()})
    assert (got.status_code, got.content) == (207, reply)
    assert got.headers.get_list("x-one") == ["1", "2"] and got.headers["set-cookie"] == "a=b"

    (seen,) = upstream.seen
    assert seen.body == body
    assert seen.path == "/mcp?a=%2F&b"
    for name, value in sent.items():
        assert seen.headers.get_all(name) == [value], name
    # Kept for an upstream on loopback: what the client addressed is the proxy.
    assert seen.headers["Host"] == urlsplit(proxy.proxy).netloc


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_other_methods_pass(proxy, upstream, method):
    upstream.answer = lambda exchange: exchange.answer_json({"method": exchange.command}, status=405)
    got = httpx.request(method, proxy.proxy, headers={"Mcp-Session-Id": "s"}, trust_env=False)
    assert (got.status_code, got.json()) == (405, {"method": method})


def test_a_body_that_is_no_message_passes_and_is_counted(proxy, upstream):
    upstream.answer = lambda exchange: exchange.answer_json({"error": "no"}, status=400)
    assert post(proxy.proxy, b"\xff not json").status_code == 400
    assert upstream.seen[0].body == b"\xff not json"
    count = lambda: proxy.metrics().sum(  # noqa: E731
        "mcpscope_component_errors_total", component="transport", error_type="invalid_message"
    )
    wait_until(count, what="an invalid message in the counts")


class Stream:
    """A streaming answer, read piece by piece as it comes."""

    def __init__(self, url: str, request: dict):
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        self.connection.request("POST", parts.path, json.dumps(request), headers)
        self.answer = self.connection.getresponse()

    def event(self) -> str:
        line, blank = self.answer.readline(), self.answer.readline()
        assert blank == b"\n", (line, blank)
        return line.decode().removeprefix("data: ").strip()

    def hang_up(self):
        # The socket belongs to the answer by now; shut down at once, not when the last reference goes.
        self.answer.close()
        self.connection.close()


@pytest.mark.parametrize("chunked", [True, False])
def test_events_arrive_one_by_one(proxy, upstream, chunked):
    """The next event is sent only when the one before has arrived, so a relay that holds one back never ends."""
    arrived = threading.Semaphore(0)
    final = json.dumps(result_for(call()))

    def answer(exchange):
        exchange.start_events(chunked)
        for number in range(5):
            exchange.event(f"event {number}")
            if not arrived.acquire(timeout=5):
                return exchange.hang_up()
        exchange.event(final)
        exchange.end_events()

    upstream.answer = answer
    stream = Stream(proxy.proxy, call("streaming"))
    assert stream.answer.getheader("Content-Type") == "text/event-stream"
    for number in range(5):
        assert stream.event() == f"event {number}"
        arrived.release()
    assert stream.event() == final
    assert stream.answer.read() == b""
    settles_at({("streaming", "ok"): 1}, lambda: proxy.metrics().tool_calls(server=NAME))


def test_a_client_that_hangs_up_is_felt_upstream(proxy, upstream):
    felt = threading.Event()

    def answer(exchange):
        exchange.start_events(chunked=True)
        exchange.event("first")
        if exchange.wait_for_hang_up(within=5):
            felt.set()

    upstream.answer = answer
    stream = Stream(proxy.proxy, call("abandoned"))
    assert stream.event() == "first"
    stream.hang_up()
    assert felt.wait(5), "the upstream still has its connection"
    settles_at(0, lambda: proxy.metrics().sum("mcpscope_transport_connections", server=NAME))
    (outcome,) = {outcome for _, outcome in proxy.metrics().tool_calls(server=NAME)}
    assert outcome == "cancelled"


def test_a_client_that_hangs_up_before_the_answer_is_felt_upstream(proxy, upstream):
    asked, felt = threading.Event(), threading.Event()

    def answer(exchange):
        asked.set()
        if exchange.wait_for_hang_up(within=5):
            felt.set()

    upstream.answer = answer
    parts = urlsplit(proxy.proxy)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    connection.request("POST", parts.path, json.dumps(call()), {"Content-Type": "application/json"})
    assert asked.wait(5)
    connection.close()
    assert felt.wait(5), "the upstream still has its connection"


@pytest.mark.parametrize("chunked", [True, False])
def test_an_upstream_that_ends_amid_events_is_felt_by_the_client(proxy, upstream, chunked):
    def answer(exchange):
        exchange.start_events(chunked)
        exchange.event("first")
        exchange.hang_up()

    upstream.answer = answer
    stream = Stream(proxy.proxy, call("cut"))
    assert stream.event() == "first"
    # The end comes at once (the socket has a time limit): for chunks as an error, for a stream up to EOF as its end.
    if chunked:
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            rest = stream.answer.read()
            raise AssertionError(f"a clean end instead of a cut one, after {rest!r}")
    else:
        assert stream.answer.read() == b""
    settles_at(0, lambda: proxy.metrics().sum("mcpscope_transport_connections", server=NAME))
    (outcome,) = {outcome for _, outcome in proxy.metrics().tool_calls(server=NAME)}
    assert outcome in ("error", "timeout")
    assert len(upstream.seen) == 1


def raw_status(url: str, head: str) -> int:
    """The status of a request whose head is written by hand."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 5) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode())
        connection.settimeout(5)
        answer = connection.makefile("rb").readline()
    return int(answer.split()[1])


@pytest.mark.parametrize("listener", ["proxy", "dashboard"])
@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        ("Host: {own}", {200}),
        ("Host: localhost:{port}", {200}),
        ("Host: {own}\nOrigin: http://{own}", {200}),
        ("Host: evil.example", {403}),
        ("Host: evil.example:{port}", {403}),
        ("Host: 127.0.0.1.evil.example:{port}", {403}),
        ("Host: {own}\nOrigin: http://evil.example", {403}),
        ("Host: {own}\nOrigin: null", {403}),
        ("Host: {own}\nOrigin: http://127.0.0.1.evil.example:{port}", {403}),
        ("Host: {own}\nHost: evil.example", {400, 403}),
        ("Host: evil.example\nHost: {own}", {400, 403}),
        ("Host: {own}\nOrigin: http://{own}\nOrigin: http://evil.example", {400, 403}),
        ("X-No: host", {400, 403}),
        ("Host: ", {400, 403}),
    ],
)
def test_host_and_origin_are_checked(proxy, upstream, listener, lines, statuses):
    """Against DNS rebinding: a page in a browser must reach neither listener."""
    url = proxy.proxy if listener == "proxy" else f"{proxy.dashboard}healthz"
    parts = urlsplit(url)
    body = json.dumps(call()) if listener == "proxy" else ""
    start = f"{'POST' if body else 'GET'} {parts.path} HTTP/1.1\nContent-Type: application/json\nConnection: close\n"
    head = start + lines.format(own=parts.netloc, port=parts.port) + f"\nContent-Length: {len(body)}\n\n{body}"
    assert raw_status(url, head) in statuses
    expected = 1 if listener == "proxy" and statuses == {200} else 0
    assert len(upstream.seen) == expected, "what is refused never reaches the server"
