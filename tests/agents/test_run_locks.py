"""The lock of a run: from its first write to its end, but never while it waits for people, runs below it, or models."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from services.agents.providers import Kind, ProviderError
from services.mesh.failures import After
from tests.agents.outside import no
from tests.agents.run_house import OTHER, TARGET, Runs, check, report, restart, running, template
from tests.mesh.world import World
from tests.stores import Database

DELEGATE = ("delegate_run", {"template_id": "child", "goal": "go on"})


@pytest.fixture
async def runs(mesh: World, database: Database) -> AsyncIterator[Runs]:
    """Run the engine."""
    async with running(mesh, database) as one:
        yield one


async def test_it_is_kept_from_the_first_write_to_the_end(runs: Runs) -> None:
    """Reads before it need none; two writes and the proof are under one fence; after the end nobody has it."""
    seen: list[tuple[str, bool]] = []
    runs.outside.hook = lambda what: seen.append((what, TARGET in runs.outside.locks))
    runs.script.lines = {"": ([check()], [restart()], [check()], [restart()], [report()])}
    run = await runs.until(await runs.start(), closed=True)
    assert run.state == "SUCCEEDED"
    held = [there for what, there in seen if what == "CheckHealth"]
    assert held == [False, True, True], "before the first write, between the two, and at the proof"
    assert runs.outside.fence == 1
    assert runs.outside.locks == {}


async def test_it_is_renewed_while_the_model_thinks(runs: Runs) -> None:
    """A model may think longer than a lock holds."""
    kept = asyncio.Event()

    def hear(what: str) -> None:
        if what == "RestartWorkload done":
            runs.script.hangs = True
        if what == "keep_lock" and runs.script.hanging.is_set():
            kept.set()

    runs.outside.hook = hear
    run_id = await runs.start()
    await asyncio.wait_for(kept.wait(), 20)
    assert runs.outside.locks[TARGET] == (run_id, 1)
    await runs.cancel(run_id)
    await runs.until(run_id, closed=True)
    assert runs.outside.locks == {}


async def test_nobody_holds_it_while_a_person_thinks(runs: Runs) -> None:
    """That of an earlier write is given back, too, whatever it is that waits."""
    runs.outside.verdicts = [guardrails.VERDICT_ALLOW, guardrails.VERDICT_REQUIRE_APPROVAL]
    runs.script.lines = {"": ([restart()], [restart()])}
    await runs.until(await runs.start(), "AWAITING_APPROVAL")
    assert runs.outside.locks == {}


async def test_it_holds_one_at_a_time(runs: Runs) -> None:
    """Whoever writes to a second target gives the first one back: nobody waits for a lock while holding one."""
    runs.script.lines = {"": ([restart()], [restart(OTHER)], [check()], [report(evidence=2, action=4)])}
    seen: list[set[str]] = []
    runs.outside.hook = lambda what: seen.append(set(runs.outside.locks)) if what == "CheckHealth" else None
    run = await runs.until(await runs.start(targets=(TARGET, OTHER)), closed=True)
    assert list(runs.outside.made.values()) == ["RestartWorkload"] * 2
    assert seen[0] == {OTHER}
    assert (run.state, runs.outside.locks) == ("SUCCEEDED", {})


async def test_a_child_may_write_where_its_parent_did(runs: Runs) -> None:
    """The parent gives its lock back before it waits, and does not stand in the way of whom it asked."""
    await runs.publish(template("child"))
    parent = template("parent", child_templates=["child"], max_depth=1)
    runs.script.lines = {
        "parent": ([restart()], [DELEGATE], [report(evidence=2, action=2)]),
        "child": ([restart()], [report(evidence=2, action=2)]),
    }
    run = await runs.until(await runs.start(parent), closed=True)
    assert [one.state for one in await runs.store.children(run.run_id)] == ["SUCCEEDED"]
    assert run.state == "SUCCEEDED"
    assert runs.outside.locks == {}


async def test_a_provider_that_is_away_holds_up_nobody(runs: Runs) -> None:
    """The lock of a run that waits for a model is free."""
    runs.script.lines = {"": ([restart()], ProviderError(Kind.PERMANENT, "away"))}
    run = await runs.until_said(await runs.start(), "MODEL_UNAVAILABLE")
    assert (run.state, runs.outside.locks) == ("PENDING", {})


async def test_a_registration_whose_answer_was_lost_is_ended(runs: Runs) -> None:
    """Guardrails knows the run, its row does not say so: it is ended all the same, and grants nothing any more."""

    def lose(what: str) -> None:
        if what == "register":
            raise no("UNAVAILABLE", after=After.AGAIN)

    runs.outside.hook = lose
    waiting = await runs.until_said(await runs.start(), "UNAVAILABLE")
    assert not waiting.registered
    await runs.cancel(waiting.run_id)
    await runs.until(waiting.run_id, closed=True)
    assert waiting.run_id in runs.outside.ended


async def test_a_run_that_cannot_be_read_gives_back_what_it_holds(runs: Runs) -> None:
    """What its frozen template says is lost: it ends, at guardrails, too, and its claims are free."""
    runs.outside.verdicts = [guardrails.VERDICT_REQUIRE_APPROVAL]
    waiting = await runs.until(await runs.start(), "AWAITING_APPROVAL")
    await runs.rows("UPDATE runs SET template = '\\xff' WHERE run_id = $1", waiting.run_id)
    run = await runs.until(waiting.run_id, closed=True)
    assert (run.state, run.reason) == ("FAILED", "TEMPLATE_DISABLED")
    assert not any(one.open for one in run.steps)
    assert TARGET not in runs.outside.claims
    assert run.run_id in runs.outside.ended
