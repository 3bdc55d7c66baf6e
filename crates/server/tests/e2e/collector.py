"""OpenTelemetry collectors, made of the official protobuf package: over gRPC, and over HTTP. The test decides what they answer."""

import contextlib
import gzip
import socket
import threading
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

SIGNALS = {
    "/v1/traces": (trace_service_pb2.ExportTraceServiceRequest, trace_service_pb2.ExportTraceServiceResponse),
    "/v1/metrics": (metrics_service_pb2.ExportMetricsServiceRequest, metrics_service_pb2.ExportMetricsServiceResponse),
}


@dataclass
class Taken:
    """A request that was answered with success."""

    message: object
    headers: dict[str, str]


class Collector:
    """What both have in common: what they took, and how long they refuse."""

    def __init__(self):
        self.taken: list[Taken] = []
        # Answers a request for traces in place of us; for HTTP it gets the handler, for gRPC the context.
        self.refuse = None
        self.refused = 0

    def __enter__(self):
        return self

    def of(self, field: str) -> list:
        return [resource for taken in list(self.taken) for resource in getattr(taken.message, field, [])]

    @property
    def spans(self) -> list:
        return [span for resource in self.of("resource_spans") for scope in resource.scope_spans for span in scope.spans]

    @property
    def metrics(self) -> dict:
        """The newest of each name."""
        found = {}
        for resource in self.of("resource_metrics"):
            found |= {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
        return found


class GrpcCollector(Collector):
    """OTLP over gRPC."""

    def __init__(self):
        super().__init__()
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        owner = self

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request, context):
                if owner.refuse:
                    owner.refused += 1
                    return owner.refuse(context)
                return owner.take(request, context, trace_service_pb2.ExportTraceServiceResponse())

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request, context):
                return owner.take(request, context, metrics_service_pb2.ExportMetricsServiceResponse())

        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), self.server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        }
        self.server.start()

    def take(self, request, context, answer):
        headers = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        self.taken.append(Taken(request, headers))
        return answer

    def __exit__(self, *_):
        self.server.stop(0).wait(5)


class HttpCollector(Collector):
    """OTLP over HTTP, as protobuf."""

    def __init__(self, port: int = 0):
        super().__init__()
        self.connections: list[socket.socket] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self):
                super().setup()
                owner.connections.append(self.connection)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                kind, answer = SIGNALS[self.path]
                if owner.refuse and self.path == "/v1/traces":
                    owner.refused += 1
                    owner.refuse(self)
                    return
                assert self.headers["Content-Type"] == "application/x-protobuf"
                owner.taken.append(Taken(kind.FromString(body), {k.lower(): v for k, v in self.headers.items()}))
                self.answer(200, answer())

            def answer(self, status: int, message=None, **headers: str):
                body = message.SerializeToString() if message else b""
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        # Those that are open would be served on.
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
