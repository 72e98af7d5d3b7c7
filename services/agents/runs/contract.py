"""What the API of runs needs of their store: a start, reads, and the wish to stop."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from opsmesh.agents.v1 import agent_service_pb2 as pb
from opsmesh.ingest.v1 import ingest_service_pb2
from services.agents.templates.store import TemplateRow
from services.mesh.postgres import Connection


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a start writes; `incident` is the snapshot it was started with, `requester` the certificate's identity."""

    run_id: str
    template: TemplateRow
    incident: ingest_service_pb2.Incident
    decision_id: str
    target_ids: tuple[str, ...]
    goal: str
    requester: str
    execution_id: str
    execution_trace: str
    identity_token: bytes
    traceparent: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs to list; empty fields do not narrow. `before` is (create_time, run_id) of the last one."""

    incident_id: str = ""
    template_id: str = ""
    state: str = ""
    before: tuple[datetime, str] | None = None


class Runs(Protocol):
    """What the servicer needs. Methods that take a connection run in the transaction of the caller's write."""

    async def create(self, connection: Connection, new: NewRun) -> pb.Run:
        """Store a run that nobody started but the caller, as PENDING."""
        ...

    async def run(self, run_id: str, connection: Connection | None = None) -> pb.Run | None:
        """Return a run with its steps."""
        ...

    async def runs(self, wanted: Filter, limit: int) -> list[pb.Run]:
        """Return runs without their steps, newest first."""
        ...

    async def request_cancel(self, connection: Connection, run_id: str, reason: str) -> bool:
        """Note the wish for a run and every open run below it; False when it has ended, or there is none."""
        ...
