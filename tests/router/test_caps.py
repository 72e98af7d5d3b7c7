"""How often a rule may start its playbook for the same trouble, before a person must look."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import prometheus_client
import pytest

from opsmesh.config.v1 import rules_pb2
from services.router.messages import rules_of
from tests.mesh.world import World
from tests.router import minds
from tests.router.house import Decision, Router, Town, checkout_rules, incident
from tests.router.village import Scene, living, made, unknown
from tests.stores import Database

KEY = "svc:demo/checkout|CheckoutDown"


def rules(most: int = 0) -> rules_pb2.RuleSet:
    """Return the rule that restarts on CheckoutDown, so often an hour."""
    made = checkout_rules()
    made.rules[0].max_per_hour = most
    return made


def test_three_an_hour_unless_said_otherwise() -> None:
    """0 in the file means 3."""
    assert [rules_of(rules(most))[0].max_per_hour for most in (0, 7)] == [3, 7]


@pytest.mark.parametrize(("most", "starts"), [(0, 3), (1, 1), (5, 5)])
async def test_the_same_trouble_starts_a_playbook_only_so_often(router: Router, most: int, starts: int) -> None:
    """Incident after incident of one correlation key: above the cap a person is asked, and told why."""
    await router.publish(rules(most))
    outcomes = []
    for _ in range(6):
        (decision,) = await router.decide(incident(correlation_key=KEY))
        outcomes.append(decision.outcome)
    assert outcomes == [Decision.OUTCOME_TRIGGER_AUTOMATION] * starts + [Decision.OUTCOME_ASK_HUMAN] * (6 - starts)
    assert (decision.state, decision.rule_id, decision.playbook_id) == (Decision.STATE_DECIDED, "checkout-down", "")
    assert f"restart-workload was started {starts} times within an hour" in decision.reason
    assert f"its max_per_hour is {starts}" in decision.reason
    (other,) = await router.decide(incident(correlation_key="svc:demo/search|SearchDown"))
    assert other.outcome == Decision.OUTCOME_TRIGGER_AUTOMATION


async def test_a_batch_and_callers_at_once_share_the_cap(router: Router) -> None:
    """Nobody slips through: within one batch, and of many at the same time, three start."""
    await router.publish(rules())
    await asyncio.gather(*[router.decide(*[incident(correlation_key=KEY) for _ in range(4)]) for _ in range(5)])
    started = await router.pool.fetchval("SELECT count(*) FROM decisions WHERE outcome = 'TRIGGER_AUTOMATION'")
    assert started == 3


async def test_incidents_without_a_key_do_not_share_it(router: Router) -> None:
    """What nothing joins counts for itself."""
    await router.publish(rules(1))
    for _ in range(3):
        (decision,) = await router.decide(incident())
        assert decision.outcome == Decision.OUTCOME_TRIGGER_AUTOMATION


async def test_an_hour_later_it_may_start_again(router: Router) -> None:
    """What began more than an hour ago does not count."""
    await router.publish(rules(1))
    await router.decide(incident(correlation_key=KEY))
    await router.pool.execute("UPDATE decisions SET made_time = made_time - interval '61 minutes'")
    (later,) = await router.decide(incident(correlation_key=KEY))
    assert later.outcome == Decision.OUTCOME_TRIGGER_AUTOMATION


@pytest.mark.parametrize(
    ("attempts", "held", "counts"),
    [(0, False, False), (1, False, True), (1, True, False)],
    ids=["nobody tried", "the answer is lost", "a kill refused it"],
)
async def test_what_was_superseded_counts_unless_it_never_began(
    router: Router, *, attempts: int, held: bool, counts: bool
) -> None:
    """A start whose answer is not known may have begun; what nobody tried, or a kill refused, does not count."""
    await router.publish(rules(1))
    (first,) = await router.decide(incident(correlation_key=KEY))
    await router.until(first.decision_id, lambda one: one.execution_id)
    await router.pool.execute(
        "UPDATE decisions SET state = 'CLOSED', result = 'SUPERSEDED', stage = 'NONE', execution_id = '', "
        "start_time = NULL, attempts = $2, held_time = CASE WHEN $3 THEN now() END, close_time = now() "
        "WHERE decision_id = $1",
        uuid.UUID(first.decision_id),
        attempts,
        held,
    )
    (again,) = await router.decide(incident(correlation_key=KEY))
    wanted = Decision.OUTCOME_ASK_HUMAN if counts else Decision.OUTCOME_TRIGGER_AUTOMATION
    assert again.outcome == wanted


async def test_preview_says_what_the_cap_would_do_and_counts_nothing(router: Router) -> None:
    """Preview shows the start while there is one left, and the question with its count after; asking takes none."""
    await router.publish(rules(1))
    for _ in range(3):
        before = (await router.preview(incident(correlation_key=KEY))).decision
        assert (before.outcome, before.brake) == (Decision.OUTCOME_TRIGGER_AUTOMATION, Decision.BRAKE_UNSPECIFIED)
    (first,) = await router.decide(incident(correlation_key=KEY))
    assert (first.outcome, first.brake) == (Decision.OUTCOME_TRIGGER_AUTOMATION, Decision.BRAKE_UNSPECIFIED)
    after = (await router.preview(incident(correlation_key=KEY))).decision
    assert (after.outcome, after.brake) == (Decision.OUTCOME_ASK_HUMAN, Decision.BRAKE_CAP)
    assert "restart-workload was started 1 times within an hour" in after.reason


async def test_where_the_cap_bites_people_are_told_and_it_is_counted(town: Town) -> None:
    """A notice to a person, the brake on the decision, and the metric."""
    before = braked("cap", "rule")
    async with town.serve_automation(), town.serve_agents(), town.serve_audit(), town.router() as router:
        await router.publish(rules(1))
        await router.decide(incident(correlation_key=KEY))
        (decision,) = await router.decide(incident(correlation_key=KEY))
        assert decision.brake == Decision.BRAKE_CAP
        told = await router.until(decision.decision_id, lambda one: one.notice_execution_id)
        assert told.state == Decision.STATE_DECIDED
        (request,) = [one for one in town.automation.requests if one.decision_id == decision.decision_id]
    assert request.playbook_id == "notify-person"
    assert "was started 1 times within an hour" in request.note
    assert braked("cap", "rule") == before + 1


def braked(brake: str, chosen_by: str) -> float:
    """Return how often that was counted."""
    return (
        prometheus_client.REGISTRY.get_sample_value(
            "opsmesh_router_braked_total", {"brake": brake, "chosen_by": chosen_by}
        )
        or 0.0
    )


@pytest.fixture
async def scene(world: World, postgres: Database) -> AsyncIterator[Scene]:
    """Give a router among all of its peers."""
    async with postgres.fresh() as database, living(world, database) as running:
        yield running


async def choose(scene: Scene, **changes: Any) -> Decision:
    """Have a model decide an incident of KEY that no rule knows; return the decision, made."""
    asked = await scene.village.decide(scene.router, unknown(correlation_key=KEY, **changes))
    return await scene.router.until(asked.decision_id, made)


@pytest.mark.parametrize("says", [minds.RESTART, minds.DIAGNOSE], ids=["playbook", "agent"])
async def test_a_models_choice_is_bound_like_a_rule(scene: Scene, says: Any) -> None:
    """Three times it starts the same playbook or agent for the same trouble; then a person is asked, and told why."""
    before = braked("cap", "model")
    scene.village.models.will(minds.says(says, 0.9, "it always helps"))
    found = [await choose(scene) for _ in range(5)]
    started, asked = found[:3], found[3:]
    assert Decision.OUTCOME_ASK_HUMAN not in {one.outcome for one in started}
    assert {(one.outcome, one.brake, one.playbook_id, one.template_id) for one in asked} == {
        (Decision.OUTCOME_ASK_HUMAN, Decision.BRAKE_CAP, "", "")
    }
    assert "started 3 times within an hour for the same trouble" in asked[0].reason
    assert asked[0].reason.endswith("it always helps")
    assert asked[0].model_outcome.WhichOneof("detail") == next(iter(says))
    await scene.router.until(asked[0].decision_id, lambda one: one.notice_execution_id)
    assert braked("cap", "model") == before + 2
    other = await scene.village.decide(scene.router, unknown(correlation_key="another trouble"))
    assert (await scene.router.until(other.decision_id, made)).brake == Decision.BRAKE_UNSPECIFIED


async def test_rules_and_models_share_the_count_and_preview_tells_it(scene: Scene) -> None:
    """What a rule started counts against a model's choice; before it is asked, the preview says what is used up."""
    await scene.router.publish(rules())
    scene.village.models.will(minds.says(minds.RESTART))
    for _ in range(3):
        await scene.router.decide(incident(correlation_key=KEY))
    preview = await scene.router.preview(unknown(correlation_key=KEY))
    assert "restart-workload (3 times)" in preview.decision.reason
    assert (await choose(scene)).brake == Decision.BRAKE_CAP


