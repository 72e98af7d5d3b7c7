"""Counts what a history holds, and says what not having seen a breach is worth."""

from collections import Counter
from collections.abc import Mapping

from tests.faults.history import RESTART
from tests.faults.records import History

CONFIDENCE = 0.95


def counts(history: History) -> list[tuple[str, str]]:
    """Return how much of everything there was, as (what, how much): a check over nothing shows nothing."""
    changing = [one for one in history.effects if one.guarded]
    phases, outcomes = Counter(one.phase for one in history.events), Counter(one.outcome for one in history.events)
    revisions = sum(one.revision for one in history.incidents)
    del outcomes["UNSPECIFIED"]
    return [
        ("signals", f"accepted {len(set(history.accepted))}, rows {len(history.signals)}"),
        ("incidents", f"{len(history.incidents)}, revisions {revisions}, decisions {len(history.decisions)}"),
        ("effects, by the gateway's record", counted(Counter(one.state for one in changing))),
        ("of them restarts", counted(Counter(one.state for one in changing if one.method == RESTART))),
        ("of them resting on an approval", str(sum(bool(one.approval_id) and one.acted for one in changing))),
        ("starts, by the process managers' record", str(len(history.starts))),
        ("audit events", f"{counted(phases)}; they say {counted(outcomes)}"),
        ("approvals", counted(Counter(one.state for one in history.approvals)) or "none"),
        ("kill switches", f"{len(history.kills)}, fences seen to grow {len(history.fences)} times"),
        ("notices", f"{len(history.notices)}, different ids {len(set(history.notices))}"),
    ]


def counted(counter: Mapping[str, int]) -> str:
    """Return a counter in words."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def bound(tries: int) -> float:
    """Return the highest rate, with 95 % confidence, of what was not seen in so many tries (Clopper-Pearson, exact)."""
    return float(1 - (1 - CONFIDENCE) ** (1 / tries)) if tries else 1.0
