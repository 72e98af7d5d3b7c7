"""What a decision is and how one is made: pure, standard library only."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

MAX_AGE: Final = timedelta(hours=1)
MAX_PER_HOUR: Final = 3
REASON_MAX: Final = 1024
CHAT: Final = "chat"


class State(StrEnum):
    """Where a decision stands; the words of the IDL without their prefix."""

    AWAITING_MODEL = "AWAITING_MODEL"
    DECIDED = "DECIDED"
    CLOSED = "CLOSED"


class Outcome(StrEnum):
    """What is done; the words of the IDL without their prefix."""

    UNSPECIFIED = "UNSPECIFIED"
    DELEGATE_AGENT = "DELEGATE_AGENT"
    TRIGGER_AUTOMATION = "TRIGGER_AUTOMATION"
    ASK_HUMAN = "ASK_HUMAN"
    RESPOND = "RESPOND"


class Result(StrEnum):
    """How a decision ended; the words of the IDL without their prefix."""

    UNSPECIFIED = "UNSPECIFIED"
    REPAIRED = "REPAIRED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    OBSERVED = "OBSERVED"
    RESPONDED = "RESPONDED"
    SUPERSEDED = "SUPERSEDED"
    STALE = "STALE"
    ANSWERED = "ANSWERED"
    REPORTED = "REPORTED"
    ESCALATED = "ESCALATED"


class Brake(StrEnum):
    """What kept automation back; the words of the IDL without their prefix."""

    UNSPECIFIED = "UNSPECIFIED"
    CAP = "CAP"
    FLAPPING = "FLAPPING"


class Stage(StrEnum):
    """Which lane has work on a decision."""

    NONE = "NONE"
    START = "START"
    FOLLOW = "FOLLOW"
    MODEL = "MODEL"
    NOTIFY = "NOTIFY"
    HELD = "HELD"
    PARKED = "PARKED"
    START_RUN = "START_RUN"
    FOLLOW_RUN = "FOLLOW_RUN"


class Kind(StrEnum):
    """Kinds of conditions; the names of the IDL's fields."""

    MATCHES = "matches"
    HAS_PREFIX = "has_prefix"
    EXISTS = "exists"
    NOT_EQUALS = "not_equals"
    ONE_OF = "one_of"


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of one field. `values` holds the pattern, prefix, value or values; `wanted` is for EXISTS."""

    field: str
    test: Kind
    values: tuple[str, ...] = ()
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `text` is the question or the words of a response."""

    rule_id: str
    priority: int
    outcome: Outcome
    equals: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    playbook_id: str = ""
    text: str = ""
    max_age: timedelta = MAX_AGE
    max_per_hour: int = MAX_PER_HOUR

    @property
    def order(self) -> tuple[int, str]:
        """Return its place in the total order: the lowest goes first."""
        return (self.priority, self.rule_id)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the router needs to know of one revision of an incident; `facts` maps field names of rules to values.

    `target_ids` are those that the inventory knows. `why_over`: why it does not fire, where its sender told no resolve.
    """

    incident_id: uuid.UUID
    revision: int
    facts: Mapping[str, str]
    resolved: bool = False
    firing: bool = True
    readable: bool = True
    open_time: datetime | None = None
    target_ids: tuple[str, ...] = ()
    correlation_key: str = ""
    flapping: bool = False
    why_over: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The execution of the newest decision that ended badly, and no run was opened for yet."""

    execution_id: str
    playbook_id: str
    result: Result


