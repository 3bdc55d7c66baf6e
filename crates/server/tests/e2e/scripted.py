"""A server whose every answer the tests know: over stdio as a program of its own, over HTTP in the place of an upstream."""

import json
import sys
import threading

PROTOCOL = "2025-11-25"
SESSION = "scripted"

# What it asks its client while the tool `asks` is at work.
QUESTIONS = {"q1": "sampling/createMessage", "q2": "roots/list"}
TELLS = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "asking"}}
ERRORS = {"refuses": -32602, "breaks": -32603, "file:///nothing": -32002}


def answer(request: dict) -> dict:
    """The answer to a request of the client."""
    parameters = request.get("params", {})
    target = parameters.get("name", parameters.get("uri"))
    if code := ERRORS.get(target):
        return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": "as it was asked for"}}
    result = {"protocolVersion": PROTOCOL} if request["method"] == "initialize" else {"isError": target == "fails"}
    return {"jsonrpc": "2.0", "id": request["id"], "result": result}


def asks(request: dict) -> list[dict]:
    """What comes before the answer, if anything."""
    if request.get("params", {}).get("name") != "asks":
        return []
    return [TELLS, *({"jsonrpc": "2.0", "id": id, "method": method} for id, method in QUESTIONS.items())]


class OverHttp:
    """What an upstream answers with: the messages above, in one session."""

    def __init__(self):
        self.told = threading.Semaphore(0)

    def __call__(self, exchange):
        if exchange.command == "DELETE":
            return self.head(exchange, 204)
        message = exchange.json()
        if "method" not in message:
            self.told.release()
        if "method" not in message or "id" not in message:
            return self.head(exchange, 202)
        first = asks(message)
        if not first:
            return self.json(exchange, answer(message))
        exchange.start_events(chunked=True)
        for each in first:
            exchange.event(json.dumps(each))
        for _ in QUESTIONS:
            assert self.told.acquire(timeout=10)
        exchange.event(json.dumps(answer(message)))
        exchange.end_events()

    def head(self, exchange, status: int):
        exchange.send_response(status)
        if status != 204:
            exchange.send_header("Content-Length", "0")
        exchange.end_headers()

    def json(self, exchange, value: dict):
        body = json.dumps(value).encode()
        exchange.send_response(200)
        exchange.send_header("Mcp-Session-Id", SESSION)
        exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)


def over_stdio():
    def say(message: dict):
        print(json.dumps(message), flush=True)

    waits, told = None, 0
    for line in sys.stdin:
        message = json.loads(line)
        if "method" not in message:
            told += 1
            if told == len(QUESTIONS):
                say(answer(waits))
        elif "id" in message:
            first = asks(message)
            for each in first:
                say(each)
            if first:
                waits = message
            else:
                say(answer(message))


if __name__ == "__main__":
    over_stdio()
