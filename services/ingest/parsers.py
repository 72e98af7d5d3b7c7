"""From a source in `deploy/sources.yaml` to the parser of its deliveries."""

from collections.abc import Iterable, Iterator
from datetime import UTC, tzinfo
from functools import partial
from typing import Final
from zoneinfo import ZoneInfo

from opsmesh.config.v1 import sources_pb2
from services.ingest.signal import Rel, Severity, Status
from services.ingest.sources import PARSERS, Parser
from services.ingest.sources.declared import FieldMap, Paths, parse_declared, path_of

DECLARED: Final = "generic"


def parser_of(source: sources_pb2.Source) -> Parser:
    """Return the parser of a source without problems."""
    if source.HasField("mapping"):
        return partial(parse_declared, fields=field_map_of(source.mapping))
    return PARSERS[source.parser or source.source]


def problems(source: sources_pb2.Source) -> Iterator[tuple[str, str]]:
    """Yield what is wrong beyond the bounds of the IDL: a field of the source, and what is the matter with it."""
    name = source.parser or source.source
    if name not in PARSERS:
        where = "parser" if source.parser else "source"
        yield where, f"no parser is called {name}; `parser` is one of: {', '.join(sorted(PARSERS))}"
    if not source.HasField("mapping"):
        return
    if name != DECLARED:
        yield "mapping", f"is for the parser `{DECLARED}` only; {name} knows where its sender says what"
    if source.mapping.occurrence and source.mapping.status:
        yield "mapping.occurrence", "has no meaning beside `status`: a sender has a status, or it has none"
    if source.mapping.time_zone and _zone(source.mapping.time_zone) is None:
        yield "mapping.time_zone", f"no time zone is called {source.mapping.time_zone}"


def field_map_of(mapping: sources_pb2.FieldMapping) -> FieldMap:
    """Return a mapping with its paths taken apart."""
    return FieldMap(
        items=path_of(mapping.items),
        key=_paths(mapping.key),
        status=_paths(mapping.status),
        status_words={word.strip().lower(): Status[name.upper()] for word, name in mapping.status_words.items()},
        occurrence=mapping.occurrence,
        severity=_paths(mapping.severity),
        severity_words={word.strip().lower(): Severity[name.upper()] for word, name in mapping.severity_words.items()},
        summary=_paths(mapping.summary),
        description=_paths(mapping.description),
        rule_name=_paths(mapping.rule_name),
        group_key=_paths(mapping.group_key),
        event_time=_paths(mapping.event_time),
        start_time=_paths(mapping.start_time),
        end_time=_paths(mapping.end_time),
        zone=_zone(mapping.time_zone) or UTC,
        resource={name: path_of(path) for name, path in sorted(mapping.resource.items())},
        labels={name: path_of(path) for name, path in sorted(mapping.labels.items())},
        links=tuple((Rel[name.upper()], path_of(path)) for name, path in sorted(mapping.links.items())),
        test=tuple((path_of(path), value) for path, value in sorted(mapping.test.items())),
    )


def _paths(texts: Iterable[str]) -> Paths:
    return tuple(path_of(text) for text in texts)


def _zone(name: str) -> tzinfo | None:
    """Return a time zone; None when there is none of this name."""
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None
