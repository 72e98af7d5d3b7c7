"""The gateway, which ends itself with SIGKILL between two of its steps: `python -m tests.faults.gateway_that_dies`.

It is the same program with the same settings; only what its composition root hands to the pipeline (store, audit, tools
and process manager) is a subclass that looks, at its boundary, whether the file FAULTS_PLAN names that boundary. If it
does, the file is removed and the process dies at once. So a plan kills one gateway, and the next one lives.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import Message

from opsmesh.audit.v1 import audit_service_pb2
from services import __main__ as services
from services.gateway import main as gateway
from services.gateway.domain import Ending, Key
from services.gateway.record import MeshAudit
from services.gateway.store import PostgresEffects, Start
from services.gateway.tools import workload
from services.gateway.tools.supervisord import Supervisord
from services.gateway.tools.toolbox import Implementation, Precondition, Toolbox
from services.mesh import policy
from services.mesh.tools import find_tool

PLAN: Final = "FAULTS_PLAN"
# In the order in which an effect comes to them.
BOUNDARIES: Final = (
    "before transaction 1",
    "between transaction 1 and the intent",
    "between the intent and its precondition",
    "between the last check and the act",
    "between stop and start",
    "between the act and transaction 2",
    "between transaction 2 and the outcome",
)


def boundary(name: str) -> None:
    """Die here, if that is the plan."""
    plan = Path(os.environ[PLAN])
    try:
        planned = plan.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    if planned == name:
        plan.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def changes(method: str) -> bool:
    """Say whether a tool changes something: notices and reads kill nobody."""
    return find_tool(method).policy.access in policy.EFFECTS


class DyingEffects(PostgresEffects):
    """Dies around both transactions."""

    async def start(self, start: Start) -> int | None:
        """Write STARTED."""
        if changes(start.key.method):
            boundary(BOUNDARIES[0])
        tries = await super().start(start)
        if changes(start.key.method) and tries is not None:
            boundary(BOUNDARIES[1])
        return tries

    async def end(self, key: Key, tries: int, ending: Ending, events: Sequence[audit_service_pb2.AuditEvent]) -> bool:
        """Write how it ended."""
        done = await super().end(key, tries, ending, events)
        if changes(key.method) and ending.response is not None:
            boundary(BOUNDARIES[6])
        return done


class DyingAudit(MeshAudit):
    """Dies once an intent is on record."""

    async def append(self, event: audit_service_pb2.AuditEvent) -> None:
        """Return once the event is durable."""
        await super().append(event)
        boundary(BOUNDARIES[2])


class DyingToolbox(Toolbox):
    """Dies just before and just after a tool acts."""

    def __getitem__(self, name: str) -> Implementation:
        """Return the implementation of a tool."""
        found = super().__getitem__(name)
        if not changes(name):
            return found

        async def act(request: Any, precondition: Precondition) -> Message:
            boundary(BOUNDARIES[3])
            answer = await found.act(request, precondition)
            boundary(BOUNDARIES[5])
            return answer

        return replace(found, act=act)


class DyingSupervisord(Supervisord):
    """Dies when the old process has ended and the new one was not asked for."""

    async def stop(self, program: str, seconds: float) -> None:
        """Stop a program."""
        await super().stop(program, seconds)
        boundary(BOUNDARIES[4])


if __name__ == "__main__":
    # the composition root's own names: what it builds from them is ours
    vars(gateway).update(PostgresEffects=DyingEffects, MeshAudit=DyingAudit, Toolbox=DyingToolbox)
    vars(workload).update(Supervisord=DyingSupervisord)
    sys.exit(services.main(["gateway"]))
