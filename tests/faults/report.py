"""Writes what a long run has shown into docs/reliability.md, between two marks; the words around them are people's."""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.containment import Containment
from tests.faults.records import Breach, History
from tests.faults.runs import RunContainment
from tests.faults.storm import Storm
from tests.faults.tally import bound, counts

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN: Final = "<!-- written by `make faults` -->"
END: Final = "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Run:
    """One long run."""

    seed: int
    seconds: float
    contained: Containment
    wrong: Sequence[str]
    storm: Storm
    history: History
    breaches: Sequence[Breach]
    runs: RunContainment
    runs_wrong: Sequence[str]

    @property
    def passed(self) -> bool:
        """Say whether nothing was wrong."""
        return not (self.breaches or self.wrong or self.runs_wrong)


def markdown(run: Run) -> str:
    """Return the tables of a run."""
    forged, moves = run.contained.calls, run.runs.puppets.calls
    system = f"Linux {platform.release().partition('-')[0]}"
    where = f"{os.cpu_count()} cores, {system}, load average {os.getloadavg()[0]:.1f} at its end"
    parts = [
        f"One run at {version()}, seed {run.seed}, {run.seconds:.0f} s, {where}.",
        "\n".join(_storm_table(run)),
        f"Containment: {forged} calls, {_effects(run.wrong, forged)}.",
        "\n".join(run.contained.table()),
        f"Containment of runs: {moves} calls, {_effects(run.runs_wrong, moves)} beyond what policy grants.",
        "\n".join(run.runs.table()),
    ]
    return "\n\n".join(parts)


def _effects(wrong: Sequence[str], calls: int) -> str:
    """Return how many effects so many calls had, and what it is worth that there was none."""
    worth = f" (with 95 % confidence fewer than {bound(calls):.3%} of such calls have one)"
    return f"{len(wrong)} effects{'' if wrong else worth}"


def _storm_table(run: Run) -> list[str]:
    """Return what was done, what was counted, what was broken, and what that is worth."""
    storm = run.storm
    rows = [*storm.summary(), *counts(run.history)]
    faults = storm.kills.total() + storm.boundaries.total() + storm.stalls.total()
    for name in ("I1", "I2", "I3", "I4", "I5", "I6"):
        found = sum(one.invariant == name for one in run.breaches)
        worth = "" if found else f": with 95 % confidence fewer than {bound(faults):.1%} of such faults break it"
        rows.append((f"{name} broken", f"{found} times in {faults} faults{worth}"))
    return ["| what | seen |", "|---|---|", *(f"| {what} | {seen} |" for what, seen in rows)]


def write(run: Run) -> None:
    """Replace what stands between the marks of the storm and the containment."""
    put(BEGIN, markdown(run))


def put(begin: str, text: str) -> None:
    """Replace what stands in the page between a mark and the next end."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def version() -> str:
    """Return the commit, where there is one."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "this version"
    return done.stdout.strip()
