"""A collector of the test's own: takes OTLP over HTTP, keeps it as it came, and reads it with OpenTelemetry's own classes."""

from __future__ import annotations

import base64
import http.server
import json
import subprocess
import threading

from sandpool import CLEAN, installed

# Runs in the environment of the travel agent, which has OpenTelemetry's messages.
READ = """
import base64, json, sys
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
kinds = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest, "/v1/logs": ExportLogsServiceRequest}
read = []
for path, body in json.load(sys.stdin):
    message = kinds[path]()
    message.ParseFromString(base64.b64decode(body))
    read.append(MessageToDict(message))
json.dump(read, sys.stdout)
"""


def value(of: dict):
    """An attribute's value."""
    [(kind, said)] = of.items()
    return int(said) if kind == "intValue" else said


def attributes(of: dict) -> dict:
    return {pair["key"]: value(pair["value"]) for pair in of.get("attributes", [])}


def digits(text: str) -> str:
    """An id, as `traceparent` has it."""
    return base64.b64decode(text).hex()


class Collector(http.server.ThreadingHTTPServer):
    """`answer` gets each request, and gives a status and headers, or nothing for an answer that never comes."""

    daemon_threads = True

    def __init__(self, answer=lambda _: (200, {})):
        self.came: list[tuple[str, dict, bytes]] = []
        self.done = threading.Event()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                collector.came.append((self.path, dict(self.headers), body))
                answered = answer(self)
                if answered is None:
                    collector.done.wait(60)
                    return
                status, headers = answered
                text = headers.pop("body", b"")
                self.send_response(status)
                for name, said in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, said)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # Whoever asked has gone.

    def close(self):
        self.done.set()
        self.shutdown()
        self.server_close()

    def bytes(self) -> bytes:
        return b"".join(body for _, _, body in list(self.came))

    def _read(self, path: str) -> list[dict]:
        bodies = [(path, base64.b64encode(body).decode()) for where, _, body in list(self.came) if where == path]
        python = installed("SANDPOOL_E2E_TRAVEL") / "bin/python"
        done = subprocess.run([python, "-c", READ], input=json.dumps(bodies), env=CLEAN, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def spans(self, trace: str | None = None) -> list[dict]:
        """The spans, of one trace or of all: with their ids as digits and their attributes as a dictionary."""
        found = []
        for request in self._read("/v1/traces"):
            for resource in request["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        span |= {
                            "trace": digits(span["traceId"]),
                            "id": digits(span["spanId"]),
                            "parent": digits(span.get("parentSpanId", "")),
                            "attributes": attributes(span),
                            "resource": attributes(resource["resource"]),
                            "start": int(span["startTimeUnixNano"]),
                            "end": int(span["endTimeUnixNano"]),
                            "error": span.get("status", {}).get("message"),
                        }
                        found.append(span)
        return sorted((span for span in found if trace in (None, span["trace"])), key=lambda span: span["start"])

    def logs(self) -> list[dict]:
        found = []
        for request in self._read("/v1/logs"):
            for resource in request["resourceLogs"]:
                for scope in resource["scopeLogs"]:
                    for record in scope["logRecords"]:
                        record |= {"attributes": attributes(record), "trace": digits(record.get("traceId", "")), "span": digits(record.get("spanId", ""))}
                        found.append(record)
        return found

    def metrics(self) -> dict[str, dict]:
        """The last look at each metric, by name."""
        found = {}
        for request in self._read("/v1/metrics"):
            for resource in request["resourceMetrics"]:
                for scope in resource["scopeMetrics"]:
                    found |= {metric["name"]: metric for metric in scope["metrics"]}
        return found
