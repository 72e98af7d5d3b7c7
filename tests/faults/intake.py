"""Nothing lost, nothing twice: alerts into a real intake whose processes are killed with -9 at random moments.

Bridge, ingest and Valkey are killed; PostgreSQL and a router that decides each incident are real, too.

`python -m tests.faults.intake --kills 50 --alerts 50000 --seed 1`; `--write` puts the table into docs/reliability.md.
The exit code is 1 when a signal that got its 202 has not exactly one row, an alert did not count exactly once, or an
incident was not decided exactly once. Senders repeat what they got no 202 for; pairs of them tell of the same alerts.
"""

import argparse
import asyncio
import os
import platform
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from services.mesh.loop import wait
from tests.faults import report
from tests.faults.intake_load import SIGNED, Post, Senders, cause_of, posts
from tests.faults.intake_town import MORTALS, Town
from tests.faults.tally import counted
from tests.faults.world import short_folder

BEGIN = "<!-- intake, written by `make faults` -->"
# What is killed last still meets senders.
LAST = 0.97
DELAY_SECONDS = 0.6
# Of ten kills so many come while the last one is not mended yet.
HASTY = 3
THREE = 3
Say = Callable[[str], None]
Also = Callable[[Town, Senders, Sequence[Post]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: once so many alerts were accepted, and some seconds later."""

    at: int
    name: str
    seconds: float


def plan(kills: int, alerts: int, chance: random.Random) -> list[Kill]:
    """Return the kills in their order: all processes alike often; some fall on what has not come back."""
    names = [MORTALS[number % len(MORTALS)] for number in range(kills)]
    chance.shuffle(names)
    moments = sorted(chance.uniform(0, LAST * alerts) for _ in range(kills))
    for number in range(1, kills):
        if chance.randrange(10) < HASTY:
            moments[number] = moments[number - 1]
    return [Kill(int(at), name, chance.uniform(0, DELAY_SECONDS)) for at, name in zip(moments, names, strict=True)]


@dataclass(slots=True)
class Intake:
    """One run, and what it has shown."""

    seed: int
    kills: int
    alerts: int
    claim_seconds: float
    say: Say
    killed: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    seconds: float = 0
    _rows: list[tuple[str, str]] = field(default_factory=list)

    async def run(self, folder: Path, also: Also | None = None) -> None:
        """Send, kill, wait for quiet, and look at what is left; `also` may look, too, before everything stops."""
        began = time.monotonic()
        todo = posts(self.alerts, random.Random(self.seed))  # noqa: S311  a reproducible order
        self.say(f"seed {self.seed}: {self.alerts} alerts in {len(todo)} notifications, {self.kills} kills")
        async with Town(folder, self.claim_seconds).up() as town:
            senders = Senders(f"http://127.0.0.1:{town.mesh.http_port}")
            async with asyncio.TaskGroup() as group:
                group.create_task(senders.send(todo))
                group.create_task(self._kill(town, senders, sum(len(one.numbers) for one in todo)))
            self.say("everything is sent; waiting for quiet")
            await town.quiet(self.say)
            await self.look(town, senders, todo)
            if also:
                await also(town, senders, todo)
        self.seconds = time.monotonic() - began

    async def _kill(self, town: Town, senders: Senders, copies: int) -> None:
        """Kill as planned."""
        never = asyncio.Event()
        for number, kill in enumerate(plan(self.kills, copies, random.Random(self.seed + 1)), start=1):  # noqa: S311
            while senders.accepted < kill.at:
                senders.progress.clear()
                await senders.progress.wait()
            await wait(never, kill.seconds)
            await town.kill(kill.name)
            self.killed[kill.name] += 1
            self.say(f"[{number:3}/{self.kills}] kill -9 {kill.name:7} after {senders.accepted} alerts accepted")

    async def look(self, town: Town, senders: Senders, todo: Sequence[Post]) -> None:
        """Hold what senders were promised against every row."""
        found = await town.rows("SELECT signal_id::text, source, dedup_key, disposition FROM ingest.signals")
        rows = {row["signal_id"]: row for row in found}
        self._expect(not senders.given_up, f"{len(senders.given_up)} notifications were never accepted")
        gone = [one for one in senders.promised if one not in rows]
        self.lost = len(gone)
        self._expect(not gone, f"{len(gone)} signals with a 202 have no row, such as {gone[:3]}")
        keys: dict[tuple[str, int], set[str]] = {}
        for signal_id, what in senders.promised.items():
            if signal_id in rows:
                keys.setdefault(what, set()).add(rows[signal_id]["dedup_key"])
        self._expect(all(len(one) == 1 for one in keys.values()), "an alert has several keys")
        counts = Counter((row["source"], row["dedup_key"], row["disposition"]) for row in found)
        for (source, number), (key, *_) in keys.items():
            effects = counts[source, key, "OPENED"] + counts[source, key, "JOINED"]
            self.lost += effects == 0
            self.doubled += effects > 1
            self._expect(effects == 1, f"alert {number} of {source} counts {effects} times")
        sent = {(one.source, number) for one in todo for number in one.numbers}
        self._expect(set(keys) == sent, f"{len(sent - set(keys))} alerts have no 202, {len(sent)} were sent")
        said = Counter(row["disposition"] for row in found)
        others = said.total() - said["OPENED"] - said["JOINED"] - said["DUPLICATE"]
        self._expect(others == 0, f"dispositions that nobody expects: {said}")
        self._unpromised(senders, frozenset(rows.keys() - senders.promised.keys()), found)
        await self._look_at_incidents(town, sent)
        await self._look_at_letters(town)
        self._tell(senders, said, len(found), todo)

    def _unpromised(self, senders: Senders, ids: frozenset[str], found: Sequence[asyncpg.Record]) -> None:
        """Expect a row without a 202 only where an answer was lost; of a signed one even that is the same row."""
        most = sum(count for (source, _), count in senders.silent.items() if source != SIGNED)
        self._expect(len(ids) <= most, f"{len(ids)} rows without a 202, and only {most} tries that got none")
        strange = sum(row["signal_id"] in ids and row["source"] == SIGNED for row in found)
        self._expect(not strange, f"{strange} rows of signed deliveries without a 202")

    async def _look_at_incidents(self, town: Town, sent: set[tuple[str, int]]) -> None:
        """One incident a cause, which counts each alert, copy and row once, and was decided once."""
        causes = {cause_of(source, number) for source, number in sent}
        incidents = await town.rows(
            "SELECT i.title, i.revision, i.signal_count, i.duplicate_count, i.alert_count, "
            "(SELECT count(*) FROM ingest.signals s WHERE s.incident_id = i.incident_id) AS signals, "
            "(SELECT count(*) FROM ingest.signals s WHERE s.incident_id = i.incident_id "
            "AND disposition = 'DUPLICATE') AS duplicates, "
            "(SELECT count(*) FROM ingest.alerts a WHERE a.incident_id = i.incident_id) AS alerts, "
            "(SELECT count(*) FROM router.decisions d WHERE d.incident_id = i.incident_id) AS decisions "
            "FROM ingest.incidents i"
        )
        self._expect(len(incidents) == len(causes), f"{len(incidents)} incidents of {len(causes)} causes")
        total = sum(one["alerts"] for one in incidents)
        self._expect(total == len(sent), f"{total} alerts at incidents, {len(sent)} were sent")
        for one in incidents:
            is_told = (one["signal_count"], one["duplicate_count"], one["alert_count"])
            is_there = (one["signals"], one["duplicates"], one["alerts"])
            self._expect(is_told == is_there, f"{one['title']} says {is_told}, its rows {is_there}")
            once = (one["revision"], one["decisions"]) == (1, 1)
            self.doubled += not once
            self._expect(once, f"{one['title']}: revision {one['revision']}, {one['decisions']} decisions")
        (row,) = await town.rows(
            "SELECT count(*) AS decisions, (SELECT count(*) FROM router.decisions d WHERE NOT EXISTS "
            "(SELECT FROM ingest.incidents i WHERE i.incident_id = d.incident_id)) AS of_nobody FROM router.decisions"
        )
        self._expect(not row["of_nobody"], f"{row['of_nobody']} decisions of no incident")
        self._rows = [("incidents", f"{len(incidents)} of {len(causes)} causes, decisions {row['decisions']}")]

    async def _look_at_letters(self, town: Town) -> None:
        """Nothing here is poison, and what is done is trimmed."""
        letters = await town.rows("SELECT reason, count(*) AS count FROM ingest.dead_letters GROUP BY 1")
        self._expect(not letters, f"dead letters: {[tuple(one) for one in letters]}")

    def _expect(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001  it reads as an assertion
        if not holds:
            self.breaches.append(otherwise)

    def _tell(self, senders: Senders, said: Counter[str], rows: int, todo: Sequence[Post]) -> None:
        copies = sum(len(one.numbers) for one in todo)
        spread = Counter(one.source for one in todo)
        worth = f"with 95 % confidence fewer than {THREE / self.kills:.1%} of such kills do it (rule of three)"
        alert_worth = f"fewer than 1 of {self.alerts // THREE} alerts"
        clean = "" if self.lost or self.doubled else f": {worth}, {alert_worth}"
        self._rows = [
            ("seed", str(self.seed)),
            (f"{self.killed.total()} times kill -9", counted(self.killed)),
            (f"{self.alerts} alerts", f"{copies} with the copies of the other peer, in {len(todo)} notifications"),
            ("notifications by source", counted(spread)),
            ("accepted with a 202", f"{senders.accepted} alerts and copies"),
            ("not accepted, and sent again", f"{senders.retried} alerts and copies: {counted(senders.refused)}"),
            ("rows", f"{rows}: {counted(said)}; stored although the answer was lost {rows - len(senders.promised)}"),
            *self._rows,
            ("lost", f"{self.lost}{clean}"),
            ("counted or decided twice", f"{self.doubled}{clean}"),
        ]

    def table(self) -> list[tuple[str, str]]:
        """Return what was seen, as (what, how much)."""
        return self._rows

    def markdown(self) -> str:
        """Return the table of a run as the page has it."""
        where = f"{os.cpu_count()} cores, Linux {platform.release().partition('-')[0]}"
        load = f"load average {os.getloadavg()[0]:.1f} at its end"
        head = f"One run at {report.version()}, seed {self.seed}, {self.seconds:.0f} s, {where}, {load}."
        rows = ["| what | seen |", "|---|---|", *(f"| {what} | {seen} |" for what, seen in self.table()[1:])]
        return "\n\n".join([head, "\n".join(rows)])


async def measure(seed: int, kills: int, alerts: int, say: Say) -> Intake:
    """Do one run, tell its table, and return it; what a broken one leaves is kept."""
    folder = short_folder()
    made = Intake(seed, kills, alerts, 10.0, say)
    await made.run(folder)
    for what, seen in made.table():
        say(f"{what}: {seen}")
    for breach in made.breaches[:50]:
        say(f"BROKEN {breach}")
    if made.breaches:
        say(f"what is left is in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def say(line: str) -> None:
    """Print a line at once, with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


async def main() -> int:
    """Measure once, as the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.intake", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--alerts", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    made = await measure(chosen.seed, chosen.kills, chosen.alerts, say)
    say("broken" if made.breaches else f"everything holds, {made.seconds:.0f} s")
    if chosen.write:
        report.put(BEGIN, made.markdown())
    return 1 if made.breaches else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
