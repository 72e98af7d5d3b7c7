"""Datadog's webhooks, by its documentation: the default body, and templates good and bad."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.datadog import parse
from tests.ingest.sources.mutants import check, mutants

FACTS = DeliveryFacts("datadog")
LINK = "https://app.datadoghq.com/monitors/4711?group=host%3Aweb-1&amp;from_ts=1&event_id=9"
DEFAULT = {
    "id": "8001",
    "last_updated": "1767225600000",
    "event_type": "query_alert_monitor",
    "title": "[P2] [Triggered on {host:web-1,env:prod}] CPU is high",
    "date": "1767225600000",
    "org": {"id": "77", "name": "shop"},
    "body": f"%%%\nCPU &amp; load are high\n\n[[Monitor Status]({LINK})]\n%%%",
}
TEMPLATE = {
    "id": "8002",
    "cycle_key": "c-1",
    "alert_id": "4711",
    "alert_transition": "Triggered",
    "aggreg_key": "agg-1",
    "alert_scope": "env:prod, host:web-1",
    "alert_priority": "P1",
    "tags": "env:prod,service:checkout,team:a,team:b,url:http://x:8080/,urgent,kube_namespace:shop",
    "hostname": "web-1",
    "link": "https://app.datadoghq.com/event/event?id=8002",
    "last_updated": "1767225600000",
    "alert_title": "Errors in checkout",
    "title": "[P1] [Triggered] Errors in checkout",
    "body": "too many",
}


def one(body: dict[str, Any], **changes: Any) -> Any:
    """Parse a body, changed so."""
    return parse(json.dumps(body | changes).encode(), FACTS)[0]


def test_the_default_body_is_read_from_title_and_link() -> None:
    """Status, severity, scope and monitor stand nowhere else."""
    signal = one(DEFAULT)
    assert (signal.status, signal.status_raw) == (Status.FIRING, "Triggered")
    assert (signal.severity, signal.severity_raw) == (Severity.ERROR, "P2")
    assert (signal.dedup_key, signal.rule_name) == ("monitor|4711|env:prod,host:web-1", "CPU is high")
    assert signal.event_time == 1767225600000000000
    assert signal.resource == {"host.name": "web-1", "deployment.environment.name": "prod"}
    assert signal.description.startswith("CPU & load are high")
    assert [link.rel for link in signal.links] == [Rel.GENERATOR]


def test_recovered_has_the_key_of_triggered() -> None:
    """The event's id is another each time, the key is not."""
    changes = {"id": "8003", "title": "[P2] [Recovered on {env:prod,host:web-1}] CPU is high"}
    recovered = one(DEFAULT, **changes)
    assert recovered.dedup_key == one(DEFAULT).dedup_key
    assert (recovered.status, recovered.end_time) == (Status.RESOLVED, recovered.event_time)
    assert one(DEFAULT, title="[Triggered on {host:web-2}] CPU is high").dedup_key != recovered.dedup_key


def test_a_full_template() -> None:
    """The key of the cycle is the best there is; tags and scope become labels, and values may hold colons."""
    signal = one(TEMPLATE)
    assert (signal.dedup_key, signal.status, signal.severity) == ("c-1", Status.FIRING, Severity.CRITICAL)
    assert signal.rule_name == "Errors in checkout"
    assert signal.labels["team"] == "a,b"
    assert (signal.labels["url"], signal.labels["urgent"]) == ("http://x:8080/", "true")
    assert [key.key for key in signal.targets] == ["svc:prod/checkout", "host:web-1"]
    assert [link.url for link in signal.links] == [TEMPLATE["link"]]


def test_the_best_key_that_there_is() -> None:
    """Cycle, aggregate, monitor and scope, title, event: in this order."""
    bare = {name: one for name, one in TEMPLATE.items() if name != "cycle_key"}
    assert one(bare).dedup_key == "agg-1"
    del bare["aggreg_key"]
    assert one(bare).dedup_key == "monitor|4711|env:prod,host:web-1"
    assert one(bare, alert_scope="host:web-1,env:prod").dedup_key == one(bare).dedup_key
    del bare["alert_id"]
    again = one(bare, id="9", title="[P1] [Recovered] Errors in checkout", alert_transition="Recovered")
    assert one(bare).dedup_key == again.dedup_key
    assert one({"id": "8002", "date": "1767225600000"}).dedup_key == "event|8002"


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("Triggered", Status.FIRING),
        ("Re-Triggered", Status.FIRING),
        ("Renotify", Status.FIRING),
        ("Warn", Status.FIRING),
        ("Re-Warn", Status.FIRING),
        ("No Data", Status.NO_DATA),
        ("Re-No Data", Status.NO_DATA),
        ("Recovered", Status.RESOLVED),
        ("Exploded", Status.UNSPECIFIED),
    ],
)
def test_every_transition(word: str, status: Status) -> None:
    """A template's word and the title's mean the same; a word we do not know says nothing."""
    assert one(TEMPLATE, alert_transition=word, title="x").status is status
    assert one(DEFAULT, title=f"[{word} on {{host:web-1}}] CPU").status is status


