"""Traces and metrics at OpenTelemetry collectors: ids, kinds and attributes against the conventions, and collectors that fail."""

import contextlib
import json
import re
import sys
import threading
import time

import grpc
import httpx
import pytest
from mcp.client.stdio import StdioServerParameters
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, use_span

from collector import GrpcCollector, HttpCollector
from everything import PROTOCOL, Exercise, exercise, http_session, run_async, stdio_session
from harness import free_port, read_ready_file, scrape, settles_at, wait_until
from upstream import call

NAME = "exported"
# In ms: nobody wants to wait for a minute.
OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331

# semantic-conventions-genai, docs/gen-ai/mcp.md: the type of each attribute of a span, on which side it may be.
BOTH = {
    "mcp.method.name": "string_value",
    "error.type": "string_value",
    "gen_ai.tool.name": "string_value",
    "gen_ai.prompt.name": "string_value",
    "gen_ai.operation.name": "string_value",
    "jsonrpc.request.id": "string_value",
    "jsonrpc.protocol.version": "string_value",
    "mcp.resource.uri": "string_value",
    "mcp.protocol.version": "string_value",
    "mcp.session.id": "string_value",
    "network.protocol.name": "string_value",
    "network.protocol.version": "string_value",
    "network.transport": "string_value",
    "rpc.response.status_code": "string_value",
}
SIDES = {
    Span.SPAN_KIND_SERVER: BOTH | {"client.address": "string_value", "client.port": "int_value"},
    Span.SPAN_KIND_CLIENT: BOTH | {"server.address": "string_value", "server.port": "int_value"},
}
# The caller's mistakes, which are no errors of the server's.
CALLERS = {"-32700", "-32600", "-32601", "-32602", "-32002"}
BOUNDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]


def values(attributes) -> dict:
    found = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}
    assert len(found) == len(attributes), "an attribute is there twice"
    return found


