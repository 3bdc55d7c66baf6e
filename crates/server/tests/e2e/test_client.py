"""The client commands: what they say, how they find an instance, and how they end."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from urllib.parse import urlsplit

import httpx
import pytest

from harness import settles_at, wait_until
from upstream import call, result_for

NAME = "api"
# A tick of the hub that a test can wait for.
QUICK = {"MCPSCOPE_DASHBOARD_UPDATE_INTERVAL": "500ms", "MCPSCOPE_METRICS_AGGREGATION_INTERVAL": "1s"}
COMMANDS = (["status"], ["health"], ["metrics"], ["traces"])
CRITICAL = {
    *("registry_operations_per_second", "session_creation_latency_ms", "transport_connection_count"),
    *("tool_call_duration_ms", "error_rates_by_component", "active_sessions_count", "message_queue_depth"),
}
# A tool whose name would clear the screen, set the window's title and turn the direction of writing.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u009b2J\u202e"
ESC = b"\x1b"


@pytest.fixture(autouse=True)
def own_temporary_directory(monkeypatch, tmp_path):
    """The runtime directory is elsewhere if nothing names one: no instance of the machine's may be found there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def ask(instances):
    """Runs a client command that must succeed and say nothing on stderr; its stdout."""

    def ask(*arguments: str) -> str:
        done = instances.finish(*arguments)
        assert (done.returncode, done.stderr.decode()) == (0, ""), done
        return done.stdout.decode()

    return ask


@pytest.fixture
def refused(instances):
    """Runs a client command that must fail; its exit code and stderr."""

    def refused(*arguments: str) -> tuple[int, str]:
        done = instances.finish(*arguments)
        assert done.stdout == b""
        return done.returncode, done.stderr.decode()

    return refused


def ask_json(ask, *arguments: str):
    text = ask(*arguments, "--output", "json")
    assert text.count("\n") == 1 and text.endswith("\n"), "one line"
    return json.loads(text)


@pytest.fixture
def demo(instances):
    """A demo that has called its tools."""
    demo = instances.demo(env=instances.variables() | QUICK)
    wait_until(lambda: b"\necho " in instances.finish("status").stdout, what="the tool in the status")
    return demo


@pytest.fixture
def start_proxy(instances, upstream):
    """Starts a proxy and sends it a good, a failed and a slow call."""

    def answer(exchange):
        tool = exchange.json()["params"]["name"]
        if tool == "slow":
            time.sleep(0.2)
        answer = result_for(exchange.json())
        answer["result"]["isError"] = tool == "bad"
        exchange.answer_json(answer)

    def start_proxy(**variables: str):
        proxy = instances.proxy(upstream.url, "--name", NAME, env=instances.variables() | QUICK | variables)
        for tool in ("good", "bad", "slow"):
            send(proxy, tool)
        settles_at(3, lambda: proxy.metrics().sum("mcpscope_tool_call_duration_seconds_count"))
        return proxy

    upstream.answer = answer
    return start_proxy


@pytest.fixture
def proxy(start_proxy):
    """A proxy that has seen a good, a failed and a slow call."""
    return start_proxy()


def send(proxy, tool: str, headers: dict[str, str] | None = None):
    assert httpx.post(proxy.proxy, json=call(tool), headers=headers, trust_env=False).status_code == 200


