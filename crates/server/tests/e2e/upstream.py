"""An HTTP server in the place of an MCP server: the test decides every byte it answers."""

import json
import select
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Exchange(BaseHTTPRequestHandler):
    """One request, with the means to answer it piece by piece."""

    protocol_version = "HTTP/1.1"
    # The head and the body of an answer are two writes; the second must not wait for the first to be acknowledged.
    disable_nagle_algorithm = True

    def serve(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            self.body = self.read_chunks()
        else:
            self.body = self.rfile.read(length)
        self.server.owner.seen.append(self)
        self.server.owner.answer(self)

    do_GET = do_POST = do_DELETE = serve

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def json(self):
        return json.loads(self.body)

    def answer_json(self, value, status: int = 200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def start_events(self, chunked: bool):
        """The head of an SSE answer; without chunks its end is the end of the connection."""
        self.chunked = chunked
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
        self.end_headers()

    def event(self, text: str):
        data = f"data: {text}\n\n".encode()
        if self.chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        self.wfile.write(data)
        self.wfile.flush()

    def end_events(self):
        if self.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def hang_up(self):
        """Ends the connection here, whatever was promised."""
        self.close_connection = True

    def wait_for_hang_up(self, within: float) -> bool:
        """Whether the other side closed the connection in time."""
        readable, _, _ = select.select([self.connection], [], [], within)
        self.close_connection = True
        if not readable:
            return False
        try:
            return self.connection.recv(1) == b""
        except ConnectionError:
            return True

    def log_message(self, *_):
        pass  # the tests look at what was seen, not at a log


class Upstream:
    """The server; `answer` is called with each exchange, in a thread of its own."""

    def __init__(self, port: int = 0):
        self.seen: list[Exchange] = []
        self.answer = lambda exchange: exchange.answer_json(result_for(exchange.json()))
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Exchange)
        self.server.daemon_threads = True
        self.server.owner = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/mcp"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def call(tool: str = "probe", id=1) -> dict:
    """A `tools/call` request."""
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": {}}}


def result_for(request: dict) -> dict:
    """An ordinary answer to a `tools/call` request."""
    return {"jsonrpc": "2.0", "id": request["id"], "result": {"content": [{"type": "text", "text": "done"}]}}