def check_span(span):
    """What the conventions say of every span."""
    assert (len(span.trace_id), len(span.span_id)) == (16, 8) and any(span.trace_id) and any(span.span_id)
    assert len(span.parent_span_id) in (0, 8)
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    assert span.flags & 1
    types = {a.key: a.value.WhichOneof("value") for a in span.attributes if not a.key.startswith("mcpscope.")}
    assert types.items() <= SIDES[span.kind].items(), span
    found = values(span.attributes)
    method = found["mcp.method.name"]
    target = found.get("gen_ai.tool.name") or found.get("gen_ai.prompt.name")
    assert span.name == (f"{method} {target}" if target else method)
    assert ("gen_ai.tool.name" in found) == (method == "tools/call") == ("gen_ai.operation.name" in found)
    assert found.get("gen_ai.operation.name", "execute_tool") == "execute_tool"
    assert ("gen_ai.prompt.name" in found) == (method == "prompts/get")
    if method in ("resources/read", "resources/subscribe"):
        assert found["mcp.resource.uri"].startswith("demo://")
    assert (span.status.code == Status.STATUS_CODE_ERROR) == ("error.type" in found)
    assert span.status.code in (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
    code = found.get("rpc.response.status_code")
    if code and span.kind == Span.SPAN_KIND_SERVER:
        assert ("error.type" in found) == (code not in CALLERS)
    elif code:
        assert found["error.type"] == code


def check_metrics(collector, instance_metrics, traces: set[bytes]):
    """That the same is exported as is scraped, in the form that the conventions give it."""
    operations = collector.metrics["mcp.server.operation.duration"]
    assert operations.unit == "s"
    assert operations.histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    exported = {}
    for point in operations.histogram.data_points:
        assert list(point.explicit_bounds) == BOUNDS
        assert (sum(point.bucket_counts), len(point.bucket_counts)) == (point.count, len(BOUNDS) + 1)
        assert 0 < point.start_time_unix_nano < point.time_unix_nano
        labels = values(point.attributes)
        exported[frozenset((name.replace(".", "_"), value) for name, value in labels.items())] = point.count
        assert labels.keys() <= BOTH.keys() | {"server", "injected"}
        for exemplar in point.exemplars:
            assert exemplar.trace_id in traces
    samples = instance_metrics.matching("mcp_server_operation_duration_seconds_count")
    scraped = {frozenset((k, v) for k, v in s.labels.items() if v): s.value for s in samples if s.value}
    assert {labels: count for labels, count in exported.items() if count} == scraped
    assert any(point.exemplars for point in operations.histogram.data_points)
    calls = collector.metrics["mcpscope.tool_call_duration"]
    count = instance_metrics.sum("mcpscope_tool_call_duration_seconds_count")
    assert (calls.unit, sum(point.count for point in calls.histogram.data_points)) == ("s", count)
    operations = collector.metrics["mcpscope.registry_operations"].sum
    assert operations.is_monotonic and operations.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    assert collector.metrics["mcpscope.active_sessions"].WhichOneof("data") == "gauge"


async def traced(session, record: Exercise):
    """All operations, as part of a trace that the client has begun."""
    state = TraceState([("vendor", "1")])
    context = SpanContext(TRACE, PARENT, is_remote=False, trace_flags=TraceFlags(1), trace_state=state)
    with use_span(NonRecordingSpan(context)):
        await exercise(session, record)


def check_traces(collector, record: Exercise, transport: str):
    spans = collector.spans
    for span in spans:
        check_span(span)
    assert len({(span.trace_id, span.span_id) for span in spans}) == len(spans)
    # What the client asks, seen from the server's side.
    asked = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER and record_of(span)]
    assert len(asked) == record.requests
    ours = [span for span in asked if span.trace_id == TRACE.to_bytes(16)]
    # All that the official client gives a context.
    assert len(ours) > record.requests / 2
    for span in ours:
        assert span.parent_span_id == PARENT.to_bytes(8)
        assert span.flags & 0x300 == 0x300, "the parent is another program's"
    assert {span.trace_state for span in ours} == {"vendor=1"}
    for span in asked:
        found = values(span.attributes)
        assert (found["network.transport"], found["mcpscope.server"]) == (transport, NAME)
        assert found["mcpscope.request_bytes"] > 0
        assert found.get("mcp.protocol.version", PROTOCOL) == PROTOCOL
    tools: dict = {}
    for span in asked:
        found = values(span.attributes)
        if tool := found.get("gen_ai.tool.name"):
            outcome = {None: "ok", "tool_error": "error"}.get(found.get("error.type"), found.get("error.type"))
            tools[tool, outcome] = tools.get((tool, outcome), 0) + 1
    # A call that was cancelled is no error, and so is the one that the client gave up on if it did not say why.
    finished = {key: n for key, n in record.tool_calls.items() if key[1] in ("ok", "error")}
    without = {key: n for key, n in tools.items() if key[0] != "trigger-long-running-operation"}
    assert without == {key: n for key, n in finished.items() if key[0] != "trigger-long-running-operation"}
    # The same once more as the server was asked for it: below the one above, and within its time.
    sent_on = {span.parent_span_id: span for span in spans if span.kind == Span.SPAN_KIND_CLIENT}
    for span in ours:
        below = sent_on[span.span_id]
        assert (below.trace_id, below.name, below.trace_state) == (span.trace_id, span.name, span.trace_state)
        assert span.start_time_unix_nano <= below.start_time_unix_nano <= below.end_time_unix_nano
        assert below.end_time_unix_nano <= span.end_time_unix_nano
        assert below.flags & 0x300 == 0x100, "the parent is this program's"


def record_of(span) -> bool:
    """Whether it is a request of the client's: what only tells has no id, and what the server asks has a CLIENT's side."""
    return "jsonrpc.request.id" in values(span.attributes) and values(span.attributes)["mcp.method.name"] not in (
        "roots/list",
        "sampling/createMessage",
        "elicitation/create",
    )


