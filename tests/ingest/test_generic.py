"""Any other JSON: sensible names are read, nothing is assumed."""

import json
from typing import Any

import pytest

from services.ingest.signal import DeliveryFacts, Severity, Status, Unreadable
from services.ingest.sources.generic import parse

FACTS = DeliveryFacts("generic")


def one(body: Any) -> Any:
    """Parse a body with one signal."""
    signals = parse(json.dumps(body).encode(), FACTS)
    assert len(signals) == 1
    return signals[0]


def test_plain_names() -> None:
    """The names most senders use, in any spelling."""
    signal = one(
        {
            "alertId": "a-1",
            "STATUS": "Down",
            "Severity": "P1",
            "title": "checkout is down",
            "service": "checkout",
            "env": "demo",
            "started_at": 1772359200123,
            "tags": ["team:shop", "urgent"],
            "url": "https://x/1",
        }
    )
    assert (signal.dedup_key, signal.status, signal.severity) == ("a-1", Status.FIRING, Severity.CRITICAL)
    assert (signal.summary, signal.start_time) == ("checkout is down", 1772359200123000000)
    assert [key.key for key in signal.targets] == ["svc:demo/checkout"]
    assert (signal.labels["team"], signal.labels["urgent"], signal.labels["env"]) == ("shop", "true", "demo")


@pytest.mark.parametrize("body", [{"name": "x"}, {"status": 1}, {"status": True}, {"status": "frobnicated"}, {"x": {}}])
def test_an_unreadable_status_and_severity_stay_unspecified(body: Any) -> None:
    """Nothing becomes firing or info by default."""
    signal = one(body)
    assert (signal.status, signal.severity) == (Status.UNSPECIFIED, Severity.UNSPECIFIED)
    assert len([text for text in signal.warnings if "not understood" in text]) == 2


def test_the_first_known_word_counts() -> None:
    """Of several status fields the best name with a word we know is taken."""
    assert one({"status": "weird", "event_type": "trigger", "name": "x"}).status is Status.FIRING
    assert one({"state": "ok", "name": "x"}).status is Status.RESOLVED


def test_containers_count_where_the_top_is_silent() -> None:
    """PagerDuty's inbound shape: what stands in `payload` is read as well."""
    signal = one(
        {
            "routing_key": "k",
            "event_action": "trigger",
            "dedup_key": "d-7",
            "payload": {"summary": "disk full", "severity": "error", "source": "db-1", "host": "db-1:22"},
        }
    )
    assert (signal.dedup_key, signal.status, signal.severity) == ("d-7", Status.FIRING, Severity.ERROR)
    assert (signal.summary, [key.key for key in signal.targets]) == ("disk full", ["host:db-1"])


def test_a_list_of_objects_is_several_signals() -> None:
    """Each object is a signal; what is no object is named in the warnings of the others."""
    signals = parse(b'[{"id":"1"},{"id":"2"},7,{}]', FACTS)
    assert [one.dedup_key for one in signals] == ["1", "2"]
    assert [one.body_pointer for one in signals] == ["/0", "/1"]
    assert signals[0].warnings[:2] == ("left out [2]: must be an object", "left out [3]: must be an object")


@pytest.mark.parametrize("body", [b"1", b'"x"', b"true", b"null", b"[]", b"{}", b"[1]", b"<xml/>", b"a=b", b""])
def test_what_says_nothing_is_refused(body: bytes) -> None:
    """Scalars, emptiness and what is no JSON are unreadable."""
    with pytest.raises(Unreadable):
        parse(body, FACTS)


def test_json_in_a_json_string_is_read() -> None:
    """Some senders serialise twice."""
    signal = one(json.dumps({"id": "7", "status": "ok"}))
    assert (signal.dedup_key, signal.status) == ("7", Status.RESOLVED)


def test_without_a_key_the_names_are_the_key() -> None:
    """Firing and resolved of one thing match, whatever the words and times around them."""
    down = one(
        {"service": "checkout", "host": "web-1", "state": "critical", "message": "since 2 minutes", "time": 1772359200}
    )
    up = one({"service": "checkout", "host": "web-1", "state": "ok", "message": "after 9 minutes", "time": 1772359999})
    other = one({"service": "checkout", "host": "web-2", "state": "ok"})
    assert down.dedup_key == up.dedup_key != other.dedup_key


def test_two_troubles_of_one_host_stay_two() -> None:
    """Without a key and a rule's name the title belongs to the key; with a rule's name it may change."""
    full, slow = (one({"host": "db-1", "title": title}) for title in ("disk full", "disk slow"))
    assert full.dedup_key != slow.dedup_key
    down, up = (one({"host": "db-1", "rule": "Disk", "title": title}) for title in ("it fails", "it is well"))
    assert down.dedup_key == up.dedup_key


