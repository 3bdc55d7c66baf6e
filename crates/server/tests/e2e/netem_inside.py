"""latency_injection and packet_loss with backend=netem, where the kernel has it: what clients see, and that it ends.

Not collected by itself: `test_chaos_netem.py` runs it, inside a kernel that has netem.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from chaos import LONG, Chaos
from harness import MARK, free_port, wait_until
from processes import GONE, helper, helpers, proc, records, watched
from serving import SERVED
from upstream import call

pytestmark = [pytest.mark.usefixtures("alone"), pytest.mark.timeout(120)]

DELAY = 0.25
# What this machine, which is slow, may need beside that.
SLACK = 0.3
# Within which what was on its way has to be there once the fault is over, in seconds. TCP by itself would take from 0.2 on.
AT_ONCE = 0.5
NOBODY = 65534
SWEPT = "mcpscope: an earlier run ended in the middle of experiment"
LIMIT = pathlib.Path("/proc/sys/user/max_net_namespaces")


def echo(exchange):
    asked = exchange.json()
    text = asked["params"]["arguments"]["text"]
    exchange.answer_json({"jsonrpc": "2.0", "id": asked["id"], "result": {"content": [{"type": "text", "text": text}]}})


class Client:
    """Calls over one connection, which it keeps."""

    def __init__(self, instance):
        self.http = httpx.Client(trust_env=False, timeout=LONG)
        self.url = instance.proxy
        self.last = 0

    def call(self, text: str = "hello") -> float:
        """The time that it took, in seconds; the answer is what was sent."""
        self.last += 1
        params = {"name": "echo", "arguments": {"text": text}}
        body = {"jsonrpc": "2.0", "id": self.last, "method": "tools/call", "params": params}
        began = time.monotonic()
        answer = self.http.post(self.url, json=body)
        took = time.monotonic() - began
        assert answer.json()["result"]["content"][0]["text"] == text
        return took


def has_namespaces() -> bool:
    """Whether there are network namespaces beside the first one: of a single one that is allowed none can be had then."""
    with limited(1):
        return subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0


@contextlib.contextmanager
def limited(most: int):
    """So many network namespaces are allowed."""
    before = LIMIT.read_text()
    LIMIT.write_text(str(most))
    yield
    LIMIT.write_text(before)


def text(size: int, seed: int) -> str:
    """So many characters, which nothing makes shorter."""
    blocks = (hashlib.sha256(f"{seed} {number}".encode()).hexdigest() for number in range(size // 64 + 1))
    return "".join(blocks)[:size]


@pytest.fixture
def stage(instances, upstream, tmp_path):
    upstream.answer = echo
    data = tmp_path / "data"
    instance = instances.proxy(upstream.url, "--data", str(data), "--name", "netem")
    return instance, Chaos(instance, data)


@pytest.fixture(autouse=True)
def nothing_left(environment):
    """No helper, and no namespace: the kernel does away with them a moment later."""
    yield
    assert helpers(environment) == []
    wait_until(lambda: not has_namespaces(), within=5, what="the end of the namespace")


def test_packets_are_late(stage):
    instance, chaos = stage
    before, during = Client(instance), []
    assert before.call() < 2 * DELAY
    id = chaos.start("latency_injection", backend="netem", delay="250ms")
    after = Client(instance)
    for client in (before, after):
        during += [client.call() for _ in range(3)]
    # Both the request and its answer.
    assert all(2 * DELAY <= took < 2 * DELAY + SLACK for took in during), during
    report = chaos.stop(id)
    assert before.call() < 2 * DELAY and after.call() < 2 * DELAY
    injection = report["injection"]
    assert (injection["packets"]["dropped"], injection["achieved_intensity"]) == (0, 1)
    assert injection["packets"]["sent"] >= 12, injection
    assert (injection["injected"], injection["observed"], injection["connections_chosen"]) == (2, 2, 2)
    family, wanted = "mcpscope_tool_call_duration_seconds_count{", ('tool="echo"', 'injected="true"')
    lines = instance.get("metrics").text.splitlines()
    counted = [line for line in lines if line.startswith(family) and all(label in line for label in wanted)]
    assert [line.rsplit(" ", 1)[1] for line in counted] == ["6"], counted
    chaos.ended(id)
    journal = chaos.journal(id)
    assert [record["record"] for record in journal if record["record"] in ("intent", "process")] == ["intent", "process"]
    assert [record["effect"] for record in journal if record["record"] == "hit"] == ["network", "network"]


def test_delays_are_spread(stage):
    instance, chaos = stage
    client = Client(instance)
    id = chaos.start("latency_injection", backend="netem", min="20ms", max="120ms")
    took = [client.call() for _ in range(30)]
    chaos.stop(id)
    assert min(took) >= 0.04, took
    assert max(took) - min(took) > 0.05, took
    assert 0.1 < sum(took) / len(took) < 0.14 + SLACK, took


@pytest.mark.parametrize("model", ["bernoulli", "gilbert_elliott"])
def test_packets_are_lost_and_all_bytes_arrive(stage, model):
    instance, chaos = stage
    share = 0.1
    # Short ones: where little else is sent each packet of a burst is one that TCP sends again, after a pause twice as long.
    burst = {"burst": 1.5} if model == "gilbert_elliott" else {}
    id = chaos.start("packet_loss", backend="netem", intensity=share, model=model, **burst)

    def calls(number: int):
        client = Client(instance)
        for size in (10, 30_000, 100, 60_000):
            client.call(text(size, number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(calls, range(8)))
    injection = chaos.stop(id)["injection"]
    sent, dropped = injection["packets"]["sent"], injection["packets"]["dropped"]
    lost = dropped / (sent + dropped)
    print(model, sent, dropped, lost)
    assert injection["requested_intensity"] == pytest.approx(share) and injection["achieved_intensity"] == pytest.approx(lost)
    assert sent > 500, injection
    # Four deviations of a binomial one; bursts of two on average make these larger.
    packets = (sent + dropped) / (1 if model == "bernoulli" else 3)
    assert abs(lost - share) < 4 * (share * (1 - share) / packets) ** 0.5, (lost, sent, dropped)


ENDS = ["stop", "emergency_stop", "lease", "killed", "sigstopped"]


@pytest.mark.parametrize("end", ENDS)
def test_what_is_on_its_way_arrives_at_once_when_it_ends(environment, stage, end):
    instance, chaos = stage
    there = Client(instance)
    there.call()
    duration = 5 if end == "lease" else 60
    began = time.monotonic()
    id = chaos.start("packet_loss", backend="netem", intensity=1, duration=f"{duration}s")
    started = time.monotonic()
    pid = helper(environment, instance)
    inside = os.readlink(f"/proc/{pid}/ns/net")
    assert inside != os.readlink("/proc/self/ns/net")
    body = text(50_000, 1)
    pool = ThreadPoolExecutor(1)
    answered = pool.submit(there.call, body)
    chaos.has_hit(id)
    with pytest.raises(TimeoutError):
        answered.result(0.5)
    match end:
        case "stop":
            over = time.monotonic()
            chaos.stop(id)
        case "emergency_stop":
            over = time.monotonic()
            chaos.emergency_stop()
        case "lease":
            over = started + duration
        case "killed":
            over = time.monotonic()
            os.kill(pid, signal.SIGKILL)
        case "sigstopped":
            # A helper that does nothing any more holds nothing up either.
            os.kill(pid, signal.SIGSTOP)
            over = time.monotonic()
            chaos.stop(id)
    answered.result(LONG)
    late = time.monotonic() - over
    if end == "lease":
        assert time.monotonic() - began >= duration
    print(end, f"{late * 1000:.0f} ms")
    assert late < AT_ONCE, late
    assert there.call() < 2 * DELAY
    report = chaos.ended(id)
    status, leak = {"killed": "failed", "lease": "completed"}.get(end, "aborted"), report.get("leak")
    assert (report["status"], leak) == (status, None), report
    packets = report["injection"]["packets"]
    assert packets["dropped"] > 0, report
    wait_until(lambda: not helpers(environment), within=2, what="the end of the helper")


def killed(instance, **_):
    instance.process.kill()


def panic(instance, **_):
    """What a panic is that nobody catches."""
    instance.process.send_signal(signal.SIGABRT)


def sigterm(instance, **_):
    instance.process.terminate()


def emergency_stop(chaos, **_):
    chaos.emergency_stop()


def reload(instance, folder, **_):
    (folder / "chaos.yaml").write_text("chaos_engine: { enabled: false }\n")
    wait_until(lambda: "mcpscope: chaos is off" in instance.stderr(), within=LONG, what="the changed plan")


def target_death(chaos, target, id, **_):
    """The fault outlives it, until it is stopped."""
    target.kill()
    target.wait()
    assert chaos.test(id)["status"] == "running"
    chaos.stop(id)


def ask(instance):
    httpx.post(instance.proxy, json=call(), trust_env=False, timeout=LONG).raise_for_status()


@pytest.fixture
def target(environment):
    """A server that can be killed, and its port."""
    port = free_port()
    marked = os.environ | {MARK: environment.mark}
    with subprocess.Popen([*SERVED, str(port)], stdout=subprocess.PIPE, env=marked) as process:
        try:
            assert process.stdout.readline() == b"serving\n"
            yield process, port
        finally:
            process.kill()


@pytest.mark.parametrize("scenario", ["latency_injection", "packet_loss"])
@pytest.mark.parametrize("end", [killed, panic, sigterm, emergency_stop, reload, target_death])
def test_nothing_is_left_however_it_ends(environment, instances, target, tmp_path, scenario, end):
    process, port = target
    (tmp_path / "mcpscope.yaml").write_text("chaos: { mode: manual }\n")
    options = ("--config", str(tmp_path / "mcpscope.yaml"), "--data", str(tmp_path / "data"), "--name", "netem")
    start = lambda: instances.proxy(f"http://127.0.0.1:{port}/mcp", *options)  # noqa: E731
    instance = start()
    chaos = Chaos(instance, tmp_path / "data")
    was_cut = end in (killed, panic)
    # A helper that ends with mcpscope empties nothing: its packets keep the namespace for as long as they are late.
    delay = "2s" if was_cut else "60s"
    strength = {"delay": delay} if scenario == "latency_injection" else {"intensity": 1}
    id = chaos.start(scenario, backend="netem", **strength)
    with ThreadPoolExecutor(1) as pool, watched(helper(environment, instance)) as ended:
        # So that there is something in the network.
        asked = pool.submit(ask, instance)
        chaos.has_hit(id)
        end(instance=instance, chaos=chaos, folder=tmp_path, target=process, id=id)
        assert ended(GONE), "the helper is still there"
        # Of a server that is gone, or when mcpscope is cut off, there is no answer.
        assert (asked.exception(LONG) is None) == (end in (sigterm, emergency_stop, reload)), asked
    if not was_cut and end != sigterm:
        report = chaos.ended(id)
        assert (report["status"], report["leak"]) == ("aborted", None), report
        instance.process.terminate()
    instance.wait(LONG)

    (tmp_path / "chaos.yaml").unlink(missing_ok=True)
    again = start()
    assert (SWEPT in again.stderr()) == was_cut, again.stderr()
    (test,) = Chaos(again).history()
    assert (test["id"], test["name"], test["status"]) == (id, scenario, "aborted")
    assert not [*tmp_path.glob("data/*/chaos/*.running.jsonl")]
    assert [record for record in records(tmp_path / "data") if record.get("record") == "process"]


def test_nothing_stays_in_the_network_when_it_ends(stage):
    instance, chaos = stage
    client = Client(instance)
    id = chaos.start("latency_injection", backend="netem", delay="60s")
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(client.call, text(30_000, 1))
        chaos.has_hit(id)
        with pytest.raises(TimeoutError):
            answered.result(0.5)
        chaos.stop(id)
        answered.result(AT_ONCE)
    assert chaos.ended(id).get("leak") is None
    wait_until(lambda: not has_namespaces(), within=5, what="the end of the namespace")


def test_a_stream_goes_on_over_the_end(stage, upstream):
    instance, chaos = stage
    told = queue.Queue()

    def stream(exchange):
        exchange.start_events(chunked=True)
        while (event := told.get()) is not None:
            exchange.event(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": event}}))
        exchange.event(json.dumps({"jsonrpc": "2.0", "id": 1, "result": {}}))
        exchange.end_events()

    upstream.answer = stream
    delay = 2
    id = chaos.start("latency_injection", backend="netem", delay=f"{delay}s")
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {}}}
    began = time.monotonic()
    with httpx.Client(trust_env=False, timeout=LONG).stream("POST", instance.proxy, json=body) as answer:
        assert time.monotonic() - began >= 2 * delay
        data = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
        sent = time.monotonic()
        told.put(0)
        assert next(data)["params"]["data"] == 0
        assert time.monotonic() - sent >= delay
        # These are on their way when it ends.
        for event in range(1, 50):
            told.put(event)
        over = time.monotonic()
        chaos.stop(id)
        assert [next(data)["params"]["data"] for _ in range(1, 50)] == [*range(1, 50)]
        told.put(50)
        assert next(data)["params"]["data"] == 50
        told.put(None)
        assert next(data)["result"] == {}
        assert time.monotonic() - over < delay
    report = chaos.ended(id)
    assert (report["status"], report.get("leak")) == ("aborted", None), report


def test_without_privileges(environment, instances, upstream, tmp_path, monkeypatch):
    """Whoever may make a user namespace may do it."""
    program = tmp_path / "mcpscope"
    shutil.copy(environment.mcpscope, program)
    monkeypatch.setattr(environment, "mcpscope", str(program))
    # In this kernel's memory; what is around that is not ours.
    for folder in itertools.takewhile(lambda folder: not folder.is_mount(), tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o011)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    upstream.answer = echo
    data = tmp_path / "data"
    instance = instances.proxy(
        upstream.url, "--data", str(data), "--name", "nobody", user=NOBODY, group=NOBODY, extra_groups=[]
    )
    chaos = Chaos(instance, data)
    assert proc(instance.process.pid, "status").splitlines()[8] == f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}"
    client = Client(instance)
    id = chaos.start("latency_injection", backend="netem", delay="250ms")
    assert client.call() >= 2 * DELAY
    chaos.stop(id)
    report = chaos.ended(id)
    assert (report["status"], report.get("leak")) == ("aborted", None), report
    assert report["injection"]["packets"]["sent"] > 0, report


def test_where_no_more_namespaces_are_allowed_that_is_said(environment, stage):
    instance, chaos = stage
    with limited(0):
        status, why = chaos.refused("packet_loss", backend="netem")
    assert status == 400 and "expected user.max_user_namespaces and user.max_net_namespaces (sysctl)" in why, why
    assert helpers(environment) == []
    id = chaos.start("packet_loss", backend="netem", intensity=0.1)
    Client(instance).call()
    assert chaos.stop(id)["injection"]["packets"]["sent"] > 0
    # That there was one says nothing of the next.
    with limited(0):
        assert chaos.refused("packet_loss", backend="netem") == (status, why)
        assert chaos.refused("packet_loss", "/plan", backend="netem") == (status, why)
    assert chaos.status()["recent_failures"] == [] and helpers(environment) == []


def test_connections_come_and_go_while_it_is_active(stage):
    instance, chaos = stage
    id = chaos.start("latency_injection", backend="netem", delay="10ms")
    stopping = threading.Event()

    def calls(number: int) -> int:
        done = 0
        while not stopping.is_set():
            client = Client(instance)
            for _ in range(3):
                client.call(text(2000, number))
                done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(calls, number) for number in range(4)]
        try:
            chaos.has_hit(id, 12)
            # The second begins and ends in the middle of all that, within the first.
            second = chaos.start("packet_loss", backend="netem", intensity=0.05)
            wait_until(lambda: chaos.injected(second) >= 8 or chaos.test(second)["details"].get("report"), within=LONG)
            told = chaos.test(second)
            assert told["status"] == "running", told
            chaos.stop(second)
            chaos.stop(id)
        finally:
            stopping.set()
        assert all(one.result() >= 3 for one in running)
    for one in (id, second):
        report = chaos.ended(one)
        assert report.get("leak") is None and report["injection"]["injected"] == report["injection"]["observed"], report
    assert json.dumps(chaos.status()["recent_failures"]) == "[]"
