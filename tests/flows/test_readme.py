"""The README's shell commands, as a newcomer types them: every block runs against a running mesh."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from services.local.demo import TARGET
from tests.flows.world import RESTART, Incident, World, until
from tests.mesh.world import ROOT

pytestmark = pytest.mark.xdist_group("mesh")
FENCED = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
DEFAULT_PORT = re.compile(r"127\.0\.0\.1:74(\d\d)")
# grpcurl is a wheel and comes with the lock file; curl is the newcomer's own.
NEEDED = ("bash", "curl")


def commands() -> tuple[list[str], str]:
    """Return the make targets of the README's shell blocks, and everything else in them as one script."""
    lines = [line for block in FENCED.findall((ROOT / "README.md").read_text()) for line in block.splitlines()]
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    return targets, "\n".join(line for line in lines if not line.startswith("make "))


def test_make_targets_exist() -> None:
    """Every `make X` of the README is a target of the Makefile."""
    targets, _ = commands()
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "up"} <= set(targets) <= rules


async def typed(script: str, folder: Path) -> tuple[int, str, str]:
    """Run SCRIPT line by line in FOLDER, ending at the first that fails; return the exit code and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        *("-eu", "-x", "-o", "pipefail", "-c", script),
        cwd=folder,
        env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 360)
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.timeout(480)
@pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="bash or curl is not installed")
async def test_the_commands_do_what_the_readme_says(world: World, tmp_path: Path) -> None:
    """All blocks succeed in their order: an alert sent by hand opens an incident, a restart by hand happens once.

    A storm of four causes is four incidents, and over when its sender says so.
    """
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".opsmesh").symlink_to(world.mesh.state)
    _, script = commands()
    here = DEFAULT_PORT.sub(lambda match: f"127.0.0.1:{world.mesh.port_base + int(match[1])}", script)
    assert ":74" not in here
    starts = world.workloads["checkout"].start_count()

    code, out, err = await typed(here, tmp_path)

    assert code == 0, err[-3000:]
    assert "no mistakes in" in out
    assert "examples passed" in out
    assert "intact: " in out
    assert world.workloads["checkout"].start_count() == starts + 1
    assert '"previous_process_id"' in out
    query = "SELECT state FROM gateway.effects WHERE method = $1 AND target_id = $2 AND caller = 'human/operator'"
    assert "SUCCEEDED" in {row["state"] for row in await world.rows(query, RESTART, TARGET)}
    (signal_id,) = re.findall(r'"results":\[\{"signal_id":"([0-9a-f-]{36})"', out)
    _, incident_id = await world.recorded(signal_id)
    await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)

    storm = "SELECT state FROM ingest.incidents WHERE title LIKE '%trial storm'"

    async def over() -> bool:
        return [row["state"] for row in await world.rows(storm)] == ["RESOLVED"] * 4

    await until(over, "the end of the storm")
    held = "SELECT count(*) FROM guardrails.locks WHERE target_id = $1 AND expire_time > now()"

    async def free() -> bool:
        return bool(await world.value(held, TARGET) == 0)

    await until(free, "the end of every lock")
