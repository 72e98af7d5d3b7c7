"""Schemes in which the sender signs the exact bytes with a shared secret: HMAC-SHA256 in the senders' own wordings.

Where a scheme signs a time, it holds within 300 s on both sides. Where it does not, only memory helps: what counts as
the same request again is what was *signed*, never a header beside it, which whoever replays may choose.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from services.bridge.senders.proof import Knock, Proof, equal_any, fingerprint, in_time, raw

# A list of signatures is for rotation; no sender has more secrets than that.
SIGNATURES_MAX = 16
# Grafana repeats an alert that still fires in the same bytes, at the earliest after its group interval.
UNTIMED_SECONDS = 60.0
STANDARD_PREFIX = b"whsec_"
ID_MAX = 256


def mac(secret: bytes, *parts: bytes) -> bytes:
    """Return HMAC-SHA256 of the parts, one after the other."""
    made = hmac.new(secret, digestmod=hashlib.sha256)
    for part in parts:
        made.update(part)
    return made.digest()


def hexadecimal(secrets: Sequence[bytes], *parts: bytes, prefix: bytes = b"") -> list[bytes]:
    """Return the signature that each secret makes, in lower-case hexadecimal after a prefix."""
    return [prefix + mac(secret, *parts).hex().encode() for secret in secrets]


@dataclass(frozen=True, slots=True)
class Body:
    """One or more signatures of the body alone, each as PREFIX and hexadecimal: GitHub, PagerDuty, Sentry."""

    header: str
    prefix: bytes = b""
    several: bool = False

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Compare each signature with that of each secret."""
        value = raw(knock.header(self.header))
        # The sender alone chooses how many it sends, so the count says nothing about a secret.
        offered = [one.strip() for one in value.split(b",")] if self.several else [value]
        if len(offered) > SIGNATURES_MAX:
            return None
        wanted = hexadecimal(secrets, knock.body, prefix=self.prefix)
        return Proof(fingerprint(knock.body)) if equal_any(offered, wanted) else None


class Splunk:
    """Splunk Observability: base64 over the body."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Compare the signature with that of each secret."""
        wanted = [base64.b64encode(mac(one, knock.body)) for one in secrets]
        right = equal_any([raw(knock.header("x-sfx-signature"))], wanted)
        return Proof(fingerprint(knock.body)) if right else None


GITHUB = Body("x-hub-signature-256", b"sha256=")
PAGERDUTY = Body("x-pagerduty-signature", b"v1=", several=True)
SENTRY = Body("sentry-hook-signature")


class Slack:
    """`v0=` and hexadecimal, over v0:TIME:BODY."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Look at the time, then compare."""
        time = knock.header("x-slack-request-timestamp")
        signed = (b"v0:", raw(time), b":", knock.body)
        right = equal_any([raw(knock.header("x-slack-signature"))], hexadecimal(secrets, *signed, prefix=b"v0="))
        return Proof(fingerprint(*signed)) if in_time(time, knock.now) and right else None


@dataclass(frozen=True, slots=True)
class Grafana:
    """Hexadecimal over BODY, or over TIME:BODY where a header for the time is configured, which must then be there."""

    header: str = "x-grafana-alerting-signature"
    time_header: str = ""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Look at the time where there is one, then compare."""
        time = knock.header(self.time_header) if self.time_header else ""
        signed = (raw(time), b":", knock.body) if self.time_header else (knock.body,)
        if not equal_any([raw(knock.header(self.header))], hexadecimal(secrets, *signed)):
            return None
        if not self.time_header:
            return Proof(fingerprint(knock.body), UNTIMED_SECONDS)
        return Proof(fingerprint(*signed)) if in_time(time, knock.now) else None


class Standard:
    """Standard Webhooks: a list of `v1,` and base64, over ID.TIME.BODY; the id stays when the sender tries again."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Look at id and time, then compare each signature with that of each secret."""
        name, time = raw(knock.header("webhook-id")), knock.header("webhook-timestamp")
        offered = raw(knock.header("webhook-signature")).split(b" ")
        if not 0 < len(name) <= ID_MAX or not in_time(time, knock.now) or len(offered) > SIGNATURES_MAX:
            return None
        signed = (name, b".", raw(time), b".", knock.body)
        wanted = [b"v1," + base64.b64encode(mac(standard_key(one), *signed)) for one in secrets]
        return Proof(fingerprint(name, b"\0", knock.body)) if equal_any(offered, wanted) else None


def standard_key(secret: bytes) -> bytes:
    """Return the key that a secret of Standard Webhooks spells. Raises ValueError when it spells none."""
    text = secret.removeprefix(STANDARD_PREFIX)
    try:
        key = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("it is not `whsec_` and base64") from error
    if not key:
        raise ValueError("it is empty")
    return key
