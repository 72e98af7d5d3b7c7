"""The words senders use for status and severity. What is not listed is unreadable: it never becomes firing or info."""

from collections.abc import Mapping
from typing import Final

from services.ingest.signal import Severity, Status

_STATUS: Final[Mapping[Status, str]] = {
    Status.FIRING: (
        "firing alerting triggered trigger re-triggered retriggered renotify warn warning critical alarm fired open "
        "opened active activated problem created unresolved reopened down failed failing unhealthy alert"
    ),
    Status.ACKNOWLEDGED: "acknowledged acknowledge ack acked",
    Status.RESOLVED: "resolved resolve ok okay recovered recovery closed close merged up healthy normal cleared clear",
    Status.NO_DATA: "no_data nodata no-data insufficient_data datasourcenodata datasourceerror",
    Status.SUPPRESSED: "suppressed silenced muted archived ignored inhibited maintenance",
    Status.OCCURRENCE: "occurrence",
}
_SEVERITY: Final[Mapping[Severity, str]] = {
    Severity.CRITICAL: "critical crit fatal emergency emerg alert page disaster sev0 sev1 p1",
    Severity.ERROR: "error err high major severe p2",
    Severity.WARNING: "warning warn medium minor moderate p3",
    Severity.INFO: "info information informational low notice debug none p4 p5",
}
STATUS_WORDS: Final = {word: status for status, words in _STATUS.items() for word in words.split()}
SEVERITY_WORDS: Final = {word: severity for severity, words in _SEVERITY.items() for word in words.split()}


def read_status(raw: str) -> Status:
    """Return what a sender's word means, UNSPECIFIED when it is not one we know."""
    return STATUS_WORDS.get(_plain(raw), Status.UNSPECIFIED)


def read_severity(raw: str) -> Severity:
    """Return what a sender's word means, UNSPECIFIED when it is not one we know."""
    return SEVERITY_WORDS.get(_plain(raw), Severity.UNSPECIFIED)


def _plain(raw: str) -> str:
    """Return a word as the tables spell it."""
    return raw.strip().lower().replace(" ", "_")
