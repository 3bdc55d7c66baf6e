"""A server that keeps every byte it was sent, and whose every answer the tests know.

Over stdio it is a program, `echo_peer.py FILE`, which keeps there what it was sent; over HTTP it takes the place of an upstream.
"""

import json
import sys

LEGACY, MODERN = "2025-11-25", "2026-07-28"
VERSION = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
SESSION = "echoing"
TOOLS = ("hit", "other")


def packed(message: dict) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def era_of(message: dict) -> str:
    return message.get("params", {}).get("_meta", {}).get(VERSION, LEGACY)


def tool(name: str) -> dict:
    schema = {"type": "object", "properties": {"said": {"type": "string"}, "number": {"type": "integer"}}}
    return {"name": name, "inputSchema": {"type": "object"}, "outputSchema": schema | {"required": ["said"]}}


def result_of(message: dict) -> dict:
    match message["method"]:
        case "initialize":
            capabilities = {"tools": {}, "logging": {}}
            return {
                "protocolVersion": LEGACY,
                "capabilities": capabilities,
                "serverInfo": {"name": "echo", "version": "1"},
            }
        case "server/discover":
            known = {"supportedVersions": [MODERN], "capabilities": {"tools": {}}}
            return known | {"serverInfo": {"name": "echo", "version": "1"}, "ttlMs": 0, "cacheScope": "private"}
        case "tools/list":
            listed = {"tools": [tool(name) for name in TOOLS]}
            return listed | ({"ttlMs": 0, "cacheScope": "private"} if era_of(message) == MODERN else {})
        case "tools/call":
            name = message["params"]["name"]
            structured = {"said": name, "number": 7}
            return {"content": [{"type": "text", "text": name}], "structuredContent": structured}
        case _:
            return {}


def answer(message: dict) -> bytes:
    """To a request."""
    result = result_of(message) | ({"resultType": "complete"} if era_of(message) == MODERN else {})
    return packed({"jsonrpc": "2.0", "id": message["id"], "result": result})


def refusal(message: dict) -> bytes:
    """Of a request whose headers say something else than its body."""
    error = {"code": -32020, "message": "the headers contradict the body"}
    return packed({"jsonrpc": "2.0", "id": message["id"], "error": error})


# What is in an event stream before the answer.
NOTICE = packed({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "working"}})


class OverHttp:
    """What an upstream answers with, as event streams if it is told to."""

    def __init__(self, streams: bool):
        self.streams = streams
        # The body of each request.
        self.received: list[bytes] = []

    def calls(self) -> list[str]:
        """The tools that were called."""
        messages = map(json.loads, filter(None, self.received))
        return [message["params"]["name"] for message in messages if message.get("method") == "tools/call"]

    def __call__(self, exchange):
        self.received.append(exchange.body)
        if exchange.command != "POST":
            return self.whole(exchange, 405, b"")
        message = exchange.json()
        if "id" not in message:
            return self.whole(exchange, 202, b"")
        if exchange.headers.get("Mcp-Method", message["method"]) != message["method"]:
            return self.whole(exchange, 400, refusal(message))
        if self.streams and message["method"] != "initialize":
            exchange.start_events(chunked=True)
            for each in (NOTICE, answer(message)):
                exchange.event(each.decode())
            return exchange.end_events()
        return self.whole(exchange, 200, answer(message), begins=message["method"] == "initialize")

    def whole(self, exchange, status: int, body: bytes, begins: bool = False):
        exchange.send_response(status)
        if begins:
            exchange.send_header("Mcp-Session-Id", SESSION)
        if body:
            exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)


def over_stdio(kept):
    for line in sys.stdin.buffer:
        kept.write(line)
        message = json.loads(line)
        if "id" in message and "method" in message:
            sys.stdout.buffer.write(answer(message) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    with open(sys.argv[1], "ab", buffering=0) as file:
        over_stdio(file)
