"""In-house senders: a mapping declared in sources.yaml says where their JSON says what."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from opsmesh.config.v1 import sources_pb2
from services.ingest.main import parsers_of
from services.ingest.mapping import entry_of
from services.ingest.parsers import field_map_of, parser_of, problems
from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.declared import path_of
from services.mesh import policy
from services.mesh.errors import BootError
from tests.ingest.house import ROOT, delivery
from tests.ingest.sources.mutants import SECONDS_MAX, mutants

FACTS = DeliveryFacts("billing")
MAPPING: dict[str, Any] = {
    "key": ["check.id", "host"],
    "status": ["check.result.broken", "check.phase"],
    "status_words": {"true": "firing", "false": "resolved", "Kaputt": "firing"},
    "severity": ["how.bad"],
    "severity_words": {"9": "critical", "1": "info"},
    "summary": ["text.short", "text.long"],
    "description": ["text.long"],
    "rule_name": ["check.name"],
    "group_key": ["check.group"],
    "event_time": ["when[1]"],
    "start_time": ["when[0]"],
    "time_zone": "Europe/Berlin",
    "resource": {"service.name": "app", "host.name": "host", "deployment.environment.name": '["the.env"]'},
    "labels": {"team": "owner[0].name"},
    "links": {"runbook": "help", "source": "page"},
    "test": {"kind": "drill"},
}
BODY: dict[str, Any] = {
    "check": {"id": 12, "name": "queue is long", "group": "g", "result": {"broken": True}, "phase": "Kaputt"},
    "host": "q-1",
    "how": {"bad": 9},
    "text": {"short": "", "long": "the queue has\n900 entries"},
    "when": ["2026-03-01 10:00:00", "2026-07-01 10:00:00"],
    "app": "billing",
    "the.env": "prod",
    "owner": [{"name": "payments"}],
    "help": "https://wiki.example.org/queue",
    "page": "javascript:alert(1)",
    "kind": "real",
}


def source(mapping: Any, **fields: Any) -> sources_pb2.Source:
    """Return a source with a mapping, within the bounds of the IDL."""
    declared = {"source": "billing", "parser": "generic", "none": {}, "mapping": mapping} | fields
    message = json_format.ParseDict(declared, sources_pb2.Source())
    assert not policy.violations(message)
    return message


def many(body: Any, **mapping: Any) -> list[Any]:
    """Parse a body by the mapping, changed so; what is None is not mapped."""
    declared = {name: value for name, value in {**MAPPING, **mapping}.items() if value is not None}
    return list(parser_of(source(declared))(json.dumps(body).encode(), FACTS))


def one(changes: Any = None, **mapping: Any) -> Any:
    """Parse the body, changed so, as one alert."""
    (signal,) = many({**BODY, **(changes or {})}, **mapping)
    return signal


def test_everything_that_is_mapped() -> None:
    """Each field from where the mapping says; several paths of a key are all of it, of others the first that speaks."""
    signal = one()
    assert (signal.dedup_key, signal.status, signal.status_raw) == ("12|q-1", Status.FIRING, "true")
    assert (signal.severity, signal.severity_raw) == (Severity.CRITICAL, "9")
    assert (signal.summary, signal.rule_name, signal.group_key) == ("the queue has 900 entries", "queue is long", "g")
    assert [key.key for key in signal.targets] == ["svc:prod/billing", "host:q-1"]
    assert signal.labels["team"] == "payments"
    assert [(link.rel, link.url) for link in signal.links] == [(Rel.RUNBOOK, "https://wiki.example.org/queue")]
    assert not signal.test
    assert signal.warnings == (
        "left out a link that is no http(s) URL of at most 2048 characters: javascript:alert(1)",
    )


def test_times_without_a_zone_are_of_the_senders() -> None:
    """In winter and in summer; a time that names its zone needs none."""
    signal = one()
    assert signal.start_time == 1772355600 * 10**9
    assert signal.event_time == 1782892800 * 10**9
    assert one({"when": ["2026-03-01T10:00:00Z", 1772359200]}).start_time == 1772359200 * 10**9


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"broken": False}, Status.RESOLVED),
        ({}, Status.FIRING),
        ({"broken": "frobnicated"}, Status.UNSPECIFIED),
        ({"broken": "closed"}, Status.RESOLVED),
    ],
)
def test_declared_words_go_before_the_usual_ones(result: Any, status: Status) -> None:
    """The second path speaks where the first is silent; a word nobody knows is not understood."""
    check = BODY["check"] | {"result": result}
    assert one({"check": check}).status is status


def test_what_is_mapped_and_absent_is_not_guessed() -> None:
    """Neither status nor severity come from elsewhere, but the key does: an alert without one would be lost."""
    signal = one({"check": {}, "how": {}, "status": "firing", "severity": "info", "host": None, "id": "i-1"})
    assert (signal.status, signal.severity) == (Status.UNSPECIFIED, Severity.UNSPECIFIED)
    assert signal.dedup_key == "i-1"
    assert "parts of the key are absent: check.id, host" in signal.warnings


def test_what_is_not_mapped_has_the_usual_names() -> None:
    """A mapping of one field is enough."""
    only = {**dict.fromkeys(MAPPING), "severity": ["nested.bad"]}
    (signal,) = many({"id": "i-1", "status": "down", "nested": {"bad": "P1"}}, **only)
    assert (signal.dedup_key, signal.status, signal.severity) == ("i-1", Status.FIRING, Severity.CRITICAL)


def test_a_sender_without_a_status_tells_of_occurrences() -> None:
    """Only where that is declared."""
    unmapped = dict.fromkeys(("status", "status_words"))
    assert one({"check": {"id": 1}}, **unmapped, occurrence=True).status is Status.OCCURRENCE
    assert one({"check": {"id": 1}}, **unmapped).status is Status.UNSPECIFIED


def test_a_list_of_alerts_within_the_body() -> None:
    """Each with its place; what is no object is named."""
    signals = many({"data": {"a/b": [BODY, 7, BODY]}}, items='data["a/b"]')
    assert [signal.body_pointer for signal in signals] == ["/data/a~1b/0", "/data/a~1b/2"]
    assert "left out [1]" in signals[0].warnings[0]
    with pytest.raises(Unreadable, match="is mapped as the list of alerts"):
        many({"data": {}}, items="data.list")


def test_a_drill_is_a_test() -> None:
    """By the value the mapping names."""
    assert one({"kind": "drill"}).test


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", ("a",)),
        ("a.b[0].c", ("a", "b", 0, "c")),
        ('["a.b"][12]["c d"].e-f', ("a.b", 12, "c d", "e-f")),
        ("", ()),
    ],
)
def test_paths(text: str, path: tuple[str | int, ...]) -> None:
    """Names, places in lists, and names that hold dots."""
    assert path_of(text) == path


@pytest.mark.parametrize("text", ["a..b", "a.", ".a", "a[", "[x]", 'a["b"]c', "a[-1]", "a[1000]"])
def test_a_path_that_is_none_is_refused(text: str) -> None:
    """By the bounds of the IDL, so `opsmesh check` names its line."""
    assert policy.violations(sources_pb2.FieldMapping(key=[text]))


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"parser": "grafana"}, "mapping"),
        ({"mapping": {"status": ["a"], "occurrence": True}}, "mapping.occurrence"),
        ({"mapping": {"time_zone": "Europe/Nowhere"}}, "mapping.time_zone"),
        ({"parser": "frobnicator"}, "parser"),
    ],
)
def test_what_the_bounds_cannot_say_is_found(fields: Any, where: str) -> None:
    """At boot and by `opsmesh check`."""
    assert where in [found for found, _ in problems(source(**{"mapping": MAPPING, **fields}))]


def test_a_bad_mapping_is_a_boot_error(tmp_path: Path) -> None:
    """Ingest does not start with it; with a good one it does."""
    text = "sources:\n  - {source: billing, parser: generic, none: {}, mapping: {time_zone: X/Y, key: [id]}}\n"
    (tmp_path / "sources.yaml").write_text(text)
    with pytest.raises(BootError, match=r"source billing: mapping\.time_zone: no time zone is called X/Y"):
        parsers_of(tmp_path)
    (tmp_path / "sources.yaml").write_text(text.replace("X/Y", "Asia/Tokyo"))
    assert parsers_of(tmp_path)["billing"](b'{"id": "i-1"}', FACTS)[0].dedup_key == "i-1"


def test_the_example_in_sources_yaml_is_good(tmp_path: Path) -> None:
    """Who copies it from the comments has a mapping that works."""
    lines = (ROOT / "deploy" / "sources.yaml").read_text().splitlines()
    begin = lines.index("#   - source: billing")
    example = [line[2:] for line in lines[begin : lines.index("sources:")]]
    (tmp_path / "sources.yaml").write_text("\n".join(["sources:", *example]))
    alert = {"check": {"id": 1, "state": "broken"}, "host": "h", "prio": 9, "app": "a", "stage": "prod", "text": "t"}
    body = json.dumps({"data": {"alerts": [alert]}}).encode()
    (signal,) = parsers_of(tmp_path)["billing"](body, FACTS)
    assert (signal.dedup_key, signal.status, signal.severity) == ("1|h", Status.FIRING, Severity.CRITICAL)
    assert signal.targets[0].key == "svc:prod/a"


@settings(max_examples=400, deadline=None)
@given(body=mutants([BODY, [BODY, BODY], {"data": [BODY]}]), items=st.sampled_from(["", "data", "check"]))
def test_any_damage_gives_signals_or_unreadable(body: bytes, items: str) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    parse = parser_of(source(MAPPING | {"items": items}))
    began = time.thread_time()
    entry = entry_of(delivery(body, "billing"), parse)
    assert time.thread_time() - began < SECONDS_MAX
    assert bool(entry.errors) is not bool(entry.signals)
    assert not policy.violations(entry)
    assert field_map_of(source(MAPPING).mapping).key == (("check", "id"), ("host",))