async def test_models_that_decide_at_once_share_the_cap(scene: Scene) -> None:
    """Nobody slips through: of eight that are made at the same time, three start."""
    scene.village.models.will(minds.says(minds.RESTART))
    found = await asyncio.gather(*[choose(scene) for _ in range(8)])
    assert [one.outcome for one in found].count(Decision.OUTCOME_TRIGGER_AUTOMATION) == 3


async def test_two_replicas_share_the_cap_of_rules_and_models(scene: Scene) -> None:
    """Whoever decides where, and however it came to be chosen: three start, and each of the others asks a person."""
    scene.village.models.will(minds.says(minds.RESTART))
    async with scene.village.router() as second:
        await scene.router.publish(rules())
        await second.book.refresh()
        kinds = (unknown, incident)
        asked = await asyncio.gather(
            *[
                scene.village.decide(replica, kind(correlation_key=KEY))
                for replica in (scene.router, second)
                for kind in kinds * 3
            ]
        )
        found = [await second.until(one.decision_id, made) for one in asked]
    outcomes = [one.outcome for one in found]
    assert outcomes.count(Decision.OUTCOME_TRIGGER_AUTOMATION) == 3
    assert outcomes.count(Decision.OUTCOME_ASK_HUMAN) == 9


async def test_what_waited_for_a_model_counts_from_when_it_was_made(scene: Scene) -> None:
    """A decision that was asked for two hours ago starts its playbook now: the cap counts it now."""
    scene.village.models.open.clear()
    scene.village.models.will(minds.says(minds.RESTART))
    waiting = [await scene.village.decide(scene.router, unknown(correlation_key=KEY)) for _ in range(4)]
    await scene.router.pool.execute("UPDATE decisions SET create_time = create_time - interval '2 hours'")
    scene.village.models.open.set()
    outcomes = [(await scene.router.until(one.decision_id, made)).outcome for one in waiting]
    assert outcomes.count(Decision.OUTCOME_TRIGGER_AUTOMATION) == 3


