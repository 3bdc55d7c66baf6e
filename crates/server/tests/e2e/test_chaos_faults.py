"""Each fault, wherever it means something: what server and client saw is what its journal says, byte by byte."""

import abc
import http.client
import json
import pathlib
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

import echo_peer
from chaos import LONG, Chaos, counts
from echo_peer import CAPABILITIES, LEGACY, MODERN, NOTICE, SESSION, VERSION, packed

PEER = [sys.executable, str(pathlib.Path(__file__).with_name("echo_peer.py"))]
NOISE = b"mcpscope: this line is noise that was asked for"
SOURCE = {"source": "mcpscope"}
STDIO, JSON, SSE = "stdio", "json", "sse"
ANYWHERE = {STDIO, JSON, SSE}
HTTP = {JSON, SSE}
# Of these the members of an answer are written anew.
REWRITTEN = {"wrong_id", "oversize", "schema_violation", "tools_list_flap"}
# The end of a connection in the place of an answer, and no answer at all.
CUT, NOTHING = b"(cut)", None

Bytes = Callable[[bytes], bytes]


@dataclass
class Fault:
    """What a fault does to a request and to its answer."""

    scenario: str
    effect: str
    # What the client gets in the place of the server's answer: of a message, or `NOTHING`.
    answer: Bytes | None = bytes
    parameters: dict = field(default_factory=dict)
    places: set[str] = field(default_factory=lambda: ANYWHERE)
    eras: tuple[str, ...] = (LEGACY, MODERN)
    # Whether it is done to the answer; if not, to the request.
    to_client: bool = True
    reaches_server: bool = True
    # Over HTTP, of an answer that mcpscope makes up, or of the server's.
    status: int = 200
    made_up: bool = False
    headers: dict = field(default_factory=dict)
    amount: int | None = None
    # What was withheld comes at its end.
    later: bool = False
    copies: int = 1
    ahead: list[bytes] = field(default_factory=list)
    method: str = "tools/call"


def in_place(**members) -> Bytes:
    """A message of mcpscope's own, with the id of the request."""

    def made(answer: bytes) -> bytes:
        return in_order({"id": json.loads(answer)["id"], "jsonrpc": "2.0"} | members)

    return made


def in_order(message: dict) -> bytes:
    return json.dumps(message, separators=(",", ":"), sort_keys=True).encode()


def error(code: int, message: str = "injected by mcpscope", **data) -> Bytes:
    return in_place(error={"code": code, "data": SOURCE | data, "message": message})


def with_id(answer: bytes) -> bytes:
    id = json.loads(answer)["id"]
    return answer.replace(b'"id":%d' % id, b'"id":%d' % (2**52 + id))


def violated(answer: bytes) -> bytes:
    return answer.replace(b'"said":"hit"', b'"said":0').replace(
        b'"number":7', b'"number":"mcpscope: not what the schema says"'
    )


def without_the_first_tool(answer: bytes) -> bytes:
    first = packed(echo_peer.tool(echo_peer.TOOLS[0])) + b","
    assert first in answer
    return answer.replace(first, b"")


ASKED = {
    "mcpscope": {
        "method": "elicitation/create",
        "params": {
            "message": "injected by mcpscope",
            "mode": "form",
            "requestedSchema": {"properties": {}, "type": "object"},
        },
    }
}
NOBODY = {"capabilities": {}, "protocolVersion": "1970-01-01", "serverInfo": {"name": "mcpscope", "version": "0"}}
FAILED = {"content": [{"text": "injected by mcpscope", "type": "text"}], "isError": True}

TO_SERVER = {"to_client": False}
ON_THE_WAY = TO_SERVER | {"reaches_server": False}
IN_PLACE = ON_THE_WAY | {"made_up": True}
DELAY = {"delay": "40ms"}
LATE = {"effect": "delay", "amount": 40_000}

