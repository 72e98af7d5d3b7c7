"""Which kills stop what: one rule for guardrails, the gateway and whoever runs executions or agents. Pure.

A kill stops everything in its scope while it holds, and makes void for ever what was granted in its scope under a lower
epoch; outside its scope it changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Facts:
    """What a kill may be about; empty where it does not apply. An execution names all of its environments and tools.

    `ancestors` are the runs above a run: a kill of one of them is one of it, too.
    """

    environments: frozenset[str] = field(default_factory=frozenset)
    targets: frozenset[str] = field(default_factory=frozenset)
    tools: frozenset[str] = field(default_factory=frozenset)
    playbook_id: str = ""
    execution_id: str = ""
    run_id: str = ""
    ancestors: frozenset[str] = field(default_factory=frozenset)


def facts(
    *,
    environment: str = "",
    target_id: str = "",
    tool: str = "",
    playbook_id: str = "",
    execution_id: str = "",
    run_id: str = "",
    ancestors: Iterable[str] = (),
) -> Facts:
    """Return the facts of one call."""
    return Facts(
        environments=frozenset({environment} - {""}),
        targets=frozenset({target_id} - {""}),
        tools=frozenset({tool} - {""}),
        playbook_id=playbook_id,
        execution_id=execution_id,
        run_id=run_id,
        ancestors=frozenset(ancestors),
    )


def covers(scope: pb.KillScope, about: Facts) -> bool:
    """Say whether a scope covers something; a scope this version does not know covers everything."""
    kind = scope.WhichOneof("scope")
    if kind is None or kind == "everything":
        return True
    if kind == "environment":
        return scope.environment in about.environments
    if kind == "target_id":
        return scope.target_id in about.targets
    if kind == "tool":
        return scope.tool in about.tools
    # An id is the same id in capitals: whoever pastes it so means it.
    told = getattr(scope, kind).lower()
    if kind == "run_id" and told in {one.lower() for one in about.ancestors}:
        return True
    return bool(told) and told == getattr(about, kind).lower()


def stopping(kills: Iterable[pb.LeasedKill], about: Facts, granted_epoch: int | None = None) -> pb.LeasedKill | None:
    """Return the kill that stops something or made void what was granted under `granted_epoch`, or None."""
    for kill in kills:
        newer = granted_epoch is not None and kill.epoch > granted_epoch
        if (not kill.released or newer) and covers(kill.scope, about):
            return kill
    return None


def words(scope: pb.KillScope) -> str:
    """Return a scope for people, such as `environment production` or `everything`."""
    kind = scope.WhichOneof("scope") or "everything"
    if kind == "everything":
        return kind
    return f"{kind.removesuffix('_id')} {getattr(scope, kind)}"
