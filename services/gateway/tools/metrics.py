"""Tools for metrics: PromQL on the configured Prometheus, bounded in range, step, series, points and bytes."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import isnan
from typing import Any, Final
from urllib.parse import urlencode

from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.tools.metrics.v1 import metrics_tool_service_pb2 as pb
from opsmesh.tools.metrics.v1 import metrics_tool_service_pb2_grpc as rpc
from services.gateway.backends import ConfiguredUrl, Prometheus
from services.gateway.domain import plain
from services.gateway.tools.asking import ask, missing, refused, seconds_left, unavailable, wrong
from services.gateway.tools.http import Http

LINES: Final = "metrics: [{{targets: [{target!r}], prometheus: {{url: 'http://HOST:9090'}}}}]"
RANGE_MAX: Final = timedelta(days=7)
STEPS_MAX: Final = 500
STEPS: Final = 100
SERIES_INSTANT: Final = 20
SERIES_RANGE: Final = 10
POINTS_MAX: Final = STEPS_MAX + 1
LABELS_MAX: Final = 64
LABEL_NAME_MAX: Final = 128
LABEL_VALUE_MAX: Final = 512
WARNINGS_MAX: Final = 8
WARNING_MAX: Final = 512
KINDS: Final = {
    "vector": pb.RESULT_TYPE_VECTOR,
    "matrix": pb.RESULT_TYPE_MATRIX,
    "scalar": pb.RESULT_TYPE_SCALAR,
}
# Error types by which Prometheus says that the expression is wrong, or asks for too much; all others mean "not now".
THEIR_FAULT: Final = frozenset({"bad_data", "execution", "not_found"})
FORM: Final = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


class MetricsTools:
    """MetricsToolService on the configured servers, by target; under "" is every other target's."""

    service = pb.DESCRIPTOR.services_by_name["MetricsToolService"]
    add = staticmethod(rpc.add_MetricsToolServiceServicer_to_server)

    def __init__(self, servers: Mapping[str, Prometheus]) -> None:
        self._servers = servers
        self._http = {server.instant_url: Http(login=server.login) for server in servers.values()}

    async def close(self) -> None:
        """Close all connections."""
        for client in self._http.values():
            await client.close()

    async def query_instant(
        self, request: pb.QueryInstantRequest, _precondition: Mapping[str, str]
    ) -> pb.QueryInstantResponse:
        """Evaluate at one moment."""
        server, most = self._find(request.target_id), request.max_series or SERIES_INSTANT
        moment = (
            _seconds(request.evaluation_time) if request.HasField("evaluation_time") else datetime.now(UTC).timestamp()
        )
        form = {"query": request.query, "time": f"{moment:.3f}", "limit": str(most + 1)}
        data, warnings = await self._ask(server, server.instant_url, request.target_id, form)
        kind, series, truncated = read(data, request.target_id, most)
        return pb.QueryInstantResponse(result_type=kind, series=series, truncated=truncated, warnings=warnings)

    async def query_range(
        self, request: pb.QueryRangeRequest, _precondition: Mapping[str, str]
    ) -> pb.QueryRangeResponse:
        """Evaluate over a range."""
        server, most = self._find(request.target_id), request.max_series or SERIES_RANGE
        start, end, step = bounds(request)
        form = {
            "query": request.query,
            "start": f"{start:.3f}",
            "end": f"{end:.3f}",
            "step": f"{step:.3f}",
            "limit": str(most + 1),
        }
        data, warnings = await self._ask(server, server.range_url, request.target_id, form)
        kind, series, truncated = read(data, request.target_id, most)
        response = pb.QueryRangeResponse(result_type=kind, series=series, truncated=truncated, warnings=warnings)
        response.step_duration.FromTimedelta(timedelta(seconds=step))
        return response

    async def _ask(
        self, server: Prometheus, url: ConfiguredUrl, target: str, form: dict[str, str]
    ) -> tuple[Mapping[str, Any], list[str]]:
        """Return the data of an answer and what it warns of."""
        form["timeout"] = f"{max(1, int(seconds_left() * 1000))}ms"
        answer = await ask(
            self._http[server.instant_url], url, target, urlencode(form).encode(), {**FORM, **server.headers}
        )
        document = answer.document
        if document.get("status") == "error":
            kind, text = str(document.get("errorType")), plain(str(document.get("error")), WARNING_MAX)
            raise refused(target, text) if kind in THEIR_FAULT else unavailable(target, f"{kind}: {text}")
        data = document.get("data")
        if document.get("status") != "success" or not isinstance(data, dict):
            raise unavailable(target, f"it answered with HTTP status {answer.status} and no Prometheus answer")
        notes = [one for name in ("warnings", "infos") for one in document.get(name) or ()]
        return data, [plain(str(one), WARNING_MAX) for one in notes[:WARNINGS_MAX]]

    def _find(self, target: str) -> Prometheus:
        """Return the server of a target, or refuse."""
        server = self._servers.get(target) or self._servers.get("")
        if server is None:
            raise missing(target, LINES.format(target=target))
        return server


