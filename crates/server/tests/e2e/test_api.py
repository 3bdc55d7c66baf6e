"""The JSON that the dashboard listener serves, in exactly the shapes that `interfaces.md` gives."""

import re
import socket
import time

import httpx
import pytest

from harness import settles_at, wait_until
from upstream import call, result_for

CRITICAL = {
    "registry_operations_per_second": ("rate", "1/s"),
    "session_creation_latency_ms": ("histogram", "ms"),
    "transport_connection_count": ("gauge", None),
    "tool_call_duration_ms": ("histogram", "ms"),
    "error_rates_by_component": ("ratio", None),
    "active_sessions_count": ("gauge", None),
    "message_queue_depth": ("gauge", None),
}
READINGS = {"timestamp", "system_uptime", "memory_usage", "cpu_usage"}
WINDOW = {"min", "max", "avg", "count", "sum", "p50", "p90", "p95", "p99", "rate"}
AGGREGATE = {"min", "max", "avg", "count", "sum"}
TRACE = {
    *("id", "timestamp", "operation", "duration_ms", "status", "details"),
    *("server", "method", "tool", "session", "injected", "spans"),
}
SPAN = {
    *("id", "parent", "name", "kind", "start_us", "duration_us", "status", "message"),
    *("attributes", "events", "dropped_events"),
}


@pytest.fixture
def proxy(instances, upstream):
    """A proxy that has seen two good calls and a failed one."""

    def answer(exchange):
        answer = result_for(exchange.json())
        answer["result"]["isError"] = exchange.json()["params"]["name"] == "bad"
        exchange.answer_json(answer)

    upstream.answer = answer
    instance = instances.proxy(upstream.url, "--name", "api")
    for id, tool in enumerate(("good", "bad", "good")):
        assert httpx.post(instance.proxy, json=call(tool, id=id), trust_env=False).status_code == 200
    calls = {("good", "ok"): 2, ("bad", "error"): 1}
    settles_at(calls, lambda: instance.metrics().tool_calls(server="api"))
    return instance


def get_json(instance, path: str):
    answer = instance.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    return answer.json()


def recent(milliseconds: float) -> bool:
    """Times are milliseconds since the epoch."""
    return abs(time.time() * 1000 - milliseconds) < 60_000


def test_alive_and_ready(proxy):
    for path in ("healthz", "readyz"):
        assert isinstance(get_json(proxy, path), dict)


def test_health(proxy):
    health = get_json(proxy, "api/v1/health")
    assert set(health) == {"overall", "health_percentage", "components", "uptime", "timestamp"}
    assert health["overall"] in {"healthy", "degraded", "warning", "critical"}
    assert 0 <= health["health_percentage"] <= 1
    assert recent(health["timestamp"]) and 0 <= health["uptime"] < 60_000
    assert set(health["components"]) >= {"transports", "observability"}
    for component in health["components"].values():
        assert {"status", "message", "since"} <= set(component) <= {"status", "message", "since", "rate", "count"}
        assert component["status"] in {"healthy", "warning", "critical"}
        assert recent(component["since"])


def test_metrics(proxy):
    metrics = get_json(proxy, "api/v1/metrics")
    assert set(metrics) == set(CRITICAL) | READINGS
    assert recent(metrics["timestamp"]) and metrics["memory_usage"] > 0 and 0 <= metrics["cpu_usage"] <= 1
    for name, (kind, unit) in CRITICAL.items():
        metric = metrics[name]
        assert set(metric) == {"unit", "kind", "series"}
        assert metric["kind"] == kind, name
        assert unit is None or metric["unit"] == unit, name
        for series in metric["series"]:
            assert set(series) == {"labels", "value", "window"}
            # No window has closed in the first seconds.
            assert series["window"] is None or set(series["window"]) == WINDOW
    tools = {series["labels"]["tool"] for series in metrics["tool_call_duration_ms"]["series"]}
    assert tools == {"good", "bad"}


def test_a_window_closes_and_is_exact(proxy):
    """After the first ten seconds, the last window and the summary hold what was called."""

    def window():
        series = get_json(proxy, "api/v1/metrics")["tool_call_duration_ms"]["series"]
        return {s["labels"]["tool"]: s["window"] for s in series if s["window"] and s["window"]["count"]}

    windows = wait_until(window, within=15, what="a closed window")
    assert {tool: w["count"] for tool, w in windows.items()} == {"good": 2, "bad": 1}
    for w in windows.values():
        assert w["min"] <= w["avg"] <= w["max"] and w["p50"] <= w["p90"] <= w["p95"] <= w["p99"]
        assert abs(w["sum"] - w["avg"] * w["count"]) < 1e-6
    summary = get_json(proxy, "api/v1/metrics/summary")
    assert set(summary) == {"timestamp", "critical_metrics", "total_metrics", "aggregates", "counters"}
    assert summary["aggregates"]["tool_call_duration_ms"]["count"] == 3
    for aggregate in summary["aggregates"].values():
        assert set(aggregate) == AGGREGATE


