"""`/metrics` as Prometheus sees it: promtool's rules, the real program."""

import json
import pathlib
import subprocess
import time

import httpx
import pytest

from everything import CALLS, Exercise, http_session, run_async
from harness import free_port, settles_at, wait_until
from scrape import CRITICAL
from upstream import call

OPERATIONS = {"list", "read", "subscribe", "listen", "discover", "list_changed", "register", "unregister"}
COMPONENTS = {"json_rpc", "session_manager", "registry", "server", "transport", "tools"}


def check_headers(metrics):
    for family, (critical, kind) in CRITICAL.items():
        assert metrics.header("TYPE", family) == kind
        assert critical in metrics.header("HELP", family), f"the HELP of {family} names its critical metric"


def test_everything_is_there_before_the_first_event(instances, upstream, promtool):
    proxy = instances.proxy(upstream.url, "--name", "idle")
    metrics = proxy.metrics()
    promtool(metrics.text)
    check_headers(metrics)

    registry = metrics.matching("mcpscope_registry_operations_total", server="idle")
    assert {s.labels["operation"]: s.value for s in registry if s.labels["operation"] != "register"} == {
        operation: 0 for operation in OPERATIONS - {"register"}
    }
    (connections,) = metrics.matching("mcpscope_transport_connections", server="idle", transport="http")
    assert connections.value == 0
    queues = metrics.matching("mcpscope_message_queue_depth", server="idle")
    assert {s.labels["direction"]: s.value for s in queues} == {"to_server": 0, "to_client": 0}
    components = metrics.matching("mcpscope_component_operations_total", injected="false")
    assert {s.labels["component"] for s in components} == COMPONENTS
    assert metrics.sum("mcpscope_component_operations_total", component="tools") == 0
    assert metrics.sum("mcpscope_component_errors_total") == 0
    assert metrics.sum("mcpscope_tool_call_duration_seconds_count") == 0
    assert metrics.sum("mcpscope_active_sessions") == 0
    assert metrics.sum("mcpscope_build_info") == 1


def test_the_process_shows_itself(instances, upstream):
    """As the system says it, by the names that Prometheus' client libraries use."""
    started = time.time()
    proxy = instances.proxy(upstream.url)
    process = pathlib.Path(f"/proc/{proxy.process.pid}")
    value = lambda name: proxy.metrics().sum(name)  # noqa: E731
    wait_until(lambda: value("process_resident_memory_bytes") > 0, within=10, what="the process' figures")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    resident = int(status["VmRSS"].split()[0]) << 10
    assert value("process_resident_memory_bytes") == pytest.approx(resident, rel=0.3)
    assert value("process_virtual_memory_bytes") > resident
    assert started - 2 < value("process_start_time_seconds") < time.time() + 2
    assert value("process_threads") == pytest.approx(int(status["Threads"]), abs=8)
    assert value("process_open_fds") == pytest.approx(len(list((process / "fd").iterdir())), abs=10)
    assert value("process_max_fds") > value("process_open_fds")
    before = value("process_cpu_seconds_total")
    # What is asked of it takes it some time; the counter is brought up to date every second.
    wait_until(lambda: value("process_cpu_seconds_total") > before, within=20, what="processor time")
    assert value("process_cpu_seconds_total") < 2 * (time.time() - started)


def test_promtool_accepts_a_live_demo(instances, promtool):
    demo = instances.spawn("demo", "--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0")
    servers = lambda: demo.metrics().by("server", "mcpscope_tool_call_duration_seconds_count")  # noqa: E731
    wait_until(lambda: len(servers()) == 2, within=10, what="traffic of both servers")
    metrics = demo.metrics()
    promtool(metrics.text)
    check_headers(metrics)


def test_promtool_accepts_a_loaded_proxy_with_awkward_names(instances, upstream, promtool):
    """Tool names come from the wire: quotes, newlines and other alphabets must not break the page."""
    proxy = instances.proxy(upstream.url, "--name", "loaded")
    names = ["plain", 'quo"te', "back\\slash", "new\nline", "日本語", "", "x" * 5000, "{}", "#"] * 3
    for number, name in enumerate(names):
        answer = httpx.post(proxy.proxy, json=call(name, id=number), trust_env=False)
        assert answer.json()["id"] == number
    total = lambda: proxy.metrics().sum("mcpscope_tool_call_duration_seconds_count", server="loaded")  # noqa: E731
    settles_at(len(names), total)
    metrics = proxy.metrics()
    promtool(metrics.text)
    check_headers(metrics)
    tools = metrics.by("tool", "mcpscope_tool_call_duration_seconds_count")
    assert tools['quo"te'] == tools["new\nline"] == tools["日本語"] == tools["back\\slash"] == 3


