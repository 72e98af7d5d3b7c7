"""Bodies for the fuzzer: any bytes, good payloads of the project's own made bad by grammar, giants and odd numbers."""

import copy
import importlib
import json
from collections.abc import Iterator
from typing import Any, Final

from hypothesis import strategies as st

from tests.ingest.sources import test_azure_monitor, test_gcp_monitoring
from tests.ingest.sources.mutants import ODD, paths

# Parsers whose tests have a name or a place of their own.
MODULES: Final = {
    "alertmanager": "tests.ingest.test_alertmanager",
    "change": "tests.ingest.test_change",
    "generic": "tests.ingest.test_generic",
    "grafana": "tests.ingest.test_grafana",
    "declared": "tests.ingest.sources.test_declared",
}
USUAL: Final = {
    "id": "a-1",
    "status": "firing",
    "severity": "critical",
    "title": "it is slow",
    "labels": {"service": "shop", "env": "prod"},
    "alerts": [{"labels": {"alertname": "A"}, "startsAt": "2026-01-01T00:00:00Z"}],
}
ALERTS: Final = {
    "receiver": "opsmesh",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "Down", "severity": "page", "service": "shop", "instance": "web-1:9100"},
            "annotations": {"summary": "web-1 is down", "runbook_url": "https://wiki.example.org/down"},
            "startsAt": "2026-01-01T00:00:00.123456789Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "https://prometheus.example.org/graph",
            "fingerprint": "00f0a1b2c3d4e5f6",
            "values": {"B": 22.5, "C": 1},
        }
    ],
    "groupLabels": {"alertname": "Down"},
    "commonLabels": {"service": "shop"},
    "commonAnnotations": {},
    "externalURL": "https://alertmanager.example.org",
    "version": "4",
    "groupKey": '{}:{alertname="Down"}',
    "truncatedAlerts": 0,
}
# Of senders whose tests put their bodies together piece by piece.
WHOLE: Final[dict[str, list[Any]]] = {
    "alertmanager": [ALERTS],
    "grafana": [
        {**ALERTS, "orgId": 1, "title": "[FIRING:1]", "state": "alerting"},
        {"ruleId": 7, "ruleName": "Slow", "state": "alerting", "ruleUrl": "https://g.example.org/7", "evalMatches": []},
    ],
    "pagerduty": [
        {
            "event": {
                "id": "01A",
                "event_type": "incident.triggered",
                "resource_type": "incident",
                "occurred_at": "2026-01-01T00:00:00.000Z",
                "agent": {"id": "PA", "type": "user_reference"},
                "data": {
                    "id": "Q1",
                    "type": "incident",
                    "title": "shop is slow",
                    "status": "triggered",
                    "incident_key": "k",
                    "created_at": "2026-01-01T00:00:00Z",
                    "urgency": "high",
                    "service": {"id": "PS", "summary": "shop"},
                    "priority": {"summary": "P1"},
                    "html_url": "https://acme.pagerduty.com/incidents/Q1",
                },
            }
        }
    ],
    "azure-monitor": [
        {
            "schemaId": "azureMonitorCommonAlertSchema",
            "data": {
                "essentials": test_azure_monitor.ESSENTIALS,
                "alertContext": test_azure_monitor.CONTEXT,
                "customProperties": {"env": "prod"},
            },
        }
    ],
    "gcp-monitoring": [{"incident": test_gcp_monitoring.MACHINE, "version": "1.2"}],
}
NUMBERS: Final = (
    *b"0 -0 -1 1e400 -1e400 1e-400 NaN Infinity -Infinity 2147483648 9223372036854775808 18446744073709551616".split(),
    *b"1767225600 1767225600000 1767225600000000 1767225600000000000 1e5 0.1 00 1. .5 +1 0x10".split(),
    b"9" * 400,
    b"-" + b"1" * 5000,
    b"1" + b"0" * 40,
    b"1e" + b"9" * 400,
)
TEXTS: Final = (
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\x00",
    b",",
    b"}",
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"/*x*/",
    b"\r\n",
    b"{{",
)
DEPTHS: Final = (10, 63, 64, 65, 66, 1_000, 100_000)
# The bridge lets no larger one in.
BODY_MAX: Final = 1 << 20
COUNTS: Final = (129, 999, 1_001, 5_000)
LENGTHS: Final = (257, 8_193, 100_000, 900_000)
HEADERS: Final = (
    "x-github-event",
    "x-github-delivery",
    "sentry-hook-resource",
    "sentry-hook-timestamp",
    "request-id",
    "x-amz-sns-message-type",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-specversion",
    "ce-time",
    "ce-subject",
    "ce-severitytext",
)
WORDS: Final = (
    "1.0",
    "push",
    "workflow_run",
    "dependabot_alert",
    "issue",
    "%41%zz",
    "Notification",
    "$X",
    "7",
    "a" * 300,
)
CONTENT_TYPES: Final = (
    "application/json",
    "",
    "application/cloudevents+json",
    "application/cloudevents-batch+json; charset=utf-8",
    "application/x-www-form-urlencoded",
    "text/plain; charset=latin-1",
    "\x00;",
)


def payloads_of(name: str) -> list[Any]:
    """Return the good payloads that the tests of a parser hold in their constants, and one that many can read."""
    module = importlib.import_module(MODULES.get(name, f"tests.ingest.sources.test_{name.replace('-', '_')}"))
    found = [value for key, value in sorted(vars(module).items()) if key.isupper() and _is_json(value)]
    return [*WHOLE.get(name, ()), *found, USUAL]