def bounds(request: pb.QueryRangeRequest) -> tuple[float, float, float]:
    """Return start, end and step in seconds, or refuse what is too much."""
    start, end = _seconds(request.start_time), _seconds(request.end_time)
    if end < start:
        raise wrong("end_time", "must not be before start_time")
    if end - start > RANGE_MAX.total_seconds():
        raise wrong("end_time", f"must be at most {RANGE_MAX.days} days after start_time")
    if not request.HasField("step_duration"):
        return start, end, max(1.0, (end - start) / STEPS)
    step = request.step_duration.ToTimedelta().total_seconds()
    if (end - start) / step > STEPS_MAX:
        least = -(-(end - start) // STEPS_MAX)
        raise wrong("step_duration", f"must be at least {least:.0f}s: at most {STEPS_MAX} steps fit the range")
    return start, end, step


def read(data: Mapping[str, Any], target: str, most: int) -> tuple["pb.ResultType.ValueType", list[pb.Series], bool]:
    """Return the kind of a result, its first `most` series, and whether anything was left out."""
    kind, result = KINDS.get(str(data.get("resultType"))), data.get("result")
    if kind is None or not isinstance(result, list):
        raise refused(target, f"the expression is a {data.get('resultType')}, not a vector, matrix or scalar")
    try:
        if kind == pb.RESULT_TYPE_SCALAR:
            return kind, [pb.Series(points=[_point(result)])], False
        series = [_series(one) for one in result[:most]]
    except (TypeError, KeyError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise unavailable(target, f"its result cannot be read: {type(error).__name__}") from error
    return kind, [one for one, _ in series], len(result) > most or any(cut for _, cut in series)


def _series(raw: Mapping[str, Any]) -> tuple[pb.Series, bool]:
    """Return one series, and whether something of it is missing: native histograms are no numbers."""
    samples: Sequence[Any] = raw["values"] if "values" in raw else [raw["value"]] if "value" in raw else []
    labels = list(raw["metric"].items())
    kept = {plain(name, LABEL_NAME_MAX): plain(value, LABEL_VALUE_MAX) for name, value in labels[:LABELS_MAX]}
    # The newest are what somebody asks for.
    series = pb.Series(labels=kept, points=[_point(one) for one in samples[-POINTS_MAX:]])
    cut = len(samples) > POINTS_MAX or len(labels) > LABELS_MAX
    return series, cut or "histogram" in raw or "histograms" in raw


def _point(raw: Sequence[Any]) -> pb.Point:
    """Return one sample: `[seconds, "value"]`."""
    value = float(raw[1])
    point = pb.Point(not_a_number=True) if isnan(value) else pb.Point(value=value)
    point.sample_time.FromMilliseconds(round(float(raw[0]) * 1000))
    return point


def _seconds(moment: Timestamp) -> float:
    """Return a moment in seconds since 1970."""
    return moment.ToMilliseconds() / 1000
