"""Counts what a history holds, and says what not having seen a breach is worth."""

from collections import Counter
from collections.abc import Iterator, Mapping

from tests.faults.records import History

CONFIDENCE = 0.95


def counts(history: History) -> Iterator[str]:
    """Return how much of everything there was: a check over nothing shows nothing."""
    changing = [one for one in history.effects if one.guarded]
    phases = Counter(one.phase for one in history.events)
    yield f"signals accepted {len(set(history.accepted))}, rows {len(history.signals)}"
    yield f"incidents {len(history.incidents)}, revisions and decisions {len(history.decisions)}"
    yield f"effects by the gateway's record: {counted(Counter(one.state for one in changing))}"
    yield f"of them resting on an approval: {sum(bool(one.approval_id) for one in changing)}"
    yield f"starts by the process managers' record: {len(history.starts)}"
    yield f"audit events: {counted(phases)}; outcomes: {counted(Counter(one.outcome for one in history.events))}"
    yield f"approvals: {counted(Counter(one.state for one in history.approvals)) or 'none'}"
    yield f"kills of the switch {len(history.kills)}, fences seen {len(history.fences)}, notices {len(history.notices)}"


def counted(counter: Mapping[str, int]) -> str:
    """Return a counter in words."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def bound(tries: int) -> float:
    """Return the highest rate, with 95 % confidence, of what was not seen in so many tries (Clopper-Pearson, exact)."""
    return float(1 - (1 - CONFIDENCE) ** (1 / tries)) if tries else 1.0
