"""`make faults`: the long form of all harnesses, on meshes of their own; exit code 1 when anything was broken.

Options: `--seed N` (1), `--alerts N` (300), `--rounds N` kills of each process (4), `--calls N` of the containment
(10000), `--run-calls N` of that of runs (5000), `--kills N` (50) and `--intake-alerts N` (50000) of the intake,
`--write` puts the figures into docs/reliability.md.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.faults import intake, report
from tests.faults.containment import STORED, Containment
from tests.faults.history import check
from tests.faults.quiet import quiet
from tests.faults.reading import Outside, effects, note_starts, read, starts
from tests.faults.records import Breach
from tests.faults.runs import RunContainment, meant
from tests.faults.storm import LONG, Storm
from tests.faults.tally import counts
from tests.faults.world import running, short_folder
from tests.flows.world import RESTART, World


def say(line: str) -> None:
    """Print a line at once, with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alerts", type=int, default=LONG.alerts)
    parser.add_argument("--rounds", type=int, default=LONG.rounds)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--run-calls", type=int, default=5_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--intake-alerts", type=int, default=50_000)
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


async def contain(world: World, outside: Outside, seed: int, calls: int) -> tuple[Containment, list[str]]:
    """Attack, and return what happened that should not have."""
    attacked = Containment(world, outside, seed)
    await attacked.attack(calls)
    wrong = [f"{one.kind} as answered: {one.tool.rpc} {one.request_id}" for one in attacked.answered]
    wrong += [one.words for one in await effects(world) if one.request_id in attacked.forged]
    began = sum((one.target_id, one.process_id, one.time) not in outside.before for one in starts(world))
    meant = sum(one.tool.name == RESTART for one in attacked.used)
    if began != meant:
        wrong.append(f"{began} starts where {meant} were granted and used")
    if set(attacked.answers[STORED]) != {"ANSWERED"}:
        wrong.append(f"a used grant, used again, got {dict(attacked.answers[STORED])}")
    return attacked, wrong


async def contain_runs(world: World, outside: Outside, seed: int, calls: int) -> tuple[RunContainment, list[str]]:
    """Attack as a compromised model, and return what happened that should not have."""
    before = Counter(one.target_id for one in starts(world))
    attacked = RunContainment(world, outside, seed)
    await attacked.attack(calls)
    wrong = list(attacked.puppets.wrong)
    wrong += [one.words for one in await effects(world) if one.request_id in attacked.forged]
    began = Counter(one.target_id for one in starts(world)) - before
    if began != meant(attacked):
        wrong.append(f"{dict(began)} were started where {dict(meant(attacked))} were granted and used")
    return attacked, wrong


async def main(chosen: argparse.Namespace, folder: Path) -> int:
    """Run all harnesses, print what was seen, and return the exit code."""
    began = time.monotonic()
    size = replace(LONG, alerts=chosen.alerts, rounds=chosen.rounds)
    say(f"seed {chosen.seed}; a mesh of its own starts in {folder}")
    async with running(folder) as world:
        outside = Outside()
        await note_starts(world, outside)
        say(f"containment: {chosen.calls} calls")
        contained, wrong = await contain(world, outside, chosen.seed, chosen.calls)
        for line in contained.table():
            say(line)
        say(f"containment of runs: {chosen.run_calls} calls")
        runs, runs_wrong = await contain_runs(world, outside, chosen.seed, chosen.run_calls)
        for line in runs.table():
            say(line)
        say("the storm")
        storm = Storm(world, outside, chosen.seed, size, say)
        await storm.rage()
        say("the storm is over; waiting for quiet")
        await quiet(world, outside)
        history = await read(world, outside)
    breaches = [*check(history), *([Breach("I1", "a 202 while an fsync hung")] * storm.lies)]
    for what, seen in [*storm.summary(), *counts(history)]:
        say(f"{what}: {seen}")
    for breach in breaches:
        say(f"BROKEN {breach.invariant}: {breach.what}")
    for line in [*wrong, *runs_wrong]:
        say(f"BROKEN containment: {line}")
    run = report.Run(
        chosen.seed, time.monotonic() - began, contained, wrong, storm, history, breaches, runs, runs_wrong
    )
    say("the intake")
    taken = await intake.measure(chosen.seed, chosen.kills, chosen.intake_alerts, say)
    passed = run.passed and not taken.breaches
    say("everything holds" if passed else f"broken; seed {chosen.seed}")
    if chosen.write:
        report.write(run)
        report.put(intake.BEGIN, taken.markdown())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(options(), short_folder())))