FAULTS = [
    Fault("latency_injection", **LATE, parameters=DELAY | {"direction": "to_server"}, **TO_SERVER),
    Fault("latency_injection", **LATE, parameters=DELAY | {"direction": "to_client", "kind": "response"}),
    Fault("hang", "hold", NOTHING, later=True),
    Fault("slow_stream", "slow", parameters={"bytes_per_second": 4096}, amount=4096),
    Fault("packet_loss", "drop", NOTHING, parameters={"intensity": 1, "what": "response"}),
    Fault("packet_loss", "drop", NOTHING, parameters={"intensity": 1, "what": "request"}, **ON_THE_WAY),
    Fault("lost_request", "drop", NOTHING, **ON_THE_WAY),
    Fault("lost_response", "drop", NOTHING),
    Fault("stream_break", "stream_break", lambda _: CUT, places=HTTP),
    Fault("wrong_id", "wrong_id", with_id),
    Fault("duplicate_response", "duplicate", places={STDIO, SSE}, copies=2),
    Fault("malformed_json", "malformed_json", lambda answer: b"{malformed" + answer[1:]),
    Fault("truncated", "truncate", lambda answer: answer[: len(answer) // 2]),
    Fault("stdout_noise", "noise", places={STDIO}, ahead=[NOISE]),
    Fault("oversize", "oversize", parameters={"bytes": "64KiB"}, amount=64 << 10),
    Fault("schema_violation", "schema", violated),
    Fault("tools_list_flap", "tools_list", without_the_first_tool, method="tools/list"),
    Fault("header_mismatch", "header_mismatch", error(0), places=HTTP, eras=(MODERN,), **TO_SERVER, status=400),
    Fault("rpc_error", "rpc_error", error(-31000), **IN_PLACE, amount=-31000),
    Fault("tool_error", "tool_error", in_place(result=FAILED), **IN_PLACE, eras=(LEGACY,)),
    Fault("tool_error", "tool_error", in_place(result=FAILED | {"resultType": "complete"}), **IN_PLACE, eras=(MODERN,)),
    Fault(
        "input_required_loop",
        "input_required",
        in_place(result={"inputRequests": ASKED, "requestState": "mcpscope", "resultType": "input_required"}),
        **IN_PLACE,
        eras=(MODERN,),
    ),
    Fault(
        "stale_session",
        "stale_session",
        error(-31000, "injected by mcpscope: session not found"),
        **IN_PLACE,
        places=HTTP,
        eras=(LEGACY,),
        status=404,
        parameters={"session": "*"},
    ),
    Fault(
        "version_reject",
        "version_reject",
        error(-32022, "injected by mcpscope: unsupported protocol version", requested=MODERN, supported=["1970-01-01"]),
        **IN_PLACE,
        eras=(MODERN,),
        status=400,
    ),
    Fault(
        "http_status",
        "http_status",
        error(-31000, "injected by mcpscope: HTTP status 429"),
        **IN_PLACE,
        places=HTTP,
        parameters={"status": 429, "retry_after": "1500ms"},
        status=429,
        headers={"retry-after": "2"},
        amount=429,
    ),
    # The last: connections of its own are among those that the next would count.
    Fault(
        "version_reject",
        "version_reject",
        in_place(result=NOBODY),
        **IN_PLACE,
        eras=(LEGACY,),
        method="initialize",
    ),
]


class Stage(abc.ABC):
    """An instance between a server and a client, both of which know every byte."""

    def __init__(self, instance, chaos: Chaos, era: str):
        self.instance, self.chaos, self.era = instance, chaos, era
        self.last = 0

    def message(self, method: str, name: str) -> bytes:
        self.last += 1
        parameters = {"name": name, "arguments": {}} if method == "tools/call" else {}
        if method == "initialize":
            parameters = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}
        if self.era == MODERN:
            parameters["_meta"] = {VERSION: MODERN, CAPABILITIES: {"elicitation": {}}}
        return packed({"jsonrpc": "2.0", "id": self.last, "method": method, "params": parameters})

    @abc.abstractmethod
    def received(self) -> list[bytes]:
        """What has reached the server since this was asked last."""

    @abc.abstractmethod
    def send(self, message: bytes):
        """Sends it; `read` takes what is given here."""

    @abc.abstractmethod
    def read(self, sent, fault: Fault | None):
        """What comes back of it while the fault is there, as `seen` has it."""

    @abc.abstractmethod
    def read_later(self, sent, fault: Fault):
        """What comes back of it after the fault."""

    @abc.abstractmethod
    def seen(self, message: bytes, fault: Fault | None):
        """What is expected to come back while the fault is there."""

    @abc.abstractmethod
    def seen_later(self, message: bytes, fault: Fault):
        """What is expected to come back after the fault."""

    @abc.abstractmethod
    def place(self, fault: Fault) -> tuple[int | None, int]:
        """The ordinals of the connection, if it is known, and of the message that is hit."""

    def show(self, fault: Fault):
        """Four messages, of which two match and the latter of those is hit: what is seen, and what is expected."""
        names = {"method": fault.method} if fault.method != "tools/call" else {"tool": "hit"}
        id = self.chaos.start(fault.scenario, **names | {"nth": 2} | fault.parameters)
        messages = [self.message("tools/call", "other"), self.message(fault.method, "hit")]
        messages += [self.message(fault.method, "hit"), self.message("tools/call", "other")]
        seen, expected = [], []
        for message in messages:
            hitting = fault if message is messages[2] else None
            sent = self.send(message)
            if hitting:
                hit = sent
            seen.append(self.read(sent, hitting))
            expected.append(self.seen(message, hitting))
            if hitting:
                self.chaos.has_hit(id)
        report = self.chaos.stop(id)
        seen.append(self.read_later(hit, fault))
        expected.append(self.seen_later(messages[2], fault))
        assert seen == expected

        if not fault.reaches_server:
            messages.pop(2)
        assert self.received() == messages
        assert counts(report) == (2, 1, 1) and report["status"] == "aborted"
        connection, ordinal = self.place(fault)
        hit = {"rule": fault.scenario, "ordinal": ordinal, "number": 2}
        hit |= {"direction": "to_client" if fault.to_client else "to_server", "effect": fault.effect}
        hit |= {"kind": "response" if fault.to_client else "request", "method": fault.method}
        hit |= {"tool": "hit"} if fault.method == "tools/call" else {}
        hit |= {"amount": fault.amount} if fault.amount is not None else {}
        (journalled,) = self.chaos.hits(id)
        # Those that were there before are numbered first, for as long as they are there.
        hit |= {"connection": journalled["connection"] if connection is None else connection}
        assert journalled == hit
        assert not report["leak"] and not report["injection"]["unjournalled"]


def changed(message: bytes, fault: Fault | None) -> list[bytes]:
    """The messages that come in the place of the answer, if any do while the fault is there."""
    answer = echo_peer.answer(json.loads(message))
    if not fault:
        return [answer]
    if fault.scenario == "header_mismatch":
        return [echo_peer.refusal(json.loads(message))]
    if fault.answer is NOTHING:
        return []
    return [*fault.ahead, *[comparable(fault.answer(answer), fault)] * fault.copies]


def comparable(message: bytes, fault: Fault | None):
    """What is written anew is the same JSON, all else the same bytes. Padding is measured, and then of no interest."""
    if not fault or fault.scenario not in REWRITTEN:
        return message
    value = json.loads(message)
    if padding := value.get("result", {}).pop("mcpscope_padding", None):
        assert len(message) == fault.amount and not padding.strip(padding[0])
    return value


class Stdio(Stage):
    def __init__(self, instances, folder: pathlib.Path, era: str):
        self.file = folder / "received"
        options = ("--data", str(folder / "data"), "--name", "peer")
        instance = instances.run(*options, command=[*PEER, str(self.file)])
        super().__init__(instance, Chaos(instance, folder / "data"), era)
        self.looked = 0

    def received(self):
        lines = self.file.read_bytes().splitlines()
        self.looked, new = len(lines), lines[self.looked :]
        return new

    def send(self, message):
        self.instance.process.stdin.write(message + b"\n")
        self.instance.process.stdin.flush()
        return message

    def lines(self, count: int, fault: Fault | None):
        lines = [self.instance.process.stdout.readline().removesuffix(b"\n") for _ in range(count)]
        return [comparable(line, fault) if line != NOISE else line for line in lines]

    def read(self, sent, fault):
        return self.lines(len(self.seen(sent, fault)), fault)

    def read_later(self, sent, fault):
        return self.lines(fault.later, None)

    def seen(self, message, fault):
        return changed(message, fault)

    def seen_later(self, message, fault):
        return changed(message, None) * fault.later

    def place(self, fault):
        return 0, 2

    def end(self):
        """Nothing else has come, nor comes when the client leaves."""
        rest, _ = self.instance.process.communicate(timeout=LONG)
        assert (rest, self.instance.process.returncode) == (b"", 0)


class OverHttp(Stage):
    def __init__(self, instances, upstream, folder: pathlib.Path, era: str, streams: bool):
        self.peer = upstream.answer = echo_peer.OverHttp(streams)
        options = ("--data", str(folder / "data"), "--name", "peer")
        instance = instances.proxy(upstream.url, *options)
        super().__init__(instance, Chaos(instance, folder / "data"), era)
        self.streams = streams
        self.address = urlsplit(instance.proxy)
        self.connections = []
        if era == LEGACY:
            self.read(self.send(self.message("initialize", "")), None)
        self.received()

    def received(self):
        bodies, self.peer.received = self.peer.received, []
        return bodies

    def headers(self, message: dict) -> dict:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.era == MODERN:
            headers |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": message["method"]}
            return headers | ({"Mcp-Name": message["params"]["name"]} if "name" in message["params"] else {})
        session = {"MCP-Protocol-Version": LEGACY, "Mcp-Session-Id": SESSION}
        return headers | (session if message["method"] != "initialize" else {})

    def send(self, message):
        connection = http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=LONG)
        self.connections.append(connection)
        connection.request("POST", self.address.path, message, self.headers(json.loads(message)))
        return message, connection

    def is_stream(self, message: bytes, fault: Fault | None) -> bool:
        refused = fault and (fault.made_up or fault.status != 200)
        return self.streams and not refused and json.loads(message)["method"] != "initialize"

    def read(self, sent, fault):
        message, connection = sent
        if fault and fault.answer is NOTHING:
            if not self.is_stream(message, fault) or not fault.reaches_server:
                return None
            answer = connection.getresponse()
            if fault.later:
                connection.begun = answer
                return [answer.status, *events(answer.read(len(event(NOTICE))))]
            return [answer.status, *events(answer.read())]
        try:
            answer = connection.getresponse()
            body = answer.read()
        except http.client.RemoteDisconnected:
            return [CUT]
        except http.client.IncompleteRead as incomplete:
            return [answer.status, *events(incomplete.partial), CUT]
        for name, value in (fault.headers if fault else {}).items():
            assert answer.headers[name] == value
        stream = self.is_stream(message, fault)
        assert answer.headers["Content-Type"] == ("text/event-stream" if stream else "application/json")
        if stream:
            return [answer.status, *(comparable(each, fault if each != NOTICE else None) for each in events(body))]
        assert int(answer.headers["Content-Length"]) == len(body)
        return [answer.status, comparable(body, fault)]

    def seen(self, message, fault):
        stream = self.is_stream(message, fault)
        if fault and fault.answer is NOTHING:
            return [200, NOTICE] if stream and fault.reaches_server else None
        messages = changed(message, fault)
        if messages == [CUT]:
            return [200, NOTICE, CUT] if stream else [CUT]
        return [fault.status if fault else 200, *([NOTICE] if stream else []), *messages]

    def read_later(self, sent, fault):
        message, connection = sent
        if not fault.later:
            if fault.answer is NOTHING and not (self.is_stream(message, fault) and fault.reaches_server):
                # It is open, and there is nothing to be read.
                assert select.select([connection.sock], [], [], 0)[0] == []
            return None
        if self.is_stream(message, fault):
            return events(connection.begun.read())
        return self.read(sent, None)

    def seen_later(self, message, fault):
        if not fault.later:
            return None
        answer = changed(message, None)
        return answer if self.is_stream(message, fault) else [200, *answer]

    def place(self, fault):
        each = 2 if self.is_stream(self.message(fault.method, ""), fault) and fault.to_client else 1
        in_session = self.era == LEGACY and fault.method != "initialize"
        return (0, 3 * each - 1) if in_session else (None, each - 1)

    def end(self):
        for connection in self.connections:
            connection.close()


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def events(body: bytes) -> list[bytes]:
    found = body.split(b"\n\n")
    assert found.pop() == b"", body
    assert all(each.startswith(b"data: ") for each in found), body
    return [each.removeprefix(b"data: ") for each in found]


@pytest.fixture(params=[STDIO, JSON, SSE])
def place(request):
    return request.param


@pytest.fixture(params=[LEGACY, MODERN])
def stage(request, place, instances, tmp_path):
    if place == STDIO:
        stage = Stdio(instances, tmp_path, request.param)
    else:
        stage = OverHttp(instances, request.getfixturevalue("upstream"), tmp_path, request.param, place == SSE)
    with stage.chaos.http:
        yield stage


@pytest.mark.timeout(120)
def test_what_is_seen_is_what_is_said(stage, place):
    shown = 0
    for fault in FAULTS:
        if place in fault.places and stage.era in fault.eras:
            stage.show(fault)
            shown += 1
    assert shown >= 18
    status = stage.chaos.status()
    assert (status["active_tests"], status["total_history"], status["journal_errors"]) == (0, shown, 0)
    stage.end()
