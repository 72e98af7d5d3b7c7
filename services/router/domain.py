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

    `target_ids` are those that the inventory knows.
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
    `starts` says how often each playbook was started within the last hour, for it or for others of its correlation key.
    """

    started: frozenset[str] = frozenset()
    newest: int = 0
    failed: Failed | None = None
    killed: bool = False
    escalated: str = ""
    starts: Mapping[str, int] = field(default_factory=dict)


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
    (ModelOutcome, AskHuman).
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


def decide(snapshot: Snapshot, rules: Rules, history: History, now: datetime, wish: Verdict | None = None) -> Verdict:
    """Decide one revision: over, unreadable, wished in a chat, known to a rule, or not known."""
    if beforehand := _beforehand(snapshot, rules.version, history):
        return beforehand
    if snapshot.facts.get("source") == CHAT and not history.newest:
        # What a person confirmed, and nothing else; without it nobody wished anything.
        return wish or _await("no confirmed wish of a conversation stands behind it", rules.version, for_people=True)
    rule = rules.first(snapshot.facts, history.started)
    if rule:
        return _capped(_apply(rule, snapshot, rules.version, now), rule, history)
    return _unknown(rules.version, history)


def _unknown(version: int, history: History) -> Verdict:
    """Return what becomes of what no rule knows: a model, a run for what failed, or people."""
    reason = "no rule matches" if version else "no rule set is published; publish one: opsmesh rules publish"
    if history.started:
        reason += f"; started before and not again: {', '.join(sorted(history.started))}"
    if history.killed:
        reason = f"a kill ended what was done about it: whether it is repeated is for people to say; {reason}"
        return _await(reason, version, for_people=True)
    if history.escalated:
        reason = f"run {history.escalated} leaves it to a person: opsmesh agents show {history.escalated}"
        return Verdict(State.DECIDED, reason, Outcome.ASK_HUMAN, rule_set_version=version)
    if failed := history.failed:
        reason = (
            f"execution {failed.execution_id} of {failed.playbook_id or 'a playbook'} ended {failed.result}; {reason}"
        )
        return _await(reason, version, cause=failed.execution_id)
    return _await(reason, version)


def _beforehand(snapshot: Snapshot, version: int, history: History) -> Verdict | None:
    """Return what is decided without looking at a rule, if anything."""
    if history.newest > snapshot.revision:
        reason = f"revision {history.newest} was decided before this one"
        return Verdict(State.CLOSED, reason, result=Result.SUPERSEDED, rule_set_version=version)
    if snapshot.resolved:
        return _respond("the incident is resolved", version)
    # Before `firing`: what cannot be read must not pass for over, either.
    if not snapshot.readable:
        return _await("the status of its newest signal could not be read: a person must look", version, for_people=True)
    if not snapshot.firing:
        return _respond("the sender resolved every alert", version)
    return None


def _respond(reason: str, version: int) -> Verdict:
    return Verdict(State.CLOSED, reason, Outcome.RESPOND, Result.RESPONDED, rule_set_version=version)


def _await(reason: str, version: int, *, for_people: bool = False, cause: str = "") -> Verdict:
    return Verdict(
        State.AWAITING_MODEL,
        shorten(reason),
        rule_set_version=version,
        for_people=for_people,
        order=Order(cause=cause) if cause else NO_ORDER,
    )


def _apply(rule: Rule, snapshot: Snapshot, version: int, now: datetime) -> Verdict:
    """Return what a matching rule says about an incident of this age."""
    age = now - snapshot.open_time if snapshot.open_time else timedelta()
    if age > rule.max_age:
        seconds = int(age.total_seconds())
        reason = f"rule {rule.rule_id} matches, but {seconds} s are more than its {rule.max_age.total_seconds():g} s"
        return Verdict(State.CLOSED, reason, result=Result.STALE, rule_id=rule.rule_id, rule_set_version=version)
    if rule.outcome is Outcome.RESPOND:
        state, result = State.CLOSED, Result.RESPONDED
    else:
        state, result = State.DECIDED, Result.UNSPECIFIED
    return Verdict(
        state=state,
        reason=shorten(rule.text or f"rule {rule.rule_id} matches"),
        outcome=rule.outcome,
        result=result,
        rule_id=rule.rule_id,
        rule_set_version=version,
        playbook_id=rule.playbook_id,
        max_age=rule.max_age,
    )


def _capped(made: Verdict, rule: Rule, history: History) -> Verdict:
    """Return what a rule says, but a question to people once its playbook was started too often for this."""
    times = history.starts.get(rule.playbook_id, 0)
    if made.state is State.CLOSED or made.outcome is not Outcome.TRIGGER_AUTOMATION or times < rule.max_per_hour:
        return made
    reason = (
        f"rule {rule.rule_id} matches, but {rule.playbook_id} was started {times} times within an hour for the same "
        f"trouble, and its max_per_hour is {rule.max_per_hour}: it does not help, a person must look"
    )
    return Verdict(
        State.DECIDED,
        shorten(reason),
        Outcome.ASK_HUMAN,
        rule_id=rule.rule_id,
        rule_set_version=made.rule_set_version,
        max_age=rule.max_age,
    )


def first_stage(made: Verdict) -> Stage:
    """Return the lane that a decision, just made, needs first."""
    if made.state is State.AWAITING_MODEL:
        return Stage.NOTIFY if made.for_people else Stage.MODEL
    if made.state is State.CLOSED:
        return Stage.NONE
    starts = {Outcome.TRIGGER_AUTOMATION: Stage.START, Outcome.DELEGATE_AGENT: Stage.START_RUN}
    return starts.get(made.outcome, Stage.NOTIFY)


def shorten(text: str) -> str:
    """Return text that fits a reason and a text column (which takes no NUL)."""
    return text.replace("\0", "\ufffd")[:REASON_MAX]
