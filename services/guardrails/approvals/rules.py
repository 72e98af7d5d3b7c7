"""What an approval is worth, pure: who must say yes, whether enough have, what differs. Times are the database's."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final
from uuid import UUID

from services.guardrails.domain import Need, Risk

# People a CRITICAL action needs, whatever policy says.
CRITICAL_PEOPLE: Final = 2
# Answers an approval can carry; the last place is kept for a no.
VOTES_MAX: Final = 16
CHANGES_MAX: Final = 64
VALUE_MAX: Final = 1024
WORDS_MAX: Final = 512
UNANSWERED: Final = "nobody answered in time"
UNEXECUTED: Final = "approved, but not executed in time"


class State(Enum):
    """Where an approval stands."""

    PENDING = "PENDING"
    EXPIRED = "EXPIRED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    AMENDED = "AMENDED"
    VOID = "VOID"


class Answer(Enum):
    """What a person said."""

    APPROVE = "APPROVE"
    REJECT = "REJECT"


@dataclass(frozen=True, slots=True)
class Vote:
    """What one person answered, in which groups the person was then."""

    person: str
    answer: Answer
    groups: frozenset[str]
    comment: str
    vote_time: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs; sensitive values are masked before they come here."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Terms:
    """Who must approve: so many different people, and each group through another of them."""

    people: int
    groups: frozenset[str] = frozenset()

    def met(self, votes: Iterable[Vote]) -> bool:
        """Say whether the answers so far are enough."""
        yes = {vote.person: vote.groups for vote in votes if vote.answer is Answer.APPROVE}
        return len(yes) >= self.people and covered(self.groups, yes)


@dataclass(frozen=True, slots=True)
class Approval:
    """A stored approval as of now; `request`, `judgement` and `context` are serialised messages."""

    approval_id: UUID
    state: State
    method: str
    request_id: UUID
    digest: bytes
    requester: str
    amenders: tuple[str, ...]
    request: bytes
    judgement: bytes
    context: bytes
    create_time: datetime
    expire_time: datetime
    update_time: datetime
    terms: Terms
    votes: tuple[Vote, ...]
    execute_seconds: float
    execute_before_time: datetime | None
    execute_time: datetime | None
    close_reason: str
    close_detail: str
    changes: tuple[Change, ...]
    amends_approval_id: UUID | None
    superseded_by: UUID | None
    renewal: int
    kill_epoch: int
    environment: str
    target_id: str
    playbook_id: str
    execution_id: str
    run_id: str

    @property
    def open(self) -> bool:
        """Say whether it can still be answered or executed."""
        return self.state in {State.PENDING, State.APPROVED}

    @property
    def yes(self) -> tuple[str, ...]:
        """Return who approved, in the order of their answers."""
        return tuple(vote.person for vote in self.votes if vote.answer is Answer.APPROVE)

    @property
    def no(self) -> Vote | None:
        """Return the answer that rejected it."""
        return next((vote for vote in self.votes if vote.answer is Answer.REJECT), None)

    def names(self, digest: str) -> bool:
        """Say whether a person who names this digest, or its beginning, has seen these bytes."""
        return self.digest.hex().startswith(digest)


def terms(need: Need, risk: Risk) -> Terms:
    """Return who must approve: what policy says, by risk where it says nothing, and never too few."""
    least = CRITICAL_PEOPLE if risk is Risk.CRITICAL else 1
    return Terms(max(need.approvers, least, len(need.groups)), need.groups)


def covered(groups: frozenset[str], people: Mapping[str, frozenset[str]]) -> bool:
    """Say whether every group can be given a person of its own: a bipartite matching by augmenting paths."""
    taken: dict[str, str] = {}
    return all(_place(group, people, taken, set()) for group in sorted(groups))


def _place(group: str, people: Mapping[str, frozenset[str]], taken: dict[str, str], tried: set[str]) -> bool:
    """Give a group a person, moving other groups to others where that makes room."""
    for person, groups in people.items():
        if group in groups and person not in tried:
            tried.add(person)
            if person not in taken or _place(taken[person], people, taken, tried):
                taken[person] = group
                return True
    return False


def differences(
    before: Mapping[str, str], after: Mapping[str, str], show: Callable[[str, str], str] = lambda _, text: text
) -> tuple[Change, ...]:
    """Return the fields that differ, by path; an absent one counts as empty; `show` says how a value is told."""

    def told_of(values: Mapping[str, str], field: str) -> str:
        return shortened(show(field, values[field]), VALUE_MAX) if field in values else ""

    fields = sorted(field for field in before.keys() | after.keys() if before.get(field) != after.get(field))
    return tuple(Change(field[:200], told_of(before, field), told_of(after, field)) for field in fields[:CHANGES_MAX])


def flat(value: object, path: str = "") -> dict[str, str]:
    """Return the leaves of a rendered message by path, such as `labels.app` or `steps[0].name`."""
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for key, child in value.items():
            found |= flat(child, f"{path}.{key}" if path else str(key))
        return found
    if isinstance(value, list):
        found = {}
        for index, child in enumerate(value):
            found |= flat(child, f"{path}[{index}]")
        return found
    return {path: value if isinstance(value, str) else json.dumps(value)}


def told(changes: Sequence[Change]) -> str:
    """Return a diff in words, such as `process_id 41 -> 42`."""
    return shortened("; ".join(f"{one.field} {one.before or '(none)'} -> {one.after or '(none)'}" for one in changes))


def shortened(text: str, limit: int = WORDS_MAX) -> str:
    """Return a text that fits."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
