"""Whatever the bytes: a parser answers with bounded signals or Unreadable, and nothing else."""

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest.mapping import entry_of
from services.ingest.signal import DeliveryFacts, Unreadable
from services.ingest.sources import PARSERS, chat
from services.ingest.sources.reading import is_placeholder
from services.mesh import policy
from tests.bridge.bad import BAD
from tests.ingest.house import delivery

WORDS = st.sampled_from(
    [
        "alerts",
        "labels",
        "annotations",
        "status",
        "severity",
        "startsAt",
        "endsAt",
        "fingerprint",
        "alertname",
        "service",
        "env",
        "ruleName",
        "state",
        "groupKey",
        "values",
        "title",
        "name",
        "id",
        "tags",
        "payload",
        "event",
        "data",
        "firing",
        "resolved",
        "critical",
        "TestAlert",
        "DatasourceNoData",
        "truncatedAlerts",
        "test",
        "instance",
        "namespace",
        "pod",
    ]
)
TEXTS = st.one_of(WORDS, st.text(max_size=20), st.sampled_from(["", "<no value>", "{{ x }}", "0001-01-01T00:00:00Z"]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=6)),
    max_leaves=25,
)
LIKELY = st.fixed_dictionaries({"alerts": st.lists(st.dictionaries(TEXTS, VALUES, max_size=8), max_size=4)})


EVERY = {**PARSERS, "chat": chat.parse}


def check(name: str, body: bytes) -> pb.StreamEntry:
    """Parse and check that what comes out keeps every bound of the IDL."""
    entry = entry_of(delivery(body, name), EVERY[name])
    assert bool(entry.errors) is not bool(entry.signals)
    assert not policy.violations(entry)
    assert "\x00" not in str(entry.signals)
    return entry


@pytest.mark.parametrize("name", sorted(EVERY))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=st.one_of(VALUES, LIKELY))
def test_any_json_gives_bounded_signals_or_unreadable(name: str, value: Any) -> None:
    """Arbitrary JSON never raises anything else."""
    check(name, json.dumps(value).encode())


@pytest.mark.parametrize("name", sorted(EVERY))
@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=200))
def test_any_bytes_give_bounded_signals_or_unreadable(name: str, body: bytes) -> None:
    """Arbitrary bytes never raise anything else."""
    check(name, body)


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("bad", sorted(BAD))
def test_bad_input_of_one_sender_breaks_no_parser(name: str, bad: str) -> None:
    """Every known horror goes through every parser."""
    check(name, BAD[bad].body[: 1 << 20])


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b'\\"' * 500_000,
        b'"' * 1_000_000,
        b"," * 1_000_000,
        b'{"alerts":[{"labels":{"a":"' + b"{{" * 4000 + b'"}}]' + b" " * 100_000 + b",}",
        b'{"alerts":[' + b'{"labels":{"a":"{{{{{{"}},' * 30_000 + b"]}",
    ],
)
def test_hostile_bodies_cost_no_more_than_their_length(body: bytes) -> None:
    """A mebibyte built to be slow is answered in well under the time of a call."""
    for name in EVERY:
        began = time.process_time()
        check(name, body)
        assert time.process_time() - began < 5, name


@pytest.mark.parametrize("text", ["{{" * 500_000, "}}" * 500_000 + "{{", "${" * 500_000, "{A" * 500_000, "cost 5$ {a}"])
def test_no_placeholder_is_told_in_one_pass(text: str) -> None:
    """However long the text that pretends to be one: what costs the square of this length would not end here."""
    assert not is_placeholder(text)


@pytest.mark.parametrize(
    "text", ["{{" * 500_000 + "}}", "$TAGS[service]", "{EVENT.TAGSJSON}", "a <no value> b", "${x}"]
)
def test_placeholders(text: str) -> None:
    """What templates of several senders leave where a value should be."""
    assert is_placeholder(text)


def test_unreadable_is_bounded() -> None:
    """A thousand broken alerts are told with at most 64 errors."""
    with pytest.raises(Unreadable) as caught:
        PARSERS["alertmanager"](json.dumps({"alerts": [1] * 1000}).encode(), DeliveryFacts("alertmanager"))
    assert len(caught.value.errors) == 64
