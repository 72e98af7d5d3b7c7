"""What a kill holds back: kept, shown, and after the release looked at and started at a pace."""

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.config.v1 import rules_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.local.waiting import until
from services.mesh.errors import Refusal
from services.router import domain, held
from services.router.domain import Result, Stage, State
from services.router.forgetting import Forgetting, PostgresOldDecisions
from services.router.pace import Pace
from services.router.work import Work
from tests.router.house import Decision, Incident, Router, Town, checkout_rules, incident

KILL = str(uuid.uuid4())
NOW = datetime(2026, 3, 1, tzinfo=UTC)
Execution = automation_service_pb2.Execution


def killed(kill_id: str = KILL) -> Refusal:
    """Return how automation refuses what a kill stops."""
    return Refusal(error_reason_pb2.ERROR_REASON_KILLED, retry_after=1.0, kill_id=kill_id, scope="everything")


def brief_rules() -> rules_pb2.RuleSet:
    """Return the rules of checkout with another one for what is too old after a second."""
    brief = rules_pb2.Rule(
        rule_id="brief",
        priority=5,
        match=rules_pb2.RuleMatch(equals={"labels.alertname": "Brief"}),
        trigger_automation=rules_pb2.TriggerAutomation(playbook_id="restart-workload"),
        max_age_duration=Duration(seconds=60),
    )
    return checkout_rules(brief)


@pytest.fixture
async def peers(town: Town) -> AsyncIterator[Town]:
    """Give a town where every peer runs and a kill of everything holds."""
    async with AsyncExitStack() as stack:
        for serve in (town.serve_automation, town.serve_agents, town.serve_audit, town.serve_guardrails):
            await stack.enter_async_context(serve())
        await stack.enter_async_context(town.serve_ingest())
        engage(town)
        yield town


def engage(town: Town, kill_id: str = KILL) -> None:
    """Let a kill hold, everywhere."""
    town.kills.holding.add(kill_id)
    town.automation.refusal, town.automation.spared = killed(kill_id), frozenset({"notify-person"})


def release(town: Town, kill_id: str = KILL) -> None:
    """Let go, everywhere."""
    town.kills.holding.discard(kill_id)
    town.kills.released.add(kill_id)
    town.automation.refusal = None


async def held_of(router: Router, town: Town, *incidents: Incident) -> list[Decision]:
    """Decide incidents that ingest knows, and return their decisions once all are held."""
    for one in incidents:
        town.incidents.incidents[one.incident_id] = one
    made = await router.decide(*incidents)
    return [await router.until(one.decision_id, lambda now: now.held) for one in made]


def old(name: str, seconds: int) -> Incident:
    """Return an incident that was opened just now, and that ingest will show as that much older."""
    made = incident(labels={"alertname": name})
    made.age_seconds = seconds
    return made


async def closed(router: Router, *decisions: Decision) -> list[Decision]:
    """Return decisions once they are closed."""
    return [await router.until(one.decision_id, lambda now: now.state == Decision.STATE_CLOSED) for one in decisions]


async def test_a_killed_start_is_held_and_says_by_what(town: Town, peers: Town) -> None:
    """It stays DECIDED and held, names the kill, and a person is told of what no rule knows all the while."""
    async with peers.router() as router:
        await router.publish(checkout_rules())
        (decision,) = await held_of(router, town, incident())
        assert (decision.state, decision.execution_id) == (Decision.STATE_DECIDED, "")
        assert decision.reason == f"rule checkout-down matches; held: kill {KILL} (everything) stops it"
        (unmatched,) = await router.decide(incident(labels={"alertname": "New"}))
        await router.until(unmatched.decision_id, lambda one: one.notice_execution_id)
        assert {one.playbook_id for one in town.automation.executions.values()} == {"notify-person"}
        release(town)
        started = await router.until(decision.decision_id, lambda one: one.execution_id)
    assert (started.held, started.reason) == (False, "rule checkout-down matches")
    (_, request) = town.automation.started[-1]
    assert (request.rule_id, request.decision_id) == ("checkout-down", decision.decision_id)


async def test_a_missing_lease_holds_until_it_is_there(town: Town, peers: Town) -> None:
    """When automation has heard no lease a start is held, too, and tried until it has."""
    release(town)
    town.automation.refusal = Refusal(error_reason_pb2.ERROR_REASON_LEASE_STALE, retry_after=1.0, age="6 s")
    async with peers.router() as router:
        await router.publish(checkout_rules())
        (decision,) = await held_of(router, town, incident())
        assert "no lease" in decision.reason
        town.automation.refusal = None
        await router.until(decision.decision_id, lambda one: one.execution_id)


