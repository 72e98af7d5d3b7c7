"""The demo's second half: what needs a person, what changed meanwhile, and what stops when told.

Every line it prints was checked just before; the process managers' own records say what was restarted and what was not.
"""

import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Final

import httpx

from services.local import supervise
from services.local.checkout import NAME, Workload
from services.local.demo import PRODUCTION, TARGET, World, alert, check, health, post_alert, wait_for

PATIENCE: Final = 40.0
QUIET_SECONDS: Final = 4.0


def _broken(world: World, workload: Workload, environment: str) -> None:
    """Break a workload and post the alert about it."""
    httpx.post(workload.break_url, timeout=5)
    check(health(workload) == httpx.codes.SERVICE_UNAVAILABLE, f"checkout in {environment} did not break")
    world.say(f"checkout in {environment} is broken: it answers [red]503[/red]; Alertmanager says so")
    post_alert(world, alert(datetime.now(UTC), environment))


def _pending(world: World, known: Collection[str], otherwise: str) -> dict[str, Any]:
    """Wait for one pending approval of the playbook beside those that are KNOWN, and return it."""
    until = time.monotonic() + PATIENCE
    while True:
        listed = world.ask("approvals", "list", "--pending")["approvals"]
        found = [one for one in listed if one["approval_id"] not in known]
        if found:
            check(len(found) == 1, f"{len(found)} approvals are asked for instead of one")
            return dict(found[0])
        check(time.monotonic() < until, otherwise)


def _incident(world: World, incident_id: str, *states: str) -> dict[str, Any]:
    """Wait until an incident is in one of STATES, and return it."""
    until = time.monotonic() + PATIENCE
    while True:
        found: dict[str, Any] = world.ask("incidents", "show", incident_id)
        if found["state"].removeprefix("STATE_") in states:
            return found
        check(time.monotonic() < until, f"the incident is {found['state']} instead of {' or '.join(states)}")


def _approved(world: World, workload: Workload, approval: dict[str, Any], starts: int) -> None:
    """Let a second person approve; the playbook goes on, repairs and proves it."""
    approval_id, digest = approval["approval_id"], approval["short_digest"]
    world.show("approvals", "approve", approval_id, "--digest", digest, "--as", "approver")
    wait_for(lambda: health(workload) == httpx.codes.OK, PATIENCE, "the approved repair of checkout in production")
    _incident(world, approval["context"]["incident_id"], "RESOLVED")
    found = world.ask("approvals", "show", approval_id)
    people = [vote["person"] for vote in found["votes"]]
    check(people == ["human/approver"], f"it was approved by {people} instead of human/approver")
    check(bool(found["execute_time"]), "the approval is not marked as executed")
    count = workload.start_count()
    check(count == starts, f"the process manager started it {count} times instead of {starts}")
    world.say("approved by [bold]approver[/bold], it ran, once: production answers [green]200[/green] again, resolved")


def approval(world: World, production: Workload) -> None:
    """Let the same rule and playbook stop in production: the requester may not approve, another person may."""
    world.act("In production nothing happens without a person")
    starts = production.start_count()
    _broken(world, production, "production")
    asked = _pending(world, (), "the restart in production did not stop for approval")
    incident = _incident(world, asked["context"]["incident_id"], "AWAITING_APPROVAL")
    check(asked["judgement"]["target_id"] == PRODUCTION, f"it is about {asked['judgement']['target_id']}")
    check(production.start_count() == starts, "production was restarted before anybody approved")
    world.say(f"the same rule, the same playbook, but it stopped: incident {incident['incident_id']} awaits approval")
    world.show("approvals", "show", asked["approval_id"])
    waiting = world.ask("status")["waiting"]
    shown = {row["approval"] for row in waiting["approvals"]}, {row["incident"] for row in waiting["incidents"]}
    check(shown == ({asked["approval_id"]}, {incident["incident_id"]}), f"`opsmesh status` shows {shown} as waiting")
    world.say("`opsmesh status` says who waits for whom, and since when")

    words = (f"target_id={PRODUCTION}", "reason=the operator is in a hurry", "--incident", incident["incident_id"])
    world.show_refusal("a person must approve it", "tools", "call", "RestartWorkload", *words)
    own = _pending(world, {asked["approval_id"]}, "the operator's own call asked for no approval")
    answer = (own["approval_id"], "--digest", own["short_digest"])
    world.show_refusal("APPROVER_IS_REQUESTER", "approvals", "approve", *answer)
    world.ask("approvals", "reject", *answer, "--comment", "somebody else asked already")
    check(production.start_count() == starts, "production was restarted before anybody else approved")
    world.say("whoever asked may not approve; the operator took the request back")
    _approved(world, production, asked, starts + 1)


