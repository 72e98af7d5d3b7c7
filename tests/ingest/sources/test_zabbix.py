"""Zabbix' webhooks: our own script's body, and what other templates make of the macros."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.zabbix import parse
from tests.ingest.house import ROOT
from tests.ingest.sources.mutants import check, mutants

FACTS = DeliveryFacts("zabbix")
START = 1_767_225_600_000_000_000
BODY = {
    "timezone": "+01:00",
    "event_id": "9001",
    "trigger_id": "77",
    "event_value": "1",
    "event_status": "PROBLEM",
    "event_source": "0",
    "event_nseverity": "4",
    "event_name": "Disk of db-1 is full",
    "trigger_name": "Disk is full",
    "event_opdata": "93 %",
    "event_tags": '[{"tag":"env","value":"prod"},{"tag":"service","value":"orders"},{"tag":"urgent","value":""}]',
    "event_date": "2026.01.01",
    "event_time": "01:00:00",
    "event_recovery_id": "{EVENT.RECOVERY.ID}",
    "event_recovery_date": "{EVENT.RECOVERY.DATE}",
    "event_recovery_time": "{EVENT.RECOVERY.TIME}",
    "event_update_status": "0",
    "event_update_action": "",
    "event_update_date": "",
    "event_update_time": "",
    "event_ack_status": "No",
    "message": "Problem started at 01:00:00",
    "host_host": "db-1",
    "host_name": "Database 1",
    "host_ip": "192.0.2.1",
    "zabbix_url": "https://zabbix.example.org/",
}
OVER: dict[str, Any] = {
    "event_value": "0",
    "event_status": "RESOLVED",
    "event_recovery_id": "9002",
    "event_recovery_date": "2026.01.01",
    "event_recovery_time": "01:10:00",
}


def one(base: dict[str, Any] = BODY, **changes: Any) -> Any:
    """Parse a message, changed so; what is None is not there."""
    body = {name: value for name, value in {**base, **changes}.items() if value is not None}
    (signal,) = parse(json.dumps(body).encode(), FACTS)
    return signal


def test_a_problem() -> None:
    """The zone of the server makes its local times moments; unfilled macros are absent."""
    signal = one()
    assert (signal.dedup_key, signal.status, signal.status_raw) == ("9001", Status.FIRING, "PROBLEM")
    assert (signal.severity, signal.severity_raw) == (Severity.ERROR, "4")
    assert signal.event_time == signal.start_time == START
    assert (signal.rule_name, signal.summary) == ("Disk is full", "Disk of db-1 is full")
    assert signal.labels == {"env": "prod", "service": "orders", "urgent": "true"}
    assert [key.key for key in signal.targets] == ["svc:prod/orders", "host:db-1"]
    assert "event_recovery_id" not in signal.annotations
    assert [(link.rel, link.url) for link in signal.links] == [
        (Rel.SOURCE, "https://zabbix.example.org/tr_events.php?triggerid=77&eventid=9001")
    ]


def test_recovery_has_the_key_of_the_problem() -> None:
    """And the time of its own event."""
    signal = one(**OVER)
    assert (signal.dedup_key, signal.status, signal.start_time) == ("9001", Status.RESOLVED, START)
    assert signal.event_time == signal.end_time == START + 600 * 1_000_000_000


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"event_update_action": "acknowledged"}, Status.ACKNOWLEDGED),
        ({"event_update_action": "commented, acknowledged", "event_ack_status": "Yes"}, Status.ACKNOWLEDGED),
        ({"event_update_action": "unacknowledged"}, Status.FIRING),
        ({"event_update_action": "commented"}, Status.FIRING),
        ({"event_update_action": None, "event_ack_status": None}, Status.ACKNOWLEDGED),
        (OVER, Status.RESOLVED),
    ],
)
def test_an_update_is_no_recovery(changes: dict[str, Any], status: Status) -> None:
    """Somebody acknowledged it, said something, or spoke of what is over."""
    assert one(**{"event_update_status": "1", **changes}).status is status


@pytest.mark.parametrize(
    ("sent", "severity"),
    [
        ("5", Severity.CRITICAL),
        ("Disaster", Severity.CRITICAL),
        ("3", Severity.ERROR),
        ("Average", Severity.ERROR),
        ("2", Severity.WARNING),
        ("1", Severity.INFO),
        ("Information", Severity.INFO),
        ("0", Severity.UNSPECIFIED),
        ("Not classified", Severity.UNSPECIFIED),
        ("{EVENT.NSEVERITY}", Severity.UNSPECIFIED),
    ],
)
def test_severities_by_number_and_by_name(sent: str, severity: Severity) -> None:
    """Average is worse than a warning, and what is not classified is not info."""
    assert one(event_nseverity=sent).severity is severity


@pytest.mark.parametrize(
    "body",
    [
        {"EventID": 9001, "EventValue": 1, "Hostname": "db-1", "TriggerName": "Disk is full"},
        {"EVENT.ID": "9001", "EVENT.VALUE": "1", "HOST.HOST": "db-1", "TRIGGER.NAME": "Disk is full"},
        {"event": {"id": "9001", "value": "1"}, "host": {"name": "db-1"}, "trigger": {"name": "Disk is full"}},
        {
            "status": "PROBLEM",
            "host": "db-1",
            "trigger": "Disk is full",
            "link": "https://z.example.org/tr_events.php?triggerid=77&eventid=9001",
        },
    ],
)
def test_the_templates_of_others(body: dict[str, Any]) -> None:
    """Names in any spelling; an event's id may stand in its link only."""
    signal = one(body)
    assert (signal.dedup_key, signal.status, signal.rule_name) == ("9001", Status.FIRING, "Disk is full")
    assert [key.key for key in signal.targets] == ["host:db-1"]