def test_a_warning_is_no_more_than_that() -> None:
    """A monitor of P1 that only warns is a warning; the priority of the event stream says nothing."""
    assert one(TEMPLATE, alert_transition="Warn").severity is Severity.WARNING
    low = one({**TEMPLATE, "alert_priority": "", "title": "x"}, priority="low")
    assert (low.severity, low.severity_raw) == (Severity.UNSPECIFIED, "low")


def test_unrendered_variables_are_absent() -> None:
    """`$VARS`, their names without `$` and the word null never become keys, labels or words."""
    signal = one(
        TEMPLATE,
        cycle_key="$ALERT_CYCLE_KEY",
        aggreg_key="AGGREG_KEY",
        alert_id="null",
        alert_transition="null",
        hostname="$HOSTNAME",
        tags="$TAGS",
        last_updated="$LAST_UPDATED",
        alert_scope="",
        link="$LINK",
    )
    assert signal.status is Status.FIRING
    assert "$" not in str((signal.dedup_key, signal.labels, signal.resource, signal.links, signal.summary))
    assert (signal.event_time, len(signal.dedup_key)) == (None, 64)
    assert any("unrendered" in text for text in signal.warnings)
    nothing = one({"id": "$ID", "title": "$EVENT_TITLE", "body": "$EVENT_MSG", "date": "$LAST_UPDATED"})
    assert (nothing.status, nothing.severity) == (Status.UNSPECIFIED, Severity.UNSPECIFIED)


def test_a_text_for_people_may_hold_what_looks_unrendered() -> None:
    """A stray placeholder in a story costs neither the story nor the link to the monitor in it."""
    body = f"template {{{{ x }}}} failed, see {LINK} now"
    signal = one(DEFAULT | {"body": body, "title": "[Triggered] {{ y }} is high"})
    assert signal.dedup_key == "monitor|4711|host:web-1"
    assert (signal.rule_name, signal.summary) == ("{{ y }} is high", "[Triggered] {{ y }} is high")


def test_templates_with_objects_in_them() -> None:
    """What stands in `alert` and `event` counts; the title of an incident and the id of an org do not."""
    signal = one(
        {
            "id": "1",
            "title": "[P3] [Triggered] [Synthetics] shop",
            "org": {"id": "77"},
            "alert": {"alert_id": "5", "alert_transition": "Triggered", "alert_scope": ""},
            "incident": {"title": "another", "incident_title": "null"},
            "event": {"aggreg_key": "agg-2", "event_id": "ID"},
        }
    )
    assert (signal.dedup_key, signal.status, signal.severity) == ("agg-2", Status.FIRING, Severity.WARNING)
    assert signal.rule_name == "[Synthetics] shop"


def test_a_body_encoded_as_a_form() -> None:
    """The fields of the template are those of the form."""
    facts = DeliveryFacts("datadog", "application/x-www-form-urlencoded")
    flat = {name: value for name, value in TEMPLATE.items() if isinstance(value, str)}
    assert parse(urlencode(flat).encode(), facts)[0].dedup_key == "c-1"
    assert parse(urlencode({"payload": json.dumps(TEMPLATE)}).encode(), facts)[0].dedup_key == "c-1"
    with pytest.raises(Unreadable):
        parse(b"&".join(b"a=1" for _ in range(1000)), facts)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"1", b'{"x": 1}', b'["x"]', b'{"org": {"id": 1}}'])
def test_what_is_no_notification_is_unreadable(body: bytes) -> None:
    """Without anything that Datadog sends there is no signal."""
    with pytest.raises(Unreadable):
        parse(body, FACTS)


def test_a_list_answers_for_each() -> None:
    """One bad item costs itself only."""
    signals = parse(json.dumps([TEMPLATE, 1, DEFAULT]).encode(), FACTS)
    assert [signal.body_pointer for signal in signals] == ["/0", "/2"]
    assert all("left out [1]" in signal.warnings[0] for signal in signals)


