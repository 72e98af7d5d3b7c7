"""What an execution is: states, paths, the order of steps. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid5

UNDO: Final = ".undo"
# A try that met an obstacle that passes by itself is repeated this long, in seconds, under the same request_id.
PATIENCE: Final = 300.0
ENGINE_STARTS_MAX: Final = 10


class ExecutionState(StrEnum):
    """Where an execution stands; the words of Execution.State."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"
    OBSERVED = "OBSERVED"


class StepState(StrEnum):
    """Where a step stands; the words of StepRecord.State."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    UNKNOWN = "UNKNOWN"
    OBSERVED = "OBSERVED"
    CANCELLED = "CANCELLED"
    COMPENSATED = "COMPENSATED"


OPEN_EXECUTION: Final = frozenset({ExecutionState.PENDING, ExecutionState.RUNNING, ExecutionState.AWAITING_APPROVAL})
OPEN_STEP: Final = frozenset({StepState.PENDING, StepState.RUNNING, StepState.AWAITING_APPROVAL})
PASSED: Final = frozenset({StepState.SUCCEEDED, StepState.SKIPPED})


def request_id(execution_id: str, step_id: str, attempt: int) -> str:
    """Return the id under which the gateway knows one try of one step; the same again after any crash."""
    return str(uuid5(UUID(execution_id), f"{step_id}/{attempt}"))


@dataclass(frozen=True, slots=True)
class Order:
    """The steps of a playbook in order, the failure step, and the steps whose failure fails nothing else."""

    steps: Sequence[str]
    failure_step: str = ""
    tolerated: frozenset[str] = frozenset()


def may_run(step_id: str, order: Order, states: Mapping[str, StepState]) -> bool:
    """Say whether it is a step's turn: whoever can reach the engine's port can ask for a step out of order."""
    steps = order.steps
    failed = any(states.get(one) is StepState.FAILED and one not in order.tolerated for one in steps)
    if step_id == order.failure_step:
        return failed
    if step_id.endswith(UNDO):
        undone = {StepState.SUCCEEDED, StepState.COMPENSATED}
        return failed and states.get(step_id.removesuffix(UNDO)) in undone
    if step_id not in steps or failed:
        return False
    ended = PASSED | {StepState.FAILED}
    return all(states.get(one) in ended for one in steps[: steps.index(step_id)])


class PathError(ValueError):
    """A path is not one of `incident.<field>`, `incident.labels["k"]` or `steps.<step_id>.<field>`; says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a path, with an index into a list or a key of a map."""

    name: str
    index: int | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """Where a value comes from: the incident (`step_id` is None), the answer of a step, or the start (`of_start`)."""

    step_id: str | None
    parts: tuple[Part, ...]
    of_start: bool = False


_PART: Final = re.compile(r'([a-z][a-z0-9_]*)(?:\[(?:(\d{1,4})|"([^"\\]{1,256})")\])?(\.|$)')
INCIDENT_FIELDS: Final = frozenset(
    {"incident_id", "title", "severity", "status", "source", "rule_name", "description", "firing", "revision"}
    | {"signal_count", "targets", "labels", "environment", "region"}
)
# What an execution was started with, beside the incident; these are fields of StartExecutionRequest.
START_FIELDS: Final = frozenset({"note"})
# The environment and region of an incident are those of its first target.
_OF_TARGET: Final = frozenset({"environment", "region"})
ROOTS: Final = frozenset({"incident", "execution", "steps"})


def parse_fields(text: str) -> tuple[Part, ...]:
    """Read `field.list[0].map["k"]`; raises PathError."""
    parts: list[Part] = []
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            raise PathError(f"cannot read {text!r} from character {position + 1}")
        name, index, key, _ = match.groups()
        parts.append(Part(name, None if index is None else int(index), key))
        position = match.end()
    if not parts or text.endswith("."):
        raise PathError(f"{text!r} ends before a field")
    return tuple(parts)


def parse_path(text: str) -> Path:
    """Read a path; `incident.targets[0]` means its target_id. Raises PathError."""
    root, *parts = parse_fields(text)
    if root.index is not None or root.key is not None or root.name not in ROOTS or not parts:
        raise PathError("must begin with `incident.`, `execution.` or `steps.<step_id>.`")
    if root.name == "execution":
        if parts[0].name not in START_FIELDS:
            raise PathError(f"the execution gives: {', '.join(sorted(START_FIELDS))}")
        return Path(None, tuple(parts), of_start=True)
    if root.name == "steps":
        step, *fields = parts
        if step.index is not None or step.key is not None or not fields:
            raise PathError("must be `steps.<step_id>.<response field>`")
        return Path(step.name, tuple(fields))
    first = parts[0]
    if first.name not in INCIDENT_FIELDS:
        raise PathError(f"the incident gives: {', '.join(sorted(INCIDENT_FIELDS))}")
    if first.name in _OF_TARGET:
        parts.insert(0, Part("targets", 0))
    elif first.name == "targets" and len(parts) == 1:
        parts.append(Part("target_id"))
    return Path(None, tuple(parts))


def is_target(path: Path) -> bool:
    """Say whether a path names a target of the incident by its canonical id."""
    return path.step_id is None and not path.of_start and [part.name for part in path.parts] == ["targets", "target_id"]
