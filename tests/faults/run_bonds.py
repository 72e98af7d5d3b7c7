"""What binds a run, and every way of getting around it: registrations, delegation, claims and locks, tokens, ends."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks_pb
from services.guardrails.runs.domain import DEPTH_MAX, RUNS_MAX
from services.mesh.tools import find_tool
from tests.faults.forgeries import OWN_KEY, changing, sample
from tests.faults.puppets import LOCKS, NOTHING, READS, REGISTER, Move, action, call, new_id
from tests.faults.stage import Actor, Incident, Stage

# A template of the harness that may start itself: what bounds its path is not its own list.
LOOP: Final = "loop"
# People are asked, which changes nothing.
ASKED: Final = NOTHING | {"REQUIRE_APPROVAL"}


def registrations(stage: Stage, actor: Actor, other: Actor, ended: Actor, targets: Sequence[str]) -> Iterator[Move]:
    """Yield runs that may not be registered, and the run there is as somebody else's."""

    def tried(kind: str, incident: Incident, template: str = actor.template_id, **changes: Any) -> Move:
        return call(kind, "agents", REGISTER, stage.registration(template, incident, **changes))

    mine = actor.incident
    yield tried("run of an unknown template", mine, "no-such-template")
    yield tried("run for an unknown incident", replace(mine, incident_id=new_id()))
    for target in (*targets, "svc:demo/unheard-of"):
        if target != mine.target_id:
            yield tried("run on another incident's target", mine, target_ids=[target])
            yield tried("run on another incident's target", mine, target_ids=[mine.target_id, target])
    for template in stage.templates:
        yield tried("child of another incident's run", mine, template, parent_run_id=other.run_id)
        yield tried("child of a run that has ended", ended.incident, template, parent_run_id=ended.run_id)
        yield tried("child of a run that never was", mine, template, parent_run_id=new_id())
        if template not in stage.templates[actor.template_id].child_templates:
            yield tried("child of a template not allowed", mine, template, parent_run_id=actor.run_id)
        if template != actor.template_id:
            yield tried("a run registered again as another", mine, template, run_id=actor.run_id)
    again = {"run_id": actor.run_id}
    yield tried("a run registered again as another", other.incident, **again)
    yield tried("a run registered again as another", mine, **again, decision_id=new_id())
    yield tried("a run registered again as another", mine, **again, target_ids=[])
    yield tried("a run registered again as another", mine, **again, parent_run_id=other.run_id)
    yield tried("a run that has ended, registered again", ended.incident, ended.template_id, run_id=ended.run_id)


def after_the_end(stage: Stage, ended: Actor) -> Iterator[Move]:
    """Yield what a run that has ended may not do any more."""
    run, target = ended.run_id, ended.target_id
    for name in sorted(stage.allowed(ended.template_id)):
        tool = find_tool(name)
        if tool in changing():
            yield action("a run that has ended", tool, sample(tool, target), ended.context())
    for method, request in (
        (READS, pb.AuthorizeReadsRequest(run_id=run)),
        (f"{LOCKS}/AcquireLock", locks_pb.AcquireLockRequest(request_id=new_id(), target_id=target, run_id=run)),
        (f"{LOCKS}/AcquireClaim", locks_pb.AcquireClaimRequest(request_id=new_id(), target_id=target, run_id=run)),
        (f"{LOCKS}/RenewClaim", locks_pb.RenewClaimRequest(target_id=target, run_id=run)),
    ):
        yield call("a run that has ended", "agents", method, request)


def acting_as(stage: Stage, bare: Actor, kind: str) -> Iterator[Move]:
    """Yield actions of a run that is not ready to act on its target."""
    for tool in changing():
        if tool.name in stage.allowed(bare.template_id) and tool.spec.target_field:
            yield action(kind, tool, sample(tool, bare.target_id), bare.context())


