"""What a run is, what it may still do, and which step comes next: pure functions over its rows."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

# Runs of one path, the first included.
DEPTH_MAX: Final = 4
# Replies in a row with nothing usable: the first and two more tries.
USELESS_MAX: Final = 3
DETAIL_MAX: Final = 1024


class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    AWAITING_CHILD = "AWAITING_CHILD"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    OBSERVED = "OBSERVED"


class StepState(StrEnum):
    """Where a step stands."""

    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"
    OBSERVED = "OBSERVED"
    CANCELLED = "CANCELLED"


class Kind(StrEnum):
    """What a step is."""

    MODEL = "MODEL"
    READ = "READ"
    ACTION = "ACTION"
    DELEGATE = "DELEGATE"
    REPORT = "REPORT"
    PROOF = "PROOF"


OPEN_RUN: Final = frozenset({RunState.PENDING, RunState.RUNNING, RunState.AWAITING_APPROVAL, RunState.AWAITING_CHILD})
OPEN_STEP: Final = frozenset({StepState.RUNNING, StepState.AWAITING_APPROVAL})


@dataclass(frozen=True, slots=True)
class Step:
    """One step as recorded; `call_id` names the call of the model that it answers."""

    number: int
    kind: Kind
    state: StepState = StepState.RUNNING
    tool: str = ""
    call_id: str = ""
    target_id: str = ""
    request: bytes | None = None
    arguments_json: str = ""
    result_digest: str = ""
    result: str = ""
    answered: bool = False
    dropped: bool = False
    sent: bool = False
    tries: int = 0
    fence: int = 0
    reason: str = ""
    detail: str = ""
    verdict: str = ""
    approval_id: str = ""
    child_run_id: str = ""
    reply: bytes | None = None
    prompt_digest: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False
    cost_micros: int = 0
    latency_seconds: float = 0.0
    recorded: bool = False
    start_time: datetime | None = None
    end_time: datetime | None = None

    @property
    def open(self) -> bool:
        """Say whether it has no end yet."""
        return self.state in OPEN_STEP


@dataclass(frozen=True, slots=True)
class Run:
    """One run as recorded, with its steps by number; times in seconds are by the database's clock, when read.

    `template` is a serialised TemplateVersion, `incident` a serialised Incident, both as they were at the start.
    """

    run_id: str
    template_id: str
    template_version: int
    template: bytes
    state: RunState
    incident_id: str
    incident: bytes
    root_run_id: str
    depth: int
    levels: int
    goal: str
    target_ids: tuple[str, ...]
    requester: str
    marks: str
    token_limit: int
    cost_limit_micros: int
    time_limit: float
    decision_id: str = ""
    parent_run_id: str = ""
    identity_token: bytes = b""
    execution_id: str = ""
    execution_trace: str = ""
    traceparent: str = ""
    token_count: int = 0
    cost_micros: int = 0
    recorded: bool = False
    did: bool = False
    registered: bool = False
    report: bytes | None = None
    health_proved: bool = False
    reason: str = ""
    detail: str = ""
    approval_id: str = ""
    kill_id: str = ""
    cancel_requested: bool = False
    cancel_reason: str = ""
    closed: bool = False
    begun: bool = False
    # Spent working, and waited for people; the second is not counted against the limit.
    worked: float = 0.0
    waited: float = 0.0
    age: float = 0.0
    claim_left: float = 0.0
    create_time: datetime | None = None
    end_time: datetime | None = None
    step_count: int = 0
    steps: tuple[Step, ...] = field(default=())

    @property
    def open(self) -> bool:
        """Say whether it goes on."""
        return self.state in OPEN_RUN

    @property
    def stopping(self) -> bool:
        """Say whether somebody asked it to stop."""
        return self.cancel_requested or bool(self.kill_id)

    @property
    def next_number(self) -> int:
        """Return the number of the step that would begin now."""
        return self.steps[-1].number + 1 if self.steps else 1

    def with_step(self, step: Step) -> tuple[Step, ...]:
        """Return the steps with one added or replaced."""
        return (*(one for one in self.steps if one.number != step.number), step)


def derived_id(run_id: str, what: str, number: int) -> str:
    """Return the id under which others know a piece of a run; the same for every try, whoever tries."""
    return str(uuid.uuid5(uuid.UUID(run_id), f"{what}/{number}"))


def sentence(text: str, limit: int = DETAIL_MAX) -> str:
    """Return `text` within a bound of characters, showing that something was cut off."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def counted(steps: Sequence[Step]) -> int:
    """Return how many steps count against the limit: all but the reads that opsmesh makes itself."""
    return sum(1 for one in steps if one.kind is not Kind.PROOF)


def limit_reached(run: Run, max_steps: int) -> tuple[str, str] | None:
    """Return which limit stands in the way of another step, as (what, limit); None when none does."""
    if counted(run.steps) >= max_steps:
        return "steps", str(max_steps)
    if run.worked >= run.time_limit:
        return "time", f"{run.time_limit:.0f} s"
    if run.token_count >= run.token_limit:
        return "tokens", str(run.token_limit)
    if run.cost_limit_micros and run.cost_micros >= run.cost_limit_micros:
        return "cost in millionths", str(run.cost_limit_micros)
    return None


def levels_below(max_depth: int, parent: Run | None) -> int:
    """Return how many levels of runs may be below a new run: no path is longer than any of its runs allows."""
    if parent is None:
        return min(max_depth, DEPTH_MAX - 1)
    return max(0, min(max_depth, parent.levels - 1, DEPTH_MAX - parent.depth - 1))


def may_delegate(run: Run, children: Sequence[str]) -> bool:
    """Say whether a run may start another one."""
    return bool(children) and run.levels > 0 and run.depth < DEPTH_MAX


def last_reply(steps: Sequence[Step]) -> Step | None:
    """Return the newest question to the model, answered or not."""
    return next((one for one in reversed(steps) if one.kind is Kind.MODEL), None)


def answers_of(reply: Step, steps: Sequence[Step]) -> Mapping[str, Step]:
    """Return the steps that answer the calls of a reply, by call id."""
    return {one.call_id: one for one in steps if one.number > reply.number and one.call_id}


def useless_replies(steps: Sequence[Step]) -> int:
    """Return how many of the newest replies, without a gap, had a call that was not understood, or none at all."""
    count = 0
    replies = [one for one in steps if one.kind is Kind.MODEL and one.state is StepState.SUCCEEDED]
    for place in range(len(replies) - 1, -1, -1):
        until = replies[place + 1].number if place + 1 < len(replies) else None
        calls = [
            one
            for one in steps
            if one.call_id and one.number > replies[place].number and (until is None or one.number < until)
        ]
        if calls and not any(one.dropped for one in calls):
            break
        count += 1
    return count
