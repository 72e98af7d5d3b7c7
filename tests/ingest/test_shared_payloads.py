"""What senders really sent, where that folder lies beside the repository (`../shared/payloads`); none of it is ours.

The mechanical check: every alert has a status, a key and a time, but where the sender itself does not say.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1.signal_pb2 import Signal
from services.bridge.kept import kept_headers
from services.ingest.mapping import entry_of
from services.ingest.sources import PARSERS
from services.mesh import policy
from tests.ingest.house import ROOT, delivery

SHARED = ROOT.parent / "shared" / "payloads"
# Folders that are not called like their parser; what is in neither has none (chat is not taken from webhooks).
PARSER_OF = {
    "aws_sns_cloudwatch": "sns",
    "elastic_kibana": "elastic",
    "kubernetes_events": "kubernetes",
    "pagerduty_events_v2": "pagerduty-events",
}
# Words in a file's name, and what its alerts must say.
SAYS = {
    "resolved": Signal.STATUS_RESOLVED,
    "closed": Signal.STATUS_RESOLVED,
    "recovered": Signal.STATUS_RESOLVED,
    "ok": Signal.STATUS_RESOLVED,
    "acknowledged": Signal.STATUS_ACKNOWLEDGED,
    "acknowledge": Signal.STATUS_ACKNOWLEDGED,
    "insufficient": Signal.STATUS_NO_DATA,
    "triggered": Signal.STATUS_FIRING,
    "firing": Signal.STATUS_FIRING,
    "fired": Signal.STATUS_FIRING,
    "open": Signal.STATUS_FIRING,
    "resolve": Signal.STATUS_RESOLVED,
}
# Their senders, or their templates, name no status that could be read.
WITHOUT_STATUS = ("generic/*", "elastic_kibana/elastalert*", "*unrendered*")
# Their senders, or their templates, name no time that could be read.
WITHOUT_TIME = (
    "generic/*",
    "dynatrace/problem_*",
    "elastic_kibana/elastalert*",
    "grafana/legacy_*",
    "newrelic/*malformed*",
    "opsgenie/escalate*",
    "pagerduty_events_v2/*",
    "sentry/issue_*",
    "zabbix/*",
    "*unrendered*",
    "*test*",
)


@dataclass(frozen=True)
class Payload:
    """One request of a sender."""

    name: str
    parser: str
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()

    def entry(self, parser: str = "") -> pb.StreamEntry:
        """Parse it as ingest does, and check the bounds of what comes out."""
        sent = delivery(self.body, "real")
        sent.content_type = self.content_type
        sent.headers.update(kept_headers(dict(self.headers)))
        entry = entry_of(sent, PARSERS[parser or self.parser])
        assert bool(entry.errors) is not bool(entry.signals), self.name
        assert not policy.violations(entry), self.name
        return entry


def payload_of(file: Path) -> Payload | None:
    """Return the request of a file; None when it has no body of its own."""
    parser = PARSER_OF.get(file.parent.name, file.parent.name.replace("_", "-"))
    name = f"{file.parent.name}/{file.name.partition('.')[0]}"
    body = file.read_bytes()
    if not file.name.endswith(".http.json"):
        return Payload(name, parser, body)
    request = json.loads(body)
    headers = {key.lower(): value for key, value in request["headers"].items()}
    content_type = headers.pop("content-type", "")
    text = request.get("body")
    if text is None:
        return None
    return Payload(name, parser, text.encode(), content_type, tuple(headers.items()))


def payloads() -> Iterator[Payload]:
    """Yield all requests of that folder."""
    for file in sorted(SHARED.glob("*/*.json")) if SHARED.is_dir() else []:
        if not file.parent.name.startswith("_") and (found := payload_of(file)):
            yield found


ALL = tuple(payloads())
OURS = tuple(one for one in ALL if one.parser in PARSERS)
REAL = pytest.mark.skipif(not OURS, reason=f"no real payloads beside the repository ({SHARED})")


def is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    """Say whether a name matches a pattern."""
    return any(fnmatch(name, pattern) for pattern in patterns)


@REAL
@pytest.mark.parametrize("payload", OURS, ids=lambda one: one.name)
def test_every_alert_has_key_status_and_time(payload: Payload) -> None:
    """Each is understood by its own sender's parser, as far as the sender says."""
    entry = payload.entry()
    assert not entry.errors
    for one in entry.signals:
        assert one.dedup_key
        assert one.summary
        assert one.status or is_one_of(payload.name, WITHOUT_STATUS), one
        # Without a time of the sender's, the event has the moment of its receipt.
        told = one.event_time != entry.delivery.receive_time or one.HasField("start_time")
        assert told or is_one_of(payload.name, WITHOUT_TIME), one
        assert all(link.url.startswith(("http://", "https://")) for link in one.links)


@REAL
def test_the_status_is_what_the_name_says() -> None:
    """A payload that was named after its status has it; a group may hold others beside."""
    for payload in OURS:
        words = payload.name.partition("/")[2].split("_")
        said = [SAYS[word] for word in words if word in SAYS]
        if said and not is_one_of(payload.name, WITHOUT_STATUS):
            assert said[0] in {one.status for one in payload.entry().signals}, payload.name


@REAL
@pytest.mark.parametrize("parser", sorted(PARSERS))
def test_what_one_sender_sent_breaks_no_other_parser(parser: str) -> None:
    """At the wrong door: signals within their bounds, or a refusal."""
    for payload in ALL:
        payload.entry(parser)


@REAL
def test_the_same_bytes_again_have_the_same_keys() -> None:
    """A second delivery of the same bytes is a duplicate, whatever its time of receipt."""
    for payload in OURS:
        first, second = payload.entry(), payload.entry()
        assert [one.event_key for one in first.signals] == [one.event_key for one in second.signals], payload.name


def test_the_folder_is_not_ours() -> None:
    """No payload of that folder is part of the repository."""
    assert not list(ROOT.glob("tests/**/payloads/*.json"))