async def test_an_agent_for_a_failed_execution_is_bound_too(scene: Scene) -> None:
    """Agents that were delegated three times for this trouble are not sent a fourth time: a person is asked."""
    scene.village.models.will(minds.says(minds.DIAGNOSE))
    for _ in range(3):
        await choose(scene)
    await scene.router.publish(rules())
    one = incident(correlation_key=KEY)
    scene.village.incidents.incidents[one.incident_id] = one
    (first,) = await scene.router.decide(one)
    await scene.router.until(first.decision_id, lambda now: now.execution_id)
    (execution,) = scene.village.automation.of(first.decision_id, "restart-workload")
    execution.state = type(execution).STATE_FAILED
    await scene.router.until(first.decision_id, lambda now: now.state == Decision.STATE_CLOSED)
    one.revision = 2
    (second,) = await scene.router.decide(one)
    asked = await scene.router.until(second.decision_id, made)
    assert (asked.outcome, asked.brake) == (Decision.OUTCOME_ASK_HUMAN, Decision.BRAKE_CAP)
    assert len(scene.village.agents.runs) == 3


async def test_an_agent_for_a_failed_execution_does_not_start_while_it_flaps(scene: Scene) -> None:
    """What flaps when its turn comes asks a person; the failure is not forgotten: calm, the agent is sent."""
    scene.village.models.will(minds.says(minds.DIAGNOSE))
    await scene.router.publish(rules())
    one = incident(correlation_key=KEY)
    shown = scene.village.incidents.incidents[one.incident_id] = type(one).FromString(one.SerializeToString())
    (first,) = await scene.router.decide(one)
    await scene.router.until(first.decision_id, lambda now: now.execution_id)
    (execution,) = scene.village.automation.of(first.decision_id, "restart-workload")
    execution.state = type(execution).STATE_FAILED
    await scene.router.until(first.decision_id, lambda now: now.state == Decision.STATE_CLOSED)
    shown.flapping = True
    one.revision = shown.revision = 2
    (second,) = await scene.router.decide(one)
    asked = await scene.router.until(second.decision_id, made)
    assert (asked.outcome, asked.brake) == (Decision.OUTCOME_ASK_HUMAN, Decision.BRAKE_FLAPPING)
    assert not scene.village.agents.runs
    shown.flapping = False
    one.revision = shown.revision = 3
    (third,) = await scene.router.decide(one)
    sent = await scene.router.until(third.decision_id, lambda now: now.run_id)
    assert sent.outcome == Decision.OUTCOME_DELEGATE_AGENT
    assert execution.execution_id in sent.reason


