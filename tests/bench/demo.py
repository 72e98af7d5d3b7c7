"""The demo, run once as a newcomer runs it after set-up."""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Final

from tests.bench.table import Row

FIRST_MAX: Final = 60.0
WHOLE_MAX: Final = 150.0
REPAIRED: Final = b"answers 200 again"


async def rows(_: Path) -> list[Row]:
    """Run it; its own checks decide whether it truly happened."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.cli", "demo", stdout=PIPE)
    if process.stdout is None:
        raise RuntimeError("the demo has no output")
    first = 0.0
    last = b""
    async for line in process.stdout:
        last = line
        if REPAIRED in line:
            first = time.monotonic() - began
    if await process.wait() != 0 or not first:
        raise RuntimeError(f"the demo failed; its last words: {last!r}")
    whole = time.monotonic() - began
    return [
        Row(
            "demo: from nothing to a repaired workload",
            f"{first:.1f} s",
            bar=f"< {FIRST_MAX:g} s",
            met=first < FIRST_MAX,
        ),
        Row("demo: the whole, stopped cleanly", f"{whole:.1f} s", bar=f"< {WHOLE_MAX:g} s", met=whole < WHOLE_MAX),
    ]
