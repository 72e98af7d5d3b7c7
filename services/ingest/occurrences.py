"""Alerts that no resolve will end: an occurrence is over when it was not told again for long enough.

A saved search that found something, an event of a cluster, a build that failed: their senders tell that it happened,
and never that it is over.
"""

from datetime import timedelta
from typing import Final

from services.ingest.backlog import Oldest, none_waits
from services.ingest.domain import REVISIONS_MAX
from services.ingest.letters import LOCK, TURN
from services.mesh.postgres import Connection

# So many alerts at most end in one sweep.
EXPIRED_MAX: Final = 1000
# Nobody's turn is taken for nothing, nor for what acts on an incident and may take hours.
DUE: Final = (
    "SELECT EXISTS (SELECT FROM alerts a JOIN incidents i USING (incident_id) WHERE NOT a.over "
    "AND a.expire_time <= now() AND i.state NOT IN ('RUNNING', 'AWAITING_APPROVAL'))"
)
# What acts on an incident ends first. With the turn of who records no alert changes meanwhile.
END: Final = """
WITH due AS (
    SELECT a.source, a.dedup_key, a.episode, a.incident_id, a.told_time, a.expire_time
    FROM alerts a JOIN incidents i USING (incident_id)
    WHERE NOT a.over AND a.expire_time <= least(now(), $2) AND i.state NOT IN ('RUNNING', 'AWAITING_APPROVAL')
    ORDER BY a.expire_time LIMIT $1 FOR UPDATE OF i SKIP LOCKED
), ended AS (
    UPDATE alerts SET over = true, update_time = now() FROM due
    WHERE (alerts.source, alerts.dedup_key, alerts.episode) = (due.source, due.dedup_key, due.episode)
)
SELECT incident_id, max(expire_time) AS expire_time,
    (array_agg(expire_time - told_time ORDER BY expire_time DESC))[1] AS silence
FROM due GROUP BY incident_id
"""
# As when the sender resolves the last one: decided anew, which closes it, or closed when no revision is left. What
# flaps stays open until it is calm, and what waits for its decision is told when it is decided.
CLOSE: Final = """
WITH quiet AS (
    SELECT i.incident_id, q.expire_time, q.said, i.state NOT IN ('RESOLVED', 'STALE') AS is_open,
        NOT i.flapping AND NOT i.needs_decision AND i.state NOT IN ('RESOLVED', 'STALE') AS decided,
        i.revision < $4 AS left_over
    FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS q (incident_id, expire_time, said)
    JOIN incidents i USING (incident_id)
    WHERE NOT EXISTS (SELECT FROM alerts a WHERE a.incident_id = i.incident_id AND NOT a.over)
), next AS (
    SELECT *, decided AND left_over AS again, decided AND NOT left_over AS last FROM quiet
)
UPDATE incidents SET firing = false, expire_time = next.expire_time, update_time = now(),
    revision = revision + again::integer, needs_decision = needs_decision OR again,
    following = following AND NOT (again OR last),
    due_time = CASE WHEN again THEN now() ELSE due_time END, attempts = CASE WHEN again THEN 0 ELSE attempts END,
    state = CASE WHEN again THEN 'OPEN' WHEN last THEN 'RESOLVED' ELSE state END,
    resolve_time = CASE WHEN last THEN now() ELSE resolve_time END,
    state_detail = CASE WHEN is_open THEN said ELSE state_detail END
FROM next WHERE incidents.incident_id = next.incident_id RETURNING incidents.incident_id
"""


async def expire(connection: Connection, oldest: Oldest = none_waits) -> int:
    """End what was not told again, in the caller's transaction; return how many incidents have no active alert now.

    What waits to be recorded since `oldest`, because we or the store were away, may tell it again: by then nothing had
    been silent for longer.
    """
    if not await connection.fetchval(DUE):
        return 0
    since = await oldest()
    await connection.execute(TURN, LOCK)
    rows = await connection.fetch(END, EXPIRED_MAX, since)
    if not rows:
        return 0
    said = [f"not told again for {span(row['silence'])}: occurrences have no resolve" for row in rows]
    ids, times = [row["incident_id"] for row in rows], [row["expire_time"] for row in rows]
    return len(await connection.fetch(CLOSE, ids, times, said, REVISIONS_MAX))


def span(time: timedelta) -> str:
    """Return a length of time in the largest units it is made of: `1 h`, `90 min`, `45 s`."""
    seconds = round(time.total_seconds())
    for unit, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds and seconds % unit == 0:
            return f"{seconds // unit} {word}"
    return f"{seconds} s"
