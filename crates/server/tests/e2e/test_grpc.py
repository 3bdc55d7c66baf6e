"""gRPC, driven by grpcio with what reflection tells: every RPC, and the same figures as over HTTP."""

import contextlib
import math
import queue
import subprocess
import sys
import threading
import time

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from harness import connects, free_port, settles_at, wait_until
from rpc import Rpc, failure, plain
from upstream import call, result_for

NAME = "rpc"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    *(health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING),
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)
COMPONENTS = ("registry", "sessions", "transports", "observability")
SERVICES = {
    "ChaosService": {
        *("Plan", "StartExperiment", "StopExperiment", "EmergencyStop", "Rearm"),
        *("GetStatus", "ListHistory", "GetReport", "Replay", "WatchEvents"),
    },
    "DashboardService": {"GetSnapshot", "WatchSnapshots"},
    "HealthService": {"GetHealth", "WatchHealth"},
    "InstrumentationService": {"GetStatus", "Instrument", "Uninstrument"},
    "MetricsService": {"GetSummary", "ListMetrics", "GetMetric", "ResetMetrics", "RecordMetrics"},
    "TraceService": {"ListTraces", "GetTrace", "WatchTraces", "ClearTraces"},
}
CRITICAL = {
    *("registry_operations_per_second", "session_creation_latency_ms", "transport_connection_count"),
    *("tool_call_duration_ms", "error_rates_by_component", "active_sessions_count", "message_queue_depth"),
}
# A tick of the hub that a test can wait for.
TICK = 0.5
QUICK = {"MCPSCOPE_DASHBOARD_UPDATE_INTERVAL": "500ms", "MCPSCOPE_METRICS_AGGREGATION_INTERVAL": "1s"}


@pytest.fixture
def proxy(instances, upstream):
    """A proxy whose tool `bad` fails and whose tool `slow` takes a while."""

    def answer(exchange):
        tool = exchange.json()["params"]["name"]
        if tool == "slow":
            time.sleep(0.2)
        answer = result_for(exchange.json())
        answer["result"]["isError"] = tool == "bad"
        exchange.answer_json(answer)

    upstream.answer = answer
    return instances.proxy(upstream.url, "--name", NAME, env=instances.variables() | QUICK)


@pytest.fixture
def rpc(proxy):
    with Rpc(proxy.grpc) as client:
        yield client


def make_calls(proxy, *tools: str):
    for id, tool in enumerate(tools):
        assert httpx.post(proxy.proxy, json=call(tool, id=id), trust_env=False).status_code == 200


@pytest.fixture
def seen(proxy):
    """The proxy, after calls that are all recorded."""
    make_calls(proxy, "good", "bad", "good", "slow")
    settles_at(4, lambda: len(proxy.get("api/v1/traces").json()))
    return proxy


class Stream:
    """The answers of a stream as they come, for a test that waits for each."""

    def __init__(self, answers):
        self.answers = answers
        self.come: queue.Queue = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for answer in self.answers:
                self.come.put(answer)
        except grpc.RpcError as error:
            self.come.put(error)

    def next(self, within: float = 10):
        answer = self.come.get(timeout=within)
        assert not isinstance(answer, grpc.RpcError), answer
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answers.cancel()


# --- grpc.health.v1


def check(channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def watch(channel, service: str) -> Stream:
    request = health_pb2.HealthCheckRequest(service=service)
    return Stream(health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60))


def test_health_check_of_the_whole_and_of_each_component(rpc):
    for service in ("", *(f"mcpscope.{name}" for name in COMPONENTS)):
        settles_at(SERVING, lambda: check(rpc.channel, service))
    for unknown in ("nonsense", "mcpscope.nonsense", "registry", "mcpscope.", "x" * 10_000):
        code, details = failure(lambda: check(rpc.channel, unknown))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "mcpscope.transports" in details and len(details) < 1000


@contextlib.contextmanager
def plain_server(port: int):
    """Something that answers HTTP on this port, and takes all of its connections with it."""
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: connects(port), what="the plain server")
        yield
    finally:
        process.kill()
        process.wait()