async def test_a_release_is_paced_and_loses_nothing_over_a_restart(town: Town, peers: Town) -> None:
    """Of 24 held, stale ones among them, all but those start: in order, at a pace and not in one wave, once each.

    The router is gone in the middle; its successor goes on where it was.
    """
    rate = 4.0
    async with peers.router(resume_per_second=rate) as router:
        await router.publish(brief_rules())
        decisions = []
        for number in range(12):
            decisions += await held_of(router, town, incident(), old("Brief", 50 if number % 2 else 70))
        # Told again since: it still fires, however old.
        again = decisions[1].incident_id
        town.incidents.signalled[again] = datetime.now(UTC) + timedelta(minutes=1)
        release(town)
        await until_started(town, 6)
    before = len(town.automation.started)
    assert before < 19
    async with peers.router(resume_per_second=rate) as router:
        await until_started(town, 19)
        after = [await router.decision(one.decision_id) for one in decisions]
        stale = [one for one in after if one.result == Decision.RESULT_STALE]
        await closed(router, *stale)
    assert len(stale) == 5
    assert "70 s old, more than its rule's 60 s, and no signal since" in stale[0].reason
    wanted = [one.decision_id for one in decisions if one.decision_id not in {gone.decision_id for gone in stale}]
    assert [request.decision_id for _, request in town.automation.started] == wanted
    moments = [moment for moment, _ in town.automation.started]
    # 4 at once and 15 at 4 a second take 3.75 s, less the time that the first one was on its way.
    assert moments[-1] - moments[0] > 2


async def until_started(town: Town, count: int) -> None:
    """Wait until so many executions were started."""

    async def probe() -> None:
        if len(town.automation.started) < count:
            raise LookupError(f"{len(town.automation.started)} started")

    await until(probe, "the executions", 60, LookupError, pause=0.02)


async def test_another_kill_goes_on_holding(town: Town, peers: Town) -> None:
    """What a second kill holds does not delay what the first one held."""
    other = str(uuid.uuid4())
    async with peers.router() as router:
        await router.publish(checkout_rules())
        (first,) = await held_of(router, town, incident())
        engage(town, other)
        (second,) = await held_of(router, town, incident())
        assert other in second.reason
        town.kills.holding.discard(other)
        town.kills.released.add(other)
        town.automation.refusal = None
        await router.until(second.decision_id, lambda one: one.execution_id)
        assert (await router.decision(first.decision_id)).held
        release(town)
        await router.until(first.decision_id, lambda one: one.execution_id)


async def test_nobody_resumes_while_it_is_not_known_which_kills_hold(town: Town, peers: Town) -> None:
    """While guardrails gives no lease nothing is tried."""
    async with peers.router() as router:
        await router.publish(checkout_rules())
        (decision,) = await held_of(router, town, incident())
        town.kills.down = True
        release(town)
        tried = len(town.automation.requests)
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            assert (await router.decision(decision.decision_id)).held
        assert len(town.automation.requests) == tried
        town.kills.down = False
        await router.until(decision.decision_id, lambda one: one.execution_id)


async def test_what_is_over_is_not_started(town: Town, peers: Town) -> None:
    """A resolve while it was held ends it: superseded by its revision, or closed when looked at; its rule is free."""
    async with peers.router() as router:
        await router.publish(checkout_rules())
        superseded, over, gone, quiet = await held_of(router, town, incident(), incident(), incident(), incident())
        (revised,) = await router.decide(incident(2, superseded.incident_id, firing=False))
        assert revised.result == Decision.RESULT_RESPONDED
        (again,) = await router.decide(incident(3, superseded.incident_id))
        assert again.rule_id == "checkout-down"
        town.incidents.incidents[over.incident_id].state = Incident.STATE_RESOLVED
        del town.incidents.incidents[gone.incident_id]
        town.incidents.incidents[quiet.incident_id].firing = False
        town.incidents.incidents[superseded.incident_id].revision = 3
        release(town)
        await router.until(again.decision_id, lambda one: one.execution_id)
        ends = await closed(router, superseded, over, gone, quiet)
    assert [one.result for one in ends] == [
        Decision.RESULT_SUPERSEDED,
        Decision.RESULT_SUPERSEDED,
        Decision.RESULT_STALE,
        Decision.RESULT_RESPONDED,
    ]
    assert len(town.automation.started) == 1


