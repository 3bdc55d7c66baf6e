"""Calls, sessions and relays that end in unusual ways: each is counted as what it is, and nothing hangs."""

import gzip
import json
import os
import pty
import re
import signal
import subprocess

import httpx
import pytest

from harness import free_port, settles_at, wait_until
from upstream import call, result_for

NAME = "ends"
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


def post(url: str, message, **headers: str) -> httpx.Response:
    return httpx.post(url, content=json.dumps(message), headers=JSON | headers, trust_env=False, timeout=10)


def test_readiness_follows_the_upstream(instances):
    port = free_port()
    proxy = instances.proxy(f"http://127.0.0.1:{port}/mcp", "--name", NAME)
    assert post(proxy.proxy, call()).status_code == 502
    answer = proxy.get("readyz")
    assert answer.status_code == 503
    assert answer.json()["missing"][0]["name"] == "traffic" and str(port) in answer.json()["missing"][0]["reason"]
    assert proxy.get("api/v1/health").json()["components"]["transports"]["status"] == "critical"
    # No request comes any more; all the same it finds out that the server is back.
    server = subprocess.Popen(["python3", "-m", "http.server", "--bind", "127.0.0.1", str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: proxy.get("readyz").status_code == 200, within=10, what="readiness")
    finally:
        server.kill()
        server.wait()


def test_a_compressed_answer_is_no_error(instances, upstream):
    def answer(exchange):
        body = gzip.compress(json.dumps(result_for(exchange.json())).encode())
        exchange.send_response(200)
        exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Content-Encoding", "gzip")
        exchange.send_header("Content-Length", str(len(body)))
        exchange.end_headers()
        exchange.wfile.write(body)

    upstream.answer = answer
    proxy = instances.proxy(upstream.url, "--name", NAME)
    assert post(proxy.proxy, call("probe", id=7)).json()["id"] == 7
    settles_at({("probe", "ok"): 1}, lambda: proxy.metrics().tool_calls(server=NAME))
    assert proxy.metrics().sum("mcpscope_component_errors_total") == 0
    assert proxy.metrics().sum("mcpscope_dropped_total", what="encoded_message") == 1


def test_a_redirected_call_counts_once(instances, upstream):
    def answer(exchange):
        if exchange.path == "/mcp":
            exchange.send_response(307)
            exchange.send_header("Location", "/mcp/")
            exchange.send_header("Content-Length", "0")
            exchange.end_headers()
        else:
            exchange.answer_json(result_for(exchange.json()))

    upstream.answer = answer
    proxy = instances.proxy(upstream.url, "--name", NAME)
    with httpx.Client(trust_env=False, follow_redirects=True, timeout=10) as client:
        assert client.post(proxy.proxy, json=call("probe"), headers=JSON).status_code == 200
    settles_at({("probe", "ok"): 1}, lambda: proxy.metrics().tool_calls(server=NAME))


def test_an_answer_that_breaks_off_in_a_session(instances, upstream):
    def answer(exchange):
        exchange.send_response(200)
        exchange.send_header("Content-Type", "application/json")
        exchange.send_header("Content-Length", "1000")
        exchange.end_headers()
        exchange.wfile.write(b'{"jsonrpc":')
        exchange.hang_up()

    upstream.answer = answer
    proxy = instances.proxy(upstream.url, "--name", NAME)
    with pytest.raises(httpx.HTTPError):
        post(proxy.proxy, call("probe"), **{"Mcp-Session-Id": "s"})
    settles_at({("probe", "error"): 1}, lambda: proxy.metrics().tool_calls(server=NAME))


def test_a_call_outside_of_a_session_times_out(instances, upstream):
    upstream.answer = lambda exchange: exchange.wait_for_hang_up(20)
    proxy = instances.spawn(
        *("proxy", "--upstream", upstream.url, "--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0", "--name", NAME),
        env=instances.variables() | {"MCPSCOPE_TRACING_CALL_TIMEOUT": "1s"},
    )
    with httpx.Client(trust_env=False) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(proxy.proxy, json=call("probe"), headers=JSON, timeout=4)
        settles_at({("probe", "timeout"): 1}, lambda: proxy.metrics().tool_calls(server=NAME))


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_childs_end_ends_the_relay(instances, ends):
    """The client does not read, so that output is left when the child is gone."""
    script = "head -c 100000 /dev/zero; exit 3"
    instance = instances.run(command=["sh", "-c", script])
    wait_until(lambda: not children(instance.process.pid), what="the end of the child")
    assert instance.process.poll() is None, "it still has output for the client"
    instance.process.send_signal(ends)
    assert instance.wait(5) == 3


def test_a_grandchild_that_keeps_writing_does_not_keep_it_alive(instances):
    script = "(while echo y; do :; done) & exit 3"
    instance = instances.run(command=["sh", "-c", script], dashboard="off", stdout=subprocess.DEVNULL, ready=False)
    assert instance.wait(5) == 3


def test_a_ready_file_that_cannot_be_written_starts_nothing(instances, tmp_path):
    started = tmp_path / "started"
    done = instances.finish("run", "--ready-file", "/nonexistent/x", "--", "sh", "-c", f"touch {started}")
    assert done.returncode == 64 and b"ready file" in done.stderr
    assert not started.exists()


def test_a_server_that_ends_with_calls_unanswered_is_told_of(instances):
    instance = instances.run("--name", "short", command=["sh", "-c", "read line; exit 3"], dashboard="off")
    instance.process.stdin.write(json.dumps(call()).encode() + b"\n")
    instance.process.stdin.flush()
    assert instance.wait(5) == 3
    assert re.search(r"calls unanswered.*short.*exit status: 3.*unanswered=1", instance.stderr()), instance.stderr()


def test_the_flag_beats_a_dashboard_that_is_switched_off(instances):
    off = instances.variables() | {"MCPSCOPE_DASHBOARD_ENABLED": "false"}
    instance = instances.run(command=["cat"], env=off)
    assert instance.get("healthz").status_code == 200


def test_variables_of_a_kubernetes_service_are_no_mistake(instances):
    service = {"MCPSCOPE_SERVICE_HOST": "10.0.0.1", "MCPSCOPE_PORT": "tcp://10.0.0.1:80", "MCPSCOPE_PORT_80_TCP": "x"}
    instances.run(command=["cat"], env=instances.variables() | service)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("run", "npx", "-y", "foo"), "put `--` before the server's command"),
        (("proxy", "--upstream", "localhost:3001/mcp", "--listen", "127.0.0.1:0"), "did you mean http://localhost:3001/mcp?"),
    ],
)
def test_likely_mistakes_get_the_next_step(instances, arguments, hint):
    done = instances.finish(*arguments)
    assert done.returncode == 64 and hint in done.stderr.decode()


def test_the_demo_prints_figures_on_a_terminal(instances):
    ours, theirs = pty.openpty()
    instance = instances.spawn("demo", "--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0", stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while b"tool calls/s" not in shown:
            shown += os.read(ours, 4096)
    finally:
        instance.process.send_signal(signal.SIGINT)
        assert instance.wait(8) == 0
        os.close(ours)


def children(pid: int) -> list[int]:
    """Those that are alive: a zombie has ended."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found
