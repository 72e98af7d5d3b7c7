"""The small mesh of the command's tests, and running `opsmesh` against it."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from tests.cli import fakes
from tests.mesh.world import ROOT


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        """Return stdout as JSON: nothing else may be on it."""
        return json.loads(self.out)


async def run(*words: str, stdin: bytes = b"", folder: Path = ROOT) -> Done:
    """Run `opsmesh` with these words."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.cli",
        *words,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    return Done(process.returncode or 0, out.decode(), err.decode())


@dataclass
class Mesh:
    """The fakes and the state folder that leads to them."""

    state: Path
    pki: Path
    ingest: fakes.Incidents
    guardrails: fakes.Guardrails
    gateway: fakes.Workloads
    audit: fakes.Audit
    steps: list[str]

    def clear(self) -> None:
        """Forget what an earlier test did."""
        for what in (self.ingest.incidents, self.ingest.page_sizes, self.ingest.resolved, self.steps, self.audit.rows):
            what.clear()
        self.gateway.requests.clear()
        self.guardrails.verdict = guardrails.VERDICT_ALLOW

    async def run(self, *words: str) -> Done:
        """Run `opsmesh` on this mesh."""
        return await run(*words, "--state", str(self.state))