def check_resource(collector, taken, expected: dict):
    for field in ("resource_spans", "resource_metrics"):
        for resource in collector.of(field):
            found = values(resource.resource.attributes)
            assert found.items() >= expected.items()
            assert len(found.pop("service.instance.id")) == 36
            assert found["telemetry.sdk.name"] == "mcpscope" and found["telemetry.sdk.language"] == "rust"
    for each in taken:
        assert each.headers["x-tenant"] == "a b"
        assert each.headers["user-agent"].startswith("mcpscope/")


OPTIONS = OFTEN | {
    "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=e2e",
    "OTEL_SERVICE_NAME": "mine",
}
RESOURCE = {"service.name": "mine", "deployment.environment.name": "e2e"}


def test_over_grpc_what_the_official_client_does_over_stdio(environment, tmp_path):
    ready_file, stderr_file = tmp_path / "ready.json", tmp_path / "stderr.txt"
    options = ["run", "--dashboard", "127.0.0.1:0", "--grpc", "off", "--name", NAME, "--ready-file", str(ready_file), "--"]
    server = [environment.node, environment.everything, "stdio"]
    record = Exercise()

    async def session(collector):
        variables = environment.variables(tmp_path) | collector.variables | OPTIONS
        parameters = StdioServerParameters(command=environment.mcpscope, args=[*options, *server], env=variables)
        with stderr_file.open("w") as stderr:
            async with stdio_session(parameters, stderr, record) as client:
                await traced(client, record)
                at = read_ready_file(ready_file)["dashboard"]
                return scrape(at)

    with GrpcCollector() as collector:
        scraped = run_async(session, collector)
        # The end of the server is the end of the export, which has sent all by then.
        check_traces(collector, record, "pipe")
        check_metrics(collector, scraped, {span.trace_id for span in collector.spans})
        check_resource(collector, collector.taken, RESOURCE)
        endpoint = collector.variables["OTEL_EXPORTER_OTLP_ENDPOINT"]
    stderr = stderr_file.read_text()
    assert f"export traces to {endpoint} (grpc)\nexport metrics to {endpoint} (grpc) every 500ms\n" in stderr
    assert "a b" not in stderr and "a%20b" not in stderr, "headers carry secrets"


def test_over_http_what_the_official_client_does_over_http(everything_http, instances):
    record = Exercise()

    async def session(url: str):
        async with http_session(url, record) as client:
            await traced(client, record)

    with HttpCollector() as collector:
        proxy = instances.proxy(everything_http.url, "--name", NAME, env=instances.variables() | collector.variables | OPTIONS)
        run_async(session, proxy.proxy)
        asked = lambda: sum(s.kind == Span.SPAN_KIND_SERVER and record_of(s) for s in collector.spans)  # noqa: E731
        wait_until(lambda: asked() >= record.requests, what="all spans")
        metrics = proxy.metrics()
        proxy.process.terminate()
        assert proxy.wait() == 0
        check_traces(collector, record, "tcp")
        check_metrics(collector, metrics, {span.trace_id for span in collector.spans})
        check_resource(collector, collector.taken, RESOURCE)


def test_the_console(instances):
    """On stderr, because stdout is the protocol's."""
    variables = instances.variables() | OFTEN | {"OTEL_TRACES_EXPORTER": "console"}
    child = [sys.executable, "-c", "import sys\nfor line in sys.stdin: print(ANSWER, flush=True)".replace("ANSWER", ANSWER)]
    instance = instances.run("--name", NAME, command=child, env=variables)
    stdout, _ = instance.process.communicate(json.dumps(call("echo")).encode() + b"\n", timeout=10)
    assert [json.loads(line)["id"] for line in stdout.splitlines()] == [1]
    stderr = instance.stderr().splitlines()
    assert "export traces to the console" in stderr
    shown = [json.loads(line) for line in stderr if line.startswith("{")]
    (asked,) = [span for span in shown if span["kind"] == "server" and span["name"] == "tools/call echo"]
    assert (asked["server"], asked["status"], asked["attributes"]["gen_ai.tool.name"]) == (NAME, "ok", "echo")


