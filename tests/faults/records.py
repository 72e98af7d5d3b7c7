"""What a history consists of: what the stores hold at the end, and what was seen from outside meanwhile."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills_pb
from services.gateway.domain import Key

# The states in which it is said how an effect went.
ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "UNKNOWN"})


@dataclass(frozen=True, slots=True)
class Breach:
    """One thing that must never be: which invariant, and what was found."""

    invariant: str
    what: str


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of ingest.signals; `incident_id` is empty where the disposition opens and joins nothing."""

    signal_id: str
    disposition: str
    incident_id: str


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident and the number of its last revision."""

    incident_id: str
    revision: int


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision about one revision."""

    incident_id: str
    revision: int


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of gateway.effects, with what its grant said; `guarded` is false for notices."""

    method: str
    request_id: str
    state: str
    tries: int
    digest: str
    caller: str
    target_id: str
    environment: str
    fence: int
    begun: datetime
    ended: datetime | None
    guarded: bool = True
    policy_set_version: int = 1
    kill_epoch: int = 0
    approval_id: str = ""
    execution_id: str = ""
    playbook_id: str = ""
    process_id: int = 0

    @property
    def key(self) -> Key:
        """Return what audit derives event ids from."""
        return Key(self.method, uuid.UUID(self.request_id))

    @property
    def acted(self) -> bool:
        """Say whether it may have changed something."""
        return self.guarded and self.state in {"STARTED", *ENDED}

    @property
    def words(self) -> str:
        """Return it for people."""
        return f"{self.method.rpartition('/')[2]} {self.request_id} on {self.target_id} ({self.state})"


@dataclass(frozen=True, slots=True)
class Event:
    """One audit event; `phase`, `outcome` and `reason` without their prefixes."""

    sequence: int
    event_id: str
    phase: str
    action: str
    request_id: str
    outcome: str
    digest: str
    time: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a target's process, as its process manager wrote it down."""

    target_id: str
    process_id: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Approval:
    """One approval: who asked, who said yes and no, how many had to."""

    approval_id: str
    state: str
    method: str
    request_id: str
    digest: str
    requesters: frozenset[str]
    approvers: tuple[str, ...]
    rejecters: tuple[str, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill, by the database's clock; `released` is None while it holds."""

    kill_id: str
    epoch: int
    scope: kills_pb.KillScope
    engaged: datetime
    released: datetime | None


@dataclass(frozen=True, slots=True)
class Fence:
    """One look at a fence: in `guardrails` (locks) or in `gateway` (fences), in the order of looking."""

    place: str
    target_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Published:
    """One policy set."""

    version: int
    time: datetime


@dataclass(frozen=True, slots=True)
class History:
    """Everything that is known; `person_environments` are those in which policy wants a person for every effect."""

    accepted: Sequence[str] = ()
    signals: Sequence[Signal] = ()
    incidents: Sequence[Incident] = ()
    decisions: Sequence[Decision] = ()
    effects: Sequence[Effect] = ()
    events: Sequence[Event] = ()
    starts: Sequence[Start] = ()
    approvals: Sequence[Approval] = ()
    kills: Sequence[Kill] = ()
    fences: Sequence[Fence] = ()
    policies: Sequence[Published] = ()
    notices: Sequence[str] = ()
    person_environments: frozenset[str] = field(default_factory=frozenset)
