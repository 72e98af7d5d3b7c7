"""Senders whose clock is ahead of ours, or who say that they are."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.ingest.house import House, alert, entry, notification


def at(**ahead: float) -> str:
    """Return the time so far from now, as Alertmanager writes it."""
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize("ahead", [{"days": 365}, {"hours": 1}, {"minutes": 6}])
async def test_a_start_that_is_yet_to_come_does_not_outlive_its_alert(house: House, ahead: dict[str, float]) -> None:
    """What fires and ends after it is not older than it: the incident ends with the resolve."""
    await house.take(entry(notification(alert(start=at(**ahead)))))
    real = alert(start=at(seconds=-60))
    await house.take(entry(notification(real)))
    await house.take(entry(notification(real | {"status": "resolved", "endsAt": at()})))
    assert (await house.dispositions())[0] == "OPENED"
    assert "STALE" not in await house.dispositions()
    (incident,) = await house.rows("SELECT firing FROM incidents")
    assert not incident["firing"]


async def test_a_resolve_with_the_same_wrong_start_ends_what_it_began(house: House) -> None:
    """The start is the same in both, and ahead in both."""
    start = at(hours=2)
    await house.take(entry(notification(alert(start=start))))
    await house.take(entry(notification(alert(start=start, status="resolved") | {"endsAt": at(hours=3)})))
    assert await house.dispositions() == ["OPENED", "JOINED"]


def test_times_that_are_not_used_are_named() -> None:
    """They are in the warnings and in the raw bytes; the signal has the time at which it came in."""
    (signal,) = entry(notification(alert(start=at(hours=1)))).signals
    assert not signal.HasField("start_time")
    assert signal.event_time == signal.receive_time
    assert "ahead of our clock, and so not used: event_time, start_time" in list(signal.warnings)


def test_a_clock_a_little_ahead_is_believed() -> None:
    """Minutes are what clocks differ by."""
    (signal,) = entry(notification(alert(start=at(minutes=4)))).signals
    assert signal.HasField("start_time")
    assert not any("ahead" in one for one in signal.warnings)


def test_each_alert_of_a_delivery_has_its_place_in_the_answer() -> None:
    """What was not understood, and what was too much, is named by its place; its bytes are kept with the others."""
    body = {"version": "4", "alerts": [alert("A"), "not an alert", alert("B"), {}, *[alert("C")] * 1000]}
    found = entry(json.dumps(body).encode())
    assert [(one.index, one.error.field) for one in found.left_out] == [
        (1, "alerts[1]"),
        (3, "alerts[3].labels"),
        (1000, "alerts[1000:]"),
    ]
    assert len(found.signals) == 998
    assert found.signals[1].body_pointer == "/alerts/2"
    assert not found.errors


@pytest.mark.parametrize("source", ["generic", "newrelic", "opsgenie"])
def test_lists_of_other_senders_are_answered_alike(source: str) -> None:
    """Items that are no alerts have their place, too."""
    good = {
        "generic": {"title": "Disk", "status": "firing", "host": "a"},
        "newrelic": {"id": "1", "title": "Disk", "state": "ACTIVATED", "priority": "HIGH"},
        "opsgenie": {"action": "Create", "alert": {"alertId": "1", "message": "Disk"}},
    }[source]
    found = entry(json.dumps([7, good, {}]).encode(), source)
    assert [one.index for one in found.left_out] == [0, 2]
    assert len(found.signals) == 1