def test_the_file_says_what_the_variables_do_not(instances, tmp_path):
    """What they say goes before, but where the file switches it off."""
    file = tmp_path / "otel.yaml"
    request = json.dumps(call("echo")).encode() + b"\n"
    child = [sys.executable, "-c", f"input(); print({ANSWER})"]

    def run(otel: str, variables: dict) -> str:
        file.write_text(f"otel: {{ {otel} }}\n")
        instance = instances.run("--config", str(file), command=child, env=instances.variables() | variables)
        instance.process.communicate(request, timeout=10)
        assert instance.process.returncode == 0
        return instance.stderr()

    assert '"name":"tools/call echo"' in run("enabled: true, exporters: [console]", {})
    none = run("enabled: true, exporters: [console], sampling: always_off", {})
    assert "export traces to the console" in none and "tools/call" not in none
    with HttpCollector() as collector:
        run("service_name: filed", collector.variables)
        found = [values(resource.resource.attributes)["service.name"] for resource in collector.of("resource_spans")]
        assert (found, asked(collector)) == (["filed"], 1)
        assert "export" not in run("enabled: false", collector.variables)
        assert "export traces to the console\n" in run("", collector.variables | {"OTEL_TRACES_EXPORTER": "console"})
        assert asked(collector) == 1
    stderr = run("", {"OTEL_TRACES_EXPORTER": "zipkin"})
    assert 'mcpscope: OTEL_TRACES_EXPORTER is passed over: expected otlp, console or none, found "zipkin"' in stderr


ANSWER = '\'{"jsonrpc": "2.0", "id": 1, "result": {"content": []}}\''


@contextlib.contextmanager
def proxied(instances, upstream, variables: dict):
    """A proxy to make calls through."""
    proxy = instances.proxy(upstream.url, "--name", NAME, env=instances.variables() | OFTEN | variables)
    with httpx.Client(trust_env=False, timeout=10) as http:

        def ask(times: int = 1):
            for _ in range(times):
                assert http.post(proxy.proxy, json=call("probe")).status_code == 200

        yield proxy, ask


def observability(instance) -> tuple[str, str]:
    component = instance.get("api/v1/health").json()["components"]["observability"]
    return component["status"], component["message"]


def dropped(instance) -> float:
    return instance.metrics().sum("mcpscope_dropped_total", what="export_span")


def asked(collector) -> int:
    return sum(span.kind == Span.SPAN_KIND_SERVER for span in collector.spans)


def test_a_collector_that_is_busy(instances, upstream):
    """It asks for a second; nothing is lost, and health says what goes on."""
    with HttpCollector() as collector, proxied(instances, upstream, collector.variables) as (proxy, ask):
        collector.refuse = lambda exchange: exchange.answer(429, Retry_After="1")
        begun = time.monotonic()
        ask(5)
        wait_until(lambda: observability(proxy)[0] == "warning", what="the warning")
        at = collector.variables["OTEL_EXPORTER_OTLP_ENDPOINT"]
        message = f"exporting traces to {at.removeprefix('http://')} fails: 429 Too Many Requests"
        assert observability(proxy)[1] == f"Observability failing: {message}"
        refused = collector.refused
        # Meanwhile it is left alone.
        assert refused <= time.monotonic() - begun + 1
        collector.refuse = None
        wait_until(lambda: asked(collector) == 5, what="all spans")
        settles_at(("healthy", "Observability running"), lambda: observability(proxy))
        assert dropped(proxy) == 0
        told = re.findall(rf"exporting traces to {re.escape(at)}/v1/traces \(http/protobuf\) (.+)", proxy.stderr())
        assert told == ["fails: 429 Too Many Requests", "works again"], proxy.stderr()


