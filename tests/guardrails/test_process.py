"""Guardrails as a process: it starts with what it needs, says what it lacks, and stops cleanly."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from services.local.files import free_port
from services.local.process import base_environment
from services.mesh import tls
from services.mesh.client import connect
from tests.mesh.world import ROOT, World
from tests.stores import Database

PEERS = json.dumps(dict.fromkeys(("gateway", "ingest", "audit"), "127.0.0.1:1"))


def environment(pki: World, database: Database, folder: Path, port: int, **changes: Any) -> dict[str, str]:
    """Return what a guardrails process is told."""
    settings = {
        "LISTEN": f"127.0.0.1:{port}",
        "METRICS": "",
        "TLS_CERT": pki.pki / "guardrails.pem",
        "TLS_KEY": pki.pki / "guardrails.key",
        "TLS_CA": pki.pki / "ca.pem",
        "IDENTITIES": ROOT / "deploy" / "identities.yaml",
        "CONFIG": ROOT / "deploy",
        "PEERS": PEERS,
        "STATE": folder,
        "POSTGRES_DSN": database.dsn("guardrails", with_password=False),
        "POSTGRES_PASSWORD_FILE": database.password_file("guardrails"),
        "GRANT_KEY_FILE": pki.pki / "grant.key",
        "IDENTITY_PUBLIC_KEY_FILE": pki.pki / "identity.pub",
    } | changes
    given = {f"OPSMESH_{name}": str(value) for name, value in settings.items() if value is not None}
    return base_environment() | given


async def start(pki: World, database: Database, folder: Path, port: int, **changes: Any) -> asyncio.subprocess.Process:
    """Run `python -m services guardrails`; its errors can be read from `.stderr`."""
    given = environment(pki, database, folder, port, **changes)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services", "guardrails", cwd=ROOT, env=given, stderr=asyncio.subprocess.PIPE
    )


async def test_it_serves_and_stops(pki: World, database: Database, tmp_path: Path) -> None:
    """The process answers a lease over mTLS without any peer up, and exits 0 on SIGTERM."""
    port = free_port()
    process = await start(pki, database, tmp_path, port)
    credentials = tls.client_credentials(pki.settings("gateway"))
    async with asyncio.timeout(60), connect(f"127.0.0.1:{port}", "guardrails", credentials) as channel:
        await channel.channel_ready()
        answer = await rpc.KillSwitchServiceStub(channel).PollLease(pb.PollLeaseRequest(instance="test"))
        assert answer.lease.policy_set_version == 0
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, errors.decode()


async def test_it_says_what_it_lacks(pki: World, database: Database, tmp_path: Path) -> None:
    """A missing variable and a key that is none are boot errors with the variable's name and the mend."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no key")
    wrong.chmod(0o600)
    for name, key in (
        *(("GRANT_KEY_FILE", key) for key in (None, wrong, pki.pki / "guardrails.key")),
        *(("IDENTITY_PUBLIC_KEY_FILE", key) for key in (None, wrong, pki.pki / "guardrails.pem")),
    ):
        process = await start(pki, database, tmp_path, free_port(), **{name: key})
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 78
        assert f"OPSMESH_{name}" in errors.decode()
        assert "opsmesh certs init" in errors.decode()