def test_summary(proxy):
    summary = get_json(proxy, "api/v1/metrics/summary")
    assert set(summary) == {"timestamp", "critical_metrics", "total_metrics", "aggregates", "counters"}
    assert recent(summary["timestamp"])
    assert summary["total_metrics"] >= summary["critical_metrics"] >= 3
    assert all(isinstance(count, int | float) for count in summary["counters"].values())


def test_raw_records(proxy):
    records = get_json(proxy, "api/v1/metrics/raw")
    assert all(set(record) == {"name", "value", "labels", "timestamp"} for record in records)
    assert {record["name"] for record in records} <= set(CRITICAL)
    times = [record["timestamp"] for record in records]
    assert times == sorted(times, reverse=True), "newest first"
    tools = [record["labels"]["tool"] for record in records if record["name"] == "tool_call_duration_ms"]
    assert tools == ["good", "bad", "good"]


def test_traces(proxy):
    traces = get_json(proxy, "api/v1/traces")
    assert [trace["tool"] for trace in traces] == ["good", "bad", "good"], "newest first"
    for trace in traces:
        assert set(trace) == TRACE
        assert re.fullmatch(r"[0-9a-f]{32}", trace["id"])
        assert (trace["server"], trace["method"], trace["injected"]) == ("api", "tools/call", False)
        assert recent(trace["timestamp"]) and trace["duration_ms"] > 0
        assert trace["status"] == ("error" if trace["tool"] == "bad" else "ok")
    (failed,) = [trace for trace in traces if trace["tool"] == "bad"]
    whole = get_json(proxy, f"api/v1/traces/{failed['id']}")
    assert set(whole) == TRACE and whole["id"] == failed["id"]
    assert whole["spans"]
    identifiers = {span["id"] for span in whole["spans"]}
    for span in whole["spans"]:
        assert set(span) == SPAN
        assert span["parent"] is None or span["parent"] in identifiers
    assert any(span["name"] == "tools/call bad" for span in whole["spans"])
    assert "done" not in proxy.get(f"api/v1/traces/{failed['id']}").text, "contents stay out of traces"


def check_problem(answer: httpx.Response, status: int):
    """RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["status"] == status and problem["title"]


@pytest.mark.parametrize("path", [f"api/v1/traces/{'0' * 31}1", "api/v1/no-such-thing"])
def test_what_is_not_there_is_a_problem(proxy, path):
    check_problem(proxy.get(path), 404)


def test_a_trace_id_that_is_none_is_a_problem(proxy):
    answer = proxy.get("api/v1/traces/not-an-id")
    check_problem(answer, 404 if answer.status_code == 404 else 400)


def test_a_wrong_method_is_a_problem(proxy):
    check_problem(httpx.post(f"{proxy.dashboard}api/v1/traces", trust_env=False), 405)


def test_a_refused_host_is_a_problem(proxy):
    check_problem(proxy.get("api/v1/health", headers={"Host": "evil.example"}), 403)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
@pytest.mark.parametrize("command", ["run", "proxy"])
def test_the_dashboard_is_on_loopback_only(instances, command, address):
    rest = {"run": ["--", "cat"], "proxy": ["--upstream", "http://127.0.0.1:9/mcp", "--listen", "127.0.0.1:0"]}
    done = instances.finish(command, "--dashboard", address, *rest[command])
    assert done.returncode == 64
    assert "loopback" in done.stderr.decode().lower()
    assert done.stdout == b""


def test_a_scrape_that_hangs_holds_nothing_up(proxy):
    """Clients that begin to ask for `/metrics` and never get to the end."""
    address = httpx.URL(proxy.dashboard)
    host = address.netloc.decode()
    stuck = [socket.create_connection((address.host, address.port), 5) for _ in range(20)]
    for connection in stuck:
        connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n".encode())  # the head never ends
    for id in range(20):
        assert httpx.post(proxy.proxy, json=call("good", id=id), trust_env=False).status_code == 200
    settles_at(22, lambda: proxy.metrics().sum("mcpscope_tool_call_duration_seconds_count", tool="good"))
    for connection in stuck:
        connection.close()