def column(text: str, name: str) -> list[str]:
    """The values under a title that stands at the beginning of a line or after two spaces, left-aligned."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if re.search(rf"(^|  ){re.escape(name)}(  |$)", line))
    start = lines[at].index(name)
    rows = lines[at + 1 :]
    rows = rows[: rows.index("")] if "" in rows else rows
    return [re.split(r"  |$", row[start:])[0] for row in rows]


# --- what they say


def test_status_shows_health_and_tools(demo, ask):
    text = ask("status")
    first, *_ = text.splitlines()
    summary = r"(healthy|degraded|warning|critical)   up \d+ .*   memory .* MiB .*   CPU .* %   connections \d+"
    assert re.fullmatch(summary, first)
    assert {"registry", "sessions", "transports", "observability"} <= set(column(text, "component"))
    assert "echo" in column(text, "tool")
    assert "demo-stdio" in column(text, "process")


def test_status_as_json_is_the_dashboard(demo, ask):
    dashboard = ask_json(ask, "status")
    assert set(demo.get("api/v1/dashboard").json()) - {"chaos_status", "alerts"} <= set(dashboard)
    assert CRITICAL <= set(dashboard["metrics"])
    assert dashboard["system_health"]["overall"] in {"healthy", "degraded", "warning", "critical"}


def test_health(demo, ask):
    text = ask("health")
    assert re.match(r"(healthy|degraded|warning|critical)   \d+ % of the components are healthy   up \d", text)
    health = ask_json(ask, "health")
    assert set(health["components"]) == set(column(text, "component"))
    assert set(demo.get("api/v1/health").json()) <= set(health)


def test_metrics(proxy, ask):
    assert set(ask_json(ask, "metrics")) == CRITICAL | {"timestamp", "system_uptime", "memory_usage", "cpu_usage"}
    text = ask("metrics")
    assert CRITICAL == set(re.findall(r"^(\w+)  (?:rate|histogram|gauge|ratio)", text, re.M))
    assert re.search(r"^\d+ series at zero$", text, re.M)
    one = ask_json(ask, "metrics", "tool_call_duration_ms")
    assert list(one) == ["tool_call_duration_ms"]
    assert {series["labels"]["tool"] for series in one["tool_call_duration_ms"]["series"]} == {"good", "bad", "slow"}
    text = ask("metrics", "tool_call_duration_ms")
    assert sorted(column(text, "tool")) == ["bad", "good", "slow"]
    assert "at zero" not in text


def test_the_status_leaves_no_tool_out(start_proxy, ask):
    """Nor rare outcomes: the dashboard, limited to few series, does."""
    proxy = start_proxy(MCPSCOPE_DASHBOARD_MAX_METRICS="1")
    dashboard = ask_json(ask, "status")
    assert sum(len(dashboard["metrics"][name]["series"]) for name in CRITICAL) == 1

    def failed():
        send(proxy, "bad")  # so that there is one in whatever window was the last
        return re.search(rf"^bad +{NAME} +\S+ +100 %", ask("status"), re.M)

    wait_until(failed, what="the failed call")
    assert sorted(column(ask("status"), "tool")) == ["bad", "good", "slow"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["slow", "bad", "good"]),
        (["--limit", "2"], ["slow", "bad"]),
        (["--status", "error"], ["bad"]),
        (["--status", "ok", "--tool", "bad"], []),
        (["--tool", "good"], ["good"]),
        (["--min-duration", "150ms"], ["slow"]),
        (["--operation", "tools/call good"], ["good"]),
        (["--method", "tools/call", "--server", NAME, "--since", "1h"], ["slow", "bad", "good"]),
        (["--server", "other"], []),
        (["--text", "CALL GOOD"], ["good"]),
        (["--injected"], []),
        (["--injected", "true"], []),
        (["--injected", "false"], ["slow", "bad", "good"]),
        (["--until", "1h"], []),
        (["--since", "1h", "--until", "0"], ["slow", "bad", "good"]),
        (["--session", "other"], []),
    ],
)
def test_traces(proxy, ask, options, expected):
    traces = ask_json(ask, "traces", *options)
    assert [trace["tool"] for trace in traces] == expected
    text = ask("traces", *options)
    if expected:
        assert column(text, "operation") == [f"tools/call {tool}" for tool in expected]
        assert column(text, "id") == [trace["id"] for trace in traces]
    else:
        assert text == "no traces\n"


def test_trace(proxy, ask, refused):
    (listed,) = ask_json(ask, "traces", "--tool", "bad")
    assert ask_json(ask, "trace", listed["id"]) == listed
    text = ask("trace", listed["id"])
    assert re.match(r"tools/call bad   error   [\d.]+ (µs|ms|s)\n", text)
    assert f" {listed['id']}\n" in text and "█" in text
    for name, value in listed["spans"][0]["attributes"].items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(value)}$", text, re.M), name
    for line in text.splitlines():
        assert "█" not in line or len(line) <= 80, "bars fit 80 columns where there is no terminal"
    for span in listed["spans"]:
        assert re.search(rf"^ *{re.escape(span['name'])}  {span['kind']} ", text, re.M), span["kind"]
    ids = [trace["id"] for trace in ask_json(ask, "traces")]
    beginning = next(listed["id"][:n] for n in range(4, 33) if sum(id.startswith(listed["id"][:n]) for id in ids) == 1)
    for digits in (beginning, beginning.upper()):
        assert ask_json(ask, "trace", digits) == listed
    unknown = "0af7651916cd43dd8448eb211c80319c"
    code, stderr = refused("trace", unknown)
    assert code == 64 and unknown in stderr
    code, stderr = refused("trace", "xyz")
    assert code == 64 and "32" in stderr and "xyz" in stderr


def test_a_trace_leads_to_its_session(proxy, ask, instances):
    # A session is known once its first call has been answered.
    for tool, session in (("first", "a"), ("first", "b"), ("second", "a"), ("second", "b"), ("third", "a")):
        send(proxy, tool, {"Mcp-Session-Id": session})
    wait_until(lambda: len(ask_json(ask, "traces")) == 8, what="the traces")
    (third,) = ask_json(ask, "traces", "--tool", "third")
    (session,) = re.findall(r"^session +(.+)$", ask("trace", third["id"]), re.M)
    assert session == third["session"] == "a"

    def tools() -> list[str]:
        return [trace["tool"] for trace in ask_json(ask, "traces", "--session", session)]

    assert tools()[:2] == ["third", "second"]
    lines = Following(instances, "traces", "--session", session, "--limit", "1", "--output", "json")
    assert json.loads(lines.line()) == third
    for tool, other in (("fourth", "b"), ("fifth", "a")):
        send(proxy, tool, {"Mcp-Session-Id": other})
    assert json.loads(lines.line())["tool"] == "fifth"
    lines.process.send_signal(signal.SIGINT)
    assert lines.instance.wait() == 130
    assert tools()[:3] == ["fifth", "third", "second"]


def test_an_unknown_metric_is_answered_with_those_there_are(proxy, refused):
    code, stderr = refused("metrics", "speed")
    assert code == 64
    assert "speed" in stderr and all(name in stderr for name in CRITICAL)


def test_what_is_off_is_said(instances, upstream, refused):
    off = {"MCPSCOPE_METRICS_ENABLED": "false", "MCPSCOPE_TRACING_ENABLED": "false"}
    instances.proxy(upstream.url, env=instances.variables() | off)
    for arguments, what in ((["metrics"], "metrics"), (["traces"], "traces|tracing"), (["traces", "--follow"], "tra")):
        code, stderr = refused(*arguments)
        assert code == 69, (arguments, stderr)
        assert re.search(what, stderr), stderr


# --- what a terminal gets


def test_nothing_from_the_wire_reaches_the_terminal_as_it_is(proxy, ask):
    send(proxy, HOSTILE)
    (trace,) = wait_until(lambda: ask_json(ask, "traces", "--limit", "1"), what="the trace")
    assert trace["tool"] == HOSTILE, "whole, for programs"
    for command in (["metrics", "tool_call_duration_ms"], ["trace", trace["id"]], *COMMANDS):
        for output in ("text", "json"):
            stdout = ask(*command, "--output", output)
            assert not re.search(r"[\0-\x09\x0b-\x1f\x7f-\x9f]", stdout), command
            assert output == "json" or "\u202e" not in stdout, command
    assert r"\u{1b}[2J\u{1b}]0;owned" in ask("traces")


def on_a_terminal(instances, *arguments: str, columns: int, **variables: str) -> bytes:
    """What a command prints on a terminal of that width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = instances.variables() | {"TERM": "xterm"} | variables
    env = {name: value for name, value in env.items() if value}
    command = instances.spawn(*arguments, ready=False, stdout=slave, env=env)
    os.close(slave)
    text = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody has the terminal open any more
        while select.select([master], [], [], 10)[0] and (part := os.read(master, 65536)):
            text += part
    os.close(master)
    assert command.wait() == 0, command.stderr()
    return text.replace(b"\r\n", b"\n")


