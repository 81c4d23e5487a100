"""A collector for tests: receives OTLP over real HTTP and stores it."""

import gzip
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.certificates import Certificate


class Collector:
    """Exports received so far."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        """Value for `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        self.spans: list[Span] = []
        self.metrics: list[Metric] = []
        """Headers of the last export."""
        self.resource: dict[str, Any] = {}
        """Resource of the last export."""

    def take(self, path: str, body: bytes) -> None:
        """Store one export."""
        if path == "/v1/traces":
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resource = attributes(of_resource.resource.attributes)
                self.spans += [span for scope in of_resource.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            (each,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
            self.resource = attributes(each.resource.attributes)
            self.metrics = [metric for scope in each.scope_metrics for metric in scope.metrics]
        else:
            raise ValueError(path)


def attributes(pairs: Any) -> dict[str, Any]:
    """Return attributes as Python values."""

    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")

    return {pair.key: value(pair) for pair in pairs}


@contextmanager
def collecting(certificate: Certificate | None = None) -> Iterator[Collector]:
    """Run a collector on a free port, with TLS if a certificate for localhost is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as above
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), OSError):  # a client that disconnects is no error
                super().handle_error(request, client_address)

    with Server(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        if certificate is not None:
            collector.endpoint = f"https://localhost:{server.server_port}"
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
