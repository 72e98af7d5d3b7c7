"""Agents as the process it is: starts without a provider, says so, stops when told."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest

from opsmesh.agents.v1 import model_service_pb2, model_service_pb2_grpc
from services.local.files import free_port
from services.local.waiting import until
from services.mesh import tls
from services.mesh.client import connect
from tests.mesh.world import ROOT, World
from tests.stores import Database


def test_a_start_imports_no_model_library() -> None:
    """It costs seconds and 185 MB: only a process that is to ask a model has it."""
    code = "import sys, services.agents.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "services.agents.providers.hosted" in done.stdout
    assert [name for name in done.stdout.split() if name.startswith(("litellm", "openai", "httpx_aiohttp"))] == []


async def test_without_a_provider_agents_serves_and_says_so(tmp_path: Path, database: Database) -> None:
    """ListModels answers automation_only to the router, the gateway may not ask; SIGTERM ends the process with 0.

    It reads the shipped models file.
    """
    world, port = World(tmp_path), free_port()
    peers = {name: f"127.0.0.1:{free_port()}" for name in ("guardrails", "audit", "ingest", "gateway")}
    settings = world.settings("agents", listen=f"127.0.0.1:{port}", peers=peers).model_dump(mode="json") | {
        "postgres_dsn": database.dsn("agents", with_password=False),
        "postgres_password_file": str(database.password_file("agents")),
    }
    environment = {
        f"OPSMESH_{name}".upper(): json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in settings.items()
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services", "agents", cwd=ROOT, env=os.environ | environment
    )
    try:
        async with connect(f"127.0.0.1:{port}", "agents", tls.client_credentials(world.settings("router"))) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            answers: list[model_service_pb2.ListModelsResponse] = []

            async def probe() -> None:
                answers.append(await stub.ListModels(model_service_pb2.ListModelsRequest()))

            await until(probe, "agents", 60, grpc.aio.AioRpcError)
        assert answers[0].automation_only
        assert answers[0].automation_only_reason == "no model is configured: see deploy/models.yaml"
        assert not answers[0].models
        async with connect(f"127.0.0.1:{port}", "agents", tls.client_credentials(world.settings("gateway"))) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.ListModels(model_service_pb2.ListModelsRequest())
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 40) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
