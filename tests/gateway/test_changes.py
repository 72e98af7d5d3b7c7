"""The tool for changes, on the real servicer and store of ingest."""

import json
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, signal_pb2
from opsmesh.tools.change.v1 import change_tool_service_pb2 as pb
from services.gateway.tools.change import ChangeTools
from services.ingest.correlation import Calm
from services.ingest.domain import Inventory, InventoryMatch
from services.ingest.mapping import entry_of
from services.ingest.servicer import IngestServicer
from services.ingest.sources import change
from services.ingest.store import PostgresIncidents
from services.mesh.call import working
from services.mesh.writes import Writes
from tests.mesh.world import World
from tests.stores import Database

TARGET = "svc:demo/checkout"
INVENTORY = Inventory([(InventoryMatch(TARGET, "demo", "local"), ["checkout.demo"])], version=1)
LIST = "opsmesh.tools.change.v1.ChangeToolService/ListChanges"


class Silent:
    """An inbox and an audit that nobody uses here."""

    async def append(self, contents: Sequence[bytes], lanes: Sequence[str] = ()) -> None:
        """Stay unused."""
        raise NotImplementedError

    async def AppendEvents(  # noqa: N802  the IDL's name
        self, request: audit_service_pb2.AppendEventsRequest, **_: object
    ) -> audit_service_pb2.AppendEventsResponse:
        """Stay unused."""
        raise NotImplementedError


def told(number: int, **words: object) -> ingest_service_pb2.StreamEntry:
    """Return the delivery of a deployment."""
    body = {"kind": "deploy", "target_id": "checkout.demo", "id": str(number), "version": f"1.{number}", "actor": "ann"}
    body |= {"time": f"2026-03-01T10:00:{number:02d}Z", "title": f"no {number}\x1b\n", "url": "https://ci.example.org"}
    delivery = ingest_service_pb2.Delivery(
        delivery_id=str(uuid.uuid4()),
        source="change",
        body=json.dumps(body | words).encode(),
        authenticity=signal_pb2.Authenticity(method=signal_pb2.Authenticity.METHOD_BEARER, verified=True),
    )
    delivery.receive_time.GetCurrentTime()
    return entry_of(delivery, change.parse)


@pytest.fixture
async def family(tmp_path: Path, database: Database) -> AsyncIterator[ChangeTools]:
    """Give the family, with the gateway's certificate and permissions, on an ingest that was told of 25 changes."""
    world = World(tmp_path)
    options = {"search_path": "ingest"}
    async with asyncpg.create_pool(database.dsn("ingest"), min_size=1, max_size=2, server_settings=options) as pool:
        store = PostgresIncidents(pool, Calm(timedelta(hours=1), timedelta()))
        await store.record([told(number) for number in range(25)], INVENTORY)
        await store.record([told(99, target_id="svc:demo/other")], INVENTORY)
        servicer = IngestServicer(Silent(), store, Writes(pool, "ingest", Silent()), {}, lambda: None)
        add = ingest_service_pb2_grpc.add_IngestServiceServicer_to_server
        async with world.serving("ingest", [(add, servicer)]) as server, world.channel(server, "gateway") as channel:
            with working("service/automation", LIST, 30):
                yield ChangeTools(channel)


async def test_changes_are_listed_in_pages(family: ChangeTools) -> None:
    """Newest first, each once, of this target only: what the inventory calls it by another key included."""
    first = await family.list_changes(pb.ListChangesRequest(target_id=TARGET), {})
    assert len(first.changes) == 20
    again = pb.ListChangesRequest(target_id=TARGET, page_token=first.next_page_token)
    rest = await family.list_changes(again, {})
    assert [one.version for one in (*first.changes, *rest.changes)] == [f"1.{number}" for number in range(24, -1, -1)]
    assert not rest.next_page_token
    newest = first.changes[0]
    assert (newest.kind, newest.title, newest.actor) == (pb.Change.KIND_DEPLOYMENT, "no 24", "ann")
    assert (newest.source, newest.url, list(newest.target_ids)) == ("change", "https://ci.example.org", [TARGET])


async def test_changes_of_a_range(family: ChangeTools) -> None:
    """From the start, before the end."""
    request = pb.ListChangesRequest(target_id=TARGET)
    request.start_time.FromJsonString("2026-03-01T10:00:03Z")
    request.end_time.FromJsonString("2026-03-01T10:00:05Z")
    assert [one.version for one in (await family.list_changes(request, {})).changes] == ["1.4", "1.3"]
