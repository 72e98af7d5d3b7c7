"""The ledger of effects: no cap is ever exceeded, whoever asks at once, and a request counts once."""

import asyncio
from typing import Any

from opsmesh.config.v1 import policies_pb2
from tests.guardrails.people import asks, waiting
from tests.guardrails.world import (
    CHECKOUT,
    PAYMENTS,
    PRODUCTION,
    RESTART,
    VAULT,
    Answer,
    Context,
    House,
    failures,
    inventory,
    restart,
    rule,
)

EXECUTORS = 50
Cap = policies_pb2.EffectCap
NONE = Cap(cap_id="none", scope=Cap.SCOPE_TARGET)


def cap(scope: str, **fields: Any) -> policies_pb2.EffectCap:
    """Return a cap."""
    return Cap(cap_id=f"a-{scope.lower()}", scope=Cap.Scope.Value(f"SCOPE_{scope}"), **fields)


async def contexts(home: House, *targets: str) -> dict[str, Context]:
    """Return, by target, the context of an execution that holds its lock."""
    return {target: await home.ready(target) for target in targets}


async def rush(home: House, given: dict[str, Context]) -> list[Answer]:
    """Let fifty executors ask at once, spread over the targets."""
    spread = [list(given)[number % len(given)] for number in range(EXECUTORS)]
    return list(await asyncio.gather(*(home.authorize(restart(target), given[target]) for target in spread)))


async def counted(home: House, **where: str) -> int:
    """Return how many rows the ledger has."""
    clause = " AND ".join(f"{name} = ${number}" for number, name in enumerate(where, 1)) or "true"
    rows = await home.fetch(f"SELECT 1 FROM guardrails.effects_ledger WHERE {clause}", *where.values())  # noqa: S608  the names are the test's own
    return len(rows)


async def test_fifty_never_exceed_a_target_s_cap(home: House) -> None:
    """Of fifty at once on each of two targets each gets exactly its seven grants; the refusal names the cap."""
    await home.publish(effect_caps=[cap("TARGET", effects_per_hour=7)])
    answers = await rush(home, await contexts(home, CHECKOUT, PRODUCTION))
    assert sum(bool(one.grant) for one in answers) == 14
    for target in (CHECKOUT, PRODUCTION):
        assert await counted(home, target_id=target) == 7
    denied = next(one for one in answers if not one.grant)
    assert failures(denied) == {"policy": "CAP_EXCEEDED"}
    (told,) = (check.detail for check in denied.judgement.checks if check.reason)
    assert "7 an hour" in told
    assert "a-target" in told


async def test_fifty_never_exceed_an_environment_s_cap(home: House) -> None:
    """Of fifty at once on three targets of two environments the capped one gets exactly nine, the other all."""
    await home.publish(effect_caps=[NONE, cap("ENVIRONMENT", environments=["demo"], effects_per_hour=9)])
    answers = await rush(home, await contexts(home, CHECKOUT, PAYMENTS, PRODUCTION))
    assert await counted(home, environment="demo") == 9
    elsewhere = [one for one in answers if one.judgement.target_id == PRODUCTION]
    assert all(one.grant for one in elsewhere)
    assert sum(bool(one.grant) for one in answers) == 9 + len(elsewhere)


async def test_fifty_never_touch_too_many_targets(home: House) -> None:
    """With two different targets an hour, fifty at once on four get through on exactly two, as often as they like."""
    await home.publish(effect_caps=[NONE, cap("ALL", targets_per_hour=2)])
    answers = await rush(home, await contexts(home, CHECKOUT, PAYMENTS, PRODUCTION, VAULT))
    granted = {one.judgement.target_id for one in answers if one.grant}
    assert len(granted) == 2
    (row,) = await home.fetch("SELECT count(DISTINCT target_id) AS targets FROM guardrails.effects_ledger")
    assert row["targets"] == 2
    for one in answers:
        assert bool(one.grant) == (one.judgement.target_id in granted)


