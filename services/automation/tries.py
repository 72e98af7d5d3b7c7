"""A try of a step: what it belongs to, where its values come from, and how it is given up when nothing is lost."""

import asyncio
from dataclasses import dataclass

from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.ingest.v1 import ingest_service_pb2
from services.automation.arguments import Sources
from services.automation.book import Book, Spec
from services.automation.contract import StepTask
from services.automation.domain import StepState, request_id
from services.automation.store import ExecutionRow, StepRow

IDENTITY = "service/automation"


class OutOfTurnError(Exception):
    """A step was asked for that is not at its turn: not by our workflow."""


@dataclass(frozen=True, slots=True)
class Try:
    """One try on its way."""

    task: StepTask
    execution: ExecutionRow
    book: Book
    spec: Spec
    row: StepRow | None
    stop: asyncio.Event

    @property
    def request_id(self) -> str:
        """Return the id under which the gateway knows this try."""
        return request_id(self.task.execution_id, self.task.step_id, self.task.attempt)

    @property
    def sent_before(self) -> bool:
        """Say whether the gateway may know this very try from before a crash or a pause."""
        return self.row is not None and self.row.sent and self.row.attempt == self.task.attempt


def sources_of(execution: ExecutionRow, book: Book) -> Sources:
    """Return where the arguments of an execution's steps come from."""
    answers = {
        row.step_id: book.specs[row.step_id].tool.response_class.FromString(row.response)
        for row in execution.steps
        if row.response is not None and row.state in {StepState.SUCCEEDED, StepState.COMPENSATED}
    }
    return Sources(ingest_service_pb2.Incident.FromString(execution.incident), answers, execution.note)


def context_of(execution: ExecutionRow, step_id: str) -> guardrails.ActionContext:
    """Return where an action comes from, for guardrails."""
    return guardrails.ActionContext(
        incident_id=execution.incident_id,
        decision_id=execution.decision_id,
        execution_id=execution.execution_id,
        step_id=step_id,
        rule_set_version=execution.rule_set_version,
        on_behalf_of=execution.on_behalf_of or execution.requester,
        playbook_id=execution.playbook_id,
        identity_token=execution.identity_token,
    )
