"""Identity tokens: which person said what, signed by the only process that saw the person's certificate."""

import hashlib
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from opsmesh.router.v1 import identity_pb2
from services.mesh import policy
from services.mesh.keys import private_key

LIFETIME: Final = timedelta(hours=1)
# Not exchangeable with a grant or a checkpoint, whatever their bytes are.
CONTEXT: Final = b"opsmesh-identity\0"


def message_digest(message_id: uuid.UUID, text: str) -> bytes:
    """Return the digest of a message: of its id, a zero byte and its text."""
    return hashlib.sha256(str(message_id).encode() + b"\0" + text.encode()).digest()


class Minter:
    """Makes tokens. The same facts give the same token, so none has to be kept."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> "Minter":
        """Read the private key; a BootError says what is wrong with the file."""
        return cls(private_key("OPSMESH_IDENTITY_KEY_FILE", path))

    def mint(self, person: str, conversation_id: uuid.UUID, digest: bytes, said: datetime) -> bytes:
        """Return a serialised SignedIdentity: `person` said the message of `digest` at `said`; valid an hour."""
        identity = identity_pb2.Identity(person=person, conversation_id=str(conversation_id), message_digest=digest)
        identity.issue_time.FromDatetime(said)
        identity.expire_time.FromDatetime(said + LIFETIME)
        policy.validate(identity)
        content = identity.SerializeToString(deterministic=True)
        return identity_pb2.SignedIdentity(
            identity=content, signature=self._key.sign(CONTEXT + content)
        ).SerializeToString(deterministic=True)