def test_a_collector_that_rejects_some(instances, upstream):
    def reject(exchange):
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = 1
        answer.partial_success.error_message = "no room"
        exchange.answer(200, answer)

    with HttpCollector() as collector, proxied(instances, upstream, collector.variables) as (proxy, ask):
        collector.refuse = reject
        ask()
        settles_at(1, lambda: dropped(proxy))
        status, message = observability(proxy)
        assert status == "warning" and message.endswith("spans rejected: no room"), message
        collector.refuse = None
        ask()
        settles_at(("healthy", "Observability running"), lambda: observability(proxy))
        assert dropped(proxy) == 1


def test_a_collector_that_comes_and_goes(instances, upstream):
    """Nobody listens at first, and nobody at the end."""
    port = free_port()
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_BSP_EXPORT_TIMEOUT": "20000",
    }
    with proxied(instances, upstream, variables) as (proxy, ask):
        ask(3)
        wait_until(lambda: observability(proxy)[0] == "warning", what="the warning")
        assert "nothing listens there" in observability(proxy)[1]
        with HttpCollector(port) as collector:
            # Another wait between two attempts, with its jitter.
            wait_until(lambda: asked(collector) == 3, 20, what="the spans that waited")
            settles_at(("healthy", "Observability running"), lambda: observability(proxy))
            taken = collector.spans
        ask(2)
        wait_until(lambda: observability(proxy)[0] == "warning", what="the warning")
        assert len({span.span_id for span in taken}) == len(taken)
        begun = time.monotonic()
        proxy.process.terminate()
        assert proxy.wait() == 0
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize("kind", [GrpcCollector, HttpCollector])
def test_a_collector_that_hangs(instances, upstream, kind):
    """Each span is exported or dropped, and the traffic is none the slower."""
    go_on = threading.Event()

    def hang(exchange):
        go_on.wait(30)
        # Whoever still waits then comes again: nothing was taken.
        if kind is GrpcCollector:
            exchange.abort(grpc.StatusCode.UNAVAILABLE, "later")
        exchange.answer(503)

    limits = {
        "OTEL_EXPORTER_OTLP_TIMEOUT": "300",
        "OTEL_BSP_EXPORT_TIMEOUT": "500",
        "OTEL_BSP_MAX_QUEUE_SIZE": "20",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
    }
    calls = 400
    with kind() as collector, proxied(instances, upstream, collector.variables | limits) as (proxy, ask):
        collector.refuse = hang
        ask(calls)
        wait_until(lambda: observability(proxy)[0] == "warning", what="the warning")
        assert "no answer within 300ms" in observability(proxy)[1]
        collector.refuse = None
        go_on.set()
        settles_at(("healthy", "Observability running"), lambda: observability(proxy), within=30)
        recorded = calls
        # One span of each kind for each call, or one alone.
        kinds = len({span.kind for span in collector.spans})
        settles_at(calls * kinds, lambda: len(collector.spans) + dropped(proxy), within=20)
        assert dropped(proxy) > 0 and asked(collector) < recorded
        page = proxy.metrics()
        assert page.sum("mcpscope_tool_call_duration_seconds_count") == calls


def test_the_end_of_run_is_not_held_up(instances):
    """A collector that hangs costs a second at most, one that is not there nothing; and what is there is sent."""
    late = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_METRIC_EXPORT_INTERVAL": "60000"}
    child = [sys.executable, "-c", f"input(); print({ANSWER})"]

    def run(variables: dict) -> tuple[float, str]:
        instance = instances.run("--name", NAME, command=child, env=instances.variables() | late | variables)
        request = json.dumps(call("echo")).encode() + b"\n"
        begun = time.monotonic()
        instance.process.communicate(request, timeout=10)
        assert instance.process.returncode == 0
        return time.monotonic() - begun, instance.stderr()

    lost = "the program ends before they were exported spans="
    with HttpCollector() as collector:
        _, said = run(collector.variables)
        assert asked(collector) == 1 and "mcpscope.tool_call_duration" in collector.metrics
        assert lost not in said, said
        collector.refuse = lambda _: time.sleep(10)
        took, said = run(collector.variables)
        assert took < 3 and lost in said, said
    took, said = run({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    assert took < 1 and lost in said, said