def drift(world: World, production: Workload) -> None:
    """Restart by hand what waits for approval: it was approved for another process, so it is asked about anew, once."""
    world.act("What changed meanwhile is asked about anew")
    starts = production.start_count()
    _broken(world, production, "production")
    first = _pending(world, (), "the second restart in production did not stop for approval")
    for order in ("stopProcess", "startProcess"):
        supervise.call(production.instance, f"supervisor.{order}", NAME)
    wait_for(lambda: health(production) == httpx.codes.OK, PATIENCE, "the restart by hand")
    httpx.post(production.break_url, timeout=5)
    check(health(production) == httpx.codes.SERVICE_UNAVAILABLE, "checkout in production did not break again")
    world.say("while it waits somebody restarts production by hand: another process, broken again")
    world.ask("approvals", "approve", first["approval_id"], "--digest", first["short_digest"], "--as", "approver")
    second = _pending(world, {first["approval_id"]}, "no new approval was asked for after the drift")
    refused = world.ask("approvals", "show", first["approval_id"])
    state = (refused["state"], refused["close_reason"])
    check(state == ("STATE_VOID", "STATE_CHANGED"), f"the first approval ended as {state}")
    changed = {change["field"]: (change["before"], change["after"]) for change in second["changes"]}
    before, after = next((pair for name, pair in changed.items() if "process_id" in name), ("", ""))
    check(bool(before and after) and before != after, f"the new approval does not show the new process: {changed}")
    check(second["renewal"] == 1, f"the new approval is renewal {second['renewal']} instead of 1")
    check(production.start_count() == starts + 1, "production was restarted on an approval of another state")
    world.say(f"approved, but refused: [bold]STATE_CHANGED[/bold], process {before} is now {after}; one new approval")
    world.show("approvals", "show", second["approval_id"])
    _approved(world, production, second, starts + 2)


def kill(world: World, workload: Workload, production: Workload) -> None:
    """Stop everything in the middle of a playbook: alerts are accepted and held until two people let go."""
    world.act("Everything stops when told")
    counts = (workload.start_count(), production.start_count())
    _broken(world, production, "production")
    asked = _pending(world, (), "the third restart in production did not stop for approval")
    world.show("kill", "engage", "--all", "--reason", "the demo wants to see everything stop")
    (engaged,) = world.ask("kill", "status")["kills"]
    execution_id = asked["context"]["execution_id"]

    def cancelled() -> bool:
        return bool(world.ask("executions", "show", execution_id)["state"] == "STATE_CANCELLED")

    wait_for(cancelled, PATIENCE, "the end of the execution that was killed")
    void = world.ask("approvals", "show", asked["approval_id"])
    check((void["state"], void["close_reason"]) == ("STATE_VOID", "KILLED"), f"its approval is {void['state']}")
    world.say("the playbook in the middle of its work is CANCELLED, and the approval it waited for is void")

    before = {one["incident_id"] for one in world.ask("incidents", "list", "--target", TARGET)["incidents"]}
    _broken(world, workload, "demo")
    held = _held(world, before)
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        check((workload.start_count(), production.start_count()) == counts, "something was restarted under the kill")
        check(health(workload) == httpx.codes.SERVICE_UNAVAILABLE, "checkout was repaired under the kill")
        time.sleep(0.1)
    _incident(world, held, "HELD")
    world.say(f"a new alert is accepted, its incident is HELD, and for {QUIET_SECONDS:g} s nothing happened")
    world.show("kill", "status")

    kill_id = engaged["kill_id"]
    pending = world.ask("kill", "release", kill_id)["state"]
    check(pending == "STATE_RELEASE_PENDING", f"one person's release made it {pending}")
    check(workload.start_count() == counts[0], "one person alone let everything go")
    world.say("the operator releases it: RELEASE_PENDING, the kill holds until another person agrees")
    world.show("kill", "release", kill_id, "--as", "approver", "--reason", "seen enough")
    wait_for(lambda: health(workload) == httpx.codes.OK, PATIENCE, "the repair of the held incident")
    _incident(world, held, "RESOLVED")
    check(workload.start_count() == counts[0] + 1, "the held incident's playbook did not restart checkout exactly once")
    check(production.start_count() == counts[1], "what had been killed ran after the release")
    world.say("two people let go: the held incident's playbook ran and repaired checkout; what was killed stays so")


def _held(world: World, before: Collection[str]) -> str:
    """Wait for the new incident of the demo's target to be held, and return its id."""
    until = time.monotonic() + PATIENCE
    while True:
        listed = world.ask("incidents", "list", "--target", TARGET)["incidents"]
        found = [one for one in listed if one["incident_id"] not in before]
        if found:
            check(len(found) == 1, f"{len(found)} incidents opened instead of one")
            return str(_incident(world, found[0]["incident_id"], "HELD")["incident_id"])
        check(time.monotonic() < until, "the alert under the kill opened no incident")
