"""Everything that can be done to the observing side at once, until stdin ends; then says how often each was done.

A process of its own, so that it is not the tests' own threads that wait for each other:
`attackers.py DASHBOARD_URL GRPC_ADDRESS PROBE_URL`.
"""

import contextlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from raw import BINARY, TEXT, RawWebSocket, connect, masked, request
from rpc import Rpc, channel_to

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# SETTINGS with an initial window of nothing: the server may send heads, and no data.
CLOSED_WINDOW = b"\0\0\x06\x04\0\0\0\0\0" + struct.pack("!HI", 4, 0)
STREAMS_PER_CONNECTION = 100
# More watchers than the probe has places.
HELD = {"no_reading": 30, "many_sockets": 110, "slow_head": 40, "watch_probe": 70}
HELD |= {"no_window": 3, "snapshot": 8, "record": 3}
NONSENSE = [b"{", b"\0", b'["reset"]', b'{"command": "get_health", "id": [1]}', b"[" * 5000 + b"]" * 5000]

done = Counter()
stop = threading.Event()


def forever(name: str, act):
    """Again and again, whatever comes of it: being refused or cut off is what it is there for."""
    while not stop.is_set():
        try:
            act()
        except (OSError, grpc.RpcError):
            # A pause, so that being refused is no excuse for burning a core.
            stop.wait(0.01)
        done[name] += 1


def websocket_that_never_reads(dashboard: str):
    with RawWebSocket(dashboard, receive_buffer=4096) as client:
        while not stop.is_set():
            # Fails once the server has had enough.
            client.connection.sendall(50 * masked(TEXT, b'["get_dashboard"]'))
            stop.wait(0.02)


def websocket_nonsense(dashboard: str):
    """No commands, then no text, then no frames."""
    with RawWebSocket(dashboard) as client:
        if client.status != 101:
            return
        for text in NONSENSE:
            client.connection.sendall(20 * masked(TEXT, text))
        client.connection.sendall(20 * masked(BINARY, os.urandom(1000)) + os.urandom(100))
        while received := client.connection.recv(1 << 16):
            done["nonsense_told"] += received.count(b'"error"')


def websocket_held(dashboard: str):
    """Reads, and answers no ping."""
    with RawWebSocket(dashboard) as client:
        if client.status == 503:
            stop.wait(0.5)
        while client.status == 101 and not stop.is_set() and client.connection.recv(1 << 16):
            pass


def watch_probe(probe: str):
    """On a connection of its own, for as long as it may."""
    with channel_to(urlsplit(probe).netloc, ("grpc.use_local_subchannel_pool", 1)) as channel:
        try:
            for _ in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20):
                done["watched"] += 1
        finally:
            stop.wait(0.5)


def garbage(address: str):
    with connect(address) as client:
        client.sendall(os.urandom(1000))
        client.recv(1000)


def slow_head(address: str, head: bytes):
    with connect(address) as client:
        client.settimeout(0.2)
        for byte in head:
            client.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                if not client.recv(1):
                    return
            if stop.is_set():
                return


def huge_head(address: str):
    with connect(address) as client:
        client.sendall(request("/healthz", ("Host", "localhost"), *((f"X-{n}", "y" * 1000) for n in range(300))))
        client.recv(1000)


def ask(url: str, path: str):
    with connect(url) as client:
        client.sendall(request(path, ("Host", urlsplit(url).netloc), ("Connection", "close")))
        while client.recv(1 << 16):
            pass


