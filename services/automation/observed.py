"""What would have happened where policy only observes, counted: what a team reads before it turns something on."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.mesh.postgres import Pool

LIMIT: Final = 1000
TARGETS: Final = 10


@dataclass(frozen=True, slots=True)
class Observed:
    """One kind of step that policy only observed; `targets` are some of the targets."""

    rule_id: str
    playbook_id: str
    tool: str
    environment: str
    execution_count: int
    target_count: int
    targets: Sequence[str]
    first_time: datetime
    last_time: datetime
    last_execution_id: str


async def observed(pool: Pool, since: timedelta) -> list[Observed]:
    """Return what was observed in executions that began at most `since` ago, the most frequent first."""
    rows = await pool.fetch(
        "SELECT rule_id, playbook_id, tool, environment, count(DISTINCT execution_id) AS execution_count, "
        "count(DISTINCT nullif(target_id, '')) AS target_count, "
        "(array_agg(DISTINCT target_id) FILTER (WHERE target_id <> ''))[:$2] AS targets, "
        "min(create_time) AS first_time, max(create_time) AS last_time, "
        "(array_agg(execution_id::text ORDER BY create_time DESC))[1] AS last_execution_id "
        "FROM automation.executions JOIN automation.steps AS step USING (execution_id) "
        "WHERE step.state = 'OBSERVED' AND create_time > now() - $1::interval "
        "GROUP BY rule_id, playbook_id, tool, environment "
        "ORDER BY execution_count DESC, rule_id, playbook_id, tool, environment LIMIT $3",
        since,
        TARGETS,
        LIMIT,
    )
    return [Observed(**dict(row) | {"targets": row["targets"] or ()}) for row in rows]
