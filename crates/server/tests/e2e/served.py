"""An MCP server as a program: `served.py PORT` serves HTTP there, tells on stdout what it was asked, and ends as it is told."""

import json
import os
import sys
import threading

from upstream import Upstream

SESSION = "served"


def answer(exchange):
    request = exchange.json()
    asked = request.get("params", {}).get("name", request["method"])
    known = exchange.headers.get("Mcp-Session-Id")
    # In one write: other threads tell what they were asked, too.
    os.write(1, f"asked {asked}\n".encode())
    if known and known != SESSION + str(os.getpid()):
        error = {"code": -32600, "message": "no such session"}
        return exchange.answer_json({"jsonrpc": "2.0", "id": None, "error": error}, 404)
    if asked == "exit":
        os._exit(3)
    if asked == "leave":
        os._exit(0)
    if asked == "hang":
        threading.Event().wait()
    if asked == "stream":
        exchange.start_events(chunked=True)
        exchange.event(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info"}}))
        threading.Event().wait()
    if asked == "half":
        exchange.start_events(chunked=True)
        exchange.wfile.write(b"b\r\ndata: {\"jso\r\n")
        threading.Event().wait()
    result = {"content": [{"type": "text", "text": str(os.getpid())}]}
    if asked == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "served", "version": "1"}}
    body = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode()
    exchange.send_response(200)
    exchange.send_header("Content-Type", "application/json")
    exchange.send_header("Content-Length", str(len(body)))
    if asked == "initialize":
        exchange.send_header("Mcp-Session-Id", SESSION + str(os.getpid()))
    exchange.end_headers()
    exchange.wfile.write(body)


if __name__ == "__main__":
    upstream = Upstream(int(sys.argv[1]))
    upstream.answer = answer
    print("serving", flush=True)
    upstream.server.serve_forever()
