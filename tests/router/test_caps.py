"""How often a rule may start its playbook for the same trouble, before a person must look."""

import asyncio
import uuid

import pytest

from opsmesh.config.v1 import rules_pb2
from services.router.messages import rules_of
from tests.router.house import Decision, Router, checkout_rules, incident

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
    """What began more than an hour ago, or never began, does not count."""
    await router.publish(rules(1))
    await router.decide(incident(correlation_key=KEY))
    await router.pool.execute("UPDATE decisions SET create_time = create_time - interval '61 minutes'")
    (later,) = await router.decide(incident(correlation_key=KEY))
    assert later.outcome == Decision.OUTCOME_TRIGGER_AUTOMATION
    await router.pool.execute(
        "UPDATE decisions SET state = 'CLOSED', result = 'SUPERSEDED', stage = 'NONE', execution_id = '', start_time = NULL, "
        "close_time = clock_timestamp() WHERE decision_id = $1",
        uuid.UUID(later.decision_id),
    )
    (again,) = await router.decide(incident(correlation_key=KEY))
    assert again.outcome == Decision.OUTCOME_TRIGGER_AUTOMATION
