"""Connections made by hand: they do what no library does on purpose, and nothing that they are not told to."""

import base64
import os
import socket
import struct
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def connect(address: str, receive_buffer: int | None = None, timeout: float = 10) -> socket.socket:
    """To a URL's host and port, or to HOST:PORT. A receive buffer that is small makes the peer wait soon."""
    where = urlsplit(address if "//" in address else f"//{address}")
    connection = socket.socket()
    connection.settimeout(timeout)
    try:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect((where.hostname, where.port))
    except BaseException:
        connection.close()
        raise
    return connection


def request(path: str, *headers: tuple[str, str]) -> bytes:
    return "".join([f"GET {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in headers), "\r\n"]).encode()


def upgrade(host: str, query: str = "", *headers: tuple[str, str]) -> bytes:
    """A request for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    wanted = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    wanted += [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", key)]
    return request(f"/ws{query}", ("Host", host), *wanted, *headers)


class RawWebSocket:
    """A WebSocket without a mind of its own: it answers no ping and reads nothing ahead."""

    def __init__(self, dashboard: str, query: str = "", *headers: tuple[str, str], receive_buffer: int | None = None):
        self.connection = connect(dashboard, receive_buffer)
        # Not buffered: what is not asked for stays where it is.
        self.reading = self.connection.makefile("rb", 0)
        self.connection.sendall(upgrade(urlsplit(dashboard).netloc, query, *headers))
        self.status = int(self.line().split()[1])
        self.headers = {}
        while line := self.line():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reading.close()
        self.connection.close()

    def line(self) -> str:
        return self.reading.readline().decode().rstrip("\r\n")

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.reading.read(size - len(data))
            if not piece:
                raise ConnectionError("ended in the middle of a frame")
            data += piece
        return data

    def send(self, text: str):
        self.connection.sendall(masked(TEXT, text.encode()))

    def frame(self) -> tuple[int, bytes]:
        """The next frame: its opcode and payload."""
        first, second = self.exactly(2)
        assert first & 0x80 and not second & 0x80, "whole messages, and not masked"
        size = second
        if size >= 126:
            size = int.from_bytes(self.exactly(2 if size == 126 else 8))
        return first & 0xF, self.exactly(size)


def masked(opcode: int, payload: bytes) -> bytes:
    """A frame of a client; the mask is that of one who has nothing to hide."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + bytes(4) + payload
