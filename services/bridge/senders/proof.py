"""What a verifier is asked and what it answers. Standard library only."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

# Two-sided: a clock that is ahead is as wrong as one that is behind.
WINDOW_SECONDS = 300
VALUE_MAX = 8192
TIME_DIGITS_MAX = 12


class Headers(Protocol):
    """Headers as a request has them: names in any case, each perhaps several times."""

    def getlist(self, key: str) -> list[str]:
        """Return every value of a header."""


@dataclass(frozen=True, slots=True)
class Knock:
    """A request at a door: its headers, its exact bytes, our clock in Unix seconds, the certificate of its TLS.

    `token` is what its path shows after the source; no representation of a request may tell it.
    """

    headers: Headers
    body: bytes
    now: float
    certificate: bytes = b""
    token: str = field(default="", repr=False)

    def header(self, name: str) -> str:
        """Return a header that was given exactly once and is not huge; else nothing: who doubles it may mean either."""
        values = self.headers.getlist(name)
        return values[0] if len(values) == 1 and len(values[0]) <= VALUE_MAX else ""


@dataclass(frozen=True, slots=True)
class Proof:
    """A sender proved itself.

    `once` is a fingerprint of signed content that no honest sender signs again for something new: such a request must
    not count twice. Empty where the scheme cannot tell a repetition. `seconds` is for how long it is remembered;
    0 is as long as the signals themselves are kept. `in_body`: the body showed the secret. `hidden` are secrets that
    must not go on with a body that may show them.
    """

    once: bytes = b""
    seconds: float = 0
    in_body: bool = False
    hidden: tuple[bytes, ...] = field(default=(), repr=False)


class UnavailableError(Exception):
    """Whether the sender is who it says cannot be found out now: it must come again."""


class Verifier(Protocol):
    """One scheme with its settings."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Return the proof, or None. Raises UnavailableError. Takes as long for a near miss as for any other."""


def fingerprint(*parts: bytes) -> bytes:
    """Return a digest of the parts, one after the other: what `Proof.once` holds of what was signed."""
    made = hashlib.sha256()
    for part in parts:
        made.update(part)
    return made.digest()


def equal_any(offered: Iterable[bytes], wanted: Sequence[bytes]) -> bool:
    """Say whether one of the offered is one of the wanted; every pair is compared, each in constant time."""
    found = False
    for one in offered:
        for other in wanted:
            found |= hmac.compare_digest(one, other) and bool(one)
    return found


def raw(value: str) -> bytes:
    """Return a header value as the bytes that came; headers are decoded as Latin-1."""
    return value.encode("latin-1", errors="replace")


def in_time(value: str, now: float, window: float = WINDOW_SECONDS) -> bool:
    """Say whether a text is a time in whole Unix seconds not further than the window from now, on either side."""
    if not value.isascii() or not value.isdecimal() or len(value) > TIME_DIGITS_MAX:
        return False
    return abs(now - int(value)) <= window
