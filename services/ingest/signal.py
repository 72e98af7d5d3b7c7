"""What a parser hands over: one alert of one delivery, normalised and bounded as the IDL bounds it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

# The source of what people say to the router. Reserved: no sender of sources.yaml may be called so.
CHAT: Final = "chat"
SUMMARY_MAX: Final = 1024
DESCRIPTION_MAX: Final = 8192
RAW_MAX: Final = 128
RULE_MAX: Final = 256
GROUP_MAX: Final = 1024
KEY_MAX: Final = 256
URL_MAX: Final = 2048
LINKS_MAX: Final = 32
WARNING_MAX: Final = 256
WARNINGS_MAX: Final = 64
ERRORS_MAX: Final = 64
SIGNALS_MAX: Final = 1000
FIELD_MAX: Final = 256
ERROR_TEXT_MAX: Final = 512


class Status(IntEnum):
    """What a signal says about its alert; the numbers of ingest.v1.Signal.Status."""

    UNSPECIFIED = 0
    FIRING = 1
    ACKNOWLEDGED = 2
    RESOLVED = 3
    SUPPRESSED = 4
    NO_DATA = 5
    OCCURRENCE = 6


class Kind(IntEnum):
    """What a signal is about; the numbers of ingest.v1.Signal.Kind."""

    ALERT = 0
    DEPLOYMENT = 1
    CONFIGURATION = 2
    NOTE = 3


class Severity(IntEnum):
    """How bad it is, on OpenTelemetry's scale; the numbers of ingest.v1.Signal.Severity."""

    UNSPECIFIED = 0
    INFO = 9
    WARNING = 13
    ERROR = 17
    CRITICAL = 21


class Rel(IntEnum):
    """What a link is for; the numbers of ingest.v1.Link.Rel."""

    UNSPECIFIED = 0
    SOURCE = 1
    GENERATOR = 2
    RUNBOOK = 3
    DASHBOARD = 4
    PANEL = 5
    SILENCE = 6
    IMAGE = 7


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the sender; never fetched by us."""

    rel: Rel
    url: str


@dataclass(frozen=True, slots=True)
class TargetKey:
    """A key of something that could be acted on; `partial` lacks what makes it unique."""

    kind: str
    key: str
    partial: bool = False


@dataclass(frozen=True, slots=True)
class FieldError:
    """What in a body could not be understood: a path within it, and why."""

    field: str
    description: str


class Unreadable(Exception):  # noqa: N818  an answer to the sender, not a failure of ours
    """A delivery cannot be understood at all; `errors` says where and why."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(
            FieldError(error.field[:FIELD_MAX], error.description[:ERROR_TEXT_MAX]) for error in errors[:ERRORS_MAX]
        )
        super().__init__("; ".join(f"{error.field}: {error.description}" for error in self.errors))


def unreadable(field_path: str, description: str) -> Unreadable:
    """Return the Unreadable with a single error."""
    return Unreadable([FieldError(field_path, description)])


@dataclass(frozen=True, slots=True)
class ParsedSignal:
    """One alert as a parser read it. Times are nanoseconds since 1970 by the sender's clock, None when unknown."""

    dedup_key: str
    status: Status = Status.UNSPECIFIED
    status_raw: str = ""
    severity: Severity = Severity.UNSPECIFIED
    severity_raw: str = ""
    summary: str = ""
    description: str = ""
    rule_name: str = ""
    group_key: str = ""
    event_time: int | None = None
    start_time: int | None = None
    end_time: int | None = None
    resource: Mapping[str, str] = field(default_factory=dict)
    targets: Sequence[TargetKey] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    links: Sequence[Link] = ()
    warnings: Sequence[str] = ()
    test: bool = False
    body_pointer: str = ""
    kind: Kind = Kind.ALERT


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An alert that could not be understood although others of its delivery could; `index` counts them all, from 0."""

    index: int
    error: FieldError


class Signals(list[ParsedSignal]):
    """The signals of a delivery of which some alerts were left out, so that its sender is answered for each."""

    def __init__(self, signals: Iterable[ParsedSignal], left_out: Iterable[LeftOut]) -> None:
        super().__init__(signals)
        self.left_out = tuple(left_out)


def beyond(count: int, what: str) -> Iterator[LeftOut]:
    """Yield what is left out of `count` alerts because they are too many, as one."""
    if count > SIGNALS_MAX:
        words = f"{count - SIGNALS_MAX} beyond the first {SIGNALS_MAX} were left out: send fewer at once"
        yield LeftOut(SIGNALS_MAX, FieldError(f"{what}[{SIGNALS_MAX}:]", words))


@dataclass(frozen=True, slots=True)
class DeliveryFacts:
    """What a parser may know besides the body."""

    source: str
    content_type: str = ""
    # Of the bridge's allow-list, names in lower case.
    headers: Mapping[str, str] = field(default_factory=dict)


def hashed(*parts: str) -> str:
    """Return a stable key for a sequence of texts, of which none can pretend to be two."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "replace")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


def bounded_key(*parts: str, limit: int = KEY_MAX) -> str:
    """Return the parts joined readably, or their hash when that would be too long."""
    joined = "|".join(parts)
    return joined if len(joined) <= limit else hashed(*parts)
