"""What opens nothing, and what does, of senders that tell of everything."""

import json
from typing import Any

from tests.ingest.house import House, entry


def event(kind: str, reason: str, uid: str = "e-1", count: int = 1) -> Any:
    """Return a delivery of a Kubernetes event about a pod of checkout."""
    body = {
        "kind": "Event",
        "metadata": {"uid": uid, "name": f"web.{uid}", "namespace": "shop"},
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "web-0", "uid": "u-1"},
        "reason": reason,
        "message": f"it happened {count} times",
        "lastTimestamp": f"2026-03-01T10:0{count}:00Z",
        "count": count,
        "type": kind,
    }
    return entry(json.dumps(body).encode(), "kubernetes")


async def test_a_normal_event_is_kept_and_opens_nothing(house: House) -> None:
    """Who looks for a cause finds it; told again it is a duplicate."""
    await house.take(event("Normal", "Killing"))
    await house.take(event("Normal", "Killing", count=2))
    assert sorted(await house.dispositions()) == ["CHANGE", "DUPLICATE"]
    assert not await house.rows("SELECT 1 FROM incidents")
    assert [row["target_ids"] for row in await house.rows("SELECT target_ids FROM changes")] == [
        ["k8s:shop/statefulset/web"]
    ]


async def test_a_warning_opens_one_incident_however_often_it_is_told(house: House) -> None:
    """Updates of the same event, and the next event of the same trouble, are counted on it."""
    await house.take(event("Warning", "BackOff"))
    await house.take(event("Warning", "BackOff", count=2), event("Warning", "BackOff", uid="e-2", count=3))
    assert sorted(await house.dispositions()) == ["DUPLICATE", "DUPLICATE", "OPENED"]
    (row,) = await house.rows("SELECT signal_count, duplicate_count FROM incidents")
    assert (row["signal_count"], row["duplicate_count"]) == (3, 2)