def others_locks(actor: Actor, rival: Actor, targets: Sequence[str]) -> Iterator[Move]:
    """Yield claims and locks that are another run's, or on targets that are not the run's."""
    target, run = actor.target_id, rival.run_id
    moves: list[tuple[str, Any]] = [
        ("AcquireClaim", locks_pb.AcquireClaimRequest(request_id=new_id(), target_id=target, run_id=run)),
        ("RenewClaim", locks_pb.RenewClaimRequest(target_id=target, run_id=run)),
        ("AcquireLock", locks_pb.AcquireLockRequest(request_id=new_id(), target_id=target, run_id=run)),
        ("RenewLock", locks_pb.RenewLockRequest(target_id=target, run_id=run, fence=actor.fence)),
        ("AcquireLock", locks_pb.AcquireLockRequest(request_id=new_id(), target_id=target, execution_id=new_id())),
        ("AcquireLock", locks_pb.AcquireLockRequest(request_id=new_id(), target_id=target)),
        ("RenewLock", locks_pb.RenewLockRequest(target_id=target, execution_id=actor.run_id, fence=actor.fence)),
    ]
    for elsewhere in targets:
        if elsewhere != target:
            places: dict[str, Any] = {"target_id": elsewhere, "run_id": actor.run_id}
            moves.append(("AcquireClaim", locks_pb.AcquireClaimRequest(request_id=new_id(), **places)))
            moves.append(("AcquireLock", locks_pb.AcquireLockRequest(request_id=new_id(), **places)))
    for rpc, request in moves:
        yield call("another's claim or lock", "agents", f"{LOCKS}/{rpc}", request)


async def deep_and_many(stage: Stage, incident: Incident) -> list[Move]:
    """Start runs one below the other as deep as it goes; return what goes beyond depth and number."""
    path = [await stage.registered(LOOP, incident)]
    for _ in range(DEPTH_MAX - 1):
        path.append(await stage.registered(LOOP, incident, parent_run_id=path[-1].run_id))
    moves = [
        call(
            f"a path deeper than {DEPTH_MAX}",
            "agents",
            REGISTER,
            stage.registration(template, incident, parent_run_id=path[-1].run_id),
        )
        for template in stage.templates
        if template == LOOP or template in stage.templates[LOOP].child_templates
    ]
    await stage.puppets.all(moves)
    for _ in range(RUNS_MAX - len(path)):
        await stage.registered(LOOP, incident)
    return [
        call(
            f"more than {RUNS_MAX} runs of an incident",
            "agents",
            REGISTER,
            stage.registration(template, incident, **more),
        )
        for template in stage.templates
        for more in ({}, {"parent_run_id": path[0].run_id})
        if not more or template == LOOP
    ]


def tokens(stage: Stage, wish: Incident, another: Incident, alert: Incident) -> Iterator[Move]:
    """Yield runs with tokens that prove nobody: forged, of another conversation, on what is no chat."""
    good = stage.token(wish)
    broken = bytearray(good)
    broken[len(broken) // 2] ^= 1
    for template in stage.templates:
        for kind, incident, token in (
            ("token signed with another key", wish, stage.token(wish, key=OWN_KEY)),
            ("token of another conversation", wish, stage.token(another)),
            ("token on what is no chat", alert, stage.token(alert)),
            ("token on what is no chat", alert, good),
            ("token with a bit flipped", wish, bytes(broken)),
            ("token that is garbage", wish, stage.puppets.chance.randbytes(80)),
        ):
            asked = stage.registration(template, incident, identity_token=token)
            yield call(kind, "agents", REGISTER, asked)


def unproved(stage: Stage, nobody: Actor, good: bytes) -> Iterator[Move]:
    """Yield what a run of a chat asks for without proof of who wanted it, also with a token that comes too late."""
    for tool in changing():
        if tool.name in stage.allowed(nobody.template_id) and tool.spec.target_field:
            request = sample(tool, nobody.target_id)
            yield action("for a chat without proof of who asked", tool, request, nobody.context(), may=ASKED)
            late = nobody.context()
            late.identity_token = good
            yield action("with a token the run was not registered with", tool, request, late, may=ASKED)
