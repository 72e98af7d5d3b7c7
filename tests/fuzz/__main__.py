"""`make fuzz`: many bodies for every parser and every reader of the bridge; exit code 1 when one did what it must not.

Options: `--seconds N` shared by all targets (600), or `--examples N` for each of them, `--seed N` (1), `--only WORD` of
a target's name. A failing example is printed as Python has it, so that it can become a test.
"""

import argparse
import sys
import time
import traceback
from collections import Counter
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import Target, targets

BATCH = 250
# A guard against what never ends; work itself is counted.
HANG = timedelta(seconds=20)
EXAMPLE_SHOWN = 4000


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    return parser.parse_args(arguments)


def batch(target: Target, number: int, examples: int) -> tuple[Counter[str], str]:
    """Try so many examples; return what became of them, and the smallest that failed with why, or nothing."""
    became: Counter[str] = Counter()
    last: list[Any] = []

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=HANG,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(example=target.examples)
    def attempt(example: Any) -> None:
        last[:] = [example]
        became[target.run(example)] += 1

    try:
        attempt()
    except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
        shown = f"{last[0]!r:.{EXAMPLE_SHOWN}}" if last else "(none)"
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        return became, f"{type(error).__name__}: {error!s:.500}\n{where}example = {shown}"
    return became, ""


def fuzz(target: Target, first_seed: int, seconds: float, examples: int) -> bool:
    """Fuzz a target, batch by batch, each with a seed of its own; say what happened, and whether all was well."""
    became: Counter[str] = Counter()
    number, ends, failure = first_seed, time.monotonic() + seconds, ""
    while not failure and (became.total() < examples if examples else time.monotonic() < ends):
        found, failure = batch(target, number, min(BATCH, examples - became.total()) if examples else BATCH)
        became += found
        number += 1
    line = f"{target.name:32}{became.total():8} tried {became['accepted']:8} accepted {became['refused']:8} refused"
    say(f"{line}   seeds {first_seed}-{number - 1}{'   FAILED' if failure else ''}")
    if failure:
        say(failure)
    return not failure


def main(arguments: list[str]) -> int:
    """Fuzz all targets that are asked for."""
    asked = options(arguments)
    chosen = [one for one in targets() if asked.only in one.name]
    if not chosen:
        say(f"no target's name has {asked.only!r}")
        return 2
    say(f"fuzzing {len(chosen)} targets, seed {asked.seed}")
    well = [fuzz(one, asked.seed, asked.seconds / len(chosen), asked.examples) for one in chosen]
    say("nothing found" if all(well) else f"{well.count(False)} targets failed")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
