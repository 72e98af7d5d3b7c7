"""Tools for logs: a bounded search for the lines of one target, in whatever store the backends file names for it."""

import json
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any, Final

from opsmesh.tools.logs.v1 import logs_tool_service_pb2 as pb
from opsmesh.tools.logs.v1 import logs_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway.backends import JsonLines, LogSource
from services.gateway.domain import plain
from services.gateway.tools.asking import missing, wrong
from services.gateway.tools.elasticsearch import ElasticsearchLogs
from services.gateway.tools.json_lines import JsonLinesLogs
from services.gateway.tools.searching import Line, Search, text_of, value_of
from services.mesh import paging
from services.mesh.errors import Refusal

LINES: Final = (
    "logs: [{{targets: [{{target_id: {target!r}, terms: {{service.name: NAME}}}}], "
    "elasticsearch: {{url: 'http://HOST:9200', index: 'logs-*'}}}}]"
)
RANGE_MAX: Final = timedelta(days=7)
MESSAGE_MAX: Final = 4096
VALUE_MAX: Final = 512
FIELDS_MAX: Final = 32
ID_MAX: Final = 512
REASON_MAX: Final = 512


class LogsTools:
    """LogsToolService on the configured stores, by target."""

    service = pb.DESCRIPTOR.services_by_name["LogsToolService"]
    add = staticmethod(rpc.add_LogsToolServiceServicer_to_server)

    def __init__(self, sources: Mapping[str, LogSource]) -> None:
        self._sources = sources
        # Targets that share a store share its client.
        known: dict[int, ElasticsearchLogs | JsonLinesLogs] = {}
        self._stores: dict[str, ElasticsearchLogs | JsonLinesLogs] = {}
        for name, source in sources.items():
            store = source.store
            if id(store) not in known:
                known[id(store)] = JsonLinesLogs(store) if isinstance(store, JsonLines) else ElasticsearchLogs(store)
            self._stores[name] = known[id(store)]

    async def close(self) -> None:
        """Close all connections."""
        for store in self._stores.values():
            await store.close()

    async def search_logs(
        self, request: pb.SearchLogsRequest, _precondition: Mapping[str, str]
    ) -> pb.SearchLogsResponse:
        """Find lines."""
        source = self._sources.get(request.target_id)
        if source is None:
            raise missing(request.target_id, LINES.format(target=request.target_id))
        search = to_search(request, source)
        found = await self._stores[request.target_id].search(search, source)
        more = paging.write_token(request, json.dumps(found.position)) if found.position is not None else ""
        return pb.SearchLogsResponse(
            entries=[entry(line, search.fields, source) for line in found.lines],
            next_page_token=more,
            total=found.total,
            total_is_lower_bound=found.total_is_lower_bound,
            partial=bool(found.partial),
            partial_reason=plain(found.partial, REASON_MAX),
        )


def to_search(request: pb.SearchLogsRequest, source: LogSource) -> Search:
    """Return what a request asks for, or refuse a range that is none or too long."""
    start, end = request.start_time.ToDatetime(UTC), request.end_time.ToDatetime(UTC)
    if end <= start:
        raise wrong("end_time", "must be after start_time")
    if end - start > RANGE_MAX:
        raise wrong("end_time", f"must be at most {RANGE_MAX.days} days after start_time")
    return Search(
        target=request.target_id,
        start=start,
        end=end,
        query=request.query,
        fields=tuple(request.fields) or source.fields,
        newest_first=request.order != pb.SearchLogsRequest.ORDER_OLDEST_FIRST,
        size=paging.page_size(request.page_size),
        position=_position(request),
    )


def _position(request: pb.SearchLogsRequest) -> list[Any] | None:
    """Return where the page before ended: only numbers, texts and nothing at all are ever in there."""
    token = paging.read_token(request, str)
    if token is None:
        return None
    try:
        position = json.loads(token[0])
    except ValueError:
        position = None
    if not isinstance(position, list) or not all(isinstance(one, str | int | float | None) for one in position):
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN)
    return position


def entry(line: Line, fields: tuple[str, ...], source: LogSource) -> pb.LogEntry:
    """Return a line as it is handed on: bounded, without control characters, line breaks of the message kept."""
    message = text_of(value_of(line.document, source.message_field) or "")
    shown = "\n".join(plain(one, MESSAGE_MAX) for one in message[: MESSAGE_MAX + 1].splitlines())[:MESSAGE_MAX]
    cut = len(message) > MESSAGE_MAX
    values: dict[str, str] = {}
    for name in fields[:FIELDS_MAX]:
        value = value_of(line.document, name)
        if value is not None:
            text = text_of(value)
            cut = cut or len(text) > VALUE_MAX
            values[name] = plain(text[: VALUE_MAX + 1], VALUE_MAX)
    found = pb.LogEntry(entry_id=plain(line.entry_id, ID_MAX), message=shown, fields=values, truncated=cut)
    found.event_time.FromDatetime(line.time)
    return found
