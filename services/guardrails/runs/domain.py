"""What a run of an agent is to guardrails, pure: bound once to its template, incident, targets and person."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.guardrails.checks import Finding, Incident, failed
from services.guardrails.domain import PolicySet

# The only identity that acts for runs, and the only one that reads for decisions.
AGENTS: Final = "service/agents"
ROUTER: Final = "service/router"
# Runs on one path of delegation, the first included.
DEPTH_MAX: Final = 4
# Runs of one incident, over all of its life.
RUNS_MAX: Final = 16
LIFETIME: Final = timedelta(hours=1)
# Locks of runs are held under this prefix: no execution has such an id.
HOLDER: Final = "run/"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a run shall be bound to."""

    run_id: UUID
    parent_run_id: UUID | None
    template_id: str
    incident_id: str
    decision_id: str
    target_ids: tuple[str, ...]
    registrar: str
    lifetime: timedelta
    person: str = ""
    proved: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """A registered run as of now; `ancestors` begins with the run that the router or a person started."""

    run_id: UUID
    ancestors: tuple[UUID, ...]
    template_id: str
    incident_id: str
    decision_id: str
    target_ids: tuple[str, ...]
    registrar: str
    person: str
    proved: bool
    expire_time: datetime
    ended: bool
    expired: bool
    # Of the run itself or of one above it, released or not: whoever stops a run does not mean it to go on later.
    kill_id: UUID | None = None

    @property
    def root(self) -> UUID:
        """Return the run in whose name all runs below it claim their targets."""
        return self.ancestors[0] if self.ancestors else self.run_id

    @property
    def parent(self) -> UUID | None:
        """Return the run that started it."""
        return self.ancestors[-1] if self.ancestors else None

    @property
    def depth(self) -> int:
        """Return its place on its path, from 1."""
        return len(self.ancestors) + 1

    @property
    def requester(self) -> str:
        """Return for whom it acts: the person who proved who they are, or the service that registered it."""
        return self.person if self.proved else self.registrar

    @property
    def over(self) -> str:
        """Return why nothing is granted to it any more; empty while it is open."""
        if self.kill_id:
            return f"kill {self.kill_id} stopped it"
        if self.ended:
            return "it has ended"
        return "its time is over" if self.expired else ""

    @property
    def holder(self) -> str:
        """Return in whose name it holds locks."""
        return holder_of(str(self.run_id))

    def fits(self, wish: Wish) -> bool:
        """Say whether a wish is for exactly what it is bound to."""
        bound = (self.template_id, self.incident_id, self.decision_id, self.parent, frozenset(self.target_ids))
        wanted = frozenset(wish.target_ids)
        same = bound == (wish.template_id, wish.incident_id, wish.decision_id, wish.parent_run_id, wanted)
        return same and (self.parent is not None or self.person == wish.person)


def holder_of(run_id: str) -> str:
    """Return in whose name a run holds locks."""
    return f"{HOLDER}{run_id.lower()}"


def closed(run_id: UUID | str, why: str) -> Finding:
    """Return the finding that a run is not open."""
    return failed("safety", "RUN_NOT_OPEN", run_id=str(run_id), why=why)


def admit(
    wish: Wish, policy: PolicySet, incident: Incident | None, parent: Run | None, siblings: int
) -> Finding | None:
    """Return why a run may not be registered, or None; `siblings` is how many runs its incident had already."""
    if incident is None or not incident.is_open:
        return failed("sanity", "INCIDENT_NOT_OPEN", incident_id=wish.incident_id)
    if wish.template_id not in policy.agents:
        method = "anything: the active policy set does not name it"
        return failed("policy", "TOOL_NOT_OF_RUN", template=wish.template_id, method=method)
    if siblings >= RUNS_MAX:
        what = f"runs of incident {wish.incident_id}"
        return failed("safety", "RUN_LIMIT_REACHED", what=what, limit=str(RUNS_MAX))
    if wish.parent_run_id and (stands := _below(wish, policy, parent)):
        return stands
    for target in wish.target_ids:
        if target not in incident.targets or target not in policy.inventory:
            return failed("sanity", "TARGET_NOT_OF_INCIDENT", target=target, incident_id=wish.incident_id)
    return None


def _below(wish: Wish, policy: PolicySet, parent: Run | None) -> Finding | None:
    """Return why a run may not be a child of another, or None."""
    if parent is None:
        return closed(str(wish.parent_run_id), "it was never registered")
    if parent.over or parent.incident_id != wish.incident_id:
        return closed(parent.run_id, parent.over or f"not for incident {wish.incident_id}: it belongs to another one")
    allowance = policy.agents.get(parent.template_id)
    if allowance is None or wish.template_id not in allowance.children:
        method = f"runs of template {wish.template_id} as children"
        return failed("policy", "TOOL_NOT_OF_RUN", template=parent.template_id, method=method)
    if parent.depth >= DEPTH_MAX:
        return failed("safety", "RUN_LIMIT_REACHED", what="depth of a path of runs", limit=str(DEPTH_MAX))
    foreign = [target for target in wish.target_ids if target not in parent.target_ids]
    return failed("safety", "TARGET_NOT_OF_RUN", target=foreign[0], run_id=str(parent.run_id)) if foreign else None


def readable(policy: PolicySet, targets: Sequence[str]) -> tuple[str, ...]:
    """Return targets and, after them, what they depend on; only what the inventory knows."""
    needed = (one for target in targets if (entry := policy.inventory.get(target)) for one in entry.depends_on)
    return tuple(one for one in dict.fromkeys((*targets, *needed)) if one in policy.inventory)
