"""Agents as the process it is: starts without a provider, says so, stops when told."""

import asyncio
import json
import os
import signal
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


async def test_without_a_provider_agents_serves_and_says_so(tmp_path: Path) -> None:
    """ListModels answers automation_only to the router, the gateway may not ask; SIGTERM ends the process with 0."""
    world, port = World(tmp_path), free_port()
    peers = {"guardrails": f"127.0.0.1:{free_port()}"}
    settings = world.settings("agents", listen=f"127.0.0.1:{port}", peers=peers).model_dump(mode="json")
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

            await until(probe, "agents", 20, grpc.aio.AioRpcError)
        assert answers[0] == model_service_pb2.ListModelsResponse(automation_only=True)
        async with connect(f"127.0.0.1:{port}", "agents", tls.client_credentials(world.settings("gateway"))) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.ListModels(model_service_pb2.ListModelsRequest())
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
