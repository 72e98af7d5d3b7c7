"""How often playbooks were started within the last hour for one incident, or for incidents of one correlation key."""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from services.mesh.postgres import Connection
from services.router.domain import History, Outcome, Snapshot, State, Verdict

# After the locks on incidents, in one order, so that two calls never wait for each other in a circle.
LOCK: Final = (
    "SELECT pg_advisory_xact_lock(21, number) FROM "
    "(SELECT DISTINCT hashtext(key) AS number FROM unnest($1::text[]) AS keys(key) ORDER BY 1) AS numbers"
)
# What was closed before anything was started does not count.
STARTS: Final = """
SELECT incident_id, correlation_key, playbook_id, count(*) AS count FROM decisions
WHERE outcome = 'TRIGGER_AUTOMATION' AND playbook_id <> '' AND create_time > clock_timestamp() - interval '1 hour'
  AND NOT (state = 'CLOSED' AND execution_id = '' AND start_time IS NULL)
  AND ((correlation_key <> '' AND correlation_key = ANY($1::text[])) OR incident_id = ANY($2::uuid[]))
GROUP BY incident_id, correlation_key, playbook_id
"""


class Starts:
    """The starts of the last hour of some incidents; `note` adds what is decided now."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[uuid.UUID, str, str]] = Counter()

    @classmethod
    async def load(cls, connection: Connection, snapshots: Sequence[Snapshot]) -> "Starts":
        """Lock the correlation keys of these incidents until the transaction ends, and count."""
        found = cls()
        keys = sorted({one.correlation_key for one in snapshots if one.correlation_key})
        await connection.execute(LOCK, keys)
        for row in await connection.fetch(STARTS, keys, [one.incident_id for one in snapshots]):
            found._counts[row["incident_id"], row["correlation_key"], row["playbook_id"]] = row["count"]
        return found

    def beside(self, history: History, snapshot: Snapshot) -> History:
        """Return a history with the starts that an incident shares."""
        counts: Counter[str] = Counter()
        for (incident_id, key, playbook_id), count in self._counts.items():
            if incident_id == snapshot.incident_id or (key and key == snapshot.correlation_key):
                counts[playbook_id] += count
        return replace(history, starts=dict(counts))

    def note(self, snapshot: Snapshot, verdict: Verdict) -> Verdict:
        """Count a verdict that starts a playbook; returns it."""
        if verdict.outcome is Outcome.TRIGGER_AUTOMATION and verdict.playbook_id and verdict.state is not State.CLOSED:
            self._counts[snapshot.incident_id, snapshot.correlation_key, verdict.playbook_id] += 1
        return verdict
