"""What somebody with a stolen certificate may try: calls that change something, made from the IDL and from good grants.

Nothing here names a tool: requests are filled from their descriptors, so a tool that is added is attacked, too.
"""

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from opsmesh.guardrails.v1 import grant_pb2
from services.mesh import policy
from services.mesh.tools import Tool, tools

UNKNOWN_FIELD: Final = b"\xfa\x7f\x01x"
GARBAGE_BYTES: Final = (1, 2, 40, 64, 400, 5000, 7000)
CHANNEL: Final = "ops"
LETTERS: Final = "x"
FLIP_STEP: Final = 4
OWN_KEY: Final = Ed25519PrivateKey.generate()


@dataclass(frozen=True, slots=True)
class Honest:
    """A request, and the grant that guardrails gave for exactly it; empty where policy gave none."""

    tool: Tool
    request: Message
    grant: bytes

    @property
    def body(self) -> bytes:
        """Return the bytes that the grant is for."""
        return self.request.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call that must change nothing: what kind, which tool, the request's bytes, and the grant, if any."""

    kind: str
    tool: Tool
    body: bytes
    grant: bytes | None
    request_id: str


def changing() -> list[Tool]:
    """Return every tool that does more than read."""
    return [tool for tool in tools().values() if tool.policy.access not in policy.READS]


def reading() -> list[Tool]:
    """Return every tool that only reads."""
    return [tool for tool in tools().values() if tool.policy.access in policy.READS]


def sample(tool: Tool, target_id: str) -> Any:
    """Return a valid new request of a tool, whatever its fields are."""
    request: Any = tool.request_class()
    if "request_id" in request.DESCRIPTOR.fields_by_name:
        request.request_id = str(uuid.uuid4())
    if tool.spec.target_field:
        setattr(request, tool.spec.target_field, target_id)
    if tool.spec.channel_field:
        setattr(request, tool.spec.channel_field, CHANNEL)
    for violation in policy.violations(request):
        field = request.DESCRIPTOR.fields_by_name[violation.field]
        if field.enum_type is not None:
            setattr(request, field.name, field.enum_type.values[1].number)
        elif field.message_type is not None:
            getattr(request, field.name).SetInParent()
        else:
            setattr(request, field.name, LETTERS if field.type == FieldDescriptor.TYPE_STRING else 1)
    policy.validate(request)
    return request


def renewed(honest: Honest) -> Any:
    """Return the request under another id."""
    return changed(honest, "request_id", str(uuid.uuid4()))


def changed(honest: Honest, name: str, value: str) -> Any:
    """Return the request with another value in a field; none is changed without a name."""
    request: Any = honest.tool.request_class.FromString(honest.body)
    if name:
        setattr(request, name, value)
    return request


def attempt(kind: str, honest: Honest, grant: bytes | None, request: Any = None, extra: bytes = b"") -> Attempt:
    """Return an attempt with the grant's own request, or another."""
    request = honest.request if request is None else request
    body = request.SerializeToString(deterministic=True) + extra
    return Attempt(kind, honest.tool, body, grant, request.request_id)


def texts(tool: Tool) -> list[str]:
    """Return the fields whose words may be anything."""
    fixed = {"request_id", tool.spec.target_field, tool.spec.channel_field}
    return [
        field.name
        for field in tool.request_class.DESCRIPTOR.fields
        if field.type == FieldDescriptor.TYPE_STRING and field.name not in fixed and not field.name.endswith("_id")
    ]


def edited(grant: bytes, change: Callable[[grant_pb2.Grant], None]) -> bytes:
    """Return a signed grant whose content was changed after it was signed."""
    signed = grant_pb2.SignedGrant.FromString(grant)
    content = grant_pb2.Grant.FromString(signed.grant)
    change(content)
    signed.grant = content.SerializeToString()
    return signed.SerializeToString()


