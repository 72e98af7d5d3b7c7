"""While no model can be asked, decisions wait: visible, told once, paced when it comes back, paid for once."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from opsmesh.router.v1 import decision_service_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.router.reasoning.journal import Asked, Offered, Opened, PostgresJournal
from tests.mesh.world import World
from tests.router import minds
from tests.router.house import Decision, Incident, checkout_rules, incident
from tests.router.minds import says
from tests.router.village import Village, living, made, unknown
from tests.stores import Database

UNAVAILABLE = error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE
BUDGET = error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED


def notified(decision: Decision) -> bool:
    """Say whether a person was told."""
    return bool(decision.notice_execution_id)


async def test_what_waits_for_a_model_comes_back_by_itself(world: World, postgres: Database) -> None:
    """Without a provider: AWAITING_MODEL with its reason and age, one notice. When it returns, all are decided."""
    async with postgres.fresh() as database, living(world, database) as scene:
        village, router = scene.village, scene.router
        await router.publish(checkout_rules())
        village.models.away = Refusal(UNAVAILABLE, role="routing", detail="connection refused")
        waiting = [await village.decide(router) for _ in range(3)]
        for one in waiting:
            told = await router.until(one.decision_id, notified)
            assert told.state == Decision.STATE_AWAITING_MODEL
            assert "a person is notified" in told.reason
        (match,) = await router.decide(incident())
        await router.until(match.decision_id, lambda one: one.execution_id)
        village.models.away = None
        village.models.will(says(minds.RESTART))
        for one in waiting:
            await router.until(one.decision_id, lambda now: now.execution_id)
            assert len(village.automation.of(one.decision_id, "notify-person")) == 1
    assert len(village.models.paid) == 3


async def test_a_provider_that_dies_in_the_middle_parks(world: World, postgres: Database) -> None:
    """Generate refusing MODEL_UNAVAILABLE, though a model was listed, parks the decision; nothing is decided."""
    async with postgres.fresh() as database, living(world, database) as scene:
        village, router = scene.village, scene.router
        village.models.will(Refusal(UNAVAILABLE, role="routing", detail="it hung up"))
        decision = await village.decide(router)
        told = await router.until(decision.decision_id, notified)
        assert told.state == Decision.STATE_AWAITING_MODEL
        assert "it hung up" in told.reason
        assert await router.pool.fetchval("SELECT stage FROM decisions") == "PARKED"
        # What was told then is not what is told later: nothing of it is kept.
        assert await router.pool.fetchval("SELECT count(*) FROM model_calls") == 0


async def test_a_budget_that_is_used_up_is_automation_only(world: World, postgres: Database) -> None:
    """A budget of one incident never refills: a person goes on, and others are decided. A day's parks."""
    async with postgres.fresh() as database, living(world, database) as scene:
        village, router = scene.village, scene.router
        village.models.will(says(minds.RESTART))
        poor = unknown()
        village.models.exhausted.add(poor.incident_id)
        first = await village.decide(router, poor)
        told = await router.until(first.decision_id, notified)
        assert (told.state, told.outcome) == (Decision.STATE_DECIDED, Decision.OUTCOME_ASK_HUMAN)
        assert "budget" in told.question.question
        second = await village.decide(router)
        await router.until(second.decision_id, lambda one: one.execution_id)
        village.models.will(Refusal(BUDGET, scope="day", subject="", left="nothing"))
        third = await village.decide(router)
        told = await router.until(third.decision_id, notified)
        later = await router.pool.fetchval(
            "SELECT resume_time - clock_timestamp() FROM decisions WHERE stage = 'PARKED'"
        )
    assert later > timedelta(seconds=20)
    assert (told.state, told.outcome) == (Decision.STATE_AWAITING_MODEL, Decision.OUTCOME_UNSPECIFIED)


async def test_what_returns_is_paced(world: World, postgres: Database) -> None:
    """Of twelve that wait, two a second come back after a burst: not one wave, and oldest first."""
    async with postgres.fresh() as database:
        village = Village(world, database)
        async with village.peers(), village.serve_agents(), village.router(resume_per_second=2.0) as router:
            waiting = [await village.decide(router) for _ in range(12)]
            for one in waiting:
                await router.until(one.decision_id, notified)
            village.models.will(says(minds.RESPOND))
            for one in waiting:
                await router.until(one.decision_id, made)
    times = [moment for moment, _ in village.models.paid]
    assert len(times) == 12
    # 2 at once and 10 at 2 a second take 5 s, less the time that the first one was on its way.
    assert times[-1] - times[0] > 1.5
    order = [request.attribution.decision_id for _, request in village.models.paid]
    assert set(order[:4]) <= {one.decision_id for one in waiting[:6]}


@pytest.mark.parametrize(
    ("changes", "signalled", "result"),
    [
        ({"age_seconds": 3 * 3600}, False, Decision.RESULT_STALE),
        ({"age_seconds": 3 * 3600}, True, Decision.RESULT_UNSPECIFIED),
        ({"firing": False}, False, Decision.RESULT_RESPONDED),
    ],
    ids=["old", "old, told again", "over"],
)
async def test_what_is_stale_by_then_is_closed(
    world: World, postgres: Database, *, changes: dict[str, Any], signalled: bool, result: "Decision.Result.ValueType"
) -> None:
    """Before a parked decision costs anything it is looked at: too old without a new signal, or over, closes it."""
    async with postgres.fresh() as database, living(world, database) as scene:
        village, router = scene.village, scene.router
        decision = await village.decide(router)
        await router.until(decision.decision_id, notified)
        for name, value in changes.items():
            setattr(village.incidents.incidents[decision.incident_id], name, value)
        if signalled:
            village.incidents.signalled[decision.incident_id] = datetime.now(UTC) + timedelta(seconds=1)
        village.models.will(says(minds.RESPOND))
        ended = await router.until(decision.decision_id, made)
    assert ended.result == result
    assert len(village.models.paid) == (1 if result == Decision.RESULT_UNSPECIFIED else 0)


