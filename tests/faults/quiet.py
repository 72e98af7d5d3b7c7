"""Waits until a mesh has nothing more to do: no signal without a row, nothing under way, nothing owed to audit."""

from collections.abc import Sequence
from contextlib import suppress

from tests.faults.reading import AWAY, Outside
from tests.flows.world import World, until

SCHEMAS = ("ingest", "router", "agents", "automation", "guardrails", "gateway")
# What an outcome that is owed may take: the longest deadline of a write, and the silence after it.
QUIET_SECONDS = 200
OPEN = {
    "signals without a row": (
        "SELECT count(*) FROM unnest($1::uuid[]) AS accepted(signal_id)"
        " LEFT JOIN ingest.signals USING (signal_id) WHERE disposition IS NULL"
    ),
    "incidents nobody has decided": (
        "SELECT count(*) FROM ingest.incidents i WHERE $1::uuid[] IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM router.decisions d WHERE d.incident_id = i.incident_id AND d.revision = i.revision)"
    ),
    "executions under way": (
        "SELECT count(*) FROM automation.executions"
        " WHERE $1::uuid[] IS NOT NULL AND state IN ('PENDING', 'RUNNING', 'AWAITING_APPROVAL')"
    ),
    "effects under way": "SELECT count(*) FROM gateway.effects WHERE $1::uuid[] IS NOT NULL AND state = 'STARTED'",
} | {
    f"events in the outbox of {name}": f"SELECT count(*) FROM {name}.outbox WHERE $1::uuid[] IS NOT NULL"  # noqa: S608  names of ours
    for name in SCHEMAS
}


async def quiet(world: World, outside: Outside) -> None:
    """Wait for quiet; an AssertionError says what is still open."""
    seen: list[str] = []

    async def look() -> bool:
        seen[:] = ["PostgreSQL, which does not answer"]
        with suppress(*AWAY):
            seen[:] = await unfinished(world, outside)
        return not seen

    await world.whole()
    try:
        await until(look, "quiet", QUIET_SECONDS, 0.5)
    except AssertionError:
        raise AssertionError(f"no quiet within {QUIET_SECONDS} s: {seen}") from None


async def unfinished(world: World, outside: Outside) -> Sequence[str]:
    """Return what is still open, in words."""
    counts = {what: await world.value(query, outside.accepted) for what, query in OPEN.items()}
    return [f"{count} {what}" for what, count in counts.items() if count]
