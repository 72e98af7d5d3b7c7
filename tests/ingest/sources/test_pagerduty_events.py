"""The shape of PagerDuty's Events API, version 2, by its documentation."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.pagerduty_events import parse
from tests.ingest.sources.mutants import check, mutants

FACTS = DeliveryFacts("pagerduty-events")
PAYLOAD: dict[str, Any] = {
    "summary": "PING OK - Packet loss = 50%",
    "timestamp": "2026-03-01T10:00:00.000+0000",
    "severity": "error",
    "source": "web-1.shop.example",
    "component": "mysql",
    "group": "prod-datapipe",
    "class": "disk",
    "custom_details": {"env": "prod", "service": "checkout", "free space": "1%", "load": {"1m": 3}, "log": "x" * 400},
}
TRIGGER: dict[str, Any] = {
    "routing_key": "0123456789abcdef0123456789abcdef",
    "event_action": "trigger",
    "dedup_key": "web-1/disk",
    "payload": PAYLOAD,
    "client": "monitor",
    "client_url": "https://monitor.example/1",
    "links": [{"href": "https://x.example/runbook", "text": "runbook"}, {"href": "ftp://x"}, None],
    "images": [{"src": "https://x.example/a.png", "alt": "a"}],
}


def one(**changes: Any) -> Any:
    """Parse an event."""
    return parse(json.dumps(TRIGGER | changes).encode(), FACTS)[0]


def payload(**changes: Any) -> Any:
    """Parse an event whose payload is changed so."""
    return one(payload=PAYLOAD | changes)


def test_a_trigger() -> None:
    """The words of PD-CEF; details become labels, long and nested ones annotations."""
    signal = one()
    assert (signal.dedup_key, signal.status, signal.severity) == ("web-1/disk", Status.FIRING, Severity.ERROR)
    assert (signal.summary, signal.rule_name, signal.group_key) == (PAYLOAD["summary"], "disk", "prod-datapipe")
    assert (signal.event_time, signal.start_time) == (1772359200000000000, None)
    assert (signal.labels["component"], signal.labels["free space"]) == ("mysql", "1%")
    assert set(signal.annotations) == {"client", "load", "log"}
    assert [key.key for key in signal.targets] == ["svc:prod/checkout", "host:web-1.shop.example"]
    assert [link.rel for link in signal.links] == [Rel.SOURCE, Rel.SOURCE, Rel.IMAGE]


def test_the_routing_key_is_a_secret() -> None:
    """It becomes no part of a signal."""
    assert TRIGGER["routing_key"] not in str(one())


@pytest.mark.parametrize(("action", "status"), [("acknowledge", Status.ACKNOWLEDGED), ("resolve", Status.RESOLVED)])
def test_what_follows_a_trigger_needs_only_its_key(action: str, status: Status) -> None:
    """PagerDuty asks for no payload there; without a key nobody knows what is meant."""
    body = {"routing_key": "k", "event_action": action, "dedup_key": "web-1/disk"}
    signal = parse(json.dumps(body).encode(), FACTS)[0]
    assert (signal.dedup_key, signal.status, signal.severity) == ("web-1/disk", status, Severity.UNSPECIFIED)
    with pytest.raises(Unreadable):
        parse(json.dumps(body | {"dedup_key": None}).encode(), FACTS)


def test_a_trigger_without_a_key_is_known_by_its_words() -> None:
    """The same words again are the same alert, whenever they were said."""
    assert one(dedup_key="").dedup_key == one(dedup_key=None, payload=PAYLOAD | {"timestamp": "x"}).dedup_key
    assert one(dedup_key="").dedup_key != one(dedup_key="", payload=PAYLOAD | {"source": "web-2"}).dedup_key


@pytest.mark.parametrize(
    ("word", "severity"),
    [
        ("critical", Severity.CRITICAL),
        ("warning", Severity.WARNING),
        ("info", Severity.INFO),
        ("meh", Severity.UNSPECIFIED),
        (None, Severity.UNSPECIFIED),
    ],
)
def test_severities(word: Any, severity: Severity) -> None:
    """A word we do not know is none."""
    assert payload(severity=word).severity is severity


def test_a_source_is_a_host_only_when_it_can_be_one() -> None:
    """A URL or a sentence becomes no target; a host of the details goes first."""
    assert "host.name" not in payload(source="https://shop.example/pay", custom_details=None).resource
    assert "host.name" not in payload(source="the big one", custom_details="text").resource
    for name in ("host", "HOSTNAME", "host_name"):
        assert payload(custom_details={name: "db-1"}).resource["host.name"] == "db-1"


@pytest.mark.parametrize(
    ("instance", "host"),
    [
        ("db-1:9100", "db-1"),
        ("MSSQLSERVER", "web-1.shop.example"),
        ("C:", "web-1.shop.example"),
        (3, "web-1.shop.example"),
    ],
)
def test_an_instance_is_a_host_when_it_has_a_port(instance: Any, host: str) -> None:
    """Databases and disks are instances too: the source knows better where they are."""
    assert payload(custom_details={"instance": instance}).resource["host.name"] == host
    assert payload(source="the big one", custom_details={"instance": "db-1"}).resource["host.name"] == "db-1"


def test_who_sends_is_no_host() -> None:
    """Alertmanager names itself as client and as source; as a host all its alerts would be about one."""
    for client, source in (("Alertmanager", "Alertmanager"), ("Data Dog", "Datadog")):
        assert "host.name" not in one(client=client, payload=PAYLOAD | {"source": source}).resource
    assert one(client="monitor").resource["host.name"] == "web-1.shop.example"


def test_a_machine_may_send_for_itself() -> None:
    """A name with a number or a domain is that of a machine, also where it is the sender's."""
    for name in ("web-1", "web.shop.example"):
        assert one(client=name, payload=PAYLOAD | {"source": name}).resource["host.name"] == name


def test_a_host_may_come_with_its_address() -> None:
    """Zabbix' media type writes both."""
    assert payload(source="web-1 : 192.0.2.1").resource["host.name"] == "web-1"


def test_details_that_are_no_object_are_the_description() -> None:
    """A text or a list is kept."""
    assert payload(custom_details=["a", 1]).description == '["a", 1]'
    assert payload(custom_details="a").description == "a"


@pytest.mark.parametrize("word", ["trigger ", "TRIGGER"])
def test_an_action_may_be_spelt_loosely(word: str) -> None:
    """Case and spaces do not matter."""
    assert one(event_action=word).status is Status.FIRING


def test_an_action_nobody_knows_is_none() -> None:
    """With words it is kept without a status, without them it says nothing."""
    assert one(event_action="explode").status is Status.UNSPECIFIED
    bodies: list[Any] = [{"event_action": "explode", "dedup_key": "x"}, {"event_action": "trigger"}, {}, []]
    for body in bodies:
        with pytest.raises(Unreadable):
            parse(json.dumps(body).encode(), FACTS)


@settings(max_examples=200, deadline=None)
@given(body=mutants([TRIGGER, {"routing_key": "k", "event_action": "resolve", "dedup_key": "a"}, [TRIGGER]]))
def test_mutants(body: bytes) -> None:
    """Whatever is left of a good payload: signals or Unreadable."""
    check("pagerduty-events", body)