def test_without_an_event_id_the_trigger_on_its_host() -> None:
    """Else a hash of host and name: the same for problem and recovery, and another for another host."""
    assert one(event_id=None, zabbix_url=None).dedup_key == "trigger|77|db-1"
    nameless: dict[str, Any] = {"event_id": None, "trigger_id": None}
    assert one(**nameless).dedup_key == one(**nameless, **OVER).dedup_key
    assert one(**nameless).dedup_key != one(**nameless, host_host="db-2").dedup_key


def test_the_button_for_a_test_is_marked() -> None:
    """It sends the macros as they are; a template that only lacks the event's id is no test."""
    unfilled = {name: "{" + name.upper().replace("_", ".") + "}" for name in BODY}
    assert one(unfilled).test
    signal = one(event_id="{EVENT.ID}")
    assert (signal.test, signal.dedup_key) == (False, "trigger|77|db-1")


def test_macros_that_were_pasted_into_json() -> None:
    """Line breaks and backslashes are mended, which is said; a quote cannot be."""
    (signal,) = parse(b'{"event_id":"1","event_value":"1","name":"C:\\Windows\\new\nis full"}', FACTS)
    assert signal.dedup_key == "1"
    assert "C:\\Windows" in signal.summary
    assert signal.warnings
    with pytest.raises(Unreadable):
        parse(b'{"event_id":"1","name":"the "big" disk"}', FACTS)


def test_times_without_a_zone_are_noted() -> None:
    """They are read as UTC; a timestamp needs none."""
    signal = one(timezone=None)
    assert signal.start_time == START + 3600 * 1_000_000_000
    assert "no time zone" in " ".join(signal.warnings)
    signal = one(event_timestamp="1767225600", timezone=None)
    assert signal.start_time == START
    assert "no time zone" not in " ".join(signal.warnings)


@pytest.mark.parametrize("value", ["2", "maybe", None])
def test_an_unknown_value_does_not_fire(value: str | None) -> None:
    """And what was sent is kept."""
    signal = one(event_value=value, event_status=None)
    assert (signal.status, signal.status_raw) == (Status.UNSPECIFIED, value or "")


def test_what_zabbix_cannot_measure_is_no_data() -> None:
    """An internal event is about Zabbix itself."""
    assert one(event_source="3").status is Status.NO_DATA


def test_our_script_sends_what_the_tests_read() -> None:
    """Every parameter of the script but its address and its token is a field here."""
    script = (ROOT / "deploy" / "senders" / "zabbix.js").read_text(encoding="utf-8")
    named = set(re.findall(r"([a-z_]+)\s+\{\$?[A-Z]", script))
    assert named | {"timezone"} == set(BODY)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"status":"PROBLEM"}', b"not json", b'{"event_value":"1"}'])
def test_what_names_no_event_is_unreadable(body: bytes) -> None:
    """It is refused with the field's name."""
    with pytest.raises(Unreadable):
        parse(body, FACTS)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"event_id": "{" * 900_000, "event_value": "1", "name": "x"}).encode(),
        b'{"event_id":"1","a":"' + b"\\W" * 500_000 + b'"}',
        b'{"a":' + b":{a" * 300_000,
        b'{"a"' + b": " * 500_000,
    ],
)
def test_mending_costs_no_more_than_the_length(body: bytes) -> None:
    """A mebibyte built to be slow is answered soon."""
    check("zabbix", body)
    check("dynatrace", body)


@settings(max_examples=300, deadline=None)
@given(body=mutants([BODY, BODY | OVER, {"event": {"id": "1", "value": "1"}, "link": "https://z/?eventid=1"}]))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    check("zabbix", body)
