"""`metrics.listen`: `/metrics` on a listener of its own as well, fit for an address that others can reach."""

import json
import re
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from harness import ANY_PORT, settles_at, wait_until
from scrape import Metrics
from upstream import call

FOREIGN = {"Host": "pod-7.mcp.svc.cluster.local:9464"}
LISTEN = "MCPSCOPE_METRICS_LISTEN"
# Connections at a time, and how long one may take to ask.
MAX_CONNECTIONS = 64
HEADER_TIMEOUT = 10


@pytest.fixture
def proxy(instances, upstream):
    return instances.proxy(upstream.url, "--name", "scraped", env=instances.variables() | {LISTEN: ANY_PORT})


def get(url: str, **options) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=10, **options)


def test_it_answers_to_any_host_like_the_dashboard(proxy, promtool):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", proxy.ready["metrics"])
    assert f"metrics {proxy.ready['metrics']}" in proxy.stderr().splitlines()
    assert httpx.post(proxy.proxy, json=call("one"), trust_env=False).status_code == 200
    settles_at({("one", "ok"): 1}, lambda: proxy.metrics().tool_calls(server="scraped"))
    for headers in ({}, FOREIGN):
        answer = get(proxy.ready["metrics"], headers=headers)
        assert answer.status_code == 200
        # One request on each connection, so that nobody can keep one by asking again and again.
        assert answer.headers["connection"] == "close"
        promtool(answer.text)
        metrics = Metrics(answer.text)
        assert metrics.tool_calls(server="scraped") == {("one", "ok"): 1}
        assert {s.name for s in metrics.samples} == {s.name for s in proxy.metrics().samples}


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/ws", "//metrics", "/metrics/x", "/api/v1/metrics"])
def test_there_is_nothing_else(proxy, path):
    answer = get(proxy.ready["metrics"].removesuffix("/metrics") + path)
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "there is nothing under this path; there is /metrics"


def test_nothing_can_be_changed_or_read_by_a_page(proxy):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = httpx.request(method, proxy.ready["metrics"], trust_env=False, timeout=10)
        assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"
    page = get(proxy.ready["metrics"], headers={"Origin": "http://evil.example"})
    assert page.status_code == 403 and "mcpscope_" not in page.text


def test_who_says_nothing_keeps_nobody_out(proxy):
    where = urlsplit(proxy.ready["metrics"])
    silent = [socket.create_connection((where.hostname, where.port), timeout=10) for _ in range(MAX_CONNECTIONS)]
    began = time.monotonic()
    answer = httpx.get(proxy.ready["metrics"], trust_env=False, timeout=2 * HEADER_TIMEOUT)
    assert answer.status_code == 200 and time.monotonic() - began < HEADER_TIMEOUT / 2
    for client in silent:
        client.close()


def test_it_is_off_by_default_and_a_file_switches_it_on(instances, upstream, tmp_path):
    assert "metrics" not in instances.proxy(upstream.url).ready
    file = tmp_path / "mcpscope.yaml"
    file.write_text(json.dumps({"metrics": {"listen": "0.0.0.0:0"}}))
    proxy = instances.proxy(upstream.url, "--config", str(file))
    port = urlsplit(proxy.ready["metrics"]).port
    assert get(f"http://127.0.0.1:{port}/metrics", headers=FOREIGN).status_code == 200


def test_every_command_has_it(instances):
    env = instances.variables() | {LISTEN: ANY_PORT}
    demo = instances.demo(env=env)
    # By then it has said all it has to say.
    wait_until(lambda: demo.metrics().tool_calls(), what="traffic")
    lines = [line for line in demo.stderr().splitlines() if line.startswith("metrics ")]
    assert lines == [f"metrics {demo.ready['metrics']}"], "one name, one address"
    run = instances.run(command=["cat"], env=env)
    assert get(run.ready["metrics"]).status_code == 200


def test_it_does_without_the_others(instances, upstream):
    listen = ("--listen", ANY_PORT, "--dashboard", "off", "--grpc", "off")
    env = instances.variables() | {LISTEN: ANY_PORT}
    proxy = instances.spawn("proxy", "--upstream", upstream.url, *listen, env=env)
    assert set(proxy.ready) == {"metrics", "proxy"}
    assert get(proxy.ready["metrics"]).status_code == 200


def test_what_is_not_observed_is_not_shown(instances, upstream):
    env = instances.variables() | {LISTEN: ANY_PORT}
    proxy = instances.proxy(upstream.url, env=env | {"MCPSCOPE_METRICS_ENABLED": "false"})
    answer = get(proxy.ready["metrics"])
    assert answer.status_code == 404 and answer.json()["detail"] == "metrics are switched off"
    proxy = instances.spawn(
        *("proxy", "--upstream", upstream.url, "--listen", ANY_PORT),
        env=env | {"MCPSCOPE_OBSERVABILITY_ENABLED": "false"},
        grpc=None,
    )
    assert set(proxy.ready) == {"proxy"}
    assert "mcpscope: no metrics listener: observability_enabled is false" in proxy.stderr().splitlines()


REST = {"run": ["--", "cat"], "proxy": ["--upstream", "http://127.0.0.1:9/mcp", "--listen", ANY_PORT], "demo": []}


@pytest.mark.parametrize("command", REST)
def test_a_taken_port_is_an_error(instances, command):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        env = instances.variables() | {LISTEN: address}
        instance = instances.spawn(command, "--dashboard", ANY_PORT, *REST[command], ready=False, env=env, stdin=-1)
        assert instance.wait() == 69
    assert address in instance.stderr() and "metrics.listen: 127.0.0.1:0" in instance.stderr()
