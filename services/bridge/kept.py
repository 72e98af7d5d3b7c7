"""Headers that say what a body is: the only ones that leave the bridge. Never one that could carry a credential."""

from collections.abc import Iterable, Mapping
from typing import Final

# What GitHub, Sentry, PagerDuty and SNS say of their bodies, and the attributes of a CloudEvent in binary mode.
NAMES: Final = frozenset(
    {
        "x-github-event",
        "x-github-delivery",
        "x-github-hook-id",
        "sentry-hook-resource",
        "sentry-hook-timestamp",
        "request-id",
        "x-webhook-id",
        "webhook-id",
        "x-amz-sns-message-type",
        "x-amz-sns-message-id",
        "x-amz-sns-topic-arn",
        "x-amz-sns-rawdelivery",
    }
)
CLOUDEVENT: Final = "ce-"
NAME_MAX: Final = 64
VALUE_MAX: Final = 1024
PAIRS_MAX: Final = 32
TOTAL_MAX: Final = 4096


def kept_headers(headers: Mapping[str, str], secret: str = "") -> dict[str, str]:
    """Return the headers a parser may see, names in lower case; `secret` is the name of the one that proves the sender.

    What goes beyond a bound is left out whole: half a value would say something else.
    """
    found: dict[str, str] = {}
    total = 0
    for name, value in _allowed(headers):
        total += len(name) + len(value)
        if name != secret and name not in found and len(found) < PAIRS_MAX and total <= TOTAL_MAX:
            found[name] = value
    return found


def _allowed(headers: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for raw, value in headers.items():
        name = raw.lower()
        if (
            (name in NAMES or name.startswith(CLOUDEVENT))
            and len(name) <= NAME_MAX
            and 0 < len(value) <= VALUE_MAX
            and value.isascii()
            and value.isprintable()
        ):
            yield name, value
