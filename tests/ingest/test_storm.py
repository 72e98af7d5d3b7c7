"""Some thousands of alerts of twenty causes at once: twenty incidents, at most twenty decisions, nothing lost."""

import random
from collections import Counter

from opsmesh.router.v1 import decision_service_pb2
from tests.ingest.house import House, alert, contents, entry, eventually, notification
from tests.ingest.test_lanes import MemoryRouter, following
from tests.ingest.test_worker import running

CAUSES = 20
ALERTS = 4000
A_NOTIFICATION = 10
SEED = 20261121


def storm(seed: int) -> list[bytes]:
    """Return the notifications of a pair of Alertmanagers: mixed, and each told by both, in another order."""
    chance = random.Random(seed)  # noqa: S311  a shuffle, no secret
    alerts = [
        alert(f"Cause{number % CAUSES}", pod=f"web-{number}", start=f"2026-03-01T10:00:{number % 60:02}Z")
        for number in range(ALERTS // 2)
    ]
    told = []
    for _ in range(2):
        chance.shuffle(alerts)
        told += [notification(*alerts[at : at + A_NOTIFICATION]) for at in range(0, len(alerts), A_NOTIFICATION)]
    chance.shuffle(told)
    return told


async def test_a_storm_of_twenty_causes_is_twenty_incidents(house: House) -> None:
    """Every alert has its row, each copy is counted, and the router is asked once for each cause."""
    router = MemoryRouter()
    router.next = decision_service_pb2.Decision(
        state=decision_service_pb2.Decision.STATE_DECIDED,
        outcome=decision_service_pb2.Decision.OUTCOME_TRIGGER_AUTOMATION,
    )
    entries = [entry(body) for body in storm(SEED)]
    async with following(house, router), running(house.worker()), running(house.worker()):
        for at in range(0, len(entries), 50):
            batch = entries[at : at + 50]
            await house.appender.append(contents(batch), [one.delivery.source for one in batch])
        await eventually(lambda: house.rows(f"SELECT 1 FROM signals HAVING count(*) = {ALERTS}"), 60)  # noqa: S608
        await eventually(house.idle)
        await eventually(lambda: house.rows("SELECT 1 FROM incidents WHERE needs_decision HAVING count(*) = 0"))
    found = Counter(await house.dispositions())
    assert (found["OPENED"], found["DUPLICATE"], found["JOINED"]) == (CAUSES, ALERTS // 2, ALERTS // 2 - CAUSES)
    totals = "sum(signal_count), sum(duplicate_count), sum(alert_count), max(revision)"
    (row,) = await house.rows(f"SELECT count(*), {totals} FROM incidents")  # noqa: S608  constants only
    assert tuple(map(int, row)) == (CAUSES, ALERTS, ALERTS // 2, ALERTS // 2, 1)
    assert len(router.decisions) <= CAUSES
    assert not await house.rows("SELECT 1 FROM dead_letters")