def test_colours_are_for_terminals_and_can_be_switched_off(proxy, instances, ask):
    plain = {"NO_COLOR": "", "CLICOLOR": "", "CLICOLOR_FORCE": "", "CI": ""}
    for command in COMMANDS:
        assert ESC not in ask(*command).encode(), command
        assert ESC in on_a_terminal(instances, *command, columns=200, **plain), command
        assert ESC not in on_a_terminal(instances, *command, columns=200, **plain | {"NO_COLOR": "1"}), command


def test_lines_are_cut_to_the_terminal_only(proxy, instances, ask):
    send(proxy, long := "x" * 150)
    wait_until(lambda: long in ask("traces"), what="the trace")
    shown = on_a_terminal(instances, "traces", columns=100, NO_COLOR="1").decode()
    assert "…" in shown and max(len(line) for line in shown.splitlines()) == 100
    (trace,) = ask_json(ask, "traces", "--limit", "1")
    assert trace["id"] in shown, "to be copied"


# --- how they find an instance


def test_of_several_instances_one_must_be_chosen(instances, upstream, ask, refused):
    one = instances.proxy(upstream.url, "--name", "one")
    assert ask_json(ask, "status")["system_health"], "the only one is meant"
    two = instances.proxy(upstream.url, "--name", "two")
    code, stderr = refused("status")
    assert code == 64
    for name, instance in (("one", one), ("two", two)):
        assert f"--addr {instance.grpc}   {name} (proxy, process {instance.process.pid})" in stderr
        ask("status", "--name", name)
        ask("status", "--addr", instance.grpc)
    code, stderr = refused("status", "--name", "three")
    assert code == 69 and "three" in stderr and one.grpc in stderr
    # One that ends takes its note along; one that is killed cannot, and is not found all the same.
    two.stop()
    ask("status")
    one.process.kill()
    one.wait()
    code, stderr = refused("status", "--name", "one")
    assert code == 69 and "none does" in stderr


