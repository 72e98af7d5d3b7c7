"""PagerDuty's Events API, version 2, as its clients know it: a secret in the body, and the answers that they read.

A client shows nothing but `routing_key`, so that is compared here, and is masked before the body goes on: a credential
does not leave the bridge. Who shows the secret as a bearer token instead is answered as every other sender is.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from services.bridge.senders.proof import Knock, Proof, equal_any
from services.bridge.senders.shared import Bearer

ACTIONS: Final = ("trigger", "acknowledge", "resolve")
SEVERITIES: Final = ("critical", "error", "warning", "info")
KEY_MAX: Final = 255
SUCCESS: Final = {"status": "success", "message": "Event processed"}
INVALID: Final = {"status": "invalid event", "message": "Event object is invalid"}
BEARER: Final = Bearer()


class RoutingKey:
    """`routing_key` in the body, or the same secret as `Authorization: Bearer`."""

    async def verify(self, knock: Knock, secrets: Sequence[bytes]) -> Proof | None:
        """Compare what the header shows, then what the body does."""
        if await BEARER.verify(knock, secrets):
            return Proof(hidden=tuple(secrets))
        key = event_of(knock.body).get("routing_key")
        offered = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else b""
        return Proof(in_body=True, hidden=tuple(secrets)) if equal_any([offered], secrets) else None


def event_of(body: bytes) -> Mapping[str, Any]:
    """Return the object that a body is; an empty one for anything else. What is wrong within a text does not matter."""
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def errors_of(body: bytes) -> list[str]:
    """Return why the Events API would refuse a body; nothing when it would not. Case is not looked at: it is clear."""
    event = event_of(body)
    action, key, payload = event.get("event_action"), event.get("dedup_key"), event.get("payload")
    found = [] if _is_one(action, ACTIONS) else [f"'event_action' must be one of {', '.join(ACTIONS)}"]
    if key is not None and (not isinstance(key, str) or len(key) > KEY_MAX):
        found.append(f"'dedup_key' must be a text of at most {KEY_MAX} characters")
    if not _is_one(action, ("trigger",)):
        return found if key or not _is_one(action, ACTIONS) else [*found, "'dedup_key' is missing or blank"]
    if not isinstance(payload, Mapping):
        return [*found, "'payload' is missing or is not an object"]
    texts = {name: one.strip() for name, one in payload.items() if isinstance(one, str)}
    found += [f"'payload.{name}' is missing or blank" for name in ("summary", "source") if not texts.get(name)]
    if not _is_one(payload.get("severity"), SEVERITIES):
        found.append(f"'payload.severity' must be one of {', '.join(SEVERITIES)}")
    return found


def _is_one(value: Any, words: Sequence[str]) -> bool:
    return isinstance(value, str) and value.strip().lower() in words


def masked(body: bytes, hidden: Iterable[bytes]) -> bytes:
    """Return the body with every text that is one of the secrets as asterisks; all else stays."""
    for one in hidden:
        body = _spellings(one).sub(lambda found: b'"%s"' % (b"*" * (len(found[0]) - 2)), body)
    return body


@lru_cache(maxsize=64)
def _spellings(secret: bytes) -> re.Pattern[bytes]:
    """Return what finds a secret as a text of JSON, in whatever way its characters are escaped."""
    return re.compile(b'"%s"' % b"".join(_spellings_of(one) for one in secret.decode("utf-8", "surrogateescape")))


def _spellings_of(character: str) -> bytes:
    plain = character.encode("utf-8", "surrogateescape")
    units = character.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
    unit = "".join(rf"\\u{one}" for one in units).encode()
    short = {plain, json.dumps(character)[1:-1].encode(), b"\\" + plain if plain in b'"\\/' else plain}
    return b"(?:%s|(?i:%s))" % (b"|".join(re.escape(one) for one in sorted(short)), unit)
