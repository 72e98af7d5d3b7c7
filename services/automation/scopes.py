"""What a kill may be about in an execution: its targets, their environments, the tools still to come. Pure."""

from collections.abc import Iterable

from opsmesh.config.v1 import playbooks_pb2
from opsmesh.ingest.v1 import ingest_service_pb2
from services.automation.domain import OPEN_STEP
from services.automation.store import StepRow
from services.mesh.kills import Facts
from services.mesh.policy import EFFECTS
from services.mesh.tools import find_tool


def tools_of(playbook: playbooks_pb2.Playbook) -> list[str]:
    """Return every tool that a playbook may call, also to undo and when it fails."""
    steps = list(playbook.steps) + ([playbook.failure_step] if playbook.HasField("failure_step") else [])
    undos = [step.compensation.tool for step in playbook.steps if step.HasField("compensation")]
    return [*(step.tool for step in steps), *undos]


def has_effects(playbook: playbooks_pb2.Playbook) -> bool:
    """Say whether a playbook changes anything: one that only reads and tells people is stopped by no kill."""
    return any(find_tool(tool).policy.access in EFFECTS for tool in tools_of(playbook))


def facts_of(
    incident: ingest_service_pb2.Incident,
    playbook: playbooks_pb2.Playbook,
    execution_id: str,
    steps: Iterable[StepRow],
) -> Facts:
    """Return the facts of an execution: the incident's known targets, and those that its steps were judged to have."""
    rows = list(steps)
    known = [target for target in incident.targets if target.in_inventory]
    return Facts(
        environments=frozenset(
            {target.environment for target in known} | {row.environment for row in rows if row.environment}
        ),
        targets=frozenset({target.target_id for target in known} | {row.target_id for row in rows if row.target_id}),
        tools=frozenset(row.tool for row in rows if row.state in OPEN_STEP),
        playbook_id=playbook.playbook_id,
        execution_id=execution_id,
    )
