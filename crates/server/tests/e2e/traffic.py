"""As much traffic as a relay can take: a server, and clients that call it through the relay until stdin ends.

A process of its own, so that whoever measures does not wait for its threads. It says the server's address, is told the
relay's, and says in the end how many calls were answered.
"""

import itertools
import json
import sys
import threading

import httpx

from upstream import Upstream, call

CLIENTS = 8
# Small ones for the work that each message is, large ones for what it takes to look at them.
SIZES = [10, 1 << 20]

stop = threading.Event()
answered = itertools.count()


def answer(exchange):
    size = SIZES[exchange.json()["id"]]
    exchange.answer_json({"jsonrpc": "2.0", "id": 0, "result": {"content": [{"type": "text", "text": size * "x"}]}})


def repeat(url: str, kind: int):
    with httpx.Client(trust_env=False, timeout=60) as client:
        while not stop.is_set():
            assert len(client.post(url, json=call(id=kind)).content) > SIZES[kind]
            next(answered)


if __name__ == "__main__":
    with Upstream() as upstream:
        upstream.answer = answer
        print(json.dumps(upstream.url), flush=True)
        relay = json.loads(sys.stdin.readline())
        threads = [threading.Thread(target=repeat, args=(relay, number % len(SIZES))) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join()
    print(json.dumps(next(answered)), flush=True)
