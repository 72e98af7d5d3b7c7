"""`make bench`, or `python -m tests.bench intake rules ...` for some parts: what DESIGN section 9 asks, side by side.

Numbers are told, never gated on: the exit code is 1 only when a part could not be measured.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr
from pathlib import Path

from rich.console import Console

from services.mesh import telemetry
from tests.bench import audit, crowd, demo, hop, intake, kill, mesh, models, rules, storm
from tests.bench.table import Row, screen, show

# Each part with the seconds after which it is given up.
PARTS: dict[str, tuple[Callable[[Path], Awaitable[list[Row]]], float]] = {
    "intake": (intake.rows, 150),
    "hop": (hop.rows, 60),
    "rules": (rules.rows, 60),
    "mesh": (mesh.rows, 180),
    "audit": (audit.rows, 90),
    "models": (models.rows, 300),
    "kill": (kill.rows, 600),
    "demo": (demo.rows, 240),
    "crowd": (crowd.rows, 300),
    "storm": (storm.rows, 420),
}


async def measure(name: str, folder: Path) -> list[Row]:
    """Run one part within its time."""
    part, seconds = PARTS[name]
    async with asyncio.timeout(seconds):
        return await part(folder)


def run(console: Console, names: list[str]) -> int:
    """Measure the parts one after the other and print everything in one table."""
    found: list[Row] = []
    failed = 0
    telemetry.setup("bench", "info")
    for name in names:
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="opsmesh-bench-"))
        # Embedded PostgreSQL runs as an ordinary user even when root starts it.
        folder.chmod(0o755)
        try:
            found += asyncio.run(measure(name, folder))
        except Exception as error:  # noqa: BLE001  whatever one part fails with, the others are told
            failed += 1
            found.append(Row(name, f"could not be measured: {error!r}"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        console.print(f"[dim]{name}: {time.monotonic() - began:.0f} s[/dim]")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    show(console, f"opsmesh: {machine}; load average at the end: {load}", found)
    return int(failed > 0)


def main() -> int:
    """Read which parts are wanted; none named means all."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure (default: everything)")
    wanted = parser.parse_args().parts
    console = screen()
    with tempfile.NamedTemporaryFile("w", prefix="opsmesh-bench-", suffix=".log", delete=False) as log:
        # What a service logs costs what it costs in a service, but is not for the reader of a table.
        with redirect_stderr(log):
            failed = run(console, [name for name in PARTS if not wanted or name in wanted])
        if failed:
            console.print(f"what was logged meanwhile: {log.name}", soft_wrap=True)
        else:
            Path(log.name).unlink()
    return failed


if __name__ == "__main__":
    sys.exit(main())
