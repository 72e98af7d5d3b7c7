"""Deployments and configuration changes: kept once, shown by target, and never an incident."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest.changes import read_changes
from services.ingest.signal import DeliveryFacts, Kind, Status, Unreadable
from services.ingest.sources import change
from tests.ingest.house import House, alert, entry, notification

DEPLOYED: dict[str, Any] = {
    "kind": "deployment",
    "service": "checkout",
    "environment": "demo",
    "version": "1.4.2",
    "actor": "ann",
    "title": "Deploy checkout 1.4.2",
    "time": "2026-03-01T10:00:00Z",
    "url": "https://ci.example.org/4711",
    "id": "4711",
    "status": "succeeded",
}


def parsed(*changes: Any) -> list[Any]:
    """Parse changes: one as an object, several as a list."""
    body = changes[0] if len(changes) == 1 else list(changes)
    return change.parse(json.dumps(body).encode(), DeliveryFacts("change"))


def told(**words: Any) -> pb.StreamEntry:
    """Return the delivery of a change."""
    return entry(json.dumps(DEPLOYED | words).encode(), "change")


async def listed(house: House, target: str = "svc:demo/checkout", size: int = 50, **more: Any) -> list[pb.Change]:
    """Return the changes of a target."""
    return await read_changes(house.pool, pb.ListChangesRequest(target_id=target, **more), size, None)


def test_a_deployment_is_read_as_it_says() -> None:
    """An occurrence on its target; version and actor are labels."""
    (found,) = parsed(DEPLOYED)
    assert (found.kind, found.status, found.summary) == (Kind.DEPLOYMENT, Status.OCCURRENCE, "Deploy checkout 1.4.2")
    assert [one.key for one in found.targets] == ["svc:demo/checkout"]
    assert (found.labels["version"], found.labels["actor"], found.status_raw) == ("1.4.2", "ann", "succeeded")
    assert found.links[0].url == "https://ci.example.org/4711"


def test_a_target_may_be_named_by_its_id() -> None:
    """Without a title one is made."""
    (found,) = parsed({"kind": "feature_flag", "target_id": "svc:demo/payments", "version": "7"})
    assert found.kind is Kind.CONFIGURATION
    assert found.summary == "configuration of svc:demo/payments 7"
    assert [one.key for one in found.targets] == ["svc:demo/payments"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"service": "x"}, "kind"),
        ({"kind": "outage", "service": "x"}, "kind"),
        ({"kind": "deployment"}, "target_id"),
        ({"kind": ["deployment"], "service": "x"}, "kind"),
        ([DEPLOYED, 7], "[1]"),
        ([DEPLOYED, {"kind": "x"}], "[1].kind"),
        ([], ""),
        (None, ""),
    ],
)
def test_what_breaks_the_contract_is_refused(body: Any, field: str) -> None:
    """With the field's name; a list is taken whole or not at all."""
    with pytest.raises(Unreadable) as caught:
        change.parse(json.dumps(body).encode(), DeliveryFacts("change"))
    assert [one.field for one in caught.value.errors] == [field]


@pytest.mark.parametrize("value", [7, True, None, [], {}, "x" * 100_000, "\ud800", "a\u0000b"])
@pytest.mark.parametrize("name", [*DEPLOYED, "labels", "target_id", "description", "test"])
def test_no_value_of_any_field_breaks_the_parser(name: str, value: Any) -> None:
    """It is read, cut, or refused."""
    try:
        signals = entry(json.dumps(DEPLOYED | {name: value}).encode(), "change").signals
    except UnicodeEncodeError:
        return  # json.dumps itself cannot say it
    assert all(len(one.dedup_key) <= 256 for one in signals)


async def test_a_change_is_kept_and_opens_nothing(house: House) -> None:
    """A row with disposition CHANGE, no incident, no alert."""
    await house.take(told())
    assert await house.dispositions() == ["CHANGE"]
    assert not await house.rows("SELECT 1 FROM incidents UNION ALL SELECT 1 FROM alerts")
    (found,) = await listed(house)
    assert (found.signal.kind, list(found.target_ids)) == (found.signal.KIND_DEPLOYMENT, ["svc:demo/checkout"])
    assert not await listed(house, "svc:demo/other")


async def test_a_change_told_twice_is_kept_once(house: House) -> None:
    """In one batch and in two; another status is another word about it."""
    await house.take(told(), told())
    await house.take(told())
    await house.take(told(status="failed"))
    assert sorted(await house.dispositions()) == ["CHANGE", "CHANGE", "DUPLICATE", "DUPLICATE"]
    assert sorted(one.signal.status_raw for one in await listed(house)) == ["failed", "succeeded"]


async def test_a_redelivered_entry_keeps_its_row(house: House) -> None:
    """The same delivery again changes nothing."""
    delivery_id = str(uuid.uuid4())
    same = entry(json.dumps(DEPLOYED).encode(), "change", delivery_id)
    await house.take(same)
    await house.take(same)
    assert await house.dispositions() == ["CHANGE"]


async def test_a_test_is_no_change(house: House) -> None:
    """It has its row, and is shown to nobody."""
    await house.take(told(test=True))
    assert await house.dispositions() == ["TEST"]
    assert not await listed(house)


async def test_changes_and_alerts_in_one_batch_do_not_meet(house: House) -> None:
    """The alert opens its incident, the change is kept."""
    await house.take(entry(notification(alert())), told())
    assert sorted(await house.dispositions()) == ["CHANGE", "OPENED"]
    assert (await house.rows("SELECT signal_count FROM incidents"))[0]["signal_count"] == 1


async def test_changes_come_newest_first_within_a_range(house: House) -> None:
    """From the start, before the end; by the sender's clock."""
    for hour in (9, 11, 10):
        await house.take(told(id=str(hour), time=f"2026-03-01T{hour:02d}:00:00Z"))
    assert [one.signal.event_time.ToDatetime().hour for one in await listed(house)] == [11, 10, 9]
    request = pb.ListChangesRequest(target_id="svc:demo/checkout")
    request.start_time.FromDatetime(datetime(2026, 3, 1, 9, tzinfo=UTC))
    request.end_time.FromDatetime(datetime(2026, 3, 1, 11, tzinfo=UTC))
    found = await read_changes(house.pool, request, 50, None)
    assert [one.signal.event_time.ToDatetime().hour for one in found] == [10, 9]
    last = found[0].signal
    rest = await read_changes(house.pool, request, 50, (last.event_time.ToDatetime(UTC), uuid.UUID(last.signal_id)))
    assert [one.signal.event_time.ToDatetime().hour for one in rest] == [9]
