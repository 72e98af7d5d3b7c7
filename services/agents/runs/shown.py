"""The store of runs as the servicer of AgentService wants it: its answers are messages."""

from opsmesh.agents.v1 import agent_service_pb2 as pb
from services.agents.runs.contract import Filter, NewRun
from services.agents.runs.messages import run_message
from services.agents.runs.starting import new_root
from services.agents.runs.store import RunStore
from services.agents.templates.servicer import template_message
from services.mesh.postgres import Connection


class ShownRuns:
    """Implements contract.Runs over a RunStore."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    async def create(self, connection: Connection, new: NewRun) -> pb.Run:
        """Keep a run with its template frozen: a later publish does not change it."""
        return run_message(await self._store.create(connection, new_root(new, template_message(new.template))))

    async def run(self, run_id: str, connection: Connection | None = None) -> pb.Run | None:
        """Return a run with its steps."""
        found = await self._store.run(run_id, connection)
        return run_message(found) if found else None

    async def runs(self, wanted: Filter, limit: int) -> list[pb.Run]:
        """Return runs without their steps, newest first."""
        return [run_message(one) for one in await self._store.runs(wanted, limit)]

    async def request_cancel(self, connection: Connection, run_id: str, reason: str) -> bool:
        """Note the wish for a run and every open run below it."""
        return await self._store.request_cancel(connection, run_id, reason)
