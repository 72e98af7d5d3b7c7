"""What senders really sent, where that folder lies beside the repository (`../shared/payloads`); none of it is ours.

The mechanical check: every alert has key, status, time, severity and resource, but where the sender does not say it.
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
# What a file does not say, and why nobody could read it there. A pattern stands for what the sender never says.
EXCUSES: dict[str, dict[str, str]] = {
    "status": {
        "elastic_kibana/elastalert_create": "`event_type: create` is a template's own word: it needs a mapping",
        "generic/graylog_notification": "the condition's result is a sentence",
    },
    "time": {
        "dynatrace/problem_open": "the default template sends none",
        "dynatrace/problem_closed": "the default template sends none",
        "dynatrace/problem_open_with_details": "the default template sends none",
        "elastic_kibana/elastalert_create": "the template sends none",
        "generic/healthchecks_down": "it says `2 minutes ago`",
        "generic/riemann_ok": "the template sends none",
        "grafana/legacy_v7_no_data": "the old alerting sends none",
        "grafana/legacy_v7_ok": "the old alerting sends none",
        "newrelic/workflow_malformed_time": "before 1970",
        "pagerduty_events_v2/acknowledge": "only a payload has one",
        "pagerduty_events_v2/resolve": "only a payload has one",
        "zabbix/missing_fields": "the template sends none",
        "zabbix/oncall_template_alerting": "the template sends none",
        "zabbix/problem_zulip_template": "the template sends none",
    },
    "severity": {
        "aws_sns_cloudwatch/*": "CloudWatch knows none",
        "cloudevents/*": "of the attributes none is one",
        "dynatrace/problem_open": "the default template sends none",
        "dynatrace/problem_closed": "the default template sends none",
        "dynatrace/problem_open_with_details": "the template sends none",
        "elastic_kibana/elastalert_create": "the template sends none",
        "gcp_monitoring/incident_closed_v1_1": "version 1.1 has none",
        "gcp_monitoring/incident_closed_v1_2_with_links": "it says `no severity`",
        "gcp_monitoring/incident_open_v1_2": "the policy has none",
        "generic/*": "needs a mapping",
        "github/*": "only vulnerabilities and deployments have one",
        "grafana/cloud_datasource_no_data": "its `Priority` is the bare number 1",
        "grafana/cloud_firing_toggling": "no label or annotation is called so",
        "grafana/firing_v11_*": "no label or annotation is called so",
        "grafana/legacy_*": "the old alerting has none but in tags",
        "grafana/v12_test_*": "no label or annotation is called so",
        "newrelic/workflow_default_fields_only": "the template sends none",
        "newrelic/workflow_issue_active": "the template sends none",
        "newrelic/workflow_malformed_time": "the template sends none",
        "opsgenie/acknowledge": "sent with Create only",
        "opsgenie/addnote": "sent with Create only",
        "pagerduty_events_v2/*": "only a payload has one",
        "sentry/metric_alert_resolved": "a resolve has none",
        "splunk/*": "Splunk sends none",
        "zabbix/oncall_template_alerting": "the template sends none",
    },
    "resource": {
        "aws_sns_cloudwatch/*_confirmation": "it is about a topic of ours",
        "cloudevents/*": "the source is a URI of the sender",
        "datadog/custom_synthetics_null_strings": "neither tags nor scope",
        "datadog/default_*": "the default template sends no tags, and these no scope with a host or service",
        "elastic_kibana/elastalert_create": "the template sends none",
        "generic/*": "needs a mapping",
        "github/ping": "it is about the hook",
        "grafana/cloud_*": "no label says where",
        "grafana/firing_v11_*": "no label says where",
        "grafana/legacy_*": "no tag says where",
        "newrelic/legacy_incident_open": "its target has an empty name",
        "newrelic/workflow_default_fields_only": "the template sends no entities",
        "newrelic/workflow_issue_active": "the template sends no entities",
        "newrelic/workflow_malformed_time": "the template sends no entities",
        "opsgenie/acknowledge": "entity is empty, tags say nothing",
        "opsgenie/addnote": "entity is empty, tags say nothing",
        "opsgenie/create_with_details": "entity is a sentence",
        "pagerduty_events_v2/*": "only a payload has one",
        "splunk/missing_host": "its result names no host",
        "zabbix/missing_fields": "the host is only in a sentence",
        "zabbix/oncall_template_alerting": "the template sends none",
    },
}


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


def excused(what: str, name: str) -> bool:
    """Say whether nobody could read this of a file."""
    return any(fnmatch(name, pattern) for pattern in EXCUSES[what])


def said(one: Signal, entry: pb.StreamEntry) -> dict[str, bool]:
    """Return what of a signal was understood. Without a time of the sender's, it has the moment of its receipt."""
    return {
        "status": bool(one.status),
        "time": one.event_time != entry.delivery.receive_time or one.HasField("start_time"),
        "severity": bool(one.severity),
        "resource": bool(one.resource),
    }


@REAL
@pytest.mark.parametrize("payload", OURS, ids=lambda one: one.name)
def test_what_a_sender_says_is_understood(payload: Payload) -> None:
    """Each is understood by its own sender's parser: key, status, time, severity and resource, as far as it says."""
    entry = payload.entry()
    assert not entry.errors
    for one in entry.signals:
        assert one.dedup_key
        assert one.summary
        for what, understood in said(one, entry).items():
            assert understood or excused(what, payload.name), (what, one)
        assert all(link.url.startswith(("http://", "https://")) for link in one.links)


@REAL
@pytest.mark.parametrize("what", sorted(EXCUSES))
def test_no_excuse_outlives_its_reason(what: str) -> None:
    """What a named file does say now is excused no longer."""
    for payload in OURS:
        if payload.name in EXCUSES[what]:
            entry = payload.entry()
            assert not all(said(one, entry)[what] for one in entry.signals), (what, payload.name)


@REAL
def test_the_status_is_what_the_name_says() -> None:
    """A payload that was named after its status has it; a group may hold others beside."""
    for payload in OURS:
        words = payload.name.partition("/")[2].split("_")
        named = [SAYS[word] for word in words if word in SAYS]
        if named and not excused("status", payload.name):
            assert named[0] in {one.status for one in payload.entry().signals}, payload.name


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