def test_a_watcher_sees_a_component_fail_and_recover(instances):
    port = free_port()
    with plain_server(port):
        proxy = instances.proxy(f"http://127.0.0.1:{port}/mcp", env=instances.variables() | QUICK)
        rpc = Rpc(proxy.grpc)
        settles_at(SERVING, lambda: check(rpc.channel, "mcpscope.transports"))
        streams = [watch(rpc.channel, name) for name in ("mcpscope.transports", "")]
        assert [stream.next().status for stream in streams] == [SERVING] * 2
        steady = watch(rpc.channel, "mcpscope.observability")
        assert steady.next().status == SERVING
    assert httpx.post(proxy.proxy, json=call(), trust_env=False).status_code == 502
    assert [stream.next().status for stream in streams] == [NOT_SERVING] * 2
    assert check(rpc.channel, "mcpscope.transports") == check(rpc.channel, "") == NOT_SERVING
    assert plain(rpc("HealthService.GetHealth"))["health"]["components"]["transports"]["status"] == "critical"
    with plain_server(port):
        assert [stream.next().status for stream in streams] == [SERVING] * 2
        assert check(rpc.channel, "mcpscope.transports") == check(rpc.channel, "") == SERVING
    assert list(steady.come.queue) == [], "nothing was said of a component that did not change"
    rpc.channel.close()


def test_a_watcher_of_what_does_not_exist_is_told_and_kept(rpc):
    with watch(rpc.channel, "mcpscope.nonsense") as unknown, watch(rpc.channel, "mcpscope.registry") as known:
        assert unknown.next().status == SERVICE_UNKNOWN
        assert known.next().status == SERVING
        with pytest.raises(queue.Empty):
            unknown.next(within=1.5)


# --- Reflection


def reflect(channel, version: str, *requests):
    """The messages of both versions are the same; only the name of the service differs."""
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return list(method((reflection_pb2.ServerReflectionRequest(**request) for request in requests), timeout=10))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_and_describes(rpc, version):
    asked = [
        {"list_services": "*"},
        {"file_by_filename": "mcpscope/v1/health.proto"},
        *({"file_containing_symbol": f"mcpscope.v1.{service}"} for service in SERVICES),
        {"file_containing_symbol": "grpc.health.v1.Health.Watch"},
        {"file_containing_symbol": "mcpscope.v1.TraceFilter"},
    ]
    listed, file, *symbols = reflect(rpc.channel, version, *asked)
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {f"mcpscope.v1.{service}" for service in SERVICES} | {"grpc.health.v1.Health"}
    for answer in (file, *symbols):
        files = answer.file_descriptor_response.file_descriptor_proto
        assert files and all(descriptor_pb2.FileDescriptorProto.FromString(file).name for file in files), answer
    # The library that answers ends the stream, where others answer with an error and go on.
    for unknown in ({"file_containing_symbol": "mcpscope.v1.Nonsense"}, {"file_by_filename": "nonsense.proto"}):
        assert failure(lambda: reflect(rpc.channel, version, unknown))[0] is grpc.StatusCode.NOT_FOUND


def test_reflection_knows_every_method(rpc):
    """By grpcio's own client of it, which speaks v1alpha."""
    services = {name for name in rpc.database.get_services() if name.startswith("mcpscope.")}
    assert services == {f"mcpscope.v1.{service}" for service in SERVICES}
    for service, methods in SERVICES.items():
        found = rpc.pool.FindServiceByName(f"mcpscope.v1.{service}").methods_by_name
        assert set(found) == methods


# --- The figures: the same as over HTTP


