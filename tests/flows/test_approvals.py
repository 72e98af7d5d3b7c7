"""What needs a person, on the whole mesh: one answer, one effect, and everybody is told once."""

import asyncio
import json
import shlex
import subprocess
from collections import Counter

import grpc.aio
import httpx
import psutil

from services.local.reach import wait_serving
from services.mesh.client import refusal_of
from tests.flows.people import (
    ENVIRONMENT,
    Approval,
    Person,
    approval_of,
    asked,
    command,
    guarded,
    now_is,
    people,
    refused,
    told,
    typed,
)
from tests.flows.world import APPROVAL_SECONDS, SPARE, Incident, World, until
from tests.mesh.world import ROOT

HUNDRED = 100


async def answers(world: World, approval: Approval, *kinds: str) -> None:
    """Wait until people were told all these about an approval, and see that each was told once."""

    async def look() -> bool:
        return set(kinds) <= set(told(world, approval))

    await until(look, f"the notices {kinds}")
    assert Counter(told(world, approval)) == Counter(kinds)


async def test_a_hundred_yeses_of_two_people_are_one_restart(world: World) -> None:
    """Status says who is waited for; `watch` shows every change; a hundred answers at once make one restart."""
    starts = world.workloads[SPARE].start_count()
    incident_id, approval = await guarded(world)
    assert world.workloads[SPARE].start_count() == starts
    waiting = (await asked(world, "status"))["waiting"]
    (row,) = [one for one in waiting["approvals"] if one["approval"] == approval.approval_id]
    assert row["since"]
    assert "0 of 1" in row["waits_for"]
    (row,) = [one for one in waiting["incidents"] if one["incident"] == incident_id]
    assert row["state"] == "AWAITING_APPROVAL"
    words = command(world, "approvals", "watch", "--incident", incident_id, "--json")
    watch = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        assert watch.stdout
        seen = [json.loads(await asyncio.wait_for(watch.stdout.readline(), 60))]

        async def outcome(person: Person) -> str:
            try:
                await person.approve(approval)
            except grpc.aio.AioRpcError as error:
                refusal = refusal_of(error)
                return refusal.name if refusal else str(error)
            return "APPROVED"

        async with people(world, "approver", "approver2") as pair:
            said = Counter(await asyncio.gather(*(outcome(pair[number % 2]) for number in range(HUNDRED))))
        await world.reaches(incident_id, Incident.STATE_RESOLVED)
        while "execute_time" not in seen[-1]:
            seen.append(json.loads(await asyncio.wait_for(watch.stdout.readline(), 60)))
    finally:
        watch.terminate()
        await watch.wait()
    assert said["APPROVED"] == 1, said
    assert set(said) <= {"APPROVED", "APPROVAL_CLOSED", "ALREADY_ANSWERED", "OVERLOADED"}, said
    assert world.workloads[SPARE].start_count() == starts + 1
    assert [seen[0]["state"], *{one["state"] for one in seen[1:]}] == ["STATE_PENDING", "STATE_APPROVED"]
    assert len((await now_is(world, approval)).votes) == 1
    await answers(world, approval, "APPROVAL_REQUESTED", "APPROVAL_ANSWERED")


async def test_a_considered_no_and_no_answer_are_told_apart(world: World) -> None:
    """A rejected step fails with the person's words and a late yes is refused; an unanswered one says so; once each."""
    starts = world.workloads[SPARE].start_count()
    incident_id, approval = await guarded(world)
    digest = ("--digest", approval.short_digest)
    words = (
        "approvals",
        "reject",
        approval.approval_id,
        *digest,
        "--comment",
        "not during the sale",
        "--as",
        "approver",
    )
    assert (await asked(world, *words))["state"] == "STATE_REJECTED"
    late = await refused(world, "approvals", "approve", approval.approval_id, *digest, "--as", "approver2")
    assert "APPROVAL_CLOSED" in late
    incident = await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)
    assert await reason(world, incident_id) == "APPROVAL_REJECTED"
    await answers(world, approval, "APPROVAL_REQUESTED", "APPROVAL_ANSWERED")
    await world.resolve(incident.incident_id)

    _, silent = await guarded(world, "production")
    await world.reaches(silent.context.incident_id, Incident.STATE_AWAITING_MODEL, seconds=APPROVAL_SECONDS + 60)
    assert await reason(world, silent.context.incident_id) == "APPROVAL_EXPIRED"
    kinds = [
        (one.close_reason, one.close_detail) for one in (await now_is(world, approval), await now_is(world, silent))
    ]
    assert kinds[0][0] == "APPROVAL_REJECTED"
    assert kinds[1] == ("APPROVAL_EXPIRED", "nobody answered in time")
    await answers(world, silent, "APPROVAL_REQUESTED", "APPROVAL_REMINDER", "APPROVAL_EXPIRED")
    assert world.workloads[SPARE].start_count() == starts
    await world.resolve(silent.context.incident_id)


