"""The engine dies, and comes back with or without its memory: executions go on, effects happen once."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from services.local import temporal as tp
from services.local.files import free_port
from tests.automation.fakes import Hold
from tests.automation.world import Mesh, running_mesh, state_of
from tests.stores import Database, running


@pytest.fixture(scope="module")
def engine(store_folder: Path) -> tp.Temporal:
    """Give a Temporal of this module's own, not running."""
    return tp.Temporal(store_folder / "own-temporal", free_port(), free_port(), free_port())


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory, database: Database, engine: tp.Temporal) -> AsyncIterator[Mesh]:
    """Give an automation that is told of an engine which is not there yet."""
    async with running_mesh(tmp_path_factory.mktemp("automation"), database, engine) as mesh:
        await mesh.publish("restart-workload")
        yield mesh


async def test_engine_comes_late_dies_and_forgets(own: Mesh, engine: tp.Temporal) -> None:
    """What was accepted without an engine starts when it comes; killed it goes on; emptied it is started again."""
    first = await own.start("restart-workload")
    assert state_of(await own.get(first)) == "PENDING"
    async with running(tp.program(engine), engine.directory.parent) as process:
        execution = await own.reached(first)
        assert state_of(execution) == "SUCCEEDED", execution

        own.gateway.healthy, hold = False, Hold()
        own.gateway.turns["RestartWorkload"] = [hold]
        second = await own.start("restart-workload")
        await hold.began.wait()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    hold.go.set()
    async with running(tp.program(engine), engine.directory.parent) as process:
        execution = await own.reached(second)
        assert state_of(execution) == "SUCCEEDED", execution

        own.gateway.healthy, hold = False, Hold()
        own.gateway.turns["RestartWorkload"] = [hold]
        third = await own.start("restart-workload")
        await hold.began.wait()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    for file in engine.directory.glob("temporal.db*"):
        file.unlink()
    hold.go.set()
    async with running(tp.program(engine), engine.directory.parent):
        execution = await own.reached(third)
        assert state_of(execution) == "SUCCEEDED", execution
    assert own.gateway.count("RestartWorkload") == 3
    assert own.gateway.count("SendNotice") == 3


async def test_engine_dies_while_a_person_thinks(own: Mesh, engine: tp.Temporal) -> None:
    """Killed while an execution waits for approval, the engine goes on with the step that was approved meanwhile."""
    async with running(tp.program(engine), engine.directory.parent) as process:
        own.gateway.healthy = False
        own.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
        restarts = own.gateway.count("RestartWorkload")
        waiting = await own.reached(await own.start("restart-workload"), frozenset({"AWAITING_APPROVAL"}))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    (approval_id,) = [step.approval_id for step in waiting.steps if step.approval_id]
    own.guardrails.vote(approval_id, yes=True)
    async with running(tp.program(engine), engine.directory.parent):
        execution = await own.reached(waiting.execution_id)
        assert state_of(execution) == "SUCCEEDED", execution
    assert own.gateway.count("RestartWorkload") == restarts + 1


async def test_kill_while_the_engine_is_away(own: Mesh, engine: tp.Temporal) -> None:
    """Without the engine a killed execution is UNSTOPPED and sends nothing; it ends when the engine is back."""
    async with running(tp.program(engine), engine.directory.parent) as process:
        own.gateway.healthy = False
        own.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
        restarts = own.gateway.count("RestartWorkload")
        waiting = await own.reached(await own.start("restart-workload"), frozenset({"AWAITING_APPROVAL"}))
        process.send_signal(signal.SIGKILL)
        await process.wait()
    kill_id = own.guardrails.engage(everything=True)
    await own.until(lambda: own.guardrails.stop_of(kill_id, waiting.execution_id) == "UNSTOPPED")
    own.guardrails.release(kill_id)
    async with running(tp.program(engine), engine.directory.parent):
        execution = await own.reached(waiting.execution_id)
        assert (state_of(execution), execution.kill_id) == ("CANCELLED", kill_id)
        await own.until(lambda: own.guardrails.stop_of(kill_id, waiting.execution_id) == "STOPPED")
    assert own.gateway.count("RestartWorkload") == restarts