@pytest.mark.parametrize("call", [1, 2])
async def test_a_crash_in_the_middle_of_a_call_pays_once(world: World, postgres: Database, call: int) -> None:
    """The router dies while the model answers; another one sends the very same request, and gets the stored answer."""
    async with postgres.fresh() as database:
        village = Village(world, database)
        replies = [says(minds.SEARCH), says(minds.RESTART)]

        def held(_: minds.Request) -> minds.Response:
            village.models.answering.clear()
            return replies[call - 1]

        village.models.will(*[held if number == call else one for number, one in enumerate(replies, 1)])
        async with village.peers(), village.serve_agents():
            async with village.router() as router:
                decision = await village.decide(router)
                for _ in range(call):
                    await village.models.generated.wait()
                    village.models.generated.clear()
            village.models.answering.set()
            async with village.router() as router:
                # The claim of the dead one would run out by itself, in two minutes.
                await router.pool.execute("UPDATE decisions SET due_time = clock_timestamp()")
                done = await router.until(decision.decision_id, lambda one: one.execution_id)
    assert len(village.models.paid) == len(replies)
    assert len(village.models.asked) == len(replies) + 1
    assert village.models.asked[call - 1] == village.models.asked[call]
    assert done.model_call_count == len(replies)


async def test_a_refused_call_is_known_as_one_after_a_crash(world: World, postgres: Database) -> None:
    """Whoever goes on sees that it was refused, and what it cost: not an empty reply, which would be answered."""
    async with postgres.fresh() as database, living(world, database) as scene:
        journal, subject = PostgresJournal(scene.router.pool), uuid.uuid4()
        first = await journal.begin(subject, Opened(0, "route-incident.v1", "token", Offered(), ()))
        request = minds.Request(role="routing")
        await journal.ask(subject, first, request)
        assert await journal.calls(subject, first) == [Asked(first, request, None, None)]
        refused = Asked(first, request, None, decision_service_pb2.ModelCall(cost_micros=7))
        await journal.answer(subject, refused)
        assert await journal.calls(subject, first) == [refused]


async def test_agents_that_does_not_answer_parks_and_returns(world: World, postgres: Database) -> None:
    """With agents dead a person is told; when it is there, the decision is made by itself."""
    async with postgres.fresh() as database:
        village = Village(world, database)
        village.models.will(says(minds.RESTART))
        async with village.peers(), village.router() as router:
            decision = await village.decide(router)
            told = await router.until(decision.decision_id, notified)
            assert "agents does not answer" in told.reason
            async with village.serve_agents():
                await router.until(decision.decision_id, lambda one: one.execution_id)


async def test_a_newer_revision_ends_what_is_parked(world: World, postgres: Database) -> None:
    """A revision decided meanwhile supersedes the parked one, which no model is asked about."""
    async with postgres.fresh() as database, living(world, database) as scene:
        village, router = scene.village, scene.router
        first = await village.decide(router)
        await router.until(first.decision_id, notified)
        newer = unknown(2, first.incident_id)
        second = await village.decide(router, newer)
        village.models.will(says(minds.RESPOND))
        await router.until(second.decision_id, made)
        ended = await router.decision(first.decision_id)
    assert ended.result == Decision.RESULT_SUPERSEDED
    assert [one.attribution.decision_id for _, one in village.models.paid] == [second.decision_id]
    assert newer.state == Incident.STATE_OPEN


async def test_prompts_are_forgotten(world: World, postgres: Database) -> None:
    """Once decided, prompts and replies are gone and figures stay; so are those that nobody came back to."""
    async with postgres.fresh() as database, living(world, database) as scene:
        village, router = scene.village, scene.router
        village.models.will(says(minds.SEARCH), says(minds.RESPOND))
        decision = await village.decide(router)
        await router.until(decision.decision_id, made)
        texts = "SELECT sum(length(request) + length(response)) FROM model_calls"
        assert await router.pool.fetchval(texts) == 0
        await router.pool.execute(
            "UPDATE model_cases SET open = true, begin_time = clock_timestamp() - interval '2 hours'"
        )
        await router.pool.execute("UPDATE model_calls SET request = 'a prompt'")
        await PostgresJournal(router.pool).sweep()
        assert await router.pool.fetchval(texts) == 0
        assert len((await router.decision(decision.decision_id)).model_calls) == 2


async def test_an_answer_that_comes_too_late_starts_nothing(world: World, postgres: Database) -> None:
    """A revision that is decided while the model thinks wins: what it answers then is on record, and nothing else."""
    async with postgres.fresh() as database, living(world, database) as scene:
        village, router = scene.village, scene.router
        village.models.will(says(minds.RESTART))
        village.models.answering.clear()
        first = await village.decide(router)
        await village.models.generated.wait()
        await village.decide(router, unknown(2, first.incident_id, firing=False))
        village.models.answering.set()
        late = await router.until(first.decision_id, lambda one: one.model_calls and one.model_calls[0].detail)
        assert (late.state, late.result) == (Decision.STATE_CLOSED, Decision.RESULT_SUPERSEDED)
        await router.until(first.decision_id, lambda one: one.model_calls[0].detail == "outcome trigger_automation")
        assert (await router.decision(first.decision_id)).outcome == Decision.OUTCOME_UNSPECIFIED
    assert village.automation.requests == []
