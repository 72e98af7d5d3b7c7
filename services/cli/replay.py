"""`opsmesh signals replay` and `opsmesh signals storm`: many deliveries at a pace, as patient as senders should be."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_before_delay,
    wait_random,
    wait_random_exponential,
)

from services.cli.command import REFUSED, typed
from services.cli.output import error_console, plain, print_table
from services.cli.posting import Posting, Postman, reason, signals_of
from services.cli.recordings import piped, recorded
from services.cli.session import Session, UsageError
from services.cli.storming import Storm
from services.cli.tallies import Tallies, Tally

# Patience ends it long before, but for who is patient without end.
TRIES: Final = 1000
PAUSE_MAX: Final = 60.0
PAUSE_DEFAULT: Final = 2.0
# A pace that fell behind catches up no further than this: whoever is slow must not be hit by a burst.
BEHIND_MAX: Final = 0.1
FRAMES: Final = 4

Rate = Annotated[float, typer.Option("--rate", min=0, help="A second; 0 is as fast as they are answered.")]
Concurrency = Annotated[int, typer.Option(min=1, max=1000, help="Most that wait for an answer at once.")]
Patience = Annotated[float, typer.Option(min=0, help="Seconds to go on trying one that is told to come again.")]


@dataclass
class Replay:
    """Sends deliveries: at most `rate` a second and `concurrency` at once. `tallies` is right at any moment."""

    postman: Postman
    rate: float
    concurrency: int
    patience: float
    progress: Progress
    planned: int | None
    tallies: Tallies = field(default_factory=Tallies)
    seconds: float = 0.0

    async def run(self, postings: AsyncIterator[Posting]) -> None:
        """Send all; raises the UsageError of what could not be read, once all before it has its answer."""
        task = self.progress.add_task("", total=self.planned)
        began = time.monotonic()
        try:
            await self._send(postings, task)
        finally:
            self.seconds = time.monotonic() - began
            self._show(task)

    async def _send(self, postings: AsyncIterator[Posting], task: TaskID) -> None:
        try:
            await self._send_each(postings, task)
        except BaseExceptionGroup as group:
            # What went wrong first is told, as everywhere: what cannot be read fails each in the same way.
            raise group.exceptions[0] from None

    async def _send_each(self, postings: AsyncIterator[Posting], task: TaskID) -> None:
        gate = asyncio.Semaphore(self.concurrency)
        unread: UsageError | OSError | None = None
        async with asyncio.TaskGroup() as tasks:
            due = time.monotonic()
            try:
                async for one in postings:
                    headers = self.postman.headers(one)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    await gate.acquire()
                    sent = tasks.create_task(self._deliver(one, headers, task))
                    sent.add_done_callback(lambda _: gate.release())
                    now = time.monotonic()
                    due = max(due + 1 / self.rate, now - BEHIND_MAX) if self.rate else now
            except (UsageError, OSError) as error:
                unread = error
        if unread:
            raise unread

    async def _deliver(self, posting: Posting, headers: httpx.Headers, task: TaskID) -> None:
        """Send one until it is taken or refused, with the same proof: what comes again is known as the same."""
        tally = self.tallies.of(posting.source)

        async def once() -> httpx.Response:
            began = time.perf_counter()
            answer = await self.postman.post(posting, headers)
            tally.answers.append(time.perf_counter() - began)
            return answer

        def again(_: RetryCallState) -> None:
            tally.retries += 1

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(httpx.TransportError) | retry_if_result(_come_again),
            stop=stop_after_attempt(TRIES) | stop_before_delay(self.patience),
            wait=_pause,
            before_sleep=again,
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        try:
            answer: httpx.Response = await retrying(once)
        except httpx.TransportError as error:
            tally.failed += 1
            tally.why[f"no answer: {str(error) or type(error).__name__}"] += 1
        else:
            self._count(posting.source, tally, answer)
        self._show(task)

    def _count(self, source: str, tally: Tally, answer: httpx.Response) -> None:
        if answer.status_code == httpx.codes.ACCEPTED:
            self.tallies.accepted(source, signals_of(answer))
        else:
            tally.failed += _come_again(answer)
            tally.rejected += not _come_again(answer)
            tally.why[reason(answer)] += 1

    def _show(self, task: TaskID) -> None:
        total = dict.fromkeys(("accepted", "duplicates", "rejected", "failed", "retries"), 0)
        for one in self.tallies.by_source.values():
            total = {name: count + getattr(one, name) for name, count in total.items()}
        done = sum(count for name, count in total.items() if name != "retries")
        words = ", ".join(f"{count} {name}" for name, count in total.items() if count)
        self.progress.update(task, completed=done, description=words)

    def tell(self, session: Session) -> None:
        """Show what became of it: a table of the sources, or one JSON object."""
        total = self.tallies.total
        pace = total.sent / self.seconds if self.seconds else 0.0
        if session.as_json:
            sources = [{"source": name, **one.content()} for name, one in sorted(self.tallies.by_source.items())]
            content = {"planned": self.planned, "seconds": round(self.seconds, 3), "rate": round(pace, 1)}
            sys.stdout.write(json.dumps(content | {"total": total.content(), "sources": sources}, indent=2) + "\n")
            return
        rows = [_row(name, one) for name, one in sorted(self.tallies.by_source.items())]
        if len(rows) > 1:
            rows.append(_row("all", total))
        if rows:
            print_table(session, "sources", list(rows[0]), rows)
        missing = f", of {self.planned} planned" if self.planned not in (None, total.sent) else ""
        console = error_console()
        console.print(f"{total.sent} sent{missing} in {self.seconds:.1f} s, {pace:.0f}/s")
        for text, count in total.why.most_common(5):
            console.print(f"{count} x", plain(text), markup=False)


def _row(name: str, tally: Tally) -> dict[str, str]:
    shown = {key: str(value) for key, value in tally.content().items() if not isinstance(value, list)}
    return {"source": name, **shown}


def _come_again(answer: httpx.Response) -> bool:
    """Say whether a sender that can wait would send it again."""
    return answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error


def _pause(state: RetryCallState) -> float:
    """Return how long to wait: what was asked for, a little more so that not all come back at once."""
    if state.outcome is None or state.outcome.failed:
        return wait_random_exponential(multiplier=0.1, max=5)(state)
    asked = state.outcome.result().headers.get("Retry-After", "")
    seconds = float(asked) if asked.isascii() and asked.isdecimal() else PAUSE_DEFAULT
    return min(seconds, PAUSE_MAX) + wait_random(0, 0.2)(state)


async def replay(
    session: Session,
    file: Annotated[Path, typer.Argument(help="JSON lines, a .json body, or a folder of these; - reads lines.")],
    rate: Rate = 50,
    source: Annotated[str, typer.Option(help="Of bodies that do not name their own; as in sources.yaml.")] = "",
    repeat: Annotated[int, typer.Option(min=1, max=1_000_000, help="How often to send the whole.")] = 1,
    concurrency: Concurrency = 32,
    patience: Patience = 120,
) -> None:
    """Post what FILE holds at RATE, as its senders would, and count what became of it.

    A line is a body, or {"source": S, "headers": {...}, "body": ...} with `body_base64` in place of `body` for bytes.
    Below a folder a body's source is --source, or the name of the folder it lies in. What is told to come again (429,
    503) waits as long as it is told. Exit code 1 when something was not taken.
    """
    if str(file) == "-":
        if repeat > 1:
            raise UsageError("standard input can be read once only\nNEXT: --repeat with a file")
        await _run(session, piped(source), None, rate, concurrency, patience)
        return
    postman = Postman(session.endpoints)
    # Read to its end before anything is sent: a line in the middle that cannot be read is told at once.
    planned = sum(1 for one in recorded(file, source) if postman.hook(one.source))
    if not planned:
        raise UsageError(f"{file} holds nothing to send\nNEXT: a file of JSON lines, or a folder of .json bodies")
    again = (one for _ in range(repeat) for one in recorded(file, source))
    await _run(session, _each(again), planned * repeat, rate, concurrency, patience)


async def storm(
    session: Session,
    alerts: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many.")] = 10_000,
    causes: Annotated[int, typer.Option(min=1, max=10_000, help="Of how many causes: so many incidents.")] = 20,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Alerts a second; 0: as many as are taken.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, max=500, help="Alerts in one notification.")] = 50,
    source: Annotated[str, typer.Option(help="A source whose parser is alertmanager.")] = "alertmanager",
    severity: Annotated[str, typer.Option(help="Of each alert.")] = "warning",
    resolve: Annotated[bool, typer.Option("--resolve", help="Say afterwards of each that it is over.")] = False,
    concurrency: Concurrency = 32,
    patience: Patience = 120,
) -> None:
    """Post alerts of a few causes as Alertmanager would, to see them become as few incidents: `incidents watch`."""
    made = Storm(alerts, min(causes, alerts), batch, source, severity)
    planned, postings = made.count(resolve=resolve), _each(made.postings(resolve=resolve))
    await _run(session, postings, planned, rate / batch, concurrency, patience)
    if not session.as_json:
        error_console().print(f"NEXT: {typed(session, 'incidents', 'watch')}", markup=False)


async def _each(postings: Iterable[Posting]) -> AsyncIterator[Posting]:
    for one in postings:
        yield one


async def _run(
    session: Session,
    postings: AsyncIterator[Posting],
    planned: int | None,
    rate: float,
    concurrency: int,
    patience: float,
) -> None:
    """Send with a progress bar and show the end, also of what Ctrl-C cut short; exit code 1 when something was lost."""
    console = error_console()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=FRAMES)
    async with Postman(session.endpoints, concurrency) as postman:
        one = Replay(postman, rate, concurrency, patience, progress, planned)
        try:
            with progress:
                await one.run(postings)
        finally:
            one.tell(session)
    if one.tallies.total.lost:
        raise typer.Exit(REFUSED)
