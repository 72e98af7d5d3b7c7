"""Judgements that depend on more than the bytes: caps of notices, hours, and errors while judging."""

import asyncio

from opsmesh.config.v1 import policies_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from tests.guardrails.world import (
    NOTICE,
    Context,
    House,
    failures,
    notice,
    restart,
    rule,
)


async def test_notices_are_capped(home: House) -> None:
    """Fifty notices at once on a channel that carries seven an hour get seven grants."""
    await home.publish(rule("notices", "ALLOW", access=["ACCESS_INFORM"]), caps={"ops": 7})
    answers = await asyncio.gather(*(home.authorize(notice(), method=NOTICE, name="operator") for _ in range(50)))
    allowed = [one for one in answers if one.judgement.verdict == pb.VERDICT_ALLOW]
    assert len(allowed) == 7
    assert all(one.grant for one in allowed)
    assert {one.judgement.reason for one in answers if not one.grant} == {"CAP_EXCEEDED"}


async def test_a_notice_counts_once(home: House) -> None:
    """The same notice authorised again takes no second place; another channel has its own."""
    await home.publish(rule("notices", "ALLOW", access=["ACCESS_INFORM"]), caps={"ops": 1})
    request = notice()
    for _ in range(3):
        assert (await home.authorize(request, method=NOTICE, name="operator")).grant
    request.channel = "other"
    assert (await home.authorize(request, method=NOTICE, name="operator")).grant
    denied = await home.authorize(notice(), method=NOTICE, name="operator")
    assert failures(denied) == {"policy": "CAP_EXCEEDED"}


async def test_a_notice_of_a_service_needs_no_incident(home: House) -> None:
    """A service may tell about an incident that is over, and about approvals and kills, which belong to none."""
    await home.publish()
    context = Context(incident_id=home.ingest.open(state="STATE_RESOLVED"))
    assert (await home.authorize(notice(), context, method=NOTICE)).grant
    assert (await home.authorize(notice(), method=NOTICE)).grant


async def test_a_window_that_is_closed_allows_nothing(home: House) -> None:
    """A rule whose hours are not now does not match; the database's clock decides."""
    (row,) = await home.fetch("SELECT now() AT TIME ZONE 'Asia/Kolkata' AS now")
    hour = row["now"].hour
    hours = {"zone": "Asia/Kolkata", "start": f"{(hour + 3) % 24:02}:00", "end": f"{(hour + 4) % 24:02}:00"}
    await home.publish(rule("later", "ALLOW", time_windows=[hours]))
    context = await home.ready()
    assert failures(await home.authorize(restart(), context)) == {"policy": "POLICY_DENIED"}
    hours |= {"start": f"{hour:02}:00", "end": f"{(hour + 3) % 24:02}:00"}
    await home.publish(rule("now", "ALLOW", time_windows=[hours]))
    assert (await home.authorize(restart(), context)).grant


async def test_an_error_while_judging_is_deny(home: House) -> None:
    """A rule that cannot be evaluated, whatever it would have said, denies; only an error id goes out."""
    await home.publish()
    context = await home.ready()
    hours = {"zone": "Atlantis/Center", "start": "00:00", "end": "00:00"}
    broken = policies_pb2.PolicySet(rules=[rule("all", "ALLOW"), rule("odd", "ALLOW", time_windows=[hours])])
    # Past validation, as a time zone that a newer system does not know any more would be.
    await home.fetch(
        "INSERT INTO guardrails.policy_sets (version, policy_set, inventory, digest, publisher) "
        "SELECT 2, $1, inventory, '', '' FROM guardrails.policy_sets RETURNING version",
        broken.SerializeToString(),
    )
    await home.fetch("UPDATE guardrails.state SET policy_set_version = 2 RETURNING true")
    answer = await home.authorize(restart(), context)
    assert failures(answer) == {"policy": "INTERNAL"}
    assert not answer.grant
    assert "Atlantis" not in str(answer.judgement.checks)
