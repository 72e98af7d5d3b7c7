"""The demo's workload really breaks, and only a restart really repairs it."""

import asyncio
from pathlib import Path

import httpx
import pytest

from services.local.checkout import start_workload, stop_workload
from services.local.files import LocalError, free_port
from services.local.supervise import call, status
from services.local.waiting import until


async def test_only_a_restart_repairs_it(tmp_path: Path) -> None:
    """Healthy and counted as started, broken by a post, healthy after its process manager restarted it, on record."""
    workload = await start_workload(tmp_path, free_port())
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            healthy = await client.get(workload.health_url)
            assert (healthy.status_code, healthy.json()) == (200, {"status": "ok"})
            assert [one.state for one in await asyncio.to_thread(status, workload.instance)] == ["RUNNING"]
            await client.post(workload.break_url)
            assert (await client.get(workload.health_url)).status_code == 503
            assert (await client.get(workload.health_url)).status_code == 503
            await asyncio.to_thread(call, workload.instance, "supervisor.stopProcess", "checkout")
            with pytest.raises(httpx.ConnectError):
                await client.get(workload.health_url)
            await asyncio.to_thread(call, workload.instance, "supervisor.startProcess", "checkout")

            async def ask() -> None:
                (await client.get(workload.health_url)).raise_for_status()

            # Its process manager takes what has lived for a second for started, whether it listens or not.
            await until(ask, "checkout", 60, httpx.HTTPError)
        assert workload.start_count() == 2
    finally:
        await stop_workload(workload)
    with pytest.raises(LocalError):
        await asyncio.to_thread(call, workload.instance, "supervisor.getState")


async def test_the_gateway_can_reach_its_process_manager(tmp_path: Path) -> None:
    """What the workload says about its backend is a unix socket with a user and a password file."""
    workload = await start_workload(tmp_path, free_port())
    await stop_workload(workload)
    backend = workload.backend()
    assert backend["server_url"].startswith("unix:///")
    assert backend["program"] == "checkout"
    assert workload.instance.password_file.stat().st_mode & 0o777 == 0o600
    assert backend["password_file"] == str(workload.instance.password_file)
