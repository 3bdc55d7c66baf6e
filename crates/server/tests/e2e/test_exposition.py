"""`/metrics` in both of its formats, read by parsers that nobody here wrote."""

import json
import math
import random
import threading
import time
from collections import Counter

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from harness import settles_at
from rpc import Rpc
from upstream import call

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# What Prometheus 3 sends.
SCRAPER = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
RECORD = "MetricsService.RecordMetrics"
# Longest label value that is kept, in bytes.
MAX_VALUE = 256


def page(instance, accept: str = "*/*") -> httpx.Response:
    answer = instance.get("metrics", headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    return answer


def families(text: str, parse) -> dict:
    """The families of a page by name; none is there twice."""
    found = list(parse(text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def samples(found: dict) -> dict:
    """All values by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in found.values()
        for sample in family.samples
    }


def both(instance) -> tuple[dict, dict]:
    """The families of the pages in the one and in the other format."""
    old, new = page(instance), page(instance, SCRAPER)
    assert (old.headers["content-type"], new.headers["content-type"]) == (PROMETHEUS, OPENMETRICS)
    return families(old.text, prometheus_families), families(new.text, openmetrics_families)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ({}, PROMETHEUS),
        ({"Accept": "*/*"}, PROMETHEUS),
        ({"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, PROMETHEUS),
        ({"Accept": "application/openmetrics-text;version=0.0.1,*/*;q=0.1"}, PROMETHEUS),
        ({"Accept": SCRAPER}, OPENMETRICS),
        ({"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}, OPENMETRICS),
    ],
)
def test_the_accept_header_chooses_the_format(instances, upstream, accept, expected):
    proxy = instances.proxy(upstream.url)
    with httpx.Client(trust_env=False) as http:
        del http.headers["accept"]
        answer = http.get(proxy.dashboard + "metrics", headers=accept)
    assert answer.headers["content-type"] == expected
    assert "accept" in answer.headers["vary"].replace(" ", "").split(",")
    assert answer.text.endswith("# EOF\n") == (expected == OPENMETRICS)


def test_both_formats_say_the_same(instances):
    demo = instances.demo()
    settles_at(True, lambda: demo.metrics().sum("mcpscope_tool_call_duration_seconds_count") > 5)
    old, new = both(demo)
    assert {name: (family.type, family.documentation) for name, family in old.items()} == {
        name: (family.type, family.documentation) for name, family in new.items()
    }
    assert all(family.documentation for family in new.values())
    for name, family in new.items():
        assert family.unit == next((unit for unit in ("seconds", "bytes") if name.endswith(f"_{unit}")), "")
    # A series may be born between the two, but none has another name or other labels.
    assert set(samples(old)) <= set(samples(new))


HELP = 'Any "help", with a \\ and a \\n that is none'
CONFIG = {
    "metrics": {
        # All values are kept, and all records by other names.
        "max_label_values": 10_000,
        "sampling_rate": 1.0,
        "critical_metrics": [
            {"name": "orders_total", "help": HELP},
            {"name": "retries", "kind": "counter"},
            {"name": "temperature", "help": "Ünïcode 温度"},
            {"name": "query_ms", "help": HELP},
            {"name": "wait_seconds"},
        ],
    }
}
# Kind, family and labels; a metric of the user's own takes any labels.
METRICS = {
    "registry_operations_per_second": ("counter", "mcpscope_registry_operations_total", ["server", "operation"]),
    "session_creation_latency_ms": ("ms", "mcpscope_session_creation_seconds", ["server", "protocol"]),
    "transport_connection_count": ("whole", "mcpscope_transport_connections", ["server", "transport"]),
    "tool_call_duration_ms": ("ms", "mcpscope_tool_call_duration_seconds", ["server", "tool", "outcome", "injected"]),
    "error_rates_by_component": ("error", "mcpscope_component_errors_total", ["component", "error_type", "injected"]),
    "active_sessions_count": ("whole", "mcpscope_active_sessions", ["server", "protocol"]),
    "message_queue_depth": ("whole", "mcpscope_message_queue_depth", ["server", "direction"]),
    "orders_total": ("counter", "orders_total", None),
    "retries": ("counter", "retries_total", None),
    "temperature": ("any", "temperature", None),
    "query_ms": ("ms", "query_seconds", None),
    "wait_seconds": ("seconds", "wait_seconds", None),
}
# Labels of the seven that take no other values; one that is empty is as good as left out.
CLOSED = {
    "operation": ["list", "read", "subscribe", "listen", "discover", "list_changed", "register", "unregister"],
    "protocol": ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "other"],
    "transport": ["stdio", "http"],
    "outcome": ["ok", "error", "caller_error", "timeout", "cancelled"],
    "injected": ["true", "false"],
    "direction": ["to_server", "to_client"],
}
LEFT_OUT = {"outcome": "ok", "injected": "false"}
OPERATIONS = "mcpscope_component_operations_total"
BOUNDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
ALPHABET = [*'ab"\\\n{},=# \t\r\x00\x7f\x85\u2028é日😀', "\\n", '\\"', '"} 1', " # {", "# EOF\n", "\n# TYPE x counter\n"]


class Recorded:
    """Random records, and what the page must show of them."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.records: list[dict] = []
        self.refused = 0
        self.expected: Counter = Counter()

    def text(self) -> str:
        size = self.random.choice([0, 1, 3, 12, 60, 10_000])
        return "".join(self.random.choices(ALPHABET, k=size)) if size < 10_000 else size * "x"

    def labels(self, names: list[str] | None) -> dict[str, str]:
        if names is None:
            names = self.random.sample(["a", "Z9", "_x", "server", "long_" + "n" * 100], self.random.randrange(4))
        return {name: self.label(name) for name in names}

    def label(self, name: str) -> str:
        known = name in CLOSED and self.random.random() < 0.8
        return self.random.choice([*CLOSED[name], ""]) if known else self.text()

    def record(self):
        name = self.random.choice(list(METRICS))
        kind, family, names = METRICS[name]
        labels = self.labels(names)
        value = {
            "counter": lambda: self.random.choice([0, 1, 7, 10**9]),
            "whole": lambda: self.random.choice([0, 3, 10**9]),
            "error": lambda: self.random.randrange(2),
            "any": lambda: self.random.choice([0.1, -3.0, 1e300, 5e-324, self.random.uniform(-1e9, 1e9)]),
            # Bounds themselves, and what is around them.
            "ms": lambda: self.random.choice([0, 1, 1.000001, 300_000, 300_001, self.random.uniform(0, 1e6)]),
            "seconds": lambda: self.random.choice([0, 0.001, 1.5e-6, 86_400, self.random.expovariate(1)]),
        }[kind]()
        self.records.append({"name": name, "value": value, "labels": labels})
        unknown = [text for label, text in labels.items() if text and text not in CLOSED.get(label, [text])]
        if unknown or any(len(text.encode()) > MAX_VALUE for text in labels.values()):
            self.refused += 1
            return
        labels = {label: text or LEFT_OUT.get(label, "") for label, text in labels.items()}
        key = frozenset(labels.items())
        if kind in ("ms", "seconds"):
            self.observe(family, key, math.floor(value * (1e6 if kind == "ms" else 1e9) + 0.5))
        elif kind in ("whole", "any"):
            self.expected[family, key] = value
        else:
            self.expected[family, key] += value
        if kind == "error":
            self.expected[OPERATIONS, frozenset((k, v) for k, v in labels.items() if k != "error_type")] += 1

    def observe(self, family: str, labels: frozenset, ns: int):
        for bound in [*BOUNDS, float("inf")]:
            le = "+Inf" if bound == float("inf") else str(float(bound))
            self.expected[f"{family}_bucket", labels | {("le", le)}] += ns <= bound * 1e9
        self.expected[f"{family}_sum", labels] += ns
        self.expected[f"{family}_count", labels] += 1

    def shown(self) -> dict:
        """Sums are whole nanoseconds up to here, and seconds from here on."""
        return {key: value / 1e9 if key[0].endswith("_sum") else value for key, value in self.expected.items()}


def test_what_is_recorded_is_read_back_in_both_formats(instances, upstream, tmp_path, promtool):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    file = tmp_path / "mcpscope.yaml"
    file.write_text(json.dumps(CONFIG))
    proxy = instances.proxy(upstream.url, "--config", str(file))
    before = [set(samples(found)) for found in both(proxy)]
    recorded = Recorded(seed)
    for _ in range(600):
        recorded.record()
    with Rpc(proxy.grpc) as rpc:
        requests = [rpc.request(RECORD, **record) for record in recorded.records]
        answer = rpc.stub(RECORD)(iter(requests), timeout=20)
    assert (answer.rejected, answer.accepted) == (recorded.refused, 600 - recorded.refused), answer.first_error
    expected = recorded.shown()
    for earlier, found in zip(before, both(proxy), strict=True):
        shown = samples(found)
        wrong = {key: (value, shown.get(key)) for key, value in expected.items() if shown.get(key) != value}
        assert not wrong, "expected, shown"
        names = {name for name, _ in expected}
        assert {key for key in set(shown) - earlier if key[0] in names} <= set(expected), "nothing else was born"
        assert (found["orders"].documentation, found["query_seconds"].documentation) == (HELP, HELP)
        assert found["temperature"].documentation == "Ünïcode 温度"
    promtool(page(proxy).text)


def test_names_from_the_wire_are_read_back_in_both_formats(instances, upstream):
    proxy = instances.proxy(upstream.url)
    names = ['quo"te', "back\\slash\\", "new\nline\r\n", "日本語", "", "é" * 5000, "{}", "# EOF\n"]
    names += ['",le="+Inf"} 1\n', " "]
    with httpx.Client(trust_env=False) as http:
        for number, name in enumerate(names):
            assert http.post(proxy.proxy, json=call(name, id=number)).json()["id"] == number
    kept = {name.encode()[:MAX_VALUE].decode(errors="ignore"): 1 for name in names}

    def tools(found):
        samples = found["mcpscope_tool_call_duration_seconds"].samples
        return {sample.labels["tool"]: sample.value for sample in samples if sample.name.endswith("_count")}

    settles_at([kept, kept], lambda: [tools(found) for found in both(proxy)])


def test_what_only_grows_never_shrinks(instances, upstream):
    """Scrapes in turn in both formats, while there is traffic."""
    proxy = instances.proxy(upstream.url)
    stop = threading.Event()

    def traffic(tool: str):
        with httpx.Client(trust_env=False) as http:
            while not stop.is_set():
                http.post(proxy.proxy, json=call(tool))

    threads = [threading.Thread(target=traffic, args=(f"tool-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        last: dict = {}
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            for found in both(proxy):
                grows = {family.name for family in found.values() if family.type in ("counter", "histogram")}
                now = samples({name: found[name] for name in grows})
                shrunk = {key: (value, now.get(key)) for key, value in last.items() if now.get(key, -1) < value}
                assert not shrunk
                last = now
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    answered = [value for (name, _), value in last.items() if name == "mcpscope_tool_call_duration_seconds_count"]
    assert len(answered) == len(threads) and min(answered) > 0


def test_a_page_with_everything_on_is_what_promtool_and_parsers_want(instances, tmp_path, promtool):
    file = tmp_path / "mcpscope.yaml"
    file.write_text(json.dumps(CONFIG))
    demo = instances.demo("--config", str(file))
    declared = [name for name, (_, _, labels) in METRICS.items() if labels is None]
    others = ["library_took_seconds", "library_size_bytes", "library_load"]
    taken = ["orders", "query_seconds"]
    labels = {"path": 'quantile="1",le="1" # {}\n'}
    with Rpc(demo.grpc) as rpc:
        names = [*declared, *others, *taken]
        records = [rpc.request(RECORD, name=name, value=2, labels=labels) for name in names]
        answer = rpc.stub(RECORD)(iter(records), timeout=10)
    assert (answer.accepted, answer.rejected) == (len(names) - len(taken), len(taken)), answer.first_error
    settles_at(True, lambda: demo.metrics().sum("mcpscope_tool_call_duration_seconds_count") > 5)
    promtool(page(demo).text)
    for found in both(demo):
        shown = {name: found[name].samples for name in found if name.startswith("library_")}
        assert set(shown) == set(others)
        assert all(sample.labels["path"] == labels["path"] for samples in shown.values() for sample in samples)
        assert (found["orders"].type, found["query_seconds"].type) == ("counter", "histogram")
