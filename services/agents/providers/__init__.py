"""Providers: whoever turns a question into a reply, behind one Protocol; every failure is one of three kinds."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from services.agents.domain import Endpoint, Finish, Question, RawReply, Usage, counted


class Kind(Enum):
    """What a failure means for another try."""

    TRANSIENT = "transient"  # nothing was answered, and nothing spent: try again, later
    PERMANENT = "permanent"  # the same again will fail the same
    UNKNOWN = "unknown"  # it may have been answered, and paid for: try again once at most


class Why(Enum):
    """What a caller is told about a failure."""

    UNAVAILABLE = "unavailable"
    REFUSED = "refused"
    UNREADABLE = "unreadable"
    TOO_LARGE = "context too large"


@dataclass(slots=True, eq=False)
class ProviderError(Exception):
    """A provider did not give a reply.

    `detail` is in our words: a provider's own may hold anything. `at_fault` says whether it counts against the
    provider (a wrong request does not). `retry_after` is in seconds; `usage` is what it cost, where that is known.
    `said` is a reply that was read and is of no use: its model can be told why, and asked again.
    """

    kind: Kind
    detail: str
    why: Why = Why.UNAVAILABLE
    at_fault: bool = True
    retry_after: float | None = None
    usage: Usage | None = None
    said: str | None = None

    def __str__(self) -> str:
        """Return what happened."""
        return f"{self.kind.value}: {self.detail}"


def useless(question: Question, raw: RawReply, detail: str) -> ProviderError:
    """Return the failure of a reply that came, and was paid for, but is of no use; the provider works."""
    cut = " (cut at its largest length)" if raw.finish is Finish.LENGTH else ""
    return ProviderError(
        Kind.UNKNOWN,
        f"the reply cannot be used: {detail}{cut}",
        Why.UNREADABLE,
        at_fault=False,
        usage=counted(question, raw),
        said=raw.text,
    )


class Provider(Protocol):
    """Turns a question into a reply."""

    async def generate(self, endpoint: Endpoint, question: Question) -> RawReply:
        """Answer; raises ProviderError. The caller bounds the time by cancelling."""
        ...
