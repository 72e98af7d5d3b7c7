"""One line, one sample and, where asked for, one span per call."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from services.mesh import telemetry
from services.mesh.call import working
from services.mesh.otlp import OtlpExporter
from tests.mesh import fakes
from tests.mesh.fakes import FakeAudit, servicers
from tests.mesh.world import ROOT, World


async def test_a_call_is_one_line(world: World) -> None:
    """Reads that went well are told at debug, refusals at info, with who, what, how long and why."""
    with structlog.testing.capture_logs() as logs:
        async with (
            world.serving("audit", servicers(FakeAudit())) as server,
            world.channel(server, "operator") as channel,
        ):
            stub = rpc.AuditServiceStub(channel)
            await stub.GetEvent(pb.GetEventRequest(event_id=fakes.ECHO))
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetEvent(pb.GetEventRequest(event_id=fakes.REFUSE))
    good, bad = [entry for entry in logs if entry["event"] == "call"]
    assert (good["log_level"], good["code"], good["identity"]) == ("debug", "OK", "human/operator")
    assert (bad["log_level"], bad["code"], bad["reason"]) == ("info", "NOT_FOUND", "NOT_FOUND")
    assert good["ms"] >= 0


def test_log_lines_are_json_with_the_trace() -> None:
    """Our lines and those of libraries are JSON objects on stderr; inside a call they carry its ids."""
    code = (
        "import logging, structlog\n"
        "from services.mesh import telemetry\n"
        "from services.mesh.call import working\n"
        "telemetry.setup('audit', 'info')\n"
        "with working('service/audit', 'x/Y', 1) as call:\n"
        "    structlog.get_logger().info('ours', what={1: object})\n"
        "    logging.getLogger('lib').warning('theirs %s', 1)\n"
        "    logging.getLogger('lib').info('not told')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    ours, theirs = [json.loads(line) for line in done.stderr.splitlines()]
    assert (ours["event"], theirs["event"], theirs["level"]) == ("ours", "theirs 1", "warning")
    assert ours["trace_id"] == theirs["trace_id"]
    assert len(ours["trace_id"]) == 32


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, _: Any) -> trace_service_pb2.ExportTraceServiceResponse:  # noqa: N802
        """Keep the spans."""
        self.spans += [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """Give a collector that this process exports to."""
    server, kept = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setattr(telemetry, "_exporter", OtlpExporter("audit", f"127.0.0.1:{port}"))
    yield kept
    await server.stop(0)


async def test_a_served_call_is_a_span_below_its_caller(world: World, collector: Collector) -> None:
    """The exported span has the ids that the log and the next hop carry, and the caller's span as parent."""
    fake = FakeAudit()
    with working("service/gateway", "opsmesh.gateway.v1.EffectService/GetEffect", 5) as caller:
        caller.trace = telemetry.begin(None)[0]
        async with world.serving("audit", servicers(fake)) as server, world.channel(server, "gateway") as channel:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO))
    await asyncio.to_thread(telemetry.close)
    (span,) = collector.spans
    (call,) = fake.calls
    assert span.trace_id.hex() == call.trace.trace_id == caller.trace.trace_id
    assert span.span_id.hex() == call.trace.span_id
    assert span.parent_span_id.hex() == caller.trace.span_id
    assert span.name == "opsmesh.audit.v1.AuditService/GetEvent"


def test_a_collector_that_is_gone_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing gives up within seconds."""
    monkeypatch.setattr(telemetry, "_exporter", OtlpExporter("audit", "127.0.0.1:1"))
    with working("service/audit", "x/Y", 1) as call:
        call.trace = telemetry.begin(None)[0]
        with telemetry.span(call, None):
            pass
    telemetry.close()
