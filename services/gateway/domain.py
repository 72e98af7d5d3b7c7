"""What the gateway believes and in which order: pure functions over effects, grants and leases. Times are UTC."""

import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, Protocol

# A lease is believed for this long, in seconds, from the moment its poll was sent: the 2 s of invariant I6, less what
# may pass between the last look and the first byte on its way (opsmesh_gateway_act_window_seconds: below 1 ms as a
# rule, 150 ms at worst on two cores with a load of ten).
LEASE_SECONDS: Final = 1.75
# Clocks of guardrails and gateway may differ by this much.
SKEW: Final = timedelta(seconds=5)
GRANT_LIFETIME: Final = timedelta(seconds=30)
READ_GRANT_LIFETIME: Final = timedelta(minutes=5)
# A caller that meets its own effect in flight asks again this soon, in seconds: most effects end well before deadlines.
RETRY_SECONDS: Final = 0.5
# How often an unreachable backend is asked how an effect ended before the answer is UNKNOWN.
RESOLVE_TRIES_MAX: Final = 10
# Whoever asks how an effect ended has this long, in seconds, before another may ask.
CLAIM_SECONDS: Final = 10.0
DETAIL_MAX: Final = 1000


class State(Enum):
    """Where an effect stands; the names are those of the IDL without prefix."""

    STARTED = "STARTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"
    NOT_STARTED = "NOT_STARTED"


@dataclass(frozen=True, slots=True)
class Key:
    """What names an effect: the tool `opsmesh.tools.<family>.v1.<X>ToolService/<Rpc>` and the request id."""

    method: str
    request_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant whose signature was verified: what guardrails said about one call."""

    grant_id: str
    method: str
    digest: bytes
    caller: str
    request_id: str
    target_id: str
    fence: int
    precondition: Mapping[str, str]
    policy_set_version: int
    kill_epoch: int
    issue_time: datetime
    expire_time: datetime
    # With target and method, what a kill may be about.
    environment: str = ""
    playbook_id: str = ""
    execution_id: str = ""
    run_id: str = ""
    ancestors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadGrant:
    """A read grant whose signature was verified: what a caller may read, many times. `targets`: id to environment."""

    caller: str
    methods: frozenset[str]
    targets: Mapping[str, str]
    policy_set_version: int
    kill_epoch: int
    issue_time: datetime
    expire_time: datetime
    run_id: str = ""
    ancestors: tuple[str, ...] = ()


class Minted(Protocol):
    """What was minted under a policy set and the kills of its moment."""

    @property
    def policy_set_version(self) -> int:
        """Return the policy set it was judged under."""

    @property
    def kill_epoch(self) -> int:
        """Return the epoch of the newest kill of that moment."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The call as the gateway itself read it: nothing in here was claimed."""

    key: Key
    digest: bytes
    caller: str
    target_id: str
    precondition_fields: tuple[str, ...] = ()
    needs_fence: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """What guardrails said holds; `sent` is the second at which it was asked, on a clock that only goes forward."""

    policy_set_version: int
    kill_epoch: int
    sent: float


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of the effects table; `due` and `remaining` (seconds) are by the database's clock."""

    key: Key
    state: State
    tries: int
    digest: bytes
    caller: str
    request: bytes
    authority: bytes
    target_id: str
    environment: str
    fence: int
    incident_id: str
    execution_id: str
    step_id: str
    trace_id: str
    response: bytes | None
    reason: str
    detail: str
    settler: str
    start_time: datetime
    deadline_time: datetime
    end_time: datetime | None
    resolve_tries: int
    remaining: float

    @property
    def due(self) -> bool:
        """Say whether its deadline has passed."""
        return self.remaining <= 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a try ended: `response` is a success's serialised answer, `reason` an ErrorReason without prefix."""

    state: State
    response: bytes | None = None
    reason: str = ""
    detail: str = ""


def succeeded(response: bytes, detail: str = "") -> Ending:
    """Return the ending of an effect that happened, with its serialised answer."""
    return Ending(State.SUCCEEDED, response=response, detail=detail)


def failed(detail: str) -> Ending:
    """Return the ending of an effect that was tried and failed, or is known not to have happened."""
    return Ending(State.FAILED, reason="EFFECT_FAILED", detail=detail[:DETAIL_MAX])


def unknown(detail: str) -> Ending:
    """Return the ending of an effect of which nobody knows; it is never repeated."""
    return Ending(State.UNKNOWN, reason="EFFECT_UNKNOWN", detail=detail[:DETAIL_MAX])


def not_started(reason: str, detail: str) -> Ending:
    """Return the ending of a try before which nothing happened; the same request may be tried again."""
    return Ending(State.NOT_STARTED, reason=reason, detail=detail[:DETAIL_MAX])