def test_an_instance_that_does_not_see_the_runtime_directory_is_found(instances, upstream, ask):
    """An MCP client starts `mcpscope run` with hardly any variables."""
    env = {name: value for name, value in instances.variables().items() if name != "XDG_RUNTIME_DIR"}
    instances.proxy(upstream.url, "--name", "hidden", env=env)
    ask("status", "--name", "hidden")


def test_nobody_there_is_69_and_says_what_to_do(refused):
    for command in COMMANDS:
        code, stderr = refused(*command, "--addr", "127.0.0.1:1")
        assert code == 69
        assert "127.0.0.1:1" in stderr and "mcpscope demo" in stderr and "--addr" in stderr


def test_something_else_there_is_69(refused, upstream):
    upstream.answer = lambda exchange: exchange.answer_json({})
    code, stderr = refused("status", "--addr", f"127.0.0.1:{upstream.server.server_port}")
    assert code == 69 and "does not speak gRPC" in stderr, stderr


def test_another_of_the_instance_s_ports_is_69(refused, proxy):
    """The dashboard speaks HTTP/2 too, and answers in JSON."""
    for command in COMMANDS:
        code, stderr = refused(*command, "--addr", urlsplit(proxy.dashboard).netloc)
        assert code == 69 and "does not speak gRPC" in stderr, (command, code, stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--addr", "nonsense"],
        ["status", "--output", "xml"],
        ["status", "--addr", "127.0.0.1:1", "--name", "x"],
        ["traces", "--status", "bad"],
        ["traces", "--min-duration", "soon"],
        ["traces", "--limit", "0"],
        ["trace"],
    ],
)
def test_bad_usage_is_64(refused, arguments):
    code, stderr = refused(*arguments)
    assert code == 64 and stderr


# --- --follow


class Following:
    """A command that goes on, and the lines it has printed so far."""

    def __init__(self, instances, *arguments: str):
        self.instance = instances.spawn(*arguments, "--follow", ready=False)
        self.process = self.instance.process

    def line(self) -> str:
        line = self.process.stdout.readline().decode()
        assert line.endswith("\n"), self.instance.stderr()
        return line.rstrip("\n")


def test_following_traces(proxy, instances):
    """Those asked for come first, new ones as they end; text has its titles once."""
    rows = Following(instances, "traces", "--limit", "1", "--method", "tools/call")
    lines = Following(instances, "traces", "--limit", "1", "--tool", "bad", "--output", "json")
    assert rows.line().split() == ["time", "(UTC)", "status", "duration", "operation", "server", "id"]
    assert "tools/call slow" in rows.line()
    assert json.loads(lines.line())["tool"] == "bad"
    for tool in ("good", "bad"):
        send(proxy, tool)
    assert [re.search(r"tools/call (\w+)", rows.line())[1] for _ in range(2)] == ["good", "bad"]
    assert json.loads(lines.line())["tool"] == "bad"
    for following in (rows, lines):
        following.process.send_signal(signal.SIGINT)
        assert following.instance.wait() == 130
        assert following.instance.stderr() == ""


@pytest.mark.parametrize("command", ["status", "health"])
def test_following_what_is_taken_anew(proxy, instances, command):
    lines = Following(instances, command, "--output", "json")
    first, second = (json.loads(lines.line()) for _ in range(2))
    assert first["timestamp"] < second["timestamp"]
    text = Following(instances, command)
    times = [line for line in (text.line() for _ in range(60)) if re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} UTC", line)]
    assert len(times) > 1
    for following in (lines, text):
        following.process.send_signal(signal.SIGINT)
        assert following.instance.wait() == 130


def test_the_end_of_the_instance_is_69(proxy, instances):
    following = Following(instances, "health", "--output", "json")
    following.line()
    proxy.process.terminate()
    following.process.stdout.read()
    assert following.instance.wait() == 69
    assert proxy.grpc in following.instance.stderr()
    assert proxy.wait() == 0


def test_a_reader_that_has_seen_enough_is_no_error(proxy, instances):
    following = Following(instances, "status")
    following.line()
    following.process.stdout.close()
    assert following.instance.wait() == 0
    assert following.instance.stderr() == ""
    # Not even where nobody reads from the beginning.
    reader, writer = os.pipe()
    os.close(reader)
    command = instances.spawn("metrics", ready=False, stdout=writer)
    os.close(writer)
    assert command.wait() == 0
    assert command.stderr() == ""