@settings(max_examples=200, deadline=None)
@given(body=mutants([DEFAULT, TEMPLATE, [TEMPLATE, DEFAULT]]))
def test_mutants(body: bytes) -> None:
    """Whatever is left of a good payload: signals or Unreadable."""
    check("datadog", body)
    check("datadog", body, "application/x-www-form-urlencoded")


def test_the_type_of_an_alert_is_its_severity_for_want_of_a_priority() -> None:
    """It is the sender's own word; the priority of the event stream is none, and a success says nothing of how bad."""
    body = {"alert_id": "7", "alert_transition": "Triggered", "title": "x", "priority": "normal", "alert_type": "error"}
    assert one(body).severity is Severity.ERROR
    assert one(body | {"alert_priority": "P4"}).severity is Severity.INFO
    assert one(body | {"alert_type": "success"}).severity is Severity.UNSPECIFIED


def test_variables_in_an_object_of_their_own() -> None:
    """Templates put them under `metadata`, some in capitals; what has no field is kept as an annotation."""
    variables = {"ALERT_CYCLE_KEY": "99", "ALERT_TRANSITION": "Recovered", "HOSTNAME": "db-1", "ALERT_METRIC": "disk"}
    signal = one({"title": "[Triggered] x", "body": "b", "metadata": variables})
    assert (signal.dedup_key, signal.status) == ("99", Status.RESOLVED)
    assert [key.key for key in signal.targets] == ["host:db-1"]
    assert signal.annotations["metadata.ALERT_METRIC"] == "disk"


def test_a_tag_that_was_not_filled_in_is_no_label() -> None:
    """`$TAGS[service]` of a monitor without that tag stays as it is."""
    signal = one({"alert_cycle_key": "1", "title": "x", "service": "$TAGS[service]", "occurred_at_posix": "1772359200"})
    assert not signal.labels
    assert signal.event_time == 1_772_359_200_000_000_000


def test_links_of_older_monitors_name_them_behind_a_hash() -> None:
    """`monitors#4711?group=…` is the same page, and the key the same as of the newer link."""
    older = DEFAULT | {"body": str(DEFAULT["body"]).replace("/monitors/", "/monitors#")}
    assert one(older).dedup_key == one(DEFAULT).dedup_key
    assert [link.rel for link in one(older).links] == [Rel.GENERATOR]


@pytest.mark.parametrize("body", [{"event_tags": "service:orders,env:prod"}, {"metadata": {"TAGS": "service:orders"}}])
def test_tags_under_other_names_are_labels_too(body: dict[str, Any]) -> None:
    """Templates call them `event_tags`, or keep them in an object."""
    signal = one({"title": "[Triggered] x", "alert_cycle_key": "1", **body})
    assert signal.resource["service.name"] == "orders"


def test_the_name_of_a_monitor_has_no_status() -> None:
    """Some fill `alert_title` with the title of the event."""
    signal = one({"alert_title": "[Triggered on {host:web-1}] CPU is high", "alert_cycle_key": "1"})
    assert (signal.rule_name, signal.status) == ("CPU is high", Status.FIRING)


@pytest.mark.parametrize(
    ("word", "status"),
    [("error", Status.FIRING), ("success", Status.RESOLVED), ("info", Status.UNSPECIFIED)],
)
def test_the_type_of_an_alert_is_its_status_for_want_of_a_transition(word: str, status: Status) -> None:
    """A template without transition and status in the title would never open or end anything."""
    assert one({"alert_id": "7", "title": "CPU is high", "alert_type": word}).status is status
    told = {"alert_id": "7", "title": "[No Data] CPU is high", "alert_type": word}
    assert one(told).status is Status.NO_DATA


def test_the_button_of_a_monitor_is_a_test() -> None:
    """It puts `[TEST]` before the name, and says who pressed it; a monitor that is only called so is none."""
    body = {"title": "[Triggered] [TEST] CPU is high", "body": "Test notification triggered by ann@example.org."}
    assert one(DEFAULT | body).test
    assert not one(DEFAULT | body | {"body": "too high"}).test
    assert not one(DEFAULT).test


@pytest.mark.parametrize(
    ("word", "status"), [("Alert", Status.FIRING), ("firing", Status.FIRING), ("OK", Status.RESOLVED)]
)
def test_a_template_may_send_the_state_of_the_monitor(word: str, status: Status) -> None:
    """A transition goes before it."""
    body = {"alert_id": "7", "title": "CPU is high", "status": word}
    assert one(body).status is status
    assert one(body | {"alert_transition": "No Data"}).status is Status.NO_DATA