def without_grant(honest: Honest, targets: Sequence[str], chance: random.Random) -> Iterator[Attempt]:
    """Yield calls that need nothing but a certificate: no grant, garbage, a grant that one has signed oneself."""
    for target in targets if honest.tool.spec.target_field else ("",):
        yield attempt("no grant", honest, None, sample(honest.tool, target))
    for size in GARBAGE_BYTES:
        yield attempt("garbage", honest, chance.randbytes(size), renewed(honest))
    made = grant_pb2.Grant.FromString(grant_pb2.SignedGrant.FromString(honest.grant).grant)
    request = renewed(honest)
    made.request_id = request.request_id
    made.request_digest = policy.digest(honest.tool.name, request)
    content = made.SerializeToString()
    signed = grant_pb2.SignedGrant(grant=content, signature=OWN_KEY.sign(content))
    yield attempt("signed with another key", honest, signed.SerializeToString(), request)
    yield attempt("not signed", honest, grant_pb2.SignedGrant(grant=content).SerializeToString(), request)


def misused(honest: Honest, targets: Sequence[str], others: Sequence[Honest]) -> Iterator[Attempt]:
    """Yield uses of a good grant for something else than what it is for."""
    for name in texts(honest.tool):
        yield attempt("grant for other bytes", honest, honest.grant, changed(honest, name, "something else"))
    yield attempt("grant for another request id", honest, honest.grant, renewed(honest))
    if field := honest.tool.spec.target_field:
        for target in targets:
            if target != getattr(honest.request, field):
                yield attempt("re-targeted request", honest, honest.grant, changed(honest, field, target))
    for other in others:
        if other.tool.name != honest.tool.name and other.grant:
            yield attempt("grant of another tool", honest, other.grant)
    yield attempt("unknown field in the request", honest, honest.grant, extra=UNKNOWN_FIELD)
    yield attempt("unknown field around the grant", honest, honest.grant + UNKNOWN_FIELD)


def tampered(honest: Honest, targets: Sequence[str], others: Sequence[Honest]) -> Iterator[Attempt]:
    """Yield grants whose content was changed after they were signed."""

    def cut(change: Callable[[grant_pb2.Grant], None]) -> bytes:
        return edited(honest.grant, change)

    def later(grant: grant_pb2.Grant) -> None:
        grant.expire_time.seconds += 3600

    def higher(grant: grant_pb2.Grant) -> None:
        grant.fence += 100

    def newer(grant: grant_pb2.Grant) -> None:
        grant.kill_epoch += 1000

    for target in targets:
        request = changed(honest, honest.tool.spec.target_field, target)

        def elsewhere(grant: grant_pb2.Grant, target: str = target, request: Any = request) -> None:
            grant.target_id = f"{target}-2" if grant.target_id == target else target
            grant.request_digest = policy.digest(honest.tool.name, request)

        yield attempt("re-targeted grant", honest, cut(elsewhere), request)
    for change in (later, higher, newer):
        yield attempt("grant changed after signing", honest, cut(change))
    signed = grant_pb2.SignedGrant.FromString(honest.grant)
    for other in others:
        if other.grant and other.grant != honest.grant:
            signed.signature = grant_pb2.SignedGrant.FromString(other.grant).signature
            yield attempt("signature of another grant", honest, signed.SerializeToString())
    content = signed.grant + UNKNOWN_FIELD
    signature = grant_pb2.SignedGrant.FromString(honest.grant).signature
    inside = grant_pb2.SignedGrant(grant=content, signature=signature)
    yield attempt("unknown field in the grant", honest, inside.SerializeToString())


def flipped(honest: Honest, start: int, chance: random.Random) -> Iterator[Attempt]:
    """Yield the grant with one bit flipped, for every fourth of its bytes: after four starts, for each of them."""
    for position in range(start % FLIP_STEP, len(honest.grant), FLIP_STEP):
        raw = bytearray(honest.grant)
        raw[position] ^= 1 << chance.randrange(8)
        yield attempt("bit flipped", honest, bytes(raw))
