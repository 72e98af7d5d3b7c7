"""The short form of the storm: one kill of each process, and every invariant holds. The long one is `make faults`."""

import os
from collections.abc import AsyncIterator, Callable

import pytest

from tests.faults.history import check
from tests.faults.quiet import quiet
from tests.faults.reading import Outside, read
from tests.faults.records import History
from tests.faults.storm import SERVICES, SHORT, STORES, Storm
from tests.faults.tally import counts
from tests.flows.world import World

SEED = int(os.environ.get("FAULTS_SEED", "1"))
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
async def storm(world: World, outside: Outside) -> AsyncIterator[Storm]:
    """Give a storm that is over."""
    raged = Storm(world, outside, SEED, SHORT, print)
    await raged.rage()
    yield raged
    await world.whole()


@pytest.fixture(scope="module")
async def history(storm: Storm, world: World, outside: Outside) -> History:
    """Give what happened, once there is quiet."""
    assert storm.over.is_set()
    await quiet(world, outside)
    return await read(world, outside)


async def test_the_storm_was_one(
    storm: Storm, history: History, record_property: Callable[[str, object], None]
) -> None:
    """Every process was killed, alerts came in and things were done; otherwise nothing was tested."""
    for what, seen in [("seed", str(SEED)), *storm.summary(), *counts(history)]:
        record_property("figures", f"{what}: {seen}")
    assert set(storm.kills) == {*SERVICES, *STORES}
    assert storm.boundaries.total() == SHORT.boundaries
    assert storm.stalls.total() == SHORT.stalls
    assert storm.alerts >= SHORT.alerts
    assert [one for one in history.effects if one.guarded and one.state == "SUCCEEDED"]
    assert history.approvals
    assert history.kills


async def test_every_invariant_holds(history: History) -> None:
    """I1 to I6, over everything that happened."""
    assert check(history) == []


async def test_nothing_is_accepted_that_is_not_on_disk(storm: Storm) -> None:
    """While Valkey's fsync does not return, there is no 202."""
    assert storm.lies == 0
