"""mcpscope is killed in the middle of an experiment: nothing of it is left, and the next start says so."""

import http.client
import json
import pathlib
import sys
from urllib.parse import urlsplit

import pytest

import echo_peer
from chaos import LONG, Chaos
from harness import marked, wait_until
from serving import HEADERS, state
from upstream import call

PEER = [sys.executable, str(pathlib.Path(__file__).with_name("echo_peer.py"))]
HELD = 5

FAULTS = {
    "latency_injection": {"delay": "10m", "direction": "to_server"},
    "network_partition": {"intensity": 1},
    "packet_loss": {"intensity": 1, "direction": "to_server"},
    "hang": {},
    "slow_stream": {"bytes_per_second": 1},
}


def restarted(instances, environment, folder):
    """The next run on the same data, once nothing of the earlier one is left."""
    wait_until(lambda: not marked(environment.mark), within=LONG, what="the end of every process")
    return instances.run("--data", str(folder / "data"), "--name", "peer", command=[*PEER, str(folder / "again")])


def closed(instance, folder, scenario: str):
    """The record of the experiment is closed, in all places that tell of it."""
    assert "mcpscope: an earlier run ended in the middle of experiment 1; nothing of it is left\n" in instance.stderr()
    chaos = Chaos(instance, folder / "data")
    (ended,) = chaos.ask("GET", "/history").json()
    assert (ended["id"], ended["name"], ended["status"]) == (1, scenario, "aborted")
    assert not [*folder.glob("data/peer/chaos/*.running.jsonl")]
    assert chaos.journal(1)[0]["scenario"] == scenario
    assert chaos.journal(1)[-1]["record"] == "end"
    status = chaos.status()
    assert (status["active_tests"], status["total_history"], status["emergency_stop"]) == (0, 1, False)
    # It holds nothing back, and another one begins.
    instance.process.stdin.write(echo_peer.packed(call()) + b"\n")
    instance.process.stdin.flush()
    assert json.loads(instance.process.stdout.readline())["id"] == 1
    id = chaos.start("rpc_error", tool="none")
    assert id == 2
    chaos.stop(id)


@pytest.mark.parametrize("scenario", FAULTS)
def test_over_stdio(scenario, instances, environment, tmp_path):
    options = ("--data", str(tmp_path / "data"), "--name", "peer")
    instance = instances.run(*options, command=[*PEER, str(tmp_path / "received")])
    chaos = Chaos(instance, tmp_path / "data")
    id = chaos.start(scenario, **FAULTS[scenario])
    for number in range(HELD):
        instance.process.stdin.write(echo_peer.packed(call(id=number)) + b"\n")
    instance.process.stdin.flush()
    chaos.has_hit(id, 1 if scenario in ("network_partition", "slow_stream") else HELD)
    instance.process.kill()
    instance.wait(LONG)
    answers = instance.process.stdout.read()
    assert answers.count(b"\n") == 0, "what was withheld is gone with it"
    closed(restarted(instances, environment, tmp_path), tmp_path, scenario)


@pytest.mark.parametrize("scenario", ["latency_injection", "network_partition"])
def test_over_http(scenario, instances, environment, upstream, tmp_path):
    peer = upstream.answer = echo_peer.OverHttp(streams=False)
    instance = instances.proxy(upstream.url, "--data", str(tmp_path / "data"), "--name", "peer")
    chaos = Chaos(instance, tmp_path / "data")
    id = chaos.start(scenario, **FAULTS[scenario])
    address = urlsplit(instance.proxy)
    connections = []
    for number in range(HELD):
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=LONG)
        connection.request("POST", address.path, json.dumps(call(id=number)), HEADERS)
        connections.append(connection)
    chaos.has_hit(id, HELD)
    instance.process.kill()
    instance.wait(LONG)
    for connection in connections:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            connection.getresponse()
        connection.close()
    assert peer.received == []
    closed(restarted(instances, environment, tmp_path), tmp_path, scenario)


def test_a_stopped_server(instances, environment, tmp_path):
    options = ("--data", str(tmp_path / "data"), "--name", "peer", "--restart", "on-failure")
    instance = instances.run(*options, command=[*PEER, str(tmp_path / "received")])
    chaos = Chaos(instance, tmp_path / "data")
    (server,) = [pid for pid, command in marked(environment.mark).items() if command.startswith(f"{sys.executable} ")]
    chaos.start("process_crash", signal="stop")
    wait_until(lambda: state(server) == "T", within=LONG, what="a standstill")
    instance.process.kill()
    instance.wait(LONG)
    closed(restarted(instances, environment, tmp_path), tmp_path, "process_crash")


def test_what_another_instance_of_the_name_left_is_closed_by_whoever_starts_next(instances, environment, tmp_path):
    options = ("--data", str(tmp_path / "data"), "--name", "peer")
    one = instances.run(*options, command=[*PEER, str(tmp_path / "one")])
    two = instances.run(*options, command=[*PEER, str(tmp_path / "two")])
    chaos = Chaos(two, tmp_path / "data")
    chaos.start("hang", **FAULTS["hang"])
    two.process.kill()
    two.wait(LONG)
    one.process.stdin.close()
    assert one.wait(LONG) == 0
    beside = tmp_path / "data" / "peer.2" / "chaos"
    assert [*beside.glob("*.running.jsonl")] == [beside / "1.running.jsonl"]
    again = restarted(instances, environment, tmp_path)
    said = f"mcpscope: an earlier run ended in the middle of experiment 1 of {beside}; nothing of it is left\n"
    assert said in again.stderr()
    assert [*beside.glob("*.running.jsonl")] == []
    assert json.loads((beside / "1.jsonl").read_text().splitlines()[-1])["report"]["status"] == "aborted"
    # It is none of its own.
    assert Chaos(again, tmp_path / "data").ask("GET", "/history").json() == []
