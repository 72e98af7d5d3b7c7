"""A thousand calls of a model that holds the certificates of agents and router: nothing beyond what policy grants."""

import os
from collections import Counter
from collections.abc import Callable

import pytest

from services.mesh import policy
from tests.faults.forgeries import changing
from tests.faults.puppets import GRANTED
from tests.faults.reading import Outside, effects, starts
from tests.faults.runs import ASKERS, RunContainment, meant
from tests.flows.world import World

CALLS = int(os.environ.get("FAULTS_RUN_CALLS", "1000"))
SEED = int(os.environ.get("FAULTS_SEED", "1"))
ACCIDENTS = {"INTERNAL", "UNAVAILABLE", "STORE_UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED", "UNKNOWN"}
pytestmark = pytest.mark.timeout(480 + CALLS // 10)
Begun = Counter[str]


@pytest.fixture(scope="module")
async def attacked(world: World, outside: Outside) -> tuple[RunContainment, Begun]:
    """Give an attack that is over, and how often each workload was started while it went on."""
    before = Counter(one.target_id for one in starts(world))
    one = RunContainment(world, outside, SEED)
    await one.attack(CALLS)
    return one, Counter(one.target_id for one in starts(world)) - before


async def test_everything_was_tried(
    attacked: tuple[RunContainment, Begun], record_property: Callable[[str, object], None]
) -> None:
    """At least a thousand calls; every tool that changes something was asked for; no refusal was an accident."""
    one, _ = attacked
    for line in [f"seed {SEED}, {one.puppets.calls} calls", *one.table()]:
        record_property("figures", line)
    assert one.puppets.calls >= CALLS
    assert {tool.name for tool in changing()} == {used.tool.name for used in one.used}
    accidents = {kind: set(answers) & ACCIDENTS for kind, answers in one.puppets.answers.items()}
    assert {kind: found for kind, found in accidents.items() if found} == {}


async def test_nothing_was_granted(attacked: tuple[RunContainment, Begun]) -> None:
    """Each move was refused or judged as what may not happen."""
    assert attacked[0].puppets.wrong == []


async def test_the_gateway_began_nothing(attacked: tuple[RunContainment, Begun], world: World) -> None:
    """Under no request id of a move is there an effect."""
    found = await effects(world)
    assert [one.words for one in found if one.request_id in attacked[0].forged] == []


async def test_the_process_managers_started_what_was_meant(attacked: tuple[RunContainment, Begun]) -> None:
    """By their own record: one start for each grant that was used as it was meant."""
    one, begun = attacked
    assert begun == meant(one)


async def test_people_are_asked_where_policy_asks_them(attacked: tuple[RunContainment, Begun]) -> None:
    """Honest runs get grants in `demo`, an approval in `production`, nothing in `observed`; as published."""
    one, _ = attacked
    writes = {tool.rpc for tool in changing() if tool.policy.access in policy.EFFECTS}
    said = {(tool, target.split("/")[0]): words for (_, tool, target), words in one.verdicts.items() if tool in writes}
    assert {where: words for (_, where), words in said.items()} == {
        "svc:demo": GRANTED,
        "svc:production": "REQUIRE_APPROVAL",
        "svc:observed": "OBSERVE",
    }
    assert set(ASKERS) == {template for template, _, _ in one.verdicts}