class Standing(Enum):
    """What is to be done about a call whose request id may be known."""

    START = "start"
    ANSWER = "answer"
    IN_FLIGHT = "in flight"
    RESOLVE = "resolve"
    REUSED = "reused"


def standing(effect: Effect | None, proposal: Proposal) -> Standing:
    """Say how a call meets the effect of its request id; another caller is treated like other content."""
    if effect is None:
        return Standing.START
    if effect.digest != proposal.digest or effect.caller != proposal.caller:
        return Standing.REUSED
    if effect.state is State.NOT_STARTED:
        return Standing.START
    if effect.state is State.STARTED:
        return Standing.RESOLVE if effect.due else Standing.IN_FLIGHT
    return Standing.ANSWER


def misfit(grant: Grant, proposal: Proposal, now: datetime) -> str:
    """Return what about a grant does not fit a call, in a few words; empty when it fits."""
    times_fit = grant.issue_time - SKEW <= now and grant.expire_time - grant.issue_time <= GRANT_LIFETIME
    findings = {
        "it is for another method": grant.method != proposal.key.method,
        "it is for other bytes": grant.digest != proposal.digest,
        "it is for another caller": grant.caller != proposal.caller,
        "it is for another request": grant.request_id != str(proposal.key.request_id),
        "it is for another target": grant.target_id != proposal.target_id,
        "it is not of this time": not times_fit,
        "it has expired": now > grant.expire_time + SKEW,
        "it carries no fence": proposal.needs_fence and grant.fence < 1,
        "its precondition names other fields": set(grant.precondition) != set(proposal.precondition_fields),
    }
    return next((what for what, wrong in findings.items() if wrong), "")


def read_misfit(grant: ReadGrant, caller: str, now: datetime) -> str:
    """Return why a read grant is worth nothing to a caller now, in a few words; empty when it is."""
    times_fit = grant.issue_time - SKEW <= now and grant.expire_time - grant.issue_time <= READ_GRANT_LIFETIME
    findings = {
        "it is for another caller": grant.caller != caller,
        "it is not of this time": not times_fit,
        "it has expired": now > grant.expire_time + SKEW,
    }
    return next((what for what, wrong in findings.items() if wrong), "")


def covers(grant: ReadGrant, method: str, target_id: str, *, targeted: bool) -> bool:
    """Say whether a read grant is good for a tool: for one that names a target, on none but its targets."""
    return method in grant.methods and (not targeted or target_id in grant.targets)


def lease_age(lease: Lease | None, now: float) -> float | None:
    """Return the age of a lease in seconds, on the monotonic clock; None when there never was one."""
    return None if lease is None else max(0.0, now - lease.sent)


def is_fresh(lease: Lease | None, now: float) -> bool:
    """Say whether a lease may still be believed."""
    age = lease_age(lease, now)
    return age is not None and age <= LEASE_SECONDS


def is_stale(grant: Minted, lease: Lease) -> bool:
    """Say whether policy changed since a grant was minted, or the grant knows of kills that the lease does not."""
    return grant.policy_set_version != lease.policy_set_version or grant.kill_epoch > lease.kill_epoch


def is_ahead(grant: Minted, lease: Lease) -> bool:
    """Say whether a grant was minted under something newer than what the lease tells of."""
    return grant.policy_set_version > lease.policy_set_version or grant.kill_epoch > lease.kill_epoch


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Return how the found precondition differs, such as `process_id was 7, is 9`; empty when it does not."""
    names = sorted(set(expected) | set(found))
    return ", ".join(
        f"{name} was {expected.get(name, '(nothing)')}, is {found.get(name, '(nothing)')}"
        for name in names
        if expected.get(name) != found.get(name)
    )


def intent_id(key: Key, tries: int) -> uuid.UUID:
    """Return the event id of the audit intent of one try: whoever resolves can ask audit for it."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{key.method}/{key.request_id}/{tries}")


def outcome_id(key: Key, tries: int) -> uuid.UUID:
    """Return the event id of the audit outcome of one try: appended twice, it is stored once."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{key.method}/{key.request_id}/{tries}/outcome")


def plain(text: str, limit: int) -> str:
    """Return untrusted text as one line of at most `limit` characters without control or formatting characters."""
    visible = text
    if not text.isprintable():  # most text is, and a look at each character takes long
        cleaned = "".join(" " if unicodedata.category(one) in {"Cc", "Zl", "Zp"} else one for one in text)
        visible = "".join(one for one in cleaned if unicodedata.category(one)[0] != "C")
    line = " ".join(visible.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
