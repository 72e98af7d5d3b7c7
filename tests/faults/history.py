"""What must be true of everything that happened: I1 to I6 of DESIGN section 3, checked over a recorded history. Pure.

A history is what the stores hold at the end and what was seen from outside: ids that senders got with their 202, starts
in the process managers' own records, fences looked at all the time. The checker believes no service's word about
another; it has tests of its own, one broken history for each thing it must find.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from services.gateway.domain import intent_id, outcome_id
from services.mesh import kills
from tests.faults.records import ENDED, Breach, Effect, Event, History, Kill

# I6: the longest that an effect may still start after a kill was acknowledged, or a policy replaced.
WINDOW: Final = timedelta(seconds=2)
# A process manager may need this long to end the old process before it starts the new one: seen only as a start.
ACT: Final = timedelta(seconds=6)
# A row's start is noted at the beginning of the transaction that looks whether another effect is still under way.
TRANSACTION: Final = timedelta(seconds=1)
TOOLS: Final = "opsmesh.tools."
# What the process managers write a start down for.
RESTART: Final = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"


def check(history: History) -> list[Breach]:
    """Return everything that breaks an invariant; empty when all of them hold."""
    return [
        Breach(name, what)
        for name, find in (
            ("I1", signals_and_decisions),
            ("I2", intents_and_outcomes),
            ("I3", at_most_once),
            ("I4", nothing_stale),
            ("I5", nothing_without_people),
            ("I6", nothing_after_a_kill),
        )
        for what in find(history)
    ]


def repeated(ids: Iterable[str]) -> list[str]:
    """Return what is there more than once."""
    return sorted(one for one, count in Counter(ids).items() if count > 1)


def signals_and_decisions(history: History) -> Iterator[str]:
    """I1: every accepted signal has one row with a disposition, every revision of every incident one decision."""
    yield from _rows(history)
    decided = Counter((one.incident_id, one.revision) for one in history.decisions)
    wanted = {(one.incident_id, number) for one in history.incidents for number in range(1, one.revision + 1)}
    for incident_id, revision in sorted(wanted - decided.keys()):
        yield f"incident {incident_id} has no decision about revision {revision}"
    for incident_id, revision in sorted(decided.keys() - wanted):
        yield f"a decision about revision {revision} of incident {incident_id}, which has none"
    for (incident_id, revision), count in sorted(decided.items()):
        if count > 1:
            yield f"incident {incident_id} has {count} decisions about revision {revision}"


def _rows(history: History) -> Iterator[str]:
    """Compare what was accepted with the rows there are."""
    rows = {one.signal_id: one for one in history.signals}
    known = {one.incident_id for one in history.incidents}
    for signal_id in history.accepted:
        if signal_id not in rows:
            yield f"signal {signal_id} was accepted and has no row"
    for signal_id in repeated(one.signal_id for one in history.signals):
        yield f"signal {signal_id} has more than one row"
    for row in history.signals:
        if not row.disposition:
            yield f"signal {row.signal_id} has no disposition"
        if row.incident_id and row.incident_id not in known:
            yield f"signal {row.signal_id} belongs to incident {row.incident_id}, which does not exist"
        if not row.incident_id and row.disposition in {"OPENED", "JOINED"}:
            yield f"signal {row.signal_id} is {row.disposition} and belongs to no incident"


def intents_and_outcomes(history: History) -> Iterator[str]:
    """I2: before each effect its intent, on record; after each intent exactly one outcome that agrees with the row."""
    events = {one.event_id: one for one in history.events}
    yield from (f"audit event {one} is there twice" for one in repeated(one.event_id for one in history.events))
    for effect in (one for one in history.effects if one.guarded):
        yield from _tries(effect, events)
    yield from _pairs(history)


def _tries(effect: Effect, events: Mapping[str, Event]) -> Iterator[str]:
    """Compare the tries of one effect with what audit holds."""
    if effect.state == "STARTED":
        yield f"{effect.words} never ended"
    for number in range(1, effect.tries + 1):
        intent = events.get(str(intent_id(effect.key, number)))
        outcome = events.get(str(outcome_id(effect.key, number)))
        last = number == effect.tries
        if intent is None:
            if last and effect.state in ENDED:
                yield f"{effect.words} has no intent on record"
            # an intent that was lost on its way to a dying audit log is answered for all the same
            lost = outcome is not None and (outcome.outcome, outcome.reason) == ("FAILED", "AUDIT_UNAVAILABLE")
            if outcome is not None and not lost:
                yield f"{effect.words} has an outcome of try {number} without an intent"
            continue
        if last and effect.state in ENDED and effect.ended and intent.time > effect.ended:
            yield f"{effect.words} ended before its intent was on record"
        if outcome is None:
            continue  # said once, by _pairs
        expected = effect.state if last and effect.state in ENDED else "FAILED"
        if outcome.outcome != expected:
            yield f"{effect.words}: audit says {outcome.outcome} of try {number}, expected {expected}"
        if outcome.sequence <= intent.sequence:
            yield f"{effect.words}: the outcome of try {number} was recorded before its intent"


def _pairs(history: History) -> Iterator[str]:
    """Match every intent with its outcome, whoever wrote it: effects, approvals, releases, publishes."""
    tries = {
        str(intent_id(effect.key, number)): str(outcome_id(effect.key, number))
        for effect in history.effects
        for number in range(1, effect.tries + 1)
    }
    outcomes = {one.event_id for one in history.events if one.phase == "OUTCOME"}
    owed, paid = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for event in history.events:
        if event.phase == "OUTCOME" and event.outcome not in ENDED:
            yield f"the outcome {event.event_id} of {event.action} is {event.outcome or 'nothing'}"
        if event.action.startswith(TOOLS):
            if event.phase == "INTENT" and event.event_id not in tries:
                yield f"an intent of {event.action} {event.request_id} without a row of its effect"
            elif event.phase == "INTENT" and tries[event.event_id] not in outcomes:
                yield f"the intent of {event.action} {event.request_id} has no outcome"
        elif event.phase in {"INTENT", "OUTCOME"}:
            (owed if event.phase == "INTENT" else paid)[event.action, event.request_id] += 1
    for (action, request_id), count in sorted(owed.items()):
        # a writer that died before its intent was sent leaves an outcome alone: more of them are no debt
        if paid[action, request_id] < count:
            yield f"{action} {request_id}: {count} intents, {paid[action, request_id]} outcomes"


def at_most_once(history: History) -> Iterator[str]:
    """I3: one row and one content per (method, request id), one start for each restart, one notice for each id."""
    for row in repeated(f"{one.method} {one.request_id}" for one in history.effects):
        yield f"{row} has more than one row"
    contents = defaultdict[tuple[str, str], set[str]](set)
    succeeded = Counter[tuple[str, str]]()
    for event in history.events:
        if event.action.startswith(TOOLS):
            contents[event.action, event.request_id].add(event.digest)
            succeeded[event.action, event.request_id] += (event.phase, event.outcome) == ("OUTCOME", "SUCCEEDED")
    for (action, request_id), digests in sorted(contents.items()):
        if len(digests) > 1:
            yield f"{action} {request_id} was recorded with {len(digests)} different contents"
    for (action, request_id), count in sorted(succeeded.items()):
        if count > 1:
            yield f"{action} {request_id} succeeded {count} times"
    yield from _counted(history)
    yield from (f"notice {one} was sent more than once" for one in repeated(history.notices))


def _counted(history: History) -> Iterator[str]:
    """Compare what the process managers wrote down with what the gateway says, start by start."""
    states = defaultdict[str, Counter[str]](Counter)
    for effect in history.effects:
        if effect.method == RESTART:
            states[effect.target_id][effect.state] += 1
    started = Counter(one.target_id for one in history.starts)
    for target in sorted({*states, *started}):
        count, sure, unsure = started[target], states[target]["SUCCEEDED"], states[target]["UNKNOWN"]
        if not sure <= count <= sure + unsure:
            yield f"{target} was started {count} times; {sure} effects SUCCEEDED and {unsure} are UNKNOWN"
    processes = Counter((one.target_id, one.process_id) for one in history.starts)
    named = Counter((one.target_id, one.process_id) for one in history.effects if one.process_id)
    for (target, process_id), count in sorted(named.items()):
        if count > processes[target, process_id]:
            found = processes[target, process_id]
            yield f"{count} effects on {target} say they started process {process_id}, which was started {found} times"


def nothing_stale(history: History) -> Iterator[str]:
    """I4: fences only grow, effects on a target never overlap, none starts under a policy that was replaced."""
    highest: dict[tuple[str, str], int] = {}
    for look in history.fences:
        before = highest.get((look.place, look.target_id), 0)
        if look.fence < before:
            yield f"the fence of {look.target_id} in {look.place} went back from {before} to {look.fence}"
        highest[look.place, look.target_id] = max(before, look.fence)
    effects = defaultdict[str, list[Effect]](list)
    for effect in history.effects:
        if effect.acted and effect.target_id:
            effects[effect.target_id].append(effect)
    for of_target in effects.values():
        inorder = sorted(of_target, key=lambda one: one.begun)
        for before_it, after_it in pairwise(inorder):
            if after_it.fence < before_it.fence:
                yield f"{after_it.words} began with fence {after_it.fence} after {before_it.fence} had acted"
            if before_it.ended is None or before_it.ended > after_it.begun + TRANSACTION:
                yield f"{after_it.words} began before {before_it.words} had ended"
    yield from _old_policies(history)


def _old_policies(history: History) -> Iterator[str]:
    """Find effects that began after the policy they were granted under had been replaced."""
    replaced = {one.version - 1: one.time for one in history.policies}
    for effect in history.effects:
        end = replaced.get(effect.policy_set_version)
        if effect.acted and end and effect.begun > end + WINDOW:
            yield f"{effect.words} began {effect.begun - end} after policy set {effect.policy_set_version} was replaced"


def nothing_without_people(history: History) -> Iterator[str]:
    """I5: an effect that needs a person rests on an approval of exactly its bytes, given by others than who asked."""
    approvals = {one.approval_id: one for one in history.approvals}
    used = Counter(one.approval_id for one in history.effects if one.acted and one.approval_id)
    for effect in (one for one in history.effects if one.acted):
        if not effect.approval_id:
            if effect.environment in history.person_environments:
                yield f"{effect.words} needed a person and has no approval"
            continue
        approval = approvals.get(effect.approval_id)
        if approval is None:
            yield f"{effect.words} rests on approval {effect.approval_id}, which does not exist"
            continue
        if (approval.method, approval.request_id, approval.digest) != (effect.method, effect.request_id, effect.digest):
            yield f"{effect.words} rests on approval {approval.approval_id} of something else"
        if approval.state != "APPROVED":
            yield f"{effect.words} rests on approval {approval.approval_id}, which is {approval.state}"
        if len(set(approval.approvers) - approval.requesters) < max(1, approval.needed):
            yield f"{effect.words} was approved by {sorted(set(approval.approvers))}, {approval.needed} others needed"
    for approval in history.approvals:
        if approval.state == "APPROVED" and approval.rejecters:
            yield f"approval {approval.approval_id} is APPROVED although {approval.rejecters[0]} rejected it"
    yield from (f"approval {one} was used by {count} effects" for one, count in used.items() if count > 1)


def nothing_after_a_kill(history: History) -> Iterator[str]:
    """I6: in the scope of a kill nothing starts later than 2 s after it, nor ever under what was granted before it."""
    ordered = sorted(history.kills, key=lambda one: one.engaged)
    for before, after in pairwise(ordered):
        if after.epoch <= before.epoch:
            yield f"kill {after.kill_id} has epoch {after.epoch}, after {before.epoch}"
    for kill in history.kills:
        end = kill.released or datetime.max.replace(tzinfo=kill.engaged.tzinfo)
        covered = {one.target_id: one for one in history.effects if one.acted and _covers(kill, one)}
        for effect in (one for one in history.effects if one.acted and _covers(kill, one)):
            late = kill.engaged + WINDOW < effect.begun
            if late and effect.begun < end:
                yield f"{effect.words} began {effect.begun - kill.engaged} after kill {kill.kill_id}"
            elif late and effect.kill_epoch < kill.epoch:
                yield f"{effect.words} began under what kill {kill.kill_id} had made void"
        if kill.scope.WhichOneof("scope") in {"everything", "environment", "target_id"}:
            for start in history.starts:
                if start.target_id in covered and kill.engaged + WINDOW + ACT < start.time < end:
                    yield f"{start.target_id} was started {start.time - kill.engaged} after kill {kill.kill_id}"


def _covers(kill: Kill, effect: Effect) -> bool:
    """Say whether an effect is in the scope of a kill."""
    about = kills.facts(
        environment=effect.environment,
        target_id=effect.target_id,
        tool=effect.method,
        playbook_id=effect.playbook_id,
        execution_id=effect.execution_id,
    )
    return kills.covers(kill.scope, about)
