"""The router as the process it is."""

import asyncio
import json
import os
import signal
import sys
import uuid
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opsmesh.router.v1 import rule_service_pb2, rule_service_pb2_grpc
from services.local.files import free_port
from services.local.waiting import until
from services.mesh import tls
from services.mesh.client import connect, refusal_of
from tests.mesh.world import ROOT, World
from tests.router.house import Town, checkout_rules

PEERS = ("automation", "agents", "ingest", "guardrails", "gateway", "audit")


def environment(world: World, town: Town, port: int, **changes: str) -> dict[str, str]:
    """Return what the process is told; its peers are not there."""
    peers = {name: f"127.0.0.1:{free_port()}" for name in PEERS}
    settings = world.settings("router", listen=f"127.0.0.1:{port}", peers=peers).model_dump(mode="json") | {
        "postgres_dsn": town.database.dsn("router", with_password=False),
        "identity_key_file": str(world.pki / "identity.key"),
        "postgres_password_file": str(town.database.password_file("router")),
    }
    told = {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in settings.items()}
    return os.environ | {f"OPSMESH_{name}".upper(): value for name, value in (told | changes).items()}


async def start(told: dict[str, str]) -> asyncio.subprocess.Process:
    """Start a router."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services", "router", cwd=ROOT, env=told, stderr=asyncio.subprocess.PIPE
    )


async def test_the_router_serves_without_its_peers(world: World, town: Town) -> None:
    """With no peer alive it is SERVING, a publish names who does not answer, and SIGTERM ends it with 0."""
    port = free_port()
    process = await start(environment(world, town, port))
    try:
        async with connect(
            f"127.0.0.1:{port}", "router", tls.client_credentials(world.settings("operator"))
        ) as channel:

            async def probe() -> None:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    raise LookupError

            await until(probe, "the router", 60, grpc.aio.AioRpcError, LookupError)
            stub = rule_service_pb2_grpc.RuleServiceStub(channel)
            request = rule_service_pb2.PublishRuleSetRequest(request_id=str(uuid.uuid4()), rule_set=checkout_rules())
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.PublishRuleSet(request)
        refusal = refusal_of(raised.value)
        assert refusal is not None
        assert refusal.metadata["store"] == "automation"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_missing_setting_is_named(world: World, town: Town, tmp_path: Path) -> None:
    """A password file that is not there is a boot error that names the variable and the mend."""
    process = await start(environment(world, town, free_port(), postgres_password_file=str(tmp_path / "none")))
    _, complaint = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 78
    assert b"OPSMESH_POSTGRES_PASSWORD_FILE" in complaint
    assert b"NEXT:" in complaint
