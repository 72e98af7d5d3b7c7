"""Many executions on one target: one after another, each under a fence of its own; a dead holder holds up nobody."""

import uuid

from tests.automation.fakes import TARGET, Hold
from tests.automation.world import Mesh, state_of


async def test_five_on_one_target(mesh: Mesh) -> None:
    """Five executions on one target act one after another, under five growing fences."""
    holds = [Hold() for _ in range(5)]
    mesh.gateway.turns["RestartWorkload"] = list(holds)
    started = [await mesh.start("tried") for _ in holds]
    for place, hold in enumerate(holds):
        await hold.began.wait()
        assert not any(later.began.is_set() for later in holds[place + 1 :])
        assert len(mesh.guardrails.fences) == place + 1
        hold.go.set()
    assert {state_of(await mesh.reached(one)) for one in started} == {"SUCCEEDED"}
    assert mesh.guardrails.fences == sorted(set(mesh.guardrails.fences))
    assert mesh.guardrails.locks == {}
    assert mesh.gateway.count("RestartWorkload") == 5


async def test_dead_holder(mesh: Mesh) -> None:
    """The lock of a holder that died is taken over as soon as guardrails gives it away."""
    mesh.guardrails.locks[TARGET] = ("who has died", 1)
    execution_id = await mesh.start("tried")
    await mesh.until(lambda: mesh.guardrails.refused > 1)
    # What guardrails does when the time to live is over.
    del mesh.guardrails.locks[TARGET]
    assert state_of(await mesh.reached(execution_id)) == "SUCCEEDED"


async def test_two_that_cross(mesh: Mesh) -> None:
    """Two executions that need the same two targets in opposite order do not wait for each other for ever."""
    both = [TARGET, "svc:demo/payments"]
    holds, started = [Hold(), Hold()], []
    mesh.gateway.turns["RestartWorkload"] = list(holds)
    for hold, targets in zip(holds, (both, both[::-1]), strict=True):
        incident_id = str(uuid.uuid4())
        mesh.ingest.targets[incident_id] = targets
        started.append(await mesh.start("crossing", incident_id))
        await hold.began.wait()
    # Each holds the target that the other needs next.
    for hold in holds:
        hold.go.set()
    assert {state_of(await mesh.reached(one)) for one in started} == {"SUCCEEDED"}
    assert mesh.gateway.count("RestartWorkload") == 4
    assert mesh.guardrails.locks == {}
