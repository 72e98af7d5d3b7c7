"""Logs, metrics and traces: one JSON line and one histogram sample per call, W3C trace context across every hop.

A thin link of our own: OpenTelemetry's gRPC instrumentation costs several times more per call even when it samples
nothing (tests/bench/telemetry.py). Its SDK and exporter are imported only when a collector is configured.
"""

import logging
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

import grpc
import orjson
import structlog
from prometheus_client import Counter, Histogram

from opsmesh.policy.v1 import policy_pb2
from services.mesh.call import Call, Trace, maybe_current, new_trace

HEADER: Final = "traceparent"
TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
SAMPLED: Final = 0x01
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

SECONDS: Final = Histogram("opsmesh_rpc_seconds", "Time to serve a call.", ["method"], buckets=BUCKETS)
CALLS: Final = Counter("opsmesh_rpc_total", "Calls served.", ["method", "code"])

log = structlog.get_logger("opsmesh.rpc")


class Exporter(Protocol):
    """Where spans go when a collector is configured."""

    def span(self, call: Call, parent: Trace | None) -> AbstractContextManager[Any]:
        """Record one served call; it must give the span the ids that the call already carries."""

    def close(self) -> None:
        """Send what is left, within seconds."""


_exporter: Exporter | None = None


def parse(header: str | bytes | None) -> Trace | None:
    """Return the trace of a `traceparent` header, or None when there is none or it is malformed."""
    if not isinstance(header, str):
        return None
    match = TRACEPARENT.fullmatch(header)
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    return Trace(match[1], match[2], bool(int(match[3], 16) & SAMPLED))


def begin(header: str | bytes | None) -> tuple[Trace, Trace | None]:
    """Return the trace of a new piece of work and its parent, if the header names one."""
    parent = parse(header)
    if parent:
        return parent.child(), parent
    root = new_trace()
    return (Trace(root.trace_id, root.span_id, sampled=True) if _exporter else root), None


def inject(carrier: MutableMapping[str, str]) -> None:
    """Write the trace of the current call into a carrier, such as the fields of a stream entry."""
    if call := maybe_current():
        carrier[HEADER] = call.trace.header


def extract(carrier: Mapping[str, str]) -> Trace | None:
    """Return the trace that `inject` wrote, to go on with in `working(..., trace=...)`."""
    return parse(carrier.get(HEADER))


class Meter:
    """Metrics and the log line of one method, resolved once at start-up."""

    def __init__(self, method: str, policy: policy_pb2.MethodPolicy) -> None:
        self._seconds = SECONDS.labels(method)
        self._codes = {code: CALLS.labels(method, code.name) for code in grpc.StatusCode}
        self._quiet = policy.access == policy_pb2.ACCESS_READ
        self._log = log.bind()
        # The arguments of a line that nobody reads cost more than the metrics.
        self._debug = self._log.is_enabled_for(logging.DEBUG) if hasattr(self._log, "is_enabled_for") else True

    def done(self, call: Call, code: grpc.StatusCode, started: float, reason: str) -> None:
        """Record the end of a call; reads that went well are told at debug level only."""
        elapsed = time.perf_counter() - started
        self._seconds.observe(elapsed)
        self._codes[code].inc()
        boring = self._quiet and code is grpc.StatusCode.OK
        if boring and not self._debug:
            return
        tell = self._log.debug if boring else self._log.info
        tell(
            "call",
            method=call.method,
            identity=call.identity,
            code=code.name,
            reason=reason,
            ms=round(elapsed * 1000, 2),
            request_id=call.request_id,
            on_behalf_of=call.on_behalf_of,
        )


def span(call: Call, parent: Trace | None) -> AbstractContextManager[Any]:
    """Return the exporter's span of a call, or nothing when no collector is configured."""
    return _exporter.span(call, parent) if _exporter else nullcontext()


def _with_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the ids of the current call to a log line, and leave out what is empty."""
    if call := maybe_current():
        event["trace_id"], event["span_id"] = call.trace.trace_id, call.trace.span_id
    return {key: value for key, value in event.items() if value != ""}


def _to_json(event: Any, **_: Any) -> str:
    """Serialise a log line; what JSON does not know becomes text."""
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def setup(service: str, level: str = "info", otlp_endpoint: str = "") -> None:
    """Send every log line of this process to stderr as JSON, and spans to a collector if one is configured."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_trace,
        structlog.processors.format_exc_info,
    ]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_to_json),
            ],
        )
    )
    # Libraries are heard from warnings on: their info lines may repeat what a request carried.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
    if otlp_endpoint:
        global _exporter  # noqa: PLW0603  one exporter a process, chosen once at boot
        from services.mesh.otlp import OtlpExporter  # noqa: PLC0415  the SDK costs seconds and memory: only when asked

        _exporter = OtlpExporter(service, otlp_endpoint)


def close() -> None:
    """Send the spans that are left, if a collector is configured; blocks for a few seconds at most."""
    if _exporter:
        _exporter.close()
