"""The small mesh of the command's tests, and running `opsmesh` against it."""

import asyncio
import json
import os
import pty
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from tests.cli import agent_fakes, fakes, guarded_fakes
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


async def run_at_terminal(answer: str, *words: str) -> Done:
    """Run `opsmesh` with these words at a terminal of its own, and type ANSWER once it has asked."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", *words),
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "TERM": "dumb", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        stdin=theirs,
        stdout=theirs,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(theirs)
    said = await asyncio.to_thread(_converse, ours, answer)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    os.close(ours)
    return Done(process.returncode or 0, said, err.decode())


def _converse(terminal: int, answer: str) -> str:
    """Read until the other side is gone; answer its one question."""
    said = ""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # on Linux, the end
            return said
        if not part:
            return said
        said += part.decode()
        if answer and said.rstrip().endswith("[y/N]:"):
            os.write(terminal, f"{answer}\n".encode())
            answer = ""


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
    approvals: guarded_fakes.Approvals = field(default_factory=guarded_fakes.Approvals)
    kill_switch: guarded_fakes.KillSwitch = field(default_factory=guarded_fakes.KillSwitch)
    effects: guarded_fakes.Effects = field(default_factory=guarded_fakes.Effects)
    automation: guarded_fakes.Automation = field(default_factory=guarded_fakes.Automation)
    models: agent_fakes.Models = field(default_factory=agent_fakes.Models)
    templates: agent_fakes.Templates = field(default_factory=agent_fakes.Templates)
    runs: agent_fakes.Runs = field(default_factory=agent_fakes.Runs)

    def clear(self) -> None:
        """Forget what an earlier test did."""
        for what in (
            self.ingest.incidents,
            self.ingest.page_sizes,
            self.ingest.resolved,
            self.ingest.asked,
            self.ingest.signals,
            self.steps,
            self.audit.rows,
        ):
            what.clear()
        self.gateway.requests.clear()
        self.guardrails.held.clear()
        self.approvals.asked.clear()
        self.approvals.amended.clear()
        self.kill_switch.engaged.clear()
        self.effects.effects.clear()
        self.automation.spans.clear()
        self.automation.states.clear()
        self.models.answer.Clear()
        self.templates.active.clear()
        for made in (self.templates.published, self.runs.runs, self.runs.started, self.runs.cancelled):
            made.clear()
        self.guardrails.verdict = guardrails.VERDICT_ALLOW

    async def run(self, *words: str) -> Done:
        """Run `opsmesh` on this mesh."""
        return await run(*words, "--state", str(self.state))

    async def run_at_terminal(self, answer: str, *words: str) -> Done:
        """Run `opsmesh` on this mesh at a terminal, and type ANSWER to its question."""
        return await run_at_terminal(answer, *words, "--state", str(self.state))