def test_long_integers_stay_apart() -> None:
    """Ids above 2^64 are exact: two of them are two alerts."""
    first, second = (parse(f'{{"id": 10000000000000000000000{last}}}'.encode(), FACTS)[0] for last in (1, 2))
    assert first.dedup_key == "100000000000000000000001"
    assert first.dedup_key != second.dedup_key


def test_a_test_is_marked_only_when_it_says_so() -> None:
    """`test: true` marks a test; the word alone does not."""
    assert one({"id": "1", "test": True}).test
    assert not one({"id": "1", "test": "no"}).test


def test_a_list_called_alerts_is_several_signals() -> None:
    """What the batch says once holds for each that does not say it; what is no object is named."""
    body = {
        "status": "down",
        "env": "prod",
        "team": "shop",
        "alerts": [{"id": "1", "service": "cart"}, {"id": "2", "status": "up", "env": "demo"}, 7],
    }
    first, second = parse(json.dumps(body).encode(), FACTS)
    assert (first.dedup_key, first.status, first.targets[0].key) == ("1", Status.FIRING, "svc:prod/cart")
    assert (second.dedup_key, second.status, second.labels["env"]) == ("2", Status.RESOLVED, "demo")
    assert (first.body_pointer, second.body_pointer) == ("/alerts/0", "/alerts/1")
    assert "must be a JSON object" in " ".join(first.warnings)


def test_alerts_of_prometheus_are_read_as_such() -> None:
    """Whoever points an Alertmanager at the door for anything."""
    alert = {"status": "firing", "labels": {"alertname": "A", "severity": "page"}, "startsAt": "2026-01-01T00:00:00Z"}
    signal = one({"version": "4", "status": "firing", "alerts": [{**alert, "fingerprint": "f1"}]})
    assert (signal.dedup_key, signal.rule_name, signal.severity) == ("f1", "A", Severity.CRITICAL)


def test_without_key_and_name_what_varies_is_no_part_of_the_key() -> None:
    """Times, values and the status differ from one message to the next; the order of names says nothing."""
    first = one({"msg": "it broke", "ts": 1772359200, "value": 3, "at": {"stage": "prod", "lastSeenTime": "x"}})
    again = one({"at": {"lastSeenTime": "y", "stage": "prod"}, "value": 4, "msg": "it broke", "ts": 1772359299})
    over = one({"msg": "it broke", "status": "ok", "at": {"stage": "prod"}})
    other = one({"msg": "it broke", "at": {"stage": "demo"}})
    assert first.dedup_key == again.dedup_key == over.dedup_key != other.dedup_key
    assert one({"value": 3}).dedup_key != one({"value": 4}).dedup_key


def test_constants_are_words() -> None:
    """A name in capitals with the field's own before it; any other word with lines in it is not understood."""
    signal = one({"id": "1", "status": "STATUS_FIRING", "severity": "ALERT_CRITICALITY_LEVEL_WARNING"})
    assert (signal.status, signal.severity) == (Status.FIRING, Severity.WARNING)
    assert signal.severity_raw == "ALERT_CRITICALITY_LEVEL_WARNING"
    assert one({"id": "1", "severity": "NOT_CRITICAL"}).severity is Severity.UNSPECIFIED


def test_a_reason_has_the_rules_name_before_it() -> None:
    """Alone it says why, and not what."""
    assert one({"id": "1", "MONITORNAME": "shop", "INCIDENT_REASON": "timeout"}).summary == "shop: timeout"
    assert one({"id": "1", "msg": "it broke"}).summary == "it broke"


def test_services_of_one_host_are_told_apart() -> None:
    """By the names that Nagios and Icinga have for them, which stay the same when the trouble is over."""
    for name in ("service_desc", "service_name", "sensor"):
        base = {"host_name": "web-1", "notification_type": "PROBLEM"}
        disk, load = (one({**base, name: what, "service_output": "3 %"}) for what in ("disk", "load"))
        over = one({**base, name: "disk", "notification_type": "RECOVERY", "service_output": "70 %"})
        assert disk.dedup_key == over.dedup_key != load.dedup_key
        assert (disk.status, over.status, disk.summary) == (Status.FIRING, Status.RESOLVED, "3 %")


def test_a_time_may_have_an_offset_and_the_name_of_its_zone() -> None:
    """As Go prints it; a name alone says no offset, and the time is not guessed."""
    assert one({"id": "1", "timestamp": "2026-03-01 11:00:00.5 +0100 CET"}).event_time == 1_772_359_200_500_000_000
    assert one({"id": "1", "timestamp": "2026-03-01 11:00:00 PDT"}).event_time is None
