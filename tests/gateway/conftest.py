"""Fixtures of the gateway's tests."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc
from services.local.checkout import start_workload, stop_workload
from services.local.files import free_port
from tests.gateway.fakes import FakeAudit, FakeGuardrails
from tests.gateway.world import Mesh, Proxy
from tests.mesh.world import World
from tests.stores import Database

RUNBOOK = "# Checkout is down\n\nRestart it.\n"


@pytest.fixture(scope="module")
async def mesh(database: Database) -> AsyncIterator[Mesh]:
    """Give a running gateway with a real workload and fakes around it, one for each test module."""
    # A Unix socket's path is short, pytest's folders are not.
    folder = Path(tempfile.mkdtemp(prefix="gw-"))
    world = World(folder / "w")
    audit, guardrails = FakeAudit(), FakeGuardrails()
    (folder / "runbooks").mkdir()
    (folder / "runbooks" / "checkout-down.md").write_text(RUNBOOK)
    workload = await start_workload(folder / "c", free_port())
    proxy = Proxy(folder / "proxy.sock", workload.instance.socket)
    add_audit = audit_service_pb2_grpc.add_AuditServiceServicer_to_server
    add_lease = kill_switch_service_pb2_grpc.add_KillSwitchServiceServicer_to_server
    try:
        async with (
            proxy.serving(),
            world.serving("audit", [(add_audit, audit)]) as audit_server,
            world.serving("guardrails", [(add_lease, guardrails)]) as guardrails_server,
        ):
            peers = {
                "audit": f"127.0.0.1:{audit_server.port}",
                "guardrails": f"127.0.0.1:{guardrails_server.port}",
                # Nobody is there: only ListChanges asks for it.
                "ingest": "127.0.0.1:9",
            }
            channels = [{"channel": "ops", "inbox": {"path": "inbox.jsonl"}}]
            running = Mesh(world, database, workload, folder, audit, guardrails, proxy, peers, channels)
            await running.start()
            yield running
            await running.stop()
    finally:
        await stop_workload(workload)
        shutil.rmtree(folder, ignore_errors=True)
