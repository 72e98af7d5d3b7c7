"""CloudEvents 1.0, by the specification of its JSON format and of HTTP, and of its severity extension."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.mapping import entry_of
from services.ingest.signal import DeliveryFacts, Kind, Severity, Status, Unreadable
from services.ingest.sources.cloudevents import parse
from services.mesh import policy
from tests.ingest.house import delivery
from tests.ingest.sources.mutants import check, mutants

STRUCTURED = "application/cloudevents+json; charset=UTF-8"
BATCH = "application/cloudevents-batch+json"
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A-1",
    "source": "/shop/orders",
    "type": "org.example.order.lost",
    "subject": "order/7",
    "time": "2026-03-01T10:00:00Z",
    "region": "eu-1",
    "datacontenttype": "application/json",
    "data": {"order": 7, "service": "orders", "env": "prod"},
}
ALERT = EVENT | {"data": {"alert_id": "a-7", "status": "firing", "severity": "critical", "title": "orders are lost"}}


def read(event: Any, content_type: str = STRUCTURED, **headers: str) -> Any:
    """Parse a request with one event."""
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    (signal,) = parse(body, DeliveryFacts("cloudevents", content_type, named))
    return signal


def test_an_event_happened_once() -> None:
    """Source and id are its key; time, type and extensions are kept; its data names what it is about."""
    signal = read(EVENT)
    assert (signal.status, signal.dedup_key) == (Status.OCCURRENCE, "/shop/orders|A-1")
    assert signal.event_time == signal.start_time == 1772359200 * 10**9
    assert (signal.labels["ce.type"], signal.labels["region"]) == ("org.example.order.lost", "eu-1")
    assert [key.key for key in signal.targets] == ["svc:prod/orders"]
    assert signal.severity is Severity.UNSPECIFIED
    assert signal.summary == "org.example.order.lost from /shop/orders about order/7"


def test_data_that_names_a_status_is_an_alert() -> None:
    """It has a key that stays until it is over, within its source."""
    fired = read(ALERT)
    over = read(ALERT | {"id": "A-2", "data": {"alert_id": "a-7", "status": "resolved"}})
    assert (fired.status, fired.severity, fired.summary) == (Status.FIRING, Severity.CRITICAL, "orders are lost")
    assert over.status is Status.RESOLVED
    assert fired.dedup_key == over.dedup_key != read(ALERT | {"source": "/else"}).dedup_key
    odd = read(ALERT | {"data": {"alert_id": "a-7", "status": "frobnicated"}})
    assert odd.status is Status.UNSPECIFIED


def test_the_correlation_extension_is_the_key() -> None:
    """Where the sender gives one."""
    assert read(EVENT | {"correlationid": "c-1"}).dedup_key == "/shop/orders|c-1"


@pytest.mark.parametrize(
    ("extensions", "severity"),
    [
        ({"severitytext": "ERROR", "severitynumber": 17}, Severity.ERROR),
        ({"severitynumber": 13}, Severity.WARNING),
        ({"severitynumber": "24"}, Severity.CRITICAL),
        ({"severitynumber": 1}, Severity.INFO),
        ({"severitynumber": 0}, Severity.UNSPECIFIED),
        ({"severitynumber": 99}, Severity.UNSPECIFIED),
        ({"severitytext": "frobnicated"}, Severity.UNSPECIFIED),
    ],
)
def test_the_severity_extension(extensions: dict[str, Any], severity: Severity) -> None:
    """Its word or its number, on OpenTelemetry's scale."""
    assert read(EVENT | extensions).severity is severity


def test_a_batch_is_several() -> None:
    """One that lacks an attribute is named in the warnings of the others."""
    body = json.dumps([EVENT, {"specversion": "1.0", "id": "x"}, EVENT | {"id": "A-2"}]).encode()
    signals = parse(body, DeliveryFacts("cloudevents", BATCH))
    assert [one.body_pointer for one in signals] == ["/0/data", "/2/data"]
    assert signals[0].warnings[0] == "left out [1].source: is required of a CloudEvent"


def test_binary_mode_has_its_attributes_in_headers() -> None:
    """They are percent-decoded; the body is the data, whatever its type."""
    headers = {"ce_specversion": "1.0", "ce_id": "A-1", "ce_source": "/shop", "ce_type": "org.example.caf%C3%A9"}
    signal = read(b"<much wow='xml'/>", "application/xml", **headers)
    assert (signal.rule_name, signal.dedup_key) == ("org.example.café", "/shop|A-1")
    assert signal.description == "<much wow='xml'/>"
    told = read(b'{"status": "firing", "id": "a-7"}', "application/json", **headers)
    assert told.status is Status.FIRING
    assert read(b"", "", **headers).status is Status.OCCURRENCE
    with pytest.raises(Unreadable, match="source: is required"):
        read(b"{}", "application/json", ce_specversion="1.0", ce_id="A-1", ce_type="t")


