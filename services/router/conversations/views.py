"""What a conversation looks at: each with its own deadline, and what is absent is said to be."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio
import structlog

from opsmesh.agents.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    template_service_pb2,
    template_service_pb2_grpc,
)
from opsmesh.automation.v1 import playbook_service_pb2, playbook_service_pb2_grpc
from opsmesh.guardrails.v1 import (
    kill_switch_service_pb2,
    kill_switch_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
)
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from opsmesh.router.v1 import decision_service_pb2
from services.mesh.errors import from_rpc_error
from services.mesh.kills import words
from services.mesh.models.cleaning import characters
from services.mesh.models.outcomes import Available
from services.mesh.models.showing import Limits, show
from services.mesh.models.untrusted import Marks
from services.router.conversations.plans import Catalogue
from services.router.reasoning.context import Context, Section

T = TypeVar("T")
Asked = Callable[[], Awaitable[list[tuple[str, str]]]]
SECONDS: Final = 2.0
PAGE: Final = 200
# What a model is shown and may choose from; the rest is reached by its name in the person's words.
TARGETS_MAX: Final = 100
INCIDENTS_MAX: Final = 20
STATUS_MAX: Final = 10
OVER: Final = frozenset({ingest_service_pb2.Incident.STATE_RESOLVED, ingest_service_pb2.Incident.STATE_STALE})
OPEN: Final = tuple(
    value.number for value in ingest_service_pb2.Incident.State.DESCRIPTOR.values if value.number not in {0, *OVER}
)
log = structlog.get_logger("opsmesh.router.conversations")


@dataclass(frozen=True, slots=True)
class Stubs:
    """Whom a conversation asks."""

    playbooks: "playbook_service_pb2_grpc.PlaybookServiceAsyncStub"
    templates: "template_service_pb2_grpc.TemplateServiceAsyncStub"
    policies: "policy_service_pb2_grpc.PolicyServiceAsyncStub"
    incidents: "ingest_service_pb2_grpc.IngestServiceAsyncStub"
    models: "model_service_pb2_grpc.ModelServiceAsyncStub"
    kills: "kill_switch_service_pb2_grpc.KillSwitchServiceAsyncStub"


class Views:
    """Reads for a conversation; None is for what does not answer in time.

    `asked` returns the decisions that wait for a person's answer, with their questions.
    """

    def __init__(self, stubs: Stubs, asked: Asked) -> None:
        self._stubs = stubs
        self._asked = asked
        self._instance = f"router@{socket.gethostname()}/{os.getpid()}"[:128]

    async def catalogue(self) -> Catalogue:
        """Return what exists now."""
        playbooks, templates, policies = await asyncio.gather(
            _ask(
                "playbooks",
                lambda: self._stubs.playbooks.ListPlaybooks(
                    playbook_service_pb2.ListPlaybooksRequest(page_size=PAGE), timeout=SECONDS
                ),
            ),
            _ask(
                "templates",
                lambda: self._stubs.templates.ListTemplates(
                    template_service_pb2.ListTemplatesRequest(page_size=PAGE), timeout=SECONDS
                ),
            ),
            _ask(
                "inventory",
                lambda: self._stubs.policies.GetPolicySet(policy_service_pb2.GetPolicySetRequest(), timeout=SECONDS),
            ),
        )
        return Catalogue(
            playbooks={one.playbook_id: one for one in playbooks.playbooks} if playbooks else None,
            templates={one.template_id: one for one in templates.templates} if templates else None,
            inventory={one.target_id: one for one in policies.policy_set.inventory.entries} if policies else None,
        )

    async def incidents(self) -> list[ingest_service_pb2.Incident] | None:
        """Return the newest open incidents."""
        answer = await _ask(
            "incidents",
            lambda: self._stubs.incidents.ListIncidents(
                ingest_service_pb2.ListIncidentsRequest(page_size=INCIDENTS_MAX, states=OPEN),  # type: ignore[arg-type]  # numbers of this enum
                timeout=SECONDS,
            ),
        )
        return list(answer.incidents) if answer else None

    async def status(self) -> str:
        """Return what is going on, in words; what does not answer is named."""
        incidents, models, lease = await asyncio.gather(
            self.incidents(),
            _ask(
                "models",
                lambda: self._stubs.models.ListModels(model_service_pb2.ListModelsRequest(), timeout=SECONDS),
            ),
            _ask(
                "kills",
                lambda: self._stubs.kills.PollLease(
                    kill_switch_service_pb2.PollLeaseRequest(instance=self._instance), timeout=SECONDS
                ),
            ),
        )
        asked = [f"  {one} asks: {characters(text)}" for one, text in (await self._asked())[:STATUS_MAX]]
        questions = ["Questions to people (answer QUESTION WORDS):", *asked] if asked else []
        return "\n".join([*_open(incidents), *questions, _stopped(lease), _models(models)])


async def _ask(what: str, call: Callable[[], Awaitable[T]]) -> T | None:
    """Return an answer, or None when there is none in time: a conversation goes on without it."""
    try:
        return await call()
    except grpc.aio.AioRpcError as error:
        refusal = from_rpc_error(error)
        log.warning("a conversation does without", what=what, why=refusal.name if refusal else error.code().name)
        return None


def context(known: Catalogue, incidents: list[ingest_service_pb2.Incident] | None, said: str, marks: Marks) -> Context:
    """Return what a model is told in a conversation, and from what it may choose."""
    targets = _targets(known, said)
    sections = [
        _section("targets", None if known.inventory is None else _lines(known, targets)),
        _section(
            "playbooks",
            None
            if known.playbooks is None
            else [
                f"{one.playbook_id}: {characters(one.playbook.title)}. {characters(one.playbook.description)}"
                for one in known.playbooks.values()
            ],
        ),
        _section(
            "templates of agents",
            None
            if known.templates is None
            else [
                f"{one.template_id}: {characters(one.template.title)}. {characters(one.template.description)}"
                for one in known.templates.values()
                if not one.changed_tools
            ],
        ),
        _section(
            "open incidents",
            None
            if incidents is None
            else [
                show(
                    # What a person says it is about comes from the conversation, not from labels of senders.
                    ingest_service_pb2.Incident(
                        incident_id=one.incident_id, title=one.title, state=one.state, targets=one.targets
                    ),
                    marks,
                    Limits(text=300, total=1000, items=4),
                ).text
                for one in incidents
            ],
        ),
    ]
    return Context(
        sections=tuple(section for section, _ in sections),
        sources=tuple(source for _, source in sections),
        available=Available(
            playbooks=tuple(known.playbooks or ()),
            templates=tuple(name for name, one in (known.templates or {}).items() if not one.changed_tools),
            targets=tuple(targets),
        ),
    )


def _section(name: str, lines: list[str] | None) -> tuple[Section, decision_service_pb2.ContextSource]:
    """Return a part of what is told, and the note about it."""
    if lines is None:
        return Section(name, "(absent: it does not answer)"), decision_service_pb2.ContextSource(
            name=name, present=False, detail="no answer in time"
        )
    return Section(name, "\n".join(lines) or "(none)"), decision_service_pb2.ContextSource(
        name=name, present=True, detail=f"{len(lines)}"
    )


def _targets(known: Catalogue, said: str) -> list[str]:
    """Return the targets that are offered: those that the words could mean first."""
    spoken = {word for word in said.casefold().replace("/", " ").replace(":", " ").split() if len(word) > 1}

    def unnamed(target: str) -> tuple[bool, str]:
        parts = set(target.casefold().replace("/", " ").replace(":", " ").split())
        return not parts & spoken, target

    return sorted(known.inventory or (), key=unnamed)[:TARGETS_MAX]


def _lines(known: Catalogue, targets: list[str]) -> list[str]:
    """Return targets with where they are."""
    found = known.inventory or {}
    lines = [
        f"{one}: {found[one].kind}, environment {found[one].environment}"
        + (f", region {found[one].region}" if found[one].region else "")
        for one in targets
    ]
    more = len(found) - len(targets)
    return [*lines, f"(and {more} more, to be asked for by name)"] if more > 0 else lines


def _open(incidents: list[ingest_service_pb2.Incident] | None) -> list[str]:
    """Return the open incidents as lines."""
    if incidents is None:
        return ["Incidents: ingest does not answer."]
    if not incidents:
        return ["No incident is open."]
    states = ingest_service_pb2.Incident.State
    lines = [
        f"  {one.incident_id} {states.Name(one.state).removeprefix('STATE_')} {characters(one.title)[:200]}"
        for one in incidents[:STATUS_MAX]
    ]
    count = f"{len(incidents)}{' or more' if len(incidents) == INCIDENTS_MAX else ''}"
    return [f"Open incidents: {count}; the newest:", *lines]


def _stopped(answer: kill_switch_service_pb2.PollLeaseResponse | None) -> str:
    """Return what kills hold."""
    if answer is None:
        return "Kills: guardrails does not answer; without a lease nothing new starts."
    held = [words(one.scope) for one in answer.lease.kills if not one.released]
    return f"Stopped: {', '.join(held)}." if held else "Nothing is stopped."


def _models(answer: model_service_pb2.ListModelsResponse | None) -> str:
    """Return whether models can be asked."""
    if answer is None:
        return "Models: agents does not answer; keywords work, see: help."
    if answer.automation_only:
        return f"Models: none can be asked ({answer.automation_only_reason}); keywords work, see: help."
    recorded = " (replies come from files)" if any(one.recorded for one in answer.models) else ""
    return f"Models: {', '.join(sorted({one.role for one in answer.models}))} can be asked{recorded}."
