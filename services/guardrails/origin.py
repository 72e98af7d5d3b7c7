"""Where an action comes from, as guardrails believes it: of what a caller says, only what could be checked is kept.

For an agent that is its registered run; for everybody else their execution, or themselves. Of a chat it is the person
of a token; without one that is good, the action is the service's own, and one approver more is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from services.guardrails.action import Action
from services.guardrails.checks import CHAT, HUMAN, Finding, Incident, failed
from services.guardrails.domain import Access, PolicySet
from services.guardrails.identity import NOBODY, Asker, ForgedError, TokenReader
from services.guardrails.judgement import Asked
from services.guardrails.runs import domain as runs
from services.guardrails.runs import store
from services.guardrails.runs.domain import Run
from services.mesh.postgres import Connection

# What only an execution has, and what a run is bound to: an agent that says otherwise is no run of ours.
OF_EXECUTIONS: Final = ("execution_id", "playbook_id")
BOUND: Final = ("incident_id", "decision_id")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an action comes from; `findings` are, by check, what stands in its way whatever else that check says.

    `unproved` says that nobody is proved to have asked for it in a chat.
    """

    context: pb.ActionContext
    holder: str
    findings: Mapping[str, Finding] = field(default_factory=dict)
    unproved: bool = False
    run: Run | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """Return the runs above its run: a kill of any of them is one of it, too."""
        return tuple(str(one) for one in self.run.ancestors) if self.run else ()

    @property
    def latest(self) -> datetime | None:
        """Return when what it may do is over at the latest."""
        return self.run.expire_time if self.run else None

    def over(self, finding: Finding) -> Finding:
        """Return what a check found, unless something stands in the way already."""
        return self.findings.get(finding.name, finding)


@dataclass(frozen=True, slots=True)
class Scene:
    """An action, and what is known around it at a moment of the database's clock."""

    asked: Asked
    action: Action
    policy: PolicySet
    incident: Incident | None
    now: datetime

    @property
    def changing(self) -> bool:
        """Say whether a service wants to change something: people show their own certificate, telling them is free."""
        return self.action.access is not Access.INFORM and not self.asked.caller.startswith(HUMAN)

    def unproved(self, asker: Asker) -> bool:
        """Say whether something is to be changed for a chat without proof of who asked."""
        chat = self.incident is not None and self.incident.source == CHAT
        return self.changing and chat and not asker.proved


class Origins:
    """Finds out where actions come from."""

    def __init__(self, tokens: TokenReader) -> None:
        self._tokens = tokens

    async def of(self, connection: Connection, scene: Scene) -> Origin:
        """Return where an action comes from, by what holds now."""
        context = pb.ActionContext()
        context.CopyFrom(scene.asked.context)
        context.ClearField("identity_token")
        # An id is the same id in capitals: whoever was told to stop stays so however it writes its name.
        context.execution_id, context.run_id = context.execution_id.lower(), context.run_id.lower()
        if scene.asked.caller == runs.AGENTS:
            return await _of_run(connection, scene, context)
        caller, found = scene.asked.caller, []
        if context.run_id:
            found.append(runs.closed(context.run_id, f"{caller} acts for no run"))
        asker = NOBODY
        try:
            if scene.changing:
                asker = self._tokens.asker(scene.asked.context.identity_token, scene.incident, scene.now)
        except ForgedError as error:
            found.append(failed("sanity", "IDENTITY_TOKEN_INVALID", what=str(error)))
        context.on_behalf_of = asker.person or context.on_behalf_of
        holder = caller if caller.startswith(HUMAN) else context.execution_id
        return Origin(context, holder, {finding.name: finding for finding in found}, scene.unproved(asker))


async def _of_run(connection: Connection, scene: Scene, context: pb.ActionContext) -> Origin:
    """Return the origin of an agent's action: its registered run, or what is wrong with it."""
    run = await store.read(connection, UUID(context.run_id)) if context.run_id else None
    if run is None:
        finding = runs.closed(context.run_id or "(none)", "it was never registered")
        return Origin(context, runs.holder_of(context.run_id), {finding.name: finding})
    action = scene.action
    found = [*_belonging(run, context, action), *await _claim(connection, run, scene)]
    allowance = scene.policy.agents.get(run.template_id)
    if allowance is None or action.method not in allowance.tools:
        found.append(failed("policy", "TOOL_NOT_OF_RUN", template=run.template_id, method=action.method))
    # The first that was found is told.
    findings = {finding.name: finding for finding in reversed(found)}
    context.on_behalf_of = run.person or context.on_behalf_of
    return Origin(context, run.holder, findings, scene.unproved(Asker(run.person, run.proved)), run)


def _belonging(run: Run, context: pb.ActionContext, action: Action) -> list[Finding]:
    """Return what an agent says about its run that is not so."""
    if run.over:
        return [runs.closed(run.run_id, run.over)]
    bound = {"incident_id": run.incident_id, "decision_id": run.decision_id}
    other = [name for name in BOUND if getattr(context, name).lower() != bound[name].lower()]
    if other:
        words = f"not for {other[0]} {getattr(context, other[0]) or '(none)'}: it was registered for another one"
        return [runs.closed(run.run_id, words)]
    claimed = [name for name in OF_EXECUTIONS if getattr(context, name)]
    if claimed:
        return [runs.closed(run.run_id, f"with a {claimed[0]}: that is of executions")]
    if action.target_id and action.target_id not in run.target_ids:
        return [failed("safety", "TARGET_NOT_OF_RUN", target=action.target_id, run_id=str(run.run_id))]
    return []


async def _claim(connection: Connection, run: Run, scene: Scene) -> list[Finding]:
    """Return that the claim on the target of a binding action is not in force; it is held in the name of the root."""
    target = scene.action.target_id
    if not (scene.asked.binding and target) or await store.claimed(connection, target, run):
        return []
    return [failed("safety", "CLAIM_REQUIRED", target=target, holder=f"run {run.root}")]
