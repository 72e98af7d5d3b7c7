"""Searches log lines in Elasticsearch or OpenSearch, with the `_search` that Kibana's Discover makes."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from services.gateway.backends import Elasticsearch, LogSource
from services.gateway.tools.asking import ask, refused, seconds_left, unavailable
from services.gateway.tools.http import Http
from services.gateway.tools.searching import Found, Line, Search, time_of, value_of

OK: Final = 200
BAD_REQUEST: Final = 400
# Beyond this many matches are not counted.
TOTAL_MAX: Final = 10_000
ID_MAX: Final = 512
JSON: Final = {"Content-Type": "application/json", "Accept": "application/json"}


class ElasticsearchLogs:
    """One store."""

    def __init__(self, store: Elasticsearch) -> None:
        self._store = store
        self._http = Http(login=store.login)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def search(self, search: Search, source: LogSource) -> Found:
        """Return one page."""
        question = orjson.dumps(body(search, source, self._store.tiebreaker, seconds_left()))
        answer = await ask(self._http, self._store.url, search.target, question, {**JSON, **self._store.headers})
        if answer.status != OK or "error" in answer.document:
            words = _reason(answer.document)
            if answer.status == BAD_REQUEST:
                raise refused(search.target, words)
            raise unavailable(search.target, f"HTTP status {answer.status}: {words}")
        try:
            return read(answer.document, search, source)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise unavailable(search.target, f"its answer cannot be read: {type(error).__name__}") from error


def body(search: Search, source: LogSource, tiebreaker: str, seconds: float) -> dict[str, Any]:
    """Return the document of a search: the range, the target's terms and the words all filter."""
    order = "desc" if search.newest_first else "asc"
    between = {"gte": _iso(search.start), "lt": _iso(search.end), "format": "strict_date_optional_time"}
    filters: list[dict[str, Any]] = [{"range": {source.time_field: between}}]
    filters += [{"term": {name: {"value": value}}} for name, value in source.terms.items()]
    if search.query.strip():
        words = {
            "query": search.query,
            "fields": [source.message_field],
            "default_operator": "and",
            # No prefixes, fuzziness or slop: what a stranger writes must stay cheap.
            "flags": "NOT|PHRASE|WHITESPACE|ESCAPE",
        }
        filters.append({"simple_query_string": words})
    document: dict[str, Any] = {
        "size": search.size + 1,
        "timeout": f"{max(1, int(seconds * 1000))}ms",
        "track_total_hits": TOTAL_MAX,
        "query": {"bool": {"filter": filters}},
        "_source": {"includes": list(dict.fromkeys((source.time_field, source.message_field, *search.fields)))},
        "sort": [
            {source.time_field: {"order": order, "format": "strict_date_optional_time_nanos", "unmapped_type": "date"}},
            {tiebreaker: {"order": order, "unmapped_type": "boolean" if tiebreaker == "_doc" else "keyword"}},
        ],
    }
    if search.position is not None:
        document["search_after"] = search.position
    return document


def read(document: Mapping[str, Any], search: Search, source: LogSource) -> Found:
    """Return the page an answer holds."""
    hits = document["hits"]["hits"]
    total = document["hits"].get("total") or {"value": len(hits), "relation": "gte"}
    if isinstance(total, int):  # as before version 7
        total = {"value": total, "relation": "eq"}
    lines = []
    for hit in hits[: search.size]:
        found = hit.get("_source") or {}
        moment = time_of(value_of(found, source.time_field)) or time_of((hit.get("sort") or [None])[0])
        if moment is None:
            raise ValueError("a line without time")
        lines.append(Line(f"{hit.get('_index', '')}/{hit.get('_id', '')}"[:ID_MAX], moment, found))
    return Found(
        lines=tuple(lines),
        position=list(hits[search.size - 1]["sort"]) if len(hits) > search.size else None,
        total=int(total["value"]),
        total_is_lower_bound=total.get("relation") != "eq",
        partial=_partial(document),
    )


def _partial(document: Mapping[str, Any]) -> str:
    """Say why an answer does not cover everything; empty when it does."""
    shards = document.get("_shards") or {}
    reasons = ["it took too long"] if document.get("timed_out") else []
    if failed := int(shards.get("failed") or 0):
        reasons.append(f"{failed} of {shards.get('total')} shards failed")
    return ", ".join(reasons)


def _reason(document: Mapping[str, Any]) -> str:
    """Return the backend's own words for what is wrong."""
    error = document.get("error")
    if not isinstance(error, Mapping):
        return str(error)
    causes = error.get("root_cause") or [error]
    cause = causes[0] if isinstance(causes, list) and isinstance(causes[0], Mapping) else error
    return f"{cause.get('type')}: {cause.get('reason')}"


def _iso(moment: datetime) -> str:
    """Return a moment as Kibana writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
