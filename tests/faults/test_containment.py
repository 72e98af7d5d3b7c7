"""Two thousand calls with real certificates and without a right to them: nothing happens. `make faults` makes more."""

import json
import os
from collections import Counter
from collections.abc import Callable

import pytest

from services.mesh.tools import tools
from tests.faults.containment import STORED, THIEVES, Containment
from tests.faults.forgeries import changing, sample
from tests.faults.reading import Outside, effects, starts
from tests.flows.world import RESTART, World

CALLS = int(os.environ.get("FAULTS_CALLS", "2000"))
SEED = int(os.environ.get("FAULTS_SEED", "1"))
KINDS = {
    "no grant",
    "garbage",
    "signed with another key",
    "not signed",
    "grant for other bytes",
    "grant for another request id",
    "used grant, another request",
    "grant of another caller",
    "grant of another tool",
    "re-targeted request",
    "re-targeted grant",
    "grant changed after signing",
    "signature of another grant",
    "bit flipped",
    "unknown field in the request",
    "unknown field in the grant",
    "unknown field around the grant",
    "expired",
    "low fence",
    "killed (target_id)",
    "killed (environment)",
    "killed (tool)",
    "killed (playbook_id)",
    "killed, after the release",
    STORED,
}
pytestmark = pytest.mark.timeout(480 + CALLS // 20)


@pytest.fixture(scope="module")
async def contained(world: World, outside: Outside) -> Containment:
    """Give an attack that is over."""
    attacked = Containment(world, outside, SEED)
    await attacked.attack(CALLS)
    return attacked


async def test_everything_was_tried(contained: Containment, record_property: Callable[[str, object], None]) -> None:
    """Every kind of attempt was made, with every certificate and every tool that changes something."""
    for line in [f"seed {SEED}, {contained.calls} calls as {', '.join(THIEVES)}", *contained.table()]:
        record_property("figures", line)
    assert contained.calls >= CALLS
    assert set(contained.answers) == KINDS
    assert {one.tool.name for one in contained.used} == {tool.name for tool in changing()}


async def test_no_attempt_was_answered(contained: Containment) -> None:
    """Each was refused; only the same call again, with its used grant, gets the stored answer."""
    assert contained.answered == []
    assert set(contained.answers[STORED]) == {"ANSWERED"}


async def test_the_gateway_began_nothing(contained: Containment, world: World) -> None:
    """Under no request id of an attempt is there an effect; those there are are the honest ones."""
    found = await effects(world)
    assert [one.words for one in found if one.request_id in contained.forged] == []
    honest = {str(getattr(one.request, "request_id", "")) for one in contained.used}
    assert {one.request_id for one in found if one.guarded} <= honest


async def test_the_process_managers_started_nothing(contained: Containment, world: World, outside: Outside) -> None:
    """By their own record each workload was started as often as a grant was used as it was meant, once each."""
    began = [one for one in starts(world) if (one.target_id, one.process_id, one.time) not in outside.before]
    honest = Counter(str(getattr(one.request, "target_id", "")) for one in contained.used if one.tool.name == RESTART)
    assert Counter(one.target_id for one in began) == honest


async def test_the_inbox_holds_nothing_of_it(contained: Containment, world: World) -> None:
    """No notice came from an attempt."""
    inbox = world.mesh.state / "services" / "gateway" / "inbox.jsonl"
    told = {json.loads(line)["notice_id"] for line in inbox.read_text(encoding="utf-8").splitlines()}
    assert not told & contained.forged


def test_a_request_is_made_for_every_tool() -> None:
    """The generator fills a valid request of each tool of the IDL, also of those that only read."""
    for tool in tools().values():
        assert sample(tool, "svc:demo/checkout").IsInitialized()