def ask_and_leave(url: str):
    """In the middle of the answer, with a reset."""
    with connect(url, receive_buffer=4096) as client:
        client.sendall(request("/api/v1/traces?limit=1000", ("Host", urlsplit(url).netloc)))
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def calls_without_a_window(address: str, path: str, message: bytes, patience=4.0, quiet=2.0, over=stop):
    """As many as a connection may have, none of which may send a byte of data. Leaves when nothing more comes."""
    literal = lambda text: bytes([len(text)]) + text.encode()  # noqa: E731
    # POST, http; then names from the static table (path, authority, content-type), and one of our own.
    fields = b"\x83\x86\x04" + literal(path) + b"\x01" + literal(address)
    fields += b"\x0f\x10" + literal("application/grpc") + b"\0" + literal("te") + literal("trailers")
    with connect(address) as client:
        client.sendall(PREFACE + CLOSED_WINDOW)
        for stream in range(1, 2 * STREAMS_PER_CONNECTION, 2):
            head = struct.pack("!I", len(fields))[1:] + b"\x01\x04" + struct.pack("!I", stream) + fields
            body = struct.pack("!BI", 0, len(message)) + message
            data = struct.pack("!I", len(body))[1:] + b"\0\x01" + struct.pack("!I", stream) + body
            client.sendall(head + data)
            done["streams"] += 1
        client.settimeout(0.2)
        # Heads come as long as calls wait for their turn, which with many who ask is long.
        began = heard = time.monotonic()
        while time.monotonic() < min(began + patience, heard + quiet) and not over.is_set():
            with contextlib.suppress(TimeoutError):
                if not client.recv(1 << 16):
                    break
                heard = time.monotonic()


def attack(dashboard: str, grpc_address: str, probe: str):
    rpc = Rpc(grpc_address)

    def without_a_window(method: str, **fields):
        # Made before there are threads, as all that has to do with reflection.
        message = rpc.request(method, **fields).SerializeToString()
        return lambda: calls_without_a_window(grpc_address, f"/mcpscope.v1.{method.replace('.', '/')}", message)

    record = rpc.stub("MetricsService.RecordMetrics")
    value = rpc.request("MetricsService.RecordMetrics", name="message_queue_depth", value=1, labels={"server": "x"})

    listeners = {"dashboard": dashboard, "grpc": grpc_address, "probe": probe}
    attacks = {
        "scrape": lambda: ask(dashboard, "/metrics"),
        "scrape_probe": lambda: ask(probe, "/metrics"),
        "traces": lambda: ask(dashboard, "/api/v1/traces?limit=1000"),
        "leave": lambda: ask_and_leave(dashboard),
        "nonsense": lambda: websocket_nonsense(dashboard),
        "clear": lambda: rpc("TraceService.ClearTraces", timeout=30),
        "reset": lambda: rpc("MetricsService.ResetMetrics", timeout=30),
        "list": lambda: rpc("TraceService.ListTraces", timeout=30),
        "snapshot": lambda: rpc("DashboardService.GetSnapshot", timeout=30),
        "record": lambda: record(itertools.repeat(value, 1000), timeout=30),
    }
    attacks |= {f"garbage_{name}": lambda at=at: garbage(at) for name, at in listeners.items()}
    attacks |= {f"huge_{name}": lambda at=at: huge_head(at) for name, at in listeners.items()}
    held = {"no_reading": lambda: websocket_that_never_reads(dashboard)}
    held |= {"many_sockets": lambda: websocket_held(dashboard), "watch_probe": lambda: watch_probe(probe)}
    head = request("/metrics", ("Host", "localhost"), ("X", "x" * 1000))
    heads = {"dashboard": head, "grpc": PREFACE + CLOSED_WINDOW, "probe": head}
    held |= {f"slow_head_{name}": lambda at=at, name=name: slow_head(at, heads[name]) for name, at in listeners.items()}
    for method in ("DashboardService.WatchSnapshots", "TraceService.WatchTraces", "DashboardService.GetSnapshot"):
        held |= {f"no_window_{method}": without_a_window(method)}
    held |= {"no_window_list": without_a_window("TraceService.ListTraces", filter={"limit": 1000})}
    for name, act in (attacks | held).items():
        for _ in range(next((number for start, number in HELD.items() if name.startswith(start)), 1)):
            threading.Thread(target=forever, args=(name, act), daemon=True).start()


if __name__ == "__main__":
    attack(*sys.argv[1:])
    sys.stdin.read()
    stop.set()
    time.sleep(0.2)
    print(json.dumps(done), flush=True)
    # Whatever still waits for an answer does not matter any more.
    os._exit(0)
