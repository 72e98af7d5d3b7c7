"""Identity tokens: which person asked for something in a chat, signed by the router, whose public key is held here.

A token is good only for the incident that its message opened: source `chat`, with the labels that name conversation and
message. One that is over still says who asked, so that this person may not approve, but proves nothing any more.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError

from opsmesh.router.v1 import identity_pb2
from services.guardrails.checks import CHAT, Incident
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.keys import public_key

PREFIX: Final = b"opsmesh-identity\0"
LIFETIME: Final = timedelta(hours=1)
# How far the clock of whoever signs may be ahead of the database's.
SKEW: Final = timedelta(seconds=5)
CONVERSATION: Final = "conversation_id"
MESSAGE: Final = "message_digest"


class ForgedError(Exception):
    """A token that proves nobody here; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked, by a token; `proved` says that the token is still good."""

    person: str = ""
    proved: bool = False


NOBODY: Final = Asker()


class TokenReader:
    """Believes tokens that the router signed."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> "TokenReader":
        """Read the public key; a BootError says what is wrong with the file."""
        return cls(public_key("OPSMESH_IDENTITY_PUBLIC_KEY_FILE", path))

    def asker(self, token: bytes, incident: Incident | None, now: datetime) -> Asker:
        """Return who asked for what an incident is about, NOBODY without a token; a ForgedError if it is not for it."""
        if not token:
            return NOBODY
        identity = self._read(token)
        issued, ends = (when.ToDatetime(now.tzinfo) for when in (identity.issue_time, identity.expire_time))
        if ends - issued > LIFETIME or issued > now + SKEW:
            raise ForgedError("its times are none that the router gives")
        if incident is None or incident.source != CHAT:
            raise ForgedError("the incident does not come from a chat")
        labels = incident.labels
        if labels.get(CONVERSATION) != identity.conversation_id or labels.get(MESSAGE) != identity.message_digest.hex():
            raise ForgedError("it is for another message than the one that opened the incident")
        return Asker(identity.person, proved=now < ends)

    def _read(self, token: bytes) -> identity_pb2.Identity:
        """Return what was signed, or a ForgedError."""
        try:
            signed = identity_pb2.SignedIdentity.FromString(token)
            self._key.verify(signed.signature, PREFIX + signed.identity)
            identity = identity_pb2.Identity.FromString(signed.identity)
            policy.reject_unknown_fields(identity)
            policy.validate(identity)
        except (DecodeError, InvalidSignature):
            raise ForgedError("the router did not sign it") from None
        except Refusal as refusal:
            raise ForgedError(f"it is not well formed: {refusal.name}") from None
        return identity