@dataclass(frozen=True, slots=True)
class History:
    """Earlier decisions of an incident, and the newest revision decided.

    `started` are rules that started a playbook, or asked a person and got the answer. `killed` says that people stopped
    what the newest of them had started, `escalated` is the run that it started and that handed over to a person.
    `starts` says how often each playbook, or template of an agent, was started within the last hour, for it or for
    others of its correlation key. `flapping`: people were told of it since it began to flap.
    """

    started: frozenset[str] = frozenset()
    newest: int = 0
    failed: Failed | None = None
    killed: bool = False
    escalated: str = ""
    starts: Mapping[str, int] = field(default_factory=dict)
    flapping: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What an execution or a run is started with, beside its name; `token` is a serialised SignedIdentity.

    `cause` is the failed execution whose trace a run gets: at most one run for each.
    """

    target_ids: tuple[str, ...] = ()
    goal: str = ""
    cause: str = ""
    token: bytes = b""
    conversation_id: str = ""


NO_ORDER: Final = Order()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, before it has a row.

    With `for_people`, what nobody knows is not put to a model. `model_outcome` and `question` are serialised messages
    (ModelOutcome, AskHuman). `brake` says what kept a start back; with `quiet` people are not told, for they were.
    """

    state: State
    reason: str
    outcome: Outcome = Outcome.UNSPECIFIED
    result: Result = Result.UNSPECIFIED
    rule_id: str = ""
    rule_set_version: int = 0
    playbook_id: str = ""
    max_age: timedelta = MAX_AGE
    template_id: str = ""
    order: Order = NO_ORDER
    for_people: bool = False
    model_outcome: bytes = b""
    question: bytes = b""
    brake: Brake = Brake.UNSPECIFIED
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision as it is stored; `age` is since it was asked for, by the database's clock, when read.

    While `held`, its start waits for the release of kill `held_by` (empty: for a lease); `held_time` stays after it.
    `tried` says that such a start was asked for, and not refused as far as is known. While `parked`, it waits for a
    model that can be asked. `killed` says that a kill ended what it had started.
    """

    decision_id: uuid.UUID
    incident_id: uuid.UUID
    revision: int
    state: State
    outcome: Outcome
    result: Result
    rule_id: str
    rule_set_version: int
    playbook_id: str
    reason: str
    execution_id: str
    notice_execution_id: str
    awaiting_approval: bool
    create_time: datetime
    close_time: datetime | None
    age: timedelta
    held: bool = False
    held_by: str = ""
    held_words: str = ""
    held_time: datetime | None = None
    max_age: timedelta = MAX_AGE
    tried: bool = False
    run_id: str = ""
    template_id: str = ""
    order: Order = NO_ORDER
    model_call_count: int = 0
    recorded: bool = False
    model_outcome: bytes = b""
    question: bytes = b""
    answer: bytes = b""
    answerer: str = ""
    parked: bool = False
    parked_words: str = ""
    killed: bool = False
    correlation_key: str = ""
    brake: Brake = Brake.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class RuleSetRow:
    """A version; `content` is the serialised opsmesh.config.v1.RuleSet, None where it was not asked for."""

    version: int
    active: bool
    digest: str
    rule_count: int
    publisher: str
    publish_time: datetime | None
    content: bytes | None = None


class Rules(Protocol):
    """The active rules, as `rules.Index` implements them."""

    @property
    def version(self) -> int:
        """The version of the rule set; 0 when none is published."""

    def first(self, facts: Mapping[str, str], skipped: frozenset[str] = frozenset()) -> Rule | None:
        """Return the first rule in order that matches and is not skipped."""


class Wishes(Protocol):
    """What people confirmed in conversations."""

    async def of(self, snapshot: Snapshot) -> Verdict | None:
        """Return exactly what was confirmed for an incident of source `chat`; None when nobody knows of a wish."""


class NoWishes:
    """Wishes, where nobody talks."""

    async def of(self, snapshot: Snapshot) -> Verdict | None:
        """See Wishes."""
        del snapshot
        return None


def decision_id(incident_id: uuid.UUID, revision: int) -> uuid.UUID:
    """Return the id of the one decision on this revision."""
    return uuid.uuid5(incident_id, f"decision/{revision}")


def first_stage(made: Verdict) -> Stage:
    """Return the lane that a decision, just made, needs first."""
    if made.state is State.AWAITING_MODEL:
        return Stage.NOTIFY if made.for_people else Stage.MODEL
    if made.state is State.CLOSED or made.quiet:
        return Stage.NONE
    starts = {Outcome.TRIGGER_AUTOMATION: Stage.START, Outcome.DELEGATE_AGENT: Stage.START_RUN}
    return starts.get(made.outcome, Stage.NOTIFY)


def shorten(text: str) -> str:
    """Return text that fits a reason and a text column (which takes no NUL)."""
    return text.replace("\0", "\ufffd")[:REASON_MAX]