def _is_json(value: Any) -> bool:
    if not isinstance(value, dict | list) or not value:
        return False
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def names_in(value: Any) -> Iterator[str]:
    """Yield every key within a JSON value."""
    if isinstance(value, dict):
        yield from value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from names_in(one)


def any_json(names: list[str]) -> st.SearchStrategy[Any]:
    """Return small JSON values with the names that senders use."""
    leaves = (
        st.sampled_from(ODD).map(copy.deepcopy)
        | st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=12)
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(names), inner, max_size=5),
        max_leaves=12,
    )


Path = tuple[str | int, ...]
KINDS: Final = ("odd", "json", "drop", "list", "object", "text", "rename", "graft", "twice")


def holder_of(value: Any, path: Path) -> Any:
    """Return what holds the last step of a path."""
    for step in path[:-1]:
        value = value[step]
    return value


def places_in(value: Any) -> list[Path]:
    """Return the paths of all parts of a value, in an order that does not change."""
    return [one for one in sorted(paths(value), key=str) if one]


@st.composite
def mutated(draw: st.DrawFn, good: list[Any], names: list[str]) -> Any:
    """Return a good payload with parts replaced, renamed, wrapped, repeated, taken away or put elsewhere."""
    value = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 6))):
        places = places_in(value)
        if not places:
            return value
        path = draw(st.sampled_from(places))
        holder, step = holder_of(value, path), path[-1]
        kind = draw(st.sampled_from(KINDS))
        if kind == "drop":
            del holder[step]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(names))] = holder.pop(step)
        elif kind == "twice" and isinstance(holder, list) and len(holder) < LENGTHS[0]:
            holder.extend(copy.deepcopy(holder))
        else:
            holder[step] = draw(instead(holder[step], kind, good, names))
    return value


def instead(old: Any, kind: str, good: list[Any], names: list[str]) -> st.SearchStrategy[Any]:
    """Return what may stand where something stood. Everything is a copy: a strategy must not change what it draws."""
    return {
        "odd": st.sampled_from(ODD).map(copy.deepcopy),
        "json": any_json(names),
        "list": st.just([old]),
        "object": st.sampled_from(names).map(lambda name: {name: old}),
        "text": st.just(json.dumps(old)),
    }.get(kind, st.sampled_from(good).map(copy.deepcopy))


@st.composite
def spoiled(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """Return JSON as bytes, sometimes with marks put in, a piece cut out, or written in another way."""
    ascii_only = draw(st.booleans())
    body = json.dumps(draw(values), ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from((0, 0, 0, 0, 1, 3)))):
        at = draw(st.integers(0, len(body)))
        piece = draw(st.sampled_from((*TEXTS, *NUMBERS)) | st.binary(max_size=8))
        body = body[:at] + piece + body[at + draw(st.integers(0, 12)) :]
    if draw(st.integers(0, 9)) == 0:
        body = json.dumps(body.decode("utf-8", "replace")).encode()
    return body


@st.composite
def numbered(draw: st.DrawFn, good: list[Any]) -> bytes:
    """Return a good payload in which one value is a number at an edge, written as no library would write it."""
    value = copy.deepcopy(draw(st.sampled_from(good)))
    path = draw(st.sampled_from(places_in(value)))
    holder_of(value, path)[path[-1]] = "\u2603"
    return json.dumps(value).encode().replace(rb'"\u2603"', draw(st.sampled_from(NUMBERS)))


@st.composite
def giants(draw: st.DrawFn, good: list[Any], names: list[str]) -> bytes:
    """Return a body that is deep, wide or long, alone or in the place of a part of a good one."""
    kind = draw(st.sampled_from(("deep list", "deep object", "wide list", "wide object", "long text", "long name")))
    name = json.dumps(draw(st.sampled_from(names)))
    depth, count, length = (draw(st.sampled_from(one)) for one in (DEPTHS, COUNTS, LENGTHS))
    item = json.dumps(draw(st.sampled_from(good) | st.sampled_from(ODD)))[:2_000]
    part = {
        "deep list": "[" * depth + "]" * depth,
        "deep object": f"{{{name}:" * depth + "1" + "}" * depth,
        "wide list": f"[{','.join([item] * min(count, 900_000 // (len(item) + 1)))}]",
        "wide object": "{" + ",".join(f'"k{at}":{at}' for at in range(count)) + "}",
        "long text": json.dumps(
            draw(st.sampled_from(("x", "{", '"', "$A", "{{", "<no value>", "a:b,", "\\", "é"))) * length
        )[:900_000],
        "long name": f'{{"{"n" * length}":1}}',
    }[kind]
    if draw(st.booleans()):
        return part.encode()
    value = copy.deepcopy(draw(st.sampled_from(good)))
    path = draw(st.sampled_from(places_in(value)))
    holder_of(value, path)[path[-1]] = "\u2603"
    return json.dumps(value).replace(r'"\u2603"', part).encode()


def bodies(good: list[Any]) -> st.SearchStrategy[bytes]:
    """Return everything that could come as a body, mostly what is almost good."""
    names = sorted({name for value in good for name in names_in(value)} | set(USUAL))
    changed = mutated(good, names)
    usual = spoiled(changed)
    kinds = [*[usual] * 8, spoiled(st.lists(changed, max_size=4)), spoiled(any_json(names)), numbered(good)]
    return st.one_of(*kinds, giants(good, names), st.binary(max_size=200)).map(lambda body: body[:BODY_MAX])
