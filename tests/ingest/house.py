"""Ingest on real stores: deliveries in, rows out."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2
from services.ingest import stream
from services.ingest.correlation import Calm
from services.ingest.domain import Inventory, InventoryMatch
from services.ingest.mapping import entry_of
from services.ingest.reader import Reader
from services.ingest.settings import IngestSettings
from services.ingest.sources import PARSERS
from services.ingest.store import PostgresIncidents
from services.ingest.worker import Worker
from services.local.valkey import Valkey
from services.mesh.postgres import Pool, open_pool
from tests.stores import Database

ROOT = Path(__file__).resolve().parents[2]
START = "2026-03-01T10:00:00.123456789Z"
CHECKOUT = InventoryMatch("svc:demo/checkout", "demo", "local")
INVENTORY = Inventory([(CHECKOUT, ["checkout.demo"])], version=1)


def settings_for(folder: Path, valkey: Valkey, database: Database | None, **changes: Any) -> IngestSettings:
    """Return settings of an ingest on these stores."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "metrics": "",
        "tls_cert": folder / "pki" / "ingest.pem",
        "tls_key": folder / "pki" / "ingest.key",
        "tls_ca": folder / "pki" / "ca.pem",
        "identities": ROOT / "deploy" / "identities.yaml",
        "config": ROOT / "deploy",
        "peers": {},
        "state": folder,
        "postgres_dsn": database.dsn("ingest", with_password=False)
        if database
        else "postgresql://nobody@127.0.0.1:1/x",
        "postgres_password_file": database.password_file("ingest") if database else folder / "none",
        "redis_url": valkey.url("ingest", with_password=False),
        "redis_password_file": valkey.password_file("ingest"),
        "claim_seconds": 0.05,
    }
    return IngestSettings(**(values | changes))


def alert(name: str = "CheckoutDown", status: str = "firing", start: str = START, **labels: str) -> dict[str, Any]:
    """Return an alert as Alertmanager sends it, about the service checkout in demo."""
    words = {"alertname": name, "service": "checkout", "env": "demo", "severity": "critical"} | labels
    identity = json.dumps(sorted(words.items())).encode()
    return {
        "status": status,
        "labels": words,
        "annotations": {"summary": f"{name} on {words['service']}"},
        "startsAt": start,
        "endsAt": "2026-03-01T10:20:00Z" if status == "resolved" else "0001-01-01T00:00:00Z",
        "fingerprint": uuid.uuid5(uuid.NAMESPACE_OID, identity.decode()).hex[:16],
    }


def notification(*alerts: Mapping[str, Any]) -> bytes:
    """Return the body of Alertmanager's webhook, version 4."""
    body = {"version": "4", "receiver": "opsmesh", "groupKey": '{}:{alertname="x"}', "alerts": list(alerts)}
    return json.dumps(body).encode()


def delivery(body: bytes, source: str = "alertmanager", delivery_id: str = "") -> pb.Delivery:
    """Return a delivery as the bridge makes it."""
    now = Timestamp()
    now.GetCurrentTime()
    return pb.Delivery(
        delivery_id=delivery_id or str(uuid.uuid4()),
        source=source,
        body=body,
        content_type="application/json",
        receive_time=now,
        authenticity=signal_pb2.Authenticity(method=signal_pb2.Authenticity.METHOD_BEARER, verified=True),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    )


def entry(body: bytes, source: str = "alertmanager", delivery_id: str = "") -> pb.StreamEntry:
    """Return a delivery as the stream keeps it."""
    return entry_of(delivery(body, source, delivery_id), PARSERS[source])


class House:
    """The stream, the store and workers on them."""

    def __init__(self, settings: IngestSettings, pool: Pool, window: float = 3600) -> None:
        self.settings = settings
        self.pool = pool
        self.client = stream.connect(settings)
        self.appender = stream.Appender(self.client, settings)
        self.store = PostgresIncidents(pool, Calm(timedelta(seconds=window), timedelta()))
        self.wake = asyncio.Event()
        self.inventory = INVENTORY
        self.readers: list[Reader] = []

    @classmethod
    async def build(cls, folder: Path, valkey: Valkey, database: Database, **changes: Any) -> "House":
        """Open everything, with an empty stream and empty tables."""
        settings = settings_for(folder, valkey, database, **changes)
        house = cls(settings, await open_pool(settings, "ingest"))
        await house.client.delete(*await stream.lanes(house.client), stream.LANES)
        tables = (
            "deliveries",
            "signals",
            "alerts",
            "turns",
            "incidents",
            "dead_letters",
            "changes",
            "inventory",
            "requests",
            "outbox",
        )
        for table in tables:
            await house.pool.execute(f"DELETE FROM {table}")  # noqa: S608  constants only
        return house

    async def close(self) -> None:
        """Close everything."""
        for reader in self.readers:
            await reader.close()
        await self.client.aclose()
        await self.pool.close()

    def reader(self) -> Reader:
        """Return a new consumer."""
        made = Reader(self.settings)
        self.readers.append(made)
        return made

    def worker(self, reader: Reader | None = None, store: Any = None) -> Worker:
        """Return a worker with a consumer of its own."""
        queue = reader or self.reader()
        return Worker(queue, store or self.store, lambda: self.inventory, self.wake, self.settings.claim_seconds)

    async def take(self, *entries: pb.StreamEntry) -> None:
        """Record entries as a worker would, one batch."""
        await self.store.record(entries, self.inventory)

    async def rows(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """Read from the store."""
        return list(await self.pool.fetch(query, *arguments))

    async def dispositions(self) -> list[str]:
        """Return the dispositions of all signals, in order of their rows."""
        return [row["disposition"] for row in await self.rows("SELECT disposition FROM signals ORDER BY record_time")]

    async def stored(self) -> list[pb.StreamEntry]:
        """Return everything in the streams."""
        kept = []
        for lane in await stream.lanes(self.client):
            found = cast("list[tuple[bytes, dict[bytes, bytes]]]", await self.client.xrange(lane))
            kept += [pb.StreamEntry.FromString(fields[stream.FIELD]) for _, fields in found]
        return kept

    async def idle(self) -> bool:
        """Say whether everything that was handed out is acknowledged."""
        return await self.pending() == 0

    async def pending(self) -> int:
        """Return how many entries were handed out and not acknowledged."""
        lanes = await stream.lanes(self.client)
        return sum([int((await self.client.xpending(one, stream.GROUP))["pending"]) for one in lanes])


async def eventually(probe: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
    """Return the first true answer of a probe; RetryError after some seconds."""
    return await AsyncRetrying(
        retry=retry_if_result(lambda found: not found), stop=stop_after_delay(seconds), wait=wait_fixed(0.02)
    )(_ask, probe)


async def _ask(probe: Callable[[], Awaitable[Any]]) -> Any:
    return await probe()


def contents(entries: Sequence[pb.StreamEntry]) -> list[bytes]:
    """Return entries as bytes."""
    return [one.SerializeToString() for one in entries]
