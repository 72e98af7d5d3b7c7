"""Schemes in which the sender shows the secret itself: none, bearer, basic, static header, part of the path."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from services.bridge.senders.proof import Knock, Proof, equal_any, raw

SEEN = Proof()
AUTHORIZATION = "authorization"


class Nothing:
    """Nobody proves anything."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:  # noqa: ARG002  asks for nothing
        """Let everybody in."""
        return SEEN


class Bearer:
    """`Authorization: Bearer SECRET`."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Compare the token."""
        offered = raw(credentials(knock, "bearer"))
        return SEEN if equal_any([offered], secrets) else None


class Basic:
    """HTTP basic; a secret is `user:password`."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Compare user and password as one."""
        return SEEN if shows_password(knock, secrets) else None


@dataclass(frozen=True, slots=True)
class Header:
    """A header of a fixed name."""

    name: str

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Compare its value."""
        return SEEN if equal_any([raw(knock.header(self.name).strip())], secrets) else None


@dataclass(frozen=True, slots=True)
class UrlToken:
    """The last part of the path; where it shows none, a header if one is named."""

    header: str = ""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Compare it."""
        shown = knock.header(self.header).strip() if self.header and not knock.token else knock.token
        return SEEN if equal_any([raw(shown)], secrets) else None


def credentials(knock: Knock, scheme: str) -> str:
    """Return what follows SCHEME in the Authorization header; nothing when it is of another scheme."""
    word, _, rest = knock.header(AUTHORIZATION).strip().partition(" ")
    return rest.strip() if word.lower() == scheme else ""


def shows_password(knock: Knock, secrets: Sequence[bytes]) -> bool:
    """Say whether HTTP basic shows one of the secrets."""
    try:
        offered = base64.b64decode(raw(credentials(knock, "basic")), validate=True)
    except (binascii.Error, ValueError):
        return False
    return equal_any([offered], secrets)