async def test_turns_are_given_at_the_pace(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unused turns add up to one second's, or two turns' here; one given back can be taken again."""
    pace = Pace(router.pool, 0.02)
    await router.pool.execute("UPDATE pace SET next_time = '-infinity'")
    assert await pace.take() == 0
    assert 25 < await pace.take() <= 50
    monkeypatch.setattr("services.router.pace.BURST_SECONDS", 100.0)
    await router.pool.execute("UPDATE pace SET next_time = '-infinity'")
    assert [await pace.take(), await pace.take()] == [0, 0]
    assert 25 < await pace.take() <= 50
    await pace.give_back()
    assert await pace.take() == 0
    # The database's clock was set back by an hour: nothing is held for that long.
    await router.pool.execute("UPDATE pace SET next_time = now() + interval '1 hour'")
    assert await pace.take() == 0
    assert 25 < await pace.take() <= 50


def decision(**changes: Any) -> domain.Decision:
    """Return a held decision."""
    values: dict[str, Any] = {
        "decision_id": uuid.uuid4(),
        "incident_id": uuid.uuid4(),
        "revision": 1,
        "state": State.DECIDED,
        "outcome": domain.Outcome.TRIGGER_AUTOMATION,
        "result": Result.UNSPECIFIED,
        "rule_id": "r",
        "rule_set_version": 1,
        "playbook_id": "p",
        "reason": "rule r matches",
        "execution_id": "",
        "notice_execution_id": "",
        "awaiting_approval": False,
        "create_time": NOW,
        "close_time": None,
        "age": timedelta(),
        "held": True,
        "held_by": KILL,
        "held_words": "held",
        "held_time": NOW,
        "max_age": timedelta(seconds=60),
    }
    return domain.Decision(**(values | changes))


@pytest.mark.parametrize(
    ("seen", "ended"),
    [
        (held.Seen(1, over=False, firing=True, age=timedelta(seconds=60)), None),
        (held.Seen(1, over=False, firing=True, age=timedelta(seconds=61)), Result.STALE),
        (held.Seen(1, over=False, firing=True, age=timedelta(days=1), signal_time=NOW), Result.STALE),
        (held.Seen(1, over=False, firing=True, age=timedelta(days=1), signal_time=NOW + timedelta(seconds=1)), None),
        (held.Seen(1, over=False, firing=False, age=timedelta()), Result.RESPONDED),
        (held.Seen(2, over=False, firing=True, age=timedelta()), Result.UNSPECIFIED),
        (held.Seen(1, over=False, firing=True, age=timedelta(), flapping=True), Result.UNSPECIFIED),
        (held.Seen(2, over=True, firing=True, age=timedelta()), Result.SUPERSEDED),
        (None, Result.STALE),
    ],
)
def test_what_is_started_after_a_release(seen: held.Seen | None, ended: Result | None) -> None:
    """Young or told again since it was held; everything else ends, or waits for its newer revision."""
    step = held.outlived(decision(), seen)
    assert (step.result if step else None) == ended


def test_a_refusal_keeps_the_place_in_the_order() -> None:
    """A new hold is looked at at once, a repeated one after a second."""
    delays = [held.hold(Work(decision(), stage, 1, ""), KILL, "held").delay for stage in (Stage.START, Stage.HELD)]
    assert delays == [0.0, held.RETRY_SECONDS]


async def test_decisions_of_closed_incidents_are_forgotten(town: Town, peers: Town) -> None:
    """Only when all of an incident's decisions were closed long ago, and ingest says that it is over or gone."""
    release(town)
    async with peers.router() as router:
        over, gone, still, young = await router.decide(*[incident(firing=False) for _ in range(4)])
        await router.pool.execute(
            "UPDATE decisions SET close_time = now() - interval '400 days' WHERE decision_id <> $1",
            uuid.UUID(young.decision_id),
        )
        for one in (over, still, young):
            town.incidents.incidents[one.incident_id] = Incident(incident_id=one.incident_id)
        town.incidents.incidents[over.incident_id].state = Incident.STATE_RESOLVED
        town.incidents.incidents[young.incident_id].state = Incident.STATE_RESOLVED
        town.incidents.incidents[still.incident_id].state = Incident.STATE_AWAITING_PERSON
        forgetting = Forgetting(PostgresOldDecisions(router.pool), PeersEyes(town), 365)
        assert await forgetting.forget() == 2
        left = {str(row["decision_id"]) for row in await router.pool.fetch("SELECT decision_id FROM decisions")}
    assert left == {still.decision_id, young.decision_id}
    assert gone.incident_id not in town.incidents.incidents


class PeersEyes:
    """Asks the fake ingest without a socket."""

    def __init__(self, town: Town) -> None:
        self._town = town

    async def incident(self, incident_id: str) -> held.Seen | None:
        """Show."""
        found = self._town.incidents.incidents.get(incident_id)
        if found is None:
            return None
        over = found.state == Incident.STATE_RESOLVED
        return held.Seen(found.revision, over=over, firing=found.firing, age=timedelta())


async def test_a_revision_during_the_start_starts_nothing_twice(town: Town, peers: Town) -> None:
    """A new revision that is decided while the held one is being started does not start its playbook again."""
    async with peers.router() as router:
        await router.publish(checkout_rules())
        (first,) = await held_of(router, town, incident())
        town.automation.open.clear()
        town.automation.entered.clear()
        release(town)
        await town.automation.entered.wait()
        (second,) = await router.decide(incident(2, first.incident_id))
        town.automation.open.set()
        await router.until(first.decision_id, lambda one: one.execution_id)
        assert second.rule_id == ""
        await router.until(second.decision_id, lambda one: one.notice_execution_id)
    assert [request.playbook_id for _, request in town.automation.started].count("restart-workload") == 1
