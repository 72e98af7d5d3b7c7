"""Who a sender is: secrets and their constant-time comparison. No framework, no input or output."""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

BODY_MAX = 1 << 20
DISCARD_MAX = 16 << 20


class Scheme(Enum):
    """How a sender proves itself."""

    NONE = "none"
    BEARER = "bearer"
    BASIC = "basic"
    HEADER = "header"


@dataclass(frozen=True, slots=True)
class Sender:
    """One configured source."""

    source: str
    scheme: Scheme
    header: str = "authorization"
    accept_malformed: bool = False


def read_secrets(text: str) -> tuple[bytes, ...]:
    """Return the secrets of a file: one a line, so that an old and a new one are both accepted while they rotate."""
    return tuple(line.strip().encode() for line in text.splitlines() if line.strip())


def proves(sender: Sender, headers: Mapping[str, str], secrets: Sequence[bytes]) -> bool:
    """Say whether HEADERS (names in lower case) prove SENDER, in time that does not tell how nearly they did."""
    if sender.scheme is Scheme.NONE:
        return True
    offered = presented(sender, headers.get(sender.header, ""))
    matches = [hmac.compare_digest(offered, secret) for secret in secrets]
    return bool(offered) and any(matches)


def presented(sender: Sender, value: str) -> bytes:
    """Return the secret that a header value carries; nothing when it is of another scheme."""
    if sender.scheme is Scheme.HEADER:
        return value.strip().encode(errors="replace")
    word, _, rest = value.strip().partition(" ")
    if word.lower() != sender.scheme.value:
        return b""
    if sender.scheme is Scheme.BEARER:
        return rest.strip().encode(errors="replace")
    try:
        return base64.b64decode(rest.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
