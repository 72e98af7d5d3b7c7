"""How often playbooks and agents were started within the last hour for one incident, or others of its correlation key.

Rules are bound by it when they decide, a model's choice when it becomes the decision: both count what either started.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import prometheus_client

from services.mesh.postgres import Connection
from services.router.deciding import AGENT, started_by
from services.router.domain import Brake, Decision, History, Snapshot, Verdict

BRAKED: Final = prometheus_client.Counter(
    "opsmesh_router_braked_total",
    "Decisions that put a question to people in the place of automation: started too often, or flapping.",
    ["brake", "chosen_by"],
)
# After the locks on incidents, in one order, so that two calls never wait for each other in a circle.
LOCK: Final = (
    "SELECT pg_advisory_xact_lock(21, number) FROM "
    "(SELECT DISTINCT hashtext(key) AS number FROM unnest($1::text[]) AS keys(key) ORDER BY 1) AS numbers"
)
# What was closed before anything was started does not count; what was superseded while its start was under way does.
STARTS: Final = f"""
SELECT incident_id, correlation_key, count(*) AS count,
    CASE outcome WHEN 'DELEGATE_AGENT' THEN '{AGENT}' || template_id ELSE playbook_id END AS started
FROM decisions
WHERE outcome IN ('TRIGGER_AUTOMATION', 'DELEGATE_AGENT')
  AND coalesce(start_time, made_time) > clock_timestamp() - interval '1 hour'
  AND NOT (state = 'CLOSED' AND execution_id = '' AND run_id = '' AND start_time IS NULL
           AND NOT (result = 'SUPERSEDED' AND attempts > 0 AND held_time IS NULL))
  AND ((correlation_key <> '' AND correlation_key = ANY($1::text[])) OR incident_id = ANY($2::uuid[]))
GROUP BY incident_id, correlation_key, started
"""  # noqa: S608  constants only


@dataclass(frozen=True, slots=True)
class Trouble:
    """Whose starts count together: one incident's, and those of the others of its key; an empty key joins nothing."""

    incident_id: uuid.UUID
    correlation_key: str


def trouble_of(one: Snapshot | Decision) -> Trouble:
    """Return what an incident or a decision is about."""
    return Trouble(one.incident_id, one.correlation_key)


class Starts:
    """The starts of the last hour of some incidents; `note` adds what is decided now."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[uuid.UUID, str, str]] = Counter()

    @classmethod
    async def load(cls, connection: Connection, troubles: Sequence[Trouble]) -> "Starts":
        """Lock the correlation keys until the transaction ends, and count."""
        keys = sorted({one.correlation_key for one in troubles if one.correlation_key})
        await connection.execute(LOCK, keys)
        return await cls.peek(connection, troubles)

    @classmethod
    async def peek(cls, connection: Connection, troubles: Sequence[Trouble]) -> "Starts":
        """Count without a lock: good enough to show, not to decide."""
        found = cls()
        keys = sorted({one.correlation_key for one in troubles if one.correlation_key})
        for row in await connection.fetch(STARTS, keys, [one.incident_id for one in troubles]):
            found._counts[row["incident_id"], row["correlation_key"], row["started"]] = row["count"]
        return found

    def beside(self, history: History, trouble: Trouble) -> History:
        """Return a history with the starts that an incident shares."""
        counts: Counter[str] = Counter()
        for (incident_id, key, name), count in self._counts.items():
            if incident_id == trouble.incident_id or (key and key == trouble.correlation_key):
                counts[name] += count
        return replace(history, starts=dict(counts))

    def note(self, trouble: Trouble, verdict: Verdict) -> Verdict:
        """Count a verdict that starts something; returns it."""
        if name := started_by(verdict):
            self._counts[trouble.incident_id, trouble.correlation_key, name] += 1
        return verdict


def tell(verdict: Verdict) -> None:
    """Count a decision, committed, that was braked."""
    if verdict.brake is not Brake.UNSPECIFIED:
        BRAKED.labels(verdict.brake.lower(), "model" if verdict.model_outcome else "rule").inc()