def without_nulls(value):
    """JSON has null where a message has nothing."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def flat_metrics(metrics: dict) -> dict:
    """JSON has the metrics beside the readings."""
    return metrics.pop("metrics") | metrics


def both(seen, path: str, ask):
    """The JSON and the message, without the readings that differ from one moment to the next."""
    json, message = without_nulls(seen.get(path).json()), ask()
    for reading in ("timestamp", "uptime", "system_uptime", "memory_usage", "cpu_usage"):
        assert (reading in json) == (reading in message), reading
        if reading in json:
            ours, theirs = json.pop(reading), message.pop(reading)
            assert type(ours) is type(theirs) or reading == "cpu_usage"
            if reading in ("timestamp", "uptime", "system_uptime"):
                assert 0 <= theirs - ours < 5000, reading
    return json, message


def agree(seen, path: str, ask, within: float = 10):
    """They may be asked on both sides of a change, but not for ever."""
    deadline = time.monotonic() + within
    while True:
        json, message = both(seen, path, ask)
        if json == message or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert message == json
    return message


def test_health_is_that_of_http(seen, rpc):
    def ask():
        health = plain(rpc("HealthService.GetHealth"))["health"]
        assert health.pop("processes") == []
        return health

    health = agree(seen, "api/v1/health", ask)
    assert set(health["components"]) >= set(COMPONENTS)
    assert health["components"]["transports"]["status"] == "healthy"


def test_health_shows_the_supervised_child(instances):
    instance = instances.run("--name", "child", command=["cat"], env=instances.variables() | QUICK)
    with Rpc(instance.grpc) as rpc:
        of_health = lambda: plain(rpc("HealthService.GetHealth"))["health"]["processes"]  # noqa: E731
        of_dashboard = lambda: plain(rpc("DashboardService.GetSnapshot"))["dashboard"]["processes"]  # noqa: E731
        for processes in (of_health, of_dashboard):
            wait_until(processes, what="the child")
            (child,) = processes()
            assert child["name"] == "child" and child["pid"] != instance.process.pid
            assert child["memory_usage"] > 0 and 0 <= child["cpu_usage"] <= 1


def test_metrics_are_those_of_http(seen, rpc):
    ask = lambda: flat_metrics(plain(rpc("MetricsService.ListMetrics"))["metrics"])  # noqa: E731
    metrics = agree(seen, "api/v1/metrics", ask)
    assert set(metrics) == CRITICAL
    tools = {series["labels"]["tool"] for series in metrics["tool_call_duration_ms"]["series"]}
    assert tools == {"good", "bad", "slow"}


def test_each_metric_by_its_name(seen, rpc):
    for name in CRITICAL:
        answer = rpc("MetricsService.GetMetric", name=name)
        assert abs(answer.timestamp - time.time() * 1000) < 60_000
        # A window may close between the two.
        listed = lambda: plain(rpc("MetricsService.ListMetrics"))["metrics"]["metrics"][name]  # noqa: E731
        alone = lambda: plain(rpc("MetricsService.GetMetric", name=name))["metric"]  # noqa: E731
        wait_until(lambda: listed() == alone(), what=f"the same twice of {name}")
    for unknown in ("nonsense", "", "x" * 10_000):
        code, details = rpc.refused("MetricsService.GetMetric", name=unknown)
        assert code is grpc.StatusCode.NOT_FOUND
        assert "tool_call_duration_ms" in details and len(details) < 1000


def test_the_summary_is_that_of_http(seen, rpc):
    summary = agree(seen, "api/v1/metrics/summary", lambda: plain(rpc("MetricsService.GetSummary"))["summary"])
    assert summary["counters"]["tool_call_duration_ms"] == 4
    assert summary["total_metrics"] >= summary["critical_metrics"] > 0


def test_reset_begins_anew(seen, rpc):
    rpc("MetricsService.ResetMetrics")
    counters = rpc("MetricsService.GetSummary").summary.counters
    assert counters["tool_call_duration_ms"] == 0
    make_calls(seen, "again")
    settles_at(1, lambda: rpc("MetricsService.GetSummary").summary.counters["tool_call_duration_ms"])


def test_values_from_outside_are_recorded(proxy, rpc):
    name = "MetricsService.RecordMetrics"
    labels = {"server": "elsewhere", "tool": "made", "outcome": "ok"}
    good = [rpc.request(name, name="tool_call_duration_ms", value=250, labels=labels)] * 3
    bad = [
        rpc.request(name, name="mcp_nonsense", value=1),
        rpc.request(name, name="tool_call_duration_ms", value=1, labels={"nonsense": "x"}),
        rpc.request(name, name="tool_call_duration_ms", value=float("nan")),
        rpc.request(name, name="tool_call_duration_ms", value=1, labels={"tool": "x" * 1000}),
        rpc.request(name, name="tool_call_duration_ms", value=1, labels={"outcome": "success"}),
    ]
    # Refused ones in between end nothing.
    answer = rpc.stub(name)(iter([good[0], *bad, *good[1:]]), timeout=10)
    assert (answer.accepted, answer.rejected) == (3, 5)
    assert "mcp_nonsense" in answer.first_error and "mcpscope_, mcp_ or process_" in answer.first_error
    none = rpc.stub(name)(iter([]), timeout=10)
    assert (none.accepted, none.rejected, none.HasField("first_error")) == (0, 0, False)
    family = "mcpscope_tool_call_duration_seconds"
    metrics = proxy.metrics()
    assert metrics.sum(f"{family}_count", server="elsewhere", tool="made") == 3
    assert metrics.sum(f"{family}_sum", server="elsewhere", tool="made") == pytest.approx(0.75)
    assert metrics.by("server", f"{family}_count") == {"elsewhere": 3}


def test_other_names_are_sampled(proxy, rpc, promtool):
    name, records = "MetricsService.RecordMetrics", 10_000
    one = rpc.request(name, name="lookup_seconds", value=0.25, labels={"cache": 'a"\\b\n'})
    # A part of another metric, a label that tells such parts apart.
    bad = [rpc.request(name, name="lookup_seconds_count", value=1), rpc.request(name, name="x", labels={"le": "1"})]
    answer = rpc.stub(name)(iter([one] * records), timeout=60)
    assert (answer.accepted, answer.rejected) == (records, 0)
    refused = rpc.stub(name)(iter(bad * 500), timeout=60)
    assert (refused.accepted, refused.rejected) == (0, 1000) and "lookup_seconds_count" in refused.first_error

    metrics = proxy.metrics()
    promtool(metrics.text)
    rate = metrics.sum("mcpscope_sampling_rate")
    assert rate == 0.1
    kept = metrics.sum("lookup_seconds_count", cache='a"\\b\n')
    sigma = math.sqrt(records * (1 - rate) / rate)
    assert abs(kept / rate - records) < 4 * sigma
    assert metrics.sum("lookup_seconds_sum") == pytest.approx(kept * 0.25)
    assert metrics.sum("lookup_seconds_bucket", le="0.2") == 0
    assert metrics.header("TYPE", "lookup_seconds") == "histogram"
    assert "mcpscope_sampling_rate" in metrics.header("HELP", "lookup_seconds")
    assert not metrics.matching("lookup_seconds_count_count") and not metrics.matching("x_count")
    summary = rpc("MetricsService.GetSummary").summary
    assert summary.total_metrics - summary.critical_metrics == kept


# --- Traces


def test_traces_are_those_of_http(seen, rpc):
    listed = [plain(trace) for trace in rpc("TraceService.ListTraces").traces]
    assert listed == without_nulls(seen.get("api/v1/traces").json())
    assert [trace["tool"] for trace in listed] == ["slow", "good", "bad", "good"]
    for trace in listed:
        id = trace["id"]
        found = plain(rpc("TraceService.GetTrace", id=id).trace)
        assert found == without_nulls(seen.get(f"api/v1/traces/{id}").json()) == trace


def test_traces_by_every_filter(seen, rpc):
    every = [plain(trace) for trace in rpc("TraceService.ListTraces").traces]
    middle = every[1]["timestamp"]
    error = rpc.pool.FindEnumTypeByName("mcpscope.v1.TraceStatus").values_by_name["TRACE_STATUS_ERROR"].number

    def tools(**filter) -> list[str]:
        return [trace.tool for trace in rpc("TraceService.ListTraces", filter=filter).traces]

    assert tools() == ["slow", "good", "bad", "good"]
    assert tools(operation="tools/call bad") == ["bad"]
    assert tools(operation="tools/call") == []
    assert tools(method="tools/call") == tools()
    assert tools(method="tools/list") == []
    assert tools(status=error) == ["bad"]
    assert tools(tool="good") == ["good"] * 2
    assert tools(server=NAME) == tools()
    assert tools(server="nobody") == []
    assert tools(text="CALL GOOD") == ["good"] * 2
    assert tools(text=every[2]["id"][4:]) == ["bad"]
    assert tools(injected=True) == tools(session="nobody") == []
    assert tools(injected=False) == tools()
    assert tools(min_duration_ms=150) == ["slow"]
    assert tools(since=middle) == [trace["tool"] for trace in every if trace["timestamp"] >= middle]
    assert tools(until=middle) == [trace["tool"] for trace in every if trace["timestamp"] < middle]
    assert tools(limit=2) == ["slow", "good"]
    assert tools(tool="good", limit=1) == ["good"]
    assert tools(tool="good", status=error) == []
    for wrong, field in (
        ({"min_duration_ms": -1}, "min_duration_ms"),
        ({"min_duration_ms": float("nan")}, "min_duration_ms"),
        ({"limit": 2**32 - 1}, "limit"),
        ({"status": 99}, "status"),
    ):
        code, details = rpc.refused("TraceService.ListTraces", filter=wrong)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith(field) and "expected" in details


def test_a_trace_that_is_not_there(seen, rpc):
    for unknown in ("1" * 32, "1" * 31):  # an id, and the beginning of one
        assert rpc.refused("TraceService.GetTrace", id=unknown)[0] is grpc.StatusCode.NOT_FOUND
    for wrong in ("", "nonsense", "1" * 3, "1" * 33, "0" * 32, "G" * 32, "x" * 10_000):
        code, details = rpc.refused("TraceService.GetTrace", id=wrong)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, wrong
        assert "32" in details and len(details) < 1000


def test_traces_come_as_they_end(seen, rpc):
    with Stream(rpc("TraceService.WatchTraces", filter={"limit": 1}, timeout=30)) as all_new:
        # What was asked for of the past comes first, so that the test knows when the watch has begun.
        assert [trace.tool for trace in all_new.next().traces] == ["slow"]
        with Stream(rpc("TraceService.WatchTraces", filter={"tool": "b", "limit": 1}, timeout=30)) as only_b:
            make_calls(seen, "a", "b", "a")
            came = []
            while len(came) < 3:
                answer = all_new.next()
                assert answer.missed == 0
                came += answer.traces
            assert [trace.tool for trace in came] == ["a", "b", "a"]
            (b,) = only_b.next().traces
            assert b.tool == "b"
            assert plain(b) == plain(rpc("TraceService.GetTrace", id=b.id).trace)


def test_cleared_traces_are_gone(seen, rpc):
    rpc("TraceService.ClearTraces")
    assert not rpc("TraceService.ListTraces").traces
    assert seen.get("api/v1/traces").json() == []


# --- Snapshots and instrumentation


def test_a_snapshot_is_the_dashboard_of_http(seen, rpc):
    def ask():
        message = plain(rpc("DashboardService.GetSnapshot"))["dashboard"]
        message["metrics"] = flat_metrics(message["metrics"])
        # The message has room for what comes with chaos and alerts; JSON has its names already.
        assert message["system_health"].pop("processes") == message["processes"]
        return message

    wait_until(lambda: len(ask()["traces"]) == 4, what="a frame with all traces")
    # They are of the same frame unless a tick came between.
    for _ in range(5):
        json, message = without_nulls(seen.get("api/v1/dashboard").json()), ask()
        if json["timestamp"] == message["timestamp"]:
            break
    assert json.pop("alerts") == []
    assert message == json
    assert message["system_health"]["overall"] == "healthy"


@pytest.mark.parametrize("name", ["DashboardService.WatchSnapshots", "HealthService.WatchHealth"])
def test_streams_begin_at_once_and_go_on_with_every_tick(rpc, name):
    rpc(name.replace("Watch", "Get").removesuffix("s"))
    began = time.monotonic()
    with Stream(rpc(name, timeout=30)) as stream:
        (field,) = stream.next(within=TICK).DESCRIPTOR.fields
        assert time.monotonic() - began < TICK, "the first does not wait for a tick"
        # Eight at least: health comes with a change, too, which may be at the same moment.
        times = [getattr(stream.next(within=5 * TICK), field.name).timestamp for _ in range(8)]
    assert times == sorted(times)
    # Ticks, not a flood: on a busy machine they may be late, but not early one after the other.
    assert len(set(times)) >= 5 and times[-1] - times[0] > 3 * TICK * 1000


def test_instrumentation_can_be_changed_while_it_runs(seen, rpc):
    def status() -> dict:
        return agree(seen, "api/v1/instrumentation", lambda: plain(rpc("InstrumentationService.GetStatus"))["status"])

    def components() -> dict:
        return {component["component"]: component for component in status()["components"]}

    assert status()["instrumented_components"] == 6 and status()["auto_instrument"]
    assert components()["tools"] == {"component": "tools", "functions": ["call_tool"], "calls": 4, "errors": 1}
    rpc("InstrumentationService.Instrument", component="mine", functions=["one", "two"])
    assert components()["mine"]["functions"] == ["one", "two"]
    rpc("InstrumentationService.Uninstrument", component="mine")
    rpc("InstrumentationService.Uninstrument", component="tools")
    assert set(components()).isdisjoint({"mine", "tools"})
    of_tools = lambda: seen.metrics().sum("mcpscope_component_operations_total", component="tools")  # noqa: E731
    assert of_tools() == 4
    make_calls(seen, "unseen")
    of_transport = seen.metrics().sum("mcpscope_component_operations_total", component="transport")
    assert of_transport > 0 and of_tools() == 4
    rpc("InstrumentationService.Instrument", component="tools", functions=["call_tool"])
    make_calls(seen, "seen")
    settles_at(5, of_tools)

    assert rpc.refused("InstrumentationService.Uninstrument", component="nonsense")[0] is grpc.StatusCode.NOT_FOUND
    for component, functions in (("", ["x"]), ("x", []), ("x", [""]), ("x" * 10_000, ["x"])):
        code, _ = rpc.refused("InstrumentationService.Instrument", component=component, functions=functions)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
