"""Which of ingest's rows are too old to keep; what is open stays."""

from typing import Final

from services.mesh.retention import TooOld

GONE: Final = "SELECT FROM incidents i WHERE i.incident_id = alerts.incident_id"
# Table and condition; an alert lives as long as its incident.
CONDITIONS: Final = (
    ("deliveries", "create_time < now() - $1::interval"),
    ("dead_letters", "create_time < now() - $1::interval"),
    ("changes", "record_time < now() - $1::interval"),
    ("signals", "record_time < now() - $1::interval"),
    ("incidents", "update_time < now() - $1::interval AND state IN ('RESOLVED', 'STALE')"),
    ("turns", "since < now() - $1::interval"),
    ("alerts", f"update_time < now() - $1::interval AND NOT EXISTS ({GONE})"),
)


def rules(days: int) -> list[TooOld]:
    """Return what goes after `days`: signals, their bytes, changes, dead letters and closed incidents."""
    return [TooOld(table, condition, days) for table, condition in CONDITIONS]
