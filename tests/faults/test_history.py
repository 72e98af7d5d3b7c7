"""The history checker itself: a whole history passes, and each way to break one is found."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from opsmesh.guardrails.v1.kill_switch_service_pb2 import KillScope
from services.gateway.domain import Key, intent_id, outcome_id
from tests.faults.history import check
from tests.faults.records import (
    Approval,
    Decision,
    Effect,
    Event,
    Fence,
    History,
    Incident,
    Kill,
    Published,
    Signal,
    Start,
)

RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"
PUBLISH = "opsmesh.guardrails.v1.PolicyService/PublishPolicySet"
ZERO = datetime(2026, 11, 21, 12, tzinfo=UTC)
DEMO, PRODUCTION = "svc:demo/till-1", "svc:production/checkout"
ASKER, PERSON = "service/automation", "human/approver"


def at(seconds: float) -> datetime:
    """Return a moment of the history."""
    return ZERO + timedelta(seconds=seconds)


def identity(number: int) -> str:
    """Return an id that names NUMBER."""
    return str(uuid.UUID(int=number))


def effect(number: int, target: str, begun: float, **changes: Any) -> Effect:
    """Return a restart that succeeded."""
    made = Effect(
        *(RESTART, identity(number), "SUCCEEDED", 1, "aa", ASKER, target, target[4:].partition("/")[0], number),
        *(at(begun), at(begun + 1)),
        process_id=100 + number,
    )
    return replace(made, **changes)


def trail(one: Effect, sequence: int, outcome: str = "SUCCEEDED", number: int = 1) -> list[Event]:
    """Return intent and outcome of a try."""
    key = Key(one.method, uuid.UUID(one.request_id))
    return [
        Event(sequence, str(intent_id(key, number)), "INTENT", RESTART, one.request_id, "", one.digest, one.begun),
        Event(
            *(sequence + 1, str(outcome_id(key, number)), "OUTCOME", RESTART, one.request_id, outcome, one.digest),
            one.begun + timedelta(seconds=1),
        ),
    ]


FIRST, SECOND, THIRD = effect(1, DEMO, 1), effect(2, DEMO, 5), effect(3, PRODUCTION, 7, approval_id=identity(70))
TOLD = effect(4, "", 9, method="opsmesh.tools.notify.v1.NotifyToolService/SendNotice", guarded=False, process_id=0)
SCOPE = KillScope(environment="demo")


def whole() -> History:
    """Return a history in which everything holds."""
    return History(
        accepted=[identity(10), identity(11)],
        signals=[
            Signal(identity(10), "OPENED", identity(20)),
            Signal(identity(11), "DUPLICATE", identity(20)),
            Signal(identity(12), "OPENED", identity(21)),
        ],
        incidents=[Incident(identity(20), 2), Incident(identity(21), 1)],
        decisions=[Decision(identity(20), 1), Decision(identity(20), 2), Decision(identity(21), 1)],
        effects=[FIRST, SECOND, THIRD, TOLD],
        events=[
            *(*trail(FIRST, 1), *trail(SECOND, 3), *trail(THIRD, 5)),
            Event(7, identity(90), "INTENT", PUBLISH, identity(80), "", "bb", at(20)),
            Event(8, identity(91), "OUTCOME", PUBLISH, identity(80), "FAILED", "bb", at(21)),
        ],
        starts=[Start(DEMO, 101, at(2)), Start(DEMO, 102, at(6)), Start(PRODUCTION, 103, at(8))],
        approvals=[
            Approval(identity(70), "APPROVED", RESTART, identity(3), "aa", frozenset({ASKER}), (PERSON,), (), 1),
            Approval(identity(71), "REJECTED", RESTART, identity(5), "cc", frozenset({ASKER}), (), (PERSON,), 1),
        ],
        kills=[Kill(identity(60), 1, SCOPE, at(5), at(11)), Kill(identity(61), 2, SCOPE, at(30), None)],
        fences=[Fence("guardrails", DEMO, 1), Fence("gateway", DEMO, 1), Fence("guardrails", DEMO, 2)],
        policies=[Published(1, at(0)), Published(2, at(40))],
        notices=[identity(4)],
        person_environments=frozenset({"production"}),
    )


def changed(history: History, name: str, items: Sequence[Any]) -> History:
    """Return a history with another list."""
    values: dict[str, Any] = {name: items}
    return replace(history, **values)


def put(name: str, index: int, **changes: Any) -> Callable[[History], History]:
    """Return a way to break a history: one item of a list is another."""

    def breaks(history: History) -> History:
        items = list(getattr(history, name))
        items[index] = replace(items[index], **changes)
        return changed(history, name, items)

    return breaks


def drop(name: str, index: int) -> Callable[[History], History]:
    """Return a way to break a history: one item is missing."""
    return lambda history: changed(history, name, [one for i, one in enumerate(getattr(history, name)) if i != index])


def add(name: str, *more: Any) -> Callable[[History], History]:
    """Return a way to break a history: there is something that should not be."""
    return lambda history: changed(history, name, [*getattr(history, name), *more])


def again(name: str, index: int) -> Callable[[History], History]:
    """Return a way to break a history: something is there twice."""
    return lambda history: add(name, getattr(history, name)[index])(history)


LATE = effect(5, DEMO, 8, fence=9, process_id=0, state="UNKNOWN")
AFTER = effect(6, DEMO, 12, fence=9, process_id=0, state="UNKNOWN")
OLD = effect(7, DEMO, 43, fence=9, process_id=0, state="UNKNOWN")
BROKEN: dict[str, tuple[str, str, Callable[[History], History]]] = {
    "an accepted signal was lost": ("I1", "was accepted and has no row", add("accepted", identity(13))),
    "a signal was recorded twice": ("I1", "more than one row", again("signals", 0)),
    "a signal without a disposition": ("I1", "no disposition", put("signals", 1, disposition="")),
    "a signal of no incident": ("I1", "belongs to no incident", put("signals", 0, incident_id="")),
    "a signal of a lost incident": ("I1", "does not exist", put("signals", 0, incident_id=identity(29))),
    "a revision nobody decided": ("I1", "no decision about revision 2", drop("decisions", 1)),
    "a revision decided twice": ("I1", "2 decisions about revision 1", again("decisions", 0)),
    "a decision about nothing": ("I1", "which has none", add("decisions", Decision(identity(21), 2))),
    "an effect without an intent": ("I2", "no intent on record", drop("events", 0)),
    "an intent without an outcome": ("I2", "has no outcome", drop("events", 1)),
    "a publish without an outcome": ("I2", "1 intents, 0 outcomes", drop("events", 7)),
    "an outcome that says nothing": ("I2", "is nothing", put("events", 7, outcome="")),
    "an outcome that lies": ("I2", "audit says FAILED", put("events", 1, outcome="FAILED")),
    "an outcome before its intent": ("I2", "recorded before its intent", put("events", 1, sequence=0)),
    "an intent after the effect": ("I2", "ended before its intent", put("events", 0, time=at(4))),
    "an outcome of nothing": ("I2", "without an intent", drop("events", 2)),
    "an intent of no effect": ("I2", "without a row of its effect", put("events", 0, event_id=identity(99))),
    "an effect that never ended": ("I2", "never ended", put("effects", 0, state="STARTED", process_id=0)),
    "an event twice": ("I2", "is there twice", again("events", 0)),
    "a start nobody answers for": ("I3", "was started 3 times", add("starts", Start(DEMO, 104, at(7)))),
    "an effect that did not happen": ("I3", "was started 1 times", drop("starts", 1)),
    "one process for two effects": ("I3", "process 101, which was started 1", put("effects", 1, process_id=101)),
    "two rows of a request": ("I3", "more than one row", again("effects", 0)),
    "other content under the same id": ("I3", "2 different contents", put("events", 1, digest="dd")),
    "succeeded twice": ("I3", "succeeded 2 times", add("events", *trail(FIRST, 9, number=2))),
    "a notice twice": ("I3", "was sent more than once", again("notices", 0)),
    "a lock's fence went back": ("I4", "went back from 2 to 1", add("fences", Fence("guardrails", DEMO, 1))),
    "a gateway's fence went back": ("I4", "went back from 1 to 0", add("fences", Fence("gateway", DEMO, 0))),
    "an effect under an old fence": ("I4", "with fence 0 after 1", put("effects", 1, fence=0)),
    "two effects at once": ("I4", "had ended", put("effects", 0, ended=at(6.5))),
    "an effect under an old policy": ("I4", "was replaced", add("effects", OLD)),
    "no approval where one is needed": ("I5", "needed a person", put("effects", 2, approval_id="")),
    "an approval that does not exist": ("I5", "does not exist", put("effects", 2, approval_id=identity(79))),
    "an approval of other bytes": ("I5", "of something else", put("approvals", 0, digest="ee")),
    "an approval that was rejected": ("I5", "which is REJECTED", put("approvals", 0, state="REJECTED")),
    "an approval nobody answered": ("I5", "which is EXPIRED", put("approvals", 0, state="EXPIRED")),
    "approved by who asked": ("I5", "1 others needed", put("approvals", 0, approvers=(ASKER,))),
    "one person where two are needed": (
        "I5",
        "2 others needed",
        put("approvals", 0, needed=2, approvers=(PERSON, PERSON)),
    ),
    "approved although rejected": ("I5", "rejected it", put("approvals", 0, rejecters=(PERSON,))),
    "one approval for two effects": (
        *("I5", "used by 2 effects"),
        add("effects", replace(LATE, approval_id=identity(70))),
    ),
    "an effect after a kill": ("I6", "after kill", add("effects", LATE)),
    "a start after a kill": ("I6", "was started", put("kills", 0, engaged=at(-20))),
    "a grant that outlived a kill": ("I6", "had made void", add("effects", AFTER)),
    "an epoch that did not grow": ("I6", "has epoch 1, after 1", put("kills", 1, epoch=1)),
}


def test_a_whole_history_passes() -> None:
    """Nothing is found in a history in which every invariant holds."""
    assert check(whole()) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_history_is_found(name: str) -> None:
    """The breach is reported under its invariant, in its words."""
    invariant, words, breaks = BROKEN[name]
    found = [one.what for one in check(breaks(whole())) if one.invariant == invariant]
    assert any(words in one for one in found), check(breaks(whole()))


def test_an_empty_history_is_whole() -> None:
    """Nothing happened: nothing is broken."""
    assert check(History()) == []


def test_what_began_just_before_a_kill_may_end_after_it() -> None:
    """An effect within the 2 s, and its start within the time a process manager takes, are no breach."""
    begun = effect(5, DEMO, 6.9, fence=9)
    history = add("starts", Start(DEMO, 105, at(8)))(add("effects", begun)(add("events", *trail(begun, 9))(whole())))
    assert check(history) == []


def test_a_try_that_did_not_start_is_no_effect() -> None:
    """A NOT_STARTED row with outcome FAILED, refused after its intent, breaks nothing; nor one without intent."""
    refused = effect(5, DEMO, 8, state="NOT_STARTED", process_id=0)
    alone = replace(trail(effect(8, DEMO, 8), 11, "FAILED")[1], reason="AUDIT_UNAVAILABLE")
    assert (
        check(add("events", alone)(add("effects", effect(8, DEMO, 8, state="NOT_STARTED", process_id=0))(whole())))
        == []
    )
    lost = effect(6, DEMO, 9, state="NOT_STARTED", process_id=0)
    assert check(add("effects", refused, lost)(add("events", *trail(refused, 9, "FAILED"))(whole()))) == []
