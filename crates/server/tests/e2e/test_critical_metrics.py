"""`metrics.critical_metrics`: metrics of the user's own, recorded by name and kept whole."""

import pytest

from harness import settles_at
from rpc import Rpc

CONFIG = """
metrics:
  critical_metrics:
    - orders_total
    - db_query_ms
    - { name: order_value, kind: gauge, help: "Value of the newest order, in EUR" }
    - { name: retries, kind: counter }
"""
RECORD = "MetricsService.RecordMetrics"


def proxy_with(instances, upstream, tmp_path, config: str):
    file = tmp_path / "mcpscope.yaml"
    file.write_text(config)
    return instances.proxy(upstream.url, "--config", str(file))


def test_what_is_declared_is_recorded_by_name_and_exposed(instances, upstream, tmp_path, promtool):
    proxy = proxy_with(instances, upstream, tmp_path, CONFIG)
    with Rpc(proxy.grpc) as rpc:
        records = [
            *[rpc.request(RECORD, name="orders_total", value=1, labels={"shop": 'a"b'})] * 50,
            *[rpc.request(RECORD, name="db_query_ms", value=250)] * 4,
            rpc.request(RECORD, name="order_value", value=12.5),
            rpc.request(RECORD, name="order_value", value=7.25),
            rpc.request(RECORD, name="retries", value=3),
        ]
        answer = rpc.stub(RECORD)(iter(records), timeout=10)
        assert (answer.accepted, answer.rejected) == (len(records), 0), answer.first_error
        shown = set(rpc("MetricsService.ListMetrics").metrics.metrics)
        assert shown >= {"orders_total", "db_query_ms", "order_value", "retries"}
    # None is sampled: all of them count.
    settles_at(50, lambda: proxy.metrics().sum("orders_total", shop='a"b'))
    metrics = proxy.metrics()
    promtool(metrics.text)
    assert (metrics.sum("db_query_seconds_count"), metrics.sum("db_query_seconds_sum")) == (4, pytest.approx(1))
    assert (metrics.sum("order_value"), metrics.sum("retries_total")) == (7.25, 3)
    kinds = {name: metrics.header("TYPE", name) for name in ("orders_total", "db_query_seconds", "order_value")}
    assert kinds == {"orders_total": "counter", "db_query_seconds": "histogram", "order_value": "gauge"}
    assert metrics.header("HELP", "order_value") == "Value of the newest order, in EUR"
    assert metrics.header("HELP", "orders_total")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("mcp_calls_total", "expected a name that does not begin with mcp_"),
        ("tool_call_duration_ms", "tool_call_duration_ms is critical in any case"),
        ("{ name: latency, kind: histogram }", "expected the name of a histogram to end in _seconds or _ms"),
        ("{ name: queue_ms, kind: gauge }", "expected the name of a gauge not to end in _ms"),
    ],
)
def test_a_bad_declaration_is_refused_with_its_place(instances, tmp_path, entry, why):
    file = tmp_path / "bad.yaml"
    file.write_text(f"metrics:\n  critical_metrics:\n    - {entry}\n    - fine\n    - 7\n  sampling_rate: 2\n")
    done = instances.finish("run", "--config", str(file), "--", "cat")
    first, second, third = done.stderr.decode().splitlines()
    assert done.returncode == 64 and done.stdout == b""
    assert f"{file}:3:7: metrics.critical_metrics: {why}" in first
    assert f"{file}:5:7: metrics.critical_metrics: expected the name of a metric" in second
    assert f"{file}:6:18: metrics.sampling_rate: expected a number from 0 to 1, found 2" in third
