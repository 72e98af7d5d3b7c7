"""What a benchmark says: one row a bar, shown side by side. Rows are printed, never gated on."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

# Of what is written to a file or a pipe, where no terminal says how wide it is.
WIDTH = 170


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was measured, beside what it is compared with; `met` is None where there is no bar."""

    what: str
    measured: str
    compared: str = ""
    ratio: float | None = None
    bar: str = ""
    met: bool | None = None


def screen() -> Console:
    """Return the console on standard output."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print rows as one table."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("what", "measured", "compared with"):
        table.add_column(name, overflow="fold")
    table.add_column("ratio", justify="right")
    table.add_column("bar", overflow="fold")
    table.add_column("met")
    verdicts = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.what, row.measured, row.compared, ratio, row.bar, verdicts[row.met])
    console.print(table)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile of at least two samples."""
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]
