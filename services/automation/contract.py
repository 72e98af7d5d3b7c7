"""What workflow and activities tell each other, as JSON through the engine: standard library only, small, no content.

Arguments and answers of tools never travel here: they stay in automation's own tables.
"""

from dataclasses import dataclass, field
from enum import StrEnum

WORKFLOW = "PlaybookWorkflow"
TASK_QUEUE = "opsmesh"
LOAD = "load"
RUN_STEP = "run_step"
CHECK_APPROVAL = "check_approval"
KEEP_LOCKS = "keep_locks"
PREVIEW = "preview_rest"
FINISH = "finish"
WAKE = "wake"


class Kind(StrEnum):
    """How one try of a step ended."""

    SUCCEEDED = "SUCCEEDED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"
    OBSERVED = "OBSERVED"
    CANCELLED = "CANCELLED"
    # Not ended: the same try again after a pause, a new try after a pause, or once a person has answered.
    AGAIN = "AGAIN"
    RETRY = "RETRY"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"


@dataclass(frozen=True, slots=True)
class Start:
    """The argument of the workflow; the digest is that of the playbook which the execution's row names.

    `obstacle` and `since` (seconds since 1970) carry a wait over into a run that begins anew: patience is one.
    """

    execution_id: str
    digest: str
    obstacle: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the workflow must know about a step; `state` and `attempt` are what is recorded so far.

    `delay` is the pause between tries, `seconds` the longest that one try may take. `tolerated`: its failure is
    recorded, and fails nothing else.
    """

    step_id: str
    attempts: int
    delay: float
    seconds: float
    state: str = "PENDING"
    attempt: int = 0
    approval_id: str = ""
    tolerated: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """An execution as recorded: a workflow can begin at any point of it. `over` is its state when it has ended."""

    steps: list[StepPlan] = field(default_factory=list)
    undos: dict[str, StepPlan] = field(default_factory=dict)
    failure_step: StepPlan | None = None
    cancelled: bool = False
    over: str = ""


@dataclass(frozen=True, slots=True)
class StepTask:
    """One try of one step. `last`: patience is used up, an obstacle now ends the step."""

    execution_id: str
    step_id: str
    attempt: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try ended; `retry_after` is in seconds, `locked` says whether the execution holds a target lock.

    `queued`: AGAIN because others are before it at its target.
    """

    kind: Kind
    retry_after: float = 0.0
    approval_id: str = ""
    locked: bool = False
    queued: bool = False


@dataclass(frozen=True, slots=True)
class ApprovalTask:
    """An approval that a step waits for."""

    execution_id: str
    step_id: str
    approval_id: str


@dataclass(frozen=True, slots=True)
class End:
    """The end of an execution as the workflow saw it."""

    execution_id: str
    state: str