def test_label_values_from_the_wire_are_bounded(instances, upstream, promtool):
    proxy = instances.proxy(upstream.url)
    with httpx.Client(trust_env=False) as http:
        for number in range(300):
            http.post(proxy.proxy, json=call(f"tool-{number}", id=number))
    total = lambda: proxy.metrics().sum("mcpscope_tool_call_duration_seconds_count")  # noqa: E731
    settles_at(300, total)
    metrics = proxy.metrics()
    tools = metrics.by("tool", "mcpscope_tool_call_duration_seconds_count")
    assert len(tools) <= 257 and tools["other"] >= 43
    assert sum(metrics.by("what", "mcpscope_dropped_total").values()) >= 43, "what became `other` is counted"
    promtool(metrics.text)


@pytest.mark.timeout(90)
def test_a_real_prometheus_scrapes_it_and_answers(environment, everything_http, instances, tmp_path):
    proxy = instances.proxy(everything_http.url, "--name", "everything")
    record = Exercise()

    async def calls():
        async with http_session(proxy.proxy, record) as session:
            await session.initialize()
            await session.list_tools()
            for tool, arguments, times, outcome in CALLS:
                for _ in range(times):
                    record.count_call(tool, outcome)
                    await record.ask(tool, session.call_tool(tool, arguments))

    run_async(calls)
    made = sum(record.tool_calls.values())
    failed = sum(n for (_, outcome), n in record.tool_calls.items() if outcome == "error")

    with Prometheus(environment, tmp_path, proxy.dashboard) as prometheus:
        query = prometheus.query
        settles_at(made, lambda: query("sum(mcpscope_tool_call_duration_seconds_count)"), within=30)
        settles_at(failed, lambda: query('sum(mcpscope_tool_call_duration_seconds_count{outcome="error"})'))
        settles_at(made, lambda: query('sum(mcpscope_component_operations_total{component="tools"})'))
        assert query('up{job="mcpscope"}') == 1
        assert query("histogram_quantile(0.99, sum by (le) (mcpscope_tool_call_duration_seconds_bucket))") > 0


def test_a_real_prometheus_keeps_exemplars_of_failed_calls(environment, instances, upstream, tmp_path):
    """An exemplar is what leads from a graph to a trace."""
    failed = {"content": [{"type": "text", "text": "no"}], "isError": True}
    upstream.answer = lambda exchange: exchange.answer_json(
        {"jsonrpc": "2.0", "id": exchange.json()["id"], "result": failed}
    )
    proxy = instances.proxy(upstream.url, "--name", "traced")
    for number in range(3):
        httpx.post(proxy.proxy, json=call("broken", id=number), trust_env=False)
    buckets = 'mcpscope_tool_call_duration_seconds_bucket{server="traced",tool="broken"}'
    with Prometheus(environment, tmp_path, proxy.dashboard, "--enable-feature=exemplar-storage") as prometheus:
        (series, *_) = wait_until(lambda: prometheus.exemplars(buckets), within=30, what="an exemplar")
    assert series["seriesLabels"]["outcome"] == "error"
    traces = {trace["id"]: trace for trace in proxy.get("api/v1/traces").json()}
    for exemplar in series["exemplars"]:
        trace = traces[exemplar["labels"]["trace_id"]]
        assert (trace["tool"], trace["status"]) == ("broken", "error")
        assert float(exemplar["value"]) * 1000 == pytest.approx(trace["duration_ms"], rel=0.5, abs=2)
        assert float(exemplar["value"]) <= float(series["seriesLabels"]["le"])


class Prometheus:
    """A Prometheus that scrapes one dashboard every second."""

    def __init__(self, environment, directory, dashboard: str, *options: str):
        self.environment = environment
        self.options = options
        self.directory = directory
        self.target = httpx.URL(dashboard).netloc.decode()

    def __enter__(self):
        static = {"job_name": "mcpscope", "static_configs": [{"targets": [self.target]}]}
        config = self.directory / "prometheus.yml"
        # JSON is YAML.
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [static]}))
        self.log = self.directory / "prometheus.log"
        self.address = f"http://127.0.0.1:{free_port()}"
        command = [
            self.environment.prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={self.directory / 'tsdb'}",
            f"--web.listen-address={self.address.removeprefix('http://')}",
            *self.options,
        ]
        with self.log.open("wb") as log:
            variables = self.environment.variables(self.directory)
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.process = subprocess.Popen(command, env=variables, **options)
        try:
            wait_until(self.is_ready, within=30, what="Prometheus")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(5)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.address}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> float | None:
        answer = httpx.get(f"{self.address}/api/v1/query", params={"query": expression}, trust_env=False).json()
        results = answer["data"]["result"]
        return float(results[0]["value"][1]) if results else None

    def exemplars(self, expression: str) -> list[dict]:
        """By series, those of the last minute."""
        now = time.time()
        params = {"query": expression, "start": now - 60, "end": now + 1}
        return httpx.get(f"{self.address}/api/v1/query_exemplars", params=params, trust_env=False).json()["data"]