async def reason(world: World, incident_id: str) -> str:
    """Return why the restart of an incident's first decision failed."""
    execution = await world.execution((await world.decisions(incident_id))[0].execution_id)
    (restart,) = [step for step in execution.steps if step.step_id == "restart"]
    return str(restart.reason)


async def test_what_was_amended_is_what_runs(world: World) -> None:
    """Another reason makes another approval with a diff; whoever amended may not approve it; its bytes are sent."""
    starts = world.workloads[SPARE].start_count()
    incident_id, old = await guarded(world)
    amend = ("approvals", "amend", old.approval_id, "--set", "reason=after the sale", "--digest", old.short_digest)
    new = await asked(world, *amend, "--as", "approver")
    changes = [(one["field"], one["after"]) for one in new["changes"]]
    assert ("reason", "after the sale") in changes
    assert new["short_digest"] != old.short_digest
    assert {"service/automation", "human/approver"} <= set(new["requesters"])
    yes = ("approvals", "approve", new["approval_id"], "--digest", new["short_digest"])
    assert "APPROVER_IS_REQUESTER" in await refused(world, *yes, "--as", "approver")
    assert (await asked(world, *yes, "--as", "approver2"))["state"] == "STATE_APPROVED"
    await world.reaches(incident_id, Incident.STATE_RESOLVED)
    effects = await world.rows("SELECT digest, state FROM gateway.effects WHERE incident_id = $1", incident_id)
    assert (new["request_digest"], "SUCCEEDED") in [(row["digest"].hex(), row["state"]) for row in effects]
    assert world.workloads[SPARE].start_count() == starts + 1
    assert (await now_is(world, old)).superseded_by == new["approval_id"]


async def test_kill_9_while_waiting_and_right_after_the_yes(world: World) -> None:
    """Automation and guardrails die while a person thinks and again after the yes: the step goes on, once."""
    starts = world.workloads[SPARE].start_count()
    incident_id, approval = await guarded(world)
    await both_die(world)
    await world.whole()
    assert (await world.incident(incident_id)).state == Incident.STATE_AWAITING_APPROVAL
    async with people(world, "approver") as (approver,):
        assert (await approver.approve(approval)).state == Approval.STATE_APPROVED
        await both_die(world)
    await world.reaches(incident_id, Incident.STATE_RESOLVED, seconds=60)
    assert world.workloads[SPARE].start_count() == starts + 1
    asked_for = await world.value("SELECT count(*) FROM guardrails.approvals WHERE incident_id::text = $1", incident_id)
    assert asked_for == 1
    await answers(world, approval, "APPROVAL_REQUESTED", "APPROVAL_ANSWERED")


async def both_die(world: World) -> None:
    """Kill automation and guardrails with -9 and wait until others have taken their places."""
    old = [await asyncio.to_thread(world.process, name) for name in ("automation", "guardrails")]
    for one in old:
        assert isinstance(one, psutil.Process)
        one.kill()

    async def back() -> bool:
        new = [await asyncio.to_thread(world.process, name) for name in ("automation", "guardrails")]
        return all(one and one not in old for one in new)

    await until(back, "new processes")
    for name in ("automation", "guardrails"):
        await wait_serving(world.mesh, name)


async def test_a_waiting_approval_blocks_nobody_on_its_target(world: World) -> None:
    """While one waits, another on the same target is approved and runs; the first is then asked about anew, once."""
    starts = world.workloads[SPARE].start_count()
    first, waiting = await guarded(world)
    words = ("target_id=svc:guarded/checkout", "reason=by hand", "--incident", first)
    call = ("tools", "call", "RestartWorkload", *words)
    said = await typed(world, *call)
    assert said.returncode == 1
    assert "a person must approve it" in said.stderr
    own = await approval_of(world, first, 2)
    assert "APPROVER_IS_REQUESTER" in await refused(
        world, "approvals", "approve", own.approval_id, "--digest", own.short_digest
    )
    async with people(world, "approver", "approver2") as (approver, other):
        await approver.approve(own)
        _, *then = shlex.split(said.stderr.partition("has approved it: ")[2])
        again = await typed(world, *then)
        assert again.returncode == 0, again.stderr
        assert world.workloads[SPARE].start_count() == starts + 1
        assert (await world.incident(first)).state == Incident.STATE_AWAITING_APPROVAL
        await approver.approve(waiting)
        renewed = await approval_of(world, first, 3)
        assert (await now_is(world, waiting)).close_reason == "STATE_CHANGED"
        assert [change.field for change in renewed.changes] != []
        await other.approve(renewed)
    await world.reaches(first, Incident.STATE_RESOLVED)
    assert world.workloads[SPARE].start_count() == starts + 2
    assert await world.health(SPARE) == httpx.codes.OK
