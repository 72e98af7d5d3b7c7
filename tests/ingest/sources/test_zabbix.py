"""Zabbix' webhooks: our own script's body, and what other templates make of the macros."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Kind, Rel, Severity, Status, Unreadable
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


PROBLEM = """Problem started at 10:00:00 on 2026.03.01\r
Problem name: Disk is full\r
Host: Zabbix server\r
Severity: High\r
Operational data: 93 %\r
Original problem ID: 23\r
"""
OVER_TEXT = PROBLEM.replace("Problem started at", "Problem has been resolved at")


def spoken(subject: str, message: str, **fields: str) -> Any:
    """Parse what a media type sends that has no more than the two default texts."""
    (signal,) = parse(json.dumps({"to": "ops", "subject": subject, "message": message, **fields}).encode(), FACTS)
    return signal


def test_zabbix_own_words_say_what_no_field_says() -> None:
    """Key, status, severity and time of the default texts; the host in them is free text and no target."""
    signal = spoken("Problem: Disk is full", PROBLEM)
    assert (signal.dedup_key, signal.status, signal.severity) == ("23", Status.FIRING, Severity.ERROR)
    assert (signal.rule_name, signal.event_time) == ("Disk is full", 1_772_359_200_000_000_000)
    assert not signal.targets
    over = spoken("Resolved in 5m 3s: Disk is full", OVER_TEXT)
    assert (over.dedup_key, over.status, over.end_time) == ("23", Status.RESOLVED, signal.event_time)
    assert "was read from the words of the message" in " ".join(over.warnings)


def test_an_update_that_names_no_problem_is_a_note() -> None:
    """As an alert it would be another one than the problem that somebody works on."""
    text = "Ann acknowledged problem at 2026.03.01 10:05:00.\n\nCurrent problem status is PROBLEM, acknowledged: Yes."
    signal = spoken("Updated problem in 2m: Disk is full", text)
    assert (signal.kind, signal.status) == (Kind.NOTE, Status.ACKNOWLEDGED)
    assert spoken("Updated problem in 2m: Disk is full", text, event_id="23").kind is Kind.ALERT


def test_fields_go_before_words() -> None:
    """A title is kept as it was when the problem began; its number says that it is over."""
    signal = spoken("Problem: Disk is full", PROBLEM, event_id="99", event_value="0", event_nseverity="2")
    assert (signal.dedup_key, signal.status, signal.severity) == ("99", Status.RESOLVED, Severity.WARNING)
    assert signal.end_time is None


def test_a_template_may_name_service_and_environment_and_a_zone_with_its_time() -> None:
    """The ids of Zabbix are none of the machine's."""
    body = {"eventId": "7", "status": "OK", "title": "x", "hostName": "db-1", "host_id": "1", "service": "orders"}
    body |= {"env": "prod", "startsAt": "2026.03.01T10:00:00+01:00", "endsAt": "2026.03.01T10:10:00+01:00"}
    (signal,) = parse(json.dumps(body).encode(), FACTS)
    assert [key.key for key in signal.targets] == ["svc:prod/orders", "host:db-1"]
    assert "host.id" not in signal.resource
    assert (signal.start_time, signal.end_time) == (1_772_355_600_000_000_000, 1_772_356_200_000_000_000)


def test_the_button_of_any_template_is_a_test() -> None:
    """Whatever the field with the event's id is called, it was left unfilled."""
    body = {"id": "{EVENT.ID}", "name": "{EVENT.NAME}", "status": "{TRIGGER.STATUS}", "tags": "{EVENT.TAGSJSON}"}
    assert parse(json.dumps(body).encode(), FACTS)[0].test


def test_the_default_message_of_a_recovery_may_name_its_duration() -> None:
    """Newer media types say how long it took before they say when."""
    over = spoken("Resolved in 9m 3s: Disk is full", OVER_TEXT.replace("resolved at", "resolved in 9m 3s at"))
    assert (over.status, over.end_time) == (Status.RESOLVED, 1_772_359_200_000_000_000)


def test_the_macros_of_a_recovery_say_that_it_is_one() -> None:
    """A template may leave the event's value empty then; before, the recovery's is not filled in."""
    changes: dict[str, Any] = {"event_value": "", "event_status": None}
    over = one({**BODY, **OVER, **changes, "event_recovery_value": "0"})
    assert (over.status, over.dedup_key) == (Status.RESOLVED, one().dedup_key)
    assert one(**changes, event_recovery_value="{EVENT.RECOVERY.VALUE}").status is Status.UNSPECIFIED


@pytest.mark.parametrize("prefix", ["recovery_", "event_r_"])
def test_the_moment_of_a_recovery_under_other_names(prefix: str) -> None:
    """Templates shorten `event_recovery_date`."""
    named = {f"{prefix}date": "2026.01.01", f"{prefix}time": "01:10:00"}
    body = {"timezone": "+01:00", "event_id": "1", "event_value": "0", "name": "x", **named}
    assert one(body).end_time == START + 600 * 1_000_000_000


def test_without_a_title_the_first_line_of_the_text_is_it() -> None:
    """A template may send no name but the trigger's description."""
    signal = one({"event_id": "1", "event_status": "1", "trigger_description": "Camera is offline\nno reply"})
    assert signal.summary == "Camera is offline"


def test_date_and_time_in_one_field_of_a_template() -> None:
    """Both macros side by side are a moment, and an end that was not filled in is none."""
    ends = {"recovery_clock": "{EVENT.RECOVERY.DATE} {EVENT.RECOVERY.TIME}"}
    body = {"timezone": "+01:00", "event_id": "1", "status": "PROBLEM", "clock": "2026.01.01 01:00:00", **ends}
    assert (one(body).start_time, one(body).end_time) == (START, None)
    over = one(body, status="RESOLVED", recovery_clock="2026.01.01 01:10:00")
    assert (over.start_time, over.end_time) == (START, START + 600 * 1_000_000_000)


@pytest.mark.parametrize("changes", [{"value": "0", "status": "OK"}, {"status": "PROBLEM", "ack_status": "Yes"}])
def test_the_clock_of_what_is_told_later_is_no_beginning(changes: dict[str, str]) -> None:
    """It may be that word's own moment: as a beginning it would make another episode of the problem."""
    body = {"timezone": "+01:00", "event_id": "1", "name": "x", "clock": "2026.01.01 01:10:00", **changes}
    assert one(body).start_time is None
