"""The port to workflow engines: automation.executions is the truth, an engine only moves an execution forward."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class EngineState(StrEnum):
    """What an engine says about an execution."""

    RUNNING = "RUNNING"
    # The workflow returned: its last activity has written the result.
    COMPLETED = "COMPLETED"
    # The workflow ended because it was asked to.
    CANCELLED = "CANCELLED"
    # Failed, timed out or terminated: it will not go on by itself.
    DEAD = "DEAD"
    # The engine has never heard of it, or has lost it.
    MISSING = "MISSING"


class EngineUnavailableError(Exception):
    """The engine does not answer; what was asked for may or may not have happened."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What an engine is given to start an execution; the digest pins the playbook that the row names."""

    execution_id: str
    digest: str
    # A start after the engine lost or ended the first one.
    again: bool = False


class Engine(Protocol):
    """A workflow engine. Every method raises EngineUnavailableError when the engine does not answer in time."""

    async def start(self, ticket: Ticket) -> None:
        """Start an execution; one that the engine has already is left as it is."""

    async def cancel(self, execution_id: str) -> None:
        """Ask a running execution to stop; an unknown or ended one is no error."""

    async def terminate(self, execution_id: str) -> None:
        """End a running execution that was asked to stop and did not; an unknown or ended one is no error."""

    async def wake(self, execution_id: str) -> None:
        """Let an execution that waits for something look again now; an unknown or ended one is no error."""

    async def describe(self, execution_id: str) -> EngineState:
        """Return where an execution stands."""

    async def ping(self) -> None:
        """Return when the engine answers."""