async def test_caps_of_one_tool_count_that_tool(home: House) -> None:
    """A cap for other methods counts nothing of these; several caps hold at once, the lowest decides."""
    other = cap("ALL", methods=["RestartWorkload"], effects_per_hour=3)
    await home.publish(effect_caps=[NONE, other, cap("ENVIRONMENT", effects_per_hour=5)])
    await home.fetch(
        "INSERT INTO guardrails.effects_ledger (method, request_id, target_id, environment) "
        "SELECT 'another/Tool', gen_random_uuid(), $1, 'demo' FROM generate_series(1, 3) RETURNING true",
        CHECKOUT,
    )
    given = await contexts(home, CHECKOUT)
    assert sum(bool(one.grant) for one in await rush(home, given)) == 2


async def test_a_request_counts_once(home: House) -> None:
    """The same request authorised ten times at once takes one place; an hour later it takes one anew."""
    await home.publish(effect_caps=[cap("TARGET", effects_per_hour=1)])
    context, request = await home.ready(), restart()
    answers = await asyncio.gather(*(home.authorize(request, context) for _ in range(10)))
    assert all(one.grant for one in answers)
    assert await counted(home, method=RESTART) == 1
    assert not (await home.authorize(restart(), context)).grant
    old = "UPDATE guardrails.effects_ledger SET reserve_time = now() - interval '61 minutes' RETURNING true"
    await home.fetch(old)
    second = restart()
    assert (await home.authorize(second, context)).grant
    assert failures(await home.authorize(request, context)) == {"policy": "CAP_EXCEEDED"}


async def test_without_a_cap_the_defaults_hold(home: House) -> None:
    """Without a cap of its own a target has sixty effects an hour and an environment six hundred."""
    await home.publish()
    given = await contexts(home, CHECKOUT, PAYMENTS)
    fill = (
        "INSERT INTO guardrails.effects_ledger (method, request_id, target_id, environment) "
        "SELECT $1, gen_random_uuid(), $2, 'demo' FROM generate_series(1, $3) RETURNING true"
    )
    await home.fetch(fill, RESTART, CHECKOUT, 59)
    assert (await home.authorize(restart(), given[CHECKOUT])).grant
    assert failures(await home.authorize(restart(), given[CHECKOUT])) == {"policy": "CAP_EXCEEDED"}
    assert (await home.authorize(restart(PAYMENTS), given[PAYMENTS])).grant
    await home.fetch(fill, RESTART, "svc:demo/elsewhere", 539)
    denied = await home.authorize(restart(PAYMENTS), given[PAYMENTS])
    assert failures(denied) == {"policy": "CAP_EXCEEDED"}
    assert any("environment demo" in check.detail for check in denied.judgement.checks)


async def test_only_what_is_granted_counts(home: House) -> None:
    """What is denied, observed or waits for people takes no place; what they approved takes one once granted."""
    await home.publish(asks(environments=["demo"]), rule("see", "OBSERVE", environments=["production"]))
    given = await contexts(home, CHECKOUT, PRODUCTION)
    for target, context in given.items():
        await home.authorize(restart(target), context)
    assert await counted(home) == 0
    await home.fetch("UPDATE guardrails.locks SET expire_time = now() RETURNING true")
    one = await waiting(home)
    await one.approve()
    assert await counted(home) == 0
    assert (await one.again()).grant
    assert (await one.again()).grant
    assert await counted(home) == 1


async def test_affected_targets_are_told_and_matched(home: House) -> None:
    """A target that another depends on affects both; a rule may ask people from so many on."""
    await home.publish(rule("all", "ALLOW"), asks(min_affected_targets=2))
    given = await contexts(home, CHECKOUT, PAYMENTS)
    alone = await home.authorize(restart(), given[CHECKOUT])
    assert (list(alone.judgement.affected_targets), alone.judgement.affected_target_count) == ([CHECKOUT], 1)
    assert alone.grant
    both = await home.authorize(restart(PAYMENTS), given[PAYMENTS])
    assert list(both.judgement.affected_targets) == [PAYMENTS, CHECKOUT]
    assert both.approval_id
    assert any(entry.target_id == CHECKOUT and PAYMENTS in entry.depends_on for entry in inventory().entries)