async def test_what_flaps_starts_nothing_and_asks_once(scene: Scene) -> None:
    """A person is told once; later revisions while it flaps are decided without another notice; calm, rules go on."""
    await scene.router.publish(rules())
    one = incident(correlation_key=KEY, flapping=True)
    preview = (await scene.router.preview(one)).decision
    assert (preview.outcome, preview.brake) == (Decision.OUTCOME_ASK_HUMAN, Decision.BRAKE_FLAPPING)
    (first,) = await scene.router.decide(one)
    told = await scene.router.until(first.decision_id, lambda now: now.notice_execution_id)
    assert (told.outcome, told.brake, told.playbook_id) == (Decision.OUTCOME_ASK_HUMAN, Decision.BRAKE_FLAPPING, "")
    assert "it flaps, and nothing is started before it is calm" in told.reason
    one.revision, one.firing = 2, False
    (second,) = await scene.router.decide(one)
    assert (second.brake, second.state) == (Decision.BRAKE_FLAPPING, Decision.STATE_DECIDED)
    stage = await scene.router.pool.fetchval("SELECT stage FROM decisions WHERE revision = 2")
    assert (stage, second.notice_execution_id) == ("NONE", "")
    one.revision, one.firing, one.flapping = 3, True, False
    (third,) = await scene.router.decide(one)
    assert (third.outcome, third.playbook_id) == (Decision.OUTCOME_TRIGGER_AUTOMATION, "restart-workload")
    one.revision, one.state = 4, one.STATE_RESOLVED
    (over,) = await scene.router.decide(one)
    assert over.result == Decision.RESULT_RESPONDED


async def test_what_began_to_flap_while_it_waited_is_not_put_to_a_model(scene: Scene) -> None:
    """The newest state of the incident counts when its turn comes."""
    scene.village.models.will(minds.says(minds.RESTART))
    one = unknown(correlation_key=KEY)
    scene.village.incidents.incidents[one.incident_id] = type(one).FromString(one.SerializeToString())
    scene.village.incidents.incidents[one.incident_id].flapping = True
    (decision,) = await scene.router.decide(one)
    assert (await scene.router.until(decision.decision_id, made)).brake == Decision.BRAKE_FLAPPING
    assert scene.village.models.asked == []


async def test_who_could_not_be_told_that_it_flaps_is_told_with_the_next_revision(town: Town) -> None:
    """Automation is away for the first revision: the second is not quiet, and the notice comes once it is back."""
    async with town.serve_agents(), town.serve_audit(), town.router() as router:
        one = incident(correlation_key=KEY, flapping=True)
        await router.decide(one)
        one.revision = 2
        (second,) = await router.decide(one)
        async with town.serve_automation():
            told = await router.until(second.decision_id, lambda now: now.notice_execution_id)
            assert told.brake == Decision.BRAKE_FLAPPING