def test_data_in_base64_is_decoded() -> None:
    """JSON within it is read; what is no base64 is left, and noted."""
    event = {name: value for name, value in EVENT.items() if name != "data"}
    encoded = base64.b64encode(b'{"status": "firing", "id": "a-7"}').decode()
    assert read(event | {"data_base64": encoded}).status is Status.FIRING
    assert "data_base64 is not base64 and was left as it is" in read(event | {"data_base64": "..."}).warnings
    assert read(event | {"data": None, "unset": None}).status is Status.OCCURRENCE


def test_an_event_of_kubernetes_is_read_as_one() -> None:
    """Knative's ApiServerSource sends them."""
    data = {"involvedObject": {"kind": "Pod", "name": "web-0", "namespace": "shop", "uid": "u"}, "type": "Normal"}
    signal = read(EVENT | {"type": "dev.knative.apiserver.resource.update", "data": data | {"reason": "Pulled"}})
    assert (signal.kind, signal.rule_name) == (Kind.NOTE, "Pulled")
    assert signal.labels["ce.type"] == "dev.knative.apiserver.resource.update"


def test_an_attribute_that_was_not_rendered_is_absent() -> None:
    """It never becomes a key; a title that was not rendered is no summary."""
    with pytest.raises(Unreadable, match="id: is required"):
        read(EVENT | {"id": "{{ id }}"})
    summary = read(EVENT | {"data": {"title": "{{ title }}"}}).summary
    assert summary == "org.example.order.lost from /shop/orders about order/7"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", STRUCTURED), (b"{}", STRUCTURED), (b"[]", BATCH), (b"7", BATCH), (b'{"id":"1"}', ""), (b'{"a":1}', BATCH)],
)
def test_what_is_no_event_is_unreadable(body: bytes, content_type: str) -> None:
    """What an event must have is named."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("cloudevents", content_type))


def test_an_attribute_in_a_header_is_decoded() -> None:
    """Percent signs, and quotation marks around it with what they escape."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "7",
        "ce-source": '"/a \\"b\\""',
        "ce-type": "t",
        "ce-subject": "caf%C3%A9%20%22x%22",
    }
    (signal,) = parse(b'{"status": "ok", "id": "x"}', DeliveryFacts("cloudevents", "application/json", headers))
    assert (signal.labels["ce.subject"], signal.labels["ce.source"]) == ('café "x"', '/a "b"')
    # The body is the data itself.
    assert signal.body_pointer == ""


def test_a_bad_event_of_a_batch_costs_itself_only() -> None:
    """It is named to the others."""
    good = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    body = json.dumps([good, {"id": "2"}, {**good, "id": "3"}]).encode()
    signals = parse(body, DeliveryFacts("cloudevents", BATCH))
    assert [one.dedup_key for one in signals] == ["/s|1", "/s|3"]
    assert "left out [1].source: is required of a CloudEvent" in signals[0].warnings


@settings(max_examples=300, deadline=None)
@given(body=mutants([EVENT, ALERT, [EVENT, ALERT]]), content_type=st.sampled_from([STRUCTURED, BATCH, "text/plain"]))
def test_any_damage_gives_signals_or_unreadable(body: bytes, content_type: str) -> None:
    """Whatever is left of a good event, the answer is bounded and soon."""
    check("cloudevents", body, content_type)


def test_an_event_of_kubernetes_may_stand_in_the_body_of_the_data() -> None:
    """As Argo Events wraps what its source for resources saw."""
    about = {"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "u-1"}
    data = {"type": "ADD", "body": {"involvedObject": about, "reason": "Failed", "type": "Warning"}}
    event = {"specversion": "1.0", "id": "1", "source": "k8s", "type": "resource", "data": data}
    (signal,) = parse(json.dumps(event).encode(), DeliveryFacts("cloudevents"))
    assert (signal.rule_name, signal.resource["k8s.pod.name"]) == ("Failed", "web-1")
    assert signal.body_pointer == "/data/body"


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=50),
    headers=st.dictionaries(
        st.sampled_from(["ce-id", "ce-source", "ce-type", "ce-time", "ce-x"]), st.text(max_size=30)
    ),
    content_type=st.sampled_from(["", "application/json", "application/xml", "x/y+json;a"]),
)
def test_any_headers_give_signals_or_unreadable(body: bytes, headers: dict[str, str], content_type: str) -> None:
    """In binary mode, whatever the headers and the body."""
    sent = delivery(body, "cloudevents")
    sent.content_type = content_type
    sent.headers.update({"ce-specversion": "1.0", **headers})
    entry = entry_of(sent, parse)
    assert bool(entry.errors) is not bool(entry.signals)
    assert not policy.violations(entry)
