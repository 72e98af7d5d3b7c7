"""One way to refuse: a `Refusal` names its reason; its status, text and next step are options of that enum value."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2

PREFIX: Final = "ERROR_REASON_"
STATUS_KEY: Final = "grpc-status-details-bin"
# A status travels in the trailers, of which gRPC refuses more than 8 KiB at random; base64 makes 4 of 3.
STATUS_BYTES_MAX: Final = 4096
TEXT_MAX: Final = 300
CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks its bounds: its path in the request and what is wrong with it."""

    field: str
    description: str


class Refusal(Exception):  # noqa: N818  a refusal is an answer, not a failure of ours
    """A call is refused for a reason of `ErrorReason`; becomes a google.rpc.Status in one place, the chain.

    `metadata` fills the `{name}`s of the reason's text; `retry_after` is in seconds.
    """

    def __init__(
        self,
        reason: "error_reason_pb2.ErrorReason.ValueType",
        *,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
        **metadata: str,
    ) -> None:
        self.reason = reason
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.metadata = metadata
        super().__init__(f"{self.name}: {describe(reason, metadata)}")

    @property
    def name(self) -> str:
        """Return the reason without its prefix, as it stands in ErrorInfo and in audit."""
        return reason_name(self.reason)

    @property
    def code(self) -> grpc.StatusCode:
        """Return the gRPC status this reason travels as."""
        return CODES[spec(self.reason).status]


class BootError(Exception):
    """The process cannot start; the message names what is wrong and how to mend it."""


class _Unfilled(dict[str, str]):
    """Metadata where a missing name reads as its placeholder's name instead of failing the error path."""

    def __missing__(self, key: str) -> str:
        """Return a neutral word for what the caller did not say."""
        return f"(unknown {key})"


_unavailable: list[tuple[str, tuple[type[Exception], ...]]] = []
_unstorable: Final[list[type[Exception]]] = []


def name_unavailable(store: str, *kinds: type[Exception]) -> None:
    """Say once, at import, which exceptions mean that a store does not answer: they become STORE_UNAVAILABLE."""
    _unavailable.append((store, kinds))


def unavailable(error: Exception) -> Refusal | None:
    """Return the refusal for an exception by which a store says that it does not answer, else None."""
    for store, kinds in _unavailable:
        if isinstance(error, kinds):
            return Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store=store, retry_after=1.0)
    return None


def name_unstorable(*kinds: type[Exception]) -> None:
    """Say once, at import, which exceptions mean that a text of the request fits no store: INVALID_ARGUMENT."""
    _unstorable.extend(kinds)


def unstorable(error: Exception) -> Refusal | None:
    """Return the refusal for an exception by which a store says that it cannot keep a text, else None."""
    if not isinstance(error, tuple(_unstorable)):
        return None
    violation = FieldViolation("(text)", "a text of it has a character that is not kept, such as NUL")
    return Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[violation])


@cache
def spec(reason: int) -> policy_pb2.ErrorSpec:
    """Return the options of an error reason; a reason without them is described as INTERNAL."""
    value = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(reason)
    if value is None or not value.GetOptions().HasExtension(policy_pb2.error):
        value = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number[error_reason_pb2.ERROR_REASON_INTERNAL]
    found = value.GetOptions().Extensions[policy_pb2.error]
    return policy_pb2.ErrorSpec.FromString(found.SerializeToString())


def reason_name(reason: int) -> str:
    """Return the enum value's name without its prefix."""
    value = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(reason)
    return value.name.removeprefix(PREFIX) if value else str(reason)


def listing(metadata: Mapping[str, str]) -> str:
    """Return the command that lists a resource's kind: the one named after it, unless who refuses names another."""
    return metadata.get("list", f"{metadata.get('resource', 'resource')}s list")


def describe(reason: int, metadata: Mapping[str, str]) -> str:
    """Return "WHAT. NEXT: how to go on" with the metadata filled in."""
    words = _Unfilled({key: text[:TEXT_MAX] for key, text in metadata.items()})
    words["list"] = listing(words)
    found = spec(reason)
    return f"{found.text.format_map(words)}. NEXT: {found.next.format_map(words)}"


def to_status(refusal: Refusal, domain: str) -> status_pb2.Status:
    """Turn a refusal into the google.rpc.Status that goes out, within the size that trailers carry."""
    found = spec(refusal.reason)
    status = status_pb2.Status(code=found.status, message=describe(refusal.reason, refusal.metadata))
    info = error_details_pb2.ErrorInfo(reason=refusal.name, domain=domain)
    for key, text in refusal.metadata.items():
        info.metadata[key] = text[:TEXT_MAX]
    status.details.add().Pack(info)
    if refusal.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(refusal.retry_after * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if refusal.violations:
        status.details.add().Pack(_bad_request(refusal.violations, STATUS_BYTES_MAX - status.ByteSize()))
    return status


def _bad_request(violations: Iterable[FieldViolation], room: int) -> error_details_pb2.BadRequest:
    """Return as many violations as fit into `room` bytes, and say how many do not."""
    bad = error_details_pb2.BadRequest()
    left = list(violations)
    while left:
        one = left[0]
        entry = bad.field_violations.add(field=one.field[:TEXT_MAX], description=one.description[:TEXT_MAX])
        if bad.ByteSize() > room - 128:
            entry.field, entry.description = "", f"and {len(left)} more"
            break
        left.pop(0)
    return bad


def from_rpc_error(error: grpc.aio.AioRpcError) -> Refusal | None:
    """Return the refusal that a peer of this mesh answered with, or None when the error is not one."""
    # The stubs say that trailers are no pairs; they are.
    trailers: Iterable[Any] = error.trailing_metadata() or ()
    raw = next((value for key, value in trailers if key == STATUS_KEY), None)
    if not isinstance(raw, bytes):
        return None
    status = status_pb2.Status.FromString(raw)
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after: float | None = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    value = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name.get(PREFIX + info.reason)
    if value is None:
        return None
    violations = [FieldViolation(one.field, one.description) for one in bad.field_violations]
    metadata = {key: text for key, text in info.metadata.items() if key not in {"violations", "retry_after", "reason"}}
    reason = error_reason_pb2.ErrorReason.ValueType(value.number)
    return Refusal(reason, violations=violations, retry_after=retry_after, **metadata)
